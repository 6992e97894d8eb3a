/**
 * What the workers say of their requests, put together by generation: over the last minutes, for the analysis of a
 * rollout, and since the master's start, for metrics.
 *
 * Workers tell sums, so a message that is lost or comes twice changes nothing in the end. What is new in a message is
 * put into the second in which it came; workers tell once a second, so a stretch of time is known to a second or two.
 * There is no clock in here: `now` is the shell's, monotonic, in milliseconds.
 *
 * Memory is bounded: 280 kB for a generation, of which only the seconds that had traffic are touched, and at most
 * four generations besides those that have workers.
 */
import { LATENCY_BUCKETS, latencyBoundMs } from '../../protocol.ts'
import type { Statistics } from '../../protocol.ts'
import type { Figures, GenerationId, Ms, WorkerId } from '../../rollout/state.ts'

/** What has happened in a generation since it began; or in all since the master's start. Never gets less. */
export interface Totals {
  readonly requests: number
  /** Of these with a status of 500 or more. */
  readonly errors: number
  /** By bucket, whose bounds `latencyBoundMs` gives. Less than `requests` by upgrades and streams of events. */
  readonly latency: readonly number[]
  /** The sum of these latencies. */
  readonly totalMs: number
  readonly probes: number
  readonly probesPassed: number
  readonly crashes: number
}

const SECOND_MS = 1_000
/** Figures reach back so far. */
const KEPT_SECONDS = 15 * 60
/** A generation without workers is forgotten after that. */
const FORGOTTEN_AFTER_MS = KEPT_SECONDS * SECOND_MS
/** Without workers, and not forgotten yet: whoever reloads each second must not fill the master. */
const MAX_ENDED = 4
/** The last messages of a worker may come after its exit. */
const LAST_WORDS_MS = 10_000
const MAX_ENDED_WORKERS = 1_000

// What is counted, after the buckets.
const REQUESTS = LATENCY_BUCKETS
const ERRORS = REQUESTS + 1
const PROBES = REQUESTS + 2
const PASSED = REQUESTS + 3
const CRASHES = REQUESTS + 4
const COLUMNS = REQUESTS + 5

interface Worker {
  readonly generation: GenerationId
  /** What it has told. */
  readonly counts: Float64Array
  totalMs: number
  endedAt: Ms | null
}

/** Sums without end. */
class Sums {
  readonly counts = new Float64Array(COLUMNS)
  totalMs = 0

  add(other: Sums): void {
    for (const [column, count] of other.counts.entries()) increase(this.counts, column, count)
    this.totalMs += other.totalMs
  }

  totals(): Totals {
    const { counts, totalMs } = this
    return {
      requests: counts[REQUESTS] ?? 0,
      errors: counts[ERRORS] ?? 0,
      latency: [...counts.subarray(0, LATENCY_BUCKETS)],
      totalMs,
      probes: counts[PROBES] ?? 0,
      probesPassed: counts[PASSED] ?? 0,
      crashes: counts[CRASHES] ?? 0,
    }
  }
}

/** One generation: its sums, and a ring of the last seconds. */
class Generation {
  readonly sums = new Sums()
  lastHeardAt: Ms
  /** Which second each row is of. */
  private readonly seconds = new Float64Array(KEPT_SECONDS).fill(-Infinity)
  private readonly rows = new Uint32Array(KEPT_SECONDS * COLUMNS)
  /** The longest delay of an event loop, or -1: nobody said. */
  private readonly loopDelays = new Float64Array(KEPT_SECONDS)

  constructor(now: Ms) {
    this.lastHeardAt = now
  }

  count(column: number, amount: number, now: Ms): void {
    increase(this.sums.counts, column, amount)
    increase(this.rows, this.rowAt(now) * COLUMNS + column, amount)
  }

  delayed(loopDelayMs: Ms, now: Ms): void {
    const row = this.rowAt(now)
    this.loopDelays[row] = Math.max(this.loopDelays[row] ?? -1, loopDelayMs)
  }

  figuresOver(ms: Ms, now: Ms): Figures {
    const counts = new Float64Array(COLUMNS)
    let loopDelay = -1
    const last = Math.floor(now / SECOND_MS)
    const first = Math.max(Math.floor((now - ms) / SECOND_MS), last - KEPT_SECONDS + 1)
    for (let row = 0; row < KEPT_SECONDS; row++) {
      const second = this.seconds[row] ?? -Infinity
      if (second < first || second > last) continue
      loopDelay = Math.max(loopDelay, this.loopDelays[row] ?? -1)
      const at = row * COLUMNS
      for (let column = 0; column < COLUMNS; column++) increase(counts, column, this.rows[at + column] ?? 0)
    }
    const requests = counts[REQUESTS] ?? 0
    const probes = counts[PROBES] ?? 0
    const latency = counts.subarray(0, LATENCY_BUCKETS)
    return {
      requests,
      errorRate: requests === 0 ? null : (counts[ERRORS] ?? 0) / requests,
      p50: quantile(latency, 0.5),
      p90: quantile(latency, 0.9),
      p99: quantile(latency, 0.99),
      probeSuccess: probes === 0 ? null : (counts[PASSED] ?? 0) / probes,
      loopDelay: loopDelay < 0 ? null : loopDelay,
      crashes: counts[CRASHES] ?? 0,
    }
  }

  private rowAt(now: Ms): number {
    this.lastHeardAt = now
    const second = Math.floor(now / SECOND_MS)
    const row = second % KEPT_SECONDS
    if (this.seconds[row] !== second) {
      this.seconds[row] = second
      this.rows.fill(0, row * COLUMNS, (row + 1) * COLUMNS)
      this.loopDelays[row] = -1
    }
    return row
  }
}

