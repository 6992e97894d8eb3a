/** HTTP/1.1, over raw sockets: a lane has at most one connection in use. */
import type { Socket } from 'node:net'
import { connectTo, type Plan } from './plan.ts'
import { type Complaint, type ResponseHead, ResponseParser, type ResponseSink } from './response-parser.ts'
import type { Schedule } from './schedule.ts'
import type { FailureClass } from './tally.ts'
import type { World } from './world.ts'

/** After a failure, or a preconnect that the server ended. Without it a refused lane would count thousands of failures a second instead of some fifty. */
export const PAUSE_AFTER_FAILURE_MS = 20

/** For the FIN of a connection that is over. */
export const FAREWELL_MS = 2000

/**
 * A promise of N seconds begins on the server when it has written the response, which is before we have read it; its
 * clock and ours tick apart, too. A FIN that early is not held against it.
 */
const PROMISE_TOLERANCE_MS = 100

const CAPTURED_BODY_BYTES = 16 * 1024

/** An upload's pieces: short enough that a connection is never idle within one, long enough to cost nothing. */
const UPLOAD_PIECE_MS = 50

/** One of the `connections` of a traffic, as the load sees it. */
export interface Driver {
  start(): void
  /** Stop: what is outstanding may end, a lane that waits for its own time need not. Then `load.rested()`, once. */
  wind(): void
  /** The stop has taken too long. */
  giveUp(stopMs: number): void
}

/** What a lane belongs to. */
export interface LaneOwner {
  readonly load: { take(count: number): boolean; rested(): void }
  readonly world: World
  readonly plan: Plan
  /** Null: closed loop, each request waits for the answer to the last. */
  readonly schedule: Schedule | null
  /** Rest after the first answer. */
  readonly once: boolean
}

/** Sends, waits, thinks, sends. */
export class Lane implements Driver {
  readonly plan: Plan
  readonly #world: World
  readonly #owner: LaneOwner
  #connection: Connection | null = null
  #timer: NodeJS.Timeout | undefined
  #waits = false
  #winding = false
  #rested = false

