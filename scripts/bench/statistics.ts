/**
 * What the request statistics cost a worker: the same build with `--statistics on` and `off`, by turns, in pairs. See
 * README.md beside this file.
 *
 *     node --import tsx scripts/bench/statistics.ts [--pairs 15] [--seconds 3] [--kinds new,keepalive] [--node PATH] [--json]
 */
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { type Bench, bench, cores, DEFAULT_CLI, nodeVersion, progress, serveUsr2 } from './bench.ts'
import { type Generator, generator, type Kind } from './generator.ts'
import { childrenOf, cpuMs } from './proc.ts'
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
const TARGET = 1.02

/** Microseconds of the worker's processor time per request. */
interface Pair {
  readonly on: number
  readonly off: number
}

class Subject {
  readonly port: number
  readonly stop: () => Promise<void>
  private readonly worker: number
  private requests = 0
  private cpuMs = 0

  private constructor(port: number, worker: number, stop: () => Promise<void>) {
    this.port = port
    this.worker = worker
    this.stop = stop
  }

  static async start(bench: Bench, statistics: 'on' | 'off'): Promise<Subject> {
    const { port, child } = await serveUsr2(bench, {
      node: flags.node,
      cli: flags.cli,
      core: cores().server,
      control: join(bench.directory, `${statistics}.sock`),
      flags: ['--statistics', statistics],
    })
    const [worker, ...others] = childrenOf(child.pid)
    if (worker === undefined || others.length > 0) throw new Error('usr2 should have one worker')
    return new Subject(port, worker, () => child.stop())
  }

  async slice(kind: Kind, load: Generator): Promise<void> {
    const before = cpuMs(this.worker)
    const { requests } = await load.run(kind, this.port, 1)
    this.requests += requests
    this.cpuMs += cpuMs(this.worker) - before
  }

  get cpuUsPerRequest(): number {
    return (this.cpuMs * 1000) / this.requests
  }
}

/** As in pairs.ts: fresh processes for each pair, the load changes from one to the other each second. */
async function measure(bench: Bench, at: number, kind: Kind, load: Generator): Promise<Pair> {
  // Whoever starts first once is second the next time: the master's and the worker's place in memory is chance.
  const first = at % 2 === 0 ? 'on' : 'off'
  const subjects = [
    await Subject.start(bench, first),
    await Subject.start(bench, first === 'on' ? 'off' : 'on'),
  ]
  for (const { port } of subjects) await load.run(kind, port, WARM_UP_SECONDS)
  for (let second = 0; second < Number(flags.seconds); second++) {
    for (const subject of second % 2 === 0 ? subjects : subjects.toReversed()) await subject.slice(kind, load)
  }
  await Promise.all(subjects.map((subject) => subject.stop()))
  const [a = NaN, b = NaN] = subjects.map(({ cpuUsPerRequest }) => cpuUsPerRequest)
  return first === 'on' ? { on: a, off: b } : { on: b, off: a }
}

const ratioOf = ({ on, off }: Pair): number => on / off

function report(kind: Kind, pairs: readonly Pair[]): string {
  const ratio = medianOf(pairs.map(ratioOf))
  const extraNs = medianOf(pairs.map(({ on, off }) => (on - off) * 1000))
  return [
    table(
      ['pair', 'off µs CPU/req', 'on µs CPU/req', 'ratio'],
      pairs.map((pair, at) => [at + 1, pair.off.toFixed(2), pair.on.toFixed(2), ratioOf(pair).toFixed(3)]),
    ),
    '',
    table(
      [`${kind}: on / off, ${pairs.length} pairs`, 'median [95 % interval]', 'target', 'reached'],
      [
        [
          'CPU of the worker per request',
          show(ratio, 3),
          `at most ${TARGET}`,
          ratio.median <= TARGET ? 'yes' : 'NO',
        ],
        ['more per request', `${show(extraNs, 0)} ns`, '', ''],
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
      progress(`${kind}, pair ${at + 1}: ${ratioOf(pair).toFixed(3)} of the same without statistics`)
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
