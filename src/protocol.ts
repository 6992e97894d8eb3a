/**
 * Every message between master and worker. Imports nothing.
 *
 * Messages travel over the child_process IPC channel with `cmd` set to {@link CMD}. Node hands a message whose
 * `cmd` starts with `NODE_` to `'internalMessage'` listeners only, whether or not there are `'message'`
 * listeners (lib/internal/child_process.js; node:cluster uses the same door). So the app never sees ours, and
 * its `process.removeAllListeners('message')` does not stop them.
 *
 * A worker's word is never trusted: the master reads messages only through `fromWorker` (src/master/workers/worker-word.ts).
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
  /** For listen(2), whatever the app asks for: the socket listened before us, and its queue is not to shrink. */
  readonly backlog?: number
  /** Keys of listeners that the same server is to accept on: `0.0.0.0:p` beside an IPv6-only `[::]:p`. */
  readonly also?: readonly string[]
}

/**
 * What becomes of upgraded sockets at a drain. `close`: each is closed by its protocol, spread over the drain. `wait`: for
 * their clients to leave, until the deadline. `ignore`: the drain does not wait for them; they are closed at its end.
 */
export type WebsocketDrain = 'close' | 'wait' | 'ignore'

/** What a worker is told before its first line runs. */
export interface GuestConfig {
  readonly version: number
  readonly generation: number
  readonly slot: number
  readonly ready: 'listen' | 'message'
  readonly known: readonly KnownListener[]
  readonly times: WorkerTimes
  /** What `keepAliveTimeout` of the app's servers is raised to. */
  readonly keepAliveTimeoutMs: number | null
  readonly websocketDrain: WebsocketDrain
  /** Whether requests are counted and timed for {@link Statistics}. */
  readonly statistics: boolean
  /** Where Node's inspector would listen after SIGUSR1, which is then not kept (src/master/workers/blocked.ts); null: it is kept. */
  readonly inspectorPort: number | null
  /** The user's own `$PWD`, not resolved: `./app.sock` is one listener across releases. */
  readonly pwd: string
  /** Of its master. Not for the guest: by it the next master finds a worker that outlived its own. */
  readonly runtime: string
}

/** Why an address could not be had, with what Node's error needs. */
export interface WireError {
  readonly code: string
  readonly errno: number
  readonly syscall: string
}

/**
 * How a connection of a draining worker ended, each in exactly one way. Those that ended before the drain are only
 * counted ({@link Counts.earlier}).
 */
export const ENDINGS = [
  /** The client closed it. */
  'client',
  /** After its last response, which said `Connection: close`. */
  'response',
  /** Idle, when the time that its client was promised was over. */
  'idle',
  /** An HTTP/2 session, by GOAWAY. */
  'goaway',
  /** A WebSocket, by a close frame with status 1001. */
  'websocket',
  /** Another upgraded socket, by FIN; or the app itself closed it. */
  'other',
  /** By a deadline, with work in flight or before its promise was over. */
  'cut',
  /** By a reset of the peer. */
  'reset',
] as const
export type Ending = (typeof ENDINGS)[number]

/** What became of a request. */
export const OUTCOMES = [
  /** Its response was written whole before the drain began. */
  'before',
  /** The same, during the drain. */
  'during',
  /** A deadline ended its connection. */
  'cut',
  /** Its connection or stream ended first, and not by us: its client left, or the app destroyed it. */
  'aborted',
] as const
export type Outcome = (typeof OUTCOMES)[number]

/**
 * How the connections and requests of a worker stand, since it started. The sums agree:
 * `accepted = earlier + endings + open`, `requests = outcomes + active`.
 */
export interface Counts {
  readonly accepted: number
  /** Connections that had ended when the drain began; while serving: that have ended. */
  readonly earlier: number
  readonly endings: Readonly<Record<Ending, number>>
  /** Connections open now. */
  readonly open: number
  readonly requests: number
  readonly outcomes: Readonly<Record<Outcome, number>>
  /** Requests in flight now. */
  readonly active: number
}

/** What a connection is, as far as it holds a drain. An `event-stream` is a response of server-sent events. */
export const HELD_KINDS = ['request', 'event-stream', 'websocket', 'upgraded', 'idle', 'raw'] as const
export type HeldKind = (typeof HELD_KINDS)[number]

/** One request or connection that holds a drain open, or that a deadline ended. */
export interface Held {
  readonly what: HeldKind
  readonly method?: string
  /** Without its query. */
  readonly path?: string
  readonly ageMs: number
  /** Of the connection. */
  readonly bytesRead: number
  readonly bytesWritten: number
  readonly peer: string
}

/** What a worker waits for that does not leave. */
export interface Holding {
  /** The oldest first, requests before idle connections; at most {@link MAX_HOLDING}. */
  readonly oldest: readonly Held[]
  /** All of them, by kind. */
  readonly kinds: Readonly<Partial<Record<HeldKind, number>>>
  /** What keeps the event loop alive, by kind (`process.getActiveResourcesInfo()`). */
  readonly resources: Readonly<Record<string, number>>
}
export const MAX_HOLDING = 10

/** A request that was completed during a drain. */
export interface Slowest {
  readonly method: string
  readonly path: string
  readonly tookMs: number
}

