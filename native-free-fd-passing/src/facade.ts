/**
 * A handle for `server.listen(handle)` (a documented form) behind which a socket comes and goes.
 *
 * Node believes that it listens: `'listening'`, `address()`, `close()`, `ref()` and connection counts are Node's own code.
 * Behind the facade a received socket is opened (accepting), withdrawn (our copy closed; connections queue in the kernel
 * for whoever opens it next) and opened again.
 *
 * The facade is a real TCP handle, closed at birth so that no socket remains, with own properties in front of the
 * methods that Node calls on it. It has to be real: with an object that only has TCP's prototype, an app's
 * `child.send('x', server)` ends the process with a segmentation fault (Node 20 to 26). Unix sockets have a TCP facade
 * too, because `listen(handle)` asks `instanceof TCP`.
 */
import { AsyncResource } from 'node:async_hooks'
import type { BoundAddress } from './address.ts'
import { errnoOf } from './errors.ts'
import { holdProcess } from './keep-alive.ts'
import { socketlessTcp, type NativeHandle } from './native.ts'
import { Received, type ReceivedSocket } from './receive.ts'

/** What Node passes when nothing else is asked for (net.js). */
const DEFAULT_BACKLOG = 511

export interface FacadeOptions {
  readonly kind: 'tcp' | 'unix'
  /**
   * What `server.address()` answers; null for a unix socket, where `server._pipeName` does, or when not yet known: then
   * `address()` is `{}` until a socket is opened.
   */
  readonly bound: BoundAddress | null
  /** The server has begun to listen. */
  readonly onListen?: (backlog: number) => void
  /** The server has been closed, or its listen failed. The socket, if one was open, is closed already. */
  readonly onClose?: () => void
  /**
   * `true`: the server is listening and ref'd but no socket keeps the process alive, so something else must; `false`: no
   * longer. By default the IPC channel does.
   */
  readonly onHold?: (held: boolean) => void
}

export class Facade {
  /** Give it to `net.Server.prototype.listen(handle, backlog)`, to one server, once. */
  readonly handle: object
  readonly #front: NativeHandle
  readonly #options: FacadeOptions
  #socket: Received | null = null
  #backlog = DEFAULT_BACKLOG
  #listening = false
  #closed = false
  #wantsRef = true
  #held = false
  /** Where the server was told to listen. */
  #context: AsyncResource | null = null

  constructor(options: FacadeOptions) {
    this.#options = options
    this.handle = this.#front = this.#makeFront()
  }

  /** A socket is open and polled. */
  get accepting(): boolean {
    return this.#listening && this.#socket !== null
  }

  /** The server that had the handle has closed it. */
  get closed(): boolean {
    return this.#closed
  }

  /** As given to `listen`. */
  get backlog(): number {
    return this.#backlog
  }

  /**
   * Begins to accept on `socket`, or, before the server listens, as soon as it does. Gives 0 or a negative errno, and
   * then `socket` has been closed: of listen(2), or -ECANCELED when the server has been closed meanwhile.
   *
   * @throws {Error} when another socket is open; {TypeError} for a socket of the other kind or not of this package.
   */
  open(socket: ReceivedSocket): number {
    if (!(socket instanceof Received))
      throw new TypeError('Facade.open() takes a socket that onReceive() of this copy gave.')
    const { kind } = this.#options
    if (socket.kind !== kind) throw new TypeError(`A facade for ${kind} cannot open a ${socket.kind} socket.`)
    if (this.#socket) throw new Error('The facade has an open socket already: withdraw() it first.')
    if (socket.closed) return errnoOf('EBADF')
    if (this.#closed) {
      socket.close()
      return errnoOf('ECANCELED')
    }
    const front = this.#front
    socket.take({
      // Once for every connection: one call, with Node's handler reading the server off the front.
      onConnection: (error, client) => front.onconnection?.(error, client),
      onClose: () => {
        this.#socket = null
        this.#updateHold()
      },
    })
    this.#socket = socket
    return this.#listening ? this.#start(socket) : 0
  }

  /**
   * Stops accepting by closing our copy of the socket; the server stays "listening". Nothing is lost: what was accepted
   * is the server's, what was not waits in the kernel. Does nothing when no socket is open.
   */
  withdraw(): void {
    this.#socket?.close()
  }

  #start(socket: Received): number {
    // In bare Node the handle is made by listen(), so that connections see the AsyncLocalStorage of its caller.
    this.#context?.runInAsyncScope(() => socket.adoptAsyncContext())
    const error = socket.listen(this.#backlog)
    if (error) socket.close()
    else if (!this.#wantsRef) socket.unref()
    this.#updateHold()
    return error
  }

  #listen(backlog: number): number {
    if (this.#closed) return errnoOf('EBADF')
    this.#backlog = backlog
    // A second server may listen on the same handle (`b.listen(a)`): in bare Node the context of the first one stays.
    this.#context ??= new AsyncResource('SocketFacade')
    const error = this.#socket ? this.#start(this.#socket) : 0
    if (error) return error
    this.#listening = true
    this.#updateHold()
    this.#options.onListen?.(backlog)
    return 0
  }

  #close(done?: () => void): void {
    if (!this.#closed) {
      this.#closed = true
      this.#socket?.close()
      this.#updateHold()
      this.#options.onClose?.()
    }
    if (done) setImmediate(done)
  }

  #wantRef(wants: boolean): void {
    this.#wantsRef = wants
    if (wants) this.#socket?.ref()
    else this.#socket?.unref()
    this.#updateHold()
  }

  #updateHold(): void {
    const hold = this.#listening && !this.#closed && this.#wantsRef && this.#socket === null
    if (hold === this.#held) return
    this.#held = hold
    if (this.#options.onHold) this.#options.onHold(hold)
    else holdProcess(hold)
  }

  #name(out: object): number {
    Object.assign(out, this.#options.bound ?? this.#socket?.bound)
    return 0
  }

  #makeFront(): NativeHandle {
    const front = socketlessTcp()
    const asyncId = front.getAsyncId()
    front.close()
    const own: { [name in keyof NativeHandle]?: unknown } = {
      listen: (backlog: number) => this.#listen(backlog),
      close: (done?: () => void) => this.#close(done),
      ref: () => this.#wantRef(true),
      unref: () => this.#wantRef(false),
      hasRef: () => this.#wantsRef,
      getAsyncId: () => asyncId,
      // Without it `address()` answers `server._pipeName`, as it does for a real pipe.
      getsockname: this.#options.kind === 'tcp' ? (out: object) => this.#name(out) : undefined,
    }
    for (const [name, value] of Object.entries(own)) {
      Object.defineProperty(front, name, { value, configurable: true, writable: true })
    }
    Object.defineProperty(front, 'fd', { get: () => this.#socket?.fd ?? -1, configurable: true })
    return front
  }
}
