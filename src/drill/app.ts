/** The app under a master of the drill's own, which nobody else can meet: its control socket lies in a new directory. */
import { type ChildProcess, spawn } from 'node:child_process'
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { fitsUnixPath } from '../config.ts'
import { askStatus, connectControl, NoMasterError } from '../master/control/control-client.ts'
import { DrillComplaint } from './options.ts'

const POLL_MS = 50
/** What a master needs beyond its app's start. */
const MASTER_MS = 10_000
const TAIL_LINES = 15

/** Another master's: the service manager's word, sockets and directories are not for ours. */
const NOT_OURS = /^(NOTIFY_SOCKET|WATCHDOG_(USEC|PID)|LISTEN_(FDS|PID|FDNAMES)|FDSTORE|RUNTIME_DIRECTORY)$/

export interface AppOptions {
  /** What follows `usr2 run`. */
  readonly argv: readonly string[]
  readonly cwd: string
  readonly env: NodeJS.ProcessEnv
  readonly startTimeoutMs: number
  /** How long a stop may take. */
  readonly stopBudgetMs: number
}

export class PrivateApp {
  readonly control: string
  readonly pid: number
  readonly #directory: string
  readonly #child: ChildProcess
  readonly #exited: Promise<void>
  readonly #options: AppOptions
  #end: string | null = null

  constructor(options: AppOptions) {
    this.#options = options
    const directory = mkdtempSync(
      join(fitsUnixPath(`${tmpdir()}/usr2-drill-XXXXXX/c.sock`) ? tmpdir() : '/tmp', 'usr2-drill-'),
    )
    this.#directory = directory
    this.control = join(directory, 'c.sock')
    const cli = fileURLToPath(new URL('cli.mjs', import.meta.url))
    // The user's own pid file belongs to the user's own master.
    const ours = ['--control', this.control, '--pid-file', join(directory, 'pid')]
    const env = Object.fromEntries(Object.entries(options.env).filter(([name]) => !NOT_OURS.test(name)))
    const log = openSync(join(directory, 'log'), 'w')
    // A session of its own: Ctrl-C is for the drill, which then stops its master.
    this.#child = spawn(process.execPath, [cli, 'run', ...ours, ...options.argv], {
      cwd: options.cwd,
      env,
      stdio: ['ignore', log, log],
      detached: true,
    })
    closeSync(log)
    this.pid = this.#child.pid ?? 0
    this.#exited = new Promise((resolve) => {
      this.#child.once('error', (error) => {
        this.#end ??= `could not be started: ${error.message}`
        resolve()
      })
      this.#child.once('exit', (code, signal) => {
        this.#end ??= `ended with ${signal ?? `status ${code}`}`
        resolve()
      })
    })
  }

  /** @throws {DrillComplaint} with the last lines of its log, where it does not get there */
  async ready(): Promise<void> {
    const patienceMs = this.#options.startTimeoutMs + MASTER_MS
    const until = performance.now() + patienceMs
    while (this.#end === null) {
      if (performance.now() > until) {
        throw this.#complaint(`The app was not ready within ${patienceMs / 1000} s.`)
      }
      if (await this.#serves()) return
      await Promise.race([sleep(POLL_MS), this.#exited])
    }
    throw this.#complaint(`The app did not start: usr2 run ${this.#end}.`)
  }

  async #serves(): Promise<boolean> {
    try {
      const { state, ready, slots } = await askStatus(await connectControl(this.control))
      return state === 'steady' && ready >= slots
    } catch (error) {
      if (error instanceof NoMasterError) return false
      throw error
    }
  }

  #complaint(sentence: string): DrillComplaint {
    return new DrillComplaint([`${sentence} The end of its output:\n${this.tail()}`])
  }

  /** The last lines that the master and the app have written. */
  tail(): string {
    const lines = readFileSync(join(this.#directory, 'log'), 'utf8').trimEnd().split('\n')
    return lines
      .slice(-TAIL_LINES)
      .map((line) => `  ${line}`)
      .join('\n')
  }

  /** Gracefully, and when that takes longer than the master itself says, not. Leaves nothing. */
  async stop(how: 'graceful' | 'now' = 'graceful'): Promise<void> {
    const patienceMs = this.#options.stopBudgetMs + MASTER_MS
    const late = setTimeout(() => this.#child.kill('SIGKILL'), patienceMs)
    if (this.#end === null) this.#child.kill('SIGTERM')
    // A second one: "stop now" (DESIGN section 4).
    if (how === 'now' && this.#end === null) setTimeout(() => this.#child.kill('SIGTERM'), POLL_MS)
    await this.#exited
    clearTimeout(late)
    rmSync(this.#directory, { recursive: true, force: true })
  }
}
