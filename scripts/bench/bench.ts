/**
 * What the benchmarks share: processes that are started with an environment of their own, told apart by a token and
 * all ended at the end; the app, bare or under usr2; waiting.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { connect, createServer } from 'node:net'
import { delimiter, dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { isAlive, processesWith } from './proc.ts'

export { sleep }

const HERE = dirname(fileURLToPath(import.meta.url))
export const APP = join(HERE, 'app.cjs')
export const CLUSTER_PEER = join(HERE, 'peers', 'cluster.cjs')
export const TURNS_PEER = join(HERE, 'peers', 'turns.cjs')
export const DEFAULT_CLI = join(HERE, '..', '..', 'dist', 'cli.mjs')

const TOKEN = 'BENCH_TOKEN'
const DEADLINE_MS = 60_000

/** A line of usr2's log. */
export interface LogLine {
  readonly event?: string
  readonly msg?: string
  /** ISO 8601, to the millisecond. */
  readonly time?: string
  readonly [key: string]: unknown
}

export interface StartOptions {
  readonly env?: Readonly<Record<string, string>>
  readonly cwd?: string
  /** The processor core it is to stay on; `null`: any. */
  readonly core?: number | null
  /** `pipe`: it goes on until its standard input ends; default: it has none. */
  readonly stdin?: 'ignore' | 'pipe'
}

export class Child {
  readonly process: ChildProcess
  readonly pid: number
  readonly exited: Promise<void>
  /** It has ended, and all that it wrote was read. */
  readonly closed: Promise<void>
  readonly lines: LogLine[] = []
  readonly #looking = new Set<() => void>()
  #ended = false
  readonly #name: string

