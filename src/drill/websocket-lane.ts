/**
 * WebSockets that are kept open (RFC 6455), by hand: what a library makes of the end of a connection is what must be
 * seen here as it is.
 *
 * - The handshake is one request, each ping another: every server must answer a ping (5.5.2), so that an app's own
 *   messages need not be known.
 * - A connection that the server ends must end by a close frame with 1000, 1001 (going away) or 1012 (service
 *   restart). Without one it is a `bareClose`: the client cannot tell a restart from a broken network, and most
 *   libraries report 1006.
 */
import { createHash, randomBytes } from 'node:crypto'
import type { Socket } from 'node:net'
import { connectFailure, type Driver, FAREWELL_MS, type LaneOwner, PAUSE_AFTER_FAILURE_MS } from './lane.ts'
import { connectTo } from './plan.ts'
import type { FailureClass } from './tally.ts'
import type { Watched } from './world.ts'

const GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'
const GOOD_CODES: ReadonlySet<number> = new Set([1000, 1001, 1012])
const MAX_HEAD_BYTES = 16 * 1024

/** After a close frame clients come back spread over some time, as real ones should. */
const RECONNECT_MS = 250

const OPCODE = { close: 8, ping: 9, pong: 10 } as const

/** One frame of a client: final, masked (5.3). */
export function clientFrame(opcode: number, payload: Buffer): Buffer {
  const mask = randomBytes(4)
  const frame = Buffer.concat([Buffer.from([0x80 | opcode, 0x80 | payload.length]), mask, payload])
  for (let at = 6; at < frame.length; at++) frame[at] = (frame[at] ?? 0) ^ (mask[(at - 6) % 4] ?? 0)
  return frame
}

interface Frame {
  readonly opcode: number
  readonly payload: Buffer
}

/** A server's frames from bytes. Payloads of data frames are skipped, however long. */
export class FrameReader {
  #held: Buffer = Buffer.alloc(0)
  #skip = 0

