/**
 * A load client over raw sockets. Importing it does nothing.
 *
 * Rules:
 * - Nothing is sent again that a server may have seen. Each request has exactly one outcome: ok, one class of failure,
 *   or `retryable`. (An HTTP/2 request that is `retryable` is sent once more, and counts again as a request of its own.)
 * - It obeys HTTP: what a careful client would not do is no test of a server. It does not use a connection after
 *   `Connection: close`, and a connection that ends while it is idle is no failure, unless the server had promised
 *   to keep it longer (`Keep-Alive: timeout=N`).
 * - It never waits for ever: each request, each connect and the stop have a bound.
 *
 * Run it in a process of its own (`start-load.ts`): one that shares its event loop with a test measures the test.
 */
import { Http2Lane } from './http2-lane.ts'
import { type Driver, Lane } from './lane.ts'
import { type Plan, planOf, type Target, type Traffic } from './plan.ts'
import type { LoadResult } from './result.ts'
import { Schedule } from './schedule.ts'
import { WebSocketLane } from './websocket-lane.ts'
import { now, World, type WorldOptions } from './world.ts'

export { connectFailure } from './lane.ts'
export type { Mode, Target, Traffic } from './plan.ts'
export type { Detail, KindResult, LoadResult, PhaseResult, Slice, VersionCount } from './result.ts'
export type { FailureClass, Latency, TallyResult } from './tally.ts'
export { now } from './world.ts'
export type { VersionField } from './world.ts'

export interface LoadOptions extends WorldOptions {
  /** Of the traffic that names none. */
  readonly target: Target
  readonly traffic: readonly Traffic[]
  /** How long `stop` waits for what is in flight. Default: `timeoutMs` + 1 s. */
  readonly stopMs?: number
  /** Stop by itself after that many requests, or that long. */
  readonly maxRequests?: number
  readonly maxMs?: number
  /** Stop when every connection has had one answer (a pipelined one all of one write, a WebSocket one pong). */
  readonly once?: boolean
}

/**
 * The mix that the peers were measured with: about 1,500 requests a second, far from saturated. Between two
 * requests of a connection there is time for a server to close it, and at any moment there are 8 in flight.
 */
export const MIX: readonly Traffic[] = [
  { mode: 'new', connections: 4, thinkMs: [2, 6] },
  { mode: 'keepalive', connections: 24, thinkMs: [10, 30] },
  { mode: 'post', connections: 2, thinkMs: [10, 30], echo: true },
  { mode: 'slow', connections: 4 },
  { mode: 'stream', connections: 4 },
]

/** The tight loop: the next request is already in the server's socket buffer when it decides to close. */
export const HOT: readonly Traffic[] = [{ mode: 'hot', connections: 32 }]

export class Load {
  /** The result, once stopped or a bound is reached. */
  readonly done: Promise<LoadResult>
  readonly #options: LoadOptions
  readonly #world: World
  readonly #lanes: Driver[]
  readonly #schedules: Schedule[] = []
  #resting = 0
  #state: 'idle' | 'running' | 'stopping' | 'stopped' = 'idle'
  #issued = 0
  #resolve: (result: LoadResult) => void = () => {}
  #sweeper: NodeJS.Timeout | undefined
  #bound: NodeJS.Timeout | undefined

