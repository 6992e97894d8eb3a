/**
 * HTTP/2 by node:http2, with prior knowledge or by ALPN: a lane is one session with up to `depth` streams at once.
 *
 * A server that goes away says so (GOAWAY), and a request can cross that on its way. RFC 9113, 6.8 and 8.7: a stream
 * above the last id of the GOAWAY, one reset with REFUSED_STREAM, and one that was never sent were not processed and
 * may be sent again. Such a request is `retryable`, and is sent once more over a new session, as every HTTP/2 client
 * that is worth its name does; if it is refused again it has failed (`refusedTwice`).
 */
import http2, { type ClientHttp2Session, type ClientHttp2Stream } from 'node:http2'
import { connectFailure, type Driver, type LaneOwner, PAUSE_AFTER_FAILURE_MS } from './lane.ts'
import { connectTo, type Plan } from './plan.ts'
import type { FailureClass } from './tally.ts'
import type { Watched } from './world.ts'

const { NGHTTP2_NO_ERROR, NGHTTP2_REFUSED_STREAM } = http2.constants

/** Not for HTTP/2 (RFC 9113, 8.2.2): a request with one of these is malformed. */
const OF_CONNECTIONS: ReadonlySet<string> = new Set([
  'connection',
  'keep-alive',
  'proxy-connection',
  'te',
  'transfer-encoding',
  'upgrade',
])

/** A session, and what its streams must know of it to tell what became of them. */
class Session implements Watched {
  readonly openedAt = performance.now()
  readonly #session: ClientHttp2Session
  readonly #owner: LaneOwner
  /** Streams above this were not processed; null: no GOAWAY yet. */
  lastStreamId: number | null = null
  connected = false
  /** The socket's own error code. */
  error: string | null = null
  #streams = 0

