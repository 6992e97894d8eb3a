/**
 * What systemd is told: the sd_notify(3) protocol. Node has no AF_UNIX datagram socket, so there are two ways:
 * - A descriptor that systemd itself opened and passed (OpenFile=, systemd 253 and newer): a message is one write(2),
 *   and comes from the master itself, so the unit may say NotifyAccess=main.
 * - Else the program `systemd-notify`. READY and STATUS go through the npm package of that name; what it does not know
 *   goes to the same program by {@link runProgram}.
 *
 * Rules for the program:
 * - One child at a time, in order. Two at once may arrive in either order, and READY=1 before RELOADING=1 leaves
 *   the unit `reloading` for good.
 * - Never `--no-block`. The child's pid is how systemd finds the unit (the unit says NotifyAccess=all), and without
 *   the barrier the child is often gone before systemd looks: of 150 messages 2 (systemd 252) to 40 (257) were lost.
 * - Waiting STATUS texts, beats and extensions are replaced by the newest, so the queue cannot grow while PID 1
 *   is slow. READY, RELOADING and STOPPING are kept, in order.
 * - Nothing here fails the master: no socket or no program means silence, a failure is one warning in a lifetime.
 */
import { execFile } from 'node:child_process'
import { accessSync, constants, statSync, write } from 'node:fs'
import { delimiter, join } from 'node:path'
import { promisify } from 'node:util'
import notify from 'systemd-notify'

/**
 * Variables by which systemd speaks to the master alone; none may reach a worker. A worker with NOTIFY_SOCKET could
 * declare itself the main process (`MAINPID=`, allowed by NotifyAccess=all); one with LISTEN_FDS would take
 * file descriptors 3 and up for sockets; an app that knows WATCHDOG_USEC would beat for a hung master.
 * Sources: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3), systemd.exec(5).
 */
export const NOTIFY_ENV_KEYS: readonly string[] = [
  'NOTIFY_SOCKET',
  'WATCHDOG_USEC',
  'WATCHDOG_PID',
  'LISTEN_FDS',
  'LISTEN_PID',
  'LISTEN_PIDFDID',
  'LISTEN_FDNAMES',
  'FDSTORE',
  'MAINPID',
  'MAINPIDFDID',
  'MANAGERPID',
  'MANAGERPIDFDID',
]

/** One message: a run of the program, or a datagram. */
export type Notice =
  | { readonly via: 'package'; readonly ready: boolean; readonly status: string; readonly pid: number }
  | { readonly via: 'program'; readonly assignments: readonly string[] }

export interface NotifierOptions {
  /**
   * The master's environment: NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID, PATH. Outside tests it must be
   * `process.env` itself, still with NOTIFY_SOCKET: the package's child inherits it.
   */
  readonly env: Readonly<Record<string, string | undefined>>
  readonly log: { warn(facts: object, text: string): void }
  /** The descriptor that systemd opened for us (inherited.ts); with it no program is run. */
  readonly fd?: number | null
  /** Sends one message; rejects when that fails. */
  readonly run?: (notice: Notice) => Promise<void>
  readonly pid?: number
  /** Says nothing until {@link Notifier.speak}: another process is the main one still. */
  readonly quiet?: boolean
  /** CLOCK_MONOTONIC in microseconds. */
  readonly now?: () => bigint
}

export interface Notifier {
  /** False: nothing listens, or nothing can be said; every call is a no-op. */
  readonly enabled: boolean
  /** Half of WATCHDOG_USEC, as sd_watchdog_enabled(3) advises; null when no beat is expected from this process. */
  readonly watchdogIntervalMs: number | null
  /** The service serves; also closes a `reloading()`, whatever came of the reload. `status` is for people. */
  ready(status: string): void
  /** A reload began. A second call before `ready()` is not sent: one READY would close both. */
  reloading(): void
  /** A line for `systemctl status`. Made one line, cut at {@link STATUS_BYTES}. */
  status(text: string): void
  /** The service stops; from here on READY and RELOADING are not sent. An open `reloading()` needs no READY. */
  stopping(status: string): void
  /** One beat. */
  watchdog(): void
  /** Beats now and every `watchdogIntervalMs` while `isHealthy()`; until `close()`. Does not keep the process alive. */
  startWatchdog(isHealthy: () => boolean): void
  /** Asks for `ms` from now for the start or stop in progress, beyond TimeoutStartSec= or TimeoutStopSec=. */
  extendTimeout(ms: number): void
  /** The main process is `pid` from now on. systemd takes that from the main process alone (NotifyAccess=main). */
  mainPid(pid: number): void
  /** Ends {@link NotifierOptions.quiet}. What was to be said before is not said. */
  speak(): void
  /** Settles when all that was said has been delivered or has failed: to be awaited before the process exits. */
  flush(): Promise<void>
  /** Ends the beats and takes nothing more. What waits is still sent. */
  close(): void
}

