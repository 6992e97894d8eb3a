/**
 * Every message between master and worker, and its guard. Imports nothing.
 *
 * Messages travel over the child_process IPC channel with `cmd` set to {@link CMD}. Node hands a message whose
 * `cmd` starts with `NODE_` to `'internalMessage'` listeners only, whether or not there are `'message'`
 * listeners (lib/internal/child_process.js; node:cluster uses the same door). So the app never sees ours, and
 * its `process.removeAllListeners('message')` does not stop them.
 *
 * A worker's word is never trusted: the master reads messages only through {@link fromWorker}.
 */

export const PROTOCOL_VERSION = 1
/** A drain is raised to what its clients were promised, but not past this. */
export const MAX_DRAIN_MS = 15 * 60_000
export const CMD = 'NODE_USR2'
/** The environment variable with the guest's {@link GuestConfig}; removed from `process.env` as it loads. */
export const GUEST_ENV = 'USR2_GUEST'

/** Times a worker keeps by itself, also when the master has died. Milliseconds. */
export interface WorkerTimes {
  readonly drainTimeoutMs: number
  readonly shutdownTimeoutMs: number
}

export interface WireAddress {
  readonly kind: 'tcp' | 'unix' | 'udp'
  readonly host?: string
  readonly port?: number
  readonly ipv6Only?: boolean
  readonly anyFamily?: boolean
  readonly reuseAddr?: boolean
  readonly reusePort?: boolean
  readonly path?: string
  readonly readableAll?: boolean
  readonly writableAll?: boolean
  readonly umask?: number
}

export interface WireBound {
  readonly address: string
  readonly family: string
  readonly port: number
}

export interface KnownListener {
  readonly key: string
  /** null for a unix socket. */
  readonly bound: WireBound | null
}

/** What a worker is told before its first line runs. */
export interface GuestConfig {
  readonly version: number
  readonly generation: number
  readonly slot: number
  readonly ready: 'listen' | 'message'
  readonly known: readonly KnownListener[]
  readonly times: WorkerTimes
  /** The user's own `$PWD`, not resolved: `./app.sock` is one listener across releases. */
  readonly pwd: string
}

/** Why an address could not be had, with what Node's error needs. */
export interface WireError {
  readonly code: string
  readonly errno: number
  readonly syscall: string
}

/** How the connections and requests of a worker stand. */
export interface Counts {
  /** Connections accepted since the worker started. */
  readonly accepted: number
  /** Connections open now. */
  readonly open: number
  /** Requests begun since the worker started. */
  readonly requests: number
  /** Requests in flight now. */
  readonly active: number
  /** Connections ended by a deadline with work in flight, or before the promise made to their client ended. */
  readonly cut: number
}

/** One connection that a deadline ended, or that holds a drain open. */
export interface Held {
  readonly what: 'request' | 'idle' | 'raw' | 'upgraded'
  readonly method?: string
  /** Without its query. */
  readonly path?: string
  readonly ageMs: number
  readonly peer: string
}

export interface Failure {
  readonly name: string
  readonly message: string
  /** At most {@link MAX_FAILURE_BYTES}. */
  readonly stack: string
}
export const MAX_FAILURE_BYTES = 8 * 1024

export type FromWorker =
  | { readonly t: 'hello'; readonly version: number; readonly node: string }
  | { readonly t: 'claim'; readonly id: number; readonly address: WireAddress; readonly backlog: number }
  /** The `listen(2)` that proves a new bind: `null` when it listens. */
  | { readonly t: 'verified'; readonly key: string; readonly error: WireError | null }
  /** The app listens there; it waits for the handle. */
  | { readonly t: 'claimed'; readonly key: string; readonly error: null }
  /** The app closed its server. */
  | { readonly t: 'unclaimed'; readonly key: string }
  /** The app listens on an address of its own (port 0) that the master does not hold. */
  | { readonly t: 'private'; readonly address: string }
  | { readonly t: 'opened'; readonly key: string; readonly error: WireError | null }
  | { readonly t: 'withdrawn'; readonly key: string }
  | { readonly t: 'ready' }
  /** The drain has begun and takes at most so long: clients may have been promised more than the drain timeout. */
  | { readonly t: 'draining'; readonly timeoutMs: number }
  | { readonly t: 'counts'; readonly counts: Counts }
  /** No connection is left, or the deadline cut the rest; the app's own shutdown begins. */
  | { readonly t: 'drained'; readonly counts: Counts; readonly cut: readonly Held[] }
  /** The app ends the process in the midst of its drain. */
  | { readonly t: 'died'; readonly counts: Counts; readonly lost: readonly Held[] }
  | { readonly t: 'failed'; readonly failure: Failure }
  /** Last lines of stderr of a worker that ends before it was ready. */
  | { readonly t: 'stderr'; readonly text: string }
  /** A signal reached this worker that means "replace me". */
  | { readonly t: 'signalled'; readonly signal: string }
  | { readonly t: 'warning'; readonly text: string }

