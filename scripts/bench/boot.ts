/**
 * From SIGUSR2 to the first response of the new generation, beside what the bare app needs from its start to its
 * first response: by turns, in pairs. See README.md beside this file.
 *
 *     node --import tsx scripts/bench/boot.ts [--pairs 15] [--boot-ms 500,0] [--node PATH] [--json]
 */
import { parseArgs } from 'node:util'
import {
  bench,
  type Bench,
  DEFAULT_CLI,
  firstAnswer,
  nodeVersion,
  progress,
  reloadUsr2,
  serveUsr2,
} from './bench.ts'
import { APP, freePort, goneIn, type Served } from './bench.ts'
import { childrenOf } from './proc.ts'
import { medianOf, show, table } from './stats.ts'

const { values: flags } = parseArgs({
  options: {
    pairs: { type: 'string', default: '15' },
    'boot-ms': { type: 'string', default: '500,0' },
    node: { type: 'string', default: process.execPath },
    cli: { type: 'string', default: DEFAULT_CLI },
    json: { type: 'boolean', default: false },
  },
})

const TARGET_MS = 75
const OLD_GONE_MS = 20_000

/** The master's own words, in their order, and when they came after the signal. */
const STEPS = ['signal', 'reload', 'candidate', 'worker-ready', 'shifting', 'promoted'] as const
type Step = (typeof STEPS)[number]

interface Pair {
  readonly bareMs: number
  readonly usr2Ms: number
  readonly steps: Readonly<Partial<Record<Step, number>>>
}

async function bare(bench: Bench, bootMs: number): Promise<number> {
  const port = await freePort()
  const at = performance.now()
  const child = bench.start('the app', flags.node, [APP], { env: { PORT: `${port}`, BOOT_MS: `${bootMs}` } })
  const first = await firstAnswer(port, () => true, child)
  await child.stop()
  return first - at
}

async function usr2(served: Served): Promise<Omit<Pair, 'bareMs'>> {
  const { child, port } = served
  const old = childrenOf(child.pid)
  const from = child.lines.length
  const at = performance.now()
  const promoted = reloadUsr2(served)
  const first = await firstAnswer(port, (pid) => !old.includes(pid), child)
  await promoted
  await goneIn(old, OLD_GONE_MS)
  const log = child.lines.slice(from)
  const steps = STEPS.flatMap((step) => {
    const time = log.find(({ event }) => event === step)?.time
    return time === undefined ? [] : [[step, Date.parse(time) - performance.timeOrigin - at]]
  })
  return { usr2Ms: first - at, steps: Object.fromEntries(steps) as Pair['steps'] }
}

function report(bootMs: number, pairs: readonly Pair[]): string {
  const rows = pairs.map(({ bareMs, usr2Ms, steps }, at) => [
    ...[at + 1, bareMs.toFixed(1), usr2Ms.toFixed(1), (usr2Ms - bareMs).toFixed(1)],
    ...STEPS.map((step) => steps[step]?.toFixed(0) ?? '-'),
  ])
  const over = medianOf(pairs.map(({ bareMs, usr2Ms }) => usr2Ms - bareMs))
  const stepsMs = STEPS.map((step) =>
    medianOf(pairs.flatMap(({ steps }) => steps[step] ?? [])).median.toFixed(0),
  )
  const bareMs = medianOf(pairs.map((pair) => pair.bareMs))
  const usr2Ms = medianOf(pairs.map((pair) => pair.usr2Ms))
  return [
    table(['pair', 'bare ms', 'usr2 ms', 'more ms', ...STEPS.map((step) => `said ${step}`)], rows),
    '',
    table(
      [
        `an app that boots ${bootMs} ms, ${pairs.length} pairs`,
        'median [95 % interval] ms',
        'target',
        'reached',
      ],
      [
        ['bare: start to first response', show(bareMs, 1), '', ''],
        ['usr2: SIGUSR2 to first new response', show(usr2Ms, 1), '', ''],
        [
          'usr2 more than bare',
          show(over, 1),
          `at most ${TARGET_MS}`,
          over.median <= TARGET_MS ? 'yes' : 'NO',
        ],
        [`the master's log says ${STEPS.join(', ')}`, `at ${stepsMs.join(', ')}`, '', ''],
      ],
    ),
    '',
  ].join('\n')
}

await bench(async (bench) => {
  const results: { bootMs: number; pairs: Pair[] }[] = []
  for (const text of flags['boot-ms'].split(',')) {
    const bootMs = Number(text)
    const served = await serveUsr2(bench, { node: flags.node, cli: flags.cli, bootMs })
    const pairs: Pair[] = []
    results.push({ bootMs, pairs })
    for (let at = 0; at < Number(flags.pairs); at++) {
      const first = at % 2 === 0 ? await bare(bench, bootMs) : null
      const reload = await usr2(served)
      pairs.push({ bareMs: first ?? (await bare(bench, bootMs)), ...reload })
      progress(
        `boot ${bootMs} ms, pair ${at + 1}: + ${(reload.usr2Ms - (pairs.at(-1)?.bareMs ?? 0)).toFixed(1)} ms`,
      )
    }
    await served.child.stop()
  }
  const node = nodeVersion(flags.node)
  if (flags.json) console.log(JSON.stringify({ node, results }, null, 2))
  else {
    console.log(`Node ${node}\n`)
    for (const { bootMs, pairs } of results) console.log(report(bootMs, pairs))
  }
  return 0
})
