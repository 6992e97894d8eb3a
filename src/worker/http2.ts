/**
 * How an HTTP/2 session of a leaving server ends: GOAWAY without an error, streams in flight finish, and the session
 * closes with its last one (RFC 9113, 6.8). New streams go to the new generation on a new connection.
 *
 * Streams that cross the GOAWAY are refused with REFUSED_STREAM, which tells a client that they were not processed
 * and may be sent again (RFC 9113, 8.7). Node has no shutdown notice: `session.goaway(0, 2 ** 31 - 1)` makes nghttp2
 * ignore new streams instead of serving them, so they would hang (FACTS W4).
 */
import type { IncomingHttpHeaders, ServerHttp2Session, ServerHttp2Stream } from 'node:http2'
import type { Server, Socket } from 'node:net'
import { connectionOf } from './ledger.ts'
import type { Connection, Ledger } from './ledger.ts'

export interface Http2 {
  /** A server that may speak HTTP/2; others are not touched. */
  watch(server: Server): void
  leaveAll(): void
  /** New sessions stay. Those that were told to leave leave. */
  stay(): void
}

type Http2Server = Server & {
  on(event: 'session', listener: (session: ServerHttp2Session) => void): unknown
  on(event: 'stream', listener: (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => void): unknown
}

/** Not by `instanceof`: loading node:http2 for it would cost every boot. */
const isHttp2 = (server: Server): server is Http2Server =>
  server.constructor.name === 'Http2Server' || server.constructor.name === 'Http2SecureServer'

/** `session.socket` is a proxy that throws once the session is gone: it is asked here and kept nowhere. */
function connectionUnder(session: ServerHttp2Session | undefined): Connection | undefined {
  if (!session || session.destroyed) return undefined
  const connection = connectionOf(session.socket as Socket)
  if (!connection) return undefined
  connection.kind = 'http2'
  connection.http = connection.socket
  return connection
}

/**
 * From here on a GOAWAY of the app's own says no higher last stream than ours has said. @grpc/grpc-js at the end of a
 * connection's max_connection_age sends one with 2^31-1; in the same turn as ours, before either is on the wire, nghttp2
 * lets it pass, and the client ends the connection with all its calls by PROTOCOL_ERROR (RFC 9113, 6.8: must not
 * increase; seen: 7 failed calls of 2,300 in 10 reloads with an age of 300 ms).
 */
function keepLastStream(session: ServerHttp2Session): void {
  const { goaway } = session
  // 0: the last stream that was begun.
  session.goaway = (code, _lastStreamId, data) => goaway.call(session, code, 0, data)
}

/** How long a client that has just connected may take to send its first request. */
const FIRST_STREAM_MS = 1_000

export function watchHttp2(ledger: Ledger): Http2 {
  const sessions = new Set<ServerHttp2Session>()
  /**
   * When they began, until their first stream. Mostly those are clients that another server, or our own GOAWAY on their
   * last connection, has just sent away, with the refused calls on their way again. A GOAWAY at once would refuse them a
   * second time, and gRPC clients send a call again only once (gRFC A6, transparent retries). So the first streams of
   * such a session are served.
   */
  const fresh = new Map<ServerHttp2Session, number>()
  let leaving = false

  const leave = (session: ServerHttp2Session): void => {
    const close = (): void => {
      clearTimeout(timer)
      if (session.closed || session.destroyed) return
      keepLastStream(session)
      session.close()
    }
    const since = fresh.get(session)
    const leftMs = since === undefined ? 0 : since + FIRST_STREAM_MS - performance.now()
    const timer = leftMs > 0 ? setTimeout(close, leftMs).unref() : undefined
    if (!timer) return close()
    // After all that came in the same read.
    session.once('stream', () => setImmediate(close))
  }

  return {
    watch(server) {
      if (!isHttp2(server)) return
      server.on('session', (session) => {
        sessions.add(session)
        fresh.set(session, performance.now())
        session.once('stream', () => fresh.delete(session))
        session.once('close', () => {
          sessions.delete(session)
          fresh.delete(session)
        })
        // Node tells of an h2c session before it tells of its connection.
        process.nextTick(() => void connectionUnder(session))
        // Accepted before the drain, handshake finished after: its first streams are on their way already. (And a GOAWAY
        // before the server's SETTINGS, or in the turn of the client's, would be an error or refuse them.)
        if (leaving) leave(session)
      })
      server.on('stream', (stream, headers) => {
        const connection = connectionUnder(stream.session as ServerHttp2Session | undefined)
        if (!connection) return
        const request = { method: String(headers[':method'] ?? ''), url: String(headers[':path'] ?? '') }
        ledger.streamBegan(connection, stream, request)
      })
    },
    leaveAll() {
      leaving = true
      for (const session of sessions) leave(session)
    },
    stay() {
      leaving = false
    },
  }
}
