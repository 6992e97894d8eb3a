/**
 * Reload after reload under light load: does anything grow? See README.md beside this file.
 *
 *     node --import tsx scripts/bench/soak.ts [--reloads 200] [--from 50] [--node PATH] [--json]
 */
import { parseArgs } from 'node:util'
import { bench, DEFAULT_CLI, goneIn, nodeVersion, progress, reloadUsr2, serveUsr2, until } from './bench.ts'
import { growthFrom, holdsMore, type Sample, sampleOf, type Watched } from './growth.ts'
import { summary, type Traffic } from '../../src/drill/load.ts'
import { childrenOf } from './proc.ts'
import { startLoad } from '../../src/drill/start-load.ts'
import { table } from './stats.ts'

const { values: flags } = parseArgs({
  options: {
    reloads: { type: 'string', default: '200' },
    /** Growth counts from this reload on: until then pools and caches fill. */
    from: { type: 'string', default: '50' },
    every: { type: 'string', default: '10' },
    workers: { type: 'string', default: '2' },
    node: { type: 'string', default: process.execPath },
    cli: { type: 'string', default: DEFAULT_CLI },
    json: { type: 'boolean', default: false },
  },
})

const TRAFFIC: readonly Traffic[] = [
  { mode: 'new', connections: 2, thinkMs: [5, 15] },
  { mode: 'keepalive', connections: 4, thinkMs: [5, 30] },
  { mode: 'post', connections: 1, thinkMs: [20, 40], echo: true },
]
const OLD_GONE_MS = 20_000
/** For the end of a channel to be told to the master, after the end of its process. */
const SETTLE_MS = 2_000

/** As it stays: what is just ending has its moment to end. */
async function settled(watched: Watched, reload: number, before: Sample | undefined): Promise<Sample> {
  let sample = sampleOf(watched, reload)
  const hasSettled = (): boolean => {
    sample = sampleOf(watched, reload)
    return before === undefined || !holdsMore(sample, before)
  }
  await until(hasSettled, 'no more than before', SETTLE_MS).catch(() => {})
  return sample
}

await bench(async (bench) => {
  const reloads = Number(flags.reloads)
  const served = await serveUsr2(bench, { node: flags.node, cli: flags.cli, workers: Number(flags.workers) })
  const { child, port } = served
  const watched: Watched = {
    master: child.pid,
    directory: bench.directory,
    processes: () => bench.processes(),
  }
  const load = await startLoad({ target: { port }, traffic: TRAFFIC })
  const samples: Sample[] = [sampleOf(watched, 0)]
  for (let reload = 1; reload <= reloads; reload++) {
    const old = childrenOf(child.pid)
    await reloadUsr2(served)
    if (!(await goneIn(old, OLD_GONE_MS)))
      throw new Error(`old workers were still there ${OLD_GONE_MS} ms later`)
    if (reload % Number(flags.every) > 0) continue
    const sample = await settled(watched, reload, samples.at(-1))
    samples.push(sample)
    progress(`${reload} reloads, RSS of the master ${sample.rssMb.toFixed(1)} MB`)
  }
  const result = await load.stop()
  await child.stop()
  const growth = growthFrom(samples, Number(flags.from))
  const rows = samples.map(({ reload, fds, processes, files, rssMb }) => {
    const count = Object.values(fds).reduce((sum, of) => sum + of, 0)
    const kinds = Object.entries(fds).map(([kind, of]) => `${kind} ${of}`)
    return [reload, count, kinds.join(', '), processes, files.length, rssMb.toFixed(1)]
  })
  if (flags.json)
    console.log(JSON.stringify({ node: nodeVersion(flags.node), samples, growth, load: result }, null, 2))
  else {
    console.log(`Node ${nodeVersion(flags.node)}, ${reloads} reloads in a row\n`)
    console.log(table(['reload', 'fds of the master', 'by kind', 'processes', 'files', 'RSS MB'], rows))
    console.log(`\n${summary(result)}\n`)
    console.log(growth.length === 0 ? `no growth from reload ${flags.from} on` : growth.join('\n'))
  }
  return growth.length === 0 && result.failed === 0 ? 0 : 1
})
