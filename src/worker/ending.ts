/** Into which bucket of the ledger a connection goes that has closed during a drain (`ENDINGS` in src/protocol.ts). */
import type { Ending } from '../protocol.ts'
import { isHttp1 } from './http1.ts'
import { isIdle } from './ledger.ts'
import type { Connection } from './ledger.ts'

/** What the kernel says when the peer is gone: RST, or no answer at all. */
const PEER_GONE = new Set(['ECONNRESET', 'EPIPE', 'ECONNABORTED', 'ETIMEDOUT'])

const endedFirst = new WeakSet<Connection>()

/**
 * Of a connection without HTTP, both sides have ended when it closes: only its end tells who was first.
 * Nothing is heard for HTTP, where a server that closes an idle connection does not read its client's FIN.
 */
export function watchFin(connection: Connection): void {
  const socket = connection.http ?? connection.socket
  // Just before the drain: its close is still to come.
  if (socket.readableEnded) return void endedFirst.add(connection)
  // By prepending: with `allowHalfOpen: false` Node's own listener ends our side.
  socket.prependOnceListener('end', () => {
    if (!socket.writableEnded) endedFirst.add(connection)
  })
}

export function endingOf(connection: Connection): Ending {
  const { kind, socket, ending, lastRequest, finished } = connection
  if (ending !== null) return ending
  if (lastRequest > 0 && finished >= lastRequest) return 'response'
  const http = connection.http ?? socket
  if (isReset(socket.errored) || isReset(http.errored)) return 'reset'
  if (kind === 'http2') return 'goaway'
  if (!isHttp1(connection.server) || kind !== 'plain') return endedFirst.has(connection) ? 'client' : 'other'
  if (http.readableEnded) return 'client'
  return isIdle(connection) ? 'idle' : 'other'
}

const isReset = (error: Error | null | undefined): boolean =>
  PEER_GONE.has((error as NodeJS.ErrnoException | null | undefined)?.code ?? '')
