/**
 * Plain HTTP/2 clients: how many streams does a reload refuse, beside a bare `session.close()` of every session, which
 * is the least that any server can do? See README.md beside this file.
 *
 *     node --import tsx scripts/bench/http2.ts [--reloads 100] [--block 5] [--schemes h2c,tls] [--node PATH] [--json]
 */
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import {
  type Bench,
  bench,
  type Child,
  DEFAULT_CLI,
  freePort,
  type LogLine,
  nodeVersion,
  progress,
  reloadUsr2,
  serveUsr2,
  sleep,
} from './bench.ts'
import { type Ratio, ratioOf, table } from './stats.ts'

const { values: flags } = parseArgs({
  options: {
    reloads: { type: 'string', default: '100' },
    /** Reloads in a row of one, then of the other. */
    block: { type: 'string', default: '5' },
    schemes: { type: 'string', default: 'h2c,tls' },
    node: { type: 'string', default: process.execPath },
    cli: { type: 'string', default: DEFAULT_CLI },
    json: { type: 'boolean', default: false },
  },
})

const HERE = dirname(fileURLToPath(import.meta.url))
const FIXTURES = join(HERE, '..', '..', 'test', 'fixtures')
/** From one reload to the next, at least. */
const EVERY_MS = 600
const TARGET = 1.2

interface Block {
  /** From one reload to the next, as it was. */
  readonly everyMs: number
  readonly requests: number
  readonly refused: number
  readonly unsent: number
  /** Failures that RFC 9113, 8.7 does not let a client repeat, and repeats that failed. There must be none. */
  readonly other: Readonly<Record<string, number>>
  readonly retryFailed: Readonly<Record<string, number>>
}

interface Pair {
  readonly usr2: Block
  readonly bare: Block
}

interface Subject {
  readonly url: string
  reload(): Promise<unknown>
}

const refusals = ({ refused, unsent }: Block): number => refused + unsent

async function serveBoth(
  bench: Bench,
  tls: boolean,
): Promise<{ readonly usr2: Subject; readonly bare: Subject }> {
  const scheme = tls ? 'https' : 'http'
  const env: Readonly<Record<string, string>> = tls ? { TLS: '1' } : {}
  const { node, cli } = flags
  const control = join(bench.directory, `${scheme}.sock`)
  const served = await serveUsr2(bench, { node, cli, control, app: join(FIXTURES, 'http2-app.cjs'), env })
  const port = await freePort()
  const bare = bench.start('a bare server', node, [join(HERE, 'peers', 'http2.cjs')], {
    env: { PORT: `${port}`, ...env },
  })
  await saying(bare, 'listening')
  return {
    usr2: { url: `${scheme}://127.0.0.1:${served.port}`, reload: () => reloadUsr2(served) },
    bare: {
      url: `${scheme}://127.0.0.1:${port}`,
      reload() {
        const from = bare.lines.length
        bare.process.kill('SIGUSR2')
        return saying(bare, 'closed', from)
      },
    },
  }
}

/** The first line from `from` on that begins with this word. */
const saying = (child: Child, word: string, from = 0): Promise<LogLine> =>
  child.line(({ msg }) => msg?.startsWith(word) ?? false, word, from)

/** A fresh client through a block of reloads, `everyMs` from one to the next or as fast as they come. */
async function measure(bench: Bench, { url, reload }: Subject, everyMs: number): Promise<Block> {
  const load = bench.start('the client', process.execPath, [join(FIXTURES, 'http2-load.mjs'), url], {
    stdin: 'pipe',
  })
  await saying(load, 'generation')
  const begin = performance.now()
  for (let n = 0; n < perBlock; n++) {
    const next = sleep(everyMs)
    const from = load.lines.length
    await reload()
    // The new one has answered its share.
    await saying(load, 'generation', from)
    await next
  }
  const tookMs = (performance.now() - begin) / perBlock
  load.process.stdin?.end()
  const result = await load.line((line) => 'requests' in line, 'a result')
  await load.exited
  return { ...(result as unknown as Block), everyMs: tookMs }
}

