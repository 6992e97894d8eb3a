/**
 * Every connection of this worker and where its requests stand. Fed by diagnostics channels, which an app can
 * neither see nor remove (FACTS W7: below the noise at 100,000 requests a second).
 */
import diagnostics from 'node:diagnostics_channel'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Server, Socket } from 'node:net'
import type { Counts, Held } from '../protocol.ts'

const CONNECTION = Symbol('usr2.connection')
/** The number of a response on its connection, from 1. */
const NUMBER = Symbol('usr2.number')

/** What a connection speaks, as far as it is known: how it is to be ended follows from it. */
export type Kind = 'plain' | 'http2' | 'websocket' | 'upgraded'

/** What is told of a request that holds a drain, or is cut. */
export interface RequestFacts {
  readonly method?: string | undefined
  readonly url?: string | undefined
}

export interface Connection {
  readonly socket: Socket
  readonly server: Server | undefined
  readonly since: number
  kind: Kind
  /** The socket that HTTP sees: the TLS one for https, else `socket` itself; set by the first request. */
  http: Socket | undefined
  /** Requests whose head was read, and responses that were written whole. */
  started: number
  finished: number
  /** The number of the request whose response said `Connection: close`, or 0. */
  lastRequest: number
  /** Called when one more response was written whole. */
  onFinish: (() => void) | null
  /** The newest request in flight. */
  request: RequestFacts | undefined
  requestSince: number
  /** When it was accepted or, in a drain, its last response was written. */
  quietSince: number
  /** Its place among the open connections, or -1. */
  place: number
}

type Tagged = Socket & { [CONNECTION]?: Connection; _parent?: Tagged; server?: Server }
type Numbered = ServerResponse & { [NUMBER]?: number }

/**
 * The connections that are open, in no order.
 *
 * Not a Set: each time that one grows or tidies up, it leaves its table behind, and a table that has grown old stays
 * until the next full collection and keeps alive what it holds: sockets, with the requests and buffers of that moment.
 * With a connection for each request V8's scavenges took 3.3 ms with a Set, 1.5 ms without, 1.3 ms bare: 2 to 3 µs of
 * each connection.
 */
class OpenConnections {
  private readonly places: (Connection | undefined)[] = []
  size = 0

  add(connection: Connection): void {
    connection.place = this.size++
    this.places[connection.place] = connection
  }

  /** Whether it was there. */
  delete(connection: Connection): boolean {
    const { place } = connection
    if (place < 0) return false
    connection.place = -1
    const last = this.places[--this.size]
    // Emptied, not popped: an array that shrinks and grows leaves tables behind as well.
    this.places[this.size] = undefined
    if (last && last !== connection) {
      last.place = place
      this.places[place] = last
    }
    return true
  }

  list(): Connection[] {
    return this.places.slice(0, this.size) as Connection[]
  }
}

export class Ledger {
  readonly open = new OpenConnections()
  /** Called with each new connection. */
  onOpen: ((connection: Connection) => void) | null = null
  /** Called when a connection has closed. */
  onClose: ((connection: Connection) => void) | null = null
  private accepted = 0
  private requests = 0
  private ended = 0
  cut = 0
  /** A drain has begun. Until then nobody asks how long a connection is idle, and a look at the clock costs 70 ns. */
  leaving = false

