/**
 * A worker that accepts no more and stays: parked for a rollback, or not ready. Its clients are told to connect anew, or
 * those with kept connections would meet the old version for as long as they like. HTTP/1.1 by `Connection: close` on the
 * next response, HTTP/2 by GOAWAY. WebSockets and other long-lived connections stay until the worker leaves for good.
 *
 * Granted again, it serves as before; a connection that was told to close is closed all the same.
 */
import type { Server } from 'node:net'
import { deferRequests, isHttp1 } from './http1.ts'
import type { Http1 } from './http1.ts'
import type { Http2 } from './http2.ts'

export interface Rotation {
  /** A listener was withdrawn or granted: does any accept? */
  changed(accepts: boolean): void
}

export function watchRotation(http1: Http1, http2: Http2, servers: ReadonlySet<Server>): Rotation {
  let isOut = false
  return {
    changed(accepts) {
      if (isOut === !accepts) return
      isOut = !accepts
      if (!isOut) {
        http1.stay()
        http2.stay()
        return
      }
      http1.leaveAll()
      for (const server of servers) if (isHttp1(server)) deferRequests(server)
      http2.leaveAll()
    },
  }
}
