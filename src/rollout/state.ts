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

/** So many workers, or so many of a hundred of the slots: Kubernetes' IntOrString. */
export type Amount =
  { readonly k: 'workers'; readonly n: number } | { readonly k: 'percent'; readonly n: number }

export const PROBES = ['startup', 'readiness', 'liveness'] as const
export type ProbeKind = (typeof PROBES)[number]

/** When a worker is probed, and how many answers in a row change its standing: Kubernetes' fields and meanings. */
export interface ProbePolicy {
  readonly initialDelayMs: Ms
  readonly periodMs: Ms
  readonly timeoutMs: Ms
  readonly successThreshold: number
  readonly failureThreshold: number
}

/** What an analysis looks at. Rates are fractions, times milliseconds. */
export const METRICS = ['errorRate', 'p50', 'p90', 'p99', 'probeSuccess', 'loopDelay', 'crashes'] as const
export type Metric = (typeof METRICS)[number]

/** `p99 < 300` (ms), or relative to the current generation at the same time: `p99 < 1.5x`. */
export interface Limit {
  readonly metric: Metric
  readonly op: '<' | '<=' | '>' | '>='
  readonly value: number
  readonly relative: boolean
}

/** A generation over a stretch of time; null: nothing to tell it from. */
export type Figures = Readonly<Record<Metric, number | null>> & { readonly requests: number }

export interface Analysis {
  readonly intervalMs: Ms
  /** Measurements until it has passed. */
  readonly count: number
  /** So many of them may fail. */
  readonly failureLimit: number
  /** With fewer requests than that of the candidate, or of the current generation, a measurement says nothing. */
  readonly minRequests: number
  /** What an analysis comes to in which some measurement said nothing. */
  readonly inconclusive: 'pass' | 'fail' | 'pause'
  readonly limits: readonly Limit[]
}

/** A rollout is a list of these. The strategies that people know are lists with names (src/strategy.ts). */
export type Step =
  /** The candidate's share of the workers that accept; 0: the whole candidate is brought up, behind the gate. */
  | { readonly k: 'share'; readonly percent: number }
  | { readonly k: 'hold'; readonly forMs: Ms | 'promote' }
  | { readonly k: 'analyse'; readonly analysis: Analysis }

export const HOOKS = ['beforeSpawn', 'beforePromote', 'afterPromote', 'afterRollback', 'beforeStop'] as const
export type Hook = (typeof HOOKS)[number]

/** A worker past one of these is replaced, new first; null: no limit. */
export interface ReplaceAt {
  readonly memoryBytes: number | null
  readonly requests: number | null
  readonly ageMs: Ms | null
}

/** What a generation was pinned with, as far as decisions need it. Times in milliseconds. */
export interface Policy {
  readonly slots: number
  readonly steps: readonly Step[]
  /** Workers beyond the slots, and short of them, in which a rollout may be. */
  readonly maxSurge: Amount
  readonly maxUnavailable: Amount
  /**
   * What becomes of the workers that the candidate's take the place of, before it is promoted. `parked`: they stay,
   * accept nothing, and are back in milliseconds; `drained`: they leave, for an application of which no two fit into memory.
   */
  readonly replaced: 'parked' | 'drained'
  /** How long the candidate must have served, whole, before it is promoted; `drained`: each batch of it. */
  readonly minReadyMs: Ms
  /** For one share to be reached. */
  readonly progressDeadlineMs: Ms
  /** How long the previous generation is kept for an instant rollback. */
  readonly parkForMs: Ms
  /** Of an analysis. */
  readonly onFailure: 'rollback' | 'pause'
  readonly probes: Readonly<Partial<Record<ProbeKind, ProbePolicy>>>
  /** Whether a worker is sent requests of ours before it is ready. */
  readonly warmUp: boolean
  readonly hooks: readonly Hook[]
  readonly hookTimeoutMs: Ms
  /** A graceful stop begins so much later, for load balancers to send new connections elsewhere. */
  readonly stopDelayMs: Ms
  readonly replaceAt: ReplaceAt
  /** `listen`: ready when it listens on all that is wanted; `message`: and when the app said so. */
  readonly ready: 'listen' | 'message'
  readonly startTimeoutMs: Ms
  readonly drainTimeoutMs: Ms
  readonly shutdownTimeoutMs: Ms
  readonly killTimeoutMs: Ms
  /**
   * How long a worker may take to accept on a listener it was granted, or to stop. Right after its start it has what is left
   * of its start timeout, where that is longer.
   */
  readonly grantTimeoutMs: Ms
  /** A worker that was ready for so long died of something new: its slot's deaths count from one again. */
  readonly minUptimeMs: Ms
  readonly maxRestarts: number
  /** Old generations that may drain at the same time. */
  readonly maxDraining: number
}

