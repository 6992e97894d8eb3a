/**
 * How a worker leaves. Three phases, one way: serving, draining (withdrawn; what is in flight finishes), over (no
 * connection is left, or the deadline cut the rest). Then the app's own shutdown begins, see shutdown.ts.
 *
 * The guest keeps its own deadline: a worker whose master has died still leaves.
 */
import type net from 'node:net'
import { MAX_DRAIN_MS } from '../protocol.ts'
import type { Counts, Held, WorkerTimes } from '../protocol.ts'
import { deferRequests, isHttp1, isTls } from './http1.ts'
import type { Http1 } from './http1.ts'
import type { Http2 } from './http2.ts'
import { describe, isIdle } from './ledger.ts'
import type { Connection, Ledger } from './ledger.ts'
import { endUpgraded, isUpgraded, spread, spreadWindowMs } from './upgraded.ts'

/** A client that was promised nothing (no byte sent yet, or no keep-alive timeout) may use its connection so long. */
const SILENT_LINGER_MS = 5_000
/** Beyond a promise of N seconds a client's last request may be on its way. */
const PROMISE_MARGIN_MS = 2_000
const SWEEP_MS = 250
const MAX_NAMED = 100

export interface DrainParts {
  readonly ledger: Ledger
  readonly http1: Http1
  readonly http2: Http2
  /** Servers that got a listener of the master. */
  readonly servers: ReadonlySet<net.Server>
  withdrawAll(): void
  onBegin(timeoutMs: number): void
  onOver(counts: Counts, cut: readonly Held[]): void
  /** The process ends in the midst of the drain, and not by an order of ours. */
  onDied(counts: Counts, lost: readonly Held[]): void
}

export interface Drain {
  begin(times: WorkerTimes): void
  /** Waits no longer. */
  cut(): void
  readonly phase: 'serving' | 'draining' | 'over'
}

export function prepareDrain({
  ledger,
  http1,
  http2,
  servers,
  withdrawAll,
  onBegin,
  onOver,
  onDied,
}: DrainParts): Drain {
  let phase: Drain['phase'] = 'serving'
  let since = 0
  let deadline: NodeJS.Timeout | undefined
  let sweeper: NodeJS.Timeout | undefined

  /**
   * Connections to a private listener (port 0) are mostly the app's own, talking to itself, and would wait for each
   * other; they hold a drain only where the app has nothing else.
   */
  const counts = ({ server }: Connection): boolean =>
    servers.size === 0 || (server !== undefined && servers.has(server))
  const held = (): Connection[] => ledger.open.list().filter(counts)

  const over = (cut: readonly Held[]): void => {
    if (phase === 'over') return
    phase = 'over'
    clearTimeout(deadline)
    clearInterval(sweeper)
    goodbyes.forEach(clearTimeout)
    process.off('exit', onExit)
    ledger.onOpen = null
    ledger.onClose = null
    http1.standAside()
    onOver(ledger.counts(), cut)
  }

  const cut = (): void => {
    if (phase !== 'draining') return
    const left = held()
    const named = lose(left)
    for (const { socket } of left) socket.destroy()
    over(named)
  }

  /** Counts and names who loses something. Whom nothing was promised, and who asked for nothing, loses nothing. */
  const lose = (left: readonly Connection[]): Held[] => {
    const now = performance.now()
    const lost = left.filter((connection) => !isSilent(connection))
    ledger.cut += lost.length
    return lost.slice(0, MAX_NAMED).map((connection) => describe(connection, now))
  }

  /** A `process.exit` in a request, or an uncaught exception: what the app cuts off is told like a deadline's cuts. */
  const onExit = (): void => {
    const lost = lose(held())
    onDied(ledger.counts(), lost)
  }

  const goodbyes: NodeJS.Timeout[] = []
  const endAllUpgraded = (timeoutMs: number): void => {
    const upgraded = held().filter(isUpgraded)
    const times = spread(upgraded.length, spreadWindowMs(timeoutMs), Math.random)
    for (const [i, connection] of upgraded.entries()) {
      goodbyes.push(setTimeout(() => endUpgraded(connection), times[i]))
    }
  }

  const sweep = (): void => {
    const silentSince = performance.now() - SILENT_LINGER_MS
    if (since > silentSince) return
    for (const connection of held()) {
      if (isSilent(connection) && connection.quietSince <= silentSince) connection.socket.end()
    }
  }

  return {
    get phase() {
      return phase
    },
    cut,
    begin(times) {
      if (phase !== 'serving') return
      phase = 'draining'
      process.once('exit', onExit)
      since = performance.now()
      ledger.leaving = true
      http1.leaveAll()
      withdrawAll()
      const leaving = new Set([...servers, ...held().flatMap(({ server }) => server ?? [])])
      for (const server of leaving) if (isHttp1(server)) deferRequests(server)
      const promisedMs = held().length > 0 ? Math.max(0, ...[...leaving].map(promiseMs)) : 0
      const timeoutMs = Math.max(times.drainTimeoutMs, Math.min(promisedMs, MAX_DRAIN_MS))
      onBegin(timeoutMs)
      // Keeps the process alive, too: with its listeners withdrawn and no connection it would otherwise just end,
      // without the app's own shutdown.
      deadline = setTimeout(cut, timeoutMs)
      http2.leaveAll()
      endAllUpgraded(timeoutMs)
      sweeper = setInterval(sweep, SWEEP_MS)
      // Counted, not listed: with 10,000 idle connections a list at each close would take seconds.
      let left = held().length
      ledger.onOpen = (connection) => {
        if (counts(connection)) left++
      }
      ledger.onClose = (connection) => {
        if (counts(connection) && --left === 0) over([])
      }
      if (left === 0) over([])
    },
  }
}

/** How long a drain must last to keep what `Keep-Alive: timeout=N` of this server promises. */
export function promiseMs(server: net.Server): number {
  return isHttp1(server) && server.keepAliveTimeout > 0 ? server.keepAliveTimeout + PROMISE_MARGIN_MS : 0
}

/**
 * A connection to which nothing is owed: over HTTP/1.1, idle, and either never used or without a keep-alive
 * timeout that was told to its client. (Node's own timer ends the others when their promise is over.)
 */
function isSilent(connection: Connection): boolean {
  const { server, socket, http } = connection
  if (!isHttp1(server) || !isIdle(connection)) return false
  if (isUpgraded(connection)) return false
  if (connection.started === 0) return socket.bytesRead === 0 || (http === undefined && isTls(server))
  return server.keepAliveTimeout === 0
}
