/**
 * A load client over raw sockets. Importing it does nothing.
 *
 * Rules:
 * - Nothing is ever sent again. Each request has exactly one outcome: ok, one class of failure, or `retryable`.
 * - It obeys HTTP: what a careful client would not do is no test of a server. It does not use a connection after
 *   `Connection: close`, and a connection that ends while it is idle is no failure, unless the server had promised
 *   to keep it longer (`Keep-Alive: timeout=N`).
 * - It never waits for ever: each request, each connect and the stop have a bound.
 *
 * Run it in a process of its own (`start-load.ts`): one that shares its event loop with a test measures the test.
 */
import { connect, type Socket } from 'node:net'
import { type Complaint, type ResponseHead, ResponseParser, type ResponseSink } from './response-parser.ts'
import { type FailureClass, Tally, type TallyResult } from './tally.ts'

export type { FailureClass, Latency, TallyResult } from './tally.ts'

/**
 * - `new`: a connection for each request, which asks for `Connection: close`
 * - `keepalive`: one connection, a time to think between requests
 * - `hot`: one connection, the next request as soon as the answer is there
 * - `post`: as `keepalive`, POST with a body of 64 KiB
 * - `slow`: as `hot`, to a path that takes 2 s
 * - `stream`: as `hot`, to a path that sends chunks for 3 s
 * - `pipelined`: as `hot`, 8 requests in one write, the next 8 when all are answered
 * - `preconnect`: connects, says nothing for up to 3 s as browsers do, then one request
 */
export type Mode = 'new' | 'keepalive' | 'hot' | 'post' | 'slow' | 'stream' | 'pipelined' | 'preconnect'

export interface Traffic {
  readonly mode: Mode
  readonly connections: number
  /** What the result calls it; the mode, unless there is more than one of that mode. */
  readonly name?: string
  readonly path?: string
  /** Between an answer and the next request (`preconnect`: between connect and request), evenly spread. */
  readonly thinkMs?: readonly [min: number, max: number]
  /** Of a `post`. */
  readonly bodyBytes?: number
  /** Of a `post`: the answer must be the body that was sent; anything else is `malformed`. */
  readonly echo?: boolean
  /** Of `pipelined`. */
  readonly depth?: number
}

export type Target = { readonly host?: string; readonly port: number } | { readonly path: string }

export type VersionField = 'version' | 'generation' | 'pid'

export interface LoadOptions {
  readonly target: Target
  readonly traffic: readonly Traffic[]
  /** Without a byte for that long, a request hangs. Default 10 s. */
  readonly timeoutMs?: number
  /** Default: `timeoutMs`. */
  readonly connectTimeoutMs?: number
  /** How long `stop` waits for what is in flight. Default: `timeoutMs` + 1 s. */
  readonly stopMs?: number
  /** Stop by itself after that many requests, or that long. */
  readonly maxRequests?: number
  readonly maxMs?: number
  /** Which version answered: a field of a JSON body, or a function of the body. */
  readonly versionOf?: VersionField | ((body: string) => string | undefined)
}

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
  /** A request counts in the phase in which it ended. */
  readonly phases: readonly PhaseResult[]
  readonly versions: Readonly<Record<string, VersionCount>>
  /** The first {@link DETAILS_PER_CLASS} failures of each class and traffic. */
  readonly details: readonly Detail[]
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

export const DETAILS_PER_CLASS = 10

const KIB = 1024
const READ_BUFFER_BYTES = 64 * KIB
const CAPTURED_BODY_BYTES = 16 * KIB

/** After a failure, or a preconnect that the server ended. Without it a refused lane would count thousands of failures a second instead of some fifty. */
const PAUSE_AFTER_FAILURE_MS = 20

/** For the FIN of a connection that is over. */
const FAREWELL_MS = 2000

/**
 * A promise of N seconds begins on the server when it has written the response, which is before we have read it; its
 * clock and ours tick apart, too. A FIN that early is not held against it.
 */
const PROMISE_TOLERANCE_MS = 100

/** Epoch milliseconds with fractions, comparable between processes of one machine. */
export const now = (): number => performance.timeOrigin + performance.now()

export class Load {
  /** The result, once stopped or a bound is reached. */
  readonly done: Promise<LoadResult>
  readonly #options: LoadOptions
  readonly #world: World
  readonly #lanes: Lane[]
  #resting = 0
  #state: 'idle' | 'running' | 'stopping' | 'stopped' = 'idle'
  #issued = 0
  #resolve: (result: LoadResult) => void = () => {}
  #sweeper: NodeJS.Timeout | undefined
  #bound: NodeJS.Timeout | undefined

