/**
 * What do those who are served meanwhile notice of a reload? Latency of the requests that were due between the signal
 * and the promotion, beside those that were due in the time as long just before. See README.md beside this file.
 *
 *     node --import tsx scripts/bench/latency.ts [--reloads 30] [--subjects usr2,usr2-niceness,cluster,pm2] [--workers 1,2]
 *                                                [--boot-cpu-ms 500] [--work-ms 0] [--per-second 500] [--node PATH] [--json]
 */
import { execFileSync } from 'node:child_process'
import { loadavg } from 'node:os'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { type Arrivals, nowMs } from './arrivals.ts'
import { bench, type Bench, DEFAULT_CLI, goneIn, nodeVersion, progress, sleep } from './bench.ts'
import { table } from './stats.ts'
import { startSubject, type SubjectName, SUBJECTS } from './subjects.ts'

const { values: flags } = parseArgs({
  options: {
    reloads: { type: 'string', default: '30' },
    subjects: { type: 'string', default: 'usr2,usr2-niceness,usr2-unprivileged,cluster,pm2' },
    workers: { type: 'string', default: '1,2' },
    'boot-cpu-ms': { type: 'string', default: '500' },
    'boot-ms': { type: 'string', default: '0' },
    'work-ms': { type: 'string', default: '0' },
    'per-second': { type: 'string', default: '500' },
    node: { type: 'string', default: process.execPath },
    cli: { type: 'string', default: DEFAULT_CLI },
    json: { type: 'boolean', default: false },
  },
})

const TARGET = 1.25
const WARM_UP_MS = 3_000
/** After the last old process has gone: the new ones compile what is hot. */
const SETTLE_MS = 1_500
const OLD_GONE_MS = 12_000
const RESAMPLES = 400

interface Window {
  readonly fromMs: number
  readonly toMs: number
}

interface Reload {
  readonly tookMs: number
  readonly steady: readonly number[]
  readonly during: readonly number[]
}

interface Run {
  readonly subject: SubjectName
  readonly workers: number
  readonly failed: number
  readonly loadBefore: number
  readonly reloads: readonly Reload[]
}

/**
 * Of first-in-first-out priority where that is allowed: a client of another machine would not wait for a processor that
 * the booting workers keep busy, and its waiting is not the server's doing.
 */
function clientCommand(): readonly string[] {
  try {
    execFileSync('chrt', ['-f', '1', 'true'], { stdio: 'ignore' })
    return ['chrt', '-f', '1', process.execPath]
  } catch {
    progress('chrt(1) may not give the client a real-time priority: its own waits are in the figures')
    return [process.execPath]
  }
}

async function measure(bench: Bench, name: SubjectName, workers: number): Promise<Run> {
  const { node, cli } = flags
  const bootMs = Number(flags['boot-ms'])
  const bootCpuMs = Number(flags['boot-cpu-ms'])
  const [loadBefore = 0] = loadavg()
  const subject = await startSubject(name, bench, { node, cli, workers, bootMs, bootCpuMs })
  const path = Number(flags['work-ms']) > 0 ? `/work?ms=${flags['work-ms']}` : '/'
  const [command = '', ...args] = clientCommand()
  const main = fileURLToPath(new URL('arrivals.ts', import.meta.url))
  const client = bench.begin(command, [
    ...args,
    ...['--import', import.meta.resolve('tsx'), main],
    ...[`${subject.port}`, flags['per-second'], path],
  ])
  await sleep(WARM_UP_MS)
  const windows: Window[] = []
  for (let count = 1; count <= Number(flags.reloads); count++) {
    const before = subject.workers()
    const fromMs = nowMs()
    await subject.reload()
    const toMs = nowMs()
    windows.push({ fromMs, toMs })
    await goneIn(before, OLD_GONE_MS)
    await sleep(SETTLE_MS + (toMs - fromMs))
  }
  const { samples, failed } = JSON.parse(await client.end()) as Arrivals
  await subject.stop()
  const dueIn = ({ fromMs, toMs }: Window): number[] =>
    samples.flatMap(([dueMs, latencyMs]) => (dueMs >= fromMs && dueMs < toMs ? [latencyMs] : []))
  const reloads = windows.map(({ fromMs, toMs }): Reload => {
    const tookMs = toMs - fromMs
    return {
      tookMs,
      steady: dueIn({ fromMs: fromMs - tookMs, toMs: fromMs }),
      during: dueIn({ fromMs, toMs }),
    }
  })
  return { subject: name, workers, failed, loadBefore, reloads }
}

