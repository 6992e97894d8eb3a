/**
 * A connection into one of this worker's own HTTP servers that exists in memory only: by it a worker is probed and warmed
 * up before it accepts anything, apart from its siblings, and also while its listeners are withdrawn. Node's HTTP server
 * takes any duplex stream for a connection (Node doc, http, Event: 'connection'), so there is no socket, no port and no
 * file descriptor.
 *
 * The ledger does not know it (that is fed by net.Server), so it is in no count, and no drain waits for it. Whoever opens
 * one destroys it.
 */
import http from 'node:http'
import type { Server } from 'node:net'
import { Duplex } from 'node:stream'
import { isTls } from './http1.ts'

/** A stream with what apps and frameworks ask of a `net.Socket`: behind it is a client on this host. */
class PrivateSocket extends Duplex {
  readonly connecting = false
  readonly pending = false
  readonly remoteAddress = '127.0.0.1'
  readonly remoteFamily = 'IPv4'
  readonly remotePort = 0
  readonly localAddress = '127.0.0.1'
  readonly localFamily = 'IPv4'
  readonly localPort: number
  bytesRead = 0
  bytesWritten = 0
  timeout = 0
  peer: PrivateSocket | null = null
  #timer: NodeJS.Timeout | undefined
  /** Tells the other end that its last chunk was taken. */
  #taken: (() => void) | null = null

  constructor(localPort: number) {
    // As Node's HTTP server makes its own: a client may end its side and still read the answer.
    super({ allowHalfOpen: true })
    this.localPort = localPort
  }

  override _read(): void {
    const taken = this.#taken
    this.#taken = null
    taken?.()
  }

  // In a turn of its own, as from a kernel: else a request would be handled inside `write`, its answer inside `res.end()`.
  override _write(chunk: Buffer, _: BufferEncoding, done: () => void): void {
    if (chunk.length === 0) return done()
    this.bytesWritten += chunk.length
    this.#timer?.refresh()
    setImmediate(() => this.peer?.receive(chunk, done))
  }

  override _final(done: () => void): void {
    setImmediate(() => {
      this.peer?.receiveEnd()
      done()
    })
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    clearTimeout(this.#timer)
    this._read()
    done(error)
  }

  receive(chunk: Buffer, taken: () => void): void {
    if (this.destroyed) return taken()
    this.bytesRead += chunk.length
    this.#timer?.refresh()
    this.#taken = taken
    this.push(chunk)
  }

  receiveEnd(): void {
    if (!this.destroyed && !this.readableEnded) this.push(null)
  }

  /** `net.Socket.setTimeout`: 'timeout' when nothing was read or written for so long. */
  setTimeout(timeoutMs: number, onTimeout?: () => void): this {
    clearTimeout(this.#timer)
    this.timeout = timeoutMs
    if (onTimeout && timeoutMs > 0) this.once('timeout', onTimeout)
    else if (onTimeout) this.off('timeout', onTimeout)
    this.#timer =
      timeoutMs > 0 && !this.destroyed ? setTimeout(() => this.emit('timeout'), timeoutMs).unref() : undefined
    return this
  }

  destroySoon(): void {
    if (this.writable) this.end()
    if (this.writableFinished) this.destroy()
    else this.once('finish', () => this.destroy())
  }

  resetAndDestroy(): this {
    return this.destroy()
  }

  address(): { address: string; family: string; port: number } {
    return { address: this.localAddress, family: this.localFamily, port: this.localPort }
  }

  get readyState(): string {
    if (this.readable && this.writable) return 'open'
    if (this.readable) return 'readOnly'
    return this.writable ? 'writeOnly' : 'closed'
  }

  setNoDelay(): this {
    return this
  }

  setKeepAlive(): this {
    return this
  }

  ref(): this {
    return this
  }

  unref(): this {
    return this
  }
}

/**
 * Opens a connection into `server`, which must have emitted 'listening': Node sets up its tracking of connections then.
 *
 * @returns the client's end; to destroy it ends the server's end, too
 * @throws what a 'connection' listener of the app throws
 */
export function openPrivate(server: http.Server): Duplex {
  const client = new PrivateSocket(0)
  const accepted = new PrivateSocket(portOf(server) ?? 0)
  client.peer = accepted
  accepted.peer = client
  client.once('close', () => accepted.destroy())
  // After all that it had written.
  accepted.once('close', () => setImmediate(() => client.receiveEnd()))
  try {
    server.emit('connection', accepted)
  } catch (error) {
    client.destroy()
    throw error
  }
  return client
}

/** Those of a worker's servers that the app has not closed. A withdrawn one still listens, as far as the app can see. */
export const listeningOf = (servers: Iterable<Server>): Server[] =>
  [...servers].filter(({ listening }) => listening)

/** null: a unix socket. */
export function portOf(server: Server): number | null {
  const address = server.address()
  return typeof address === 'object' ? (address?.port ?? null) : null
}

export const portsOf = (servers: readonly Server[]): string =>
  servers.map((server) => portOf(server) ?? String(server.address())).join(', ')

/** Servers of node:http2 by name: loading it for `instanceof` would cost every boot. */
const speaksHttp2 = (server: Server): boolean => /^Http2(Secure)?Server$/.test(server.constructor.name)

/**
 * The server for requests of ours: the one on that port or, without, the first that the app listened with which speaks HTTP
 * of any version. Not the first that can be asked: behind an app's HTTPS server its plain one mostly redirects, and such an
 * answer would say nothing of the app.
 *
 * @returns or why there is none
 */
export function httpServerOf(servers: Iterable<Server>, port: number | null): http.Server | string {
  const listening = listeningOf(servers)
  const server =
    port === null
      ? listening.find((one) => one instanceof http.Server || isTls(one) || speaksHttp2(one))
      : listening.find((one) => portOf(one) === port)
  if (server instanceof http.Server) return server
  if (!server) {
    const where = port === null ? '' : ` on port ${port}`
    const others = listening.length > 0 ? ` (it listens on ${portsOf(listening)})` : ''
    return `no HTTP server listens${where} in this worker${others}`
  }
  const what = isTls(server)
    ? 'speaks TLS'
    : speaksHttp2(server)
      ? 'speaks HTTP/2 without TLS'
      : 'is no HTTP server'
  const name = portOf(server) === null ? portsOf([server]) : `port ${portOf(server)}`
  return `the server on ${name} ${what}: use a tcp or message probe`
}
