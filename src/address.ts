/**
 * What `listen(...)` was asked for, as a value, and the key by which master and workers name it.
 *
 * Rules of this file: pure; imports nothing of ours; resolves nothing (a host name is resolved in the worker
 * before it gets here, a unix path is made absolute there too).
 */

export interface TcpAddress {
  readonly kind: 'tcp'
  /** An IP address, never a name. `::` is what a bare `listen(port)` asks for. */
  readonly host: string
  readonly port: number
  readonly ipv6Only?: boolean
  /** True for a bare `listen(port)`: `::`, or `0.0.0.0` where the machine has no IPv6. */
  readonly anyFamily?: boolean
}

export interface UnixAddress {
  readonly kind: 'unix'
  /** Absolute. A leading NUL byte names Linux's abstract namespace. */
  readonly path: string
  /** Bits of `readableAll`/`writableAll`, as Node's `listen` has them. */
  readonly readableAll?: boolean
  readonly writableAll?: boolean
  /** The app's own, by which its path gets its mode; some say `process.umask(0)` so that a proxy may connect. */
  readonly umask?: number
}

export interface UdpAddress {
  readonly kind: 'udp'
  /** An IP address, never a name. */
  readonly host: string
  readonly port: number
  readonly ipv6Only?: boolean
  /** As given to `dgram.createSocket`: a stranger may share the address, as mDNS responders do at port 5353. */
  readonly reuseAddr?: boolean
  readonly reusePort?: boolean
}

export type StreamAddress = TcpAddress | UnixAddress
export type Address = StreamAddress | UdpAddress

/** `tcp:0.0.0.0:3000`, `tcp:[::]:3000`, `tcp:[::]:3000/ipv6only`, `udp:0.0.0.0:53`, `unix:/run/a.sock`, `unix:@abstract`. */
export type ListenerKey = string

/** What `server.address()` gives: Node's shape for TCP and UDP; a unix socket has none, its path is in the key. */
export interface BoundAddress {
  readonly address: string
  readonly family: string
  readonly port: number
}

/** `sun_path` of unix(7) is 108 bytes, the last one a NUL. */
export const MAX_UNIX_PATH_BYTES = 107

export function listenerKey(address: Address): ListenerKey {
  if (address.kind === 'unix') return `unix:${address.path.replace(/^\0/, '@')}`
  const host = address.host.includes(':') ? `[${address.host}]` : address.host
  return `${address.kind}:${host}:${address.port}${address.ipv6Only ? '/ipv6only' : ''}`
}

/** The text after the scheme, as people write it: `0.0.0.0:3000`, `/run/a.sock`. */
export function describeKey(key: ListenerKey): string {
  return key.replace(/^(tcp|unix|udp):/, '')
}

/** Whether `text` has the shape of a {@link ListenerKey}, as a user would type it for `--drop`. */
export function isListenerKey(text: string): boolean {
  return (
    /^(tcp|udp):(\[[0-9a-fA-F:.%\w]+\]|[0-9.]+):\d{1,5}(\/ipv6only)?$/.test(text) || /^unix:[/@]./.test(text)
  )
}

/**
 * Whether binding both at once must fail: the same port on an address that contains the other one.
 * Linux tells of it only at `listen(2)` when neither listens yet, so it has to be known beforehand.
 */
export function overlaps(a: Address, b: Address): boolean {
  if (a.kind === 'unix' || b.kind === 'unix') return a.kind === b.kind && listenerKey(a) === listenerKey(b)
  if (a.kind !== b.kind) return false
  // Of UDP sockets that all allow it, the kernel lets any number share a port (SO_REUSEADDR, socket(7)).
  if (a.kind === 'udp' && b.kind === 'udp' && a.reuseAddr && b.reuseAddr) return false
  if (a.port !== b.port) return false
  return a.host === b.host || contains(a, b) || contains(b, a)
}

/** Whether `wide` is a wildcard that takes in the address of `other`. */
function contains(wide: TcpAddress | UdpAddress, other: TcpAddress | UdpAddress): boolean {
  // `::ffff:127.0.0.1` is an IPv4 address in IPv6's clothes, and the kernel takes it for one.
  const isV4 = !other.host.includes(':') || /^::ffff:\d+\./i.test(other.host)
  if (wide.host === '0.0.0.0') return isV4 || (other.host === '::' && !other.ipv6Only)
  if (wide.host === '::') return !isV4 || !wide.ipv6Only
  return false
}
