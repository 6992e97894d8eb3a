/**
 * What the master knows of each generation since its own start. Kept in the master, so that a counter survives the
 * workers that it counts. Pure.
 */
import { latencyBoundMs, LATENCY_BUCKETS } from '../../protocol.ts'
import type { Rollout } from '../../rollout/state.ts'
import type { Verdict } from '../face.ts'
import type { Ledger } from './ledger.ts'
import { sumOf } from './ledger.ts'

/** Sums over all workers that a generation has had, those that have gone too. No figure ever falls. */
export interface GenerationTotals {
  /** `older`: all those before the last {@link KEPT_GENERATIONS}, together. */
  readonly generation: number | 'older'
  /** What was pinned; empty for `older`. */
  readonly version: string
  /** Requests answered, those with a status of 500 or more, and the sum of their latencies. */
  readonly requests: number
  readonly errors: number
  readonly totalMs: number
  /** Requests by bucket: `latency[i]` took less than `latencyBoundMs(i)`, and no less than the bound before. */
  readonly latency: readonly number[]
  /** Workers that died without being asked to. */
  readonly crashes: number
  /** Workers that were started in the place of one that died or was replaced. */
  readonly restarts: number
  readonly ledger: Ledger
}

/** How many reloads and rollbacks had which verdict. */
export type Verdicts = Readonly<Record<Rollout['kind'], Readonly<Record<Verdict['outcome'], number>>>>

export const NO_VERDICTS: Verdicts = {
  reload: { promoted: 0, 'rolled-back': 0, refused: 0, overtaken: 0 },
  rollback: { promoted: 0, 'rolled-back': 0, refused: 0, overtaken: 0 },
}

/** A label's value costs memory in Prometheus for as long as it keeps data: a deploy an hour would be 9000 a year. */
export const KEPT_GENERATIONS = 10

/**
 * The last {@link KEPT_GENERATIONS}, and before them one sum of all others. Of this result and further generations it
 * makes the same as of all at once: so a master may put it in the place of what it kept, except for generations that
 * still have workers, whose figures go on rising.
 */
export function bounded(totals: readonly GenerationTotals[]): readonly GenerationTotals[] {
  const sorted = totals.toSorted((a, b) => numberOf(a) - numberOf(b))
  const numbered = sorted.filter(({ generation }) => generation !== 'older')
  const kept = numbered.slice(-KEPT_GENERATIONS)
  const older = sorted.slice(0, sorted.length - kept.length)
  return older.length === 0 ? kept : [sumOfTotals(older), ...kept]
}

const numberOf = ({ generation }: GenerationTotals): number => (generation === 'older' ? -1 : generation)

function sumOfTotals(totals: readonly GenerationTotals[]): GenerationTotals {
  const sum = (figure: (one: GenerationTotals) => number): number =>
    totals.reduce((all, one) => all + figure(one), 0)
  return {
    generation: 'older',
    version: '',
    requests: sum(({ requests }) => requests),
    errors: sum(({ errors }) => errors),
    totalMs: sum(({ totalMs }) => totalMs),
    latency: Array.from({ length: LATENCY_BUCKETS }, (_, i) => sum(({ latency }) => latency[i] ?? 0)),
    crashes: sum(({ crashes }) => crashes),
    restarts: sum(({ restarts }) => restarts),
    ledger: sumOf(totals.map(({ ledger }) => ledger)),
  }
}

/** Every fourth bound of the workers' histogram: 1 ms, 2 ms, 4 ms … 8.192 s. What is faster is in the first. */
const SHOWN = Array.from({ length: 14 }, (_, i) => 12 + 4 * i)
export const SHOWN_BOUNDS_MS: readonly number[] = SHOWN.map(latencyBoundMs)

/** How many took less than each of {@link SHOWN_BOUNDS_MS}, and how many there were. */
export function cumulative(latency: readonly number[]): {
  readonly below: readonly number[]
  readonly count: number
} {
  const upTo = (end: number): number => latency.slice(0, end).reduce((a, b) => a + b, 0)
  return { below: SHOWN.map((bucket) => upTo(bucket + 1)), count: upTo(latency.length) }
}
