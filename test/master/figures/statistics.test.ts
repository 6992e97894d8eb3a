/** What the master makes of its workers' statistics: sums that agree, figures near the truth, bounded memory. */
import fc from 'fast-check'
import t from 'tap'
import { StatisticsBook } from '../../../src/master/figures/statistics.ts'
import { LATENCY_BUCKETS, latencyBoundMs } from '../../../src/protocol.ts'
import type { Statistics } from '../../../src/protocol.ts'
import { bucketOf } from '../../../src/worker/statistics.ts'

const MINUTE_MS = 60_000

/** What a worker would say that has answered requests which took so long. */
function statistics(tookMs: readonly number[], errors = 0, loopDelayMs = 0, untimed = 0): Statistics {
  const counts = new Map<number, number>()
  for (const ms of tookMs) counts.set(bucketOf(ms), (counts.get(bucketOf(ms)) ?? 0) + 1)
  return {
    requests: tookMs.length + untimed,
    errors,
    totalMs: tookMs.reduce((sum, ms) => sum + ms, 0),
    latency: [...counts],
    loopDelayMs,
  }
}
const requests = (count: number, errors = 0): Statistics =>
  statistics(
    Array.from({ length: count }, () => 1),
    errors,
  )

t.test('figures of one generation', async (t) => {
  const book = new StatisticsBook()
  book.told(1, 7, statistics([1, 1, 1, 1, 1, 1, 1, 1, 1, 100], 2, 30, 2), 5_000)
  book.told(2, 7, { ...requests(0), loopDelayMs: 45 }, 5_400)
  for (const passed of [true, true, true, false]) book.probed(7, passed, 5_500)
  book.exited(2, 7, true, 5_600)
  const { p50, p90, p99, ...figures } = book.figuresOver(7, 10_000, 6_000)
  t.same(figures, { requests: 12, errorRate: 1 / 6, probeSuccess: 0.75, loopDelay: 45, crashes: 1 })
  t.ok(Number(p50) > 0.9 && Number(p50) < 1.2, `half took 1 ms: ${p50}`)
  t.ok(Number(p90) > 0.9 && Number(p90) < 1.2, `so did nine of ten: ${p90}`)
  t.ok(Number(p99) > 84 && Number(p99) < 120, `the slowest took 100 ms: ${p99}`)
})

t.test('where nothing was told there is nothing to tell', async (t) => {
  const book = new StatisticsBook()
  const nothing = { errorRate: null, p50: null, p90: null, p99: null, probeSuccess: null, loopDelay: null }
  t.same(book.figuresOver(1, MINUTE_MS, 0), { ...nothing, requests: 0, crashes: null })
  book.exited(1, 1, false, 100)
  book.probed(2, false, 100)
  t.same(book.figuresOver(2, MINUTE_MS, 200), { ...nothing, requests: 0, probeSuccess: 0, crashes: 0 })
  t.equal(book.sinceStart().crashes, 0, 'a worker that leaves as it should has not crashed')
})

t.test('a window has what was told in it, and at most a second more', async () => {
  fc.assert(
    fc.property(
      fc.array(fc.record({ waitMs: fc.nat(5_000), more: fc.integer({ min: 1, max: 9 }) }), { minLength: 1 }),
      fc.nat(3_600_000),
      fc.integer({ min: 1, max: 14 * MINUTE_MS }),
      (messages, start, windowMs) => {
        const book = new StatisticsBook()
        let now = start
        let sum = 0
        const told = messages.map(({ waitMs, more }) => {
          now += waitMs
          sum += more
          book.told(1, 1, requests(sum), now)
          return { at: now, more }
        })
        const within = (ms: number): number =>
          told.reduce((sum, { at, more }) => (at > now - ms ? sum + more : sum), 0)
        const { requests: seen } = book.figuresOver(1, windowMs, now)
        return within(windowMs) <= seen && seen <= within(windowMs + 1_001)
      },
    ),
  )
})

t.test('a second that comes round again does not bring the old one back', async (t) => {
  const book = new StatisticsBook()
  book.told(1, 1, { ...requests(100), loopDelayMs: 500 }, 3_000)
  const round = 3_000 + 15 * MINUTE_MS
  t.equal(book.figuresOver(1, 60 * MINUTE_MS, round).requests, 0)
  book.told(1, 1, requests(101), round)
  t.match(book.figuresOver(1, 60 * MINUTE_MS, round), { requests: 1, loopDelay: 0 })
  t.equal(book.sinceStart().requests, 101)
})

t.test('quantiles are within a bucket of the true ones', async () => {
  const latencies = fc.array(
    fc.double({ min: -6, max: 10.3, noNaN: true }).map((power) => Math.exp(power)),
    { minLength: 1, maxLength: 300 },
  )
  fc.assert(
    fc.property(latencies, (tookMs) => {
      const book = new StatisticsBook()
      book.told(1, 1, statistics(tookMs), 0)
      const figures = book.figuresOver(1, MINUTE_MS, 0)
      const sorted = tookMs.toSorted((a, b) => a - b)
      const fractions = { p50: 0.5, p90: 0.9, p99: 0.99 } as const
      return (['p50', 'p90', 'p99'] as const).every((name) => {
        // The smallest latency that so many are not above of.
        const truth = sorted[Math.ceil(fractions[name] * sorted.length - 1e-9) - 1] ?? NaN
        const bucket = bucketOf(truth)
        const low = bucket === 0 ? 0 : latencyBoundMs(bucket - 1)
        const figure = figures[name] ?? NaN
        return figure >= low && figure <= latencyBoundMs(bucket)
      })
    }),
  )
})

