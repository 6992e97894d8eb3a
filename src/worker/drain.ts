/**
 * How a worker leaves. Three phases, one way: serving, draining (withdrawn; what is in flight finishes), over (no
 * connection is left, or the deadline cut the rest). Then the app's own shutdown begins, see shutdown.ts.
 *
 * The guest keeps its own deadline: a worker whose master has died still leaves.
 */
import type net from 'node:net'
import { MAX_DRAIN_MS } from '../protocol.ts'
import type { Counts, Held, Holding, Slowest, WebsocketDrain, WorkerTimes } from '../protocol.ts'
import { endingOf, watchFin } from './ending.ts'
import { isEventStream, watchEvents } from './event-stream.ts'
import { heldBy, holdingOf } from './holding.ts'
import { deferRequests, isHttp1 } from './http1.ts'
import type { Http1 } from './http1.ts'
import type { Http2 } from './http2.ts'
import { closeIdle, isSilent, softenTimers } from './idle.ts'
import type { Connection, Ledger } from './ledger.ts'
import { endUpgraded, isUpgraded, spread, spreadWindowMs } from './upgraded.ts'

/** A client that was promised nothing (no byte sent yet, or no keep-alive timeout) may use its connection so long. */
const SILENT_LINGER_MS = 5_000
/** Beyond a promise of N seconds a client's last request may be on its way. */
const PROMISE_MARGIN_MS = 2_000
const SWEEP_MS = 250
/**
 * The siblings of this worker withdraw at the same time, but not in the same moment. A client that got GOAWAY here and
 * connected to one that still accepted would get GOAWAY there, too, with its request refused for the second time (seen:
 * 2 of some 200,000 requests in 8 reloads of 2 workers).
 */
const GOAWAY_AFTER_MS = 100
const MAX_NAMED = 100

export interface DrainParts {
  readonly ledger: Ledger
  readonly http1: Http1
  readonly http2: Http2
  /** Servers that got a listener of the master. */
  readonly servers: ReadonlySet<net.Server>
  readonly websocketDrain: WebsocketDrain
  withdrawAll(): void
  onBegin(timeoutMs: number): void
  onOver(counts: Counts, cut: readonly Held[], slowest: Slowest | null): void
  /** The process ends in the midst of the drain, and not by an order of ours. */
  onDied(counts: Counts, lost: readonly Held[]): void
}

export interface Drain {
  begin(times: WorkerTimes): void
  /** Waits no longer. */
  cut(): void
  /** What it waits for. */
  holding(): Holding
  readonly phase: 'serving' | 'draining' | 'over'
}

