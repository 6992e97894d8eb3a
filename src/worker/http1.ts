/**
 * How an HTTP/1.1 connection of a leaving server ends without losing a request.
 *
 * `Connection: close` goes on the newest response of each connection, whatever way the app writes its head. Idle
 * connections stay: Node's own keep-alive timer closes them when the time that their client was told is over
 * (`Keep-Alive: timeout=N`), and until then their next request is answered, with `Connection: close`.
 *
 * What an app closes by `server.close()` is treated alike: Node's own would first destroy every "idle"
 * connection, and idle is the parser's view, so a request that is already in the kernel's buffer is destroyed with
 * it (measured: 32 of 32 busy keep-alive connections per reload).
 */
import http from 'node:http'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type https from 'node:https'
import { createRequire } from 'node:module'
import net from 'node:net'
import type { Socket } from 'node:net'
import { connectionOf, isNewest, isNext, isTooLate } from './ledger.ts'

/** How long a connection that said `Connection: close` reads on, for the client's FIN (RFC 9112, 9.6). */
const LINGER_MS = 2_000

export const isTls = (server: net.Server): boolean => 'setSecureContext' in server

/**
 * Loaded once the app has TLS of its own: an import would load it, and start OpenSSL, at every boot of every app
 * (2 ms of processor time on Node 20, 13 ms on 26).
 */
const httpsServer = (): typeof https.Server =>
  (loadedHttps ??= createRequire('/')('node:https') as typeof https).Server
let loadedHttps: typeof https | undefined

/** `keepAliveTimeout`: none on Node 20 and 22 where it is a server of HTTP/2 with `allowHTTP1`. */
type Http1Server = net.Server & { keepAliveTimeout?: number; headersTimeout?: number }

/** Also https, and HTTP/2 with `allowHTTP1`: of the servers over TLS these alone limit the time for a head. */
export const isHttp1 = (server: net.Server | undefined): server is Http1Server =>
  server instanceof http.Server ||
  (server !== undefined && isTls(server) && typeof (server as Http1Server).headersTimeout === 'number')

type Head = (this: ServerResponse, ...args: unknown[]) => ServerResponse

export interface Http1 {
  /** All servers leave: from now on every newest response says so. */
  leaveAll(): void
  /** They stay after all: only what the app closed itself leaves. */
  stay(): void
  /** From now on the app's `close()` of this server is ours to soften. */
  guard(server: net.Server): void
  /** The drain is over: from here on Node's own `close` and `closeIdleConnections` do what they always did. */
  standAside(): void
}

export function softenHttp1(): Http1 {
  const guarded = new WeakSet<net.Server>()
  const left = new WeakSet<net.Server>()
  let hasLeft = false
  let leaving: 'none' | 'some' | 'all' | 'over' = 'none'

  const leaves = (socket: Socket | null | undefined): boolean => {
    if (leaving === 'none') return false
    if (leaving !== 'some') return true
    const server = connectionOf(socket)?.server
    return server !== undefined && left.has(server)
  }

  const prototype = http.ServerResponse.prototype as unknown as { writeHead: Head; writeHeader?: Head }
  // On Node 20 to 24 `writeHeader` is a reference of its own to the same function.
  for (const name of ['writeHead', 'writeHeader'] as const) {
    const original = prototype[name]
    if (!original) continue
    prototype[name] = function (this: ServerResponse, ...args: unknown[]): ServerResponse {
      // A response that waits behind an earlier one on its connection has no socket yet; its request has.
      if (leaving !== 'none' && !this.headersSent && leaves(this.req.socket)) {
        return original.apply(this, sayClose(this, args))
      }
      return original.apply(this, args)
    }
  }

  const softened = new WeakSet<http.Server>()
  const soften = (prototype: http.Server): void => {
    if (softened.has(prototype)) return
    softened.add(prototype)
    softenIdle(prototype)
    const close = prototype.close
    prototype.close = function (this: http.Server, callback?: (error?: Error) => void) {
      if (leaving === 'over' || !guarded.has(this)) return close.call(this, callback)
      left.add(this)
      hasLeft = true
      if (leaving === 'none') leaving = 'some'
      deferRequests(this)
      return net.Server.prototype.close.call(this, callback) as typeof this
    }
  }
  function softenIdle(prototype: http.Server): void {
    const { closeIdleConnections } = prototype
    prototype.closeIdleConnections = function (this: http.Server) {
      if (leaving !== 'over' && guarded.has(this) && (leaving === 'all' || left.has(this))) return
      closeIdleConnections.call(this)
    }
  }

  soften(http.Server.prototype)

  return {
    guard(server) {
      if (guarded.has(server)) return
      guarded.add(server)
      if (!isHttp1(server) || !isTls(server)) return
      if (server instanceof httpsServer()) soften(httpsServer().prototype)
      // HTTP/2 with `allowHTTP1`: its own `close` is for its sessions, too, and asks this for the others.
      else softenIdle(server as net.Server as http.Server)
    },
    leaveAll() {
      if (leaving !== 'over') leaving = 'all'
    },
    stay() {
      if (leaving === 'all') leaving = hasLeft ? 'some' : 'none'
    },
    standAside() {
      leaving = 'over'
    },
  }
}

const CONNECTION_HEADERS = /^(connection|keep-alive)$/i