/** Why a worker leaves. The first cause wins. */
export type Leave =
  | 'replaced'
  | 'rolled-back'
  | 'signal'
  | 'stop'
  | 'failed'
  | 'crowded-out'
  | 'scaled-down'
  | 'unparked'
  | 'liveness'
  | 'limit'

/** A listener this worker listens on, seen from the master: may it accept there yet? */
export type Grant =
  | { readonly k: 'held' }
  | { readonly k: 'opening'; readonly by: Timer; readonly withinMs: Ms }
  | { readonly k: 'open' }
  /** It was told to accept no more there, and has not said yet that it does not. */
  | { readonly k: 'withdrawing'; readonly by: Timer; readonly withinMs: Ms }

/** One probe of one worker. */
export interface Probing {
  readonly doing:
    | { readonly k: 'waiting'; readonly next: Timer }
    | { readonly k: 'asking'; readonly by: Timer }
    /** A startup probe that has passed is not asked again. */
    | { readonly k: 'done' }
  /** The number of the question asked last: an answer to an earlier one came too late. */
  readonly nth: number
  /** Answers in a row, of which one is 0. */
  readonly successes: number
  readonly failures: number
  readonly standing: 'unknown' | 'passing' | 'failing'
  /** Of the last failure, in words. */
  readonly why: string
}

/** Why a worker that serves is to be replaced. */
export interface Tired {
  readonly why: 'liveness' | 'memory' | 'requests' | 'age'
  /** In words, with the figures. */
  readonly detail: string
  /** It is not put off by a rollout. */
  readonly urgent: boolean
  /** After a replacement that failed, or had no room, it is tried again later. */
  readonly when: Timer | 'now'
  /** For its memory: what its replacement finds, as of the last look. */
  readonly memory: Memory | null
}

export type WorkerPhase =
  /** `settle`: it has only a private listener so far; if nothing else comes until then, that is its readiness. */
  | {
      readonly k: 'booting'
      readonly by: Timer
      readonly settle: Timer | 'settled' | null
      /** Processes that filled this place before and were killed by a stray signal before their first line. */
      readonly stillborn: number
    }
  /** `ages`: when it is to be replaced for its age. */
  | { readonly k: 'ready'; readonly since: Ms; readonly ages: Timer | null }
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
  /** It was told to accept at some time, and may have connections since, also where it is to accept no more. */
  readonly wasOpened: boolean
  /** Listens on an address of its own (port 0), which the master does not hold. */
  readonly listensPrivately: boolean
  readonly saidReady: boolean
  readonly leadership: Leadership
  /** Those of its probes that have begun. */
  readonly probes: Readonly<Partial<Record<ProbeKind, Probing>>>
  readonly warmth: 'cold' | 'warming' | 'warm'
  readonly tired: Tired | null
}

export type SlotState =
  /** Nobody is to be in it: the rollout has not come to it yet, or has taken its worker out. */
  | { readonly k: 'empty' }
  | { readonly k: 'filled'; readonly by: WorkerId }
  /** `stillborn`: processes for this place so far that a stray signal killed before their first line. */
  | { readonly k: 'vacant'; readonly retry: Timer; readonly stillborn: number }
  /** Its worker was told to go by a signal; when no stop follows until `when`, a replacement is started. */
  | { readonly k: 'leaving'; readonly by: WorkerId; readonly when: Timer }
  /** Its worker leaves, and there is no room for another before it has gone. */
  | { readonly k: 'clearing'; readonly of: WorkerId }
  | { readonly k: 'replacing'; readonly by: WorkerId; readonly with: WorkerId; readonly why: Leave }

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

/** A step as it will be done with the workers that there are (src/rollout/plan.ts). */
export type Planned =
  | {
      readonly k: 'share'
      /** As asked for, and as it will be. */
      readonly percent: number
      readonly realPercent: number
      /** Workers of the candidate that are up, and of these that accept. */
      readonly raise: number
      readonly open: number
      /** Workers of the current generation that accept no more. */
      readonly out: number
    }
  | { readonly k: 'hold'; readonly forMs: Ms | 'promote' }
  | { readonly k: 'analyse'; readonly analysis: Analysis }
  /** The candidate serves alone; what it replaced is kept until it has done so for that long. */
  | { readonly k: 'watch'; readonly forMs: Ms }