  constructor(name: string, child: ChildProcess) {
    this.#name = name
    this.process = child
    this.pid = child.pid ?? 0
    for (const stream of [child.stdout, child.stderr]) {
      if (stream === null) continue
      createInterface({ input: stream }).on('line', (text) => {
        this.lines.push(parsed(text))
        for (const look of this.#looking) look()
      })
    }
    this.closed = new Promise((resolve) => child.once('close', () => resolve()))
    this.exited = new Promise((resolve) => {
      const end = (): void => {
        this.#ended = true
        for (const look of this.#looking) look()
        resolve()
      }
      child.once('exit', end)
      child.once('error', end)
    })
  }

  /** The first line from `from` on with one of these events. */
  event(events: readonly string[], from = 0, timeoutMs = DEADLINE_MS): Promise<LogLine> {
    const wanted = ({ event }: LogLine): boolean => event !== undefined && events.includes(event)
    return this.line(wanted, events.join(' or '), from, timeoutMs)
  }

  /** The first line from `from` on that is `wanted`, which is called `what` when it does not come. */
  line(
    wanted: (line: LogLine) => boolean,
    what: string,
    from = 0,
    timeoutMs = DEADLINE_MS,
  ): Promise<LogLine> {
    return new Promise((resolve, reject) => {
      let next = from
      const done = (settle: () => void): void => {
        clearTimeout(timer)
        this.#looking.delete(look)
        settle()
      }
      const fail = (why: string): void =>
        done(() => reject(new Error(`${this.#name} (pid ${this.pid}) ${why} ${what}:\n${this.log()}`)))
      const look = (): void => {
        for (; next < this.lines.length; next++) {
          const line = this.lines[next]
          if (line && wanted(line)) return done(() => resolve(line))
        }
        if (this.#ended) fail('ended without')
      }
      const timer = setTimeout(() => fail(`did not say in ${timeoutMs} ms`), timeoutMs)
      this.#looking.add(look)
      look()
    })
  }

  /** Ends its stdin, waits for its end and gives its last line, which must be JSON. @throws when it is late, or failed */
  async endInput(): Promise<LogLine> {
    this.process.stdin?.end()
    const late = sleep(DEADLINE_MS, 'late' as const, { ref: false })
    const last = (await Promise.race([this.closed, late])) === 'late' ? undefined : this.lines.at(-1)
    if (last === undefined || this.process.exitCode !== 0)
      throw new Error(`${this.#name} (pid ${this.pid}) gave no result:\n${this.log()}`)
    return last
  }

  log(): string {
    return this.lines
      .slice(-30)
      .map((line) => `  ${line.msg ?? JSON.stringify(line)}`)
      .join('\n')
  }

  /** @throws when it is not gone in time */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    this.process.kill(signal)
    const late = sleep(DEADLINE_MS, 'late' as const, { ref: false })
    if ((await Promise.race([this.exited, late])) === 'late') {
      throw new Error(
        `${this.#name} (pid ${this.pid}) has not ended ${DEADLINE_MS} ms after ${signal}:\n${this.log()}`,
      )
    }
  }
}

export class Bench {
  /** Removed at the end. Its path is short: unix sockets lie in it. */
  readonly directory = mkdtempSync(join(tmpdir(), 'u2-bench-'))
  readonly token = randomUUID()

  start(name: string, command: string, args: readonly string[], options: StartOptions = {}): Child {
    const { PATH = '', HOME = '' } = process.env
    const env = { PATH, HOME, TMPDIR: this.directory, [TOKEN]: this.token, ...options.env }
    const { core = null, cwd, stdin = 'ignore' } = options
    const [program, ...rest] =
      core === null ? [command, ...args] : ['taskset', '-c', String(core), command, ...args]
    // A session of its own for each. usr2 gives its workers one, and Linux shares a contended processor out by session
    // (autogroup, sched(7)): beside other work a bare app in our session got less than half of what a worker got.
    const child = spawn(program ?? command, rest, {
      cwd,
      env,
      detached: true,
      stdio: [stdin, 'pipe', 'pipe'],
    })
    return new Child(name, child)
  }

  /** Runs a program to its end and gives its output. @throws if it fails, with what it said */
  run(command: string, args: readonly string[], options: StartOptions = {}): Promise<string> {
    const child = this.start(command, command, args, options)
    return new Promise((resolve, reject) => {
      let text = ''
      child.process.stdout?.on('data', (chunk: Buffer) => (text += chunk.toString()))
      child.process.once('close', (status) => {
        if (status === 0) resolve(text)
        else reject(new Error(`${command} ${args.join(' ')} ended with ${status}:\n${child.log()}`))
      })
      child.process.once('error', reject)
    })
  }

  /** Runs a program until its stdin is ended; `end` gives its output. */
  begin(command: string, args: readonly string[]): { end(): Promise<string> } {
    const { PATH = '', HOME = '' } = process.env
    const env = { PATH, HOME, TMPDIR: this.directory, [TOKEN]: this.token }
    const child = spawn(command, args, { env, detached: true, stdio: ['pipe', 'pipe', 'inherit'] })
    let text = ''
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => (text += chunk))
    const closed = new Promise<string>((resolve, reject) => {
      child.once('error', reject)
      child.once('close', (status, signal) => {
        if (status === 0) resolve(text)
        else reject(new Error(`${command} ended with ${signal ?? status}`))
      })
    })
    // Whoever only ever calls `end` hears of it there.
    closed.catch(() => {})
    return {
      end() {
        child.stdin.end()
        return closed
      },
    }
  }

  /** Pids of all that was started here and what that started. */
  processes(): number[] {
    return processesWith(TOKEN, this.token)
  }

  async end(): Promise<void> {
    for (let tries = 0; tries < 100 && this.processes().length > 0; tries++) {
      for (const pid of this.processes()) kill(pid)
      await sleep(20)
    }
    rmSync(this.directory, { recursive: true, force: true })
  }
}

/** Runs a benchmark: its exit status is what `main` gives, and nothing it started is left, also after Ctrl-C. */
export async function bench(main: (bench: Bench) => Promise<number>): Promise<void> {
  const bench = new Bench()
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.once(signal, () => {
      console.error(`got ${signal}: ending`)
      void bench.end().then(() => process.exit(1))
    })
  }
  try {
    process.exitCode = await main(bench)
  } catch (error) {
    console.error(error instanceof Error ? error.message : error)
    process.exitCode = 1
  } finally {
    await bench.end()
  }
}

export interface Served {
  readonly port: number
  readonly child: Child
}

export interface ServeOptions {
  /** Which Node runs the app, and usr2 with it. */
  readonly node: string
  readonly bootMs?: number
  /** Of processor time, on top of `bootMs`. */
  readonly bootCpuMs?: number
  readonly env?: Readonly<Record<string, string>>
  readonly core?: number | null
}

/** What app.cjs reads. */
export const bootEnv = (bootMs: number, bootCpuMs: number): Record<string, string> => ({
  BOOT_MS: `${bootMs}`,
  BOOT_CPU_MS: `${bootCpuMs}`,
})

/** `node app.cjs`. Resolves when it answers. */
export async function serveBare(
  bench: Bench,
  { node, bootMs = 0, bootCpuMs = 0, core = null, env = {} }: ServeOptions,
): Promise<Served> {
  const port = await freePort()
  const own = { PORT: `${port}`, ...bootEnv(bootMs, bootCpuMs), ...env }
  const child = bench.start('the app', node, [APP], { env: own, core })
  await firstAnswer(port, () => true, child)
  return { port, child }
}

export interface Usr2Options extends ServeOptions {
  readonly cli: string
  readonly workers?: number
  readonly control?: string
  readonly flags?: readonly string[]
  /** Default: app.cjs. */
  readonly app?: string
  /** A program that runs the master, with its arguments: `setpriv ...`. */
  readonly wrapper?: readonly string[]
}

