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

/** How long a client that connected in the last moment may take to send its first request. */
const FIRST_STREAM_MS = 1_000

export function watchHttp2(ledger: Ledger): Http2 {
  const sessions = new Set<ServerHttp2Session>()
  let leaving = false

  const leave = (session: ServerHttp2Session): void => {
    if (session.closed || session.destroyed) return
    session.close()
  }

  /**
   * Accepted before the drain, handshake finished after: mostly a client that another server, or our own GOAWAY on its
   * last connection, has just sent away, with the refused calls on their way again. A GOAWAY at once would refuse them
   * a second time, and gRPC clients send a call again only once (gRFC A6, transparent retries). So its first streams
   * are served. (A GOAWAY before the server's SETTINGS would be an error besides.)
   */
  const leaveLate = (session: ServerHttp2Session): void => {
    session.once('remoteSettings', () => {
      const leaveNow = (): void => {
        clearTimeout(timer)
        leave(session)
      }
      const timer = setTimeout(leaveNow, FIRST_STREAM_MS)
      timer.unref()
      // After all that came in the same read.
      session.once('stream', () => setImmediate(leaveNow))
    })
  }

  return {
    watch(server) {
      if (!isHttp2(server)) return
      server.on('session', (session) => {
        sessions.add(session)
        session.once('close', () => sessions.delete(session))
        // Node tells of an h2c session before it tells of its connection.
        process.nextTick(() => void connectionUnder(session))
        if (leaving) leaveLate(session)
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
  }
}
