/**
 * Commands of the user that the master runs at points of a rollout: migrations, cache purges, notices, leaving a
 * service registry. Whether one may refuse what it is run before is decided in src/rollout; here it is run, and what it
 * came to is said in a sentence.
 *
 * A hook has a session of its own, as a worker has: Ctrl-C reaches the master alone, and one signal ends the hook with
 * all that it started. What it leaves running is ended as it ends: nothing of ours outlives its purpose. One that is
 * to stay (a daemon) takes a session of its own, by setsid(1).
 */
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { existsSync } from 'node:fs'
import type { Readable } from 'node:stream'
import type { Hook } from '../../rollout/state.ts'
import { idsOf } from './identity.ts'
import type { Ids } from './identity.ts'
import { leftovers, signalGroup } from './leftovers.ts'
import type { Logger } from '../report.ts'
import { NOTIFY_ENV_KEYS } from '../systemd/systemd.ts'
import { seconds } from '../words.ts'

/** Of its output, for the sentence that says why it failed. */
const MAX_KEPT_CHARS = 8 * 1024
const MAX_SAID_CHARS = 500
const MAX_COMMAND_CHARS = 120
const SAID_LINES = 3
/** A hook that prints for ever must not fill the disk with our log. */
const MAX_LOGGED_LINES = 1_000
/** After its exit its output may still be in the pipe; what left its session may hold the pipe open for ever. */
const LAST_WORDS_MS = 500
const LEFT_POLL_MS = 50
/** For what was killed to be gone: it may be in the midst of a write to a disk, or be another user's. */
const KILLED_MS = 2_000

export interface HookRun {
  readonly hook: Hook
  /** Program and arguments: no shell is between. */
  readonly command: readonly string[]
  readonly cwd: string
  /** All of it: see {@link hookEnvironment}. */
  readonly env: Readonly<Record<string, string>>
  /** As whom; none: as the master. What lies in the app's directory is not to run as root where workers do not. */
  readonly identity?: Ids | null
  readonly timeoutMs: number
  /** From SIGTERM to SIGKILL. */
  readonly killTimeoutMs: number
  readonly log: Pick<Logger, 'info'>
}

/** The hooks that run now. */
export class Hooks {
  private readonly running = new Set<Running>()
  private readonly waiting = new Set<Waiting>()
  private stopped = false

  /**
   * @returns null: it ended with status 0; else why not, in words, with the last lines of its output:
   * `beforePromote: ./check.sh exited with status 3: no table users`. Never rejects.
   *
   * It begins when nothing is left of those that were ended: the migration of a rollout that was aborted, and that does
   * not heed SIGTERM, is not to meet the one of the next rollout. That takes `killTimeout` and {@link KILLED_MS} at most.
   */
  async run(order: HookRun): Promise<string | null> {
    const waiting: Waiting = { hook: order.hook, cancelled: null }
    this.waiting.add(waiting)
    for (let ending = this.ending(order); ending.length > 0; ending = this.ending(order))
      await Promise.all(ending.map(({ gone }) => gone))
    this.waiting.delete(waiting)
    const why = waiting.cancelled ?? (this.stopped ? 'usr2 stops' : null)
    if (why !== null) return `${order.hook}: ${commandText(order.command)} was not started: ${why}`
    const running = new Running(order)
    this.running.add(running)
    void running.gone.then(() => this.running.delete(running))
    return running.result
  }

  private ending({ hook, log }: HookRun): Running[] {
    const ending = [...this.running].filter(({ isEnding }) => isEnding)
    const names = ending.map((earlier) => `${earlier.hook} (pid ${earlier.pid})`).join(', ')
    if (names !== '') log.info({ event: 'hook', hook }, `${hook}: waits until ${names} has ended`)
    return ending
  }

  /** Ends those that run now, and waits for nothing. What waits for an earlier one does not begin. */
  end(hooks: readonly Hook[], why: string): void {
    for (const running of this.running) if (hooks.includes(running.hook)) running.end(`was ended: ${why}`)
    for (const waiting of this.waiting) if (hooks.includes(waiting.hook)) waiting.cancelled ??= why
  }

