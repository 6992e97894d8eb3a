/** What a worker counts of its own requests, and when it tells. */
import fc from 'fast-check'
import type { ServerResponse } from 'node:http'
import type { ServerHttp2Stream } from 'node:http2'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { LATENCY_BUCKETS, latencyBoundMs } from '../../src/protocol.ts'
import type { Statistics } from '../../src/protocol.ts'
import type { Ledger } from '../../src/worker/ledger.ts'
import { bucketOf, recordStatistics } from '../../src/worker/statistics.ts'

/** From here to the end of its bucket there are 117 ms, which is what a busy machine may add. */
const MIDDLE_MS = 1_100

/** What a ledger says of responses that took so long; ended a moment ago. */
function recorder(everyMs = 1_000) {
  const ledger: Pick<Ledger, 'onAnswered'> = { onAnswered: null }
  const sent: Statistics[] = []
  const record = recordStatistics({ ledger, everyMs, send: (statistics) => void sent.push(statistics) })
  const json = 'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n'
  const answer = (status: number, tookMs: number, head = json): void => {
    const body = { headersSent: true, _header: head } as unknown as ServerResponse
    ledger.onAnswered?.(status, performance.now() - tookMs, body)
  }
  const answerStream = (status: number, tookMs: number, sentHeaders: object): void => {
    const body = { headersSent: true, sentHeaders } as unknown as ServerHttp2Stream
    ledger.onAnswered?.(status, performance.now() - tookMs, body)
  }
  return { record, sent, answer, answerStream }
}

t.test('each latency is in the bucket that the protocol says', async (t) => {
  // Where a bound is, one part in 8192 may go to the neighbour.
  const near = 2 ** -13
  const latencies = fc.oneof(
    fc.double({ min: 0, max: 40_000, noNaN: true }),
    fc.integer({ min: 0, max: LATENCY_BUCKETS - 1 }).map(latencyBoundMs),
    fc.double({ min: -9, max: 12, noNaN: true }).map((power) => Math.exp(power)),
  )
  fc.assert(
    fc.property(latencies, (ms) => {
      const bucket = bucketOf(ms)
      const low = bucket === 0 ? 0 : latencyBoundMs(bucket - 1)
      const high = bucket === LATENCY_BUCKETS - 1 ? Infinity : latencyBoundMs(bucket)
      return low <= ms && ms < high * (1 + near)
    }),
    { numRuns: 5_000 },
  )
  t.equal(bucketOf(0), 0)
  t.equal(bucketOf(1e9), LATENCY_BUCKETS - 1)
  t.equal(bucketOf(-1e-3), 0, 'a clock that is a little behind')
})

t.test('counted, timed, and told when something has changed', async (t) => {
  const { record, sent, answer } = recorder()
  record.tell()
  t.equal(sent.length, 0, 'nothing has happened')
  answer(200, MIDDLE_MS)
  answer(503, 60_000)
  answer(404, 60_000)
  record.tell()
  t.match(sent.at(-1), {
    requests: 3,
    errors: 1,
    latency: [
      [bucketOf(MIDDLE_MS), 1],
      [LATENCY_BUCKETS - 1, 2],
    ],
  })
  const { totalMs = 0 } = sent.at(-1) ?? {}
  t.ok(totalMs >= 121_100)
  record.tell()
  t.equal(sent.length, 1, 'nothing is new')
  answer(200, MIDDLE_MS)
  record.tell()
  t.match(sent.at(-1), { requests: 4, errors: 1 }, 'sums since the start')
})

t.test('what lasts as long as its client likes has no time', async (t) => {
  const { record, sent, answer, answerStream } = recorder()
  record.upgraded()
  answer(200, 500, 'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n')
  answer(101, 500, 'HTTP/1.1 101 Switching Protocols\r\n\r\n')
  answerStream(200, 500, { 'content-type': 'text/event-stream; charset=utf-8' })
  record.tell()
  t.match(sent.at(-1), { requests: 4, errors: 0, totalMs: 0, latency: [] })
  answerStream(500, MIDDLE_MS, { 'content-type': 'text/plain' })
  record.tell()
  t.match(sent.at(-1), { requests: 5, errors: 1, latency: [[bucketOf(MIDDLE_MS), 1]] })
})

t.test('a tick that comes late tells of a loop that was held up, also at rest', async (t) => {
  // As if it were due each 0 ms: the next one is late by all the time until then.
  const { record, sent } = recorder(0)
  const end = performance.now() + 60
  while (performance.now() < end);
  record.tick()
  t.equal(sent.length, 1)
  t.ok((sent[0]?.loopDelayMs ?? 0) >= 60)
  record.tell()
  t.equal(sent.length, 1, 'told once')
})

t.test('a rest between requests is no delay', async (t) => {
  const truth = monitorEventLoopDelay({ resolution: 10 })
  truth.enable()
  t.teardown(() => truth.disable())
  // So rarely that no tick is late.
  const { record, sent, answer } = recorder(1e9)
  const busy = async (): Promise<void> => {
    answer(200, 0)
    record.tick()
    await sleep(100)
  }
  await busy()
  record.tick()
  await sleep(800)
  await busy()
  answer(200, 0)
  record.tell()
  const { loopDelayMs = NaN } = sent.at(-1) ?? {}
  t.ok(loopDelayMs <= truth.max / 1e6, `${loopDelayMs} ms, in truth ${truth.max / 1e6}`)
})