const perBlock = Number(flags.block)
const total = (counts: Readonly<Record<string, number>>): number =>
  Object.values(counts).reduce((sum, count) => sum + count, 0)
const isClean = ({ other, retryFailed }: Block): boolean => total(other) + total(retryFailed) === 0

const ratioTo = (pairs: readonly Pair[]): Ratio =>
  ratioOf(pairs.map(({ usr2, bare }) => [refusals(usr2), refusals(bare)]))

const verdict = ({ low, high }: Ratio): string =>
  low > TARGET ? 'NO' : high <= TARGET ? 'yes' : 'not decided, more reloads are needed'

function report(scheme: string, pairs: readonly Pair[]): string {
  const ratio = ratioTo(pairs)
  const row = (name: 'usr2' | 'bare'): (string | number)[] => {
    const blocks = pairs.map((pair) => pair[name])
    const sum = (of: (block: Block) => number): number => blocks.reduce((sum, block) => sum + of(block), 0)
    const reloads = blocks.length * perBlock
    return [
      name === 'usr2' ? 'usr2' : 'bare session.close()',
      reloads,
      sum(({ requests }) => requests),
      sum(({ refused }) => refused),
      sum(({ unsent }) => unsent),
      (sum(refusals) / reloads).toFixed(1),
      sum(({ retryFailed }) => total(retryFailed)),
      sum(({ other }) => total(other)),
    ]
  }
  const head = ['', 'reloads', 'requests', 'refused', 'unsent', 'both per reload', 'retries failed', 'others']
  return [
    `${scheme}: usr2 / bare ${ratio.ratio.toFixed(3)} [${ratio.low.toFixed(3)}, ${ratio.high.toFixed(3)}], ` +
      `at most ${TARGET}: ${verdict(ratio)}\n`,
    table(head, [row('usr2'), row('bare')]),
    '\nPer block (usr2 : bare): ' +
      pairs.map(({ usr2, bare }) => `${refusals(usr2)}:${refusals(bare)}`).join(' '),
    '',
  ].join('\n')
}

await bench(async (bench) => {
  const results: Record<string, Pair[]> = {}
  for (const scheme of flags.schemes.split(',')) {
    const subjects = await serveBoth(bench, scheme === 'tls')
    const pairs: Pair[] = (results[scheme] = [])
    let everyMs = EVERY_MS
    while (pairs.length * perBlock < Number(flags.reloads)) {
      // Whoever is first once is second the next time.
      const order = pairs.length % 2 === 0 ? (['usr2', 'bare'] as const) : (['bare', 'usr2'] as const)
      const pair: Partial<Record<'usr2' | 'bare', Block>> = {}
      for (const name of order) {
        pair[name] = await measure(bench, subjects[name], name === 'usr2' ? EVERY_MS : everyMs)
        // usr2 boots a worker in that time, which takes longer on a busy machine. The bare server waits as long: else
        // its sessions would be younger when they are closed.
        everyMs = pair.usr2?.everyMs ?? everyMs
      }
      const { usr2, bare } = pair
      if (!usr2 || !bare) throw new Error('half a pair')
      pairs.push({ usr2, bare })
      progress(`${scheme}, ${pairs.length * perBlock} reloads: ${refusals(usr2)} : ${refusals(bare)}`)
    }
  }
  if (flags.json) console.log(JSON.stringify({ node: nodeVersion(flags.node), perBlock, results }, null, 2))
  else {
    console.log(`Node ${nodeVersion(flags.node)}\n`)
    for (const [scheme, pairs] of Object.entries(results)) console.log(report(scheme, pairs))
  }
  const clean = Object.values(results)
    .flat()
    .every(({ usr2, bare }) => isClean(usr2) && isClean(bare))
  return clean && Object.values(results).every((pairs) => ratioTo(pairs).low <= TARGET) ? 0 : 1
})