/**
 * The arguments of `writeHead` with `Connection: close` in them. The app's own objects are never changed: they may
 * be frozen, or a constant that every response shares.
 */
function sayClose(response: ServerResponse, args: unknown[]): unknown[] {
  const connection = connectionOf(response.req.socket)
  // 101 belongs to a protocol that takes the connection over.
  if (!connection || args[0] === 101 || !isNewest(response, connection)) return args
  connection.lastRequest = connection.started
  lingerAtEnd(connection.http ?? connection.socket)
  // As in Node: headers in the third place win over the second, also without a reason (`writeHead(200, undefined, {…})`).
  const at = typeof args[1] === 'string' || (args[2] !== undefined && args[2] !== null) ? 2 : 1
  const given = args[at]
  response.removeHeader('Keep-Alive')
  if (Array.isArray(given)) {
    // One flat list of names and values, or (from Node 22 on) a list of pairs.
    const pairs = given.length > 0 && Array.isArray(given[0])
    const kept: unknown[] = pairs
      ? given.filter((pair: unknown[]) => !CONNECTION_HEADERS.test(String(pair[0])))
      : given.filter((_, i) => !CONNECTION_HEADERS.test(String(given[i - (i % 2)])))
    const said = [...kept, ...(pairs ? [['Connection', 'close']] : ['Connection', 'close'])]
    return replaced(args, at, said)
  }
  if (typeof given === 'object' && given !== null) {
    const kept = Object.entries(given).filter(([name]) => !CONNECTION_HEADERS.test(name))
    return replaced(args, at, Object.fromEntries([...kept, ['Connection', 'close']]))
  }
  response.setHeader('Connection', 'close')
  return args
}

const replaced = (args: unknown[], at: number, value: unknown): unknown[] =>
  args.map((arg, i) => (i === at ? value : arg))

/**
 * Ends a connection after its last response: FIN, then read and discard until the client's FIN. Node's own
 * `destroySoon` closes at once; with a byte unread the kernel then sends RST, and the client's kernel may throw
 * away the response that it had not read yet.
 */
export function lingerAtEnd(socket: Socket): void {
  if (Object.hasOwn(socket, 'destroySoon')) return
  socket.destroySoon = function (this: Socket): void {
    Reflect.deleteProperty(this, 'destroySoon')
    if (this.destroyed) return
    if (this.readableEnded) return this.destroySoon()
    // Whatever still arrives must not reach the app: it would be executed, and never answered.
    this.removeAllListeners('data')
    this.on('data', () => {})
    this.resume()
    const timer = setTimeout(() => this.destroy(), LINGER_MS)
    this.once('close', () => clearTimeout(timer))
    this.once('end', () => this.destroySoon())
    this.end()
  }
}

const DEFERRED = new Set<unknown>(['request', 'checkContinue', 'checkExpectation'])
const deferring = new WeakSet<net.Server>()

/**
 * Hands requests to the app only after everything that has arrived was parsed. Of eight pipelined requests that
 * came in one packet a synchronous handler would otherwise answer the first, with `Connection: close` since no
 * other is known yet, before the second is read; the other seven would be lost.
 *
 * The newest is held until the responses before it are written: its head would be made with `Connection: close` in it
 * while it waits for its turn, perhaps for seconds, and what the client sends meanwhile would be lost.
 */
export function deferRequests(server: net.Server): void {
  if (deferring.has(server)) return
  deferring.add(server)
  const emit = server.emit as (...args: unknown[]) => boolean
  server.emit = function (this: net.Server, ...args: unknown[]): boolean {
    if (!DEFERRED.has(args[0])) return emit.apply(this, args)
    const [, request, response] = args as [unknown, IncomingMessage, ServerResponse]
    // A stream of HTTP/2, on a server with `allowHTTP1`.
    if (!(response instanceof http.ServerResponse)) return emit.apply(this, args)
    const { socket } = request
    const waiting = waitingOn(socket)
    const handOver = (): void => {
      if (!waiting.delete(handOver) || (request.destroyed && response.destroyed)) return
      // Came after the response that said `Connection: close`: its client knows that it was not taken (RFC 9112,
      // 9.6) and may send it elsewhere, so it must not be executed here.
      if (isTooLate(response, connectionOf(socket))) return
      emit.apply(this, args)
    }
    const handOverInTurn = (): void => {
      const connection = connectionOf(socket)
      if (connection) connection.onFinish = null
      if (!connection || !isNewest(response, connection) || isNext(response, connection)) return handOver()
      connection.onFinish = () => setImmediate(handOverInTurn)
    }
    waiting.add(handOver)
    // A newer one has come: whichever was held as the newest is not any more.
    connectionOf(socket)?.onFinish?.()
    setImmediate(handOverInTurn)
    return true
  } as typeof server.emit
}

const requestsWaiting = new WeakMap<Socket, Set<() => void>>()

/**
 * The requests of a connection that were parsed and not handed over yet. At the client's FIN they all are: nothing
 * more can come, and Node ends its own side then, so that of a client that half-closes (`nc -N`) even a handler that
 * answers at once would come too late, which without us it does not.
 */
function waitingOn(socket: Socket): Set<() => void> {
  const known = requestsWaiting.get(socket)
  if (known) return known
  const waiting = new Set<() => void>()
  requestsWaiting.set(socket, waiting)
  socket.prependListener('end', () => waiting.forEach((handOver) => handOver()))
  return waiting
}