/**
 * systemd reads 4096 bytes of a message (NOTIFY_BUFFER_MAX) and drops a longer one whole, READY=1 with it; a worker's
 * stack trace alone may be 8 KiB. A status is one line of a terminal anyway.
 */
export const STATUS_BYTES = 1024

/** The program gives up its barrier after 5 s and says why; this is for one that hangs even so. */
const DEADLINE_MS = 6_000

/**
 * A lost READY=1 ends the service at TimeoutStartSec=, a lost STATUS= is a stale line. A busy PID 1 (daemon-reload on
 * a large host) outlasts the barrier, and the message of a sender that has gone is not attributed to the unit.
 */
const READY_ATTEMPTS = 3

type Topic = 'main' | 'ready' | 'reloading' | 'stopping' | 'status' | 'watchdog' | 'extend'

export function createNotifier(options: NotifierOptions): Notifier {
  const { env, log } = options
  const pid = options.pid ?? process.pid
  const now = options.now ?? (() => process.hrtime.bigint() / 1000n)
  const fd = options.fd ?? null
  const run = options.run ?? (fd === null ? runnerOf(env, log) : writerOf(fd))
  const enabled = (fd !== null || Boolean(env['NOTIFY_SOCKET'])) && run !== null
  const watchdogIntervalMs = enabled ? watchdogInterval(env, pid) : null

  let waiting: { readonly topic: Topic; readonly notice: Notice }[] = []
  let sending: Promise<void> | null = null
  let reloadOpen = false
  let stopping = false
  let closed = false
  let warned = false
  let quiet = options.quiet ?? false
  let beats: NodeJS.Timeout | undefined

  function say(topic: Topic, notice: Notice, replaces: readonly Topic[] = []): void {
    if (!enabled || closed || quiet) return
    waiting = waiting.filter((w) => !replaces.includes(w.topic))
    waiting.push({ topic, notice })
    sending ??= sendAll()
  }

  async function sendAll(): Promise<void> {
    for (let next = waiting.shift(); next; next = waiting.shift()) await deliver(next.topic, next.notice)
    // In the same turn as the last look at the queue: a `finally` comes a microtask later, and what is said between
    // would wait for ever.
    sending = null
  }

  async function deliver(topic: Topic, notice: Notice): Promise<void> {
    for (let left = topic === 'ready' ? READY_ATTEMPTS : 1; left > 0; left--) {
      try {
        await run?.(notice)
        return
      } catch (error) {
        if (left > 1 || warned) continue
        warned = true
        const why = error instanceof Error ? error.message : String(error)
        log.warn(
          { topic, err: why },
          `telling systemd "${topic}" ${fd === null ? 'by systemd-notify' : 'by its own descriptor'} failed: ${why}; ` +
            'the app is not touched, but systemctl may show an old state; check ' +
            `NotifyAccess=${fd === null ? 'all' : 'main, and OpenFile=/run/systemd/notify:notify,'} in the unit; ` +
            'further failures are not reported',
        )
      }
    }
  }

  const byPackage = (ready: boolean, text: string): Notice => ({
    via: 'package',
    ready,
    status: oneLine(text),
    pid,
  })
  const byProgram = (...assignments: string[]): Notice => ({ via: 'program', assignments })

  const beat = () => {
    // A beat that waits already will do: it is sent no later than a second one would be.
    if (!waiting.some((w) => w.topic === 'watchdog')) say('watchdog', byProgram('WATCHDOG=1'))
  }

  return {
    enabled,
    watchdogIntervalMs,
    ready(status) {
      if (stopping) return
      reloadOpen = false
      say('ready', byPackage(true, status), ['status'])
    },
    reloading() {
      if (stopping || reloadOpen) return
      reloadOpen = true
      // The time at which the reload began, not at which the queue got to it: that is what systemd compares.
      say('reloading', byProgram('RELOADING=1', `MONOTONIC_USEC=${now()}`))
    },
    status(text) {
      say('status', byPackage(false, text), ['status'])
    },
    stopping(status) {
      if (stopping) return
      stopping = true
      say('stopping', byProgram('STOPPING=1', `STATUS=${oneLine(status)}`), ['status'])
    },
    watchdog: beat,
    startWatchdog(isHealthy) {
      if (watchdogIntervalMs === null || closed || beats) return
      const beatIfHealthy = () => {
        if (isHealthy()) beat()
      }
      beats = setInterval(beatIfHealthy, watchdogIntervalMs).unref()
      beatIfHealthy()
    },
    extendTimeout(ms) {
      say('extend', byProgram(`EXTEND_TIMEOUT_USEC=${Math.ceil(ms * 1000)}`), ['extend'])
    },
    mainPid(pid) {
      // READY=1 with it: a service that is being reloaded stays so until somebody says it.
      say('main', byProgram(`MAINPID=${pid}`, 'READY=1'))
    },
    speak() {
      quiet = false
    },
    async flush() {
      while (sending) await sending
    },
    close() {
      closed = true
      clearInterval(beats)
    },
  }
}

