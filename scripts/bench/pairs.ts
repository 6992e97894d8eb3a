/**
 * What usr2 costs while nothing happens: the same app bare and with one worker, by turns, in pairs. See README.md
 * beside this file.
 *
 *     node --import tsx scripts/bench/pairs.ts [--pairs 15] [--seconds 3] [--kinds new,keepalive] [--node PATH] [--json]
 */
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
    kinds: { type: 'string', default: 'new,keepalive' },
    node: { type: 'string', default: process.execPath },
    cli: { type: 'string', default: DEFAULT_CLI },
    json: { type: 'boolean', default: false },
  },
})

/** Until the hot paths are compiled. */
const WARM_UP_SECONDS = 2

interface Run {
  readonly perSecond: number
  /** Of the process that runs the app. */
  readonly cpuUsPerRequest: number
  /** Of each second: milliseconds of the master's processor time for 100,000 requests. */
  readonly masterMsPer100k: readonly number[]
  readonly masterRssMb: number
  readonly requests: number
}

interface Pair {
  readonly bare: Run
  readonly usr2: Run
}

interface Subject {
  readonly served: Served
  readonly app: number
  readonly master: number | null
  requests: number
  seconds: number
  appCpuMs: number
  readonly masterMsPer100k: number[]
}

/**
 * Fresh processes for each pair: where its memory lies and what its compiler guessed differs from life to life. Both
 * live side by side, and the load changes from one to the other each second: what others do with the machine lasts
 * longer than that, and hits both.
 */
async function measure(bench: Bench, at: number, kind: Kind, load: Generator): Promise<Pair> {
  const { node, cli } = flags
  const core = cores().server
  const bare = subjectOf('bare', await serveBare(bench, { node, core }))
  const usr2 = subjectOf('usr2', await serveUsr2(bench, { node, cli, core }))
  for (const { served } of [bare, usr2]) await load.run(kind, served.port, WARM_UP_SECONDS)
  for (let second = 0; second < Number(flags.seconds); second++) {
    // Whoever is first once is second the next time.
    const order = (at + second) % 2 === 0 ? [bare, usr2] : [usr2, bare]
    for (const subject of order) await slice(subject, kind, load)
  }
  const masterRssMb = rssMb(usr2.served.child.pid)
  await Promise.all([bare.served.child.stop(), usr2.served.child.stop()])
  return { bare: runOf(bare, 0), usr2: runOf(usr2, masterRssMb) }
}

async function slice(subject: Subject, kind: Kind, load: Generator): Promise<void> {
  const { app, master, served } = subject
  const before = { app: cpuMs(app), master: master === null ? 0 : cpuMs(master) }
  const { requests, perSecond } = await load.run(kind, served.port, 1)
  subject.requests += requests
  subject.seconds += requests / perSecond
  subject.appCpuMs += cpuMs(app) - before.app
  if (master !== null) subject.masterMsPer100k.push((cpuMs(master) - before.master) / (requests / 100_000))
}

function subjectOf(what: 'bare' | 'usr2', served: Served): Subject {
  const [app, master] = processesOf(what, served)
  return { served, app, master, requests: 0, seconds: 0, appCpuMs: 0, masterMsPer100k: [] }
}

const runOf = ({ requests, seconds, appCpuMs, masterMsPer100k }: Subject, masterRssMb: number): Run => ({
  requests,
  perSecond: requests / seconds,
  cpuUsPerRequest: (appCpuMs * 1000) / requests,
  masterMsPer100k,
  masterRssMb,
})

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
      medianOf(usr2.masterMsPer100k).median.toFixed(1),
      usr2.masterRssMb.toFixed(1),
    ],
  ])
  const head = ['pair', 'bare req/s', 'usr2 req/s', 'ratio', 'bare µs CPU/req', 'usr2 µs CPU/req', 'ratio']
  const perSecond = medianOf(pairs.map(({ bare, usr2 }) => usr2.perSecond / bare.perSecond))
  const cpu = medianOf(pairs.map(({ bare, usr2 }) => usr2.cpuUsPerRequest / bare.cpuUsPerRequest))
  const rss = medianOf(pairs.map(({ usr2 }) => usr2.masterRssMb))
  // Of all seconds: once, 8 s after its start, V8 tidies up a master's heap for 10 to 20 ms.
  const master = medianOf(pairs.flatMap(({ usr2 }) => usr2.masterMsPer100k))
  const reached = (yes: boolean): string => (yes ? 'yes' : 'NO')
  return [
    table([...head, 'master CPU ms/100k', 'master RSS MB'], runs),
    '',
    table(
      [`${kind}: usr2 / bare, ${pairs.length} pairs`, 'median [95 % interval]', 'target', 'reached'],
      [
        ['throughput', show(perSecond, 3), '0.97 within the interval', reached(perSecond.high >= 0.97)],
        ['CPU of the app per request', show(cpu, 3), '1.03 within the interval', reached(cpu.low <= 1.03)],
        [
          'CPU of the master per 100,000 requests',
          `${show(master, 1)} ms`,
          '20 ms',
          reached(master.median <= 20),
        ],
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
      const pair = await measure(bench, at, kind, load)
      pairs.push(pair)
      const { bare, usr2 } = pair
      progress(`${kind}, pair ${at + 1}: ${(usr2.perSecond / bare.perSecond).toFixed(3)} of bare`)
    }
  }
  if (flags.json)
    console.log(JSON.stringify({ node: nodeVersion(flags.node), generator: load.name, results }, null, 2))
  else {
    console.log(`Node ${nodeVersion(flags.node)}, ${flags.seconds} s each, by ${load.name}\n`)
    for (const [kind, pairs] of Object.entries(results)) console.log(report(kind as Kind, pairs))
  }
  return 0
})
