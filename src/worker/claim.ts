/**
 * `listen` of an unmodified app: what address does it want, who holds it, and when may it accept there?
 *
 * `net.Server.prototype.listen` is wrapped. An address that the master holds already is answered at once, so that
 * `listening`, `address()` and the `'listening'` event are as in bare Node while the gate is still shut. One that
 * nobody holds yet waits for the master to bind it. Node's own `listen` then runs on a facade (see
 * native-free-fd-passing): Node does the rest, and we decide when a real socket is polled behind it.
 *
 * Left to Node: port 0 (frameworks talk to themselves so), `{fd}`, handles, and arguments that Node refuses.
 */
import { AsyncResource } from 'node:async_hooks'
import dns from 'node:dns'
import net from 'node:net'
import { resolve } from 'node:path'
import { Facade, errnoInfo } from 'native-free-fd-passing'
import type { ReceivedSocket } from 'native-free-fd-passing'
import { listenerKey } from '../address.ts'
import type { StreamAddress } from '../address.ts'
import type { KnownListener, ToWorker, WireError } from '../protocol.ts'
import { sendTogether } from './claim-news.ts'
import type { ClaimNews } from './claim-news.ts'
import type { KeptPaths } from './keep-path.ts'
import type { Link } from './link.ts'

const DEFAULT_BACKLOG = 511
/** Where no host is given, Node before 22.12 forgets `ipv6Only` and takes IPv4 as well (net.js). */
const FORGETS_IPV6_ONLY = /^v(20|21|22\.([0-9]|1[01]))\./.test(process.version)
const IN_USE: WireError = { code: 'EADDRINUSE', errno: -98, syscall: 'listen' }

/** What Node's private `net._normalizeArgs` gives (stable since Node 8; used by node:cluster's peers). */
type Options = net.ListenOptions & { fd?: unknown; _handle?: unknown; handle?: unknown; reusePort?: boolean }
type Normalize = (args: unknown[]) => [Options, ((error?: Error) => void) | null]
type Listening = net.Server & { _handle: object | null; _listeningId: number; _pipeName?: string }

/** What Node does with the handle of a server, and we with that of one's further socket. */
interface Handle {
  onconnection(error: number, client?: object): void
  listen(backlog: number): number
  close(): void
  unref(): void
}

interface Claim {
  readonly key: string
  readonly server: Listening
  readonly facade: Facade
}

interface Pending {
  readonly answer: (result: { ok: KnownListener } | { error: WireError }) => void
  readonly backlog: number
}

export interface ClaimsParts {
  readonly link: Link
  readonly news: ClaimNews
  readonly known: readonly KnownListener[]
  readonly paths: KeptPaths
  /** Where relative unix paths start: the working directory with its symlinks unresolved. */
  readonly pwd: string
  /** A server got a listener that the master holds; no key where it took over another server's. */
  onClaimed(server: net.Server, key?: string): void
}

export interface Claims {
  handle(message: ToWorker): void
  receive(socket: ReceivedSocket, message: ToWorker): void
  /** Gives back every copy: no more connections are accepted, the servers stay "listening". */
  withdrawAll(): void
  readonly any: boolean
  /** Whether a server of this worker accepts. */
  readonly accepting: boolean
}

