/** What a load says when it is over, or in between. */
import type { FailureClass, Latency, TallyResult } from './tally.ts'

export interface Detail {
  readonly failure: FailureClass
  readonly traffic: string
  readonly text: string
  readonly phase: string
  /** When it failed, in milliseconds after the last mark and after the start; how old the request was then. */
  readonly afterMarkMs: number
  readonly afterStartMs: number
  readonly requestAgeMs: number | null
}

export interface VersionCount {
  readonly responses: number
  /** Epoch milliseconds with fractions, as {@link now} gives. */
  readonly firstAtMs: number
  readonly lastAtMs: number
  /** From the mark of the phase in which it was first seen to its first response. */
  readonly firstAfterMarkMs: number
}

export interface PhaseResult extends TallyResult {
  readonly name: string
  readonly startedAtMs: number
  readonly durationMs: number
  readonly perSecond: number
  readonly traffic: Readonly<Record<string, TallyResult>>
  readonly versions: Readonly<Record<string, number>>
}

/** Phases that were marked as of one kind, together; latency without `untimed` traffic. */
export interface KindResult extends TallyResult {
  readonly durationMs: number
}

/** What ended within one `sliceMs`, for a picture. */
export interface Slice {
  /** After the start. */
  readonly atMs: number
  readonly ok: number
  readonly retryable: number
  readonly failed: number
  /** Of the good ones, without `untimed` traffic. */
  readonly latency: Latency | null
  /** The good ones by the epoch in which their connection was opened: 0 before the first, as `epoch` counts. */
  readonly epochs: Readonly<Record<string, number>>
}

export interface LoadResult extends TallyResult {
  readonly startedAtMs: number
  readonly durationMs: number
  readonly perSecond: number
  readonly connects: number
  /** Responses that said `Connection: close` though the request had not asked for it. */
  readonly closeHeaders: number
  /** Idle connections that the server closed and was free to close. */
  readonly idleClosed: number
  /** Of `status` failures. */
  readonly statuses: Readonly<Record<string, number>>
  readonly traffic: Readonly<Record<string, TallyResult>>
  /** Every status that was seen, by traffic. */
  readonly answers: Readonly<Record<string, Readonly<Record<string, number>>>>
  /** How WebSockets ended that were not ended by us: close codes, or `bare`. */
  readonly webSocketEnds: Readonly<Record<string, number>>
  /** Open loop: due before the stop, and never sent, because as many as allowed were outstanding. */
  readonly unsent: number
  readonly slices: readonly Slice[]
  readonly kinds: Readonly<Record<string, KindResult>>
  /** A request counts in the phase in which it ended. */
  readonly phases: readonly PhaseResult[]
  readonly versions: Readonly<Record<string, VersionCount>>
  /** Of `status` failures, by the version that answered: `{ '2.0.0': { 500: 12 } }`. */
  readonly statusesByVersion: Readonly<Record<string, Readonly<Record<string, number>>>>
  /** The first 10 failures of each class and traffic. */
  readonly details: readonly Detail[]
}