  /** @throws if the traffic is empty or names something twice. */
  constructor(options: LoadOptions) {
    const plans = options.traffic.map((traffic, index) => planOf(traffic, index))
    const names = plans.map((plan) => plan.name)
    if (plans.length === 0) throw new Error('a load without traffic: give at least one mode')
    if (new Set(names).size < names.length)
      throw new Error(`traffic with the same name twice: ${names.join(', ')}`)
    this.#options = options
    this.#world = new World(options, plans)
    this.#lanes = plans.flatMap((plan) =>
      Array.from({ length: plan.connections }, () => new Lane(this.#world, plan, this)),
    )
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
    for (const lane of this.#lanes) lane.start()
    return this
  }

  /** From now on (or from `atMs`, by {@link now}, where it was said in another process) a new phase counts. */
  mark(name: string, atMs = now()): void {
    this.#world.mark(name, atMs - performance.timeOrigin)
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
    for (const lane of this.#lanes) lane.wind()
    return this.done
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

/** A {@link Traffic}, ready to be sent. */
interface Plan {
  readonly index: number
  readonly name: string
  readonly mode: Mode
  readonly connections: number
  readonly thinkMs: readonly [number, number]
  /** How many requests `bytes` holds. */
  readonly batch: number
  readonly bytes: Buffer
  /** What the body of each response must be. */
  readonly echo: Buffer | null
  /** The request asks for `Connection: close`, so that the answer saying it is no news. */
  readonly asksClose: boolean
  /** The connection is not used again. */
  readonly once: boolean
}

const DEFAULT_PATH: Partial<Record<Mode, string>> = {
  post: '/echo',
  slow: '/slow?ms=2000',
  stream: '/stream?ms=3000',
}

const DEFAULT_THINK_MS: Partial<Record<Mode, readonly [number, number]>> = {
  keepalive: [10, 30],
  post: [10, 30],
  preconnect: [0, 3000],
}

function planOf(traffic: Traffic, index: number): Plan {
  const { mode } = traffic
  const path = traffic.path ?? DEFAULT_PATH[mode] ?? '/'
  const body = mode === 'post' ? textOf(traffic.bodyBytes ?? 64 * KIB) : Buffer.alloc(0)
  const lines = [`${mode === 'post' ? 'POST' : 'GET'} ${path} HTTP/1.1`, 'Host: localhost']
  if (mode === 'post') lines.push('Content-Type: application/octet-stream', `Content-Length: ${body.length}`)
  if (mode === 'new') lines.push('Connection: close')
  const request = Buffer.concat([Buffer.from(`${lines.join('\r\n')}\r\n\r\n`, 'latin1'), body])
  const batch = mode === 'pipelined' ? (traffic.depth ?? 8) : 1
  return {
    index,
    name: traffic.name ?? mode,
    mode,
    connections: traffic.connections,
    thinkMs: traffic.thinkMs ?? DEFAULT_THINK_MS[mode] ?? [0, 0],
    batch,
    bytes: Buffer.concat(Array.from({ length: batch }, () => request)),
    echo: mode === 'post' && traffic.echo === true ? body : null,
    asksClose: mode === 'new',
    once: mode === 'new' || mode === 'preconnect',
  }
}

/** Every position differs from its neighbours in another way (the period is a prime), so that lost or doubled bytes show. */
function textOf(bytes: number): Buffer {
  const body = Buffer.alloc(bytes)
  for (let at = 0; at < bytes; at++) body[at] = 32 + ((at * 7) % 89)
  return body
}

interface Phase {
  readonly name: string
  readonly startedAt: number
  readonly tallies: readonly Tally[]
  readonly versions: Map<string, number>
}

/** What all lanes share: the options, the connections that live, and everything that is counted. */
class World {
  readonly target: Target
  readonly timeoutMs: number
  readonly connectTimeoutMs: number
  readonly live = new Set<Connection>()
  /** One buffer for all: libuv reads and calls back in one go, and nothing keeps a slice of it. */
  readonly readBuffer = Buffer.allocUnsafeSlow(READ_BUFFER_BYTES)
  readonly wantsBody: boolean
  connects = 0
  closeHeaders = 0
  idleClosed = 0
  readonly #plans: readonly Plan[]
  readonly #versionOf: (body: string) => string | undefined
  readonly #versionOfBody = new Map<string, string | null>()
  readonly #versions = new Map<string, { -readonly [K in keyof VersionCount]: VersionCount[K] }>()
  readonly #statuses = new Map<number, number>()
  readonly #details: Detail[] = []
  readonly #detailed = new Map<string, number>()
  readonly #phases: Phase[] = []
  #phase: Phase

  constructor(options: LoadOptions, plans: readonly Plan[]) {
    this.target = options.target
    this.timeoutMs = options.timeoutMs ?? 10_000
    this.connectTimeoutMs = options.connectTimeoutMs ?? this.timeoutMs
    this.wantsBody = options.versionOf !== undefined
    this.#versionOf = versionReader(options.versionOf)
    this.#plans = plans
    this.#phase = this.#newPhase('start', performance.now())
  }

  begin(): void {
    this.#phases.length = 0
    this.#phase = this.#newPhase('start', performance.now())
  }

  mark(name: string, at: number): void {
    this.#phase = this.#newPhase(name, at)
  }

  #newPhase(name: string, startedAt: number): Phase {
    const phase = { name, startedAt, tallies: this.#plans.map(() => new Tally()), versions: new Map() }
    this.#phases.push(phase)
    return phase
  }

  tally(plan: Plan): Tally {
    const tally = this.#phase.tallies[plan.index]
    if (tally === undefined) throw new Error(`no tally for ${plan.name}`)
    return tally
  }

  ok(plan: Plan, latencyMs: number): void {
    const tally = this.tally(plan)
    tally.requests++
    tally.ok++
    tally.latency.record(latencyMs)
  }

  /** A request ended badly; `sentAt` is when it was sent. */
  fail(plan: Plan, failure: FailureClass, text: string, sentAt: number): void {
    this.tally(plan).requests++
    this.wrong(plan, failure, text, sentAt)
  }

  /** Something is wrong that is not the outcome of a request. */
  wrong(plan: Plan, failure: FailureClass, text: string, sentAt: number | null): void {
    this.tally(plan).fail(failure)
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

  badStatus(plan: Plan, status: number, sentAt: number): void {
    this.#statuses.set(status, (this.#statuses.get(status) ?? 0) + 1)
    this.fail(plan, 'status', `status ${status}`, sentAt)
  }

  /** `latin1`: the bytes of the body, one character each. */
  sawBody(latin1: string): void {
    // Nearly all bodies of a run are the same few, and parsing JSON costs more than all the rest of a response.
    let version = this.#versionOfBody.get(latin1)
    if (version === undefined) {
      version = this.#versionOf(Buffer.from(latin1, 'latin1').toString()) ?? null
      if (this.#versionOfBody.size >= 256) this.#versionOfBody.clear()
      this.#versionOfBody.set(latin1, version)
    }
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
      details: [...this.#details],
    }
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

function versionReader(given: LoadOptions['versionOf']): (body: string) => string | undefined {
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

/** One of the `connections` of a traffic: sends, waits, thinks, sends; has at most one connection in use. */
class Lane {
  readonly plan: Plan
  readonly #world: World
  readonly #load: Load
  #connection: Connection | null = null
  #timer: NodeJS.Timeout | undefined
  #winding = false
  #rested = false

  constructor(world: World, plan: Plan, load: Load) {
    this.#world = world
    this.plan = plan
    this.#load = load
  }

  /** Spread over the time to think: lanes in step would all be idle at the same moments. */
  start(): void {
    const spreadMs = this.plan.mode === 'preconnect' ? 0 : this.plan.thinkMs[1]
    this.#after(Math.random() * spreadMs, () => this.#next())
  }

  /** The connection stands: the request that it was made for is due (a browser's preconnect takes its time). */
  connected(connection: Connection): void {
    if (this.plan.mode === 'preconnect' && !this.#winding)
      this.#after(this.#thinkMs(), () => connection.send())
    else connection.send()
  }

  /** Everything that was sent is answered. */
  answered(connection: Connection): void {
    if (!connection.usable) this.#connection = null
    const thinkMs = this.plan.mode === 'preconnect' ? 0 : this.#thinkMs()
    if (thinkMs > 0) this.#after(thinkMs, () => this.#next())
    else this.#next()
  }

  /** Something that was sent has failed, and the connection is gone. */
  failed(): void {
    this.#connection = null
    this.#after(PAUSE_AFTER_FAILURE_MS, () => this.#next())
  }

  /** The server ended the connection while nothing was outstanding. A lane that thinks goes on thinking. */
  lost(): void {
    this.#connection = null
    if (this.plan.mode !== 'preconnect') return
    clearTimeout(this.#timer)
    this.#after(PAUSE_AFTER_FAILURE_MS, () => this.#next())
  }

  /** Stop: what is outstanding may end, a lane that waits for its own time need not. */
  wind(): void {
    this.#winding = true
    if (this.#timer !== undefined) this.#rest()
  }

  /** The stop has taken too long. */
  giveUp(stopMs: number): void {
    if (this.#rested) return
    this.#connection?.abandon(`still in flight ${stopMs} ms after the stop`)
    this.#rest()
  }

  #next(): void {
    if (this.#rested) return
    if (!this.#load.take(this.plan.batch)) return this.#rest()
    if (this.#connection?.usable) return this.#connection.send()
    this.#connection = new Connection(this.#world, this)
  }

  #rest(): void {
    if (this.#rested) return
    this.#rested = true
    clearTimeout(this.#timer)
    this.#connection?.retire()
    this.#load.rested()
  }

  #after(ms: number, then: () => void): void {
    this.#timer = setTimeout(() => {
      this.#timer = undefined
      then()
    }, ms)
  }

  #thinkMs(): number {
    const [min, max] = this.plan.thinkMs
    return max === 0 ? 0 : min + Math.random() * (max - min)
  }
}

type ConnectionState = 'connecting' | 'open' | 'retired' | 'ended'

class Connection implements ResponseSink {
  readonly #world: World
  readonly #lane: Lane
  readonly #plan: Plan
  readonly #socket: Socket
  readonly #parser = new ResponseParser(this)
  #state: ConnectionState = 'connecting'
  #outstanding = 0
  #served = 0
  #sentAt = performance.now()
  #progressAt = this.#sentAt
  /** Until when the server promised to keep it. */
  #promisedUntil = 0
  #bodyBytes = 0
  #bodyIsEcho = true
  #text = ''

  constructor(world: World, lane: Lane) {
    this.#world = world
    this.#lane = lane
    this.#plan = lane.plan
    world.connects++
    world.live.add(this)
    this.#socket = connect({
      ...('path' in world.target ? world.target : { host: '127.0.0.1', ...world.target }),
      noDelay: true,
      onread: {
        buffer: world.readBuffer,
        callback: (bytes) => {
          this.#read(bytes)
          return true
        },
      },
    })
    this.#socket.once('connect', () => this.#connected())
    this.#socket.once('end', () => this.#ended('FIN'))
    this.#socket.on('error', (error: NodeJS.ErrnoException) => this.#ended(error.code ?? error.message))
    this.#socket.once('close', () => world.live.delete(this))
  }

  get usable(): boolean {
    return this.#state === 'open'
  }

  send(): void {
    this.#outstanding = this.#plan.batch
    this.#sentAt = this.#progressAt = performance.now()
    this.#socket.write(this.#plan.bytes)
  }

  /** It is not used again. What comes over it from now on is stray. */
  retire(): void {
    if (this.#state !== 'open') return
    this.#state = 'retired'
    this.#progressAt = performance.now()
    // Who closes first keeps the port for a minute (TIME_WAIT). With a connection for each request that has to be the
    // server, or the client runs out of ports after 28,000 requests. The other modes close at once, as Node's agent
    // and curl do.
    if (this.#plan.mode !== 'new') this.#socket.end()
  }

  /** Our own patience is at its end. */
  abandon(why: string): void {
    if (this.#state === 'connecting') this.#failConnect('connectTimeout', why)
    else if (this.#outstanding > 0) this.#failOutstanding('hang', why)
    this.destroy()
  }

  destroy(): void {
    this.#state = 'ended'
    this.#socket.destroy()
  }

  /** Called a few times a second: a timer for each request would cost more than the request. */
  check(at: number): void {
    const silentMs = at - this.#progressAt
    if (this.#state === 'retired') {
      if (silentMs > FAREWELL_MS) this.destroy()
    } else if (this.#state === 'connecting') {
      if (silentMs <= this.#world.connectTimeoutMs) return
      this.abandon(`not connected after ${Math.round(silentMs)} ms`)
      this.#lane.failed()
    } else if (this.#outstanding > 0 && silentMs > this.#world.timeoutMs) {
      this.abandon(
        `${this.#parser.begun ? 'stuck within a response' : 'no byte'} for ${Math.round(silentMs)} ms`,
      )
      this.#lane.failed()
    }
  }

  #connected(): void {
    if (this.#state !== 'connecting') return
    this.#state = 'open'
    this.#lane.connected(this)
  }

  #read(bytes: number): void {
    if (this.#state === 'ended') return
    this.#progressAt = performance.now()
    const outstanding = this.#outstanding
    const idle = this.#state === 'open' && outstanding === 0
    const complaint = this.#parser.feed(this.#world.readBuffer, 0, bytes)
    if (complaint !== null) this.#refuse(complaint)
    // The lane only now, when all that was read is parsed: its next request must not adopt bytes from before it.
    if (complaint?.stray === false) {
      this.#lane.failed()
    } else if (outstanding > 0 && this.#outstanding === 0) {
      if (this.#plan.once) this.retire()
      this.#lane.answered(this)
    } else if (complaint !== null && idle) {
      this.#lane.lost()
    }
  }

  expects(): boolean {
    return this.#outstanding > 0
  }

  body(bytes: Buffer, start: number, end: number): void {
    const { echo } = this.#plan
    const size = end - start
    if (echo !== null) {
      const due = Math.min(this.#bodyBytes + size, echo.length)
      this.#bodyIsEcho &&= bytes.compare(echo, this.#bodyBytes, due, start, end) === 0
    } else if (this.#world.wantsBody && this.#bodyBytes + size <= CAPTURED_BODY_BYTES) {
      // Latin 1 keeps bytes as they are, so a character may be split between two reads.
      this.#text += bytes.toString('latin1', start, end)
    }
    this.#bodyBytes += size
  }

  complete(head: ResponseHead): void {
    const at = performance.now()
    this.#outstanding--
    this.#served++
    const { echo } = this.#plan
    if (head.status < 200 || head.status > 299) {
      this.#world.badStatus(this.#plan, head.status, this.#sentAt)
    } else if (echo !== null && !(this.#bodyIsEcho && this.#bodyBytes === echo.length)) {
      const text = `${this.#bodyBytes} bytes that are not the ${echo.length} that were sent`
      this.#world.fail(this.#plan, 'malformed', text, this.#sentAt)
    } else {
      this.#world.ok(this.#plan, at - this.#sentAt)
      if (this.#text !== '') this.#world.sawBody(this.#text)
    }
    this.#bodyBytes = 0
    this.#bodyIsEcho = true
    this.#text = ''
    this.#promisedUntil = head.keepAliveMs === null || head.close ? 0 : at + head.keepAliveMs
    if (head.close) this.#saidClose()
  }

  #saidClose(): void {
    if (!this.#plan.asksClose) this.#world.closeHeaders++
    const tally = this.#world.tally(this.#plan)
    tally.requests += this.#outstanding
    tally.retryable += this.#outstanding
    this.#outstanding = 0
    this.retire()
  }

  #refuse(complaint: Complaint): void {
    if (complaint.stray) this.#world.wrong(this.#plan, 'stray', complaint.text, null)
    else this.#failOutstanding('malformed', complaint.text)
    this.destroy()
  }

  /** The connection is over, by the server's FIN or by an error. */
  #ended(how: string): void {
    const state = this.#state
    this.destroy()
    if (state === 'connecting') {
      this.#failConnect(connectFailure(how), how)
      this.#lane.failed()
    } else if (state === 'open' && this.#outstanding > 0) {
      this.#failOutstanding(LOCAL_ERRORS.has(how) ? 'local' : null, how)
      this.#lane.failed()
    } else if (state === 'open') {
      this.#endedIdle(how)
      this.#lane.lost()
    }
  }

  #endedIdle(how: string): void {
    const earlyMs = this.#promisedUntil - performance.now()
    if (earlyMs <= PROMISE_TOLERANCE_MS) {
      this.#world.idleClosed++
      return
    }
    const text = `${how} on an idle connection ${Math.round(earlyMs)} ms before its Keep-Alive timeout`
    this.#world.wrong(this.#plan, 'brokenPromise', text, this.#sentAt)
  }

  #failConnect(failure: FailureClass, text: string): void {
    this.#world.fail(this.#plan, failure, text, this.#sentAt)
  }

  /** All that is outstanding; without a class by what is there of the response. Only the first can have begun. */
  #failOutstanding(failure: FailureClass | null, how: string): void {
    const unbegun = this.#served > 0 ? 'keepaliveReset' : 'reset'
    const text = `${how} after ${this.#served} responses on this connection`
    for (let begun = this.#parser.begun; this.#outstanding > 0; this.#outstanding--, begun = false) {
      this.#world.fail(this.#plan, failure ?? (begun ? 'truncated' : unbegun), text, this.#sentAt)
    }
  }
}

const LOCAL_ERRORS: ReadonlySet<string> = new Set([
  'EMFILE',
  'ENFILE',
  'EADDRNOTAVAIL',
  'ENOBUFS',
  'ENOMEM',
  'EACCES',
])

/** The class of a failed connect, by its error code (connect(2)). */
export function connectFailure(code: string): FailureClass {
  if (LOCAL_ERRORS.has(code)) return 'local'
  if (code === 'ETIMEDOUT') return 'connectTimeout'
  if (code === 'ECONNREFUSED' || code === 'ENOENT' || code === 'EAGAIN') return 'refused'
  return 'connectReset'
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
