/**
 * The control socket, server end: carries {@link Face} to clients over a unix socket, a line of JSON at a time.
 *
 * Rules of this file:
 * - It decides nothing: it reads a request, asks the face, writes what comes.
 * - A client is never trusted. Whatever one sends, sends not, or does not read, costs a bounded amount of memory
 *   and time, ends in an error line or a closed connection, and is no business of the master's.
 * - File permissions are the only authorisation (Node has no SO_PEERCRED), so the socket never exists with
 *   wider ones, not for an instant.
 * - A live master's socket is never replaced; what is no socket is never touched.
 */
import { chmodSync, lstatSync, mkdirSync, rmdirSync, unlinkSync, type Stats } from 'node:fs'
import net from 'node:net'
import { dirname, join } from 'node:path'

import { MAX_UNIX_PATH_BYTES } from '../../address.ts'
import { connectControl, ControlError, probe } from './control-client.ts'
import {
  CONTROL_VERSION,
  Lines,
  MAX_REQUEST_BYTES,
  parseRequest,
  type ControlReply,
  type ControlRequest,
  type Hello,
} from './control-wire.ts'
import { Crowd } from './crowd.ts'
import type { Asker, Face, Wait } from '../face.ts'
import { mustBeTrusted } from './runtime-directory.ts'
import { isSameFile, lstat } from '../look.ts'
import { bindAndRename, kindOf, PathTakenError, type Place } from './socket-file.ts'

export { ControlError }

/** The part of a pino logger that is used here. */
export interface ControlLog {
  debug(fields: object, text: string): void
  warn(fields: object, text: string): void
}

export interface ControlLimits {
  /** Connections at once; one more takes the place of one that waits for nothing (crowd.ts). */
  readonly connections: number
  /** Of these, those that wait for a verdict or a drain, which nobody else gets: there is room for a status. */
  readonly waiting: number
  /** So long after it has come a client that asks makes way for nobody: time to ask what it came for. */
  readonly graceMs: number
  /** Longest request, without its line end. */
  readonly requestBytes: number
  /** How long a client may take to send a whole request, and may idle between two. */
  readonly requestTimeoutMs: number
  /** Replies that may wait for a client that does not read. */
  readonly unreadBytes: number
  /** How long a client that is sent away is waited for, so that it can read why. */
  readonly farewellMs: number
}

export const CONTROL_LIMITS: ControlLimits = {
  connections: 64,
  waiting: 32,
  graceMs: 500,
  requestBytes: MAX_REQUEST_BYTES,
  requestTimeoutMs: 10_000,
  unreadBytes: 1024 * 1024,
  farewellMs: 1000,
}

/** How long the loop is given to accept what waits in the queue of a socket that has lost its path. */
const ACCEPT_MS = 50

export interface ControlOptions {
  readonly path: string
  /** Permission bits of the socket; 0o600 where nothing else is asked for. */
  readonly mode?: number
  /** Who may connect with the second digit of `mode`; null, or nothing: the master's own group. */
  readonly gid?: number | null
  /** Directories that have to be made can be entered by everybody. */
  readonly shared?: boolean
  readonly face: Face
  readonly log: ControlLog
  readonly limits?: Partial<ControlLimits>
  /**
   * Takes the place of the master that answers at the path, with no moment in which nobody does. Directories: that it
   * made for the socket.
   */
  readonly replaces?: { readonly directories: readonly string[] }
}

export interface Control {
  readonly path: string
  /** Those that were made for it, outermost first, and go with it. */
  readonly directories: readonly string[]
  /** Nobody has put another socket at the path. */
  isOurs(): boolean
  /** Settles when no client is connected, or after `timeoutMs`: for one whose place another master has taken. */
  emptied(timeoutMs: number): Promise<void>
  /**
   * Takes the socket's file away (if it still is ours), lets replies that are under way go out, and ends every
   * connection: within {@link ControlLimits.farewellMs}. A reload or rollback that has no verdict yet is detached.
   */
  close(): Promise<void>
}

/** Another master answers at the path. */
export class ControlInUseError extends ControlError {
  override name = 'ControlInUseError'
  readonly holder: Hello | null

  constructor(path: string, holder: Hello | null) {
    const who = holder === null ? 'another process' : `usr2 master "${holder.name}" (pid ${holder.pid})`
    super(
      `Could not open the control socket ${path}: ${who} answers there. ` +
        'Stop that one first, or start this one with another --name or --control.',
    )
    this.holder = holder
  }
}

