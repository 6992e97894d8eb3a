/**
 * The master's end of a worker's channel, made safe against the worker. Node trusts the child at the other end of
 * child_process IPC: on Node 20 to 26 each of these is an uncaught exception in the parent, which would end the master,
 * and needs no more than one line of JavaScript in one dependency of the app:
 *
 *     process.send({ cmd: 'NODE_HANDLE_ACK' })              assert(ArrayIsArray(target._handleQueue))
 *     process.send({ cmd: 'NODE_HANDLE', type: 'x' }, h)    handleConversion['x'].got
 *     fs.writeSync(process.channel.fd, '{\n')               JSON.parse
 *
 * And it reads on without end: a line that never ends is kept whole, a flood of messages takes the master's whole time,
 * and a handle that was passed becomes a socket that nobody closes (lib/internal/child_process.js, setupChannel).
 *
 * So what comes is looked at before Node sees it. A worker that breaks the rules is cut off: its channel is closed, once,
 * with a reason. (An honest guest takes that for the death of its master, and drains.)
 *
 * The one undocumented thing that this needs is the native handle of the channel, under the symbol `kChannelHandle` of
 * the child. Where it is missing, the rest of the guard holds; test/master/workers/worker-channel.test.ts tells.
 */
import type { ChildProcess } from 'node:child_process'
import type { EventEmitter } from 'node:events'
import { CMD } from '../../protocol.ts'
import { Allowance } from './allowance.ts'

/**
 * The longest message of ours: what a drain has cut, 1000 entries with a path of 4096 characters each.
 */
export const MAX_MESSAGE_BYTES = 8 * 1024 * 1024
/**
 * A worker says three things a second; an app that reports by `process.send` as under PM2, some ten. At once, because a master
 * that was stopped for a while finds them all. One message costs 1, and 1 for each 4 kB.
 */
const MESSAGES = { atOnce: 5_000, perSecond: 200 }
const BYTES_FOR_ONE = 4_096
/**
 * The time that the master spends on a worker's messages. Its V8 is set to be small, so on a busy machine 300 of them take a
 * second, most of it garbage collection: a flood never gets to the number above, and the master to nothing else.
 */
const BUSY_MS = { atOnce: 2_000, perSecond: 100 }
/**
 * Whose time is not counted: an honest worker's, on a machine so busy that each of its messages keeps the master for long. At
 * once as many as an app with 1000 listeners needs to ask for them, and the rest for what it says of itself.
 */
const UNHURRIED = { atOnce: 2_000, perSecond: 20 }
/** Of one message: a pause of the whole machine falls into one. */
const MAX_BUSY_MS = 50
/** Messages that wait until a worker reads them, some hundred bytes each: Node would keep any number. */
export const MAX_UNREAD = 5_000
/** Between the end of a channel and that of its process. */
const ENDING_MS = 1_000
/**
 * Messages that a socket which we send is answered by: that it has come, and whether it listens. They are no flood, and a
 * worker has no more of them than we have sent sockets. (Counted as its own, they had honest apps cut off as they started:
 * one with 600 listeners on a busy machine, one with 1000 on any.)
 */
const ANSWERS = 2

/** Whose messages the master takes; `NODE_FD_PASSING_` is native-free-fd-passing. */
const OURS = [CMD, 'NODE_FD_PASSING_READY', 'NODE_FD_PASSING_ACK']
const NEWLINE = 10
const FLOODS = 'floods the master with messages'

/** Node's native pipe, as far as it is touched here. */
interface ChannelHandle {
  /** What came with SCM_RIGHTS, until Node takes it with the next bytes. */
  pendingHandle?: { close(): void } | null
  /** Node does not close a channel in the midst of a message. */
  buffering?: boolean
  onread(chunk?: ArrayBuffer): void
  readStop(): number
}

/** A child with what Node keeps in it: messages behind a handle that is not acknowledged; null: there is none. */
type Child = ChildProcess & { _handleQueue?: unknown }

export class WorkerChannel {
  private readonly child: Child
  private readonly onBroken: (reason: string) => void
  private readonly handle: ChannelHandle | null
  private readonly allowance = new Allowance(MESSAGES, performance.now())
  private readonly unhurried = new Allowance(UNHURRIED, performance.now())
  private readonly time = new Allowance(BUSY_MS, performance.now())
  private lineBytes = 0
  private unread = 0
  private isBroken = false

  /** @param onBroken called at most once: it broke the rules, as the end of "slot 0 …", and its channel is closed */
  constructor(child: ChildProcess, onBroken: (reason: string) => void) {
    this.child = child
    this.onBroken = onBroken
    this.handle = channelHandleOf(child)
    if (this.handle) this.guardBytes(this.handle)
    this.guardMessages()
    this.expectAnswers()
    child.on('disconnect', () => {
      const timer = setTimeout(() => this.breakOff('has closed its channel to the master'), ENDING_MS)
      child.once('exit', () => clearTimeout(timer))
      if (child.exitCode !== null || child.signalCode !== null) clearTimeout(timer)
    })
  }

