/**
 * How an idle HTTP/1.1 connection of a leaving worker is closed: not before the time that its client was told is over,
 * and not over a request that has arrived.
 *
 * Node's keep-alive timer destroys its socket in the timers phase of the event loop, before the poll phase, in which a
 * request that waits in the kernel's buffer would be read. Here the close waits for one poll: what had arrived when the
 * timer fired is read and answered, with `Connection: close`. What is still under way then meets a FIN instead of a
 * reset, which tells its client that nothing was done with it (RFC 9112, 9.3 to 9.6).
 */
import type { Server, Socket } from 'node:net'
import { isHttp1, isTls, lingerAtEnd } from './http1.ts'
import { connectionOf, isIdle } from './ledger.ts'
import type { Connection } from './ledger.ts'

/**
 * A connection to which nothing is owed: over HTTP/1.1, idle, and either never used or without a keep-alive
 * timeout that was told to its client. (The keep-alive timer closes the others when their promise is over.)
 */
export function isSilent(connection: Connection): boolean {
  const { server, socket, http, kind } = connection
  if (!isHttp1(server) || kind !== 'plain' || !isIdle(connection)) return false
  if (connection.started === 0) return socket.bytesRead === 0 || (http === undefined && isTls(server))
  return !server.keepAliveTimeout
}

export function closeIdle(connection: Connection): void {
  const { socket } = connection
  const { bytesRead } = socket
  setImmediate(() => {
    if (!isIdle(connection) || socket.bytesRead !== bytesRead) return
    const http = connection.http ?? socket
    if (http.destroyed || http.writableEnded) return
    connection.ending = 'idle'
    lingerAtEnd(http)
    http.destroySoon()
  })
}

/**
 * From now on the keep-alive timer of this server asks {@link closeIdle}. An app that hears 'timeout' decides for itself.
 *
 * Not by a listener: with one, Node would leave to us also the sockets of requests in flight, and whether the app's own
 * `res.setTimeout` has answered there is known to Node alone (http, Event: 'timeout').
 */
export function softenTimers(server: Server): void {
  const emit = server.emit as (...args: unknown[]) => boolean
  server.emit = function (this: Server, ...args: unknown[]): boolean {
    const isHeard = emit.apply(this, args)
    if (isHeard || args[0] !== 'timeout') return isHeard
    const connection = connectionOf(args[1] as Socket)
    if (!connection || !isIdle(connection)) return false
    closeIdle(connection)
    return true
  } as typeof server.emit
}
