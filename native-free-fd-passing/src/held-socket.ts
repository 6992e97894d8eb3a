import type { ChildProcess } from 'node:child_process'
import net from 'node:net'
import { describeAddress, type Address, type BoundAddress } from './address.ts'
import { describeFd } from './describe-fd.ts'
import { BindError, bindError, errnoInfo, errnoOf, SendError } from './errors.ts'
import { createUdp, openUdp, supportUdp, type NativeUdp } from './native-udp.ts'
import { createPipe, createTcp, kindOf, openFd, support as supportStreams } from './native.ts'
import type { NativeHandle, Sendable } from './native.ts'
import { outboxOf, type Stage } from './outbox.ts'
import { SOCKET } from './wire.ts'

/** Longest path of a unix socket in bytes, without its NUL: `sizeof(sun_path) - 1`. */
const MAX_PATH_BYTES = process.platform === 'linux' ? 107 : 103

/** For `fchmod` of a pipe (uv.h, enum uv_poll_event). */
const UV_READABLE = 1
const UV_WRITABLE = 2

/** The owner's side of a socket: bound, never listened on and never accepted on by this process. */
export interface HeldSocket extends Disposable {
  /** What was asked for; for an adopted socket, what it is. */
  readonly asked: Address
  /** Where it is; null for a unix socket. */
  readonly bound: BoundAddress | null
  /** For `spawn`'s `stdio`, or any other hand-on by number; -1 once closed. Still owned by this object. */
  readonly fd: number
  readonly closed: boolean
  /**
   * Hands a duplicate to a child that has an IPC channel. Resolves when the child's `onReceive()` has acknowledged it.
   * Rejects with a `SendError` at the deadline, when the child exits or disconnects, or on abort. At most one socket is
   * under way to a child; others wait their turn within their own deadlines.
   *
   * @param message what the child's listener gets beside the socket; must be serialisable.
   */
  sendTo(
    child: ChildProcess,
    message: object,
    options: { readonly timeoutMs: number; readonly signal?: AbortSignal },
  ): Promise<void>
  /**
   * Gives up this process's copy; children keep theirs. Unlinks the path of a unix socket that `bind()` made.
   * Idempotent. Throws while a `sendTo` is open. (When one was given up on but Node still has the handle in its write
   * queue, the copy stays open until that child takes it or disconnects.)
   */
  close(): void
}

const WHY_LATE: Record<Stage, string> = {
  'before READY': 'it has not called onReceive() yet, or is blocked. The socket was not sent.',
  'behind another': 'an earlier socket is still on its way there. This one was not sent.',
  sent: 'it is blocked, or out of file descriptors. The socket may still reach it.',
}

let lastId = 0

class Held implements HeldSocket {
  readonly asked: Address
  readonly bound: BoundAddress | null
  readonly #handle: Sendable
  #closed = false
  #openSends = 0
  #inWriteQueue = 0

  constructor(handle: Sendable, asked: Address, bound: BoundAddress | null) {
    this.#handle = handle
    this.asked = asked
    this.bound = bound
  }

  get fd(): number {
    return this.#closed ? -1 : this.#handle.fd
  }

  get closed(): boolean {
    return this.#closed
  }

