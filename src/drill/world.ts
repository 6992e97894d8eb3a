/** What all lanes of a load share: the options, the connections that live, and everything that is counted. */
import type { Plan } from './plan.ts'
import type { Detail, KindResult, LoadResult, Slice, VersionCount } from './result.ts'
import { type FailureClass, Histogram, Tally, type TallyResult } from './tally.ts'

export type VersionField = 'version' | 'generation' | 'pid'

export interface WorldOptions {
  /** Without a byte for that long, a request hangs. Default 10 s. */
  readonly timeoutMs?: number
  /** Default: `timeoutMs`. */
  readonly connectTimeoutMs?: number
  /** Which version answered: a field of a JSON body, or a function of the body. */
  readonly versionOf?: VersionField | ((body: string) => string | undefined)
  /** The time that one of the result's `slices` stands for. Default: there are none. */
  readonly sliceMs?: number
}

const READ_BUFFER_BYTES = 64 * 1024
const DETAILS_PER_CLASS = 10

/** Epoch milliseconds with fractions, comparable between processes of one machine. */
export const now = (): number => performance.timeOrigin + performance.now()

/** Something with a connection, looked at a few times a second: a timer for each request would cost more than it. */
export interface Watched {
  check(at: number): void
  destroy(): void
}

interface Phase {
  readonly name: string
  readonly startedAt: number
  readonly tallies: readonly Tally[]
  readonly versions: Map<string, number>
  readonly kind: string | null
}

export class World {
  readonly timeoutMs: number
  readonly connectTimeoutMs: number
  readonly live = new Set<Watched>()
  /** One buffer for all: libuv reads and calls back in one go, and nothing keeps a slice of it. */
  readonly readBuffer = Buffer.allocUnsafeSlow(READ_BUFFER_BYTES)
  readonly wantsBody: boolean
  connects = 0
  closeHeaders = 0
  idleClosed = 0
  unsent = 0
  readonly #plans: readonly Plan[]
  readonly #versionOf: (body: string) => string | undefined
  readonly #versionOfBody = new Map<string, string | null>()
  readonly #versions = new Map<string, { -readonly [K in keyof VersionCount]: VersionCount[K] }>()
  readonly #statuses = new Map<number, number>()
  readonly #statusesByVersion = new Map<string, Map<number, number>>()
  readonly #details: Detail[] = []
  readonly #answers: readonly Map<number, number>[]
  readonly #webSocketEnds = new Map<string, number>()
  readonly #epochs: number[] = []
  #oldestEpoch = 0
  readonly #slices: Slices | null
  readonly #detailed = new Map<string, number>()
  readonly #phases: Phase[] = []
  #phase: Phase

  constructor(options: WorldOptions, plans: readonly Plan[]) {
    this.timeoutMs = options.timeoutMs ?? 10_000
    this.connectTimeoutMs = options.connectTimeoutMs ?? this.timeoutMs
    this.wantsBody = options.versionOf !== undefined
    this.#versionOf = versionReader(options.versionOf)
    this.#plans = plans
    this.#answers = plans.map(() => new Map())
    this.#slices = options.sliceMs === undefined ? null : new Slices(options.sliceMs)
    this.#phase = this.#newPhase('start', performance.now(), null)
  }

  begin(): void {
    this.#phases.length = 0
    this.#phase = this.#newPhase('start', performance.now(), null)
    this.#slices?.begin(this.#phase.startedAt)
  }

  mark(name: string, at: number, kind: string | null = null): void {
    this.#phase = this.#newPhase(name, at, kind)
  }

  epoch(at: number): void {
    this.#epochs.push(at)
  }

  /** Whoever answered in an epoch before `epoch` has gone. */
  onlySince(epoch: number): void {
    this.#oldestEpoch = epoch
  }

  #epochOf(openedAt: number): number {
    // Nearly all connections are of the newest one. That an epoch has begun is heard some milliseconds late, and then
    // a connection would count for the old one for as long as it lives.
    let epoch = this.#epochs.length
    while (epoch > this.#oldestEpoch && (this.#epochs[epoch - 1] ?? 0) > openedAt) epoch--
    return epoch
  }

  #newPhase(name: string, startedAt: number, kind: string | null): Phase {
    const phase = { name, startedAt, kind, tallies: this.#plans.map(() => new Tally()), versions: new Map() }
    this.#phases.push(phase)
    return phase
  }

  tally(plan: Plan): Tally {
    const tally = this.#phase.tallies[plan.index]
    if (tally === undefined) throw new Error(`no tally for ${plan.name}`)
    return tally
  }

