/**
 * How new connections spread over N workers: over one socket that they share, as usr2 has it, and over a SO_REUSEPORT
 * socket for each. What that makes of the share of a candidate that has K of them. See README.md beside this file.
 *
 *     node --import tsx scripts/bench/share.ts [--workers 2,4,5] [--means shared,per-slot,turns] [--runs 5] [--longer 1]
 *                                              [--apps at-once,cpu,wait] [--loads low,middle,full,burst] [--turn-ms 100] [--node PATH] [--json]
 */
import { parseArgs } from 'node:util'
import { Load, summary, type Traffic } from '../../src/drill/load.ts'
import {
  APP,
  ask,
  type Bench,
  bench,
  type Child,
  DEFAULT_CLI,
  firstAnswer,
  freePort,
  nodeVersion,
  progress,
  serveUsr2,
  TURNS_PEER,
} from './bench.ts'
import { table } from './stats.ts'

const { values: flags } = parseArgs({
  options: {
    workers: { type: 'string', default: '2,4,5' },
    means: { type: 'string', default: 'shared,per-slot' },
    apps: { type: 'string', default: 'at-once,cpu,wait' },
    loads: { type: 'string', default: 'low,middle,full,burst' },
    runs: { type: 'string', default: '5' },
    /** How many times as many connections a run has. */
    longer: { type: 'string', default: '1' },
    'turn-ms': { type: 'string', default: '100' },
    node: { type: 'string', default: process.execPath },
    cli: { type: 'string', default: DEFAULT_CLI },
    json: { type: 'boolean', default: false },
  },
})

const MEANS = ['shared', 'per-slot', 'turns'] as const
type Means = (typeof MEANS)[number]

const APPS = ['at-once', 'cpu', 'wait'] as const
type AppKind = (typeof APPS)[number]
const PATHS: Readonly<Record<AppKind, string>> = { 'at-once': '/', cpu: '/work?ms=5', wait: '/slow?ms=20' }

const LOADS = ['low', 'middle', 'full', 'burst'] as const
type LoadKind = (typeof LOADS)[number]

/** New connections a second. Two processors do at most 400 times 5 ms of work in one. */
const PER_SECOND: Readonly<Record<AppKind, Readonly<Record<'low' | 'middle', number>>>> = {
  'at-once': { low: 100, middle: 500 },
  cpu: { low: 40, middle: 160 },
  wait: { low: 100, middle: 500 },
}
/** Enough that chance alone is below 2 percentage points; few enough that a run takes seconds. */
const CONNECTIONS: Readonly<Record<Exclude<LoadKind, 'burst'>, number>> = {
  low: 400,
  middle: 1000,
  full: 2000,
}
const FULL_CLIENTS = 64
const BURST_CONNECTIONS = 100
const BURSTS = 5
const OUTSTANDING = 1000

/** So far apart do the workers begin to accept: their order is that of their slots. */
const STEP_MS = 300
/** A run that a server does not end by answering. */
const RUN_MS = 60_000

interface Fleet {
  readonly port: number
  /** In the order in which they began to accept. */
  readonly pids: readonly number[]
  end(): Promise<void>
}

async function sharedSocket(bench: Bench, workers: number): Promise<Fleet> {
  const { node, cli } = flags
  const { port, child } = await serveUsr2(bench, { node, cli, workers, env: { BOOT_STEP_MS: `${STEP_MS}` } })
  const pids: number[] = []
  for (let slot = 0; slot < workers; slot++) {
    const ready = ({ event, slot: of }: (typeof child.lines)[number]): boolean =>
      event === 'worker-ready' && of === slot
    pids.push(Number((await child.line(ready, `that slot ${slot} is ready`))['pid']))
  }
  return { port, pids, end: () => child.stop() }
}

/** As many bare processes, each with a socket of its own on the same port. */
async function socketsPerSlot(bench: Bench, workers: number): Promise<Fleet> {
  const port = await freePort()
  const children: Child[] = []
  for (let slot = 0; slot < workers; slot++) {
    const child = bench.start(`worker ${slot}`, flags.node, [APP], {
      env: { PORT: `${port}`, REUSE_PORT: '1', SAY_BOOT: '1' },
    })
    await child.event(['listening'])
    children.push(child)
  }
  await firstAnswer(port, () => true, { log: () => children.map((child) => child.log()).join('\n') })
  return {
    port,
    pids: children.map(({ pid }) => pid),
    end: async () => void (await Promise.all(children.map((child) => child.stop()))),
  }
}

/** A shared socket whose workers change places in the kernel's queue: see peers/turns.cjs. */
async function takingTurns(bench: Bench, workers: number): Promise<Fleet> {
  const port = await freePort()
  const child = bench.start('peers/turns.cjs', flags.node, [TURNS_PEER], {
    env: { PORT: `${port}`, WORKERS: `${workers}`, TURN_MS: flags['turn-ms'] },
  })
  const { pids } = await child.event(['ready'])
  return { port, pids: pids as number[], end: () => child.stop() }
}

const FLEETS: Readonly<Record<Means, (bench: Bench, workers: number) => Promise<Fleet>>> = {
  shared: sharedSocket,
  'per-slot': socketsPerSlot,
  turns: takingTurns,
}

