/**
 * A `dgram.Socket` whose socket comes from the parent: it is bound, and sends, as if it had bound the address itself, and
 * reads only when it is told to.
 *
 * Unlike a stream's, this facade is the received handle itself, with own properties in front of some of its methods. A
 * copy that nobody reads harms nobody: the kernel has one queue for all copies, and whoever reads takes from it. So the
 * copy stays when reading stops, and answers still leave from the address that was asked.
 *
 * All processes that have a copy share one open socket. What would narrow or break it for the others is kept to this
 * process: `connect()`, and joining or leaving a multicast group that another one needs.
 */
import { AsyncResource } from 'node:async_hooks'
import type dgram from 'node:dgram'
import net from 'node:net'
import { errnoOf } from './errors.ts'
import { holdProcess } from './keep-alive.ts'
import { replaceUdpHandle, udpFlagsOf, udpHandleOf } from './native-udp.ts'
import type { NativeUdp, UdpFlags } from './native-udp.ts'
import { Received, type ReceivedSocket } from './receive.ts'

export interface UdpFacadeOptions {
  /** The socket has been closed, and our copy with it. */
  readonly onClose?: () => void
  /** As with `Facade`: something else must keep the process alive, or no longer. By default the IPC channel does. */
  readonly onHold?: (held: boolean) => void
}

export class UdpFacade {
  readonly #handle: NativeUdp
  readonly #options: UdpFacadeOptions
  readonly #recvStart: () => number
  readonly #recvStop: () => number
  readonly #closeHandle: (done?: () => void) => void
  #wantsToRead = false
  #opened = false
  #closed = false
  #held = false
  #lastSentMs = -Infinity
  #watchesSends = false
  readonly #groups = new Set<string>()
  #peer: { readonly ip: string; readonly port: number } | null = null

  /** @throws {TypeError} for a socket of another kind, not of this package, or closed. */
  constructor(socket: ReceivedSocket, options: UdpFacadeOptions = {}) {
    if (!(socket instanceof Received) || socket.kind !== 'udp' || socket.closed)
      throw new TypeError('A UdpFacade takes an open UDP socket that onReceive() of this copy gave.')
    this.#options = options
    this.#handle = socket.giveUdp()
    this.#recvStart = this.#handle.recvStart.bind(this.#handle)
    this.#recvStop = this.#handle.recvStop.bind(this.#handle)
    this.#closeHandle = this.#handle.close.bind(this.#handle)
  }

  /** Datagrams are read. */
  get reading(): boolean {
    return this.#opened && this.#wantsToRead
  }

  get closed(): boolean {
    return this.#closed
  }

  /** When it last sent something since the first `withdraw()`, by `performance.now()`; -Infinity if nothing. */
  get lastSentMs(): number {
    return this.#lastSentMs
  }

  /** Makes an unbound `socket` this one: Node's own `bind` runs, with `'listening'`, in place of a bind(2). */
  attach(socket: dgram.Socket): void {
    const { address = '', port = 0 } = this.#name()
    bindFrom(
      socket,
      () => socket.bind(port, address),
      (_, done) => done(this),
    )
  }

