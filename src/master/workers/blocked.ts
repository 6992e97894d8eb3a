/**
 * What blocks a worker whose event loop does not answer: the JavaScript stack, from Node's own inspector, and what /proc
 * tells without it.
 *
 * SIGUSR1 makes Node start its inspector on a thread of its own, also while JavaScript runs (Node.js docs, "Signal
 * events" and "Debugger"). A helper process (src/master/workers/blocked-main.ts) sends it, attaches, pauses the worker for its call frames, and
 * ends the inspector before the worker goes on.
 *
 * The inspector is a door: while it listens, on 127.0.0.1, any local user may run code in the worker with the rights of
 * its user. So it must open for a look alone:
 *
 * - A stray SIGUSR1 (`systemctl kill -s USR1` of a logrotate script reaches all processes of a unit) must not open it.
 *   Elsewhere the guest keeps that signal by a listener, but a listener replaces Node's handler and nothing would be left to
 *   look with. Here the guest only tells Node the port (`process.debugPort`), and the master listens there itself:
 *   the inspector cannot start (EADDRINUSE, one line on the worker's stderr), except while the master lets go of the port.
 * - Node remembers one SIGUSR1 twice, for JavaScript and for the event loop: once that turns again, the inspector would
 *   start a second time. The same goes for one whom the signal reached in a system call (`execSync`). By then the
 *   master has the port again.
 * - Measured, a worker in `for (;;)`: it listens for 90 to 310 ms on Node 20 to 26, with a load of 15 on 2 cores. What cannot be
 *   paused after it has listened (a native function that does not end) keeps it open until the helper gives up, and after that
 *   until the worker ends: a warning says so. It is about to be replaced.
 *
 * Whoever finds that too much switches it off (`stackOfBlocked`): then the guest keeps SIGUSR1, nobody listens, and
 * {@link busyness} is all there is. It is also without effect when the app listens to SIGUSR1 itself.
 */
import { spawn } from 'node:child_process'
import { type AddressInfo, type Server, createServer } from 'node:net'
import type { LookResult } from './blocked-main.ts'
import { commandOf, read, statOf } from '../proc.ts'
import type { ReadFile, Stat } from '../proc.ts'
import type { Logger } from '../report.ts'

const HOST = '127.0.0.1'
/** The helper gives up by itself a little earlier, and says how it stands. */
const DEADLINE_MS = 6_000
const RETAKE_MS = 250
const MAX_ANSWER_CHARS = 64 * 1024
/** proc(5), signal(7): SIGUSR1 is 10 on every architecture that Node runs on but MIPS. */
const SIGUSR1_BIT = 1n << 9n

export interface StackReaderParts {
  /** The helper's file: `blocked.mjs`, a copy that no `npm ci` changes. */
  readonly helper: string
  readonly log: Pick<Logger, 'debug' | 'warn'>
}

export class StackReader {
  /** For `GuestConfig.inspectorPort`. */
  readonly port: number
  private readonly parts: StackReaderParts
  private guard: Server | null
  private retaking: NodeJS.Timeout | undefined
  private closed = false
  /** All workers have one port: one look at a time. */
  private last: Promise<unknown> = Promise.resolve()
  private readonly ending = new AbortController()

  private constructor(parts: StackReaderParts, guard: Server) {
    this.parts = parts
    this.guard = guard
    this.port = (guard.address() as AddressInfo).port
  }

  /** @throws {Error} when no port of 127.0.0.1 can be had */
  static async open(parts: StackReaderParts): Promise<StackReader> {
    return new StackReader(parts, await hold(0))
  }

  /**
   * @param pid of a worker whose guest was given our port
   * @returns a few lines, innermost first (`at compute (/srv/app.js:10:5)`), or null where Node gives none: it waits in a
   * system call, the app has taken SIGUSR1, the deadline passed. Never rejects.
   */
  look(pid: number): Promise<string | null> {
    const look = this.last.then(() => this.lookNow(pid)).catch(() => null)
    this.last = look
    return look
  }

  async close(): Promise<void> {
    this.closed = true
    clearTimeout(this.retaking)
    this.ending.abort()
    await this.last
    await letGo(this.guard)
  }

  private async lookNow(pid: number): Promise<string | null> {
    const { log } = this.parts
    // Without a handler the signal would end it: an app that took its own listener away leaves none, not even Node's.
    if (this.closed || this.guard === null || !catchesUsr1(pid)) return null
    await letGo(this.guard)
    this.guard = null
    try {
      const { stack, openMs } = await this.ask(pid)
      const how = openMs === null ? 'did not start' : `listened for ${openMs} ms`
      log.debug({ event: 'looked-into', pid, openMs }, `the inspector of worker ${pid} ${how}`)
      return stack === '' ? null : stack
    } finally {
      await this.retake(pid)
    }
  }