/** Connections of one run by the worker that answered, in the order in which they began to accept. */
async function run({ port, pids }: Fleet, app: AppKind, load: LoadKind): Promise<number[]> {
  const counts = new Map(pids.map((pid) => [pid, 0]))
  for (let burst = 0; burst < (load === 'burst' ? BURSTS * Number(flags.longer) : 1); burst++) {
    const result = await new Load({
      target: { port },
      traffic: [trafficOf(app, load)],
      versionOf: 'pid',
      maxMs: RUN_MS,
      // A machine that others use, too, answers late; that is no failure here.
      timeoutMs: RUN_MS,
      ...(load === 'burst' ? { once: true } : { maxRequests: CONNECTIONS[load] * Number(flags.longer) }),
    }).start().done
    if (result.failed > 0) throw new Error(summary(result))
    for (const [pid, { responses }] of Object.entries(result.versions)) {
      if (!counts.has(Number(pid)))
        throw new Error(`pid ${pid} answered, which is none of ${pids.join(', ')}`)
      counts.set(Number(pid), (counts.get(Number(pid)) ?? 0) + responses)
    }
  }
  return [...counts.values()]
}

function trafficOf(app: AppKind, load: LoadKind): Traffic {
  const one = { mode: 'new', path: PATHS[app] } as const
  if (load === 'burst') return { ...one, connections: BURST_CONNECTIONS }
  if (load === 'full') return { ...one, connections: FULL_CLIENTS }
  return { ...one, connections: OUTSTANDING, perSecond: PER_SECOND[app][load] }
}

interface Result {
  readonly means: Means
  readonly workers: number
  readonly app: AppKind
  readonly load: LoadKind
  /** One row a run, one number a worker. */
  readonly runs: readonly (readonly number[])[]
}

const sum = (values: readonly number[]): number => values.reduce((all, value) => all + value, 0)
const mean = (values: readonly number[]): number => sum(values) / values.length
/** In percentage points. */
const show = (points: number): string => `${points < 0 ? '-' : '+'}${Math.abs(points).toFixed(1)}`

/**
 * By how much the K workers that began to accept last, which are those of a candidate, got more than K/N of the
 * connections of each run, in percentage points.
 */
function errorsOf({ runs }: Result, candidates: number): number[] {
  return runs.map((counts) => {
    const expected = candidates / counts.length
    return 100 * (sum(counts.slice(counts.length - candidates)) / sum(counts) - expected)
  })
}

/** What chance alone would do: the standard deviation of a share of K/N among so many independent connections. */
function chanceOf({ runs }: Result, candidates: number): number {
  const expected = candidates / (runs[0]?.length ?? NaN)
  return 100 * Math.sqrt((expected * (1 - expected)) / mean(runs.map(sum)))
}

const worst = (errors: readonly number[]): number =>
  errors.reduce((most, error) => (Math.abs(error) > Math.abs(most) ? error : most), 0)

function report(results: readonly Result[]): string {
  const workers = results[0]?.workers ?? 0
  const ks = Array.from({ length: workers - 1 }, (_, at) => at + 1)
  const rows = results.map((result) => {
    const { means, app, load, runs } = result
    const shares = Array.from({ length: workers }, (_, at) =>
      mean(runs.map((counts) => (100 * (counts[at] ?? 0)) / sum(counts))).toFixed(0),
    )
    const cells = ks.map((k) => {
      const errors = errorsOf(result, k)
      return `${show(mean(errors))} (${show(worst(errors))})`
    })
    const chance = Math.max(...ks.map((k) => chanceOf(result, k)))
    return [means, app, load, shares.join(' '), ...cells, `±${chance.toFixed(1)}`]
  })
  const head = ['means', 'app', 'load', '% per worker, first to last', ...ks.map((k) => `${k} of ${workers}`)]
  return table([...head, 'chance'], rows)
}

function listed<T extends string>(text: string, known: readonly T[]): T[] {
  return text.split(',').map((name) => {
    const found = known.find((one) => one === name)
    if (found === undefined) throw new Error(`${name} is none of ${known.join(', ')}`)
    return found
  })
}

/** Node before 22.12 takes `reusePort` without a word, and the second socket is refused. */
function hasReusePort(version: string): boolean {
  const [major = 0, minor = 0] = version.slice('v'.length).split('.').map(Number)
  return major > 22 || (major === 22 && minor >= 12)
}

await bench(async (bench) => {
  const version = nodeVersion(flags.node)
  const [meansList, apps, loads] = [
    listed(flags.means, MEANS),
    listed(flags.apps, APPS),
    listed(flags.loads, LOADS),
  ]
  const results: Result[] = []
  for (const workers of flags.workers.split(',').map(Number)) {
    for (const means of meansList) {
      if (means === 'per-slot' && !hasReusePort(version)) {
        progress(`per-slot: NOT MEASURED, Node ${version} has no reusePort`)
        continue
      }
      const fleet = await FLEETS[means](bench, workers)
      // What is hot is compiled by now in each of them, or nearly.
      for (let at = 0; at < 50 * workers; at++) await ask(fleet.port)
      for (const app of apps) {
        for (const load of loads) {
          const runs: number[][] = []
          for (let at = 0; at < Number(flags.runs); at++) runs.push(await run(fleet, app, load))
          const result = { means, workers, app, load, runs }
          results.push(result)
          progress(
            `${workers} workers, ${means}, ${app}, ${load}: ${runs.map((counts) => counts.join(' ')).join(' | ')}`,
          )
        }
      }
      await fleet.end()
    }
  }
  if (flags.json) console.log(JSON.stringify({ node: version, results }, null, 2))
  else {
    console.log(
      `Node ${version}. Error of the candidate's share, the last K of N, in percentage points: mean (worst of ${flags.runs} runs).\n`,
    )
    for (const workers of new Set(results.map((result) => result.workers)))
      console.log(`${report(results.filter((result) => result.workers === workers))}\n`)
  }
  return 0
})
