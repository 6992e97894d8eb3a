/** What holds a worker that does not leave, and what a deadline takes from whom: facts for people. */
import { MAX_HOLDING } from '../protocol.ts'
import type { Held, HeldKind, Holding } from '../protocol.ts'
import { isEventStream } from './event-stream.ts'
import { isIdle, pathOf } from './ledger.ts'
import type { Connection, RequestFacts } from './ledger.ts'

/** All that a connection holds: one, or each stream of an HTTP/2 session. */
export function heldBy(connection: Connection, now: number): Held[] {
  const { kind, streams, request, response } = connection
  if (kind === 'websocket' || kind === 'upgraded') return [held(connection, kind, now - connection.since)]
  const whatOf = (body: Parameters<typeof isEventStream>[0]): HeldKind =>
    isEventStream(body) ? 'event-stream' : 'request'
  if (streams && streams.size > 0) {
    return [...streams].map(({ request, since, stream }) =>
      held(connection, whatOf(stream), now - since, request),
    )
  }
  if (request && !isIdle(connection))
    return [held(connection, whatOf(response), now - connection.requestSince, request)]
  return [held(connection, connection.http || kind === 'http2' ? 'idle' : 'raw', now - connection.since)]
}

/** @param connections those that the drain waits for */
export function holdingOf(connections: readonly Connection[], now: number): Holding {
  const all = connections.flatMap((connection) => heldBy(connection, now))
  const kinds: Partial<Record<HeldKind, number>> = {}
  for (const { what } of all) kinds[what] = (kinds[what] ?? 0) + 1
  const isWorking = ({ what }: Held): number => Number(what !== 'idle' && what !== 'raw')
  const oldest = all.sort((a, b) => isWorking(b) - isWorking(a) || b.ageMs - a.ageMs).slice(0, MAX_HOLDING)
  return { oldest, kinds, resources: activeResources() }
}

/** What keeps the event loop alive, by kind: `{ Timeout: 2, TCPSocketWrap: 1 }` (Node doc, process.getActiveResourcesInfo). */
export function activeResources(): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const name of process.getActiveResourcesInfo()) counts[name] = (counts[name] ?? 0) + 1
  return counts
}

function held(connection: Connection, what: HeldKind, ageMs: number, request?: RequestFacts): Held {
  const { socket } = connection
  const peer = socket.remoteAddress ? `${socket.remoteAddress}:${socket.remotePort ?? 0}` : 'unix'
  return {
    what,
    ...(request && { method: (request.method ?? '').slice(0, 64), path: pathOf(request.url) }),
    ageMs: Math.round(ageMs),
    bytesRead: socket.bytesRead,
    bytesWritten: socket.bytesWritten,
    peer,
  }
}
