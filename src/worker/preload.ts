/**
 * The guest: what usr2 puts into a worker, by `--require`, before the first line of the app. It has no
 * dependencies, does nothing without its token or outside the main thread, and leaves no trace that a grandchild
 * or a worker thread would inherit. Wiring only; each part is a file of its own.
 */
import childProcess from 'node:child_process'
import net from 'node:net'
import { isMainThread } from 'node:worker_threads'
import { onReceive } from 'native-free-fd-passing'
import { GUEST_ENV, PROTOCOL_VERSION, toWorker } from '../protocol.ts'
import type { GuestConfig } from '../protocol.ts'
import { claimListeners } from './claim.ts'
import { prepareDrain, promiseMs } from './drain.ts'
import { reportFailures } from './failure.ts'
import { softenHttp1 } from './http1.ts'
import { watchHttp2 } from './http2.ts'
import { keepPaths } from './keep-path.ts'
import { Ledger } from './ledger.ts'
import { connectLink } from './link.ts'
import { shutDownApp } from './shutdown.ts'
import type { Closer } from './shutdown.ts'
import { keepSignals } from './signals.ts'
import { watchUpgrades } from './upgraded.ts'

/** What `usr2` finds from within the app (src/index.ts), whatever its copy or version. */
export interface Guest {
  readonly generation: number
  readonly slot: number
  ready(): void
  onDrain(listener: (deadlineMs: number) => unknown): void
  onShutdown(name: string, close: () => unknown): void
}

const COUNTS_EVERY_MS = 1_000

// Also in a worker thread, which gets the options of its process: it may fork, too.
forgetPreload()
const token = process.env[GUEST_ENV]
if (token !== undefined && isMainThread && process.send) {
  delete process.env[GUEST_ENV]
  start(JSON.parse(token) as GuestConfig)
}

function start(config: GuestConfig): void {
  const link = connectLink()
  refuseCluster()
  const failures = reportFailures(link)
  const ledger = new Ledger()
  const http1 = softenHttp1()
  const http2 = watchHttp2(ledger)
  const servers = new Set<net.Server>()
  const paths = keepPaths(config.pwd)
  const closers: Closer[] = []
  const drainListeners: ((deadlineMs: number) => unknown)[] = []
  const warn = (text: string): void => link.send({ t: 'warning', text })
  let times = config.times

  const claims = claimListeners({
    link,
    known: config.known,
    paths,
    pwd: config.pwd,
    onClaimed(server) {
      servers.add(server)
      http1.guard(server)
      http2.watch(server)
      watchUpgrades(server)
      // After the app has had its turn to set `keepAliveTimeout`. One worker says it for all.
      if (config.slot === 0) setImmediate(() => warnOfPromise(server, config.times.drainTimeoutMs, warn))
    },
  })

  const drain = prepareDrain({
    ledger,
    http1,
    http2,
    servers,
    websocketDrain: config.websocketDrain,
    withdrawAll: () => claims.withdrawAll(),
    onBegin(timeoutMs) {
      link.send({ t: 'draining', timeoutMs })
      for (const listener of drainListeners) callSafely(() => listener(timeoutMs), 'onDrain', warn)
    },
    onOver(counts, cut, slowest) {
      link.send({ t: 'drained', counts, cut, slowest })
      const stay = link.hold()
      const release = (): void => {
        signals.release()
        stay()
      }
      void shutDownApp({ closers, timeoutMs: times.shutdownTimeoutMs, release, warn })
    },
    onDied: (counts, lost) => link.send({ t: 'died', counts, lost }),
  })

  const signals = keepSignals((signal) => {
    if (signal !== 'SIGTERM' || drain.phase !== 'serving') return
    // Whoever sends TERM to one worker wants it gone: the master starts its successor first.
    if (link.connected) link.send({ t: 'signalled', signal })
    else drain.begin(times)
  })

  link.onMessage((message) => {
    switch (message.t) {
      case 'drain':
        failures.stopListening()
        times = message.times
        return drain.begin(times)
      case 'cut':
        return drain.cut()
      case 'exit':
        return process.exit(1)
      default:
        return claims.handle(message)
    }
  })
  onReceive((socket, message) => {
    const order = toWorker(message)
    if (order?.t !== 'handle' || drain.phase !== 'serving') return socket.close()
    if (order.purpose === 'open') failures.stopListening()
    claims.receive(socket, order)
  })
  // The master died: nobody will replace this worker, and its listeners may be bound anew by the next master.
  link.onLost(() => drain.begin(times))

  let last = ''
  setInterval(() => {
    if (drain.phase !== 'serving') link.send({ t: 'holding', holding: drain.holding() })
    const counts = ledger.counts()
    const text = JSON.stringify(counts)
    if (text === last) return
    last = text
    link.send({ t: 'counts', counts })
  }, COUNTS_EVERY_MS).unref()

  const guest: Guest = {
    generation: config.generation,
    slot: config.slot,
    ready: () => link.send({ t: 'ready' }),
    onDrain: (listener) => void drainListeners.push(listener),
    onShutdown: (name, close) => void closers.push({ name, close }),
  }
  Object.defineProperty(globalThis, Symbol.for('usr2.guest.v1'), { value: guest })
  link.send({ t: 'hello', version: PROTOCOL_VERSION, node: process.versions.node })
}

function warnOfPromise(server: net.Server, drainTimeoutMs: number, warn: (text: string) => void): void {
  const neededMs = promiseMs(server)
  if (neededMs <= drainTimeoutMs) return
  warn(
    `this app promises its clients to keep idle connections (keepAliveTimeout) longer than the drain timeout of ` +
      `${drainTimeoutMs / 1000} s: drains will take up to ${neededMs / 1000} s`,
  )
}

function callSafely(call: () => unknown, what: string, warn: (text: string) => void): void {
  const complain = (error: unknown): void =>
    warn(`${what} of the app failed: ${error instanceof Error ? error.message : String(error)}`)
  try {
    const result = call()
    if (result instanceof Promise) result.catch(complain)
  } catch (error) {
    complain(error)
  }
}

/** `fork()` and tools pass `process.execArgv` on; the copy of the guest may be gone by then. */
function forgetPreload(): void {
  // `__filename` has its symlinks resolved (/var/run), the argument has not; but its name is ours alone.
  const at = process.execArgv.findIndex(
    (arg, i, all) => all[i - 1] === '--require' && /\/\.usr2-[^/]*\/preload\.cjs$/.test(arg),
  )
  if (at > 0) process.execArgv.splice(at - 1, 2)
}

/**
 * An app that forks its own cluster would be drained while requests are in flight in grandchildren that we do not
 * see. node:cluster forks through this function, with its own variable in the environment.
 */
function refuseCluster(): void {
  const fork = childProcess.fork as (...args: unknown[]) => childProcess.ChildProcess
  childProcess.fork = ((...args: unknown[]) => {
    const options = args.find((arg) => typeof arg === 'object' && arg !== null && !Array.isArray(arg))
    const env = (options as { env?: NodeJS.ProcessEnv } | undefined)?.env
    if (env && 'NODE_UNIQUE_ID' in env) {
      throw new Error(
        'this app forks workers of its own with node:cluster, which usr2 cannot drain: ' +
          'remove cluster from the app and let usr2 do it, with --workers N',
      )
    }
    return fork(...args)
  }) as typeof childProcess.fork
}