/** WATCHDOG_PID names the process that is to beat (systemd sets it to the one it started). */
function watchdogInterval(env: NotifierOptions['env'], pid: number): number | null {
  const timeoutUsec = Number(env['WATCHDOG_USEC'])
  const beater = env['WATCHDOG_PID']
  if (!(Number.isSafeInteger(timeoutUsec) && timeoutUsec > 0)) return null
  if (beater && Number(beater) !== pid) return null
  return timeoutUsec / 2 / 1000
}

/**
 * `text` as one line of at most {@link STATUS_BYTES}. A line break would end the value, and what follows (a worker's own
 * words) would be read as a further assignment, `MAINPID=1` included; a NUL cannot be in an argument.
 */
function oneLine(text: string): string {
  const line = text.replace(/[\p{Cc}\u2028\u2029]+/gu, ' ').trim()
  if (Buffer.byteLength(line) <= STATUS_BYTES) return line
  const ellipsis = '…'
  let room = STATUS_BYTES - Buffer.byteLength(ellipsis)
  let kept = ''
  // By code points: systemd ignores a status that is not valid UTF-8.
  for (const point of line) {
    room -= Buffer.byteLength(point)
    if (room < 0) break
    kept += point
  }
  return kept + ellipsis
}

/**
 * In the thread pool, not by writeSync: the descriptor is blocking, and where PID 1 hangs (it freezes after a crash of its
 * own) the queue of its socket is full after 512 messages of all services. The app is to be looked after even then.
 */
function writerOf(fd: number): (notice: Notice) => Promise<void> {
  const writeAll = promisify(write)
  let isStuck = false
  return async (notice) => {
    // At most one thread of the pool's four waits for PID 1.
    if (isStuck) throw new Error('systemd has not taken the message before it')
    isStuck = true
    const written = writeAll(fd, textOf(notice), null).finally(() => (isStuck = false))
    await withDeadline(written)
  }
}

function textOf(notice: Notice): string {
  if (notice.via === 'program') return notice.assignments.join('\n')
  // Without MAINPID=: the message comes from the main process.
  return `${notice.ready ? 'READY=1\n' : ''}STATUS=${notice.status}`
}

function runnerOf(env: NotifierOptions['env'], log: NotifierOptions['log']): NotifierOptions['run'] | null {
  if (!env['NOTIFY_SOCKET']) return null
  const program = findProgram('systemd-notify', env['PATH'])
  if (program === null) {
    log.warn(
      { path: env['PATH'] },
      'NOTIFY_SOCKET is set, but there is no program systemd-notify in PATH: systemd will not learn that the app is ' +
        'ready and will end the unit at TimeoutStartSec=; install it (it comes with systemd) or use Type=exec ' +
        'without WatchdogSec=',
    )
    return null
  }
  return (notice) =>
    notice.via === 'package'
      ? withDeadline(notify({ ready: notice.ready, status: notice.status, pid: notice.pid }))
      : runProgram(program, notice.assignments, env)
}

function findProgram(name: string, path = '/usr/local/bin:/usr/bin:/bin'): string | null {
  for (const directory of path.split(delimiter)) {
    const file = join(directory || '.', name)
    try {
      accessSync(file, constants.X_OK)
      if (statSync(file).isFile()) return file
    } catch {
      // Not in this one.
    }
  }
  return null
}

function runProgram(
  program: string,
  assignments: readonly string[],
  env: NotifierOptions['env'],
): Promise<void> {
  return new Promise((resolve, reject) => {
    // NOTIFY_SOCKET alone: NODE_OPTIONS and LD_PRELOAD meant for the app are nothing to this child.
    const childEnv = { NOTIFY_SOCKET: env['NOTIFY_SOCKET'] }
    const limits = { timeout: DEADLINE_MS, killSignal: 'SIGKILL' } as const
    execFile(program, assignments, { ...limits, env: childEnv }, (error, _stdout, stderr) => {
      if (error === null) resolve()
      else
        reject(new Error(stderr.trim() || (error.killed ? `no end after ${DEADLINE_MS} ms` : error.message)))
    })
  })
}

/** The package does not give us its child: a hung one is left behind (the unit's cgroup ends it), the queue goes on. */
function withDeadline(sent: Promise<unknown>): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  const deadline = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no end after ${DEADLINE_MS} ms`)), DEADLINE_MS)
  })
  return Promise.race([sent.then(() => {}), deadline]).finally(() => clearTimeout(timer))
}
