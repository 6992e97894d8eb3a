/**
 * The vocabulary of every decision the master makes: what is known (State), what can happen (Event), what can be
 * ordered (Command).
 *
 * Rules of this folder: no `node:` import, no clock, no log, no random number. Time arrives with each event, on
 * the shell's monotonic clock, in milliseconds. States are unions that hold only what their phase has. Four small
 * machines are composed: worker, slot, rollout, top. A generation does not know its role: the top points at it.
 */

/** Milliseconds on the shell's monotonic clock. */
export type Ms = number
export type GenerationId = number
export type SlotIndex = number
export type WorkerId = number
export type ReloadId = string
export type AskId = number
export type ListenerKey = string

/**
 * When something waited for runs out. The property has a name of its own so that {@link ./timers.ts} finds every
 * timer in a state by walking it: a timer cannot be forgotten by `deadline` or by a shift of the clock.
 */
export interface Timer {
  readonly timerAt: Ms
}

/** What a generation was pinned with, as far as decisions need it. Times in milliseconds. */
export interface Policy {
  readonly slots: number
  /** `listen`: ready when it listens on all that is wanted; `message`: and when the app said so. */
  readonly ready: 'listen' | 'message'
  readonly startTimeoutMs: Ms
  readonly drainTimeoutMs: Ms
  readonly shutdownTimeoutMs: Ms
  readonly killTimeoutMs: Ms
  /** How long a worker may take to accept on a listener it was granted. */
  readonly grantTimeoutMs: Ms
  /** A worker that was ready for so long died of something new: its slot's deaths count from one again. */
  readonly minUptimeMs: Ms
  readonly maxRestarts: number
  /** Old generations that may drain at the same time. */
  readonly maxDraining: number
}

/** Why a worker leaves. The first cause wins. */
export type Leave = 'replaced' | 'rolled-back' | 'signal' | 'stop' | 'failed' | 'crowded-out'

/** A listener this worker listens on, seen from the master: may it accept there yet? */
export type Grant =
  { readonly k: 'held' } | { readonly k: 'opening'; readonly by: Timer } | { readonly k: 'open' }

export type WorkerPhase =
  /** `settle`: it has only a private listener so far; if nothing else comes until then, that is its readiness. */
  | {
      readonly k: 'booting'
      readonly by: Timer
      readonly settle: Timer | 'settled' | null
      /** Processes that filled this place before and were killed by a stray signal before their first line. */
      readonly stillborn: number
    }
  | { readonly k: 'ready'; readonly since: Ms }
  /** Withdrawn; finishes what is in flight. */
  | { readonly k: 'draining'; readonly by: Timer; readonly why: Leave }
  /** No connection is left, or the deadline passed: the app's own shutdown runs. */
  | { readonly k: 'terminating'; readonly by: Timer; readonly why: Leave }
  /** SIGTERM sent: exit at once. */
  | { readonly k: 'dying'; readonly by: Timer; readonly why: Leave }
  /** SIGKILL sent. */
  | { readonly k: 'killed'; readonly why: Leave }

/** `steps-down`: it was told to, and its functions have not all returned yet. */
export type Leadership = 'none' | 'asked' | 'leads' | 'steps-down'

export interface Worker {
  readonly id: WorkerId
  readonly generation: GenerationId
  readonly slot: SlotIndex
  readonly phase: WorkerPhase
  readonly claims: ReadonlyMap<ListenerKey, Grant>
  /** Listens on an address of its own (port 0), which the master does not hold. */
  readonly listensPrivately: boolean
  readonly saidReady: boolean
  readonly leadership: Leadership
}

export type SlotState =
  | { readonly k: 'filled'; readonly by: WorkerId }
  /** `stillborn`: processes for this place so far that a stray signal killed before their first line. */
  | { readonly k: 'vacant'; readonly retry: Timer; readonly stillborn: number }
  /** Its worker was told to go by a signal; when no stop follows until `when`, a replacement is started. */
  | { readonly k: 'leaving'; readonly by: WorkerId; readonly when: Timer }
  | { readonly k: 'replacing'; readonly by: WorkerId; readonly with: WorkerId }

