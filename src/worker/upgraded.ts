/**
 * Connections that left HTTP by an upgrade. A WebSocket is closed the way its protocol says, by a close frame with
 * status 1001, "going away" (RFC 6455, 7.4.1), and a wait for the client's own; any other one by FIN. Never by a reset.
 * They are spread over the time that is left, so that their clients do not all come back at once.
 */
import type { IncomingMessage } from 'node:http'
import type { Server, Socket } from 'node:net'
import { connectionOf } from './ledger.ts'
import type { Connection } from './ledger.ts'

/** FIN, opcode 8, unmasked, two bytes: 1001. */
const GOING_AWAY = Buffer.from([0x88, 0x02, 0x03, 0xe9])
/** An app that has not answered a request for an upgrade by then has forgotten it. */
const HANDSHAKE_MS = 5_000
/** How long a peer may take to answer a close frame or a FIN before its connection is destroyed. */
const ANSWER_MS = 2_000
/** Clients that are told all within this time come back within it. */
const SHORTEST_SPREAD_MS = 1_000

/** When a connection left HTTP, and how much it had sent until then. */
const handshakes = new WeakMap<Connection, { readonly since: number; readonly sent: number }>()

/**
 * Learns which connections of a server leave HTTP, by an upgrade or as the tunnel of a proxy (CONNECT). A listener of
 * ours is added only where the app has one: with none, Node answers a request for an upgrade as any other.
 */
export function watchUpgrades(server: Server, onUpgrade?: () => void): void {
  for (const event of ['upgrade', 'connect'] as const) watchEvent(server, event, onUpgrade)
}

function watchEvent(server: Server, event: 'upgrade' | 'connect', onUpgrade?: () => void): void {
  const note = (request: IncomingMessage, socket: Socket): void => {
    const connection = connectionOf(socket)
    // A CONNECT over HTTP/2 is a stream like any other.
    if (!connection || connection.kind === 'http2') return
    connection.kind = /websocket/i.test(request.headers.upgrade ?? '') ? 'websocket' : 'upgraded'
    connection.http = socket
    handshakes.set(connection, { since: performance.now(), sent: socket.bytesWritten })
    onUpgrade?.()
  }
  let noting = false
  const startNoting = (): void => {
    if (noting) return
    noting = true
    server.prependListener(event, note)
  }
  if (server.listenerCount(event) > 0) startNoting()
  else {
    server.on('newListener', (added: unknown) => {
      if (added === event && !noting) process.nextTick(startNoting)
    })
  }
}

export const isUpgraded = ({ kind }: Connection): boolean => kind === 'websocket' || kind === 'upgraded'

/** Whether anything was said to its client since: an app may look into its database before it agrees. */
function isAnswered(connection: Connection): boolean {
  const { http, socket } = connection
  return (http ?? socket).bytesWritten > (handshakes.get(connection)?.sent ?? 0)
}

/** A goodbye before the answer to its handshake would be a broken one to its client. */
export const mayEnd = (connection: Connection): boolean =>
  isAnswered(connection) || performance.now() - (handshakes.get(connection)?.since ?? 0) > HANDSHAKE_MS

/**
 * When each of `count` connections is to be told, in milliseconds from now, evenly over `windowMs` with jitter of half a
 * step to either side. `random` gives numbers from 0 to 1.
 */
export function spread(count: number, windowMs: number, random: () => number): number[] {
  const step = windowMs / Math.max(1, count)
  return Array.from({ length: count }, (_, i) => (i + random()) * step)
}

/** The part of a drain that is for spreading: the rest is for the answers. */
export function spreadWindowMs(timeoutMs: number): number {
  return Math.max(0, Math.min(SHORTEST_SPREAD_MS, timeoutMs / 2), timeoutMs - ANSWER_MS * 2)
}

/** Ends one upgraded connection by its protocol. */
export function endUpgraded(connection: Connection): void {
  const socket: Socket = connection.http ?? connection.socket
  if (socket.destroyed || socket.writableEnded) return
  const isWebSocket = connection.kind === 'websocket' && isAnswered(connection)
  connection.ending = isWebSocket ? 'websocket' : 'other'
  // Its peer may have gone without a word. Until something is written to it the app need not care, and may not listen.
  socket.on('error', () => {})
  // From when the peer can have heard it: a client that is slow to read has all of its messages before it. One that never
  // reads is left to the deadline.
  const giveTime = (): void => {
    const timer = setTimeout(() => {
      if (!socket.writableEnded) socket.end()
      setTimeout(() => socket.destroy(), ANSWER_MS).unref()
    }, ANSWER_MS)
    timer.unref()
    socket.once('close', () => clearTimeout(timer))
  }
  // Between two writes of the app's library, which writes whole frames. The client answers with its own close frame; then
  // the server closes first (RFC 6455, 7.1.1). Where the app's library does that by itself the timer finds it ended.
  if (isWebSocket) socket.write(GOING_AWAY, giveTime)
  else socket.end(giveTime)
  // A client that has left need not be waited for.
  socket.once('end', () => socket.end())
}
