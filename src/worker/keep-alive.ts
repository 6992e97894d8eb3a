/**
 * Who closes an idle connection first, the app or the proxy in front of it?
 *
 * A proxy that keeps connections to its upstream uses one whenever it has a request. Closes the app it in that
 * moment, the request is lost: for the user a 502, and the commonest one with Node, which closes after 5 s where an
 * AWS ALB or nginx keeps connections for 60 s. So the app must keep them longer than the proxy does.
 *
 * (Node keeps a connection 1 s longer than `keepAliveTimeout` says. That is for clients that heed `Keep-Alive:
 * timeout=5`; these proxies do not.)
 */
import type { Server } from 'node:net'
import { isIdle } from './ledger.ts'
import type { Ledger } from './ledger.ts'

/** `headersTimeout` ends a connection on which nothing was sent yet; it must not do so before the other would. */
const HEADERS_MARGIN_MS = 1_000

type Timeouts = Server & Partial<Record<'keepAliveTimeout' | 'headersTimeout', unknown>>

/**
 * Raises the server's `keepAliveTimeout` to `floorMs` where it is shorter, and its `headersTimeout` above that. Whatever
 * the app sets, now or later, is raised in the same way; 0, which is for ever, stays 0.
 *
 * Takes an HTTP/1.1 server, over TLS or not; any other is left alone. A connection that was used is under
 * `keepAliveTimeout` alone; one that a proxy has opened in advance is under `headersTimeout` (60 s) and would be
 * answered 408 (Node 20 to 26, measured).
 */
export function raiseKeepAlive(server: Server, floorMs: number): void {
  raise(server, 'keepAliveTimeout', floorMs)
  raise(server, 'headersTimeout', floorMs + HEADERS_MARGIN_MS)
}

function raise(server: Timeouts, name: 'keepAliveTimeout' | 'headersTimeout', floorMs: number): void {
  let own = server[name]
  if (typeof own !== 'number') return
  // An accessor, since apps set it before `listen`, after it, and once their configuration has come.
  Object.defineProperty(server, name, {
    configurable: true,
    enumerable: true,
    get: () => (typeof own === 'number' && own > 0 && own < floorMs ? floorMs : own),
    set: (value: unknown) => void (own = value),
  })
}

export interface WatchParts {
  readonly ledger: Ledger
  /** No drain has begun: in a drain it is our purpose that idle connections end. */
  isServing(): boolean
  warn(text: string): void
}

/**
 * Warns, once, when the app's keep-alive timer has closed an idle connection of a proxy that had used it more than
 * once: had the proxy the shorter time, it would have closed first.
 */
export function watchProxies({ ledger, isServing, warn }: WatchParts): void {
  ledger.onSecondRequest = (connection, request) => {
    const header = proxyHeaderOf(request.rawHeaders)
    if (header === undefined) return
    const { socket } = request
    // After Node's own listener, which has destroyed the socket by then.
    socket.on('timeout', () => {
      if (!socket.destroyed || connection.kind !== 'plain' || !isIdle(connection) || !isServing()) return
      if (ledger.onSecondRequest === null) return
      ledger.onSecondRequest = null
      warn(advice(header, connection.server))
    })
  }
}

function advice(header: string, server: Timeouts | undefined): string {
  const seconds = Number(server?.keepAliveTimeout) / 1000
  return (
    `a proxy in front of this app (its requests have "${header}") keeps idle connections longer than the app, which ` +
    `closes them after ${seconds} s (keepAliveTimeout): a request that the proxy sends in that moment fails there, as a ` +
    `502. Give --keep-alive-timeout more than the proxy's idle time: 65s for an AWS ALB or nginx (60 s), 620s for ` +
    `Google Cloud (600 s)`
  )
}

/** What only proxies add. Not `X-Real-IP` and the like: apps send those on to each other. */
const PROXY_HEADERS: ReadonlySet<string> = new Set(['x-forwarded-for', 'via', 'forwarded', 'x-amzn-trace-id'])
const LENGTHS: ReadonlySet<number> = new Set([...PROXY_HEADERS].map((name) => name.length))

/** The names are looked at as they came: `request.headers` would be made for it, 1 µs for apps that never ask. */
function proxyHeaderOf(rawHeaders: readonly string[]): string | undefined {
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const name = rawHeaders[i] ?? ''
    if (LENGTHS.has(name.length) && PROXY_HEADERS.has(name.toLowerCase())) return name.toLowerCase()
  }
  return undefined
}