  /** The control frames that are whole now, or what is wrong with the bytes. */
  feed(bytes: Buffer): readonly Frame[] | string {
    const frames: Frame[] = []
    let rest = this.#held.length === 0 ? bytes : Buffer.concat([this.#held, bytes])
    for (;;) {
      const skipped = Math.min(this.#skip, rest.length)
      this.#skip -= skipped
      rest = rest.subarray(skipped)
      if (rest.length < 2 || this.#skip > 0) break
      const [first = 0, second = 0] = rest
      const opcode = first & 0x0f
      const short = second & 0x7f
      if ((first & 0x70) !== 0) return 'a frame with reserved bits, though no extension was agreed on'
      if ((second & 0x80) !== 0) return 'a masked frame, which a server must not send'
      if (opcode >= 8 && (short > 125 || (first & 0x80) === 0))
        return 'a control frame that is too long or not final'
      const headBytes = short === 126 ? 4 : short === 127 ? 10 : 2
      if (rest.length < headBytes) break
      const size =
        short === 126 ? rest.readUInt16BE(2) : short === 127 ? Number(rest.readBigUInt64BE(2)) : short
      if (opcode < 8) {
        this.#skip = size
        rest = rest.subarray(headBytes)
        continue
      }
      if (rest.length < headBytes + size) break
      frames.push({ opcode, payload: Buffer.from(rest.subarray(headBytes, headBytes + size)) })
      rest = rest.subarray(headBytes + size)
    }
    this.#held = Buffer.from(rest)
    return frames
  }
}

type State = 'connecting' | 'handshaking' | 'open' | 'closing' | 'ended'

export class WebSocketLane implements Driver, Watched {
  readonly #owner: LaneOwner
  #socket: Socket | null = null
  #state: State = 'ended'
  #key = ''
  #head = ''
  #frames = new FrameReader()
  #startedAt = 0
  /** Since when the current wait lasts that has a bound: for the connect, the handshake, the end. */
  #since = 0
  #timer: NodeJS.Timeout | undefined
  /** When each unanswered ping was due, by its number, oldest first. */
  readonly #pings = new Map<number, number>()
  #pinged = 0
  #rested = false
  #winding = false

  constructor(owner: LaneOwner) {
    this.#owner = owner
  }

  start(): void {
    this.#after(this.#owner.once ? 0 : Math.random() * RECONNECT_MS, () => this.#open())
  }

  wind(): void {
    this.#winding = true
    if (this.#state === 'ended') this.#rest()
    else if (this.#state === 'open' && this.#pings.size === 0) this.#farewell()
  }

  giveUp(stopMs: number): void {
    if (this.#rested) return
    this.#failAll('hang', `still in flight ${stopMs} ms after the stop`)
    this.#drop()
    this.#rest()
  }

  destroy(): void {
    this.#drop()
  }

  check(at: number): void {
    const { timeoutMs, connectTimeoutMs } = this.#owner.world
    const waitedMs = at - this.#since
    if (this.#state === 'connecting' && waitedMs > connectTimeoutMs) {
      this.#failed('connectTimeout', `not connected after ${Math.round(waitedMs)} ms`)
    } else if (this.#state === 'handshaking' && waitedMs > timeoutMs) {
      this.#failed('hang', `no whole answer to the handshake for ${Math.round(waitedMs)} ms`)
    } else if (this.#state === 'closing' && waitedMs > FAREWELL_MS) {
      this.#over(RECONNECT_MS)
    } else if (this.#state === 'open') {
      const [oldest] = this.#pings.values()
      if (oldest === undefined || at - oldest <= timeoutMs) return
      this.#failed('hang', `no pong for ${Math.round(at - oldest)} ms`)
    }
  }

  #open(): void {
    const { world, plan, load } = this.#owner
    if (this.#winding || !load.take(1)) return this.#rest()
    this.#key = randomBytes(16).toString('base64')
    this.#head = ''
    this.#frames = new FrameReader()
    this.#state = 'connecting'
    this.#startedAt = this.#since = performance.now()
    world.connects++
    world.live.add(this)
    const { socket, stands } = connectTo(plan.target)
    this.#socket = socket
    // What still comes of a connection that is history is of no interest.
    const mine = () => this.#socket === socket
    socket.once(stands, () => mine() && this.#shake())
    socket.on('data', (bytes: Buffer) => mine() && this.#read(bytes))
    socket.once('end', () => mine() && this.#ended('FIN'))
    socket.on('error', (error: NodeJS.ErrnoException) => mine() && this.#ended(error.code ?? error.message))
    socket.once('close', () => mine() && this.#ended('the end of the connection'))
  }

  #shake(): void {
    this.#state = 'handshaking'
    this.#since = performance.now()
    const lines = [
      `GET ${this.#owner.plan.path} HTTP/1.1`,
      ...this.#owner.plan.headers,
      'Connection: Upgrade',
      'Upgrade: websocket',
      'Sec-WebSocket-Version: 13',
      `Sec-WebSocket-Key: ${this.#key}`,
    ]
    this.#socket?.write(`${lines.join('\r\n')}\r\n\r\n`)
  }

  #read(bytes: Buffer): void {
    if (this.#state !== 'handshaking') return this.#readFrames(bytes)
    this.#head += bytes.toString('latin1')
    const end = this.#head.indexOf('\r\n\r\n')
    if (end !== -1) return this.#shaken(this.#head.slice(0, end), this.#head.slice(end + 4))
    if (this.#head.length > MAX_HEAD_BYTES)
      this.#failed('malformed', `a head of more than ${MAX_HEAD_BYTES} bytes`)
  }

  #shaken(head: string, rest: string): void {
    const { world, plan } = this.#owner
    const status = Number(/^HTTP\/1\.1 (\d{3})/.exec(head)?.[1] ?? 0)
    if (status === 0)
      return this.#failed('malformed', `not a status line: ${JSON.stringify(head.slice(0, 60))}`)
    world.answered(plan, status)
    if (status !== 101) {
      world.badStatus(plan, status, this.#startedAt)
      return this.#over(PAUSE_AFTER_FAILURE_MS * 5)
    }
    const expected = createHash('sha1').update(`${this.#key}${GUID}`).digest('base64')
    if (/^sec-websocket-accept:\s*(\S+)/im.exec(head)?.[1] !== expected)
      return this.#failed('malformed', 'a Sec-WebSocket-Accept that is not the one to the key')
    this.#state = 'open'
    world.ok(plan, performance.now() - this.#startedAt, this.#startedAt)
    if (this.#winding) return this.#farewell()
    const firstMs = this.#owner.once ? 0 : Math.random() * plan.pingMs
    this.#pingAt(performance.now() + firstMs)
    if (rest !== '') this.#readFrames(Buffer.from(rest, 'latin1'))
  }

  /** Pings are due at an even rate, whatever became of those before. */
  #pingAt(dueAt: number): void {
    this.#after(dueAt - performance.now(), () => {
      if (this.#state !== 'open') return
      if (!this.#owner.load.take(1)) return this.wind()
      const payload = Buffer.alloc(4)
      payload.writeUInt32BE(++this.#pinged)
      this.#pings.set(this.#pinged, dueAt)
      this.#socket?.write(clientFrame(OPCODE.ping, payload))
      if (!this.#owner.once) this.#pingAt(dueAt + this.#owner.plan.pingMs)
    })
  }

  #readFrames(bytes: Buffer): void {
    if (this.#state !== 'open' && this.#state !== 'closing') return
    const frames = this.#frames.feed(bytes)
    if (typeof frames === 'string') return this.#failed('malformed', frames)
    for (const { opcode, payload } of frames) {
      if (opcode === OPCODE.ping) this.#socket?.write(clientFrame(OPCODE.pong, payload))
      else if (opcode === OPCODE.pong) this.#ponged(payload)
      else if (opcode === OPCODE.close) return this.#closed(payload)
    }
  }

  #ponged(payload: Buffer): void {
    const number = payload.length === 4 ? payload.readUInt32BE() : 0
    const dueAt = this.#pings.get(number)
    // A server may answer only the newest of several (5.5.3), and may send pongs that nobody asked for.
    if (dueAt === undefined) return
    for (const [earlier, at] of this.#pings) {
      if (earlier > number) break
      this.#pings.delete(earlier)
      this.#owner.world.ok(this.#owner.plan, performance.now() - at, this.#startedAt)
    }
    if ((this.#owner.once || this.#winding) && this.#pings.size === 0) this.#farewell()
  }

  /** We leave first: our close frame, then a bounded wait for the server's. */
  #farewell(): void {
    if (this.#state !== 'open') return
    this.#state = 'closing'
    this.#since = performance.now()
    clearTimeout(this.#timer)
    this.#socket?.write(clientFrame(OPCODE.close, Buffer.from([0x03, 0xe8])))
  }

  /** The server's close frame, or its answer to ours. */
  #closed(payload: Buffer): void {
    const { world, plan } = this.#owner
    if (this.#state === 'open') {
      const code = payload.length >= 2 ? payload.readUInt16BE() : null
      world.webSocketEnded(code === null ? 'without a code' : String(code))
      if (code === null || !GOOD_CODES.has(code))
        world.wrong(plan, 'closeCode', `closed with ${code ?? 'no code'}`, null)
      world.retryable(plan, this.#pings.size)
      this.#pings.clear()
      this.#socket?.end(clientFrame(OPCODE.close, payload.subarray(0, 2)))
    } else this.#socket?.end()
    // The server closes the TCP connection first (7.1.1); `check` does not wait for that for ever.
    this.#state = 'closing'
    this.#since = performance.now()
  }

  #ended(how: string): void {
    const { world, plan } = this.#owner
    switch (this.#state) {
      case 'connecting':
        return this.#failed(connectFailure(how), how)
      case 'handshaking':
        return this.#failed(this.#head === '' ? 'reset' : 'truncated', `${how} within the handshake`)
      case 'open':
        world.webSocketEnded('bare')
        world.wrong(plan, 'bareClose', `${how} without a close frame`, this.#startedAt)
        return this.#failed('keepaliveReset', `${how} before the pong`)
      case 'closing':
        return this.#over(RECONNECT_MS)
      case 'ended':
    }
  }

  /** The handshake, or every ping that is out (there may be none). */
  #failed(failure: FailureClass, text: string): void {
    this.#failAll(failure, text)
    this.#over(PAUSE_AFTER_FAILURE_MS * 5)
  }

  #failAll(failure: FailureClass, text: string): void {
    const { world, plan } = this.#owner
    if (this.#state === 'connecting' || this.#state === 'handshaking')
      world.fail(plan, failure, text, this.#startedAt)
    // Nothing was asked, and yet something is wrong.
    else if (failure === 'malformed' && this.#pings.size === 0) world.wrong(plan, 'stray', text, null)
    for (const dueAt of this.#pings.values()) world.fail(plan, failure, text, dueAt)
    this.#pings.clear()
  }

  /** This connection is history; the next comes after up to `pauseMs`. */
  #over(pauseMs: number): void {
    this.#drop()
    if (this.#winding || this.#owner.once) this.#rest()
    else this.#after(pauseMs * (0.5 + Math.random() / 2), () => this.#open())
  }

  #drop(): void {
    clearTimeout(this.#timer)
    this.#state = 'ended'
    this.#socket?.destroy()
    this.#socket = null
    this.#owner.world.live.delete(this)
  }

  #rest(): void {
    if (this.#rested) return
    this.#rested = true
    this.#drop()
    this.#owner.load.rested()
  }

  #after(ms: number, then: () => void): void {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(then, Math.max(0, ms))
  }
}