  constructor(owner: LaneOwner) {
    this.#owner = owner
    this.#world = owner.world
    this.plan = owner.plan
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
    if (this.#owner.once) return this.#rest()
    const thinkMs = this.plan.mode === 'preconnect' ? 0 : this.#thinkMs()
    if (thinkMs > 0) this.#after(thinkMs, () => this.#next())
    else this.#next()
  }

  /** Something that was sent has failed, and the connection is gone. */
  failed(): void {
    this.#connection = null
    if (this.#owner.once) return this.#rest()
    this.#after(PAUSE_AFTER_FAILURE_MS, () => this.#next())
  }

  /** The server ended the connection while nothing was outstanding. A lane that thinks goes on thinking. */
  lost(): void {
    this.#connection = null
    if (this.plan.mode !== 'preconnect') return
    clearTimeout(this.#timer)
    this.#after(PAUSE_AFTER_FAILURE_MS, () => this.#next())
  }

  wind(): void {
    this.#winding = true
    if (this.#timer !== undefined || this.#waits) this.#rest()
  }

  giveUp(stopMs: number): void {
    if (this.#rested) return
    this.#connection?.abandon(`still in flight ${stopMs} ms after the stop`)
    this.#rest()
  }

  due(dueAt: number): void {
    this.#waits = false
    this.#go(dueAt)
  }

  #next(): void {
    if (this.#rested) return
    const { schedule } = this.#owner
    if (schedule === null) return this.#go(null)
    if (this.#winding) return this.#rest()
    this.#waits = true
    schedule.wait(this)
  }

  /** @param dueAt from when its latency counts; null: from when it is sent */
  #go(dueAt: number | null): void {
    if (!this.#owner.load.take(this.plan.batch)) return this.#rest()
    if (this.#connection?.usable) return this.#connection.send(dueAt)
    this.#connection = new Connection(this.#world, this, dueAt)
  }

  #rest(): void {
    if (this.#rested) return
    this.#rested = true
    clearTimeout(this.#timer)
    this.#owner.schedule?.leave(this)
    this.#connection?.retire()
    this.#owner.load.rested()
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
  readonly #openedAt = this.#sentAt
  #dueAt: number | null
  /** Of an upload: what is still to be sent, and the timer that sends the next piece. */
  #pieces: NodeJS.Timeout | undefined
  /** Until when the server promised to keep it. */
  #promisedUntil = 0
  #bodyBytes = 0
  #bodyIsEcho = true
  #text = ''

  constructor(world: World, lane: Lane, dueAt: number | null) {
    this.#dueAt = dueAt
    this.#world = world
    this.#lane = lane
    this.#plan = lane.plan
    world.connects++
    world.live.add(this)
    const { socket, stands } = connectTo(this.#plan.target, {
      onread: {
        buffer: world.readBuffer,
        callback: (bytes) => {
          this.#read(bytes)
          return true
        },
      },
    })
    this.#socket = socket
    this.#socket.once(stands, () => this.#connected())
    this.#socket.once('end', () => this.#ended('FIN'))
    this.#socket.on('error', (error: NodeJS.ErrnoException) => this.#ended(error.code ?? error.message))
    this.#socket.once('close', () => world.live.delete(this))
  }

  get usable(): boolean {
    return this.#state === 'open'
  }

  /** @param dueAt as in the constructor, which says it for the first */
  send(dueAt = this.#dueAt): void {
    this.#dueAt = dueAt
    this.#outstanding = this.#plan.batch
    this.#sentAt = this.#progressAt = performance.now()
    if (this.#plan.uploadMs === 0) this.#socket.write(this.#plan.bytes)
    else this.#upload()
  }

  #upload(): void {
    const { bytes, uploadMs } = this.#plan
    const pieces = Math.max(2, Math.round(uploadMs / UPLOAD_PIECE_MS))
    const size = Math.ceil(bytes.length / pieces)
    let sent = 0
    const sendNext = () => {
      this.#progressAt = performance.now()
      this.#socket.write(bytes.subarray(sent, sent + size))
      sent += size
      if (sent >= bytes.length) this.#endUpload()
    }
    this.#pieces = setInterval(sendNext, uploadMs / pieces)
    sendNext()
  }

  #endUpload(): void {
    clearInterval(this.#pieces)
    this.#pieces = undefined
  }

  /** It is not used again. What comes over it from now on is stray. */
  retire(): void {
    if (this.#state !== 'open') return
    // A FIN within a body is a malformed request, and would be answered as one.
    if (this.#pieces !== undefined) return this.destroy()
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
    this.#endUpload()
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
    this.#world.answered(this.#plan, head.status)
    if (!this.#plan.good(head.status)) {
      this.#world.badStatus(this.#plan, head.status, this.#sentAt, this.#text)
    } else if (echo !== null && !(this.#bodyIsEcho && this.#bodyBytes === echo.length)) {
      const text = `${this.#bodyBytes} bytes that are not the ${echo.length} that were sent`
      this.#world.fail(this.#plan, 'malformed', text, this.#sentAt)
    } else {
      this.#world.ok(this.#plan, at - (this.#dueAt ?? this.#sentAt), this.#openedAt)
      if (this.#text !== '') this.#world.sawBody(this.#text)
    }
    this.#bodyBytes = 0
    this.#bodyIsEcho = true
    this.#text = ''
    this.#promisedUntil = head.keepAliveMs === null || head.close ? 0 : at + head.keepAliveMs
    if (head.close) this.#saidClose()
    // Answered before all was sent (an early error, say): legal, but what follows would be taken for the rest.
    else if (this.#pieces !== undefined) this.retire()
  }

  #saidClose(): void {
    if (!this.#plan.asksClose) this.#world.closeHeaders++
    this.#world.retryable(this.#plan, this.#outstanding)
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
