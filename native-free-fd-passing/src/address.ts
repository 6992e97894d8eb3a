/** Where to bind. Hosts are IP addresses: names are for the caller to resolve. */
export type Address =
  | {
      readonly kind: 'tcp'
      /** An IPv4 or IPv6 address, never a name. */
      readonly host: string
      /** 0 lets the kernel choose; `bound.port` tells what it chose. */
      readonly port: number
      /** With an IPv6 host: take no IPv4 connections (IPV6_V6ONLY, ipv6(7)). */
      readonly ipv6Only?: boolean
      /** With host `::`: fall back to `0.0.0.0` on a machine without IPv6, as Node's `listen(port)` does. */
      readonly anyFamily?: boolean
    }
  | {
      readonly kind: 'unix'
      /** At most 107 bytes on Linux (unix(7)). Give it absolute: it is unlinked by this name at close. */
      readonly path: string
      /** Everyone may read (`fchmod` bits as in Node's `server.listen({ readableAll })`). */
      readonly readableAll?: boolean
      readonly writableAll?: boolean
    }
  | {
      readonly kind: 'udp'
      /** An IPv4 or IPv6 address, never a name. */
      readonly host: string
      readonly port: number
      /** With an IPv6 host: take no IPv4 datagrams. */
      readonly ipv6Only?: boolean
      /** As in `dgram.createSocket`: others may bind the address as well (SO_REUSEADDR, SO_REUSEPORT of socket(7)). */
      readonly reuseAddr?: boolean
      readonly reusePort?: boolean
    }

/** What getsockname(2) says, in the shape of Node's `server.address()`. */
export interface BoundAddress {
  readonly address: string
  readonly family: string
  readonly port: number
}

/** For error texts: `127.0.0.1:3000`, `[::1]:3000`, `/run/app.sock`. */
export function describeAddress(address: Address): string {
  if (address.kind === 'unix') return address.path.replace(/^\0/, '@') || 'an unnamed unix socket'
  return address.host.includes(':') ? `[${address.host}]:${address.port}` : `${address.host}:${address.port}`
}