const pooled = (reloads: readonly Reload[], which: 'steady' | 'during'): Float64Array =>
  Float64Array.from(reloads.flatMap((reload) => reload[which])).sort()

const quantile = (sorted: Float64Array, q: number): number =>
  sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? NaN

const p99Ratio = (reloads: readonly Reload[]): number =>
  quantile(pooled(reloads, 'during'), 0.99) / quantile(pooled(reloads, 'steady'), 0.99)

/** 95 %, by drawing whole reloads again: the requests of one of them are alike, and count as one. (Efron, bootstrap) */
function ratioInterval(reloads: readonly Reload[]): readonly [low: number, high: number] {
  const ratios = Array.from({ length: RESAMPLES }, () =>
    p99Ratio(reloads.flatMap(() => reloads[Math.floor(Math.random() * reloads.length)] ?? [])),
  ).sort((a, b) => a - b)
  return [ratios[Math.floor(0.025 * RESAMPLES)] ?? NaN, ratios[Math.ceil(0.975 * RESAMPLES) - 1] ?? NaN]
}

function summary({ subject, workers, failed, loadBefore, reloads }: Run) {
  const figures = (which: 'steady' | 'during') => {
    const sorted = pooled(reloads, which)
    const ms = (q: number): string => quantile(sorted, q).toFixed(2)
    return { requests: sorted.length, text: `${ms(0.5)} / ${ms(0.99)} / ${ms(1)}` }
  }
  const steady = figures('steady')
  const during = figures('during')
  const ratio = p99Ratio(reloads)
  const [low, high] = ratioInterval(reloads)
  const tookMs = Float64Array.from(reloads.map((reload) => reload.tookMs)).sort()
  return {
    ...{ subject, workers, reloads: reloads.length, tookMs: Math.round(quantile(tookMs, 0.5)) },
    ...{ requests: steady.requests + during.requests, failed, loadBefore },
    ...{ steadyMs: steady.text, duringMs: during.text, ratio, low, high },
  }
}

await bench(async (bench) => {
  const names = flags.subjects.split(',') as SubjectName[]
  for (const name of names)
    if (!SUBJECTS.includes(name)) throw new Error(`no subject ${name}: ${SUBJECTS.join(', ')}`)
  const results: ReturnType<typeof summary>[] = []
  for (const workers of flags.workers.split(',').map(Number)) {
    for (const name of names) {
      try {
        const result = summary(await measure(bench, name, workers))
        results.push(result)
        progress(
          `${name}, ${workers}: steady ${result.steadyMs}, during ${result.duringMs}: ${result.ratio.toFixed(2)}`,
        )
      } catch (error) {
        // A peer that does not work is no reason to lose the figures of the others.
        if (name === 'usr2') throw error
        progress(`SKIPPED ${name}: ${error instanceof Error ? error.message : String(error)}`)
      }
    }
  }
  const node = nodeVersion(flags.node)
  if (flags.json) console.log(JSON.stringify({ node, flags, results }, null, 2))
  else {
    const head = ['', 'workers', 'reloads', 'took ms', 'requests', 'failed']
    const latency = [
      'steady p50 / p99 / max ms',
      'during p50 / p99 / max ms',
      'p99 ratio [95 %]',
      `at most ${TARGET}`,
    ]
    const rows = results.map((one) => [
      ...[
        one.subject,
        one.workers,
        one.reloads,
        one.tookMs,
        one.requests,
        one.failed,
        one.steadyMs,
        one.duringMs,
      ],
      `${one.ratio.toFixed(2)} [${one.low.toFixed(2)}, ${one.high.toFixed(2)}]`,
      one.ratio <= TARGET ? 'yes' : 'NO',
      one.loadBefore.toFixed(1),
    ])
    console.log(
      `Node ${node}, boot ${flags['boot-cpu-ms']} ms at work, ${flags['per-second']} requests/s of ${flags['work-ms']} ms\n`,
    )
    console.log(table([...head, ...latency, 'load average before'], rows))
  }
  return 0
})