  /** @throws if the traffic is empty or names something twice. */
  constructor(options: LoadOptions) {
    const plans = options.traffic.map((traffic, index) => planOf(traffic, index, options.target))
    const names = plans.map((plan) => plan.name)
    if (plans.length === 0) throw new Error('a load without traffic: give at least one mode')
    if (new Set(names).size < names.length)
      throw new Error(`traffic with the same name twice: ${names.join(', ')}`)
    this.#options = options
    this.#world = new World(options, plans)
    this.#lanes = plans.flatMap((plan) => this.#lanesOf(plan))
    this.done = new Promise((resolve) => (this.#resolve = resolve))
  }

  start(): this {
    if (this.#state !== 'idle') throw new Error('a load is started once')
    this.#state = 'running'
    this.#world.begin()
    const shortestMs = Math.min(this.#world.timeoutMs, this.#world.connectTimeoutMs)
    this.#sweeper = setInterval(() => this.#world.sweep(), Math.max(5, Math.min(100, shortestMs / 10)))
    if (this.#options.maxMs !== undefined)
      this.#bound = setTimeout(() => void this.stop(), this.#options.maxMs)
    for (const schedule of this.#schedules) schedule.start()
    for (const lane of this.#lanes) lane.start()
    return this
  }

  /**
   * From now on (or from `atMs`, by {@link now}, where it was said in another process) a new phase counts. Phases of
   * one `kind` are also counted together.
   */
  mark(name: string, atMs = now(), kind?: string): void {
    this.#world.mark(name, atMs - performance.timeOrigin, kind)
  }

  /** Connections opened from now on (or from `atMs`) belong to the next epoch: another generation answers them. */
  epoch(atMs = now()): void {
    this.#world.epoch(atMs - performance.timeOrigin)
  }

  /** Whoever answered in an epoch before `epoch` (0 is the first) has gone. */
  onlySince(epoch: number): void {
    this.#world.onlySince(epoch)
  }

  /** What was counted up to here. */
  snapshot(): LoadResult {
    return this.#world.result()
  }

  /** No new request; resolves when those in flight have ended, or after `stopMs`: then they count as hanging. */
  stop(): Promise<LoadResult> {
    if (this.#state === 'idle') this.start()
    if (this.#state !== 'running') return this.done
    this.#state = 'stopping'
    clearTimeout(this.#bound)
    const stopMs = this.#options.stopMs ?? this.#world.timeoutMs + 1000
    this.#bound = setTimeout(() => this.#lanes.forEach((lane) => lane.giveUp(stopMs)), stopMs)
    this.#world.unsent = this.#schedules.reduce((sum, schedule) => sum + schedule.overdue(), 0)
    for (const lane of this.#lanes) lane.wind()
    return this.done
  }

  #lanesOf(plan: Plan): Driver[] {
    const schedule = plan.perSecond === null ? null : new Schedule(plan.perSecond / plan.batch)
    if (schedule !== null) this.#schedules.push(schedule)
    const owner = { load: this, world: this.#world, plan, schedule, once: this.#options.once === true }
    return Array.from({ length: plan.connections }, () => {
      if (plan.mode === 'websocket') return new WebSocketLane(owner)
      return plan.mode === 'http2' ? new Http2Lane(owner) : new Lane(owner)
    })
  }

  /** Whether a lane may send `count` more. */
  take(count: number): boolean {
    if (this.#state !== 'running' || this.#issued >= (this.#options.maxRequests ?? Infinity)) return false
    this.#issued += count
    return true
  }

  rested(): void {
    if (++this.#resting < this.#lanes.length) return
    this.#state = 'stopped'
    clearInterval(this.#sweeper)
    clearTimeout(this.#bound)
    const result = this.#world.result()
    this.#world.end()
    this.#resolve(result)
  }
}

/** The result in a few lines, for people: what a failing test prints. */
export function summary(result: LoadResult): string {
  const seconds = (result.durationMs / 1000).toFixed(1)
  const lines = [
    `${result.requests} requests in ${seconds} s (${result.perSecond}/s): ${result.ok} ok, ${result.failed} failed, ` +
      `${result.retryable} retryable; ${result.connects} connects, ${result.closeHeaders} told to close, ` +
      `${result.idleClosed} closed while idle`,
  ]
  for (const [name, tally] of Object.entries(result.traffic)) {
    const { latency } = tally
    const failures = Object.entries(tally.failures).map(([failure, count]) => `, ${failure} ${count}`)
    const times =
      latency === null ? '' : `, p50 ${latency.p50Ms} p99 ${latency.p99Ms} max ${latency.maxMs} ms`
    lines.push(`  ${name}: ${tally.requests} requests${times}${failures.join('')}`)
  }
  for (const [version, { responses }] of Object.entries(result.versions)) {
    lines.push(`  version ${version}: ${responses} responses`)
  }
  for (const detail of result.details.slice(0, 20)) {
    const age = detail.requestAgeMs === null ? '' : `, request sent ${detail.requestAgeMs} ms before`
    lines.push(
      `  ${detail.failure} (${detail.traffic}) ${detail.afterMarkMs} ms into "${detail.phase}"${age}: ${detail.text}`,
    )
  }
  return lines.join('\n')
}