export interface Slot {
  readonly state: SlotState
  /** Deaths in a row without `minUptimeMs` of ready between them. */
  readonly deaths: number
  /** What a worker of this slot must listen on to be ready; null while nothing is known (first generation). */
  readonly wants: ReadonlySet<ListenerKey> | null
}

export interface Generation {
  readonly id: GenerationId
  readonly policy: Policy
  readonly slots: readonly Slot[]
}

export type Doing =
  /** The hands read config, code path and Node binary. */
  | { readonly k: 'pinning'; readonly by: Timer }
  | { readonly k: 'bringing-up'; readonly candidate: GenerationId }
  /** Every candidate worker is ready; all are granted; none of the old is touched yet. */
  | { readonly k: 'shifting'; readonly candidate: GenerationId }

export interface Rollout {
  readonly id: ReloadId
  readonly asks: readonly AskId[]
  readonly drop: ReadonlySet<ListenerKey>
  /** Listeners that the candidate claimed, also in workers that are gone: should it fail, they are of no use. */
  readonly claimed: ReadonlySet<ListenerKey>
  readonly since: Ms
  readonly doing: Doing
}

/** A reload asked for while it cannot begin yet. Any number of them become one rollout. */
export interface Waiting {
  readonly ask: AskId
  readonly drop: readonly ListenerKey[]
}

export type Top =
  | { readonly k: 'idle' }
  | {
      readonly k: 'starting'
      readonly current: GenerationId
      readonly since: Ms
      readonly next: readonly Waiting[]
    }
  | { readonly k: 'steady'; readonly current: GenerationId }
  | {
      readonly k: 'rolling-out'
      readonly current: GenerationId
      readonly rollout: Rollout
      readonly next: readonly Waiting[]
    }
  | { readonly k: 'stopping'; readonly status: 0 | 1; readonly why: readonly string[] }
  | { readonly k: 'ended' }

export interface State {
  /** The latest time seen: `at` never runs backwards. */
  readonly at: Ms
  readonly top: Top
  readonly generations: ReadonlyMap<GenerationId, Generation>
  readonly workers: ReadonlyMap<WorkerId, Worker>
  /** Listeners to release once no worker has a copy: a polled or held copy would keep clients hanging. */
  readonly dropping: ReadonlySet<ListenerKey>
  readonly nextGeneration: GenerationId
  readonly nextWorker: WorkerId
  readonly nextReload: number
}

/** Facts, in the past tense. */
export type Fact =
  | { readonly e: 'started'; readonly policy: Policy }
  | { readonly e: 'reload-asked'; readonly ask: AskId; readonly drop: readonly ListenerKey[] }
  | { readonly e: 'ask-gone'; readonly ask: AskId; readonly reason: string }
  | { readonly e: 'pinned'; readonly reload: ReloadId; readonly policy: Policy }
  | { readonly e: 'pin-failed'; readonly reload: ReloadId; readonly reasons: readonly string[] }
  | { readonly e: 'stop-asked'; readonly how: 'graceful' | 'now' }
  | { readonly e: 'claimed'; readonly worker: WorkerId; readonly key: ListenerKey }
  | { readonly e: 'unclaimed'; readonly worker: WorkerId; readonly key: ListenerKey }
  | { readonly e: 'listened-privately'; readonly worker: WorkerId }
  | { readonly e: 'said-ready'; readonly worker: WorkerId }
  | { readonly e: 'opened'; readonly worker: WorkerId; readonly key: ListenerKey }
  | {
      readonly e: 'open-failed'
      readonly worker: WorkerId
      readonly key: ListenerKey
      readonly reason: string
    }
  | { readonly e: 'withdrawn'; readonly worker: WorkerId; readonly key: ListenerKey }
  /** It drains, and says how long that may take: its clients may have been promised more than the drain timeout. */
  | { readonly e: 'drain-began'; readonly worker: WorkerId; readonly timeoutMs: Ms }
  | { readonly e: 'worker-drained'; readonly worker: WorkerId }
  | { readonly e: 'replace-asked'; readonly worker: WorkerId }
  | { readonly e: 'leadership-asked'; readonly worker: WorkerId }
  /** All its functions for a leader have returned: by themselves, or because it was told to step down. */
  | { readonly e: 'leadership-ended'; readonly worker: WorkerId }
  | {
      readonly e: 'worker-exited'
      readonly worker: WorkerId
      /** In the worker's own words where it gave some. */
      readonly reason: string
      /** It was killed by a signal meant for others before its first line could run (FACTS: the first ~20 ms). */
      readonly stillborn: boolean
    }
  /** The machine slept (a VM pause): what was waited for did not have its time either. */
  | { readonly e: 'overslept'; readonly lagMs: Ms }
  | { readonly e: 'ticked' }