  /** Begins to read, or does as soon as the socket is attached. Gives 0 or a negative errno. */
  open(): number {
    if (this.#closed) return errnoOf('ECANCELED')
    if (this.#opened) return 0
    const error = this.#wantsToRead ? this.#recvStart() : 0
    this.#opened = error === 0
    this.#updateHold()
    return error
  }

  /** Stops reading; sending goes on. Nothing is lost: what was not read stays in the queue that all copies share. */
  withdraw(): void {
    if (!this.#opened || this.#closed) return
    this.#opened = false
    this.#recvStop()
    this.#updateHold()
    this.#watchSends()
  }

  /** Only from the first withdrawal on: until then nobody asks, and a send should cost what it costs in bare Node. */
  #watchSends(): void {
    if (this.#watchesSends) return
    this.#watchesSends = true
    const handle = this.#handle
    const { send } = handle
    handle.send = (...args) => {
      this.#lastSentMs = performance.now()
      return send.apply(handle, args)
    }
  }

  /** Gives up our copy. A `dgram.Socket` that it was attached to is to be closed itself instead. Idempotent. */
  close(): void {
    this.#close()
  }

  #close(done?: () => void): void {
    if (this.#closed) return
    this.#closed = true
    this.#updateHold()
    this.#closeHandle(done)
    this.#options.onClose?.()
  }

  /** @internal The handle of `socket` from here on. `context` is where the socket was made. */
  replaceHandleOf(socket: dgram.Socket, context: AsyncResource): void {
    replaceUdpHandle(socket, this.#handle)
    context.runInAsyncScope(() => this.#handle.asyncReset?.(this.#handle))
    this.#shadow()
  }

  #shadow(): void {
    const handle = this.#handle
    const { ref, unref } = handle
    handle.recvStart = () => {
      this.#wantsToRead = true
      const error = this.#opened ? this.#recvStart() : 0
      this.#updateHold()
      return error
    }
    handle.recvStop = () => {
      this.#wantsToRead = false
      this.#updateHold()
      return this.#recvStop()
    }
    handle.close = (done) => this.#close(done)
    handle.ref = () => {
      ref.call(handle)
      this.#updateHold()
    }
    handle.unref = () => {
      unref.call(handle)
      this.#updateHold()
    }
    this.#shareGroups()
    this.#keepPeerToOurselves()
  }

  /** Membership belongs to the shared socket: one joins for all, and IP_ADD_MEMBERSHIP refuses the second (ip(7)). */
  #shareGroups(): void {
    const handle = this.#handle
    const { addMembership, dropMembership } = handle
    const nameOf = (group: string, iface = ''): string => `${group} ${iface}`
    handle.addMembership = (group, iface) => {
      const error = addMembership.call(handle, group, iface)
      const name = nameOf(group, iface)
      // Of this process it is an error, as always; of another one it is what was wanted.
      if (error && (error !== errnoOf('EADDRINUSE') || this.#groups.has(name))) return error
      this.#groups.add(name)
      return 0
    }
    handle.dropMembership = (group, iface) => {
      if (!this.#groups.delete(nameOf(group, iface))) return errnoOf('EADDRNOTAVAIL')
      // One that does not read, or no longer, speaks for itself, not for those who do.
      return this.#opened ? dropMembership.call(handle, group, iface) : 0
    }

    const join = handle.addSourceSpecificMembership.bind(handle)
    const leave = handle.dropSourceSpecificMembership.bind(handle)
    handle.addSourceSpecificMembership = (...what) => {
      const error = join(...what)
      const name = what.join(' ')
      // Here "already joined" is EADDRNOTAVAIL, and nothing else is ("no such interface" is ENODEV).
      if (error && (error !== errnoOf('EADDRNOTAVAIL') || this.#groups.has(name))) return error
      this.#groups.add(name)
      return 0
    }
    handle.dropSourceSpecificMembership = (...what) => {
      if (!this.#groups.delete(what.join(' '))) return errnoOf('EINVAL')
      return this.#opened ? leave(...what) : 0
    }
  }

  /**
   * connect(2) would turn the shared socket to one peer, for every process that has it and every later one. So the peer
   * is remembered here: datagrams go to it, and those of others are dropped, as the kernel would. (What a connected
   * socket hears of ICMP errors is not told.)
   */
  #keepPeerToOurselves(): void {
    const handle = this.#handle
    const { send } = handle
    handle.connect = (ip, port) => {
      const family = net.isIPv6(ip) ? 'ipv6' : 'ipv4'
      this.#peer = { ip: new net.SocketAddress({ address: ip, family }).address, port }
      const deliver = handle.onmessage
      handle.onmessage = (size, ...rest) => {
        const [, , from] = rest
        const { ip, port } = this.#peer ?? {}
        if (size >= 0 && this.#peer && (from.address !== ip || from.port !== port)) return
        deliver?.call(handle, size, ...rest)
      }
      handle.send = (request, list, length, ...to) => {
        const { ip, port } = this.#peer ?? {}
        const isToPeer = this.#peer !== null && to.length === 1
        return isToPeer
          ? send.call(handle, request, list, length, port, ip, ...to)
          : send.call(handle, request, list, length, ...to)
      }
      return 0
    }
    handle.disconnect = () => {
      if (!this.#peer) return errnoOf('ENOTCONN')
      this.#peer = null
      return 0
    }
    handle.getpeername = (out) => {
      if (!this.#peer) return errnoOf('ENOTCONN')
      const { ip, port } = this.#peer
      Object.assign(out, { address: ip, port, family: net.isIPv6(ip) ? 'IPv6' : 'IPv4' })
      return 0
    }
  }

  #updateHold(): void {
    const hold = this.#wantsToRead && !this.#opened && !this.#closed && this.#handle.hasRef()
    if (hold === this.#held) return
    this.#held = hold
    if (this.#options.onHold) this.#options.onHold(hold)
    else holdProcess(hold)
  }

  #name(): { address?: string; port?: number } {
    const out = {}
    this.#handle.getsockname(out)
    return out
  }
}

/**
 * Runs `bind`, which calls Node's own `bind` on `socket`, up to the point where Node would bind(2); there `claim` gets the
 * IP address that the host was resolved to, and the options of the socket. It gives a facade; or a negative errno, which
 * Node words and emits as it does its own; or null: Node binds after all. Arguments, states, events and callbacks are
 * Node's own. A socket that is closed meanwhile closes the facade.
 *
 * @param context the async context that the socket was made in, and that its messages come in.
 * @throws what `bind` throws; {Error} on a runtime where `support('udp')` says no.
 */
export function bindFrom(
  socket: dgram.Socket,
  bind: () => void,
  claim: (
    wanted: UdpFlags & { readonly ip: string },
    done: (from: UdpFacade | number | null) => void,
  ) => void,
  context: AsyncResource = new AsyncResource('UdpFacade'),
): void {
  const old = udpHandleOf(socket)
  const lookup = old?.lookup
  // Closed already: Node throws what it throws.
  if (!old || !lookup) return bind()
  old.lookup = (name, callback) =>
    lookup(name, (error, ip = '', family) => {
      const isClosed = (): boolean => udpHandleOf(socket) !== old
      // For udp4 with an IPv6 address, or the reverse, Node has an error.
      const isOther = net.isIP(ip) !== ((socket as { type?: unknown }).type === 'udp6' ? 6 : 4)
      if (error || isOther || isClosed()) return callback(error, ip, family)
      const answered = new AsyncResource('UdpFacade.claim')
      claim({ ip, ...udpFlagsOf(socket) }, (from) => {
        const isFacade = from instanceof UdpFacade
        if (isClosed()) return isFacade ? from.close() : undefined
        if (isFacade) from.replaceHandleOf(socket, context)
        const handle = udpHandleOf(socket)
        const undo = handle && from !== null ? shadowOnce(handle, 'bind', isFacade ? 0 : from) : undefined
        // Node goes on: handle.bind(), then 'listening' or 'error'.
        answered.runInAsyncScope(() => callback(null, ip, family))
        undo?.()
      })
    })
  try {
    bind()
  } finally {
    // Only for the look-up of this call, which has begun: send() and connect() look names up, too.
    old.lookup = lookup
  }
}

/** The next call of that method gives `result` and does nothing. Gives what undoes it. */
function shadowOnce(handle: NativeUdp, name: 'bind', result: number): () => void {
  const before = Object.getOwnPropertyDescriptor(handle, name)
  const undo = (): void => {
    if (handle[name] !== once) return
    if (before) Object.defineProperty(handle, name, before)
    else delete (handle as { bind?: unknown })[name]
  }
  const once = (): number => {
    undo()
    return result
  }
  handle[name] = once
  return undo
}
