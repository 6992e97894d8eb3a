/**
 * Every connection of this worker and where its requests stand. Fed by diagnostics channels, which an app can
 * neither see nor remove (FACTS W7: below the noise at 100,000 requests a second).
 *
 * Until a drain begins connections are only counted. From then on each is settled exactly once, in the bucket that
 * drain.ts names, so that the sums agree (see `Counts` in src/protocol.ts).
 */
import diagnostics from 'node:diagnostics_channel'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { ServerHttp2Stream } from 'node:http2'
import type { Server, Socket } from 'node:net'
import { ENDINGS } from '../protocol.ts'
import type { Counts, Ending, Slowest } from '../protocol.ts'
import { now } from './clock.ts'

const CONNECTION = Symbol('usr2.connection')
/**
 * The number of a response on its connection, from 1, if another request came on the same connection before it was
 * answered: of the newest the connection knows it. A property on every response would be memory and a shape of its own.
 */
const NUMBER = Symbol('usr2.number')
/** When the request of a response was read, if another one came on the same connection before it was answered. */
const SINCE = Symbol('usr2.since')

/** What a connection speaks, as far as it is known: how it is to be ended follows from it. */
export type Kind = 'plain' | 'http2' | 'websocket' | 'upgraded'

/** What is told of a request that holds a drain, or is cut. */
export interface RequestFacts {
  readonly method?: string | undefined
  readonly url?: string | undefined
}

/** A stream of an HTTP/2 session that carries a request. */
export interface StreamInFlight {
  readonly request: RequestFacts
  readonly since: number
  readonly stream: ServerHttp2Stream
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
  /**
   * Of the newest request in flight over HTTP/1.1, which is its `req`: a second reference from an old object to a new one
   * would be one more place for V8 to note at each request (100 instructions), and for each scavenge to look at.
   */
  response: ServerResponse | undefined
  requestSince: number
  /** Over HTTP/2. */
  streams: Set<StreamInFlight> | undefined
  /** When it was accepted or, in a drain, its last response was written. */
  quietSince: number
  /** How it ends, once that is certain before its close. */
  ending: Ending | null
  /** Its place among the open connections, or -1. */
  place: number
}