  /** Ends what runs; no other begins. Resolves when nothing of them is left. */
  async stop(): Promise<void> {
    this.stopped = true
    await Promise.all(
      [...this.running].map((running) => {
        running.end('was ended: usr2 stops')
        return running.gone
      }),
    )
  }
}

interface Waiting {
  readonly hook: Hook
  /** Why it is not to begin any more. */
  cancelled: string | null
}

/** One hook, from its start until nothing of it is left. */
class Running {
  readonly result: Promise<string | null>
  readonly gone: Promise<void>
  private readonly order: HookRun
  private child: ChildProcess | null = null
  /** Why we ended it. */
  private ending: string | null = null
  private hasEnded = false
  private timeout: NodeJS.Timeout | undefined
  private kill: NodeJS.Timeout | undefined
  private output = ''
  private logged = 0
  private settle: (failure: string | null) => void = () => {}
  private vanish: () => void = () => {}

  constructor(order: HookRun) {
    this.order = order
    this.result = new Promise((resolve) => (this.settle = resolve))
    this.gone = new Promise((resolve) => (this.vanish = resolve))
    try {
      this.start()
    } catch (error) {
      // Some failures are thrown at once (E2BIG, a null byte in an argument), some told by an event.
      this.notStarted(error instanceof Error ? error : new Error(String(error)))
    }
  }

  get hook(): Hook {
    return this.order.hook
  }

  get pid(): number | undefined {
    return this.child?.pid
  }

  /** We ended it, and it is not gone yet. */
  get isEnding(): boolean {
    return this.ending !== null
  }

  /** SIGTERM to all of it, and SIGKILL to what is still there when its time is up. */
  end(why: string): void {
    const pid = this.child?.pid
    // Once it has ended its pid may be another's; what it left is being ended already.
    if (pid === undefined || this.hasEnded || this.ending !== null) return
    this.ending = why
    clearTimeout(this.timeout)
    signalGroup(pid, 'SIGTERM')
    this.kill ??= setTimeout(() => signalGroup(pid, 'SIGKILL'), this.order.killTimeoutMs)
  }

  private start(): void {
    const { hook, command, cwd, env, identity, timeoutMs, log } = this.order
    const [program = '', ...args] = command
    const child = spawn(program, args, {
      ...{ cwd, env, ...idsOf(identity ?? null), detached: true, stdio: ['ignore', 'pipe', 'pipe'] },
    })
    this.child = child
    this.read(child.stdout)
    this.read(child.stderr)
    child.once('error', (error) => {
      if (child.pid === undefined) this.notStarted(error)
    })
    child.once('exit', (status, signal) => void this.exited(child, status, signal))
    if (child.pid === undefined) return
    log.info({ event: 'hook', hook, pid: child.pid, command }, `${hook}: runs ${commandText(command)}`)
    this.timeout = setTimeout(
      () => this.end(`did not end within ${seconds(timeoutMs)} and was ended`),
      timeoutMs,
    )
  }

  private read(stream: Readable): void {
    let rest = ''
    // By hand: readline keeps a line without an end for ever.
    stream.setEncoding('utf8').on('data', (text: string) => {
      const lines = (rest + text).split('\n')
      rest = lines.pop() ?? ''
      if (rest.length > MAX_KEPT_CHARS) {
        lines.push(rest)
        rest = ''
      }
      for (const line of lines) this.heard(line)
    })
    stream.once('close', () => rest && this.heard(rest))
    stream.on('error', () => {})
  }

  private heard(line: string): void {
    const { hook, log } = this.order
    this.output = `${this.output}${line}\n`.slice(-MAX_KEPT_CHARS)
    this.logged++
    if (this.logged <= MAX_LOGGED_LINES) log.info({ event: 'hook', hook }, `${hook}: ${line}`)
    else if (this.logged === MAX_LOGGED_LINES + 1) {
      log.info(
        { event: 'hook', hook },
        `${hook}: wrote over ${MAX_LOGGED_LINES} lines: the rest is not logged`,
      )
    }
  }

