/**
 * `bind` of an unmodified app's UDP sockets: the master binds and holds the address, and every worker has a copy.
 *
 * A claim is answered with the copy at once, before the gate opens: an app may send as soon as it is bound, and an
 * unread copy harms nobody, for the kernel has one queue for all of them. Only reading waits for the grant. At the
 * withdrawal only reading ends: answers that are still being made leave from the address that was asked. What was not
 * read stays in the queue for the next generation.
 *
 * To import node:dgram costs nothing: a process with an IPC channel has loaded it before its first line (measured on Node
 * 20 to 26).
 *
 * Left to Node: port 0, `{fd}`, the bind that a `send` does by itself, arguments that Node refuses, and `bindSync`,
 * which cannot wait for the master. `exclusive` and `reusePort` do not make a socket private, as with `listen`: they are
 * said so that each worker of a cluster has its own socket, and one that leaves with its worker would take what is
 * queued in it along.
 */
import { AsyncResource } from 'node:async_hooks'
import dgram from 'node:dgram'
import diagnostics from 'node:diagnostics_channel'
import { bindFrom, errnoInfo, UdpFacade } from 'native-free-fd-passing'
import type { ReceivedSocket } from 'native-free-fd-passing'
import { listenerKey } from '../address.ts'
import type { UdpAddress } from '../address.ts'
import type { ToWorker } from '../protocol.ts'
import type { ClaimNews } from './claim-news.ts'
import type { Link } from './link.ts'

const EADDRINUSE = -98
/** Claims of TCP and unix listeners count from 1 (claim.ts). */
const FIRST_ID = 2 ** 32
/**
 * What was read before the withdrawal may still be in work, and nothing shows it: a datagram has no connection. So the
 * app gets a second more, and another one after each answer, up to five in all: as long as a client waits by default
 * before it asks a DNS server again.
 */
const QUIET_MS = 1_000
const MAX_LINGER_MS = 5_000

/** null: Node binds by itself. */
type Answer = (from: UdpFacade | number | null) => void

interface Wanted {
  readonly ip: string
  readonly port: number
  readonly ipv6Only?: boolean
  readonly reuseAddr?: boolean
  readonly reusePort?: boolean
}

export interface UdpClaims {
  handle(message: ToWorker): void
  receive(socket: ReceivedSocket, message: ToWorker): void
  /** Stops reading, everywhere and for good. */
  withdrawAll(): void
  /** Calls back when what was read before the withdrawal has had its time to be answered; at once if nothing was. */
  whenQuiet(atMostMs: number, then: () => void): void
  /** Waits no longer. */
  cut(): void
}