/** `usr2 run app.cjs`. Resolves when its first generation serves. */
export async function serveUsr2(bench: Bench, options: Usr2Options): Promise<Served> {
  const { node, cli, bootMs = 0, bootCpuMs = 0, core = null, workers = 1, app = APP } = options
  const { flags = [], env = {}, wrapper = [] } = options
  if (!existsSync(cli)) throw new Error(`${cli} is not there: run \`npm run build\` first`)
  const port = await freePort()
  const control = options.control ?? join(bench.directory, 'c.sock')
  const args = [cli, 'run', '--control', control, '--name', 'bench', '--workers', `${workers}`, ...flags, app]
  const own = { PORT: `${port}`, ...bootEnv(bootMs, bootCpuMs), ...env }
  const [program = node, ...before] = [...wrapper, node]
  const child = bench.start('usr2', program, [...before, ...args], { env: own, core })
  await child.event(['ready'])
  return { port, child }
}

/** Sends SIGUSR2 and gives the verdict's line. @throws unless the new generation was promoted */
export async function reloadUsr2({ child }: Served): Promise<LogLine> {
  const from = child.lines.length
  child.process.kill('SIGUSR2')
  const verdict = await child.event(['promoted', 'rolled-back', 'refused'], from)
  if (verdict.event !== 'promoted') throw new Error(`the reload was not promoted: ${verdict.msg}`)
  return verdict
}

/**
 * Asks again and again, each time over a new connection, 1 ms after the last answer or refusal, until `wanted` says
 * yes to the pid that answered. Gives the moment, by `performance.now()`.
 */
export async function firstAnswer(
  port: number,
  wanted: (pid: number) => boolean,
  child: Pick<Child, 'log'>,
): Promise<number> {
  const end = performance.now() + DEADLINE_MS
  for (;;) {
    const pid = await ask(port)
    if (pid !== null && wanted(pid)) return performance.now()
    if (performance.now() > end) throw new Error(`no such answer from port ${port} in time:\n${child.log()}`)
    await sleep(1)
  }
}

/** The pid that answers `GET /` over a new connection, or null: nobody does. */
export function ask(port: number): Promise<number | null> {
  return new Promise((resolve) => {
    let text = ''
    const socket = connect({ port, host: '127.0.0.1', noDelay: true })
    socket.setEncoding('latin1')
    socket.on('connect', () => socket.write('GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'))
    socket.on('data', (chunk) => (text += String(chunk)))
    socket.on('error', () => {})
    socket.on('close', () => resolve(Number(/"pid":(\d+)/.exec(text)?.[1]) || null))
  })
}

/** @throws when it did not become true in time */
export async function until(
  fact: () => boolean | Promise<boolean>,
  what: string,
  timeoutMs = DEADLINE_MS,
): Promise<void> {
  const end = performance.now() + timeoutMs
  while (!(await fact())) {
    if (performance.now() > end) throw new Error(`gave up after ${timeoutMs} ms waiting for ${what}`)
    await sleep(10)
  }
}

export const goneIn = async (pids: readonly number[], timeoutMs: number): Promise<boolean> =>
  until(() => !pids.some(isAlive), 'processes to end', timeoutMs).then(
    () => true,
    () => false,
  )

/** Outside of the range from which the kernel gives local ports to outgoing connections (ip(7): from 32768 on). */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = 10_000 + Math.floor(Math.random() * 10_000)
    const server = createServer()
    const free = await new Promise<boolean>((resolve) => {
      server.once('error', () => resolve(false))
      server.listen(port, '0.0.0.0', () => resolve(true))
    })
    if (free) {
      await new Promise((resolve) => server.close(resolve))
      return port
    }
  }
}

/** Where a program is, by PATH; null: nowhere. */
export function which(program: string): string | null {
  const places = (process.env['PATH'] ?? '').split(delimiter).map((directory) => join(directory, program))
  return places.find((place) => existsSync(place)) ?? null
}

/** A server on one core and its client on another disturb each other less. */
export function cores(): { readonly server: number | null; readonly client: number | null } {
  const pinned = availableParallelism() > 1 && which('taskset') !== null
  return pinned ? { server: 0, client: 1 } : { server: null, client: null }
}

/** `Node v20.20.2`, of that binary. */
export const nodeVersion = (node: string): string =>
  execFileSync(node, ['--version'], { encoding: 'utf8' }).trim()

/** Progress, for whoever waits; the results go to stdout. */
export const progress = (text: string): void => console.error(text)

function parsed(text: string): LogLine {
  try {
    const line = JSON.parse(text) as LogLine | null
    return typeof line === 'object' && line !== null ? line : { msg: text }
  } catch {
    return { msg: text }
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It ended by itself meanwhile.
  }
}
