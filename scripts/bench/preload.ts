/**
 * What the guest costs a worker: its own boot, from the start of the process until it listens, and its memory after
 * some requests, with the guest and bare, by turns, in pairs. See README.md beside this file. (Its cost per request:
 * pairs.ts.)
 *
 *     node --import tsx scripts/bench/preload.ts [--boots 15] [--pairs 9] [--requests 20000] [--node PATH] [--json]
 */
import { parseArgs } from 'node:util'
import { startLoad } from '../../src/drill/start-load.ts'
import {
  bench,
  type Bench,
  type Child,
  DEFAULT_CLI,
  goneIn,
  nodeVersion,
  reloadUsr2,
  type Served,
  serveBare,
  serveUsr2,
  sleep,
} from './bench.ts'
import { childrenOf, rssMb } from './proc.ts'
import { medianOf, show, table } from './stats.ts'

const { values: flags } = parseArgs({
  options: {
    boots: { type: 'string', default: '15' },
    pairs: { type: 'string', default: '9' },
    requests: { type: 'string', default: '20000' },
    node: { type: 'string', default: process.execPath },
    cli: { type: 'string', default: DEFAULT_CLI },
    json: { type: 'boolean', default: false },
  },
})

const TARGET_BOOT_MS = 15
const TARGET_RSS_MB = 3
const OLD_GONE_MS = 20_000
const SETTLE_MS = 300
const env = { SAY_BOOT: '1' }
const { node, cli } = flags

/** The worker's own words: since its start, and how much of that it was at work. */
interface Boot {
  readonly ms: number
  readonly cpuMs: number
}

interface Pair<T> {
  readonly bare: T
  readonly usr2: T
}

async function bootOf(child: Child, from: number): Promise<Boot> {
  const { ms, cpuMs } = await child.event(['listening'], from)
  return { ms: Number(ms), cpuMs: Number(cpuMs) }
}

async function bootBare(bench: Bench): Promise<Boot> {
  const { child } = await serveBare(bench, { node, env })
  const boot = await bootOf(child, 0)
  await child.stop()
  return boot
}

async function bootUsr2(served: Served): Promise<Boot> {
  const { child } = served
  const old = childrenOf(child.pid)
  const from = child.lines.length
  await reloadUsr2(served)
  await goneIn(old, OLD_GONE_MS)
  return bootOf(child, from)
}

/** `first` and `second` by turns: whoever is first once is second the next time. */
async function paired<T>(at: number, bare: () => Promise<T>, usr2: () => Promise<T>): Promise<Pair<T>> {
  if (at % 2 === 0) return { bare: await bare(), usr2: await usr2() }
  const second = await usr2()
  return { bare: await bare(), usr2: second }
}

async function boots(bench: Bench): Promise<Pair<Boot>[]> {
  const served = await serveUsr2(bench, { node, cli, env })
  const pairs: Pair<Boot>[] = []
  for (let at = 0; at < Number(flags.boots); at++) {
    pairs.push(
      await paired(
        at,
        () => bootBare(bench),
        () => bootUsr2(served),
      ),
    )
  }
  await served.child.stop()
  return pairs
}

async function memoryOf(served: Served, workerOf: (pid: number) => number | undefined): Promise<number> {
  const traffic = [{ mode: 'hot', connections: 8 }] as const
  const load = await startLoad({
    target: { port: served.port },
    traffic,
    maxRequests: Number(flags.requests),
  })
  const { failed } = await load.done
  if (failed > 0) throw new Error(`${failed} requests failed`)
  await sleep(SETTLE_MS)
  const worker = workerOf(served.child.pid)
  if (worker === undefined) throw new Error('usr2 has no worker')
  const mb = rssMb(worker)
  await served.child.stop()
  return mb
}

async function memory(bench: Bench): Promise<Pair<number>[]> {
  const pairs: Pair<number>[] = []
  const bare = async (): Promise<number> => memoryOf(await serveBare(bench, { node }), (pid) => pid)
  const usr2 = async (): Promise<number> =>
    memoryOf(await serveUsr2(bench, { node, cli }), (pid) => childrenOf(pid)[0])
  for (let at = 0; at < Number(flags.pairs); at++) pairs.push(await paired(at, bare, usr2))
  return pairs
}

const row = (what: string, unit: string, pairs: readonly Pair<number>[], target: number | null): string[] => {
  const more = medianOf(pairs.map(({ bare, usr2 }) => usr2 - bare))
  const each = (which: 'bare' | 'usr2'): string =>
    medianOf(pairs.map((pair) => pair[which])).median.toFixed(1)
  const bar = target === null ? ['', ''] : [`at most ${target}`, more.median <= target ? 'yes' : 'NO']
  return [`${what}, ${unit}`, `${pairs.length}`, each('bare'), each('usr2'), show(more, 1), ...bar]
}

const only = (pairs: readonly Pair<Boot>[], which: keyof Boot): Pair<number>[] =>
  pairs.map(({ bare, usr2 }) => ({ bare: bare[which], usr2: usr2[which] }))

await bench(async (bench) => {
  const booted = await boots(bench)
  const kept = await memory(bench)
  const version = nodeVersion(node)
  if (flags.json) console.log(JSON.stringify({ node: version, boots: booted, memory: kept }, null, 2))
  else {
    const rows = [
      row('boot until it listens', 'ms', only(booted, 'ms'), TARGET_BOOT_MS),
      row('of that at work', 'ms', only(booted, 'cpuMs'), null),
      row(`RSS after ${flags.requests} requests`, 'MB', kept, TARGET_RSS_MB),
    ]
    const head = ['pairs', 'bare', 'usr2', 'more: median [95 %]', 'target', 'reached']
    console.log(table([`Node ${version}: a worker's`, ...head], rows))
  }
  return 0
})