  /** @param openedAt when the connection was opened that it came over */
  ok(plan: Plan, latencyMs: number, openedAt: number): void {
    const tally = this.tally(plan)
    tally.requests++
    tally.ok++
    tally.latency.record(latencyMs)
    this.#slices?.now().ok(plan.untimed ? null : latencyMs, this.#epochOf(openedAt))
  }

  /** Not processed by the server, by its protocol's rules safe to send again. */
  retryable(plan: Plan, count = 1): void {
    const tally = this.tally(plan)
    tally.requests += count
    tally.retryable += count
    if (count > 0) this.#slices?.now().retryable(count)
  }

  answered(plan: Plan, status: number): void {
    const answers = this.#answers[plan.index]
    answers?.set(status, (answers.get(status) ?? 0) + 1)
  }

  webSocketEnded(how: string): void {
    this.#webSocketEnds.set(how, (this.#webSocketEnds.get(how) ?? 0) + 1)
  }

  /** A request ended badly; `sentAt` is when it was sent. */
  fail(plan: Plan, failure: FailureClass, text: string, sentAt: number): void {
    this.tally(plan).requests++
    this.wrong(plan, failure, text, sentAt)
  }

  /** Something is wrong that is not the outcome of a request. */
  wrong(plan: Plan, failure: FailureClass, text: string, sentAt: number | null): void {
    this.tally(plan).fail(failure)
    this.#slices?.now().failed()
    const key = `${failure} ${plan.name}`
    const before = this.#detailed.get(key) ?? 0
    if (before >= DETAILS_PER_CLASS) return
    this.#detailed.set(key, before + 1)
    const at = performance.now()
    this.#details.push({
      failure,
      traffic: plan.name,
      text,
      phase: this.#phase.name,
      afterMarkMs: Math.round(at - this.#phase.startedAt),
      afterStartMs: Math.round(at - (this.#phases[0]?.startedAt ?? at)),
      requestAgeMs: sentAt === null ? null : Math.round(at - sentAt),
    })
  }

  /** @param latin1 the bytes of the body, one character each, where they are at hand */
  badStatus(plan: Plan, status: number, sentAt: number, latin1 = ''): void {
    this.#statuses.set(status, (this.#statuses.get(status) ?? 0) + 1)
    const version = this.#versionIn(latin1)
    if (version !== null) {
      const statuses = this.#statusesByVersion.get(version) ?? new Map<number, number>()
      this.#statusesByVersion.set(version, statuses.set(status, (statuses.get(status) ?? 0) + 1))
    }
    this.fail(plan, 'status', `status ${status}`, sentAt)
  }

  /** `latin1`: the bytes of the body, one character each. */
  sawBody(latin1: string): void {
    const version = this.#versionIn(latin1)
    if (version === null) return
    const phase = this.#phase
    phase.versions.set(version, (phase.versions.get(version) ?? 0) + 1)
    const atMs = now()
    const count = this.#versions.get(version)
    if (count === undefined) {
      const firstAfterMarkMs = atMs - performance.timeOrigin - phase.startedAt
      this.#versions.set(version, { responses: 1, firstAtMs: atMs, lastAtMs: atMs, firstAfterMarkMs })
    } else {
      count.responses++
      count.lastAtMs = atMs
    }
  }

  #versionIn(latin1: string): string | null {
    // Nearly all bodies of a run are the same few, and parsing JSON costs more than all the rest of a response.
    let version = this.#versionOfBody.get(latin1)
    if (version === undefined) {
      version = this.#versionOf(Buffer.from(latin1, 'latin1').toString()) ?? null
      if (this.#versionOfBody.size >= 256) this.#versionOfBody.clear()
      this.#versionOfBody.set(latin1, version)
    }
    return version
  }

  sweep(): void {
    const at = performance.now()
    for (const connection of this.live) connection.check(at)
  }

  end(): void {
    for (const connection of this.live) connection.destroy()
  }

  result(): LoadResult {
    const endedAt = performance.now()
    const startedAt = this.#phases[0]?.startedAt ?? endedAt
    const byPlan = this.#plans.map((plan) =>
      Tally.sum(this.#phases.flatMap((phase) => phase.tallies[plan.index] ?? [])),
    )
    const total = Tally.sum(byPlan).result()
    return {
      ...total,
      ...spanOf(startedAt, endedAt, total.requests),
      connects: this.connects,
      closeHeaders: this.closeHeaders,
      idleClosed: this.idleClosed,
      statuses: Object.fromEntries(this.#statuses),
      answers: Object.fromEntries(
        this.#plans.map(({ name }, at) => [name, Object.fromEntries(this.#answers[at] ?? [])]),
      ),
      webSocketEnds: Object.fromEntries(this.#webSocketEnds),
      unsent: this.unsent,
      slices: this.#slices?.all() ?? [],
      kinds: this.#kinds(endedAt),
      traffic: this.#named(byPlan),
      phases: this.#phases.map((phase, index) => {
        const sum = Tally.sum(phase.tallies).result()
        return {
          name: phase.name,
          ...sum,
          ...spanOf(phase.startedAt, this.#phases[index + 1]?.startedAt ?? endedAt, sum.requests),
          traffic: this.#named(phase.tallies),
          versions: Object.fromEntries(phase.versions),
        }
      }),
      versions: Object.fromEntries([...this.#versions].map(([version, count]) => [version, { ...count }])),
      statusesByVersion: Object.fromEntries(
        [...this.#statusesByVersion].map(([version, statuses]) => [version, Object.fromEntries(statuses)]),
      ),
      details: [...this.#details],
    }
  }

  #kinds(endedAt: number): Record<string, KindResult> {
    const kinds = new Map<string, { sum: Tally; durationMs: number }>()
    this.#phases.forEach(({ kind, tallies, startedAt }, index) => {
      if (kind === null) return
      const known = kinds.get(kind) ?? { sum: new Tally(), durationMs: 0 }
      tallies.forEach((tally, at) => known.sum.merge(tally, this.#plans[at]?.untimed !== true))
      known.durationMs += (this.#phases[index + 1]?.startedAt ?? endedAt) - startedAt
      kinds.set(kind, known)
    })
    return Object.fromEntries(
      [...kinds].map(([kind, { sum, durationMs }]) => [kind, { ...sum.result(), durationMs }]),
    )
  }

  #named(tallies: readonly Tally[]): Record<string, TallyResult> {
    return Object.fromEntries(tallies.map((tally, index) => [this.#plans[index]?.name ?? '', tally.result()]))
  }
}

function spanOf(startedAt: number, endedAt: number, requests: number) {
  const durationMs = endedAt - startedAt
  const perSecond = durationMs > 0 ? Math.round((requests / durationMs) * 1000) : 0
  return { startedAtMs: performance.timeOrigin + startedAt, durationMs, perSecond }
}

function versionReader(given: WorldOptions['versionOf']): (body: string) => string | undefined {
  if (typeof given === 'function') return given
  if (given === undefined) return () => undefined
  return (body) => {
    try {
      const value: unknown = (JSON.parse(body) as Partial<Record<VersionField, unknown>> | null)?.[given]
      return typeof value === 'string' || typeof value === 'number' ? String(value) : undefined
    } catch {
      return undefined
    }
  }
}

/** Counts by the clock. A slice is finished when the next begins: one histogram serves all. */
class Slices {
  readonly #sliceMs: number
  readonly #done: Slice[] = []
  #histogram = new Histogram()
  #epochs = new Map<number, number>()
  #ok = 0
  #retryable = 0
  #failed = 0
  #startedAt = performance.now()

  constructor(sliceMs: number) {
    this.#sliceMs = sliceMs
  }

  begin(at: number): void {
    this.#startedAt = at
  }

  /** Itself, with all slices finished that are over. */
  now(): this {
    const index = Math.floor((performance.now() - this.#startedAt) / this.#sliceMs)
    while (this.#done.length < index) this.#done.push(this.#finish())
    return this
  }

  ok(latencyMs: number | null, epoch: number): void {
    this.#ok++
    if (latencyMs !== null) this.#histogram.record(latencyMs)
    this.#epochs.set(epoch, (this.#epochs.get(epoch) ?? 0) + 1)
  }

  retryable(count: number): void {
    this.#retryable += count
  }

  failed(): void {
    this.#failed++
  }

  all(): readonly Slice[] {
    return [...this.now().#done]
  }

  #finish(): Slice {
    const slice = {
      atMs: this.#done.length * this.#sliceMs,
      ok: this.#ok,
      retryable: this.#retryable,
      failed: this.#failed,
      latency: this.#histogram.result(),
      epochs: Object.fromEntries(this.#epochs),
    }
    if (this.#ok > 0) this.#histogram = new Histogram()
    this.#epochs = new Map()
    this.#ok = this.#retryable = this.#failed = 0
    return slice
  }
}