export type ToWorker =
  /** The answer to a claim for which no bind was needed, or which failed. */
  | { readonly t: 'answer'; readonly id: number; readonly ok: KnownListener }
  | { readonly t: 'answer'; readonly id: number; readonly error: WireError }
  /** Comes with a handle: the answer to claim `id`. Listen(2) once, close this copy, answer `verified`. */
  | {
      readonly t: 'handle'
      readonly purpose: 'verify'
      readonly listener: KnownListener
      readonly id: number
    }
  /** Comes with a handle: the answer to claim `id` of a UDP address. Send by it, read nothing yet, answer `claimed`. */
  | { readonly t: 'handle'; readonly purpose: 'bound'; readonly listener: KnownListener; readonly id: number }
  /** Comes with a handle: the grant. Accept on it, answer `opened`. */
  | { readonly t: 'handle'; readonly purpose: 'open'; readonly listener: KnownListener }
  | { readonly t: 'withdraw'; readonly key: string }
  | { readonly t: 'drain'; readonly times: WorkerTimes }
  /** Stop waiting for connections: cut what is left and go on to the app's shutdown. */
  | { readonly t: 'cut' }
  /** Exit at once. */
  | { readonly t: 'exit' }
  /** A listener that the master holds since: claims for it are answered at once. */
  | { readonly t: 'known'; readonly listener: KnownListener }
  /** A listener that the master released. */
  | { readonly t: 'forget'; readonly key: string }

const isRecord = (x: unknown): x is Record<string, unknown> => typeof x === 'object' && x !== null
const isCount = (x: unknown): x is number => typeof x === 'number' && Number.isFinite(x) && x >= 0
const isText = (x: unknown, max = 512): x is string => typeof x === 'string' && x.length <= max
const isKey = (x: unknown): x is string => isText(x, 256)
const optional = (x: unknown, test: (x: unknown) => boolean): boolean => x === undefined || test(x)
const isBoolean = (x: unknown): x is boolean => typeof x === 'boolean'

function isWireError(x: unknown): x is WireError {
  return isRecord(x) && isText(x.code, 64) && typeof x.errno === 'number' && isText(x.syscall, 64)
}

function isWireAddress(x: unknown): x is WireAddress {
  if (!isRecord(x)) return false
  if (x.kind === 'unix') {
    return (
      isText(x.path) &&
      optional(x.readableAll, isBoolean) &&
      optional(x.writableAll, isBoolean) &&
      optional(x.umask, (umask) => isCount(umask) && Number.isInteger(umask) && umask <= 0o777)
    )
  }
  const port = x.port
  return (
    (x.kind === 'tcp' || x.kind === 'udp') &&
    isText(x.host, 64) &&
    typeof port === 'number' &&
    Number.isInteger(port) &&
    port > 0 &&
    port < 65536 &&
    optional(x.ipv6Only, isBoolean) &&
    optional(x.anyFamily, isBoolean) &&
    optional(x.reuseAddr, isBoolean) &&
    optional(x.reusePort, isBoolean)
  )
}

function isCounts(x: unknown): x is Counts {
  return (
    isRecord(x) &&
    isCount(x.accepted) &&
    isCount(x.open) &&
    isCount(x.requests) &&
    isCount(x.active) &&
    isCount(x.cut)
  )
}

function isHeld(x: unknown): x is Held {
  return (
    isRecord(x) &&
    (x.what === 'request' || x.what === 'idle' || x.what === 'raw' || x.what === 'upgraded') &&
    optional(x.method, (m) => isText(m, 64)) &&
    optional(x.path, (p) => isText(p, 4096)) &&
    isCount(x.ageMs) &&
    isText(x.peer, 256)
  )
}

const isHeldList = (x: unknown): boolean => Array.isArray(x) && x.length <= 1000 && x.every(isHeld)

const guards: { readonly [T in FromWorker['t']]: (m: Record<string, unknown>) => boolean } = {
  hello: (m) => typeof m.version === 'number' && isText(m.node, 64),
  claim: (m) => isCount(m.id) && isWireAddress(m.address) && isCount(m.backlog),
  verified: (m) => isKey(m.key) && (m.error === null || isWireError(m.error)),
  claimed: (m) => isKey(m.key) && m.error === null,
  unclaimed: (m) => isKey(m.key),
  private: (m) => isText(m.address, 256),
  opened: (m) => isKey(m.key) && (m.error === null || isWireError(m.error)),
  withdrawn: (m) => isKey(m.key),
  ready: () => true,
  draining: (m) => isCount(m.timeoutMs),
  counts: (m) => isCounts(m.counts),
  drained: (m) => isCounts(m.counts) && isHeldList(m.cut),
  died: (m) => isCounts(m.counts) && isHeldList(m.lost),
  failed: (m) =>
    isRecord(m.failure) &&
    isText(m.failure.name, 256) &&
    isText(m.failure.message, MAX_FAILURE_BYTES) &&
    isText(m.failure.stack, MAX_FAILURE_BYTES),
  stderr: (m) => isText(m.text, MAX_FAILURE_BYTES),
  signalled: (m) => isText(m.signal, 16),
  warning: (m) => isText(m.text, 2048),
}

/** The message that `x` is, or undefined when it is not one of ours or not well formed. */
export function fromWorker(x: unknown): FromWorker | undefined {
  if (!isRecord(x) || x.cmd !== CMD || typeof x.t !== 'string' || !Object.hasOwn(guards, x.t))
    return undefined
  return guards[x.t as FromWorker['t']](x) ? (x as unknown as FromWorker) : undefined
}

/** The message that `x` is: the master is trusted, so only the envelope is looked at. */
export function toWorker(x: unknown): ToWorker | undefined {
  return isRecord(x) && x.cmd === CMD && typeof x.t === 'string' ? (x as unknown as ToWorker) : undefined
}