export function prepareDrain({
  ledger,
  http1,
  http2,
  servers,
  websocketDrain,
  withdrawAll,
  onBegin,
  onOver,
  onDied,
}: DrainParts): Drain {
  let phase: Drain['phase'] = 'serving'
  /** The servers of the moment in which the drain began: an app may listen anew. */
  let leaving: ReadonlySet<net.Server> = servers
  let since = 0
  let endsAt = 0
  let deadline: NodeJS.Timeout | undefined
  let sweeper: NodeJS.Timeout | undefined
  const goodbyes: NodeJS.Timeout[] = []
  /** Connections and bodies that were looked at: what they are does not change. */
  const examined = new WeakSet<object>()

  /**
   * Connections to a private listener (port 0) are mostly the app's own, talking to itself, and would wait for each
   * other; they hold a drain only where the app has nothing else.
   */
  const counts = (connection: Connection): boolean =>
    (leaving.size === 0 || (connection.server !== undefined && leaving.has(connection.server))) &&
    !(websocketDrain === 'ignore' && isUpgraded(connection))
  const held = (): Connection[] => ledger.open.list().filter(counts)
  const over = (cut: readonly Held[]): void => {
    if (phase === 'over') return
    phase = 'over'
    clearTimeout(deadline)
    clearInterval(sweeper)
    goodbyes.forEach(clearTimeout)
    process.off('exit', onExit)
    ledger.onOpen = null
    ledger.onSettled = null
    // Those that the drain did not wait for.
    for (const connection of ledger.open.list()) if (isUpgraded(connection)) sayGoodbye(connection)
    http1.standAside()
    onOver(ledger.counts(), cut, ledger.slowest)
  }

  const sayGoodbye = (connection: Connection): void => {
    endUpgraded(connection)
    ledger.settle(connection, connection.ending)
  }

  const cut = (): void => {
    if (phase !== 'draining') return
    ledger.onSettled = null
    const left = held()
    const named = nameLosses(left)
    for (const connection of left) {
      // Whom nothing was promised, and who asked for nothing, loses nothing.
      ledger.settle(connection, isSilent(connection) ? 'idle' : 'cut')
      if (isUpgraded(connection)) endUpgraded(connection)
      else connection.socket.destroy()
    }
    over(named)
  }

  const nameLosses = (left: readonly Connection[]): Held[] => {
    const now = performance.now()
    const lost = left.filter((connection) => !isSilent(connection))
    return lost.flatMap((connection) => heldBy(connection, now)).slice(0, MAX_NAMED)
  }

  /** A `process.exit` in a request, or an uncaught exception: what the app cuts off is told like a deadline's cuts. */
  const onExit = (): void => onDied(ledger.counts(), nameLosses(held()))

  /** Ends what does not end by itself, spread over the time that is left so that its clients do not come back at once. */
  const sayGoodbyes = (ends: readonly (() => void)[]): void => {
    const times = spread(ends.length, spreadWindowMs(endsAt - performance.now()), Math.random)
    for (const [i, end] of ends.entries()) goodbyes.push(setTimeout(end, times[i]))
  }

  const isNew = (what: object): boolean => {
    if (examined.has(what)) return false
    examined.add(what)
    return true
  }

  /** What would otherwise last until the deadline. Looked for again and again: it may begin in the drain, on a connection that was kept. */
  const endLongLived = (connections: readonly Connection[]): void => {
    const ends: (() => void)[] = []
    for (const connection of connections) {
      if (isUpgraded(connection)) {
        if (websocketDrain === 'close' && isNew(connection)) ends.push(() => endUpgraded(connection))
        continue
      }
      const { response, streams } = connection
      if (!response && !streams) continue
      for (const body of [response, ...[...(streams ?? [])].map(({ stream }) => stream)]) {
        if (!body?.headersSent || !isNew(body) || !isEventStream(body)) continue
        const events = watchEvents(body)
        ends.push(() => events.finish())
      }
    }
    if (ends.length > 0) sayGoodbyes(ends)
  }

  const sweep = (): void => {
    const connections = held()
    // Some that the drain waited for have become ones that it does not: upgraded meanwhile.
    if (connections.length === 0) return over([])
    endLongLived(connections)
    const silentSince = performance.now() - SILENT_LINGER_MS
    if (since > silentSince) return
    for (const connection of connections) {
      if (isSilent(connection) && connection.quietSince <= silentSince) closeIdle(connection)
    }
  }

  return {
    get phase() {
      return phase
    },
    cut,
    holding: () => holdingOf(phase === 'draining' ? held() : [], performance.now()),
    begin(times) {
      if (phase !== 'serving') return
      phase = 'draining'
      process.once('exit', onExit)
      since = performance.now()
      ledger.endingOf = endingOf
      ledger.beginDrain()
      http1.leaveAll()
      withdrawAll()
      leaving = new Set(servers)
      for (const connection of held()) if (!isHttp1(connection.server)) watchFin(connection)
      const answering = new Set([...leaving, ...held().flatMap(({ server }) => server ?? [])])
      for (const server of answering) {
        if (!isHttp1(server)) continue
        deferRequests(server)
        softenTimers(server)
      }
      const promisedMs = held().length > 0 ? Math.max(0, ...[...answering].map(promiseMs)) : 0
      const timeoutMs = Math.max(times.drainTimeoutMs, Math.min(promisedMs, MAX_DRAIN_MS))
      endsAt = since + timeoutMs
      onBegin(timeoutMs)
      // Keeps the process alive, too: with its listeners withdrawn and no connection it would otherwise just end,
      // without the app's own shutdown.
      deadline = setTimeout(cut, timeoutMs)
      goodbyes.push(setTimeout(() => http2.leaveAll(), GOAWAY_AFTER_MS))
      endLongLived(held())
      sweeper = setInterval(sweep, SWEEP_MS)
      // Counted, not listed: with 10,000 idle connections a list at each close would take seconds.
      let left = held().length
      ledger.onOpen = (connection) => {
        if (!isHttp1(connection.server)) watchFin(connection)
        if (counts(connection)) left++
      }
      ledger.onSettled = (connection) => {
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
