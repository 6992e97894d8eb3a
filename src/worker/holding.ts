/** What holds a worker that does not leave, and what a deadline takes from whom: facts for people. */
import { MAX_HOLDING } from '../protocol.ts'
import type { Held, HeldKind, Holding } from '../protocol.ts'
import { isEventStream } from './event-stream.ts'
import { isIdle, pathOf } from './ledger.ts'
import type { Connection, RequestFacts } from './ledger.ts'

/** A request or a connection, before it is put into words: with 10,000 of them their peers alone take 10 ms. */
interface Thing {
  readonly what: HeldKind
  readonly connection: Connection
  readonly request?: RequestFacts | undefined
  readonly since: number
}

/** All that a connection holds: one, or each stream of an HTTP/2 session. */
function thingsOf(connection: Connection): Thing[] {
  const { kind, streams, response, since } = connection
  if (kind === 'websocket' || kind === 'upgraded') return [{ what: kind, connection, since }]
  const whatOf = (body: Parameters<typeof isEventStream>[0]): HeldKind =>
    isEventStream(body) ? 'event-stream' : 'request'
  if (streams && streams.size > 0) {
    return [...streams].map(({ request, since, stream }) => ({
      what: whatOf(stream),
      connection,
      request,
      since,
    }))
  }
  if (response && !isIdle(connection))
    return [{ what: whatOf(response), connection, request: response.req, since: connection.requestSince }]
  return [{ what: connection.http || kind === 'http2' ? 'idle' : 'raw', connection, since }]
}

export const heldBy = (connection: Connection, now: number): Held[] =>
  thingsOf(connection).map((thing) => held(thing, now))

const isWorking = ({ what }: Thing): boolean => what !== 'idle' && what !== 'raw'
const goesBefore = (a: Thing, b: Thing): boolean =>
  isWorking(a) === isWorking(b) ? a.since < b.since : isWorking(a)

/** @param connections those that the drain waits for */
export function holdingOf(connections: readonly Connection[], now: number): Holding {
  const kinds: Partial<Record<HeldKind, number>> = {}
  const first: Thing[] = []
  for (const thing of connections.flatMap(thingsOf)) {
    kinds[thing.what] = (kinds[thing.what] ?? 0) + 1
    const last = first.at(-1)
    if (last && first.length === MAX_HOLDING && !goesBefore(thing, last)) continue
    const at = first.findIndex((other) => goesBefore(thing, other))
    first.splice(at < 0 ? first.length : at, 0, thing)
    first.length = Math.min(first.length, MAX_HOLDING)
  }
  return { oldest: first.map((thing) => held(thing, now)), kinds, resources: activeResources() }
}

/** What keeps the event loop alive, by kind: `{ Timeout: 2, TCPSocketWrap: 1 }` (Node doc, process.getActiveResourcesInfo). */
export function activeResources(): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const name of process.getActiveResourcesInfo()) counts[name] = (counts[name] ?? 0) + 1
  return counts
}

function held({ what, connection, request, since }: Thing, now: number): Held {
  const { socket } = connection
  const peer = socket.remoteAddress ? `${socket.remoteAddress}:${socket.remotePort ?? 0}` : 'unix'
  return {
    what,
    ...(request && { method: (request.method ?? '').slice(0, 64), path: pathOf(request.url) }),
    ageMs: Math.round(now - since),
    bytesRead: socket.bytesRead,
    bytesWritten: socket.bytesWritten,
    peer,
  }
}