export function claimListeners({ link, news, known, paths, pwd, onClaimed }: ClaimsParts): Claims {
  const normalize = (net as unknown as { _normalizeArgs: Normalize })._normalizeArgs
  const listen = net.Server.prototype.listen as (this: net.Server, ...args: unknown[]) => net.Server
  const held = new Map<string, KnownListener>()
  const claims = new Map<string, Claim>()
  const pending = new Map<number, Pending>()
  /** Which call of `listen` the master has not answered: another one must throw as in Node, unless it was closed. */
  const waiting = new WeakMap<net.Server, number>()
  const facades = new WeakSet<object>()
  /** Further sockets of the same server: closed with it. */
  const also = new WeakMap<Facade, readonly Handle[]>()
  let lastId = 0

  const learn = (listener: KnownListener): void => {
    held.set(listener.key, listener)
    if (listener.key.startsWith('unix:/')) paths.add(listener.key.slice('unix:'.length))
  }
  known.forEach(learn)

  net.Server.prototype.listen = function (this: Listening, ...args: unknown[]): net.Server {
    if (waiting.get(this) === this._listeningId) throw alreadyListening()
    const asked = this._handle ? undefined : whatIsAsked(normalize(args)[0], args, pwd)
    if (!asked) {
      const result = listen.apply(this, args)
      // `b.listen(a)`: b takes a's connections over, and a drain has to wait for them.
      if (this._handle && facades.has(this._handle)) onClaimed(this)
      else tellPrivate(this, news)
      return result
    }
    const [options, callback] = normalize(args)
    if (callback) this.once('listening', callback)
    closeOnAbort(this, options.signal)
    // As in Node: an older call that still waits for its name or its bind is void.
    const id = ++this._listeningId
    if (typeof asked === 'object' && asked.kind === 'unix') this._pipeName = options.path
    const isVoid = (): boolean => this._listeningId !== id || this._handle !== null
    const claim = (address: StreamAddress): void => {
      const fail = (error: WireError): void =>
        void this.emit('error', nodeError(error, address, options.path))
      const key = listenerKey(address)
      const backlog = backlogOf(options, args)
      const already = held.get(key)
      if (already && !claims.has(key)) return attach(this, key, already, address, backlog)
      if (claims.has(key)) return process.nextTick(fail, IN_USE)
      waiting.set(this, id)
      const release = link.hold()
      const answered = news.waits()
      // The answer arrives in the context of the channel; the app's callbacks belong to the one of its `listen`.
      const context = new AsyncResource('usr2.claim')
      const answer = (result: { ok: KnownListener } | { error: WireError }): void => {
        release()
        answered()
        if (waiting.get(this) === id) waiting.delete(this)
        if (isVoid()) return
        context.runInAsyncScope(() => {
          if ('error' in result) fail(result.error)
          // Two servers asked for the same address at once: the master holds it, and the first one has it.
          else if (claims.has(key)) fail(IN_USE)
          else attach(this, key, result.ok, address, backlog)
        })
      }
      pending.set(++lastId, { answer, backlog })
      link.send({ t: 'claim', id: lastId, address, backlog })
    }
    if (typeof asked === 'object') claim(asked)
    else {
      const { port } = options
      const resolved = news.waits()
      dns.lookup(asked, (error, ip, family) => {
        resolved()
        if (isVoid()) return
        if (error) this.emit('error', error)
        else
          claim({
            kind: 'tcp',
            host: ip || (family === 6 ? '::' : '0.0.0.0'),
            port: Number(port),
            ...ipv6Only(options),
          })
      })
    }
    return this
  } as typeof net.Server.prototype.listen

  const attach = (
    server: Listening,
    key: string,
    listener: KnownListener,
    address: StreamAddress,
    backlog: number,
  ): void => {
    let release: (() => void) | null = null
    const facade = new Facade({
      kind: address.kind,
      bound: listener.bound,
      onHold: (hold) => {
        if (hold) release ??= link.hold()
        else {
          release?.()
          release = null
        }
      },
      onClose: () => {
        if (claims.get(key)?.facade === facade) claims.delete(key)
        news.tell({ t: 'unclaimed', key })
        for (const handle of also.get(facade) ?? []) handle.close()
      },
    })
    learn(listener)
    claims.set(key, { key, server, facade })
    facades.add(facade.handle)
    onClaimed(server, key)
    listen.call(server, facade.handle, listener.backlog ?? backlog)
    news.tell({ t: 'claimed', key, error: null })
    for (const other of listener.also ?? []) attachToo(server, other, facade, listener.backlog ?? backlog)
  }

  /** A further socket whose connections are those of `main`'s server. It neither keeps the process alive nor tells of itself. */
  const attachToo = (server: Listening, key: string, main: Facade, backlog: number): void => {
    if (claims.has(key) || main.closed) return
    const facade = new Facade({
      kind: 'tcp',
      bound: held.get(key)?.bound ?? null,
      onClose: () => {
        if (claims.get(key)?.facade === facade) claims.delete(key)
        news.tell({ t: 'unclaimed', key })
      },
    })
    claims.set(key, { key, server, facade })
    const own = facade.handle as Handle
    own.unref()
    own.onconnection = (...args) => (main.handle as Handle).onconnection(...args)
    own.listen(backlog)
    also.set(main, [...(also.get(main) ?? []), own])
    news.tell({ t: 'claimed', key, error: null })
  }

  const open = (key: string, socket: ReceivedSocket): void => {
    const claim = claims.get(key)
    if (!claim || claim.facade.closed || claim.facade.accepting) return socket.close()
    const errno = claim.facade.open(socket)
    link.send({ t: 'opened', key, error: errno === 0 ? null : wireError(errno, 'listen') })
  }

  /**
   * To the head of the kernel's queue of those who wait for a connection (src/master/listening/turns.ts). A copy that was sent before
   * we were told to withdraw may come after it: whoever does not accept any more must not begin again.
   */
  const takeTurn = (key: string, socket: ReceivedSocket): void => {
    const facade = claims.get(key)?.facade
    if (!facade?.accepting) return socket.close()
    facade.withdraw()
    const errno = facade.open(socket)
    if (errno !== 0) link.send({ t: 'opened', key, error: wireError(errno, 'listen') })
  }

  /**
   * A new bind is proved by one listen(2) on this copy: with another socket bound to the same port EADDRINUSE
   * comes only now. The copy is closed in the same turn, before anything could be accepted on it; the socket
   * stays in LISTEN by the master's own copy.
   */
  const verify = (id: number, listener: KnownListener, socket: ReceivedSocket): void => {
    const claim = pending.get(id)
    const errno = socket.prove(claim?.backlog ?? DEFAULT_BACKLOG)
    const error = errno === 0 ? null : wireError(errno, 'listen')
    link.send({ t: 'verified', key: listener.key, error })
    pending.delete(id)
    claim?.answer(error ? { error } : { ok: listener })
  }

  return {
    handle(message) {
      if (message.t === 'known') learn(message.listener)
      else if (message.t === 'forget') {
        held.delete(message.key)
        if (message.key.startsWith('unix:/')) paths.remove(message.key.slice('unix:'.length))
      } else if (message.t === 'answer') {
        const claim = pending.get(message.id)
        pending.delete(message.id)
        claim?.answer('ok' in message ? { ok: message.ok } : { error: message.error })
      } else if (message.t === 'withdraw') {
        claims.get(message.key)?.facade.withdraw()
        link.send({ t: 'withdrawn', key: message.key })
      }
    },
    receive(socket, message) {
      if (message.t !== 'handle') return socket.close()
      if (message.purpose === 'open') open(message.listener.key, socket)
      else if (message.purpose === 'turn') takeTurn(message.listener.key, socket)
      else verify(message.id, message.listener, socket)
    },
    withdrawAll() {
      news.flush()
      for (const { facade } of claims.values()) facade.withdraw()
      const keys = [...claims.keys()]
      sendTogether(
        keys.map((key) => ({ t: 'withdrawn', key })),
        link.send,
      )
    },
    get any() {
      return claims.size > 0
    },
    get accepting() {
      return [...claims.values()].some(({ facade }) => facade.accepting)
    },
  }
}

