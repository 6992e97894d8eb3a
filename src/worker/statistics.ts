/**
 * How the requests of this worker fare: how many, how many failed, how long they took, how long the event loop was held
 * up. Nothing here is a subscriber of its own: the ledger's tells (a second one costs 3 % of a keep-alive request). What
 * is done per request allocates nothing and takes some 50 ns, of which the clock is all but 10 (see clock.ts).
 */
import type { ServerResponse } from 'node:http'
import type { ServerHttp2Stream } from 'node:http2'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import type { IntervalHistogram } from 'node:perf_hooks'
import { LATENCY_BUCKETS } from '../protocol.ts'
import type { Statistics } from '../protocol.ts'
import { now } from './clock.ts'
import { isEventStream } from './event-stream.ts'
import type { Ledger } from './ledger.ts'

export interface StatisticsParts {
  readonly ledger: Pick<Ledger, 'onAnswered'>
  /** How often `tick` is called. */
  readonly everyMs: number
  send(statistics: Statistics): void
}

export interface StatisticsRecorder {
  /** A connection left HTTP: a request that is answered, and has no end. */
  upgraded(): void
  /** Sends what has changed since the last time. */
  tick(): void
  /** The same at any other moment. */
  tell(): void
  /** Clients come from now on: what blocked the loop before has kept none of them waiting. */
  opened(): void
}

/** Below that a stream of events is not looked for: one that ends so soon is a response like any other. */
const EVENT_STREAM_MS = 10
/** A delay of an idle worker's loop below that is not worth a message. */
const WORTH_TELLING_MS = 20

/** Places among the sums. */
const ERRORS = 0
const TOTAL_MS = 1
const UNTIMED = 2

function add(to: Float64Array, at: number, amount: number): void {
  to[at] = (to[at] ?? 0) + amount
}

export function recordStatistics({ ledger, everyMs, send }: StatisticsParts): StatisticsRecorder {
  // Doubles: 32 bits are full after twelve hours of 100,000 requests a second. And in an array, since V8 allocates a
  // new number at each write to a variable that holds one.
  const latency = new Float64Array(LATENCY_BUCKETS)
  const sums = new Float64Array(3)
  const loop = watchLoop(everyMs)
  let told = 0

  ledger.onAnswered = (status, since, body) => {
    if (status >= 500) add(sums, ERRORS, 1)
    const tookMs = now() - since
    if (tookMs >= EVENT_STREAM_MS && isEndless(status, body)) {
      add(sums, UNTIMED, 1)
      return
    }
    add(latency, bucketOf(tookMs), 1)
    add(sums, TOTAL_MS, tookMs)
  }

  const answered = (): number => latency.reduce((sum, count) => sum + count, sums[UNTIMED] ?? 0)

  const tell = (): void => {
    const requests = answered()
    const loopDelayMs = loop.longestMs()
    if (requests === told && loopDelayMs < WORTH_TELLING_MS) return
    told = requests
    send({
      requests,
      errors: sums[ERRORS] ?? 0,
      totalMs: sums[TOTAL_MS] ?? 0,
      latency: [...latency.entries()].filter(([, count]) => count > 0),
      loopDelayMs,
    })
    loop.forget()
  }

  return {
    upgraded: () => add(sums, UNTIMED, 1),
    tick() {
      loop.tick(answered() !== told)
      tell()
    },
    tell,
    opened: loop.restart,
  }
}

/** Its time says how long its client stayed, not how fast the app is. */
const isEndless = (status: number, body: ServerResponse | ServerHttp2Stream): boolean =>
  status === 101 || isEventStream(body)

const QUARTER = 2 ** 31.25
const HALF = 2 ** 31.5
const THREE_QUARTERS = 2 ** 31.75
const FIRST_MS = 0.125
/** From here on all is in the last bucket (2^17.5 * 0.125 ms), and times 2^16 would not fit into 31 bits. */
const LAST_MS = FIRST_MS * 2 ** ((LATENCY_BUCKETS - 2) / 4)

/**
 * The bucket of a latency, as `latencyBoundMs` of the protocol has it, but for the last 2^-13 of a bucket's width.
 * By the leading zeros of 2^13 units of 0.125 ms: 6 ns, where Math.log2 takes 20.
 */
export function bucketOf(tookMs: number): number {
  if (tookMs >= LAST_MS) return LATENCY_BUCKETS - 1
  if (tookMs < FIRST_MS) return 0
  const units = (tookMs * 2 ** 16) | 0
  const zeros = Math.clz32(units)
  // From 2^31 to 2^32: where in its doubling.
  const mantissa = (units << zeros) >>> 0
  const quarter = mantissa >= HALF ? (mantissa >= THREE_QUARTERS ? 3 : 2) : mantissa >= QUARTER ? 1 : 0
  return (18 - zeros) * 4 + 1 + quarter
}

interface LoopWatch {
  tick(isBusy: boolean): void
  longestMs(): number
  forget(): void
  /** As if it began now. */
  restart(): void
}

/** How closely the loop is watched: a block is seen to within that. */
const RESOLUTION_MS = 20

/**
 * The longest delay of the event loop. Our tick alone would see a block of 100 ms one time in ten. Node's own watch
 * (`perf_hooks.monitorEventLoopDelay`) sees it but wakes an idle process 50 times a second: 2 to 3 ms of processor time
 * each second (5 every 10 ms; a JavaScript timer 7). So it is on only while requests come, when the loop turns anyway. An idle
 * worker's loop is known by the lateness of the tick, and by probes.
 */
function watchLoop(everyMs: number): LoopWatch {
  let histogram: IntervalHistogram | undefined
  let isOn = false
  let lastTick = performance.now()
  let lateMs = 0
  const forget = (): void => {
    lateMs = 0
    // The turn that it is in is lost: of a hundred blocks two.
    // Without that, all the time in which it was off would be a delay once it is on again.
    histogram?.reset()
  }
  return {
    tick(isBusy) {
      const now = performance.now()
      lateMs = Math.max(lateMs, now - lastTick - everyMs)
      lastTick = now
      if (isBusy === isOn) return
      isOn = isBusy
      // Not at boot: 0.2 ms.
      histogram ??= monitorEventLoopDelay({ resolution: RESOLUTION_MS })
      if (isBusy) histogram.enable()
      else histogram.disable()
    },
    longestMs() {
      // It records from turn to turn of its timer, in nanoseconds.
      const seenMs = (histogram?.max ?? 0) / 1e6 - RESOLUTION_MS
      return Math.max(0, lateMs, seenMs)
    },
    forget,
    restart() {
      lastTick = performance.now()
      forget()
    },
  }
}
