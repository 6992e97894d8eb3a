/**
 * The control socket, client end: finds a master, asks it, reads its replies. Prints nothing and decides nothing.
 *
 * A connection begins with a `hello` under a deadline. A master that is stopped (SIGSTOP, a debugger) still accepts:
 * the kernel does that for it. Only an answer tells that somebody is there. A rollout with holds may say nothing for
 * days, so who waits for its end asks for a `hello` now and then, on another connection ({@link Pulse}).
 */
import { readdirSync } from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'

import {
  CONTROL_VERSION,
  Lines,
  MAX_REPLY_BYTES,
  parseReply,
  type ControlReply,
  type ControlRequest,
  type Hello,
  type StopHow,
} from './control-wire.ts'
import type { Order } from '../../rollout/state.ts'
import type {
  Drained,
  Progress,
  ReloadRequest,
  RollbackRequest,
  Status,
  UpgradeRequest,
  Verdict,
} from '../face.ts'

/** What went wrong with a control socket, in a sentence for its user. */
export class ControlError extends Error {
  override name = 'ControlError'
}

/** No master answers: none was there, or it is no master, or it does not speak our protocol. */
export class NoMasterError extends ControlError {
  override name = 'NoMasterError'
}

/** The connection ended, or brought nonsense, before the answer was complete. */
export class MasterLostError extends ControlError {
  override name = 'MasterLostError'
}

/** The same, of a master that is there and says nothing. */
class MuteError extends MasterLostError {}

/** The master answered that it does not do what was asked. */
export class RequestRefusedError extends ControlError {
  override name = 'RequestRefusedError'
}

/** What connecting to a path tells: `accepted` is a live process, though not yet a master that answers. */
export type Probe = 'accepted' | 'refused' | 'missing'

/**
 * Connects and hangs up.
 *
 * @returns also `accepted` where the peer is too busy to accept within `timeoutMs`, or has its queue full
 *   (EAGAIN, unix(7)): somebody holds the socket
 * @throws the error of connect(2) otherwise: EACCES, ENOTSOCK, …
 */
export function probe(path: string, timeoutMs: number): Promise<Probe> {
  return new Promise((resolve, reject) => {
    const socket = net.connect(path)
    const timer = setTimeout(() => settle(() => resolve('accepted')), timeoutMs)
    const settle = (how: () => void) => {
      clearTimeout(timer)
      socket.destroy()
      how()
    }
    socket.once('connect', () => settle(() => resolve('accepted')))
    socket.on('error', (error: NodeJS.ErrnoException) =>
      settle(() => {
        if (error.code === 'ECONNREFUSED') resolve('refused')
        else if (error.code === 'ENOENT') resolve('missing')
        else if (error.code === 'EAGAIN') resolve('accepted')
        else reject(error)
      }),
    )
  })
}

/** One conversation with a master that has said hello. */
export interface ControlConnection {
  readonly path: string
  readonly hello: Hello
  send(request: ControlRequest): void
  /** @throws {MasterLostError} the connection ended, the reply cannot be read, or `timeoutMs` went by */
  next(timeoutMs?: number): Promise<ControlReply>
  /** Hangs up. A rollout that was asked for goes on without us; a `next` that waits throws, and says `why`. */
  close(why?: string): void
}

/** Pause before the next try at a master that has no room: at most so long, at random, so that nobody keeps step. */
const TRY_AGAIN_MS = 100

/** There is a master, which has no room just now. */
class BusyError extends ControlError {}

/**
 * @param timeoutMs for the connection and the first answer together, however often a crowded master is tried
 * @throws {NoMasterError} a sentence that names the path and says why
 */
export async function connectControl(path: string, { timeoutMs = 5000 } = {}): Promise<ControlConnection> {
  const until = performance.now() + timeoutMs
  for (;;) {
    try {
      return await connectOnce(path, Math.max(1, until - performance.now()), timeoutMs)
    } catch (error) {
      const pauseMs = TRY_AGAIN_MS * Math.random()
      if (!(error instanceof BusyError) || performance.now() + pauseMs > until) {
        const why = error instanceof Error ? error.message : String(error)
        throw new NoMasterError(`${path}: ${why}`, { cause: error })
      }
      await new Promise((resolve) => setTimeout(resolve, pauseMs))
    }
  }
}