export function claimUdp(link: Link, news: ClaimNews, warn: (text: string) => void): UdpClaims {
  const claims = new Map<string, UdpFacade>()
  const pending = new Map<number, { readonly key: string; readonly answer: Answer }>()
  let lastId = FIRST_ID
  let withdrawnMs: number | null = null
  let quiet: { readonly timer: NodeJS.Timeout | undefined; readonly then: () => void } | null = null
  let hasRead = false

  const claim = ({ ip, port, ipv6Only, reuseAddr, reusePort }: Wanted, done: Answer): void => {
    const address: UdpAddress = {
      kind: 'udp',
      host: ip,
      port,
      ...(ipv6Only && { ipv6Only }),
      ...(reuseAddr && { reuseAddr }),
      ...(reusePort && { reusePort }),
    }
    const key = listenerKey(address)
    // A second socket on the same address: the kernel knows whether both allow it. While the first one waits for the
    // master, it would get the address by being faster.
    if (claims.has(key)) return done(null)
    if ([...pending.values()].some((other) => other.key === key)) return done(reuseAddr ? null : EADDRINUSE)
    const release = link.hold()
    const answered = news.waits()
    pending.set(++lastId, {
      key,
      answer(from) {
        release()
        answered()
        done(from)
      },
    })
    link.send({ t: 'claim', id: lastId, address, backlog: 0 })
  }

  wrapBind(link, warn, claim)

  const settle = (id: number, from: UdpFacade | number): void => {
    const answer = pending.get(id)?.answer
    pending.delete(id)
    if (answer) answer(from)
    else if (typeof from !== 'number') from.close()
  }

  const bound = (id: number, key: string, socket: ReceivedSocket): void => {
    if (!pending.has(id)) return socket.close()
    let release: (() => void) | null = null
    const facade = new UdpFacade(socket, {
      onHold: (hold) => {
        if (hold) release ??= link.hold()
        else {
          release?.()
          release = null
        }
      },
      onClose: () => {
        if (claims.get(key) !== facade) return
        claims.delete(key)
        news.tell({ t: 'unclaimed', key })
      },
    })
    claims.set(key, facade)
    news.tell({ t: 'claimed', key, error: null })
    settle(id, facade)
  }

  const end = (): void => {
    if (!quiet) return
    clearTimeout(quiet.timer)
    const { then } = quiet
    quiet = null
    then()
  }

  return {
    handle(message) {
      if (message.t === 'answer' && 'error' in message) settle(message.id, message.error.errno)
      else if (message.t === 'withdraw' && claims.has(message.key)) {
        claims.get(message.key)?.withdraw()
        link.send({ t: 'withdrawn', key: message.key })
      }
    },
    receive(socket, message) {
      if (message.t !== 'handle') return socket.close()
      const { key } = message.listener
      if (message.purpose === 'bound') return bound(message.id, key, socket)
      // The grant comes with a copy, as for other listeners; ours has been here since the claim.
      socket.close()
      const facade = claims.get(key)
      if (!facade || facade.reading || withdrawnMs !== null) return
      const errno = facade.open()
      hasRead = true
      const error = errno === 0 ? null : { code: errnoInfo(errno).code, errno, syscall: 'recvmsg' }
      link.send({ t: 'opened', key, error })
    },
    withdrawAll() {
      withdrawnMs ??= performance.now()
      // Not told as `withdrawn`: our copy stays until the process ends, and until then the address cannot be bound anew.
      for (const facade of claims.values()) facade.withdraw()
    },
    whenQuiet(atMostMs, then) {
      const waiting = { timer: undefined as NodeJS.Timeout | undefined, then }
      quiet = waiting
      const look = (): void => {
        const since = withdrawnMs ?? 0
        const lastMs = Math.max(since, ...[...claims.values()].map(({ lastSentMs }) => lastSentMs))
        const until = Math.min(lastMs + QUIET_MS, since + MAX_LINGER_MS, since + atMostMs)
        const leftMs = until - performance.now()
        if (leftMs <= 0 || !hasRead || claims.size === 0) end()
        else waiting.timer = setTimeout(look, leftMs)
      }
      look()
    },
    cut: end,
  }
}

function wrapBind(
  link: Link,
  warn: (text: string) => void,
  claim: (wanted: Wanted, done: Answer) => void,
): void {
  // In bare Node the messages of a socket come in the context in which it was made.
  const contexts = new WeakMap<dgram.Socket, AsyncResource>()
  diagnostics.subscribe('udp.socket', (message) => {
    const { socket } = message as { socket: dgram.Socket }
    contexts.set(socket, new AsyncResource('usr2.udp'))
  })

  const prototype = dgram.Socket.prototype as dgram.Socket & { bindSync?: (options?: object) => unknown }
  const bind = prototype.bind as (this: dgram.Socket, ...args: unknown[]) => dgram.Socket
  prototype.bind = function (this: dgram.Socket, ...args: unknown[]): dgram.Socket {
    const port = portAsked(args)
    if (port === undefined || !link.connected) return bind.apply(this, args)
    bindFrom(
      this,
      () => bind.apply(this, args),
      (wanted, done) => claim({ ...wanted, port }, done),
      contexts.get(this),
    )
    return this
  } as typeof prototype.bind

  const { bindSync } = prototype
  if (!bindSync) return
  prototype.bindSync = function (this: dgram.Socket, options?: object) {
    const port = portAsked([options ?? {}])
    if (port !== undefined) {
      warn(
        `the app binds UDP port ${port} by bindSync, which usr2 cannot share between generations: ` +
          'the next reload will fail with EADDRINUSE; use bind',
      )
    }
    return bindSync.call(this, options)
  }
}

/** The port of a `bind` that is to be claimed, or undefined for what is Node's own to do or to refuse. */
function portAsked(args: readonly unknown[]): number | undefined {
  const first = args[0]
  let port = first
  if (typeof first === 'object' && first !== null) {
    const options = first as { port?: unknown; fd?: unknown; recvStart?: unknown }
    if (typeof options.recvStart === 'function') return undefined
    if (typeof options.fd === 'number' && options.fd > 0) return undefined
    port = options.port
  }
  const number = typeof port === 'number' || typeof port === 'string' ? Number(port) : NaN
  return Number.isInteger(number) && number > 0 && number < 65536 ? number : undefined
}