/**
 * Opens the control socket and serves `face` on it.
 *
 * A socket file that nothing answers at (its master was killed) is replaced. Missing directories are made, 0700 or
 * 0755 (`shared`), the last two levels only, and taken away again at `close` where empty.
 *
 * @throws {ControlInUseError} a live process answers at the path
 * @throws {ControlError} a sentence: the path is too long, is no socket, its directory cannot be written, …
 */
export async function openControl(options: ControlOptions): Promise<Control> {
  const { path, face, log } = options
  const limits: ControlLimits = { ...CONTROL_LIMITS, ...options.limits }
  const temporary = temporaryName(path)
  const { replaces, mode = 0o600 } = options
  const isShared = (mode & 0o066) !== 0
  const stale = replaces ? lstat(path) : await findStale(path)
  const connections = new Crowd<Connection>(limits.connections, ({ worth }) => worth)
  const isRoomToWait = (): boolean =>
    [...connections].filter(({ waits }) => waits).length < Math.min(limits.waiting, limits.connections - 1)
  let onEmpty = (): void => {}

  const server = net.createServer((socket) => {
    // Always there: a socket without an 'error' listener ends the master (ECONNRESET, EPIPE).
    socket.on('error', (error) => log.debug({ err: error }, 'a control connection failed'))
    const connection = new Connection({ socket, face, log, limits, isRoomToWait, isShared })
    if (!connections.enter(connection, (spared) => spared.makeWay())) {
      connection.makeWay()
      return
    }
    socket.once('close', () => {
      connections.leave(connection)
      if (connections.size === 0) onEmpty()
    })
  })

  // From here to the rename nothing is awaited: two masters that start at once have no time to pass each other.
  const made = [...(replaces?.directories ?? []), ...makeDirectories(path, options.shared ? 0o755 : 0o700)]
  try {
    try {
      mustBeTrusted(dirname(path))
    } catch (error) {
      if (!(error instanceof Error) || 'code' in error) throw failure(path, error)
      throw new ControlError(error.message)
    }
    await listen(server, { path, temporary, mode, gid: options.gid ?? null, stale })
  } catch (error) {
    removeDirectories(made)
    throw error
  }
  const own = lstatSync(path)
  server.on('error', (error) => log.warn({ err: error }, 'the control socket could not take a connection'))

  let closed: Promise<void> | null = null
  return {
    path,
    directories: made,
    isOurs: () => isSameFile(own, lstat(path)),
    emptied,
    close: () => (closed ??= close()),
  }

  async function emptied(timeoutMs: number): Promise<void> {
    // Who connected before the path led elsewhere may wait in the kernel's queue: one turn takes them all in.
    await new Promise((resolve) => setTimeout(resolve, ACCEPT_MS))
    if (connections.size === 0) return
    let timer: NodeJS.Timeout | undefined
    await new Promise<void>((resolve) => {
      onEmpty = resolve
      timer = setTimeout(resolve, timeoutMs)
    })
    clearTimeout(timer)
  }

  async function close(): Promise<void> {
    // Compared while the server is still bound: until then the kernel cannot give our inode to another file.
    if (isSameFile(own, lstat(path))) unlinkSync(path)
    removeDirectories(made)
    const done = new Promise<void>((resolve) => server.close(() => resolve()))
    for (const connection of connections) connection.end()
    await done
  }
}

/** By which a client withdraws what it asked for. */
type Handle = ReturnType<Face['reload']>

interface ConnectionParts {
  readonly socket: net.Socket
  readonly face: Face
  readonly log: ControlLog
  readonly limits: ControlLimits
  readonly isRoomToWait: () => boolean
  /** Others than the master's user may connect. */
  readonly isShared: boolean
}

/** One client: its unread bytes, its one request in flight, its deadline. */
class Connection {
  readonly #socket: net.Socket
  readonly #face: Face
  readonly #log: ControlLog
  readonly #limits: ControlLimits
  readonly #lines: Lines
  readonly #isRoomToWait: () => boolean
  readonly #isShared: boolean
  #hasAsked = false
  readonly #since = performance.now()
  #state: 'asking' | 'rolling-out' | 'draining' | 'ordering' | 'stopping' | 'leaving' = 'asking'
  /** Of the reload or rollback that was asked for, while {@link #state} is `rolling-out` or `draining`. */
  #rollout: Handle | null = null
  /** The deadline of a request, or of the farewell. */
  #deadline: NodeJS.Timeout | null = null
  #turn: NodeJS.Immediate | null = null