  async sendTo(
    child: ChildProcess,
    message: object,
    { timeoutMs, signal }: { readonly timeoutMs: number; readonly signal?: AbortSignal },
  ): Promise<void> {
    const what = `the socket of ${this.#name()}`
    if (this.#closed)
      throw new SendError('failed', false, `Cannot send ${what} to child ${child.pid}: it is closed.`)
    if (!(timeoutMs > 0 && timeoutMs < 2 ** 31)) {
      throw new RangeError(`timeoutMs must be above 0 and below 2^31 ms, not ${timeoutMs}.`)
    }
    const aborted = (stage?: Stage): SendError =>
      new SendError('aborted', stage === 'sent', `Sending ${what} to child ${child.pid} was aborted.`, {
        cause: signal?.reason,
      })
    const late = (stage: Stage): SendError => {
      const text = `Child ${child.pid} did not acknowledge ${what} within ${timeoutMs} ms: ${WHY_LATE[stage]}`
      return new SendError('timeout', stage === 'sent', text)
    }
    if (signal?.aborted) throw aborted()

    const id = ++lastId
    const outbox = outboxOf(child)
    const onDeadline = (): void => outbox.cancel(id, late)
    const onAbort = (): void => outbox.cancel(id, aborted)
    const timer = setTimeout(onDeadline, timeoutMs)
    signal?.addEventListener('abort', onAbort)
    this.#openSends++
    this.#inWriteQueue++
    try {
      await new Promise<void>((resolve, reject) => {
        outbox.post({
          envelope: { cmd: SOCKET, id, kind: this.asked.kind, bound: this.bound, message },
          handle: this.#handle,
          what,
          settle: (error) => (error ? reject(error) : resolve()),
          letGo: () => {
            this.#inWriteQueue--
            this.#closeHandle()
          },
        })
      })
    } finally {
      this.#openSends--
      clearTimeout(timer)
      signal?.removeEventListener('abort', onAbort)
    }
  }

  close(): void {
    if (this.#closed) return
    if (this.#openSends > 0) {
      const sends = this.#openSends === 1 ? 'a send of it is' : `${this.#openSends} sends of it are`
      throw new Error(`Cannot close the socket of ${this.#name()} while ${sends} open: await sendTo() first.`)
    }
    this.#closed = true
    this.#closeHandle()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #closeHandle(): void {
    if (this.#closed && this.#inWriteQueue === 0) this.#handle.close()
  }

  #name(): string {
    if (!this.bound) return describeAddress(this.asked)
    return describeAddress({ kind: 'tcp', host: this.bound.address, port: this.bound.port })
  }
}

/**
 * Binds a socket and holds it. It neither listens nor accepts: until a child opens it, clients are refused; from then
 * on, for as long as it is held, they queue in the kernel, also while no child has it. Datagrams queue at once, as far
 * as the receive buffer goes.
 *
 * Two sockets that are bound but not listened on may share an address (SO_REUSEADDR, socket(7)): then the second one
 * learns of it only when its receiver listens.
 *
 * @throws {BindError} at once for an address in use, although libuv would defer that to `listen`.
 * @throws {TypeError} for a host that is not an IP address, or a port out of range.
 */
export function bind(address: Address): HeldSocket {
  const { hold, reason } = support(address.kind === 'udp' ? 'udp' : 'stream')
  if (!hold) throw new Error(`Cannot bind ${describeAddress(address)}: ${reason}`)
  if (address.kind === 'unix') return bindUnix(address)
  const { host, port } = address
  if (!net.isIP(host)) throw new TypeError(`Cannot bind ${host}: not an IP address. Resolve names first.`)
  if (!Number.isInteger(port) || port < 0 || port > 65535)
    throw new TypeError(`Cannot bind port ${port}: not 0 to 65535.`)
  return address.kind === 'udp' ? bindUdp(address) : bindTcp(address)
}

/** Whether this runtime can hold sockets of a kind; when not, why. Tried once. */
export function support(kind: 'stream' | 'udp' = 'stream'): {
  readonly hold: boolean
  readonly reason?: string
} {
  return kind === 'udp' ? supportUdp() : supportStreams()
}

function bindUdp(asked: Address & { kind: 'udp' }): HeldSocket {
  const handle = createUdp(asked.host, asked.port, asked)
  if (typeof handle === 'number') throw bindError('bind', handle, asked)
  const bound = nameOf(handle)
  if (typeof bound !== 'number') return new Held(handle, asked, bound)
  handle.close()
  throw bindError('bind', bound, asked)
}

function bindTcp(asked: Address & { kind: 'tcp' }): HeldSocket {
  const { host, port, ipv6Only = false, anyFamily = false } = asked
  const first = tryTcp(host, port, ipv6Only)
  const last = anyFamily && host === '::' && lacksIPv6(first) ? tryTcp('0.0.0.0', port, false) : first
  if (typeof last === 'number') throw bindError('bind', last, asked)
  return new Held(last.handle, asked, last.bound)
}

/** Never EADDRINUSE: falling back then would serve IPv4 beside a stranger who has IPv6. */
function lacksIPv6(result: object | number): boolean {
  return (
    typeof result === 'number' && ['EAFNOSUPPORT', 'EADDRNOTAVAIL', 'EINVAL'].includes(errnoInfo(result).code)
  )
}

function tryTcp(
  host: string,
  port: number,
  ipv6Only: boolean,
): { handle: NativeHandle; bound: BoundAddress } | number {
  const handle = createTcp(host, port, ipv6Only)
  if (typeof handle === 'number') return handle
  // libuv keeps EADDRINUSE for the next call. Sent without asking, the error is lost: the child's listen(2) then runs
  // on an unbound socket and silently listens on 0.0.0.0 at a random port.
  const bound = nameOf(handle)
  if (typeof bound === 'number') handle.close()
  return typeof bound === 'number' ? bound : { handle, bound }
}

function nameOf(handle: NativeHandle | NativeUdp): BoundAddress | number {
  const out: { address?: string; family?: string; port?: number } = {}
  const error = handle.getsockname?.(out) ?? errnoOf('EINVAL')
  const { address = '', family = '', port = 0 } = out
  return error || { address, family, port }
}

function bindUnix(asked: Address & { kind: 'unix' }): HeldSocket {
  const { path, readableAll = false, writableAll = false } = asked
  if (path === '') throw new TypeError('Cannot bind a unix socket: its path is empty.')
  // Some versions of libuv cut a longer path off, and bind another one than was asked for.
  if (Buffer.byteLength(path) > MAX_PATH_BYTES) throw bindError('bind', errnoOf('ENAMETOOLONG'), asked)
  const handle = createPipe(path)
  if (typeof handle === 'number') throw bindError('bind', handle, asked)
  if (readableAll || writableAll) {
    // By the call that Node's own `listen` makes: what it does to the mode depends on the version of libuv (1.46 adds
    // bits, 1.51 sets the mode to exactly these), and the path has to look as without us.
    const errno = handle.fchmod?.((readableAll ? UV_READABLE : 0) | (writableAll ? UV_WRITABLE : 0)) ?? 0
    if (errno) {
      handle.close()
      throw bindError('chmod', errno, asked)
    }
  }
  return new Held(handle, asked, null)
}

/**
 * Takes over a socket that this process inherited: TCP or unix, bound or listening, or bound UDP. `close()` closes the
 * descriptor (and leaves a unix path alone: who made it removes it).
 *
 * @throws {BindError} that names what the descriptor is, when it is anything else.
 */
export function adopt(fd: number, expect?: 'tcp' | 'unix' | 'udp'): HeldSocket {
  const description = describeFd(fd)
  const { hold, reason } = support(description.kind === 'udp' ? 'udp' : 'stream')
  if (!hold) throw new Error(`Cannot adopt file descriptor ${fd}: ${reason}`)
  const refuse = (what: string, code: 'EBADF' | 'EINVAL'): BindError => {
    const wanted =
      expect === undefined ? 'TCP, unix or UDP' : expect === 'unix' ? 'unix' : expect.toUpperCase()
    const text = `Cannot adopt file descriptor ${fd} as a ${wanted} socket to hold: it is ${what}.`
    return new BindError('open', errnoOf(code), null, text)
  }
  if (description.kind === 'other')
    throw refuse(description.what, description.what === 'not open' ? 'EBADF' : 'EINVAL')
  if (expect !== undefined && description.kind !== 'unknown' && description.kind !== expect)
    throw refuse(description.what, 'EINVAL')
  if (description.kind === 'udp') {
    const handle = openUdp(fd)
    if (typeof handle === 'number') throw refuse(`a UDP socket (${errnoInfo(handle).message})`, 'EINVAL')
    const bound = nameOf(handle)
    if (typeof bound !== 'number' && bound.port > 0 && handle.getpeername({}) !== 0)
      return new Held(handle, { kind: 'udp', host: bound.address, port: bound.port }, bound)
    handle.close()
    throw refuse('a UDP socket that is not bound, or is connected', 'EINVAL')
  }
  if (expect === 'udp') throw refuse(`${description.what}, not known to be a UDP one`, 'EINVAL')
  const handle = openFd(fd)
  if (typeof handle === 'number') throw refuse(`${description.what} (${errnoInfo(handle).message})`, 'EINVAL')

  const giveUp = (what: string): BindError => {
    handle.close()
    return refuse(what, 'EINVAL')
  }
  if (kindOf(handle) === 'unix') {
    if (expect === 'tcp') throw giveUp('a unix socket')
    return new Held(handle, { kind: 'unix', path: description.path ?? '' }, null)
  }
  if (expect === 'unix') throw giveUp('a TCP socket')
  if (handle.getpeername?.({}) === 0) throw giveUp('a connected TCP socket, not a listening one')
  const bound = nameOf(handle)
  if (typeof bound === 'number') throw giveUp(`a TCP socket without a name (${errnoInfo(bound).message})`)
  if (bound.port === 0) throw giveUp('a TCP socket that is not bound')
  return new Held(handle, { kind: 'tcp', host: bound.address, port: bound.port }, bound)
}