/** Whatever comes in whatever order: sums of three workers of two generations, again and again, and their exits. */
interface Order {
  readonly worker: number
  readonly at: number
  readonly what: 'sums' | 'exit'
}

t.test('sums agree, whatever the order of messages and exits', async () => {
  const steps = fc.array(
    fc.record({
      worker: fc.integer({ min: 1, max: 4 }),
      answered: fc.array(fc.double({ min: 0, max: 50_000, noNaN: true }), { maxLength: 5 }),
      errors: fc.nat(3),
      untimed: fc.nat(2),
    }),
    { maxLength: 40 },
  )
  fc.assert(
    fc.property(steps, fc.infiniteStream(fc.nat()), fc.boolean(), (steps, randoms, shuffled) => {
      const answered = new Map<number, number[]>()
      const errors = new Map<number, number>()
      const untimed = new Map<number, number>()
      const told = steps.map((step) => {
        const { worker } = step
        answered.set(worker, [...(answered.get(worker) ?? []), ...step.answered])
        errors.set(worker, (errors.get(worker) ?? 0) + step.errors)
        untimed.set(worker, (untimed.get(worker) ?? 0) + step.untimed)
        const sums = statistics(answered.get(worker) ?? [], errors.get(worker), 0, untimed.get(worker))
        return { worker, sums }
      })
      const orders: Order[] = [
        ...told.map(({ worker }, at) => ({ worker, at, what: 'sums' as const })),
        ...[...answered.keys(), ...answered.keys()].map((worker) => ({
          worker,
          at: 0,
          what: 'exit' as const,
        })),
      ]
      const order = shuffled
        ? orders
            .map((order) => ({ order, by: randoms.next().value }))
            .sort((a, b) => a.by - b.by)
            .map(({ order }) => order)
        : orders
      const book = new StatisticsBook()
      let before = book.sinceStart()
      let now = 0
      for (const { worker, at, what } of order) {
        now += 50
        const generation = worker % 2
        const sums = told[at]?.sums
        if (what === 'exit') book.exited(worker, generation, worker === 1, now)
        else if (sums) book.told(worker, generation, sums, now)
        const after = book.sinceStart()
        for (const name of ['requests', 'errors', 'totalMs', 'crashes'] as const)
          if (after[name] < before[name]) return false
        before = after
      }
      const sum = (of: Iterable<number>): number => [...of].reduce((a, b) => a + b, 0)
      const all = [...answered.values()].flat()
      const totals = [...book.totals().values()]
      const { requests, latency, totalMs } = book.sinceStart()
      return (
        requests === all.length + sum(untimed.values()) &&
        before.errors === sum(errors.values()) &&
        sum(latency) === all.length &&
        Math.abs(totalMs - sum(all)) <= 1e-6 * totalMs &&
        before.crashes === (answered.has(1) ? 1 : 0) &&
        sum(totals.map(({ requests }) => requests)) === requests &&
        sum([0, 1].map((generation) => book.figuresOver(generation, MINUTE_MS, now).requests)) === requests
      )
    }),
    { numRuns: 300 },
  )
})

t.test('what ends is forgotten a while later, and stays in the sums', async (t) => {
  const book = new StatisticsBook()
  book.told(1, 1, requests(10, 1), 0)
  book.exited(1, 1, false, 1_000)
  book.told(2, 2, requests(5), 2_000)
  t.same([...book.totals().keys()], [1, 2])
  book.told(1, 1, requests(12, 1), 3_000)
  t.equal(book.totals().get(1)?.requests, 12, 'its last words, after its exit')
  book.told(2, 2, requests(6), 14 * MINUTE_MS)
  t.same([...book.totals().keys()], [1, 2])
  book.told(2, 2, requests(7), 16 * MINUTE_MS)
  t.same([...book.totals().keys()], [2])
  t.match(book.sinceStart(), { requests: 19, errors: 1 })
  book.told(2, 2, requests(7), 60 * MINUTE_MS)
  book.told(3, 3, requests(1), 61 * MINUTE_MS)
  t.same([...book.totals().keys()], [2, 3], 'one that has workers is kept, however quiet')
})

t.test('memory is bounded, whoever reloads and crashes as fast as they can', async (t) => {
  const book = new StatisticsBook()
  const [WORKERS, EACH] = [5_000, 5]
  book.told(0, 0, requests(1), 0)
  for (let worker = 1; worker <= WORKERS; worker++) {
    const generation = Math.ceil(worker / EACH)
    book.told(worker, generation, requests(2), worker)
    book.exited(worker, generation, true, worker)
  }
  const kept = book as unknown as { workers: Map<number, unknown>; generations: Map<number, unknown> }
  t.ok(kept.workers.size <= 1_002, `${kept.workers.size} workers`)
  t.ok(kept.generations.size <= 6, `${kept.generations.size} generations`)
  t.ok(kept.generations.has(0), 'the one that is alive stays')
  t.match(book.sinceStart(), { requests: 2 * WORKERS + 1, crashes: WORKERS })
})

t.test('the word of a worker is not trusted', async (t) => {
  const book = new StatisticsBook()
  book.told(1, 1, requests(10, 5), 0)
  book.told(1, 1, requests(3, 1), 1_000)
  book.told(1, 1, { ...requests(10), latency: [[LATENCY_BUCKETS + 7, 4]] }, 2_000)
  t.match(book.sinceStart(), { requests: 10, errors: 5, probes: 0, crashes: 0 })
})
