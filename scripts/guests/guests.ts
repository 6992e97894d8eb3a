/**
 * Real apps, unmodified, through reloads under load: `npm run guests [-- --reloads N --only NAME --node PATH]`. Installs them (a
 * package of its own, for their size), runs each with 2 workers, and prints a table in Markdown. Exit status 1 if
 * anything failed.
 */
import { type ChildProcess, type ExecFileSyncOptions, execFileSync, spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { startLoad, type Traffic } from './load.ts'

const here = dirname(fileURLToPath(import.meta.url))
const root = dirname(dirname(here))
const WAIT_MS = 60_000
const WORKERS = 2

const MIX: readonly Traffic[] = [
  { mode: 'hot', connections: 2 },
  { mode: 'keepalive', connections: 12 },
  { mode: 'new', connections: 2, thinkMs: [2, 6] },
  { mode: 'post', connections: 2, echo: true },
]

interface Guest {
  readonly name: string
  /** Whose version is told; else it comes with Node. */
  readonly package?: string
  readonly app: string
  /** A client of its own instead of the load client. */
  readonly client?: readonly string[]
  readonly env?: Readonly<Record<string, string>>
}

const app = (name: string): string => join(here, 'apps', `${name}.mjs`)
const client = (kind: string): readonly string[] => [join(here, 'clients.mjs'), kind]
const STANDALONE = join(here, 'next', '.next', 'standalone', 'next', 'server.js')

const GUESTS: readonly Guest[] = [
  { name: 'Express', package: 'express', app: app('express') },
  { name: 'Fastify', package: 'fastify', app: app('fastify') },
  { name: 'Koa', package: 'koa', app: app('koa') },
  { name: 'Hapi', package: '@hapi/hapi', app: app('hapi') },
  { name: 'NestJS', package: '@nestjs/core', app: app('nest') },
  { name: 'Hono', package: 'hono', app: app('hono') },
  { name: 'Next.js standalone', package: 'next', app: STANDALONE, env: { HOSTNAME: '127.0.0.1' } },
  { name: 'ws', package: 'ws', app: app('ws'), client: client('ws') },
  { name: '`upgrade`, raw', app: app('upgrade'), client: client('upgrade') },
  { name: 'socket.io', package: 'socket.io', app: app('socket.io'), client: client('socket.io') },
  {
    name: '@grpc/grpc-js',
    package: '@grpc/grpc-js',
    app: join(root, 'test', 'fixtures', 'guests', 'grpc.cjs'),
    client: [join(root, 'test', 'fixtures', 'grpc-load.mjs')],
  },
  { name: 'undici, client of Express', package: 'undici', app: app('express'), client: client('undici') },
]

interface Row {
  readonly requests: number
  readonly failed: number
  readonly failures: object
}

/** What is asked of whatever client is at work. */
interface Running {
  /** Resolves when that generation has answered. */
  answered(generation: number): Promise<unknown>
  stop(): Promise<Row>
}

const { values: flags } = parseArgs({
  options: {
    reloads: { type: 'string', default: '20' },
    only: { type: 'string', default: '' },
    /** What runs usr2, the app, and those clients that are libraries. */
    node: { type: 'string', default: process.execPath },
  },
})
const reloads = Number(flags.reloads)
const nodeVersion = execFileSync(flags.node, ['--print', 'process.versions.node'], {
  encoding: 'utf8',
}).trim()

function install(): void {
  const quiet: ExecFileSyncOptions = { cwd: here, stdio: ['ignore', 'ignore', 'inherit'] }
  if (!existsSync(join(here, 'node_modules')))
    execFileSync('npm', ['ci', '--no-audit', '--no-fund', '--ignore-scripts', '--workspaces=false'], quiet)
  if (existsSync(STANDALONE)) return
  const env = { ...process.env, NEXT_TELEMETRY_DISABLED: '1', NEXT_IGNORE_INCORRECT_LOCKFILE: '1' }
  const cwd = join(here, 'next')
  execFileSync(join(here, 'node_modules', '.bin', 'next'), ['build'], { ...quiet, cwd, env })
}

/** The first line that matches. @throws when the process ends, or time is over, without one */
class Lines {
  readonly all: string[] = []
  readonly #child: ChildProcess
  readonly #looks = new Set<() => void>()

  constructor(child: ChildProcess) {
    this.#child = child
    for (const stream of [child.stdout, child.stderr]) {
      if (!stream) continue
      createInterface({ input: stream }).on('line', (line) => {
        this.all.push(line)
        for (const look of this.#looks) look()
      })
    }
    child.once('close', () => this.#looks.forEach((look) => look()))
  }

  find(what: RegExp, from = 0): Promise<string> {
    return new Promise((resolve, reject) => {
      const settle = (settled: () => void): void => {
        clearTimeout(timer)
        this.#looks.delete(look)
        settled()
      }
      const gaveUp = (why: string): void =>
        settle(() => reject(new Error(`${why} ${what}:\n${this.all.slice(-20).join('\n')}`)))
      const timer = setTimeout(() => gaveUp(`${WAIT_MS / 1000} s without`), WAIT_MS)
      const look = (): void => {
        const line = this.all.slice(from).find((line) => what.test(line))
        if (line !== undefined) settle(() => resolve(line))
        else if (this.#child.exitCode !== null || this.#child.signalCode !== null) gaveUp('ended without')
      }
      this.#looks.add(look)
      look()
    })
  }
}

function start(args: readonly string[], env: Readonly<Record<string, string>> = {}): [ChildProcess, Lines] {
  const { PATH = '', HOME = '' } = process.env
  const child = spawn(flags.node, args, { env: { PATH, HOME, ...env }, stdio: 'pipe' })
  return [child, new Lines(child)]
}

async function loadHttp(port: number): Promise<Running> {
  const load = await startLoad({ target: { port, host: 'localhost' }, traffic: MIX, versionOf: 'generation' })
  return {
    async answered(generation) {
      const end = performance.now() + WAIT_MS
      while ((await load.snapshot()).versions[generation] === undefined) {
        if (performance.now() > end) throw new Error(`no answer of generation ${generation}`)
        await sleep(20)
      }
    },
    stop: () => load.stop(),
  }
}

function runClient([file = '', ...args]: readonly string[], port: number): Running {
  const [child, lines] = start([file, ...args, String(port)])
  return {
    answered: (generation) => lines.find(new RegExp(`^generation ${generation}$`)),
    async stop() {
      child.stdin?.end()
      const result = JSON.parse(await lines.find(/^\{/)) as Omit<Row, 'requests'> & {
        requests?: number
        calls?: number
      }
      return { ...result, requests: result.requests ?? result.calls ?? 0 }
    },
  }
}

async function measure(guest: Guest): Promise<Row> {
  const folder = mkdtempSync(join(tmpdir(), 'u2-'))
  const port = await freePort()
  const cli = [join(root, 'dist', 'cli.mjs'), 'run', '--control', join(folder, 'c.sock'), '--name', 'guest']
  const flags = ['--workers', String(WORKERS), '--drain-timeout', '8s']
  const [master, log] = start([...cli, ...flags, guest.app], { PORT: String(port), ...guest.env })
  try {
    await log.find(/"event":"ready"/)
    const load = guest.client ? runClient(guest.client, port) : await loadHttp(port)
    await load.answered(1)
    for (let reload = 1; reload <= reloads; reload++) {
      const from = log.all.length
      master.kill('SIGUSR2')
      const verdict = await log.find(/"event":"(promoted|rolled-back|refused)"/, from)
      if (!verdict.includes('promoted')) throw new Error(verdict)
      await load.answered(reload + 1)
    }
    return await load.stop()
  } finally {
    master.kill('SIGTERM')
    await log.find(/"event":"stopped"/)
    rmSync(folder, { recursive: true, force: true })
  }
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer().on('error', reject)
    server.listen(0, () => {
      const address = server.address()
      server.close(() => resolve(typeof address === 'object' && address ? address.port : 0))
    })
  })
}

const versionOf = (name: string | undefined): string =>
  name === undefined
    ? ''
    : (
        JSON.parse(readFileSync(join(here, 'node_modules', name, 'package.json'), 'utf8')) as {
          version: string
        }
      ).version

install()
let failed = 0
console.log('| guest | version | Node | reloads | requests | failed |\n| --- | --- | --- | --- | --- | --- |')
for (const guest of GUESTS.filter(({ name }) => name.includes(flags.only))) {
  try {
    const row = await measure(guest)
    failed += row.failed
    const cells = [guest.name, versionOf(guest.package), nodeVersion, reloads, row.requests, row.failed]
    console.log(`| ${cells.join(' | ')} |`)
    if (row.failed > 0) console.error(JSON.stringify(row))
  } catch (error) {
    failed++
    console.log(`| ${guest.name} | | ${nodeVersion} | | | did not run |`)
    console.error(error)
  }
}
process.exit(failed > 0 ? 1 : 0)