  constructor({ socket, face, log, limits, isRoomToWait, isShared }: ConnectionParts) {
    this.#socket = socket
    this.#face = face
    this.#log = log
    this.#limits = limits
    this.#isRoomToWait = isRoomToWait
    this.#isShared = isShared
    this.#lines = new Lines(limits.requestBytes)
    this.#awaitRequest()
    socket.on('data', (chunk) => {
      // Somebody who is leaving is still read: closing with unread bytes would reset what we told it.
      if (this.#state === 'leaving') return
      this.#lines.push(chunk)
      this.#serve()
    })
    // Who ends its side has gone: a rollout that it asked for goes on without it.
    socket.on('end', () => this.end())
    socket.on('close', () => this.#forget())
  }

  /** For {@link Crowd}: who waits for something, or has just begun to ask, stays; who never asked goes first. */
  get worth(): number {
    if (this.#state === 'leaving') return 0
    if (this.#state !== 'asking') return Infinity
    if (!this.#hasAsked) return 1
    return performance.now() - this.#since < this.#limits.graceMs ? Infinity : 2
  }

  get waits(): boolean {
    return this.#state === 'rolling-out' || this.#state === 'draining'
  }

  /** Closes at once, for somebody else. An honest client asks as soon as it is connected, and tries again. */
  makeWay(): void {
    const error =
      `The control socket has ${this.#limits.connections} connections, which is its limit, and this one had to make way; ` +
      'try again.'
    const isTold = this.#state === 'asking' && this.#socket.writableLength === 0
    this.#forget()
    if (!isTold) return void this.#socket.destroy()
    // Destroyed as soon as the line is in the kernel: a flood of these must hold no descriptor.
    this.#socket.end(encode({ error, busy: true }), () => this.#socket.destroy())
    this.#arm(this.#limits.farewellMs, () => this.#socket.destroy())
  }

  /** Sends what is under way, then closes, for good after the farewell time. */
  end(): void {
    if (this.#state === 'leaving') return
    this.#detach()
    this.#state = 'leaving'
    this.#lines.clear()
    this.#cancelTurn()
    this.#socket.resume()
    this.#socket.end()
    this.#arm(this.#limits.farewellMs, () => this.#socket.destroy())
  }

  /** One request a turn of the event loop: a client that pipelines thousands shares it with everybody else. */
  #serve(): void {
    if (this.#turn !== null || this.#state === 'leaving') return
    const next = this.#lines.take()
    if (next === null) {
      this.#socket.resume()
      return
    }
    if (next === 'too-long') {
      this.#dismiss(
        `The request is longer than ${this.#limits.requestBytes} bytes; the connection is closed.`,
      )
      return
    }
    this.#handle(next.line)
    if (this.#left()) return
    this.#socket.pause()
    this.#turn = setImmediate(() => {
      this.#turn = null
      this.#serve()
    })
  }

  #handle(line: string): void {
    this.#hasAsked = true
    const parsed = parseRequest(line)
    if ('error' in parsed) {
      if (parsed.notJson) this.#dismiss(parsed.error)
      else this.#send({ error: parsed.error })
      return
    }
    try {
      this.#perform(parsed.ok)
    } catch (error) {
      // The face is ours and should not throw; if it does, one client hears of it and the master goes on.
      this.#log.warn({ err: error }, `the control request "${parsed.ok.cmd}" failed`)
      const why = error instanceof Error ? error.message : String(error)
      this.#dismiss(`The master could not answer "${parsed.ok.cmd}": ${why}`)
    }
  }

  #perform(request: ControlRequest): void {
    if (request.cmd === 'abort') {
      if (this.#state === 'rolling-out') this.#rollout?.abort(request.reason)
      else
        this.#send({
          error:
            'There is nothing to abort: this connection has no reload or rollback that waits for its verdict. ' +
            'The order "abort" ends one that somebody else asked for.',
        })
      return
    }
    if (this.#state !== 'asking') {
      this.#send({
        error: `This connection already waits for an answer; ask "${request.cmd}" on another one.`,
      })
      return
    }
    switch (request.cmd) {
      case 'hello': {
        const { name, pid, usr2 } = this.#face.status()
        this.#answer({ hello: { protocol: CONTROL_VERSION, name, pid, usr2 } })
        return
      }
      case 'status':
        this.#answer({ status: this.#face.status() })
        return
      case 'reload': {
        const { drop, wait } = request
        this.#startRollout(wait, (asker) => this.#face.reload({ drop, wait }, asker))
        return
      }
      case 'rollback': {
        const { to, wait } = request
        this.#startRollout(wait, (asker) => this.#face.rollback({ to, wait }, asker))
        return
      }
      case 'upgrade': {
        const { node } = request
        if (node !== null && this.#isShared) {
          this.#send({
            error:
              "Others than the master's user may connect to this control socket, and whoever does may not choose a " +
              'program that runs as that user: upgrade without --node.',
          })
          return
        }
        this.#startRollout('promoted', (asker) => this.#face.upgrade({ node }, asker))
        return
      }
      case 'order':
        this.#begin('ordering')
        this.#face.order(request.what, (problem) => {
          if (this.#state !== 'ordering') return
          this.#answer(problem === null ? { done: true } : { refused: problem })
        })
        return
      case 'stop':
        this.#begin('stopping')
        this.#send({ stopping: true })
        this.#face.stop(request.how, () => {
          this.#send({ stopped: true })
          this.end()
        })
        return
    }
  }

  #startRollout(wait: Wait, ask: (asker: Asker) => Handle): void {
    if (!this.#isRoomToWait()) {
      this.#send({
        error:
          `${this.#limits.waiting} clients wait for a verdict or a drain already, and no more may. Nothing was begun. ` +
          'SIGUSR2 to the master reloads without one; the order "abort" ends the rollout that they wait for.',
      })
      return
    }
    this.#begin('rolling-out')
    const handle = ask({
      progress: (progress) => this.#send({ progress }),
      verdict: (verdict) => {
        if (this.#state !== 'rolling-out') return
        const more = wait === 'drained' && verdict.outcome === 'promoted'
        if (more) {
          this.#state = 'draining'
          this.#send({ verdict })
        } else {
          this.#rollout = null
          this.#answer({ verdict })
        }
      },
      drained: (drained) => {
        if (this.#state !== 'draining') return
        this.#rollout = null
        this.#answer({ drained })
      },
    })
    // A refusal's verdict comes before the handle does, and `send` may have found the client gone meanwhile.
    if (this.#state === 'rolling-out' || this.#state === 'draining') this.#rollout = handle
    else if (this.#left()) handle.detach()
  }

  #begin(state: 'rolling-out' | 'ordering' | 'stopping'): void {
    this.#state = state
    this.#disarm()
  }

  /** The last line of an answer; then the next request may come. */
  #answer(reply: ControlReply): void {
    this.#state = 'asking'
    this.#send(reply)
    if (!this.#left()) this.#awaitRequest()
  }

  #send(reply: ControlReply): void {
    if (this.#left() || !this.#socket.writable) return
    this.#socket.write(encode(reply))
    if (this.#socket.writableLength > this.#limits.unreadBytes) {
      this.#log.debug({ bytes: this.#socket.writableLength }, 'dropped a control client that does not read')
      this.#socket.destroy()
      this.#forget()
    }
  }

  #dismiss(error: string): void {
    this.#send({ error })
    this.end()
  }

  #awaitRequest(): void {
    this.#arm(this.#limits.requestTimeoutMs, () =>
      this.#dismiss(
        `No whole request came within ${this.#limits.requestTimeoutMs / 1000} s; the connection is closed.`,
      ),
    )
  }

  #detach(): void {
    const rollout = this.#rollout
    this.#rollout = null
    rollout?.detach()
  }

  /** The connection has gone: nothing of it may stay, nothing more of it may happen. */
  #forget(): void {
    this.#detach()
    this.#state = 'leaving'
    this.#disarm()
    this.#cancelTurn()
    this.#lines.clear()
  }

  /** A method, so that TypeScript looks again at a state that a call may have changed. */
  #left(): boolean {
    return this.#state === 'leaving'
  }

  #arm(ms: number, expired: () => void): void {
    this.#disarm()
    this.#deadline = setTimeout(expired, ms).unref()
  }

  #disarm(): void {
    if (this.#deadline !== null) clearTimeout(this.#deadline)
    this.#deadline = null
  }

  #cancelTurn(): void {
    if (this.#turn !== null) clearImmediate(this.#turn)
    this.#turn = null
  }
}