async function connectOnce(path: string, leftMs: number, timeoutMs: number): Promise<ControlConnection> {
  const stream = new ReplyStream(path)
  try {
    stream.send({ cmd: 'hello' })
    const reply = await stream.next(leftMs, timeoutMs)
    if ('error' in reply) throw new (reply.busy ? BusyError : ControlError)(reply.error)
    if (!('hello' in reply)) throw new ControlError('it is no usr2 master')
    const { hello } = reply
    if (hello.protocol !== CONTROL_VERSION) {
      throw new ControlError(
        `the master "${hello.name}" (pid ${hello.pid}) is usr2 ${hello.usr2}, whose control protocol ${hello.protocol} ` +
          `this usr2 does not speak (it speaks ${CONTROL_VERSION}); use the usr2 that the master was started with`,
      )
    }
    return {
      path,
      hello,
      send: (request) => stream.send(request),
      next: (ms) => stream.next(ms),
      close: (why) => stream.close(why),
    }
  } catch (error) {
    stream.close()
    throw stream.isBusy ? new BusyError(error instanceof Error ? error.message : String(error)) : error
  }
}

/**
 * The first of `paths` where a master answers, with `name` one of that name only.
 *
 * @throws {NoMasterError} a sentence that names every place tried, and why each was none
 */
export async function findMaster(
  paths: readonly string[],
  { name, timeoutMs }: { readonly name?: string; readonly timeoutMs?: number } = {},
): Promise<ControlConnection> {
  const tried: string[] = []
  for (const path of paths) {
    try {
      const connection = await connectControl(path, { timeoutMs })
      const { hello } = connection
      if (name === undefined || hello.name === name) return connection
      connection.close()
      tried.push(`${path}: the master there is "${hello.name}" (pid ${hello.pid}), not "${name}"`)
    } catch (error) {
      if (!(error instanceof NoMasterError)) throw error
      tried.push(error.message)
    }
  }
  throw new NoMasterError(
    `No usr2 master answers${tried.length === 0 ? '.' : ' at:'}\n${tried.map((line) => `  ${line}\n`).join('')}` +
      'Is it running, as this user? "usr2 ls" lists what answers; --name or --control says which one is meant.',
  )
}

/**
 * Every master that answers in `directories`: at `*.sock`, and at `NAME/control.sock` one level down. Silent about
 * what does not answer, and about what this user may not read.
 */
export async function listMasters(
  directories: readonly string[],
  options: { readonly timeoutMs?: number } = {},
): Promise<readonly { readonly path: string; readonly status: Status }[]> {
  const paths = new Set(directories.flatMap(socketsIn))
  const answers = await Promise.all(
    [...paths].map(async (path) => {
      try {
        const connection = await connectControl(path, options)
        return { path, status: await askStatus(connection, options) }
      } catch {
        return null
      }
    }),
  )
  return answers
    .filter((answer) => answer !== null)
    .sort((a, b) => a.status.name.localeCompare(b.status.name) || a.status.pid - b.status.pid)
}

function socketsIn(directory: string): readonly string[] {
  const entries = (path: string) => {
    try {
      return readdirSync(path, { withFileTypes: true })
    } catch {
      return []
    }
  }
  return entries(directory).flatMap((entry) => {
    const path = join(directory, entry.name)
    if (entry.isSocket() && entry.name.endsWith('.sock')) return [path]
    if (!entry.isDirectory()) return []
    return entries(path)
      .filter((inner) => inner.isSocket() && inner.name === 'control.sock')
      .map((inner) => join(path, inner.name))
  })
}

/** Asks for the status and hangs up. @throws {MasterLostError} */
export async function askStatus(
  connection: ControlConnection,
  { timeoutMs = 5000 }: { readonly timeoutMs?: number } = {},
): Promise<Status> {
  try {
    connection.send({ cmd: 'status' })
    const reply = await connection.next(timeoutMs)
    if ('status' in reply) return reply.status
    throw unexpected(connection, reply)
  } finally {
    connection.close()
  }
}

/** How a master that has long to do is known to be alive. */
export interface Pulse {
  /** Pause between two looks. */
  readonly everyMs: number
  /** One that takes longer to say hello is given up. */
  readonly timeoutMs: number
}

/** A machine that swaps, or a disk that hangs, holds up a master for seconds; for 40 nobody should wait unawares. */
const PULSE: Pulse = { everyMs: 20_000, timeoutMs: 40_000 }