/** An address to claim, a host name to look up first, or undefined for what is Node's own to do or to refuse. */
function whatIsAsked(options: Options, args: unknown[], pwd: string): StreamAddress | string | undefined {
  const inner = options._handle ?? options.handle
  if (inner !== undefined || args.length === 0 || (typeof args[0] === 'object' && isHandle(args[0])))
    return undefined
  if (typeof options.fd === 'number' && options.fd >= 0) return undefined
  if (options.signal !== undefined && !(options.signal instanceof AbortSignal)) return undefined
  const { port, host, path } = options as { port?: unknown; host?: unknown; path?: unknown }
  if (typeof port === 'number' || typeof port === 'string') {
    const number = port === '' ? NaN : Number(port)
    if (!Number.isInteger(number) || number <= 0 || number > 65535) return undefined
    if (typeof host === 'string' && host !== '') return host
    if (host) return undefined
    return {
      kind: 'tcp',
      host: '::',
      port: number,
      ...(options.ipv6Only && !FORGETS_IPV6_ONLY ? { ipv6Only: true } : { anyFamily: true }),
    }
  }
  if (port !== undefined || 'port' in options || typeof path !== 'string' || path === '') return undefined
  const { readableAll, writableAll } = options
  const isAbstract = path.startsWith('\0')
  if (isAbstract && (readableAll || writableAll)) return undefined
  const absolute = isAbstract ? path : resolve(pwd, path)
  return {
    kind: 'unix',
    path: absolute,
    umask: process.umask(),
    ...(readableAll && { readableAll }),
    ...(writableAll && { writableAll }),
  }
}