export class StatisticsBook {
  private readonly workers = new Map<WorkerId, Worker>()
  private readonly generations = new Map<GenerationId, Generation>()
  private readonly forgotten = new Sums()
  private tidiedAt = -Infinity

  /** A worker has sent its sums. They are its word: what got less since is taken as unchanged. */
  told(id: WorkerId, generation: GenerationId, statistics: Statistics, now: Ms): void {
    if (now - this.tidiedAt >= SECOND_MS) this.tidy(now)
    const worker = this.workerOf(id, generation)
    const book = this.generationOf(worker.generation, now)
    const { requests, errors, totalMs, latency, loopDelayMs } = statistics
    const tell = (column: number, told: number): void => {
      const more = told - (worker.counts[column] ?? 0)
      if (!(more > 0)) return
      worker.counts[column] = told
      book.count(column, more, now)
    }
    tell(REQUESTS, requests)
    tell(ERRORS, errors)
    for (const [bucket, count] of latency) if (bucket < LATENCY_BUCKETS) tell(bucket, count)
    book.sums.totalMs += Math.max(0, totalMs - worker.totalMs)
    worker.totalMs = Math.max(worker.totalMs, totalMs)
    book.delayed(loopDelayMs, now)
  }

  probed(generation: GenerationId, passed: boolean, now: Ms): void {
    const book = this.generationOf(generation, now)
    book.count(PROBES, 1, now)
    if (passed) book.count(PASSED, 1, now)
  }

  /** A worker has ended, once. Its last messages may still come. */
  exited(id: WorkerId, generation: GenerationId, crashed: boolean, now: Ms): void {
    const worker = this.workerOf(id, generation)
    if (worker.endedAt !== null) return
    worker.endedAt = now
    if (crashed) this.generationOf(worker.generation, now).count(CRASHES, 1, now)
    this.tidy(now)
  }

  /**
   * A generation over the last `ms`, to the second: what was told up to a second before may be in it. At most a quarter
   * of an hour. Rates are fractions, times milliseconds; `loopDelay` is the longest.
   */
  figuresOver(generation: GenerationId, ms: Ms, now: Ms): Figures {
    return this.generations.get(generation)?.figuresOver(ms, now) ?? UNKNOWN
  }

  /** By generation. One without workers leaves after a quarter of an hour, or when newer ones have ended. */
  totals(): ReadonlyMap<GenerationId, Totals> {
    return new Map([...this.generations].map(([id, { sums }]) => [id, sums.totals()]))
  }

  /** Of all generations, also of those that are forgotten. */
  sinceStart(): Totals {
    const sums = new Sums()
    sums.add(this.forgotten)
    for (const generation of this.generations.values()) sums.add(generation.sums)
    return sums.totals()
  }

  private workerOf(id: WorkerId, generation: GenerationId): Worker {
    const known = this.workers.get(id)
    if (known) return known
    const worker = { generation, counts: new Float64Array(COLUMNS), totalMs: 0, endedAt: null }
    this.workers.set(id, worker)
    return worker
  }

  private generationOf(id: GenerationId, now: Ms): Generation {
    const known = this.generations.get(id)
    if (known) return known
    const generation = new Generation(now)
    this.generations.set(id, generation)
    this.tidy(now)
    return generation
  }

  /** Forgets who has gone. */
  private tidy(now: Ms): void {
    this.tidiedAt = now
    const ended = [...this.workers].filter(([, { endedAt }]) => endedAt !== null)
    const tooMany = ended.length - MAX_ENDED_WORKERS
    for (const [at, [id, { endedAt }]] of ended.entries()) {
      if (at < tooMany || now - (endedAt ?? now) > LAST_WORDS_MS) this.workers.delete(id)
    }
    const alive = [...this.workers.values()].filter(({ endedAt }) => endedAt === null)
    const living = new Set(alive.map(({ generation }) => generation))
    const over = [...this.generations]
      .filter(([id]) => !living.has(id))
      .sort(([, a], [, b]) => b.lastHeardAt - a.lastHeardAt)
    for (const [at, [id, { sums, lastHeardAt }]] of over.entries()) {
      if (at < MAX_ENDED && now - lastHeardAt <= FORGOTTEN_AFTER_MS) continue
      this.forgotten.add(sums)
      this.generations.delete(id)
    }
  }
}

const UNKNOWN: Figures = {
  requests: 0,
  errorRate: null,
  p50: null,
  p90: null,
  p99: null,
  probeSuccess: null,
  loopDelay: null,
  crashes: null,
}

function increase(to: Float64Array | Uint32Array, at: number, amount: number): void {
  to[at] = (to[at] ?? 0) + amount
}

/**
 * What `fraction` of the latencies were below of, in milliseconds; null: there are none. Within a bucket they are taken
 * as evenly spread, as Prometheus does (histogram_quantile); of the last bucket only the lower bound is known.
 */
function quantile(latency: Float64Array, fraction: number): number | null {
  const count = latency.reduce((sum, count) => sum + count, 0)
  if (count === 0) return null
  const rank = fraction * count
  let below = 0
  for (const [bucket, here] of latency.entries()) {
    if (below + here >= rank && here > 0) {
      const low = bucket === 0 ? 0 : latencyBoundMs(bucket - 1)
      const high = bucket === LATENCY_BUCKETS - 1 ? low : latencyBoundMs(bucket)
      return low + (high - low) * ((rank - below) / here)
    }
    below += here
  }
  return null
}