/** How an analysis stands. */
export interface Tally {
  readonly taken: number
  readonly failed: number
  readonly unclear: number
}

export type Doing =
  /** The hands read config, code path and Node binary. */
  | { readonly k: 'pinning'; readonly by: Timer }
  /** `beforeSpawn` runs. */
  | { readonly k: 'before-spawn'; readonly by: Timer; readonly policy: Policy }
  /** The candidate's workers of this share become ready, behind the gate. */
  | { readonly k: 'bringing-up'; readonly candidate: GenerationId; readonly by: Timer }
  /** `beforePromote` runs: everything is ready for the last share. */
  | { readonly k: 'before-promote'; readonly candidate: GenerationId; readonly by: Timer }
  /** They are all ready and are granted; then as many of the current generation accept no more. */
  | { readonly k: 'shifting'; readonly candidate: GenerationId; readonly by: Timer }
  /** A batch serves, and must do so for a while before the next. */
  | {
      readonly k: 'settling'
      readonly candidate: GenerationId
      readonly until: Timer
      /** Of the next batch: one that cannot be opened makes no progress, however often this one has settled. */
      readonly by: Timer
    }
  | { readonly k: 'holding'; readonly candidate: GenerationId; readonly until: Timer | 'promote' }
  | {
      readonly k: 'analysing'
      readonly candidate: GenerationId
      readonly next: Timer
      readonly tally: Tally
    }
  | {
      readonly k: 'paused'
      readonly candidate: GenerationId
      readonly by: 'operator' | 'analysis'
      readonly why: string
      /** What goes on with `resume`: a hold with what is left of it, or else its step from the start. */
      readonly leftMs: Ms | null
      /** What its analysis had come to; null: it was in none. */
      readonly tally: Tally | null
    }

export interface Rollout {
  readonly id: ReloadId
  /** A `rollback` has an earlier generation, or its version, for a candidate. */
  readonly kind: 'reload' | 'rollback'
  /** The generation that a rollback goes back to. */
  readonly of: GenerationId | null
  /** What it is for, where nobody asked for it. */
  readonly why: string | null
  readonly asks: readonly AskId[]
  readonly drop: ReadonlySet<ListenerKey>
  /** Listeners that the candidate claimed, also in workers that are gone: should it fail, they are of no use. */
  readonly claimed: ReadonlySet<ListenerKey>
  readonly since: Ms
  readonly doing: Doing
  readonly plan: readonly Planned[]
  /** The step of the plan that it is at. */
  readonly at: number
  /** Slots of the candidate that are to be filled, and of these whose gate is open: the first ones. */
  readonly raised: number
  readonly open: number
  /** Slots of the current generation that are out of rotation: the first ones. */
  readonly out: number
  /** The operator asked for a pause: at the end of this share. */
  readonly pause: 'none' | 'asked'
  readonly hooked: 'not-yet' | 'beforePromote'
}

/** A reload asked for while it cannot begin yet. Any number of them become one rollout. */
export interface Waiting {
  readonly ask: AskId
  readonly drop: readonly ListenerKey[]
}

/** The previous generation, alive and accepting nothing, for an instant rollback. */
export interface Parked {
  readonly generation: GenerationId
  readonly until: Timer
}

export type Top =
  | { readonly k: 'idle' }
  | {
      readonly k: 'starting'
      readonly current: GenerationId
      readonly since: Ms
      readonly next: readonly Waiting[]
    }
  | { readonly k: 'steady'; readonly current: GenerationId; readonly parked: Parked | null }
  | {
      readonly k: 'rolling-out'
      readonly current: GenerationId
      readonly rollout: Rollout
      readonly next: readonly Waiting[]
      /** Kept until this rollout has a candidate: one that is refused before leaves everything as it was. */
      readonly parked: Parked | null
    }
  /** A stop was asked for, and everything serves on: `beforeStop` runs, then load balancers have their time. */
  | {
      readonly k: 'leaving'
      readonly current: GenerationId
      readonly doing: 'before-stop' | 'delay'
      readonly until: Timer
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
  /** Generations that were current, the latest last, whose version can be booted again. */
  readonly history: readonly GenerationId[]
  /** What each of these listened on: no more can be wanted of its version when it is booted again. */
  readonly listened: ReadonlyMap<GenerationId, ReadonlySet<ListenerKey>>
  /** The number of slots that an operator asked for, while the configured one stays what it was. */
  readonly scale: { readonly slots: number; readonly configured: number } | null
  readonly nextGeneration: GenerationId
  readonly nextWorker: WorkerId
  readonly nextReload: number
}

