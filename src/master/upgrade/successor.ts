/**
 * The new master as the old one knows it, from its start to the point of no return and after. Tells what it says, and
 * ends it.
 *
 * It is started by a double fork: `sh` starts it in the background and exits, so that it is a child of PID 1 by the time
 * systemd hears of it. As a child of ours systemd would take it for alien, and kill everything at the next stop without
 * a SIGTERM (FACTS M4). The IPC channel survives that.
 */
import { execFile, spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { parseFromSuccessor, takeBequest, type FromSuccessor, type ToSuccessor } from './upgrade-wire.ts'
import { seconds } from '../words.ts'

export interface Program {
  readonly node: string
  /** Node's own, usr2's file, `run` and what follows. */
  readonly args: readonly string[]
  readonly cwd: string
  readonly env: NodeJS.ProcessEnv
}

/** An attempt has failed: whole sentences. */
export class UpgradeError extends Error {
  override name = 'UpgradeError'
  readonly reasons: readonly string[]
  /** Nothing was started, so that nothing had to be rolled back. */
  readonly outcome: 'refused' | 'rolled-back' | 'overtaken'

  constructor(outcome: UpgradeError['outcome'], reasons: readonly string[]) {
    super(reasons.join(' '))
    this.outcome = outcome
    this.reasons = reasons
  }
}

export const SHELL = '/bin/sh'
const DOUBLE_FORK = '"$@" & exit 0'

/** For a Node to say its usr2's version: it takes 60 ms. */
const VERSION_TIMEOUT_MS = 10_000
/** Of a program that cannot even say its version. */
const MAX_WORDS = 1_000

/**
 * Whether that usr2 can be loaded by that Node at all: a broken one says why on its stderr, which the new master itself
 * cannot be asked for, since it has to inherit ours.
 *
 * @throws {UpgradeError} in its own words
 */
export async function askVersion(
  { node, cwd, env }: Program,
  nodeArgs: readonly string[],
  file: string,
  signal: AbortSignal,
): Promise<string> {
  // It is no successor: it must not say hello.
  const own = { ...env }
  takeBequest(own)
  const limits = { timeout: VERSION_TIMEOUT_MS, killSignal: 'SIGKILL', signal } as const
  return new Promise((resolve, reject) => {
    execFile(node, [...nodeArgs, file, 'version'], { ...limits, cwd, env: own }, (error, stdout, stderr) => {
      const version = stdout.trim()
      if (error === null && /^\d+\.\d+\.\d+/.test(version)) return resolve(version)
      if (signal.aborted) return reject(new UpgradeError('overtaken', [String(signal.reason)]))
      const late = error?.killed ? `no answer in ${seconds(VERSION_TIMEOUT_MS)}` : undefined
      const words =
        firstWords(stderr) || late || error?.message || `its version is ${JSON.stringify(version)}`
      const text = `The usr2 on disk (${file}) cannot be run by ${node}: ${words}`
      reject(new UpgradeError('refused', [text]))
    })
  })
}

/** Of an uncaught error: without the source line and the stack. */
function firstWords(stderr: string): string {
  const lines = stderr.split('\n').map((line) => line.trim())
  const error = lines.find((line) => /^(\w*Error\b|\S+: )/.test(line) && !line.startsWith('at '))
  return (error ?? lines.find((line) => line !== '') ?? '').slice(0, MAX_WORDS)
}

export class Successor {
  /** Its own, once it has said so. */
  pid: number | null = null
  /** Its channel is closed: it has ended, or is about to. */
  readonly gone: Promise<void>
  onStop: (how: 'graceful' | 'now') => void = () => {}
  private readonly shell: ChildProcess
  private readonly said: FromSuccessor[] = []
  private wake: () => void = () => {}
  private end: string | null = null
  private hasBegun = false

  /** @param fds that it gets as 3 and up */
  constructor({ node, args, cwd, env }: Program, fds: readonly number[]) {
    this.shell = spawn(SHELL, ['-c', DOUBLE_FORK, 'sh', node, ...args], {
      cwd,
      env,
      // A session of its own, so a process group by which it can be ended before it has told its pid.
      detached: true,
      stdio: ['ignore', 'inherit', 'inherit', ...fds, 'ipc'],
    })
    this.gone = new Promise((resolve) => {
      const ended = (why: string): void => {
        this.end ??= why
        this.wake()
        resolve()
      }
      this.shell.once('disconnect', () => ended('it ended without a word (its last lines are in the log)'))
      this.shell.once('error', (error) => ended(`it could not be started: ${error.message}`))
    })
    this.shell.on('message', (raw) => {
      const message = parseFromSuccessor(raw)
      if (message === null) return
      if (message.t === 'hello') this.pid = message.pid
      if (message.t === 'stop') return this.onStop(message.how)
      this.said.push(message)
      this.wake()
    })
  }

  get isGone(): boolean {
    return this.end !== null
  }

  send(message: ToSuccessor): void {
    // The callback takes the error of one that has gone; `gone` tells.
    if (this.shell.connected) this.shell.send(message, () => {})
  }

  /**
   * The next message, which must be of that type.
   *
   * @throws {UpgradeError} it failed, ended, said something else, or nothing within the time
   */
  async next<T extends FromSuccessor['t']>(
    type: T,
    timeoutMs: number,
    signal: AbortSignal,
  ): Promise<Extract<FromSuccessor, { readonly t: T }>> {
    let late = false
    const timer = setTimeout(() => {
      late = true
      this.wake()
    }, timeoutMs)
    const onAbort = (): void => this.wake()
    signal.addEventListener('abort', onAbort)
    try {
      for (;;) {
        if (signal.aborted) throw new UpgradeError('overtaken', [String(signal.reason)])
        const message = this.said.shift()
        if (message?.t === type) return message as Extract<FromSuccessor, { readonly t: T }>
        if (message?.t === 'failed') throw new UpgradeError('rolled-back', message.reasons)
        if (message) throw this.failure(`it said "${message.t}" instead of "${type}"`)
        if (this.end !== null) throw this.failure(this.end)
        if (late) throw this.failure(`it did not say "${type}" within ${seconds(timeoutMs)}`)
        await new Promise<void>((wake) => (this.wake = wake))
      }
    } finally {
      clearTimeout(timer)
      signal.removeEventListener('abort', onAbort)
    }
  }

  /** It may begin: from now on it has workers. */
  begin(message: Omit<Extract<ToSuccessor, { readonly t: 'begin' }>, 't'>): void {
    this.hasBegun = true
    this.send({ t: 'begin', ...message })
  }

  /**
   * Tells it to leave, and kills it should it not: at once where it has no workers yet. Workers notice that, and drain
   * and leave by themselves.
   */
  async dismiss(reason: string, graceMs: number): Promise<void> {
    if (!this.hasBegun) return this.kill()
    this.send({ t: 'leave', reason })
    let timer: NodeJS.Timeout | undefined
    const late = new Promise((resolve) => (timer = setTimeout(resolve, graceMs)))
    await Promise.race([this.gone, late])
    clearTimeout(timer)
    this.kill()
  }

  private kill(): void {
    const group = this.shell.pid
    if (group === undefined) return
    try {
      process.kill(-group, 'SIGKILL')
    } catch {
      // Nobody is left in it.
    }
  }

  private failure(why: string): UpgradeError {
    const who = this.pid === null ? 'The new master' : `The new master (pid ${this.pid})`
    return new UpgradeError('rolled-back', [`${who} did not take over: ${why}.`])
  }
}
