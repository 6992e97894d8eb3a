/**
 * How long does a bad version go on answering after `usr2 rollback`, when the one before it is parked? From the order's
 * arrival in the master, and from the command's start (a Node process of its own), to the last response of the bad
 * version; in milliseconds, and as a multiple of the latency of one request. See README.md beside this file.
 *
 *     node --import tsx scripts/bench/rollback.ts [--rounds 10] [--workers 2] [--work-ms 5] [--node PATH] [--json]
 */
import { execFile, spawn } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { parseArgs, promisify } from 'node:util'
import { DEFAULT_CLI, nodeVersion, progress } from './bench.ts'
import { table } from './stats.ts'

const { values: flags } = parseArgs({
  options: {
    rounds: { type: 'string', default: '10' },
    workers: { type: 'string', default: '2' },
    'work-ms': { type: 'string', default: '5' },
    node: { type: 'string', default: process.execPath },
    cli: { type: 'string', default: DEFAULT_CLI },
    json: { type: 'boolean', default: false },
  },
})

/** Each answer tells the generation. The wait stands for a database. */
const APP = `require('node:http').createServer((req, res) => {
  setTimeout(() => res.end(process.env.USR2_GENERATION), ${Number(flags['work-ms'])})
}).listen(Number(process.env.PORT), '127.0.0.1')`

const KEPT = 16
const NEW_EVERY_MS = 10
/** After the verdict: whatever the bad version still answers. */
const WATCH_MS = 1_000

interface Response {
  readonly generation: string
  readonly at: number
  readonly tookMs: number
}

const run = promisify(execFile)
const now = (): number => performance.timeOrigin + performance.now()
const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))
const median = (values: readonly number[]): number =>
  values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? NaN

const directory = mkdtempSync(join(tmpdir(), 'usr2-bench-'))
const control = join(directory, 'c.sock')
writeFileSync(join(directory, 'app.cjs'), APP)
const port = 20_000 + (process.pid % 10_000)
const options = ['--control', control, '--workers', String(flags.workers), '--park-for', '10m']
const master = spawn(flags.node, [flags.cli, 'run', ...options, join(directory, 'app.cjs')], {
  env: { ...process.env, PORT: String(port) },
  stdio: ['ignore', 'ignore', 'pipe'],
})
const events: { event: string; at: number }[] = []
const waiting: { event: string; heard: () => void }[] = []
createInterface(master.stderr).on('line', (line) => {
  const { event, time } = JSON.parse(line) as { event?: string; time: string }
  if (event === undefined) return
  events.push({ event, at: Date.parse(time) })
  for (const one of waiting.splice(0)) one.event === event ? one.heard() : waiting.push(one)
})
const heard = (event: string): Promise<void> =>
  events.some((one) => one.event === event)
    ? Promise.resolve()
    : new Promise((resolve) => waiting.push({ event, heard: resolve }))

const responses: Response[] = []
const failures: string[] = []
let isOver = false
const agent = new http.Agent({ keepAlive: true, maxSockets: KEPT })
function get(through: http.Agent | false): Promise<void> {
  const since = now()
  return new Promise((resolve) => {
    http
      .get({ port, host: '127.0.0.1', agent: through }, (response) => {
        let body = ''
        response.setEncoding('utf8').on('data', (text: string) => (body += text))
        response.on('end', () => {
          responses.push({ generation: body, at: now(), tookMs: now() - since })
          resolve()
        })
      })
      .on('error', (error: NodeJS.ErrnoException) => {
        failures.push(error.code ?? error.message)
        resolve()
      })
  })
}
const kept = async (): Promise<void> => {
  while (!isOver) await get(agent)
}
const fresh = async (): Promise<void> => {
  for (; !isOver; await sleep(NEW_EVERY_MS)) void get(false)
}

try {
  await heard('ready')
  const clients = [fresh(), ...Array.from({ length: KEPT }, kept)]
  const rounds: { latencyMs: number; fromMasterMs: number; fromCommandMs: number }[] = []
  const usr2 = (command: string) => run(flags.node, [flags.cli, command, '--control', control])
  for (let round = 1; round <= Number(flags.rounds); round++) {
    await usr2('reload')
    await sleep(WATCH_MS)
    const bad = responses.at(-1)?.generation
    const latencyMs = median(responses.slice(-200).map(({ tookMs }) => tookMs))
    const from = events.length
    const asked = now()
    await usr2('rollback')
    await sleep(WATCH_MS)
    const arrived = events.slice(from).find(({ event }) => event === 'rollback')?.at ?? NaN
    const last = Math.max(...responses.filter(({ generation }) => generation === bad).map(({ at }) => at))
    rounds.push({ latencyMs, fromMasterMs: last - arrived, fromCommandMs: last - asked })
    progress(`round ${round}: ${(last - arrived).toFixed(1)} ms, one request ${latencyMs.toFixed(1)} ms`)
  }
  isOver = true
  await Promise.all(clients)
  const of = (pick: (round: (typeof rounds)[number]) => number): string => {
    const values = rounds.map(pick)
    return `${median(values).toFixed(1)} (at most ${Math.max(...values).toFixed(1)})`
  }
  if (flags.json) console.log(JSON.stringify({ node: nodeVersion(flags.node), flags, rounds, failures }))
  else {
    console.log(
      `Node ${nodeVersion(flags.node)}, ${flags.workers} workers, ${responses.length} requests, ${failures.length} failed\n`,
    )
    console.log(
      table(
        ['', 'median (worst)'],
        [
          ['one request, ms', of(({ latencyMs }) => latencyMs)],
          [
            'from the order to the last response of the bad version, ms',
            of(({ fromMasterMs }) => fromMasterMs),
          ],
          ['as a multiple of one request', of(({ latencyMs, fromMasterMs }) => fromMasterMs / latencyMs)],
          ['from the start of the command, ms', of(({ fromCommandMs }) => fromCommandMs)],
        ],
      ),
    )
  }
  if (failures.length > 0) process.exitCode = 1
} finally {
  isOver = true
  agent.destroy()
  master.kill('SIGTERM')
  await new Promise((resolve) => master.once('exit', resolve))
  rmSync(directory, { recursive: true, force: true })
}