type Tagged = Socket & { [CONNECTION]?: Connection; _parent?: Tagged; server?: Server }
type Numbered = ServerResponse & { [NUMBER]?: number; [SINCE]?: number; readonly _last?: boolean }

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
  /** Called with each connection that is used again. Not by a channel of its own: that costs 0.1 µs a request. */
  onSecondRequest: ((connection: Connection, request: IncomingMessage) => void) | null = null
  /** Called with each response that was written whole: its status, and when its request was read. */
  onAnswered: ((status: number, since: number, body: ServerResponse | ServerHttp2Stream) => void) | null =
    null
  /** Names the bucket of a connection that has closed. Asked in a drain only. */
  endingOf: ((connection: Connection) => Ending) | null = null
  /** Called when a connection was settled. */
  onSettled: ((connection: Connection) => void) | null = null
  /** The slowest request that was completed in the drain. */
  slowest: Slowest | null = null
  private accepted = 0
  private requests = 0
  private completed = 0
  private aborted = 0
  private requestsCut = 0
  private readonly endings = Object.fromEntries(ENDINGS.map((name) => [name, 0])) as Record<Ending, number>
  /** How it stood when the drain began. Until then nobody asks how long a connection is idle, and a look at the clock costs 70 ns. */
  private drained: { readonly completed: number } | null = null

  constructor() {
    const ledger = this
    const onSocketClose = function (this: Tagged): void {
      const connection = this[CONNECTION]
      if (connection) ledger.settle(connection, null)
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
        response: undefined,
        requestSince: 0,
        streams: undefined,
        quietSince: 0,
        ending: null,
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
      // Pipelined.
      if (connection.response) setAside(connection.response, connection)
      connection.started++
      connection.response = response
      connection.requestSince = now()
      if (connection.started === 2) ledger.onSecondRequest?.(connection, request)
    })
    diagnostics.subscribe('http.server.response.finish', (message) => {
      const { request, response, socket } = message as {
        request: IncomingMessage
        response: Numbered
        socket: Tagged
      }
      const connection = connectionOf(socket)
      if (!connection || connection.place < 0) return
      ledger.completed++
      connection.finished++
      const since = connection.response === response ? connection.requestSince : (response[SINCE] ?? 0)
      ledger.onAnswered?.(response.statusCode, since, response)
      if (ledger.drained) {
        ledger.noteTime(request, since)
        connection.quietSince = performance.now()
        // Its head had gone out before the drain, or its client asked for it: it is the last one all the same.
        if (response._last === true && connection.lastRequest === 0)
          connection.lastRequest = connection.finished
      }
      // Nothing of a finished request is kept: an idle connection must not hold the app's objects.
      if (connection.finished >= connection.started) connection.response = undefined
      connection.onFinish?.()
    })
  }

  /** A stream of an HTTP/2 session, which no diagnostics channel tells of on Node 20. */
  streamBegan(connection: Connection, stream: ServerHttp2Stream, request: RequestFacts): void {
    this.requests++
    connection.started++
    const inFlight = { request, stream, since: performance.now() }
    const streams = (connection.streams ??= new Set())
    streams.add(inFlight)
    stream.once('close', () => {
      streams.delete(inFlight)
      // Settled with its connection.
      if (connection.place < 0) return
      connection.finished++
      if (this.drained) connection.quietSince = performance.now()
      // "Aborted" is Node's word for a stream that closed before its response was whole.
      if (stream.aborted) return void this.aborted++
      this.completed++
      this.onAnswered?.(Number(stream.sentHeaders?.[':status'] ?? 0), inFlight.since, stream)
      if (this.drained) this.noteTime(request, inFlight.since)
    })
  }

  /** From here on every connection ends in a bucket. */
  beginDrain(): void {
    this.drained ??= { completed: this.completed }
  }

  /**
   * Closes the account of a connection, once.
   *
   * @param ending null: it has closed, and how is worked out
   */
  settle(connection: Connection, ending: Ending | null): void {
    if (!this.open.delete(connection)) return
    const unfinished = connection.started - connection.finished
    if (!this.drained || !this.endingOf) {
      this.aborted += unfinished
      return
    }
    connection.ending = ending ?? this.endingOf(connection)
    this.endings[connection.ending]++
    if (connection.ending === 'cut') this.requestsCut += unfinished
    else this.aborted += unfinished
    this.onSettled?.(connection)
  }

  counts(): Counts {
    const { accepted, open, requests, completed, aborted, requestsCut, endings, drained } = this
    const ended = ENDINGS.reduce((sum, name) => sum + endings[name], 0)
    const before = drained?.completed ?? completed
    return {
      accepted,
      earlier: accepted - open.size - ended,
      endings: { ...endings },
      open: open.size,
      requests,
      outcomes: { before, during: completed - before, cut: requestsCut, aborted },
      active: requests - completed - aborted - requestsCut,
    }
  }

  private noteTime({ method, url }: RequestFacts, since: number): void {
    const tookMs = performance.now() - since
    if (this.slowest && this.slowest.tookMs >= tookMs) return
    this.slowest = { method: method ?? '', path: pathOf(url), tookMs: Math.round(tookMs) }
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

/** The newest response of a connection is not that any more. */
function setAside(response: Numbered, connection: Connection): void {
  response[NUMBER] = connection.started
  response[SINCE] = connection.requestSince
}

const numberOf = (response: ServerResponse, connection: Connection): number | undefined =>
  connection.response === response ? connection.started : (response as Numbered)[NUMBER]

/** Whether more requests of the same connection were read after the one that this response answers. */
export function isNewest(response: ServerResponse, connection: Connection): boolean {
  const number = numberOf(response, connection)
  return number === undefined || number === connection.started
}

/** Whether every response before this one was written whole. */
export function isNext(response: ServerResponse, connection: Connection): boolean {
  const number = numberOf(response, connection)
  return number === undefined || number <= connection.finished + 1
}

/** Whether this request came after the one whose response ended its connection. */
export function isTooLate(response: ServerResponse, connection: Connection | undefined): boolean {
  if (!connection || connection.lastRequest === 0) return false
  return (numberOf(response, connection) ?? 0) > connection.lastRequest
}

export const isIdle = (connection: Connection): boolean => connection.started === connection.finished

/** Of a URL as it stands in a request: without its query, which may hold secrets. */
export const pathOf = (url: string | undefined): string => (url ?? '').split('?', 1)[0]?.slice(0, 1024) ?? ''