function encode(reply: ControlReply): string {
  return `${JSON.stringify(reply)}\n`
}

/**
 * The name that is bound before it is renamed over the path: so a client finds a socket that answers or none, and
 * libuv, which unlinks the name that it bound, never unlinks the path that a successor has taken (FACTS M8).
 */
function temporaryName(path: string): string {
  const bytes = Buffer.byteLength(path)
  if (bytes > MAX_UNIX_PATH_BYTES) throw new ControlError(tooLong(path, bytes, MAX_UNIX_PATH_BYTES))
  const beside = `${path}.${process.pid}`
  if (Buffer.byteLength(beside) <= MAX_UNIX_PATH_BYTES) return beside
  const short = join(dirname(path), `.${process.pid}`)
  const over = Buffer.byteLength(short) - MAX_UNIX_PATH_BYTES
  if (over > 0) throw new ControlError(tooLong(path, bytes, bytes - over))
  return short
}

function tooLong(path: string, bytes: number, limit: number): string {
  return (
    `The path of the control socket has ${bytes} bytes and may have ${limit}: ${path}. ` +
    'Give a shorter one with --control.'
  )
}

/** The socket file of a master that is no more, null where the path is free. */
async function findStale(path: string): Promise<Stats | null> {
  const found = lstat(path)
  if (found === null) return null
  if (!found.isSocket()) {
    throw new ControlError(
      `Could not open the control socket ${path}: it is ${kindOf(found)}, which usr2 does not replace. ` +
        'Remove it, or give another path with --control.',
    )
  }
  const answer = await probe(path, 1000)
  if (answer === 'missing') return null
  if (answer === 'refused') return found
  if (answer === 'accepted') throw new ControlInUseError(path, await holder(path))
  throw failure(path, answer)
}