export type Event = { readonly at: Ms } & Fact

export type Outcome = 'promoted' | 'rolled-back' | 'refused' | 'overtaken'

export interface Verdict {
  readonly outcome: Outcome
  readonly reload: ReloadId
  /** The generation that answers from now on; null while none does. */
  readonly current: GenerationId | null
  /** The generation it replaced, or the candidate that was rolled back. */
  readonly other: GenerationId | null
  readonly reasons: readonly string[]
  readonly tookMs: Ms
}

/** What was decided, for the log, systemd and whoever follows a rollout. */
export type Announcement =
  | { readonly a: 'serving'; readonly generation: GenerationId; readonly tookMs: Ms }
  | { readonly a: 'rollout-began'; readonly reload: ReloadId }
  | { readonly a: 'candidate-spawned'; readonly reload: ReloadId; readonly generation: GenerationId }
  | { readonly a: 'shifting'; readonly reload: ReloadId; readonly generation: GenerationId }
  | { readonly a: 'rollout-ended'; readonly verdict: Verdict }
  | { readonly a: 'worker-ready'; readonly worker: WorkerId }
  | {
      readonly a: 'vacancy'
      readonly generation: GenerationId
      readonly slot: SlotIndex
      readonly deaths: number
      readonly delayMs: Ms
      readonly reason: string
    }
  | {
      readonly a: 'replacement-failed'
      readonly generation: GenerationId
      readonly slot: SlotIndex
      readonly reason: string
    }
  | { readonly a: 'crowded-out'; readonly generation: GenerationId }
  | { readonly a: 'generation-ended'; readonly generation: GenerationId }
  | { readonly a: 'stopping'; readonly status: 0 | 1; readonly why: readonly string[] }

/** Orders, in the imperative. */
export type Command =
  | { readonly c: 'pin'; readonly reload: ReloadId; readonly generation: GenerationId }
  | {
      readonly c: 'spawn'
      readonly worker: WorkerId
      readonly generation: GenerationId
      readonly slot: SlotIndex
    }
  | { readonly c: 'open'; readonly worker: WorkerId; readonly key: ListenerKey }
  /** Withdraw every listener, finish what is in flight, then the app's own shutdown. */
  | { readonly c: 'drain'; readonly worker: WorkerId }
  /** End what is in flight now and go on to the app's own shutdown. */
  | { readonly c: 'cut'; readonly worker: WorkerId }
  /** SIGTERM: exit at once. */
  | { readonly c: 'terminate'; readonly worker: WorkerId }
  | { readonly c: 'kill'; readonly worker: WorkerId }
  /** It is the one worker that leads, until it says that it does no more or ends. */
  | { readonly c: 'lead'; readonly worker: WorkerId }
  | { readonly c: 'step-down'; readonly worker: WorkerId }
  | { readonly c: 'release'; readonly key: ListenerKey }
  | { readonly c: 'unpin'; readonly generation: GenerationId }
  | { readonly c: 'answer'; readonly ask: AskId; readonly verdict: Verdict }
  | { readonly c: 'announce'; readonly what: Announcement }
  | { readonly c: 'exit'; readonly status: 0 | 1; readonly why: readonly string[] }

export const initialState: State = {
  at: 0,
  top: { k: 'idle' },
  generations: new Map(),
  workers: new Map(),
  dropping: new Set(),
  nextGeneration: 1,
  nextWorker: 1,
  nextReload: 1,
}
