/** What a load run counted: one {@link Tally} per kind of traffic and phase, merged for the totals. */

export const FAILURE_CLASSES = [
  /** Nobody listens (ECONNREFUSED; on a unix path also ENOENT, and EAGAIN for a full queue). */
  'refused',
  /** Reset while connecting. */
  'connectReset',
  /** Neither accepted nor refused in time. */
  'connectTimeout',
  /** A fresh connection ended before the first byte of the response. */
  'reset',
  /** A connection that had answered before ended before the first byte of the response. */
  'keepaliveReset',
  /** The connection ended within a response. */
  'truncated',
  /** Answered, but not as it should be: not 2xx, or what the traffic says. */
  'status',
  /** Not HTTP/1.1, or a body that is not what was announced. */
  'malformed',
  /** No byte for the whole timeout, and no word that the connection is over. */
  'hang',
  /** An idle connection was closed before its `Keep-Alive: timeout=N` had passed. Not the outcome of a request. */
  'brokenPromise',
  /** Bytes that no request had asked for. Not the outcome of a request. */
  'stray',
  /** A WebSocket, or a raw session, ended without the close frame of its protocol. Not the outcome of a request. */
  'bareClose',
  /** A WebSocket was closed with another code than 1000, 1001 or 1012 (RFC 6455, 7.4.1). Not the outcome of a request. */
  'closeCode',
  /** An HTTP/2 request was refused, and refused again when it was sent once more. */
  'refusedTwice',
  /** The client itself could not (EMFILE, EADDRNOTAVAIL): says nothing about the server, spoils the run. */
  'local',
] as const

/** What is wrong with a connection, and not the outcome of a request. */
export const OUTSIDE_REQUESTS = ['brokenPromise', 'stray', 'bareClose', 'closeCode'] as const

export type FailureClass = (typeof FAILURE_CLASSES)[number]

export interface Latency {
  readonly p50Ms: number
  readonly p99Ms: number
  readonly maxMs: number
}

export interface TallyResult {
  /** Outcomes: each request has exactly one. `requests = ok + retryable + failed`, less the {@link OUTSIDE_REQUESTS}. */
  readonly requests: number
  readonly ok: number
  /**
   * Never processed, and safe to send again: pipelined behind a response with `Connection: close` (RFC 9112, 9.6), an
   * HTTP/2 stream refused or never sent (RFC 9113, 8.7), a ping behind the server's close frame (RFC 6455, 5.5.1).
   */
  readonly retryable: number
  /** The sum of `failures`. */
  readonly failed: number
  readonly failures: Readonly<Partial<Record<FailureClass, number>>>
  /** Of the good responses; null where there was none. */
  readonly latency: Latency | null
}

/** 32 buckets for each doubling from 1 µs to 2^30 µs (18 minutes): at most 1.1 % off, 4 KB. The maximum is exact. */
export class Histogram {
  static readonly #perDoubling = 32
  static readonly #buckets = 30 * 32 + 1
  readonly #counts = new Uint32Array(Histogram.#buckets)
  #total = 0
  #maxMs = 0

  record(ms: number): void {
    const bucket = Math.round(Math.log2(Math.max(1, ms * 1000)) * Histogram.#perDoubling)
    const at = Math.min(bucket, Histogram.#buckets - 1)
    this.#counts[at] = (this.#counts[at] ?? 0) + 1
    this.#total++
    if (ms > this.#maxMs) this.#maxMs = ms
  }

  merge(other: Histogram): void {
    for (let at = 0; at < this.#counts.length; at++) {
      this.#counts[at] = (this.#counts[at] ?? 0) + (other.#counts[at] ?? 0)
    }
    this.#total += other.#total
    this.#maxMs = Math.max(this.#maxMs, other.#maxMs)
  }

  result(): Latency | null {
    if (this.#total === 0) return null
    return { p50Ms: this.#quantile(0.5), p99Ms: this.#quantile(0.99), maxMs: rounded(this.#maxMs) }
  }

  #quantile(share: number): number {
    let left = Math.ceil(this.#total * share)
    const at = this.#counts.findIndex((count) => (left -= count) <= 0)
    return rounded(Math.min(this.#maxMs, 2 ** (at / Histogram.#perDoubling) / 1000))
  }
}

const rounded = (ms: number) => Math.round(ms * 1000) / 1000

export class Tally {
  requests = 0
  ok = 0
  retryable = 0
  readonly #failures = new Map<FailureClass, number>()
  readonly latency = new Histogram()

  fail(failure: FailureClass, count = 1): void {
    this.#failures.set(failure, (this.#failures.get(failure) ?? 0) + count)
  }

  merge(other: Tally, withLatency = true): void {
    this.requests += other.requests
    this.ok += other.ok
    this.retryable += other.retryable
    for (const [failure, count] of other.#failures) this.fail(failure, count)
    if (withLatency) this.latency.merge(other.latency)
  }

  result(): TallyResult {
    return {
      requests: this.requests,
      ok: this.ok,
      retryable: this.retryable,
      failed: [...this.#failures.values()].reduce((sum, count) => sum + count, 0),
      failures: Object.fromEntries(this.#failures),
      latency: this.latency.result(),
    }
  }

  static sum(tallies: Iterable<Tally>): Tally {
    const sum = new Tally()
    for (const tally of tallies) sum.merge(tally)
    return sum
  }
}