const isHandle = (x: unknown): boolean =>
  typeof x === 'object' && x !== null && typeof (x as { listen?: unknown }).listen === 'function'

const ipv6Only = (options: Options): { ipv6Only?: true } => (options.ipv6Only ? { ipv6Only: true } : {})

function backlogOf(options: Options, args: unknown[]): number {
  const number = (x: unknown): number => (typeof x === 'number' || typeof x === 'string' ? Number(x) : NaN)
  const found = [options.backlog, args[1], args[2]].map(number).find((x) => Number.isInteger(x) && x > 0)
  return found ?? DEFAULT_BACKLOG
}

/** Node's own handling of `listen({signal})`. */
function closeOnAbort(server: net.Server, signal: AbortSignal | undefined): void {
  if (!signal) return
  const close = (): void => void server.close()
  if (signal.aborted) return void process.nextTick(close)
  signal.addEventListener('abort', close, { once: true })
  server.once('close', () => signal.removeEventListener('abort', close))
}

function tellPrivate(server: net.Server, news: ClaimNews): void {
  const tell = (): void => {
    const address = server.address()
    news.tell({
      t: 'private',
      address: typeof address === 'object' ? `${address?.address}:${address?.port}` : address,
    })
  }
  if (server.listening) tell()
  else server.once('listening', tell)
}

function alreadyListening(): Error {
  const error = new Error('Listen method has been called more than once without closing.')
  return Object.assign(error, { code: 'ERR_SERVER_ALREADY_LISTEN' })
}

function wireError(errno: number, syscall: string): WireError {
  return { code: errnoInfo(errno).code, errno, syscall }
}

/**
 * The error that Node's own `listen` emits: its wording, and its properties in its order (net.js, uvException).
 *
 * @param path of a unix socket, as the app gave it
 */
function nodeError(
  { code, errno, syscall }: WireError,
  address: StreamAddress,
  path: string | undefined,
): Error {
  const place =
    address.kind === 'unix'
      ? { address: path ?? address.path, port: -1 }
      : // For `listen(port)` Node tries `::` and, if that cannot be bound, `0.0.0.0`, whose error it tells.
        { address: address.anyFamily && code !== 'EADDRINUSE' ? '0.0.0.0' : address.host, port: address.port }
  const where = address.kind === 'unix' ? place.address : `${place.address}:${place.port}`
  const error = new Error(`${syscall} ${code}: ${errnoInfo(errno).message} ${where}`)
  return Object.assign(error, { code, errno, syscall, ...place })
}