/** Bytes that can still be had, and that one more worker takes. */
export interface Memory {
  readonly freeBytes: number
  readonly workerBytes: number
}

export type OrderId = number

/** What a master that replaces another one goes on from. */
export interface Heritage {
  readonly nextGeneration: GenerationId
  readonly nextReload: number
  /** By slot: what its worker listens on now, and the new one must listen on, too, before it is ready. */
  readonly wants: readonly (readonly ListenerKey[])[]
  readonly scale: State['scale']
  /** What can be booted again, its current generation the last, and what each listened on. */
  readonly history: readonly { readonly id: GenerationId; readonly listened: readonly ListenerKey[] }[]
}

/** What an operator may ask of a rollout that runs, or of the number of slots. */
export type Order =
  /** Ends a hold or a pause; `full`: every one that is to come, and every analysis. */
  | { readonly k: 'promote'; readonly full: boolean }
  | { readonly k: 'pause' }
  | { readonly k: 'resume' }
  | { readonly k: 'abort' }
  | { readonly k: 'scale'; readonly to: number }
  | { readonly k: 'scale-by'; readonly by: number }

/** Facts, in the past tense. */
export type Fact =
  /** `heritage`: of the master that this one is to replace (`usr2 upgrade`). */
  | { readonly e: 'started'; readonly policy: Policy; readonly heritage?: Heritage }
  | { readonly e: 'reload-asked'; readonly ask: AskId; readonly drop: readonly ListenerKey[] }
  | { readonly e: 'ask-gone'; readonly ask: AskId; readonly reason: string }
  | {
      readonly e: 'pinned'
      readonly reload: ReloadId
      readonly policy: Policy
      readonly memory: Memory | null
    }
  /** `to`: null, the generation before the current one. `reason`: of one that nobody asked for. */
  | { readonly e: 'rollback-asked'; readonly ask: AskId; readonly to: GenerationId | null }
  | { readonly e: 'ordered'; readonly order: OrderId; readonly what: Order }
  /** `failure`: null, it ended with status 0. */
  | {
      readonly e: 'hook-ended'
      readonly reload: ReloadId
      readonly hook: Hook
      readonly failure: string | null
    }
  | {
      readonly e: 'measured'
      readonly reload: ReloadId
      readonly candidate: Figures
      readonly current: Figures
    }
  | {
      readonly e: 'probed'
      readonly worker: WorkerId
      readonly probe: ProbeKind
      readonly nth: number
      /** Why not, in words; null: it passed. */
      readonly failure: string | null
    }
  /** `failure`: the first request that was not answered, in words. */
  | { readonly e: 'warmed'; readonly worker: WorkerId; readonly failure: string | null }
  | {
      readonly e: 'weighed'
      readonly worker: WorkerId
      readonly rssBytes: number | null
      readonly requests: number
      /** What another one like it would find; null: nobody knows, or has looked. */
      readonly memory: Memory | null
    }
  | { readonly e: 'pin-failed'; readonly reload: ReloadId; readonly reasons: readonly string[] }
  /** `replaced`: another master serves on, so the host takes no leave; else as graceful. */
  | { readonly e: 'stop-asked'; readonly how: 'graceful' | 'now' | 'replaced' }
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
  /** It broke the rules between it and us, and can be told nothing any more. `reason`: the end of "slot 0 …". */
  | { readonly e: 'worker-broke'; readonly worker: WorkerId; readonly reason: string }
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
  /** Facts that came at the same moment: what follows from them is looked at once, when all are taken in. */
  | { readonly e: 'together'; readonly facts: readonly Fact[] }
  | { readonly e: 'ticked' }

export type Event = { readonly at: Ms } & Fact

export type Outcome = 'promoted' | 'rolled-back' | 'refused' | 'overtaken'

export interface Verdict {
  /** Of a rollback that went well `promoted`, too: the generation that it went back to answers. */
  readonly outcome: Outcome
  readonly kind: Rollout['kind']
  readonly reload: ReloadId
  /** The generation that answers from now on; null while none does. */
  readonly current: GenerationId | null
  /** The generation it replaced, or the candidate that was rolled back. */
  readonly other: GenerationId | null
  readonly reasons: readonly string[]
  readonly tookMs: Ms
}

