import type { EventEmitter } from 'node:events'
import type { BoundAddress } from './address.ts'
import { errnoOf } from './errors.ts'
import type { NativeUdp } from './native-udp.ts'
import type { NativeHandle, Sendable } from './native.ts'
import { ACK, isEnvelope, isHello, READY, type Ack, type Envelope } from './wire.ts'

/** The receiver's side: a duplicate of the owner's socket, not polled until a `Facade` or `UdpFacade` opens it. */
export interface ReceivedSocket extends Disposable {
  readonly bound: BoundAddress | null
  readonly kind: 'tcp' | 'unix' | 'udp'
  readonly closed: boolean
  /**
   * listen(2), and accepting begins. Gives 0 or a negative errno. `Facade.open` calls it; calling it again changes the
   * backlog. Throws when no facade would take the connections. Of a UDP socket -EOPNOTSUPP, as in listen(2).
   */
  listen(backlog: number): number
  /**
   * Proves that the socket can listen: one listen(2), then this copy is closed, in the same turn, so that nothing can be
   * accepted on it. The socket stays in the state LISTEN by its owner's copy, and clients queue. Gives 0 or a negative
   * errno: with another socket bound to the same port EADDRINUSE comes only now, not at bind.
   */
  prove(backlog: number): number
  /**
   * Gives this copy up; the socket itself lives on with its owner. Do it with every socket that is not wanted: while all
   * others have closed theirs, clients connect to an unpolled copy and hang.
   */
  close(): void
}

/** Who takes the connections of a socket, and hears when it is closed. */
export interface Taker {
  onConnection(error: number, client?: object): void
  onClose(): void
}

export class Received implements ReceivedSocket {
  readonly bound: BoundAddress | null
  readonly kind: 'tcp' | 'unix' | 'udp'
  readonly #handle: Sendable
  #taker: Taker | null = null
  #closed = false

  constructor(handle: Sendable, { bound, kind }: Envelope) {
    this.#handle = handle
    this.bound = bound
    this.kind = kind
  }

  get closed(): boolean {
    return this.#closed
  }

  get fd(): number {
    return this.#closed ? -1 : this.#handle.fd
  }

  take(taker: Taker): void {
    this.#taker = taker
    this.#stream.onconnection = taker.onConnection
  }

  listen(backlog: number): number {
    if (this.#closed) return errnoOf('EBADF')
    if (this.kind === 'udp') return errnoOf('EOPNOTSUPP')
    if (!this.#taker)
      throw new Error('Cannot listen: nobody would take the connections. Give it to Facade.open().')
    return this.#stream.listen(backlog)
  }

  prove(backlog: number): number {
    if (this.#closed) return errnoOf('EBADF')
    const error = this.kind === 'udp' ? errnoOf('EOPNOTSUPP') : this.#stream.listen(backlog)
    this.close()
    return error
  }

  /** The handle of a UDP socket: its taker closes it from now on. */
  giveUdp(): NativeUdp {
    this.#closed = true
    return this.#handle as NativeUdp
  }

  get #stream(): NativeHandle {
    return this.#handle as NativeHandle
  }

  /** Connections are made in the async context of the caller from now on. */
  adoptAsyncContext(): void {
    this.#stream.asyncReset?.(this.#stream)
  }

  ref(): void {
    this.#stream.ref()
  }

  unref(): void {
    this.#stream.unref()
  }

  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#handle.close()
    this.#taker?.onClose()
  }

  [Symbol.dispose](): void {
    this.close()
  }
}

type Listener = (socket: ReceivedSocket, message: object) => void

const listeners = new Set<{ readonly listener: Listener }>()
// Taken now: an app may replace process.send later.
const sendToParent = process.send?.bind(process)
let doorOpen = false

/**
 * Calls `listener` for every socket that the parent sends with `sendTo`. The socket has been acknowledged by then. With
 * several listeners each gets the same one. The parent sends nothing before the first call. Does not keep the process
 * alive. Without an IPC channel nothing ever arrives.
 *
 * Dispose of the result to stop; sockets that arrive without any listener are closed, and refused to the sender.
 */
export function onReceive(listener: Listener): Disposable {
  const entry = { listener }
  listeners.add(entry)
  if (!doorOpen) {
    doorOpen = true
    const parent: EventEmitter = process
    parent.on('internalMessage', receive)
    toParent({ cmd: READY })
  }
  return { [Symbol.dispose]: () => void listeners.delete(entry) }
}

function receive(message: unknown, handle: Sendable | undefined): void {
  if (isHello(message)) return toParent({ cmd: READY })
  if (!isEnvelope(message)) return
  if (!handle) return acknowledge(message, 'it arrived without its socket.')
  if (listeners.size === 0) {
    handle.close()
    return acknowledge(message, 'nothing there listens for sockets any more.')
  }
  acknowledge(message)
  const socket = new Received(handle, message)
  for (const { listener } of [...listeners]) listener(socket, message.message)
}

function acknowledge({ id }: Envelope, refused?: string): void {
  toParent({ cmd: ACK, ack: id, refused } satisfies Ack)
}

function toParent(message: object): void {
  // The callback takes the error of a parent that has gone; without one it would be an 'error' event on process.
  sendToParent?.(message, undefined, undefined, () => {})
}