async function holder(path: string): Promise<Hello | null> {
  try {
    const connection = await connectControl(path, { timeoutMs: 1000 })
    connection.close()
    return connection.hello
  } catch {
    return null
  }
}

async function listen(server: net.Server, place: Place): Promise<void> {
  try {
    await bindAndRename(server, place)
  } catch (error) {
    if (error instanceof PathTakenError) throw new ControlInUseError(place.path, null)
    throw failure(place.path, error)
  }
}

/** The parent and, where need be, its own parent: `/run/usr2/NAME`. Gives those made, outermost first. */
function makeDirectories(path: string, mode: number): readonly string[] {
  const parent = dirname(path)
  const made: string[] = []
  for (const directory of [dirname(parent), parent]) {
    if (lstat(directory) !== null) continue
    try {
      mkdirSync(directory, { mode })
      made.push(directory)
      // Whatever the umask is.
      chmodSync(directory, mode)
    } catch (error) {
      removeDirectories(made)
      throw failure(path, error, dirname(directory))
    }
  }
  return made
}

function removeDirectories(made: readonly string[]): void {
  for (const directory of made.toReversed()) {
    try {
      rmdirSync(directory)
    } catch {
      return // Something else lives there: another master's socket.
    }
  }
}

/** `directory`: the one in which something could not be made. */
function failure(path: string, error: unknown, directory = dirname(path)): ControlError {
  const code = error instanceof Error && 'code' in error ? error.code : null
  const start = `Could not open the control socket ${path}:`
  const end = 'Give another path with --control.'
  if (error instanceof Error && 'syscall' in error && error.syscall === 'lchown') {
    return new ControlError(
      `${start} this user (uid ${process.getuid?.() ?? '?'}) may not give it to that group, being no member of it ` +
        `(${code}). Take one of its own with --control-group.`,
    )
  }
  if (code === 'EACCES' || code === 'EPERM' || code === 'EROFS') {
    return new ControlError(
      `${start} the user that runs usr2 (uid ${process.getuid?.() ?? '?'}) may not write to ${directory} (${code}). ` +
        'Give it that right, or another path with --control.',
    )
  }
  if (code === 'ENOENT') return new ControlError(`${start} there is no directory ${directory}. ${end}`)
  if (code === 'ENOTDIR')
    return new ControlError(`${start} a part of ${directory} is not a directory. ${end}`)
  if (code === 'ENOSPC') return new ControlError(`${start} the file system of ${directory} is full.`)
  return new ControlError(`${start} ${error instanceof Error ? error.message : String(error)}. ${end}`)
}
