/**
 * What usr2 costs while nothing happens: the same app with one worker and bare, by turns, in pairs. See README.md
 * beside this file.
 *
 *     node --import tsx scripts/bench/pairs.ts [--pairs 15] [--seconds 3] [--kinds new,keepalive] [--at-once]
 *         [--node PATH] [--json]
 */
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import {
  bench,
  type Bench,
  cores,
  DEFAULT_CLI,
  nodeVersion,
  progress,
  type Served,
  serveBare,
  serveUsr2,
} from './bench.ts'
import { type Generator, generator, type Kind } from './generator.ts'
import { childrenOf, cpuMs, rssMb } from './proc.ts'
import { medianOf, show, table } from './stats.ts'

const { values: flags } = parseArgs({
  options: {
    pairs: { type: 'string', default: '15' },
    seconds: { type: 'string', default: '3' },
    'at-once': { type: 'boolean', default: false },
    kinds: { type: 'string', default: 'new,keepalive' },
    node: { type: 'string', default: process.execPath },
    cli: { type: 'string', default: DEFAULT_CLI },
    json: { type: 'boolean', default: false },
  },
})

/** Until the hot paths are compiled. */
const WARM_UP_SECONDS = 1

interface Run {
  readonly perSecond: number
  /** Of the process that runs the app. */
  readonly cpuUsPerRequest: number
  readonly masterCpuMs: number
  readonly masterRssMb: number
  readonly requests: number
}

interface Pair {
  readonly bare: Run
  readonly usr2: Run
}

/** A fresh process for each run: where its memory lies and what its compiler guessed differs from life to life. */
async function measure(bench: Bench, what: 'bare' | 'usr2', kind: Kind, load: Generator): Promise<Run> {
  const { node, cli } = flags
  const core = cores().server
  const control = join(bench.directory, 'c.sock')
  const served =
    what === 'bare'
      ? await serveBare(bench, { node, core })
      : await serveUsr2(bench, { node, cli, core, control })
  const { port, child } = served
  const [app, master] = processesOf(what, served)
  await load.run(kind, port, WARM_UP_SECONDS)
  const before = { app: cpuMs(app), master: master === null ? 0 : cpuMs(master) }
  const { requests, perSecond } = await load.run(kind, port, Number(flags.seconds))
  const result = {
    requests,
    perSecond,
    cpuUsPerRequest: ((cpuMs(app) - before.app) * 1000) / requests,
    masterCpuMs: master === null ? 0 : cpuMs(master) - before.master,
    masterRssMb: master === null ? 0 : rssMb(master),
  }
  await child.stop()
  return result
}

/** One after the other; whoever is first in one pair is second in the next, so that what warms up favours neither. */
async function inTurn(bench: Bench, at: number, kind: Kind, load: Generator): Promise<Pair> {
  if (at % 2 === 0) {
    const bare = await measure(bench, 'bare', kind, load)
    return { bare, usr2: await measure(bench, 'usr2', kind, load) }
  }
  const usr2 = await measure(bench, 'usr2', kind, load)
  return { bare: await measure(bench, 'bare', kind, load), usr2 }
}

/** Both at once: what others do with the machine meanwhile hits both alike. */
async function atOnce(bench: Bench, _at: number, kind: Kind, load: Generator): Promise<Pair> {
  const [bare, usr2] = await Promise.all([
    measure(bench, 'bare', kind, load),
    measure(bench, 'usr2', kind, load),
  ])
  return { bare, usr2 }
}

/** The one that runs the app, and its master. */
function processesOf(what: 'bare' | 'usr2', { child }: Served): [app: number, master: number | null] {
  if (what === 'bare') return [child.pid, null]
  const [worker, ...others] = childrenOf(child.pid)
  if (worker === undefined || others.length > 0) throw new Error('usr2 should have one worker')
  return [worker, child.pid]
}

function report(kind: Kind, pairs: readonly Pair[]): string {
  const runs = pairs.map(({ bare, usr2 }, at) => [
    ...[
      at + 1,
      bare.perSecond.toFixed(0),
      usr2.perSecond.toFixed(0),
      (usr2.perSecond / bare.perSecond).toFixed(3),
    ],
    ...[bare.cpuUsPerRequest.toFixed(2), usr2.cpuUsPerRequest.toFixed(2)],
    ...[
      (usr2.cpuUsPerRequest / bare.cpuUsPerRequest).toFixed(3),
      usr2.masterCpuMs,
      usr2.masterRssMb.toFixed(1),
    ],
  ])
  const head = ['pair', 'bare req/s', 'usr2 req/s', 'ratio', 'bare µs CPU/req', 'usr2 µs CPU/req', 'ratio']
  const perSecond = medianOf(pairs.map(({ bare, usr2 }) => usr2.perSecond / bare.perSecond))
  const cpu = medianOf(pairs.map(({ bare, usr2 }) => usr2.cpuUsPerRequest / bare.cpuUsPerRequest))
  const rss = medianOf(pairs.map(({ usr2 }) => usr2.masterRssMb))
  const requests = pairs.reduce((sum, { usr2 }) => sum + usr2.requests, 0)
  const master = pairs.reduce((sum, { usr2 }) => sum + usr2.masterCpuMs, 0) / (requests / 100_000)
  const reached = (yes: boolean): string => (yes ? 'yes' : 'NO')
  return [
    table([...head, 'master CPU ms', 'master RSS MB'], runs),
    '',
    table(
      [`${kind}: usr2 / bare, ${pairs.length} pairs`, 'median [95 % interval]', 'target', 'reached'],
      [
        ['throughput', show(perSecond, 3), '0.97 within the interval', reached(perSecond.high >= 0.97)],
        ['CPU of the app per request', show(cpu, 3), '1.03 within the interval', reached(cpu.low <= 1.03)],
        ['CPU of the master per 100,000 requests', `${master.toFixed(1)} ms`, '20 ms', reached(master <= 20)],
        ['RSS of the master', `${show(rss, 1)} MB`, '50 MB', reached(rss.median < 50)],
      ],
    ),
    '',
  ].join('\n')
}

await bench(async (bench) => {
  const load = await generator(bench, cores().client)
  const results: Partial<Record<Kind, Pair[]>> = {}
  for (const kind of flags.kinds.split(',') as Kind[]) {
    const pairs: Pair[] = []
    results[kind] = pairs
    for (let at = 0; at < Number(flags.pairs); at++) {
      const pair = await (flags['at-once'] ? atOnce : inTurn)(bench, at, kind, load)
      pairs.push(pair)
      const { bare, usr2 } = pair
      progress(`${kind}, pair ${at + 1}: ${(usr2.perSecond / bare.perSecond).toFixed(3)} of bare`)
    }
  }
  if (flags.json)
    console.log(JSON.stringify({ node: nodeVersion(flags.node), generator: load.name, results }, null, 2))
  else {
    const how = flags['at-once'] ? 'both at once' : 'in turn'
    console.log(`Node ${nodeVersion(flags.node)}, ${flags.seconds} s each, ${how}, by ${load.name}\n`)
    for (const [kind, pairs] of Object.entries(results)) console.log(report(kind as Kind, pairs))
  }
  return 0
})
