/**
 * The one door to Node's internals: `net._createServerHandle`, which node:cluster itself uses (exported since 0.x).
 * It binds without listening, and Node 20 and 22 have no public way to do that: a `net.Server` polls at once and
 * takes connections that belong to others.
 *
 * Everything undocumented that the package touches is named in `NativeHandle` and tried once by `support()`.
 */
import net from 'node:net'
import { errnoInfo } from './errors.ts'

/** What `child.send` carries. */
export interface Sendable {
  readonly fd: number
  close(closed?: () => void): void
}

/** Node's TCP or Pipe handle. Errors are returned as negative errnos. */
export interface NativeHandle extends Sendable {
  /** Called by Node with the handle as `this`. */
  onconnection: ((error: number, client?: object) => void) | null
  listen(backlog: number): number
  ref(): void
  unref(): void
  hasRef(): boolean
  getAsyncId(): number
  /** A new async id, and the async context of the caller. Done without where it is missing. */
  asyncReset?(resource: object): void
  /** Pipes only: lets everyone read (1), write (2), or both. */
  fchmod?(mode: number): number
  /** TCP only. */
  getsockname?(out: object): number
  /** TCP only; 0 when it is connected. */
  getpeername?(out: object): number
}

type Create = (
  address: string | null,
  port: number | null,
  addressType: 4 | 6 | -1 | null,
  fd?: number,
  flags?: number,
) => NativeHandle | number

type TcpConstructor = new (type: number) => NativeHandle

const IPV6_ONLY = 1 // UV_TCP_IPV6ONLY
const SERVER = 1 // TCPConstants.SERVER: only names the handle for async_hooks

function creator(): Create | undefined {
  const create: unknown = (net as { _createServerHandle?: unknown })._createServerHandle
  return typeof create === 'function' ? (create as Create) : undefined
}

function create(...args: Parameters<Create>): NativeHandle | number {
  const make = creator()
  if (!make)
    throw new Error(`Cannot hold a socket: ${support().reason ?? 'net._createServerHandle has gone'}`)
  return make(...args)
}

export function createTcp(host: string, port: number, ipv6Only: boolean): NativeHandle | number {
  return create(host, port, net.isIPv6(host) ? 6 : 4, undefined, ipv6Only ? IPV6_ONLY : 0)
}

export function createPipe(path: string): NativeHandle | number {
  return create(path, -1, -1)
}

/** Takes `fd` over. Gives `-EINVAL` for what is neither a TCP nor a Unix stream socket (nor a FIFO, which it takes). */
export function openFd(fd: number): NativeHandle | number {
  return create(null, null, null, fd)
}

export function kindOf(handle: NativeHandle): 'tcp' | 'unix' {
  return typeof handle.getsockname === 'function' ? 'tcp' : 'unix'
}

/**
 * A real TCP handle without a socket: `instanceof TCP`, so that `server.listen(handle)` takes it and Node's C++ side
 * can unwrap it. (An object that only has TCP's prototype makes `child.send(message, server)` segfault.)
 */
export function socketlessTcp(): NativeHandle {
  const { tcp, reason } = tried()
  if (!tcp) throw new Error(`Cannot make a facade: ${reason}`)
  return new tcp(SERVER)
}

/** Whether this runtime can hold sockets; when not, why. Tried once. */
export function support(): { readonly hold: boolean; readonly reason?: string } {
  const { tcp, reason } = tried()
  return tcp ? { hold: true } : { hold: false, reason }
}

interface Trial {
  readonly tcp?: TcpConstructor
  readonly reason?: string
}

let trial: Trial | undefined

function tried(): Trial {
  return (trial ??= tryOut())
}

function tryOut(): Trial {
  if (process.platform === 'win32') return { reason: 'Windows has no file descriptors to pass.' }
  const make = creator()
  if (!make)
    return { reason: `net._createServerHandle is missing in ${process.version} (${process.release.name}).` }
  let failure = ''
  // Never listened on, closed at once. 127.0.0.1 alone would not do: a fresh network namespace has no loopback yet.
  for (const [host, family] of [
    ['127.0.0.1', 4],
    ['::1', 6],
    ['0.0.0.0', 4],
  ] as const) {
    const handle = make(host, 0, family)
    if (typeof handle === 'number') {
      failure = errnoInfo(handle).message
      continue
    }
    const lacking = missing(handle)
    handle.close()
    if (lacking)
      return { reason: `handles of ${process.version} (${process.release.name}) have no ${lacking}.` }
    return { tcp: handle.constructor as TcpConstructor }
  }
  return { reason: `no local address can be bound: ${failure}.` }
}

function missing(handle: NativeHandle): string | undefined {
  const methods = [
    'listen',
    'close',
    'ref',
    'unref',
    'hasRef',
    'getAsyncId',
    'getsockname',
    'getpeername',
  ] as const
  const absent = methods.find((name) => typeof handle[name] !== 'function')
  return absent ?? (handle.fd >= 0 ? undefined : 'fd')
}
