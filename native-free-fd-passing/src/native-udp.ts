/**
 * The second door to Node's internals: the UDP handle of a `dgram.Socket`, which Node keeps under a symbol described as
 * `state symbol`. `dgram._createSocketHandle`, which node:cluster used, is deprecated (DEP0112) and gone in Node 26; what
 * is public either polls at once (`bind`), so that it would take datagrams that belong to others, or needs a descriptor
 * first. `child.send` carries such a handle on every supported version (`dgram.Native` in lib/internal/child_process.js).
 *
 * Everything undocumented about UDP is named here and tried once by `supportUdp()`. To import node:dgram costs nothing:
 * node:child_process has loaded it (measured on Node 20 to 26).
 */
import dgram from 'node:dgram'
import net from 'node:net'
import type { Sendable } from './native.ts'

type Lookup = (name: string, done: (error: Error | null, ip?: string, family?: number) => void) => void

/** Node's UDP handle. Errors are returned as negative errnos. */
export interface NativeUdp extends Sendable {
  /** Called by Node for each datagram, and with a negative `size` for an error. */
  onmessage?: (size: number, handle: object, data: Buffer, from: { address: string; port: number }) => void
  /** Put there by node:dgram. */
  lookup?: Lookup
  bind(ip: string, port: number, flags: number): number
  bind6(ip: string, port: number, flags: number): number
  open(fd: number): number
  /** Begins to read. */
  recvStart(): number
  recvStop(): number
  /** With `port` and `ip` in front of the last argument, unless it is connected. */
  send(request: object, list: object, length: number, ...to: unknown[]): number
  connect(ip: string, port: number): number
  disconnect(): number
  addMembership(group: string, iface?: string): number
  dropMembership(group: string, iface?: string): number
  addSourceSpecificMembership(source: string, group: string, iface?: string): number
  dropSourceSpecificMembership(source: string, group: string, iface?: string): number
  ref(): void
  unref(): void
  hasRef(): boolean
  asyncReset?(resource: object): void
  getsockname(out: object): number
  getpeername(out: object): number
}

const IPV6_ONLY = 1 // UV_UDP_IPV6ONLY
const REUSE_ADDR = 4 // UV_UDP_REUSEADDR
const REUSE_PORT = 8 // UV_UDP_REUSEPORT

export interface UdpFlags {
  readonly ipv6Only?: boolean
  readonly reuseAddr?: boolean
  readonly reusePort?: boolean
}

/** Binds, and does not read. A handle or a negative errno. */
export function createUdp(host: string, port: number, flags: UdpFlags): NativeUdp | number {
  const handle = newHandle()
  const bits =
    (flags.ipv6Only ? IPV6_ONLY : 0) | (flags.reuseAddr ? REUSE_ADDR : 0) | (flags.reusePort ? REUSE_PORT : 0)
  const error = net.isIPv6(host) ? handle.bind6(host, port, bits) : handle.bind(host, port, bits)
  if (error) handle.close()
  return error || handle
}

/** Takes `fd` over: the caller knows that it is a UDP socket. */
export function openUdp(fd: number): NativeUdp | number {
  const handle = newHandle()
  const error = handle.open(fd)
  if (error) handle.close()
  return error || handle
}

interface State extends UdpFlags {
  handle: NativeUdp | null
}

function stateOf(socket: dgram.Socket): State | undefined {
  const key = Object.getOwnPropertySymbols(socket).find(({ description }) => description === 'state symbol')
  return key && (socket as unknown as Record<symbol, State | undefined>)[key]
}

/** null once the socket is closed, and on a runtime that keeps it elsewhere. */
export function udpHandleOf(socket: dgram.Socket): NativeUdp | null {
  return stateOf(socket)?.handle ?? null
}

/** As it was given them when it was made. */
export function udpFlagsOf(socket: dgram.Socket): UdpFlags {
  const { ipv6Only = false, reuseAddr = false, reusePort = false } = stateOf(socket) ?? {}
  return { ipv6Only, reuseAddr, reusePort }
}

/**
 * Gives a socket another handle, as Node's own `replaceHandle` does for a cluster worker. What node:dgram has put onto
 * the old one (its owner, `lookup`, and on udp6 `bind6` as `bind` and so on) goes over, and the old one is closed.
 */
export function replaceUdpHandle(socket: dgram.Socket, handle: NativeUdp): void {
  const state = stateOf(socket)
  const old = state?.handle
  if (!state || !old) throw new Error('Cannot give a closed dgram.Socket another handle.')
  Object.defineProperties(handle, Object.getOwnPropertyDescriptors(old))
  if (!old.hasRef()) handle.unref()
  old.close()
  state.handle = handle
}

type UdpConstructor = new () => NativeUdp
interface Trial {
  readonly udp?: UdpConstructor
  readonly reason?: string
}
let trial: Trial | undefined

/** Whether this runtime can hold UDP sockets; when not, why. Tried once. */
export function supportUdp(): { readonly hold: boolean; readonly reason?: string } {
  trial ??= tryOut()
  const { udp, reason } = trial
  return udp ? { hold: true } : { hold: false, reason }
}

function newHandle(): NativeUdp {
  trial ??= tryOut()
  if (!trial.udp) throw new Error(`Cannot hold a UDP socket: ${trial.reason}`)
  return new trial.udp()
}

function tryOut(): Trial {
  if (process.platform === 'win32') return { reason: 'Windows has no file descriptors to pass.' }
  const socket = dgram.createSocket('udp4')
  const handle = udpHandleOf(socket)
  const methods = ['bind', 'bind6', 'open', 'recvStart', 'recvStop', 'send', 'hasRef', 'getsockname'] as const
  const absent = handle ? methods.find((name) => typeof handle[name] !== 'function') : 'handle'
  const udp = handle?.constructor as UdpConstructor | undefined
  socket.close()
  if (absent)
    return { reason: `UDP sockets of ${process.version} (${process.release.name}) have no ${absent}.` }
  return { udp: udp! }
}