/** How a probe looks into a worker. */
export type ProbeTarget =
  /** A GET through the worker's own HTTP server, on a private connection; `expect`: statuses from and to. */
  | {
      readonly k: 'http'
      readonly path: string
      readonly headers: Readonly<Record<string, string>>
      readonly expect: readonly [from: number, to: number]
      /** Which of several HTTP servers: the one that listens on that port; null: the first. */
      readonly port: number | null
    }
  /** A server of this worker listens on that port; null: any server. */
  | { readonly k: 'tcp'; readonly port: number | null }
  /** The app says so: by its `onProbe` function, or else by having said that it is ready. */
  | { readonly k: 'message' }
  /** The event loop turns. */
  | { readonly k: 'event-loop' }

/** The bounds of the latency histogram: bucket i holds what took less than 2^(i/4) * 0.125 ms, the last all the rest. */
export const LATENCY_BUCKETS = 72
export const latencyBoundMs = (bucket: number): number => 0.125 * 2 ** (bucket / 4)

/** What a worker has done since its start: the sums of a later message contain those of an earlier. */
export interface Statistics {
  /** Requests answered, over HTTP/1.1 and HTTP/2; probes and warm-up are none. */
  readonly requests: number
  /** Of these with a status of 500 or more. */
  readonly errors: number
  /** Sum of their latencies. */
  readonly totalMs: number
  /** Pairs of bucket and count, of those that are not 0. */
  readonly latency: readonly (readonly [bucket: number, count: number])[]
  /** The longest delay of the event loop since the last message, in milliseconds. */
  readonly loopDelayMs: number
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
  /** Several at once, in their order: for an app with 600 ports one message and one look of the master, not 600. */
  | { readonly t: 'several'; readonly news: readonly News[] }
  /** The drain has begun and takes at most so long: clients may have been promised more than the drain timeout. */
  | { readonly t: 'draining'; readonly timeoutMs: number }
  | { readonly t: 'counts'; readonly counts: Counts }
  | { readonly t: 'statistics'; readonly statistics: Statistics }
  /** `failure`: null, it passed. */
  | { readonly t: 'probed'; readonly id: number; readonly failure: string | null }
  | { readonly t: 'warmed'; readonly sent: number; readonly failure: string | null }
  /** No connection is left, or the deadline cut the rest; the app's own shutdown begins. */
  | {
      readonly t: 'drained'
      readonly counts: Counts
      readonly cut: readonly Held[]
      readonly slowest: Slowest | null
    }
  /** The drain, or the app's own shutdown, takes more than a moment. */
  | { readonly t: 'holding'; readonly holding: Holding }
  /** The app ends the process in the midst of its drain. */
  | { readonly t: 'died'; readonly counts: Counts; readonly lost: readonly Held[] }
  | { readonly t: 'failed'; readonly failure: Failure }
  /** Last lines of stderr of a worker that ends before it was ready. */
  | { readonly t: 'stderr'; readonly text: string }
  /** A signal reached this worker that means "replace me". */
  | { readonly t: 'signalled'; readonly signal: string }
  /** The app has functions for the one worker that leads (`whileLeader`). */
  | { readonly t: 'leadership-asked' }
  /** They have all returned: this worker leads no more. */
  | { readonly t: 'leadership-ended' }
  | { readonly t: 'warning'; readonly text: string }
  /** A TLS server of that fingerprint (sha256, hex) listens there: which keys seal its session tickets? */
  | { readonly t: 'ticket-keys-asked'; readonly key: string; readonly fingerprint: string }

/** Where a worker listens. */
export type News = Extract<FromWorker, { t: 'claimed' | 'unclaimed' | 'private' | 'withdrawn' | 'ready' }>
/** In one message. */
export const MAX_NEWS = 1_000

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
  /** Comes with a handle. Accept on it instead of the copy you accept on; if you accept on none, close it. No answer. */
  | { readonly t: 'handle'; readonly purpose: 'turn'; readonly listener: KnownListener }
  | { readonly t: 'withdraw'; readonly key: string }
  /** Answer `probed` with the same id. */
  | {
      readonly t: 'probe'
      readonly id: number
      readonly kind: 'startup' | 'readiness' | 'liveness'
      readonly target: ProbeTarget
      readonly timeoutMs: number
    }
  /** Send yourself these requests, a few at a time, on private connections; answer `warmed`. */
  | {
      readonly t: 'warm-up'
      readonly paths: readonly string[]
      readonly count: number
      readonly timeoutMs: number
    }
  | { readonly t: 'drain'; readonly times: WorkerTimes }
  /** Stop waiting for connections: cut what is left and go on to the app's shutdown. */
  | { readonly t: 'cut' }
  /** This worker leads: run the app's functions for a leader. */
  | { readonly t: 'lead' }
  /** Abort them; answer `leadership-ended` when all have returned. */
  | { readonly t: 'step-down' }
  /** Exit at once. */
  | { readonly t: 'exit' }
  /** A listener that the master holds since: claims for it are answered at once. */
  | { readonly t: 'known'; readonly listener: KnownListener }
  /** A listener that the master released. */
  | { readonly t: 'forget'; readonly key: string }
  /** The answer to `ticket-keys-asked`, and again at each rotation: 48 bytes in base64. */
  | {
      readonly t: 'ticket-keys'
      readonly key: string
      readonly fingerprint: string
      readonly keys: string
    }

const isRecord = (x: unknown): x is Record<string, unknown> => typeof x === 'object' && x !== null

/** The message that `x` is: the master is trusted, so only the envelope is looked at. */
export function toWorker(x: unknown): ToWorker | undefined {
  return isRecord(x) && x.cmd === CMD && typeof x.t === 'string' ? (x as unknown as ToWorker) : undefined
}