  constructor(owner: LaneOwner) {
    this.#owner = owner
    const { world, plan } = owner
    world.connects++
    world.live.add(this)
    const { socket, stands } = connectTo(plan.target, { alpn: ['h2'] })
    socket.once(stands, () => (this.connected = true))
    socket.on('error', (error: NodeJS.ErrnoException) => (this.error ??= error.code ?? error.message))
    this.#session = http2.connect('http://localhost', { createConnection: () => socket })
    this.#session.on('goaway', (_code, lastStreamId) => {
      // Node's server says it twice: the smaller id counts (6.8).
      this.lastStreamId = Math.min(this.lastStreamId ?? Infinity, lastStreamId ?? Infinity)
      if (this.#streams === 0) this.close()
    })
    this.#session.on('error', (error: NodeJS.ErrnoException) => (this.error ??= error.code ?? error.message))
    this.#session.once('close', () => {
      world.live.delete(this)
      if (this.lastStreamId === null && this.#streams === 0 && this.connected) world.idleClosed++
    })
  }

  get usable(): boolean {
    return this.lastStreamId === null && !this.#session.closed && !this.#session.destroyed
  }

  request(plan: Plan): ClientHttp2Stream {
    const headers: Record<string, string> = {
      ':method': 'GET',
      ':path': plan.path,
    }
    if (plan.target.tls) headers[':scheme'] = 'https'
    for (const line of plan.headers) {
      const name = line.slice(0, line.indexOf(':')).toLowerCase()
      const value = line.slice(line.indexOf(':') + 1).trim()
      if (name === 'host') headers[':authority'] = value
      else if (!OF_CONNECTIONS.has(name)) headers[name] = value
    }
    const stream = this.#session.request(headers, { endStream: true })
    this.#streams++
    stream.once('close', () => {
      if (--this.#streams === 0 && this.lastStreamId !== null) this.close()
    })
    return stream
  }

  check(at: number): void {
    const { connectTimeoutMs } = this.#owner.world
    if (this.connected || at - this.openedAt <= connectTimeoutMs) return
    this.error ??= 'ETIMEDOUT'
    this.destroy()
  }

  close(): void {
    if (!this.#session.closed) this.#session.close()
  }

  destroy(): void {
    this.#session.destroy()
  }
}

export class Http2Lane implements Driver {
  readonly #owner: LaneOwner
  readonly #slots: Slot[]
  #session: Session | null = null
  #resting = 0

  constructor(owner: LaneOwner) {
    this.#owner = owner
    this.#slots = Array.from({ length: owner.once ? 1 : owner.plan.depth }, () => new Slot(owner, this))
  }

  start(): void {
    for (const slot of this.#slots) slot.start()
  }

  wind(): void {
    for (const slot of this.#slots) slot.wind()
  }

  giveUp(stopMs: number): void {
    for (const slot of this.#slots) slot.giveUp(stopMs)
  }

  session(): Session {
    if (this.#session?.usable !== true) this.#session = new Session(this.#owner)
    return this.#session
  }

  rested(): void {
    if (++this.#resting < this.#slots.length) return
    this.#session?.close()
    this.#owner.load.rested()
  }
}

/** One stream at a time. */
class Slot implements Watched {
  readonly #owner: LaneOwner
  readonly #lane: Http2Lane
  #stream: ClientHttp2Stream | null = null
  #progressAt = 0
  #overdue: string | null = null
  #timer: NodeJS.Timeout | undefined
  #waits = false
  #winding = false
  #rested = false

  constructor(owner: LaneOwner, lane: Http2Lane) {
    this.#owner = owner
    this.#lane = lane
  }

  start(): void {
    this.#after(Math.random() * this.#owner.plan.thinkMs[1], () => this.#next())
  }

  wind(): void {
    this.#winding = true
    if (this.#waits || this.#timer !== undefined) this.#rest()
  }

  giveUp(stopMs: number): void {
    if (this.#rested) return
    this.#abandon(`still in flight ${stopMs} ms after the stop`)
    this.#rest()
  }

  due(dueAt: number): void {
    this.#waits = false
    this.#go(dueAt)
  }

  check(at: number): void {
    const silentMs = at - this.#progressAt
    if (silentMs > this.#owner.world.timeoutMs) this.#abandon(`no frame for ${Math.round(silentMs)} ms`)
  }

  destroy(): void {
    this.#stream?.destroy()
  }

  #abandon(why: string): void {
    this.#overdue ??= why
    this.#stream?.close(http2.constants.NGHTTP2_CANCEL)
    this.#stream?.destroy()
  }

  #next(): void {
    if (this.#rested) return
    if (this.#winding) return this.#rest()
    const { schedule } = this.#owner
    if (schedule === null) return this.#go(null)
    this.#waits = true
    schedule.wait(this)
  }

  #go(dueAt: number | null): void {
    if (!this.#owner.load.take(1)) return this.#rest()
    this.#send(dueAt ?? performance.now(), false)
  }

  #send(dueAt: number, again: boolean): void {
    const { world, plan } = this.#owner
    const session = this.#lane.session()
    const stream = session.request(plan)
    let status: number | null = null
    let whole = false
    let length: number | null = null
    let bytes = 0
    this.#stream = stream
    this.#overdue = null
    this.#progressAt = performance.now()
    world.live.add(this)
    stream.on('response', (headers) => {
      status = headers[':status'] ?? 0
      const given = headers['content-length']
      length = given === undefined ? null : Number(given)
    })
    stream.on('data', (chunk: Buffer) => {
      bytes += chunk.length
      this.#progressAt = performance.now()
    })
    stream.once('end', () => (whole = !stream.aborted))
    // What is wrong is told by the codes below.
    stream.on('error', () => {})
    stream.once('close', () => {
      world.live.delete(this)
      this.#stream = null
      const { id, rstCode = NGHTTP2_NO_ERROR } = stream
      if (status !== null) world.answered(plan, status)
      const good = whole && status !== null && rstCode === NGHTTP2_NO_ERROR
      if (good && (length === null || length === bytes)) {
        if (plan.good(status ?? 0)) world.ok(plan, performance.now() - dueAt, session.openedAt)
        else world.badStatus(plan, status ?? 0, dueAt)
        return this.#answered()
      }
      const unprocessed =
        status === null &&
        (rstCode === NGHTTP2_REFUSED_STREAM ||
          (session.lastStreamId !== null && (id === undefined || id > session.lastStreamId)))
      if (unprocessed && this.#overdue === null) return this.#refused(dueAt, again)
      this.#failed(classOf(session, status, this.#overdue), wordsOf(session, this.#overdue, stream), dueAt)
    })
  }

  #refused(dueAt: number, again: boolean): void {
    const { world, plan } = this.#owner
    if (again)
      return this.#failed('refusedTwice', 'refused, and refused again when it was sent once more', dueAt)
    world.retryable(plan)
    this.#send(dueAt, true)
  }

  #answered(): void {
    if (this.#owner.once) return this.#rest()
    const [min, max] = this.#owner.plan.thinkMs
    if (max > 0) this.#after(min + Math.random() * (max - min), () => this.#next())
    else this.#next()
  }

  #failed(failure: FailureClass, text: string, dueAt: number): void {
    this.#owner.world.fail(this.#owner.plan, failure, text, dueAt)
    if (this.#owner.once) this.#rest()
    else this.#after(PAUSE_AFTER_FAILURE_MS, () => this.#next())
  }

  #after(ms: number, then: () => void): void {
    this.#timer = setTimeout(() => {
      this.#timer = undefined
      then()
    }, ms)
  }

  #rest(): void {
    if (this.#rested) return
    this.#rested = true
    clearTimeout(this.#timer)
    this.#owner.schedule?.leave(this)
    this.#lane.rested()
  }
}

function classOf(session: Session, status: number | null, overdue: string | null): FailureClass {
  if (!session.connected) return connectFailure(session.error ?? 'ECONNRESET')
  if (overdue !== null) return 'hang'
  return status === null ? 'reset' : 'truncated'
}

function wordsOf(session: Session, overdue: string | null, { rstCode, id }: ClientHttp2Stream): string {
  if (overdue !== null) return overdue
  const goaway = session.lastStreamId === null ? 'no GOAWAY' : `GOAWAY, last stream ${session.lastStreamId}`
  return `stream ${id ?? 'never sent'} ended with code ${rstCode ?? 'none'}, ${goaway}, ${session.error ?? 'no error of the connection'}`
}