  constructor() {
    const ledger = this
    const onSocketClose = function (this: Tagged): void {
      const connection = this[CONNECTION]
      if (!connection || !ledger.open.delete(connection)) return
      ledger.ended += connection.started - connection.finished
      ledger.onClose?.(connection)
    }
    diagnostics.subscribe('net.server.socket', (message) => {
      const { socket } = message as { socket: Tagged }
      const connection: Connection = {
        socket,
        server: socket.server,
        since: performance.now(),
        kind: 'plain',
        http: undefined,
        started: 0,
        finished: 0,
        lastRequest: 0,
        onFinish: null,
        request: undefined,
        requestSince: 0,
        quietSince: 0,
        place: -1,
      }
      connection.quietSince = connection.since
      socket[CONNECTION] = connection
      ledger.accepted++
      ledger.open.add(connection)
      socket.on('close', onSocketClose)
      ledger.onOpen?.(connection)
    })
    diagnostics.subscribe('http.server.request.start', (message) => {
      const { request, response, socket } = message as {
        request: IncomingMessage
        response: Numbered
        socket: Tagged
      }
      const connection = connectionOf(socket)
      if (!connection) return
      ledger.requests++
      response[NUMBER] = ++connection.started
      connection.request = request
      connection.requestSince = performance.now()
    })
    diagnostics.subscribe('http.server.response.finish', (message) => {
      const { socket } = message as { socket: Tagged }
      const connection = connectionOf(socket)
      if (!connection) return
      ledger.ended++
      // Nothing of a finished request is kept: an idle connection must not hold the app's objects.
      if (++connection.finished >= connection.started) connection.request = undefined
      if (ledger.leaving) connection.quietSince = performance.now()
      connection.onFinish?.()
    })
  }

  /** A stream of an HTTP/2 session, which no diagnostics channel tells of on Node 20. Gives what to call at its end. */
  streamBegan(connection: Connection, request: RequestFacts): () => void {
    this.requests++
    connection.started++
    connection.request = request
    connection.requestSince = performance.now()
    return () => {
      this.ended++
      if (++connection.finished >= connection.started) connection.request = undefined
      connection.quietSince = performance.now()
    }
  }

  counts(): Counts {
    const { accepted, requests, cut } = this
    return { accepted, open: this.open.size, requests, active: Math.max(0, requests - this.ended), cut }
  }
}

/** The connection of a socket, also of a TLS socket, whose parent is the one that was accepted. */
export function connectionOf(socket: Socket | null | undefined): Connection | undefined {
  const tagged = socket as Tagged | null | undefined
  if (!tagged) return undefined
  const known = tagged[CONNECTION]
  if (known) {
    known.http ??= socket as Socket
    return known
  }
  const connection = tagged._parent?.[CONNECTION]
  if (connection) {
    connection.http = tagged
    tagged[CONNECTION] = connection
  }
  return connection
}

/** Whether more requests of the same connection were read after the one that this response answers. */
export function isNewest(response: ServerResponse, connection: Connection): boolean {
  const number = (response as Numbered)[NUMBER]
  return number === undefined || number === connection.started
}

/** Whether every response before this one was written whole. */
export function isNext(response: ServerResponse, connection: Connection): boolean {
  const number = (response as Numbered)[NUMBER]
  return number === undefined || number <= connection.finished + 1
}

/** Whether this request came after the one whose response ended its connection. */
export function isTooLate(response: ServerResponse, connection: Connection | undefined): boolean {
  const number = (response as Numbered)[NUMBER] ?? 0
  return connection !== undefined && connection.lastRequest > 0 && number > connection.lastRequest
}

export const isIdle = (connection: Connection): boolean => connection.started === connection.finished

export function describe(connection: Connection, now: number): Held {
  const { socket, request } = connection
  const peer = socket.remoteAddress ? `${socket.remoteAddress}:${socket.remotePort ?? 0}` : 'unix'
  const { kind } = connection
  if (kind === 'websocket' || kind === 'upgraded')
    return { what: 'upgraded', ageMs: Math.round(now - connection.since), peer }
  if (request && !isIdle(connection)) {
    const path = (request.url ?? '').split('?', 1)[0]?.slice(0, 1024) ?? ''
    const ageMs = Math.round(now - connection.requestSince)
    return { what: 'request', method: request.method ?? '', path, ageMs, peer }
  }
  const what = connection.http ? 'idle' : 'raw'
  return { what, ageMs: Math.round(now - connection.since), peer }
}
