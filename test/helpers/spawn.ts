/**
 * The only way a test starts a process. tap puts NODE_OPTIONS, variables and signal listeners of its own into every
 * child, an explicit environment notwithstanding ({@link withoutTap}), so a child gets PATH, HOME, TMPDIR and what the
 * test names, and nothing else. Its stdio is piped: one that inherited our stdout would keep the test file open for as
 * long as it lives.
 */
import { type ChildProcess, spawn, type StdioOptions } from 'node:child_process'
import { tmpdir } from 'node:os'
import { createInterface } from 'node:readline'
import type { Readable, Writable } from 'node:stream'
import { processesWithToken } from './processes.ts'
import { scopeOf, type TestLike, TOKEN_VARIABLE } from './scope.ts'
import { deadline, until } from './wait.ts'

export interface SpawnOptions {
  readonly args?: readonly string[]
  /** On top of PATH, HOME, TMPDIR and the token; undefined takes one of these away. */
  readonly env?: Readonly<Record<string, string | undefined>>
  readonly cwd?: string
  /** As whom it runs; default: as the test. */
  readonly ids?: { readonly uid: number; readonly gid: number }
  /** In the logs and in errors; default: the command. */
  readonly name?: string
  /** A process group of its own, to be signalled with `process.kill(-pid)`. */
  readonly detached?: boolean
  /** What follows stdin, stdout and stderr: `['ipc']`, or fds from 3 on. */
  readonly moreStdio?: readonly ('ipc' | 'pipe' | 'ignore' | number)[]
}

export interface Line {
  /** Of this process, over both streams. */
  readonly index: number
  readonly stream: 'stdout' | 'stderr'
  readonly text: string
  /** By `performance.now()`. */
  readonly at: number
}

export interface Exit {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  /** By `performance.now()`. */
  readonly at: number
}

export type LinePredicate = string | RegExp | ((line: Line) => boolean)

export interface LineOptions {
  /** Default 10 s. */
  readonly timeoutMs?: number
  /** Only lines from this index on: `process.lines.length` is now. */
  readonly from?: number
  /** What the line is called in the error. */
  readonly what?: string
}

/** How long output may come after the end of a process: an orphan that holds the pipe could keep it open for ever. */
const LAST_WORDS_MS = 500

/** Where `process-on-spawn`, by which tap (its `processinfo`) rewrites the environment of every child, keeps its listeners. */
const SPAWN_HOOK = Symbol.for('process-on-spawn@*:singletonId')

/**
 * Runs `startProcess` while tap does not rewrite what is spawned. tap wraps `ChildProcess.prototype.spawn` and adds
 * NODE_OPTIONS=--import=…processinfo to whatever environment was asked for; in the child that means a listener on TERM,
 * INT, HUP, USR2 and ALRM, so that no signal ends it the way it does elsewhere. `startProcess` must spawn before it
 * returns or waits.
 */
export function withoutTap<T>(startProcess: () => T): T {
  const hook = (globalThis as { [SPAWN_HOOK]?: { listeners: unknown[] } })[SPAWN_HOOK]
  if (hook === undefined) return startProcess()
  const { listeners } = hook
  hook.listeners = []
  try {
    return startProcess()
  } finally {
    hook.listeners = listeners
  }
}

export class TestProcess {
  readonly name: string
  readonly pid: number
  readonly child: ChildProcess
  readonly token: string
  readonly lines: Line[] = []
  /** When it has ended and all its output is here. */
  readonly exited: Promise<Exit>
  exit: Exit | null = null
  #killedByTest = false
  readonly #waiting = new Set<() => void>()

  /** @internal Use {@link start}. */
  constructor(t: TestLike, command: string, options: SpawnOptions) {
    const scope = scopeOf(t)
    const { PATH = '', HOME = '' } = process.env
    const stdio: StdioOptions = ['pipe', 'pipe', 'pipe', ...(options.moreStdio ?? [])]
    this.name = options.name ?? command
    this.token = scope.nextToken()
    const env = { PATH, HOME, TMPDIR: tmpdir(), [TOKEN_VARIABLE]: this.token, ...options.env }
    const { cwd, detached, ids } = options
    this.child = withoutTap(() => spawn(command, options.args ?? [], { cwd, detached, env, stdio, ...ids }))
    this.pid = this.child.pid ?? 0
    this.#collect('stdout', this.child.stdout)
    this.#collect('stderr', this.child.stderr)
    // EPIPE: it did not want to read to the end.
    this.child.stdin?.on('error', () => {})
    this.exited = new Promise((resolve, reject) => {
      this.child.once('error', (error) => {
        if (this.child.pid === undefined)
          reject(new Error(`${this.name} could not be started: ${error.message}`))
      })
      this.child.once('exit', (code, signal) => {
        const exit = { code, signal, at: performance.now() }
        const end = () => {
          clearTimeout(timer)
          this.exit = exit
          this.#tell()
          resolve(exit)
        }
        const timer = setTimeout(end, LAST_WORDS_MS)
        this.child.once('close', end)
      })
    })
    this.exited.catch(() => {})
    scope.watch({
      name: this.name,
      pid: this.pid,
      endedByItself: () =>
        (this.child.exitCode !== null || this.child.signalCode !== null) && !this.#killedByTest,
      log: () => this.log(),
    })
  }