  private async ask(pid: number): Promise<LookResult> {
    // Node 20 has it, but not switched on.
    const flags = 'WebSocket' in globalThis ? [] : ['--experimental-websocket']
    const child = spawn(process.execPath, [...flags, this.parts.helper, String(pid), String(this.port)], {
      cwd: '/',
      env: {},
      detached: true,
      stdio: ['ignore', 'pipe', 'ignore'],
      timeout: DEADLINE_MS,
      killSignal: 'SIGKILL',
      signal: this.ending.signal,
    })
    let answer = ''
    child.stdout
      .setEncoding('utf8')
      .on('data', (text: string) => (answer = (answer + text).slice(0, MAX_ANSWER_CHARS)))
    await new Promise<void>((resolve) => {
      child.once('error', () => child.pid === undefined && resolve())
      child.once('close', () => resolve())
    })
    try {
      return JSON.parse(answer) as LookResult
    } catch {
      return { stack: '', openMs: null }
    }
  }

  /** Until it succeeds: the worker may not have closed its inspector. */
  private async retake(pid: number, isFirst = true): Promise<void> {
    if (this.closed) return
    try {
      const guard = await hold(this.port)
      // It was closed meanwhile.
      if (this.closed) await letGo(guard)
      else this.guard = guard
    } catch {
      const where = `${HOST}:${this.port}`
      if (isFirst) {
        this.parts.log.warn(
          { event: 'inspector-open', pid, port: this.port },
          `worker ${pid} was looked into and may listen for a debugger on ${where} until it ends`,
        )
      }
      this.retaking = setTimeout(() => void this.retake(pid, false), RETAKE_MS).unref()
    }
  }
}

function hold(port: number): Promise<Server> {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => socket.destroy())
    server.once('error', reject)
    server.listen({ host: HOST, port, exclusive: true }, () => {
      server.off('error', reject)
      // EMFILE in accept: whoever knocks there is of no interest.
      server.on('error', () => {})
      resolve(server.unref())
    })
  })
}

const letGo = (server: Server | null): Promise<void> =>
  new Promise((resolve) => (server === null ? resolve() : server.close(() => resolve())))

function catchesUsr1(pid: number): boolean {
  const mask = /^SigCgt:\s*([0-9a-f]+)/m.exec(read(`/proc/${pid}/status`))?.[1]
  return mask !== undefined && (BigInt(`0x${mask}`) & SIGUSR1_BIT) !== 0n
}

/** The kernel counts processor time for /proc in hundredths of a second (USER_HZ). */
const MS_PER_TICK = 10
const LOOK_MS = 500

/**
 * What the worker's main thread does, by two looks at /proc: `it used 99 % of a processor: JavaScript or native code
 * runs`, `it sleeps in do_sys_poll`, `it waits for a disk`. Null when it is gone. Source: proc(5), /proc/PID/task/TID/stat, wchan
 * (a `0` where the kernel does not tell) and children.
 */
export async function busyness(pid: number, overMs = LOOK_MS, from: ReadFile = read): Promise<string | null> {
  const before = mainThread(pid, from)
  const since = performance.now()
  await new Promise((resolve) => setTimeout(resolve, overMs))
  const tookMs = performance.now() - since
  const after = mainThread(pid, from)
  if (!before || !after) return null
  const share = ((after.ticks - before.ticks) * MS_PER_TICK) / tookMs
  if (share >= 0.5)
    return `it used ${Math.min(100, Math.round(share * 100))} % of a processor: JavaScript or native code runs`
  const wchan = from(`/proc/${pid}/task/${pid}/wchan`).trim()
  const where = wchan === '' || wchan === '0' ? '' : ` in ${wchan}`
  const children = from(`/proc/${pid}/task/${pid}/children`).trim().split(' ').filter(Boolean)
  const named = children.slice(0, 3).map((child) => `${child} (${commandOf(child, from)})`)
  const waits = named.length > 0 ? `, perhaps for its child ${named.join(', ')}` : ''
  switch (after.state) {
    case 'R':
      return `it wants a processor and got ${Math.round(share * 100)} % of one`
    case 'D':
      return `it waits for a disk or another device${where}`
    case 'T':
    case 't':
      return 'it is stopped, by SIGSTOP or a debugger'
    default:
      return `it sleeps${where}${waits}`
  }
}

const mainThread = (pid: number, read: ReadFile): Stat | null => statOf(`/proc/${pid}/task/${pid}/stat`, read)
