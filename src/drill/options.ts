/** What a drill is told, and what it says. The JSON of `usr2 drill --json` is a {@link DrillResult}. */
import type { Drained, Verdict } from '../master/face.ts'
import type { Ledger } from '../master/figures/ledger.ts'
import type { Target } from './plan.ts'
import type { Detail, KindResult, Slice } from './result.ts'
import type { TallyResult } from './tally.ts'

export interface DrillOptions {
  /** The app to be started under a master of its own, or the running master. */
  readonly app:
    | { readonly argv: readonly string[]; readonly startTimeoutMs: number; readonly stopBudgetMs: number }
    | { readonly control: readonly string[]; readonly name: string | undefined }
  readonly cwd: string
  readonly env: NodeJS.ProcessEnv
  /** Empty: every listener of the app. */
  readonly targets: readonly NamedTarget[]
  readonly mix: MixOptions
  readonly reloads: number
  /** Undisturbed traffic before the first reload and after the last, and between two. */
  readonly steadyMs: number
  readonly pauseMs: number
  /** Without a byte for that long a request hangs. */
  readonly timeoutMs: number
}

export interface NamedTarget {
  readonly label: string
  readonly target: Target
}

export interface MixOptions {
  readonly paths: readonly string[]
  readonly streams: readonly string[]
  readonly post: string | null
  readonly body: Buffer | null
  readonly uploadMs: number
  readonly webSocket: string | null
  readonly webSockets: number
  /** Also where the probe did not find it. */
  readonly http2: boolean
  readonly headers: readonly string[]
  /** Of the requests that are neither uploads nor streams, all kinds together. */
  readonly perSecond: number
  /** At most that many requests of each kind are outstanding. */
  readonly connections: number
}

/** One kind of traffic. */
export interface MixResult extends TallyResult {
  readonly kind: string
  readonly method: string
  readonly path: string
  readonly target: string
  /** The statuses of the preflight: what counts as a good answer. */
  readonly normal: readonly number[]
}

export interface ReloadResult {
  readonly number: number
  readonly outcome: Verdict['outcome']
  readonly from: number | null
  readonly to: number | null
  /** From the signal to the verdict, and to the end of the last old worker. */
  readonly promotedMs: number
  readonly drainedMs: number | null
  /** After the start of the load, for the picture. */
  readonly askedAtMs: number
  readonly promotedAtMs: number
  readonly drainedAtMs: number | null
  readonly requests: number
  readonly failed: number
  readonly text: string
  readonly reasons: readonly string[]
  /** As the master says it: `usr2 reload --wait drained --json`. */
  readonly drained: Drained | null
}

export interface DrillResult {
  readonly ok: boolean
  /** The verdict in a sentence. */
  readonly verdict: string
  readonly app: {
    readonly name: string
    readonly private: boolean
    readonly usr2: string
    readonly node: string
  }
  readonly startedAt: string
  readonly tookMs: number
  readonly requests: number
  readonly good: number
  readonly retryable: number
  readonly failed: number
  readonly failures: Readonly<Record<string, number>>
  /** Due, and never sent: as many as allowed were outstanding. */
  readonly unsent: number
  /** From when a request was due to the end of its answer; uploads and streams left out. */
  readonly latency: {
    readonly steady: KindResult | null
    /** From the signal to the promotion. */
    readonly reload: KindResult | null
    /** From the promotion to the end of the last old worker. */
    readonly drain: KindResult | null
  }
  readonly mix: readonly MixResult[]
  readonly reloads: readonly ReloadResult[]
  /** Of all drains, added up. */
  readonly ledger: Ledger
  /** How WebSockets ended that the server ended: by close code, or `bare`. */
  readonly webSocketEnds: Readonly<Record<string, number>>
  /** The generations that answered, in the order of `epochs` in `timeline`. */
  readonly generations: readonly number[]
  readonly timeline: readonly Slice[]
  readonly sliceMs: number
  readonly details: readonly Detail[]
  /** What the user should know and that is no failure, in sentences. */
  readonly notes: readonly string[]
}

/** The user's to set right: the drill has not begun. */
export class DrillComplaint extends Error {
  override name = 'DrillComplaint'
  readonly complaints: readonly string[]

  constructor(complaints: readonly string[]) {
    super(complaints.join('\n'))
    this.complaints = complaints
  }
}