  get stdin(): Writable {
    if (this.child.stdin === null) throw new Error(`${this.name} has no stdin`)
    return this.child.stdin
  }

  get stdout(): string[] {
    return this.lines.filter((line) => line.stream === 'stdout').map((line) => line.text)
  }

  get stderr(): string[] {
    return this.lines.filter((line) => line.stream === 'stderr').map((line) => line.text)
  }

  /**
   * The first line that matches, said already or still to come.
   * @throws when time is over, or the process has ended without it; the error holds the log
   */
  line(predicate: LinePredicate, options: LineOptions = {}): Promise<Line> {
    const { timeoutMs = 10_000, from = 0, what = `a line like ${String(predicate)}` } = options
    const matches = predicateOf(predicate)
    let next = from
    const found = new Promise<Line>((resolve, reject) => {
      const look = () => {
        for (; next < this.lines.length; next++) {
          const line = this.lines[next]
          if (line === undefined || !matches(line)) continue
          this.#waiting.delete(look)
          return resolve(line)
        }
        if (this.exit === null) return
        this.#waiting.delete(look)
        reject(new Error(`${this.name} ended (${endOf(this.exit)}) without ${what}\n${this.log()}`))
      }
      this.#waiting.add(look)
      this.exited.catch(reject)
      look()
    })
    return deadline(found, timeoutMs, `${what} of ${this.name}`, () => this.log())
  }

  /** @throws when it has not ended in time; the error holds the log */
  ended(timeoutMs = 10_000): Promise<Exit> {
    return deadline(this.exited, timeoutMs, `${this.name} (pid ${this.pid}) to end`, () => this.log())
  }

  /** A process that was killed with SIGKILL cannot clean up: what it leaves is not held against it. */
  kill(signal: NodeJS.Signals = 'SIGTERM'): void {
    if (signal === 'SIGKILL') this.#killedByTest = true
    this.child.kill(signal)
  }

  log(): string {
    const end = this.exit === null ? 'alive' : endOf(this.exit)
    const lines = this.lines.map((line) => `  ${line.stream === 'stderr' ? '!' : '|'} ${line.text}`)
    return [`${this.name} (pid ${this.pid}, ${end}) said:`, ...lines].join('\n')
  }

  #collect(stream: Line['stream'], from: Readable | null): void {
    if (from === null) return
    createInterface({ input: from, crlfDelay: Infinity }).on('line', (text) => {
      this.lines.push({ index: this.lines.length, stream, text, at: performance.now() })
      this.#tell()
    })
  }

  #tell(): void {
    for (const look of this.#waiting) look()
  }
}

/** Starts `command`, e.g. `process.execPath`. The test's teardown ends it and all that it has started. */
export function start(t: TestLike, command: string, options: SpawnOptions = {}): TestProcess {
  return new TestProcess(t, command, options)
}

export interface Finished {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: string
  readonly stderr: string
}

/** Starts `command` and waits for its end. */
export async function run(
  t: TestLike,
  command: string,
  options: SpawnOptions & { readonly timeoutMs?: number; readonly input?: string } = {},
): Promise<Finished> {
  const process = start(t, command, options)
  process.stdin.end(options.input ?? '')
  const { code, signal } = await process.ended(options.timeoutMs)
  return { code, signal, stdout: process.stdout.join('\n'), stderr: process.stderr.join('\n') }
}

/**
 * Fails the test unless all that `process` ever started is gone, and itself; without `process`: all of the test. A
 * process that was told to end may be seen in /proc a moment longer than its parent: that moment is given.
 */
export async function expectNothingLeft(t: TestLike, process?: TestProcess, graceMs = 500): Promise<void> {
  const { token } = process ?? scopeOf(t)
  const none = () => processesWithToken(token).length === 0
  const gone = await until(none, { timeoutMs: graceMs, what: 'all processes to be gone' }).catch(() => false)
  if (gone) return
  const left = processesWithToken(token).map(({ pid, command }) => `${pid} (${command})`)
  t.fail(`still alive: ${left.join(', ')}`)
}

/** The logs of every process of this test, for a failure's message. */
export const logsOf = (t: TestLike): string => scopeOf(t).logs()

function predicateOf(predicate: LinePredicate): (line: Line) => boolean {
  if (typeof predicate === 'string') return (line) => line.text.includes(predicate)
  if (predicate instanceof RegExp) return (line) => predicate.test(line.text)
  return predicate
}

const endOf = ({ code, signal }: Exit) => (signal === null ? `exit status ${code}` : `ended by ${signal}`)