  private async exited(
    child: ChildProcess,
    status: number | null,
    signal: NodeJS.Signals | null,
  ): Promise<void> {
    const { pid = 0 } = child
    this.hasEnded = true
    clearTimeout(this.timeout)
    const closed = new Promise<void>((resolve) => child.once('close', () => resolve()))
    const left = this.endLeftovers(pid)
    await Promise.race([closed, after(LAST_WORDS_MS)])
    child.stdout?.destroy()
    child.stderr?.destroy()
    // Their 'close' brings the last line, if it had no end.
    await after(0)
    const how = signal === null ? `exited with status ${status}` : `was killed by ${signal}`
    // Ended by us it has failed, even if it made a good end of it.
    this.settle(this.ending === null && status === 0 ? null : this.sentence(this.ending ?? how))
    await left
    clearTimeout(this.kill)
    this.vanish()
  }

  /** Of its process group. Resolves when none is left. */
  private async endLeftovers(pid: number): Promise<void> {
    const { hook, killTimeoutMs, log } = this.order
    const left = leftovers(pid)
    if (left.length === 0) return
    const names = left.map(({ pid, command }) => `${pid} (${command})`).join(', ')
    log.info({ event: 'hook', hook, left }, `${hook}: left running: ${names}; ending it`)
    signalGroup(pid, 'SIGTERM')
    this.kill ??= setTimeout(() => signalGroup(pid, 'SIGKILL'), killTimeoutMs)
    // Nothing tells of the end of somebody else's children.
    const until = performance.now() + killTimeoutMs + KILLED_MS
    while (leftovers(pid).length > 0 && performance.now() < until) await after(LEFT_POLL_MS)
  }

  private notStarted(error: Error): void {
    const { cwd } = this.order
    // Node names the program also when it is the directory that is missing.
    const why = existsSync(cwd) ? error.message : `its directory ${cwd} is gone`
    this.settle(this.sentence(`could not be started: ${why}`))
    this.vanish()
  }

  private sentence(what: string): string {
    const { hook, command } = this.order
    const lines = this.output.trim().split('\n').slice(-SAID_LINES)
    const said = lines.join(' | ').slice(-MAX_SAID_CHARS)
    return `${hook}: ${commandText(command)} ${what}${said ? `: ${said}` : ''}`
  }
}

/** One line of bounded length: a command may be a whole script for `sh -c`. */
function commandText(command: readonly string[]): string {
  const text = command.join(' ').replace(/\s+/g, ' ')
  return text.length > MAX_COMMAND_CHARS ? `${text.slice(0, MAX_COMMAND_CHARS - 1)}…` : text
}

const after = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

/** One generation, as a hook is told of it. */
export interface HookGeneration {
  readonly generation: number
  readonly version: string
  readonly entry: string
}

export interface HookFacts {
  readonly hook: Hook
  /** Of the application: `--name`. */
  readonly name: string
  readonly reload: number
  /** The one that it is about: the candidate, or at a stop the current one. */
  readonly about: HookGeneration | null
  readonly previous: HookGeneration | null
  /** Of afterPromote and afterRollback. */
  readonly outcome?: string
  readonly reason?: string
}

/**
 * What a hook finds in its environment: what the generation's workers get, and the facts. All of them are set, empty
 * where there is none, so that a script under `set -u` needs no case for the first generation.
 * @param env the generation's (src/master/workers/generation.ts): an env file may have put in what is systemd's and the master's
 */
export function hookEnvironment(
  env: Readonly<Record<string, string>>,
  facts: HookFacts,
): Record<string, string> {
  const kept = Object.entries(env).filter(([name]) => !NOTIFY_ENV_KEYS.includes(name))
  const { hook, name, reload, about, previous, outcome = '', reason = '' } = facts
  return {
    ...Object.fromEntries(kept),
    USR2_HOOK: hook,
    USR2_NAME: name,
    USR2_RELOAD: String(reload),
    USR2_GENERATION: about === null ? '' : String(about.generation),
    USR2_VERSION: about?.version ?? '',
    USR2_ENTRY: about?.entry ?? '',
    USR2_PREVIOUS_GENERATION: previous === null ? '' : String(previous.generation),
    USR2_PREVIOUS_VERSION: previous?.version ?? '',
    USR2_OUTCOME: outcome,
    USR2_REASON: reason,
  }
}