/** What one measurement came to, limit by limit. */
export interface Judgement {
  readonly verdict: 'pass' | 'fail' | 'unclear'
  readonly findings: readonly Finding[]
  /** Why it is unclear. */
  readonly why: string
}
export interface Finding {
  readonly limit: Limit
  readonly candidate: number | null
  readonly current: number | null
  readonly holds: boolean | null
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
  | { readonly a: 'planned'; readonly reload: ReloadId; readonly plan: readonly Planned[] }
  /** The memory is too small for the strategy: another one was taken. */
  | { readonly a: 'fell-back'; readonly reload: ReloadId; readonly why: string }
  | { readonly a: 'share-reached'; readonly reload: ReloadId; readonly at: number }
  | { readonly a: 'holding'; readonly reload: ReloadId; readonly at: number }
  | {
      readonly a: 'analysed'
      readonly reload: ReloadId
      readonly judgement: Judgement
      readonly tally: Tally
    }
  | { readonly a: 'paused'; readonly reload: ReloadId; readonly why: string }
  | { readonly a: 'resumed'; readonly reload: ReloadId }
  | { readonly a: 'hook-failed'; readonly hook: Hook; readonly why: string }
  /** `stays`: it accepts on, since nobody else would. */
  | { readonly a: 'unready'; readonly worker: WorkerId; readonly why: string; readonly stays: boolean }
  | { readonly a: 'ready-again'; readonly worker: WorkerId }
  | { readonly a: 'warm-up-failed'; readonly worker: WorkerId; readonly why: string }
  | { readonly a: 'tired'; readonly worker: WorkerId; readonly tired: Tired }
  /** Two do not fit into memory. `leaves`: it goes before its replacement is started; else it serves on for now. */
  | { readonly a: 'no-room'; readonly worker: WorkerId; readonly memory: Memory; readonly leaves: boolean }
  | { readonly a: 'parked'; readonly generation: GenerationId; readonly forMs: Ms }
  | { readonly a: 'unparked'; readonly generation: GenerationId; readonly why: string }
  | { readonly a: 'scaled'; readonly from: number; readonly to: number }
  | { readonly a: 'generation-ended'; readonly generation: GenerationId }
  /** A stop was asked for, and begins at most so much later. */
  | { readonly a: 'leaving'; readonly inMs: Ms }
  | { readonly a: 'stopping'; readonly status: 0 | 1; readonly why: readonly string[] }

/** Orders, in the imperative. */
export type Command =
  /** `of`: the generation whose version it is to be again; null: what is on disk now. */
  | {
      readonly c: 'pin'
      readonly reload: ReloadId
      readonly generation: GenerationId
      readonly of: GenerationId | null
    }
  | {
      readonly c: 'spawn'
      readonly worker: WorkerId
      readonly generation: GenerationId
      readonly slot: SlotIndex
    }
  /** `withinMs`: by then it has failed if it does not accept. */
  | { readonly c: 'open'; readonly worker: WorkerId; readonly key: ListenerKey; readonly withinMs: Ms }
  /** Accept no more there; stay. */
  | { readonly c: 'withdraw'; readonly worker: WorkerId; readonly key: ListenerKey }
  | {
      readonly c: 'probe'
      readonly worker: WorkerId
      readonly probe: ProbeKind
      readonly nth: number
      readonly timeoutMs: Ms
    }
  | { readonly c: 'warm-up'; readonly worker: WorkerId }
  /** Its event loop does not answer: find out what blocks it. */
  | { readonly c: 'look-into'; readonly worker: WorkerId }
  | {
      readonly c: 'run-hook'
      readonly hook: Hook
      readonly reload: ReloadId
      readonly current: GenerationId | null
      readonly candidate: GenerationId | null
    }
  /** The figures of both generations over the last `overMs`. */
  | {
      readonly c: 'measure'
      readonly reload: ReloadId
      readonly candidate: GenerationId
      readonly current: GenerationId
      readonly overMs: Ms
    }
  /** `problem`: a sentence, and nothing was changed; null: done. */
  | { readonly c: 'reply'; readonly order: OrderId; readonly problem: string | null }
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
  history: [],
  listened: new Map(),
  scale: null,
  nextGeneration: 1,
  nextWorker: 1,
  nextReload: 1,
}