  /** Whether the bytes are guarded, too: this Node has what that needs. */
  get isWhole(): boolean {
    return this.handle !== null
  }

  send(message: object): void {
    if (!this.child.connected) return
    if (++this.unread > MAX_UNREAD) return this.breakOff(`has not read ${MAX_UNREAD} messages of the master`)
    // The callback takes the error of a child that has gone; its exit tells.
    this.child.send(message, () => this.unread--)
  }

  private guardBytes(handle: ChannelHandle): void {
    const onread = handle.onread
    handle.onread = (chunk) => {
      handle.pendingHandle?.close()
      handle.pendingHandle = null
      if (chunk === undefined) {
        this.forgetHandles()
        return onread.call(handle)
      }
      if (this.isBroken) return
      const complaint = this.complaintOf(new Uint8Array(chunk))
      if (complaint !== null) return this.breakOff(complaint)
      try {
        onread.call(handle, chunk)
      } catch {
        // Only what cannot be parsed throws here: each message is emitted in a tick of its own.
        this.breakOff('sent what is no message')
      }
    }
  }

  private complaintOf(bytes: Uint8Array): string | null {
    let messages = 0
    let start = 0
    for (let at = bytes.indexOf(NEWLINE); at >= 0; at = bytes.indexOf(NEWLINE, start)) {
      if (this.lineBytes + at - start > MAX_MESSAGE_BYTES) break
      messages++
      this.lineBytes = 0
      start = at + 1
    }
    this.lineBytes += bytes.length - start
    if (this.lineBytes > MAX_MESSAGE_BYTES) {
      return `sent a message of more than ${MAX_MESSAGE_BYTES / 1024 / 1024} MB`
    }
    const cost = messages + bytes.length / BYTES_FOR_ONE
    return this.allowance.take(cost, performance.now()) ? null : FLOODS
  }

  /** Before any listener: Node's own is one of them. */
  private guardMessages(): void {
    const child: EventEmitter = this.child
    const emit = child.emit.bind(child)
    child.emit = (event: string | symbol, ...args: unknown[]): boolean => {
      if (event !== 'internalMessage' && event !== 'message') return emit(event, ...args)
      const [message] = args as [{ readonly news?: unknown }?]
      // Each of several counts as a message of its own.
      const count = Array.isArray(message?.news) ? message.news.length : 1
      if (this.isBroken || (event === 'internalMessage' && !this.isExpected(args[0]))) return true
      const since = performance.now()
      try {
        return emit(event, ...args)
      } finally {
        const now = performance.now()
        if (!this.unhurried.take(count, now) && !this.time.take(Math.min(now - since, MAX_BUSY_MS), now)) {
          this.breakOff(FLOODS)
        }
      }
    }
  }

  private expectAnswers(): void {
    const { child } = this
    const send = child.send as (...args: unknown[]) => boolean
    child.send = (...args: unknown[]): boolean => {
      const [, handle] = args
      if (typeof handle === 'object' && handle !== null)
        for (const allowance of [this.allowance, this.unhurried]) allowance.give(ANSWERS)
      return send.apply(child, args)
    }
  }

  private isExpected(message: unknown): boolean {
    const cmd = (message as { readonly cmd?: unknown }).cmd
    if (cmd === 'NODE_HANDLE') {
      // Closed by now. Whoever sent it waits for an answer, and all its other messages wait behind it.
      this.send({ cmd: 'NODE_HANDLE_NACK' })
      return false
    }
    if (cmd === 'NODE_HANDLE_ACK' || cmd === 'NODE_HANDLE_NACK') return Array.isArray(this.child._handleQueue)
    return OURS.some((ours) => ours === cmd)
  }

  private breakOff(reason: string): void {
    if (this.isBroken) return
    this.isBroken = true
    const { child, handle } = this
    if (handle && child.connected) {
      handle.readStop()
      handle.buffering = false
    }
    if (child.connected) {
      this.forgetHandles()
      child.disconnect()
    }
    this.onBroken(reason)
  }

  /**
   * For a channel that ends. Node puts the end off until the handle that is under way is acknowledged, which nobody will read
   * any more: the channel, its descriptor, and those of the handles behind it would stay for the master's whole life, and
   * 'disconnect' would never be emitted (lib/internal/child_process.js, target.disconnect; Node 20 to 26).
   */
  private forgetHandles(): void {
    if (Array.isArray(this.child._handleQueue)) this.child._handleQueue = null
  }
}

function channelHandleOf(child: ChildProcess): ChannelHandle | null {
  const symbol = Object.getOwnPropertySymbols(child).find(
    ({ description }) => description === 'kChannelHandle',
  )
  const handle = symbol && (child as unknown as Record<symbol, Partial<ChannelHandle> | null>)[symbol]
  const isKnown = typeof handle?.onread === 'function' && typeof handle.readStop === 'function'
  return isKnown ? (handle as ChannelHandle) : null
}