/**
 * Closes `connection` when its master says nothing any more. That the path is gone, or leads to another master, is no
 * sign: one that stops takes it away, one that is replaced gives it up, and both still have to answer here.
 *
 * @returns ends it
 */
function feelPulse(connection: ControlConnection, { everyMs, timeoutMs }: Pulse): () => void {
  let timer: NodeJS.Timeout
  let isWanted = true
  const wait = (): void => {
    timer = setTimeout(() => void look(), everyMs)
  }
  const look = async (): Promise<void> => {
    try {
      const { close } = await connectControl(connection.path, { timeoutMs })
      close()
    } catch (error) {
      const isMute = error instanceof NoMasterError && error.cause instanceof MuteError
      if (isWanted && isMute) return connection.close(`it has said nothing for ${timeoutMs / 1000} s`)
    }
    if (isWanted) wait()
  }
  wait()
  return () => {
    isWanted = false
    clearTimeout(timer)
  }
}

/** How a reload or a rollback ended. */
export interface RolloutEnd {
  readonly verdict: Verdict
  /** Only with `wait: 'drained'` and a promotion. */
  readonly drained: Drained | null
}

/** What is told on the way to a {@link RolloutEnd}. */
export interface RolloutWatcher {
  progress?(progress: Progress): void
  /** At once, also where the drain is still waited for. */
  verdict?(verdict: Verdict): void
}

/**
 * Asks for a reload and follows it to its end. To abort it, send `{cmd: 'abort'}` on the same connection; to leave
 * it to itself, close the connection.
 *
 * @throws {MasterLostError} the connection ended first
 * @throws {RequestRefusedError} the request was none that this master knows
 */
export function askReload(
  connection: ControlConnection,
  { drop, wait }: ReloadRequest,
  watcher: RolloutWatcher = {},
  pulse = PULSE,
): Promise<RolloutEnd> {
  return follow(connection, { cmd: 'reload', drop, wait }, watcher, pulse)
}

/** The same for the way back, also in what it throws. */
export function askRollback(
  connection: ControlConnection,
  { to, wait }: RollbackRequest,
  watcher: RolloutWatcher = {},
  pulse = PULSE,
): Promise<RolloutEnd> {
  return follow(connection, { cmd: 'rollback', to, wait }, watcher, pulse)
}

/** The same for an upgrade of the master itself, also in what it throws. */
export function askUpgrade(
  connection: ControlConnection,
  { node }: UpgradeRequest,
  watcher: RolloutWatcher = {},
  pulse = PULSE,
): Promise<RolloutEnd> {
  return follow(connection, { cmd: 'upgrade', node }, watcher, pulse)
}

async function follow(
  connection: ControlConnection,
  request: Extract<ControlRequest, { readonly cmd: 'reload' | 'rollback' | 'upgrade' }>,
  watcher: RolloutWatcher,
  pulse: Pulse,
): Promise<RolloutEnd> {
  const endPulse = feelPulse(connection, pulse)
  try {
    connection.send(request)
    let verdict: Verdict | null = null
    for (;;) {
      const reply = await connection.next()
      if ('progress' in reply) {
        watcher.progress?.(reply.progress)
      } else if ('verdict' in reply) {
        verdict = reply.verdict
        watcher.verdict?.(verdict)
        const wait = request.cmd === 'upgrade' ? 'promoted' : request.wait
        if (wait === 'promoted' || verdict.outcome !== 'promoted') return { verdict, drained: null }
      } else if ('drained' in reply && verdict !== null) {
        return { verdict, drained: reply.drained }
      } else if ('error' in reply && verdict !== null) {
        // An abort that crossed the verdict on its way: there was nothing left to abort.
      } else {
        throw unexpected(connection, reply)
      }
    }
  } finally {
    endPulse()
    connection.close()
  }
}

/**
 * Gives an order and hangs up.
 *
 * @returns null when it was obeyed, else a sentence: why it changed nothing
 * @throws {MasterLostError} the connection ended first, or no answer came within `timeoutMs`
 */
export async function askOrder(
  connection: ControlConnection,
  what: Order,
  { timeoutMs = 5000 }: { readonly timeoutMs?: number } = {},
): Promise<string | null> {
  try {
    connection.send({ cmd: 'order', what })
    const reply = await connection.next(timeoutMs)
    if ('done' in reply) return null
    if ('refused' in reply) return reply.refused
    throw unexpected(connection, reply)
  } finally {
    connection.close()
  }
}

