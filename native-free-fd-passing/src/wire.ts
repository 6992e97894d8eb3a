import type { BoundAddress } from './address.ts'

/**
 * The messages between owner and receiver. Node emits a message whose `cmd` begins with `NODE_` as
 * `'internalMessage'`, on both ends and whether or not anyone listens for `'message'` (the door of node:cluster), so an
 * app's own `process.on('message')` never sees ours, and its `removeAllListeners('message')` cannot stop them.
 *
 * The price: Node parks an early `'message'` until somebody listens, but drops an early `'internalMessage'`, and a
 * program of ES modules may run its first line after its first message has come. So a socket is sent only to a child
 * that has said READY, which it does when it begins to listen, and again when it hears HELLO:
 *
 *     owner                              receiver
 *     HELLO           ->  (lost, or)
 *                     <-  READY
 *     SOCKET + handle ->
 *                     <-  ACK
 */
export const HELLO = 'NODE_FD_PASSING_HELLO'
export const READY = 'NODE_FD_PASSING_READY'
export const SOCKET = 'NODE_FD_PASSING'
export const ACK = 'NODE_FD_PASSING_ACK'

/** Travels with the native handle. */
export interface Envelope {
  readonly cmd: typeof SOCKET
  readonly id: number
  readonly kind: 'tcp' | 'unix' | 'udp'
  readonly bound: BoundAddress | null
  readonly message: object
}

export interface Ack {
  readonly cmd: typeof ACK
  readonly ack: number
  /** Why the receiver closed the socket instead of keeping it. */
  readonly refused?: string
}

export function isHello(message: unknown): boolean {
  return hasCmd(message, HELLO)
}

export function isReady(message: unknown): boolean {
  return hasCmd(message, READY)
}

export function isEnvelope(message: unknown): message is Envelope {
  return hasCmd(message, SOCKET)
}

/** Of a child, which may send anything: `refused` ends in the text of an error. */
export function isAck(message: unknown): message is Ack {
  if (!hasCmd(message, ACK)) return false
  const { refused } = message as { refused?: unknown }
  return refused === undefined || (typeof refused === 'string' && refused.length <= MAX_REFUSED)
}
const MAX_REFUSED = 1024

function hasCmd(message: unknown, cmd: string): boolean {
  return typeof message === 'object' && message !== null && 'cmd' in message && message.cmd === cmd
}
