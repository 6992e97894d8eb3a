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
  if (a.kind === 'unix' || b.kind === 'unix')
    return a.kind === 'unix' && b.kind === 'unix' && a.path === b.path
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

/** An address that an operator writes down. `host` null: every address of that port. */
export type Place =
  | {
      readonly kind: 'tcp' | 'udp'
      readonly host: string | null
      readonly port: number
      readonly ipv6Only?: true
    }
  /** Not necessarily absolute. */
  | { readonly kind: 'unix'; readonly path: string }

const PORT = /^(?:[1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5])$/
const IPV4 = /^(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)(?:\.(?!$)|$)){4}$/
const IPV6 = /^(?=.*:.*:)[0-9a-fA-F:.]+$/

/**
 * What people type, `3000`, `127.0.0.1:3000`, `[::1]:3000`, `udp:53`, `/run/shop.sock`, `./shop.sock`, `@shop` (abstract),
 * and what `usr2 status` shows: a {@link ListenerKey}.
 *
 * @returns undefined for any other text; host names too, which nobody looks up
 */
export function parsePlace(text: string): Place | undefined {
  const [, scheme, value = ''] = /^(?:(tcp|udp|unix):)?(.*)$/s.exec(text) ?? []
  const [, ipv6, only, ipv4, port = ''] =
    /^(?:\[([^\]]*)\]:(?=\d+(\/ipv6only)?$)|([^:[\]/]*):)?(\d+)(?:\/ipv6only)?$/.exec(value) ?? []
  if (PORT.test(port) && scheme !== 'unix') {
    if (ipv6 !== undefined ? !IPV6.test(ipv6) : ipv4 !== undefined && !IPV4.test(ipv4)) return undefined
    if (only === undefined && value.endsWith('/ipv6only')) return undefined
    const kind = scheme === 'udp' ? 'udp' : 'tcp'
    return {
      kind,
      host: ipv6 ?? ipv4 ?? null,
      port: Number(port),
      ...(only !== undefined && { ipv6Only: true }),
    }
  }
  const isPath = /^(?:@.|[^@]*\/)[^\u0000-\u001f\u007f]*$/.test(value) && !/[\u0000-\u001f\u007f]/.test(value)
  if (!isPath || scheme === 'tcp' || scheme === 'udp') return undefined
  // An abstract name's first byte is the NUL that the @ stands for.
  const path = value.replace(/^@/, '\0')
  return utf8Bytes(path) <= MAX_UNIX_PATH_BYTES ? { kind: 'unix', path } : undefined
}

const utf8Bytes = (text: string): number => encodeURIComponent(text).replace(/%../g, 'x').length

/**
 * Whether who may listen at `place` may listen at `asked`: there, or on less of it. `3000` is every address of that port,
 * `[::]:3000` too, since a socket of IPv6 takes IPv4 as well; `0.0.0.0:3000` is those of IPv4. A bare `listen(3000)` asks for
 * `[::]:3000`, which is more than `0.0.0.0:3000`.
 */
export function takesIn(place: Place, asked: Address): boolean {
  if (place.kind === 'unix' || asked.kind === 'unix') {
    return place.kind === 'unix' && asked.kind === 'unix' && place.path === asked.path
  }
  if (place.kind !== asked.kind || place.port !== asked.port) return false
  const { host, ipv6Only = false } = place
  const isV4 = !asked.host.includes(':') || /^::ffff:/i.test(asked.host)
  if (host === null) return true
  if (host === '0.0.0.0') return isV4
  if (ipv6Only && (isV4 || (asked.host === '::' && !asked.ipv6Only))) return false
  return host === '::' || host === asked.host
}

/** As {@link parsePlace} reads it. */
export function placeText(place: Place): string {
  if (place.kind === 'unix') return `unix:${place.path.replace(/^\0/, '@')}`
  return place.host === null ? `${place.kind}:${place.port}` : listenerKey({ ...place, host: place.host })
}