/**
 * Asks the master to stop, and waits until it has.
 *
 * @param stopping called when the master has begun, which it says within `timeoutMs`
 * @throws {MasterLostError} the connection ended before the master said that it has stopped
 */
export async function askStop(
  connection: ControlConnection,
  how: StopHow,
  stopping: () => void = () => {},
  { timeoutMs = 5000, pulse = PULSE }: { readonly timeoutMs?: number; readonly pulse?: Pulse } = {},
): Promise<void> {
  const endPulse = feelPulse(connection, pulse)
  try {
    connection.send({ cmd: 'stop', how })
    const first = await connection.next(timeoutMs)
    if (!('stopping' in first)) throw unexpected(connection, first)
    stopping()
    const last = await connection.next()
    if (!('stopped' in last)) throw unexpected(connection, last)
  } finally {
    endPulse()
    connection.close()
  }
}

function unexpected({ hello }: ControlConnection, reply: ControlReply): ControlError {
  const master = `The master "${hello.name}" (pid ${hello.pid})`
  if ('error' in reply) return new RequestRefusedError(`${master} refused the request: ${reply.error}`)
  return new MasterLostError(
    `${master} answered something else than was asked: ${Object.keys(reply).join(', ')}.`,
  )
}

/** Bytes in, replies out, one waiter at a time. */
class ReplyStream {
  readonly #socket: net.Socket
  readonly #lines = new Lines(MAX_REPLY_BYTES)
  #end: MasterLostError | null = null
  #wake: () => void = () => {}
  /** The kernel's queue of what the master has not taken in yet is full, or a crowd pushed us out before we could ask. */
  isBusy = false

  constructor(path: string) {
    this.#socket = net.connect(path)
    this.#socket.on('data', (chunk) => {
      this.#lines.push(chunk)
      this.#wake()
    })
    this.#socket.on('error', (error: NodeJS.ErrnoException) => {
      this.isBusy = ['EAGAIN', 'ECONNRESET', 'EPIPE'].includes(error.code ?? '')
      this.#ended(new MasterLostError(describe(error)))
    })
    this.#socket.on('close', () =>
      this.#ended(new MasterLostError('the connection ended before the answer was complete')),
    )
  }

  send(request: ControlRequest): void {
    if (this.#socket.writable) this.#socket.write(`${JSON.stringify(request)}\n`)
  }

  /** @param saidMs the whole of a time of which `timeoutMs` is what is left */
  async next(timeoutMs?: number, saidMs = timeoutMs): Promise<ControlReply> {
    let timer: NodeJS.Timeout | null = null
    if (timeoutMs !== undefined) {
      const why = `no answer within ${Number(saidMs) / 1000} s`
      timer = setTimeout(() => this.#ended(new MuteError(why)), timeoutMs)
    }
    try {
      for (;;) {
        const next = this.#lines.take()
        if (next === 'too-long') throw new MasterLostError(`a reply is longer than ${MAX_REPLY_BYTES} bytes`)
        if (next !== null) {
          const parsed = parseReply(next.line)
          if ('ok' in parsed) return parsed.ok
          throw new MasterLostError(`a reply cannot be read: ${parsed.error}`)
        }
        if (this.#end !== null) throw this.#end
        await new Promise<void>((wake) => (this.#wake = wake))
      }
    } finally {
      if (timer !== null) clearTimeout(timer)
    }
  }

  close(why = 'the connection was closed'): void {
    this.#ended(new MasterLostError(why))
    this.#socket.destroy()
  }

  /** The first reason counts: `close` follows every error. What came before it can still be read. */
  #ended(why: MasterLostError): void {
    this.#end ??= why
    this.#wake()
  }
}

function describe(error: NodeJS.ErrnoException): string {
  switch (error.code) {
    case 'ENOENT':
      return 'no such file'
    case 'ENOTDIR':
      return 'its directory is a file'
    case 'ECONNREFUSED':
      return 'nothing listens there (what a killed master left, or no socket)'
    case 'EACCES':
    case 'EPERM':
      return 'this user may not connect to it'
    case 'EAGAIN':
      return 'its queue is full: a master is there that does not answer'
    case 'EINVAL':
    case 'ENAMETOOLONG':
      return 'the path is too long for a socket'
    case 'ECONNRESET':
    case 'EPIPE':
      return 'the connection broke'
    default:
      return error.message
  }
}
