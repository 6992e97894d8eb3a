/** Runs a {@link Load} in a process of its own (`load-main.ts`), with the same words as promises. */
import { type ChildProcess, spawn } from 'node:child_process'
import { tmpdir } from 'node:os'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import type { LoadOptions } from './load.ts'
import type { LoadResult } from './result.ts'
import { now, type VersionField } from './world.ts'

/** What can cross to another process: no function. */
export interface RemoteLoadOptions extends Omit<LoadOptions, 'versionOf'> {
  readonly versionOf?: VersionField
}

export type Order =
  | { readonly options: RemoteLoadOptions; readonly guard?: number }
  | { readonly mark: string; readonly atMs: number; readonly kind?: string }
  | { readonly epoch: number }
  | { readonly onlySince: number }
  | { readonly snapshot: true }
  | { readonly stop: true }

export type Answer =
  { readonly started: true } | { readonly snapshot: LoadResult } | { readonly result: LoadResult }

export interface StartLoadOptions {
  /** In addition to PATH, HOME and TMPDIR: nothing else of our own environment reaches the client. */
  readonly env?: Readonly<Record<string, string>>
  /** The processor core it is to stay on (taskset(1)). */
  readonly core?: number | null
  /** A process that is sent SIGTERM when ours ends without having stopped the load: we were killed, it must not stay. */
  readonly guard?: number
}

export class RemoteLoad {
  /** The result, once stopped or a bound is reached. Rejects if the process ends without one. */
  readonly done: Promise<LoadResult>
  readonly pid: number
  readonly #child: ChildProcess
  readonly #snapshots: ((result: LoadResult) => void)[] = []

  private constructor(child: ChildProcess, started: () => void, failed: (error: Error) => void) {
    this.#child = child
    this.pid = child.pid ?? 0
    let stderr = ''
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (stderr = (stderr + text).slice(-8192)))
    this.done = new Promise((resolve, reject) => {
      const end = (why: string) => {
        const error = new Error(
          `the load client (pid ${this.pid}) ${why} without a result; its stderr: ${stderr || '(empty)'}`,
        )
        reject(error)
        failed(error)
      }
      child.once('error', (error) => end(`did not start (${error.message})`))
      child.once('close', (code, signal) => end(`ended with ${signal ?? code}`))
      if (child.stdout === null) return
      createInterface({ input: child.stdout }).on('line', (line) => {
        const answer = JSON.parse(line) as Answer
        if ('started' in answer) started()
        else if ('snapshot' in answer) this.#snapshots.shift()?.(answer.snapshot)
        else resolve(answer.result)
      })
    })
    // Whoever only ever calls `stop` hears of it there.
    this.done.catch(() => {})
    // EPIPE: the process is gone, and `done` says so.
    child.stdin?.on('error', () => {})
  }

  /** @internal */
  static start(
    options: RemoteLoadOptions,
    { env = {}, core = null, guard }: StartLoadOptions,
  ): Promise<RemoteLoad> {
    const { PATH = '', HOME = '' } = process.env
    const node = [process.execPath, ...loadMain()]
    const [command = '', ...args] = core === null ? node : ['taskset', '-c', `${core}`, ...node]
    const child = spawn(command, args, {
      env: { PATH, HOME, TMPDIR: tmpdir(), ...env },
      stdio: ['pipe', 'pipe', 'pipe'],
    })
    return new Promise((resolve, reject) => {
      const load: RemoteLoad = new RemoteLoad(child, () => resolve(load), reject)
      load.#order({ options, ...(guard === undefined ? {} : { guard }) })
    })
  }

  /** A new phase counts from now on; those of one `kind` are also counted together. */
  mark(name: string, kind?: string): void {
    this.#order({ mark: name, atMs: now(), ...(kind === undefined ? {} : { kind }) })
  }

  /** Connections opened from now on are answered by another generation. */
  epoch(): void {
    this.#order({ epoch: now() })
  }

  /** Whoever answered in an epoch before `epoch` (0 is the first) has gone. */
  onlySince(epoch: number): void {
    this.#order({ onlySince: epoch })
  }

  /** What was counted up to here. */
  snapshot(): Promise<LoadResult> {
    const snapshot = new Promise<LoadResult>((resolve) => this.#snapshots.push(resolve))
    this.#order({ snapshot: true })
    return Promise.race([snapshot, this.done])
  }

  stop(): Promise<LoadResult> {
    this.#order({ stop: true })
    return this.done
  }

  /** Ends the process without a result. */
  kill(): void {
    this.#child.kill('SIGKILL')
  }

  #order(order: Order): void {
    this.#child.stdin?.write(`${JSON.stringify(order)}\n`)
  }
}

/** As source, for our own tests and benchmarks, or bundled, beside us. */
function loadMain(): string[] {
  const source = import.meta.url.endsWith('.ts')
  const main = fileURLToPath(new URL(source ? 'load-main.ts' : 'drill-load.mjs', import.meta.url))
  return source ? [`--import=${import.meta.resolve('tsx')}`, main] : [main]
}

/** Resolves when the first connections are on their way. Rejects with the client's own words if it cannot start. */
export function startLoad(options: RemoteLoadOptions, start: StartLoadOptions = {}): Promise<RemoteLoad> {
  return RemoteLoad.start(options, start)
}
