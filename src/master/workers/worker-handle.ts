/**
 * One child as the master knows it. The other end, in the child, is src/worker/preload.ts; the wire between them is
 * src/protocol.ts. Tells what happens, decides nothing.
 */
import { ChildProcess, spawn } from 'node:child_process'
import type { EventEmitter } from 'node:events'
import { existsSync } from 'node:fs'
import { dirname } from 'node:path'
import { CMD, GUEST_ENV, PROTOCOL_VERSION } from '../../protocol.ts'
import type {
  Counts,
  Failure,
  FromWorker,
  GuestConfig,
  Held,
  Holding,
  KnownListener,
  Slowest,
  ToWorker,
} from '../../protocol.ts'
import type { GenerationId, ProbeKind, SlotIndex, WorkerId } from '../../rollout/state.ts'
import type { Pinned } from './generation.ts'
import { idsOf } from './identity.ts'
import { NO_COUNTS, ledgerOf } from '../figures/ledger.ts'
import type { Ledger } from '../figures/ledger.ts'
import { Allowance } from './allowance.ts'
import type { Permission } from '../listening/permission.ts'
import { WorkerChannel } from './worker-channel.ts'
import { fromWorker } from './worker-word.ts'

/** After its exit a worker's last messages may still be in the channel. */
const LAST_WORDS_MS = 500
/** An answer that is late is an answer, too: only the master counts. */
const ASK_TIMEOUT_MS = 60_000
/**
 * Of listeners that a worker is told of in its environment, of which a variable takes 128 KiB (execve(2)): 1000 unix sockets
 * with long paths are 131 kB, and a spawn that failed of it (E2BIG) ended the master. Of the rest it hears by messages.
 */
const MAX_KNOWN_BYTES = 96 * 1024
/** Log lines that a worker has a say in: a flood of warnings must not fill the disk of the log file. */
const QUOTED = { atOnce: 50, perSecond: 0.2 }
/** Signals that reach every process of a unit and kill a Node that has not run its first line yet. */
const STRAY = new Set<NodeJS.Signals>(['SIGUSR2', 'SIGHUP', 'SIGUSR1', 'SIGTERM', 'SIGINT', 'SIGQUIT'])

export interface WorkerParts {
  readonly id: WorkerId
  readonly generation: GenerationId
  readonly slot: SlotIndex
  readonly name: string
  readonly pinned: Pinned
  /** The guest's file. */
  readonly preload: string
  readonly known: readonly KnownListener[]
  /** Of the {@link StackReader}; default: nobody is to look into it. */
  readonly inspectorPort?: number | null
  /** A descriptor of ours for its stdout; default: our own stdout. */
  readonly stdout?: number
  onMessage(worker: WorkerHandle, message: FromWorker): void
  /** It broke the rules of its channel, which is closed: it cannot be told anything any more. */
  onBroken?(worker: WorkerHandle, reason: string): void
  onExit(worker: WorkerHandle, exit: WorkerExit): void
}

export interface WorkerExit {
  /** One sentence, in the worker's own words where it gave some. */
  readonly reason: string
  readonly stillborn: boolean
}

export class WorkerHandle {
  readonly id: WorkerId
  readonly generation: GenerationId
  readonly slot: SlotIndex
  readonly child: ChildProcess
  readonly startedAt = performance.now()
  /** When its last message came. */
  heardAt = 0
  counts: Counts = NO_COUNTS
  /** What it held when its app ended it in the midst of its drain; null where it had no time to say so. */
  lost: readonly Held[] | null = null
  /** What it waits for as it leaves, and when it said so. */
  holding: { readonly said: Holding; readonly at: number } | null = null
  /** What it took when it was first looked at as ready; null before. */
  freshBytes: number | null = null
  alive = true
  private slowest: Slowest | null = null
  private saidDrained = false
  saidHello = false
  saidDraining = false
  private readonly parts: WorkerParts
  /** What it is told of in its environment, and later. */
  private readonly known: readonly [KnownListener[], KnownListener[]]
  private readonly channel: WorkerChannel
  private readonly quoted = new Allowance(QUOTED, performance.now())
  private saidMore = false
  private toldToDrain = false
  private failure: Failure | null = null
  private stderr = ''
  private explanation = ''

  constructor(parts: WorkerParts) {
    this.parts = parts
    this.id = parts.id
    this.generation = parts.generation
    this.slot = parts.slot
    const { pinned } = parts
    this.known = fitting(parts.known)
    this.child = this.start()
    this.channel = new WorkerChannel(this.child, (reason) => {
      this.explain(`it ${reason}`)
      parts.onBroken?.(this, reason)
    })
    const child: EventEmitter = this.child
    child.on('internalMessage', (raw: unknown) => this.receive(fromWorker(raw)))
    child.on('message', (message: unknown) => {
      // What apps written for PM2 (and naught) say when they are ready.
      if (message === 'ready' || message === 'online') this.receive({ t: 'ready' })
    })
    // Also: the child could not be started at all.
    child.on('error', (error: Error) => {
      if (this.child.pid !== undefined) return
      // Node names the program also when it is the directory that is missing.
      const why = existsSync(pinned.cwd) ? error.message : `its directory ${pinned.cwd} is gone`
      this.end(`could not be started: ${why}`, false)
    })
    child.on('exit', (status: number | null, signal: NodeJS.Signals | null) => this.onExit(status, signal))
    for (const listener of this.known[1]) this.send({ t: 'known', listener })
  }

  /**
   * Node tells of some failures by an event (ENOENT, EACCES, EAGAIN, EMFILE) and throws the others: E2BIG, of a value in the
   * env file that is longer than 128 KiB, ETXTBSY, of a Node that is just being installed, ENOEXEC, ENOMEM, ENOTDIR. All
   * are the end of this worker, and none is that of the master.
   */
  private start(): ChildProcess {
    const { pinned, preload, stdout } = this.parts
    const args = [...pinned.nodeArgs, '--require', preload, pinned.entry, ...pinned.args]
    try {
      return spawn(pinned.node, args, {
        cwd: pinned.cwd,
        ...idsOf(pinned.identity),
        env: this.environment(),
        // A session of its own: Ctrl-C and a lost terminal reach the master alone. Its output is inherited: the
        // master is not on the log path.
        detached: true,
        stdio: ['ignore', stdout ?? 'inherit', 'inherit', 'ipc'],
      })
    } catch (error) {
      const child = new ChildProcess()
      process.nextTick(() => child.emit('error', error))
      return child
    }
  }

  /** The next probe's number on the wire, for {@link takeProbe}. */
  expectProbe(kind: ProbeKind, nth: number): number {
    const id = ++this.lastProbe
    // One question of a kind is open at a time; what is asked anew was not answered in time.
    for (const [open, asked] of this.probes) if (asked.kind === kind) this.probes.delete(open)
    this.probes.set(id, { kind, nth })
    return id
  }

  /** The last one of that kind was not answered. */
  awaitsProbe(kind: ProbeKind): boolean {
    return [...this.probes.values()].some((asked) => asked.kind === kind)
  }

  /** Wants an answer of any kind ({@link heardAt}): a probe under a number that {@link takeProbe} never knows. */
  ask(): void {
    this.send({ t: 'probe', id: 0, kind: 'liveness', target: { k: 'event-loop' }, timeoutMs: ASK_TIMEOUT_MS })
  }

  /** Which one was answered; undefined: too late, or none of ours. */
  takeProbe(id: number): { readonly kind: ProbeKind; readonly nth: number } | undefined {
    const asked = this.probes.get(id)
    this.probes.delete(id)
    return asked
  }
  private lastProbe = 0
  private readonly probes = new Map<number, { readonly kind: ProbeKind; readonly nth: number }>()

  get pid(): number | null {
    return this.child.pid ?? null
  }

  /** What every log line about this worker carries. */
  get facts(): { generation: number; slot: number; pid: number | null; version: string } {
    return { generation: this.generation, slot: this.slot, pid: this.pid, version: this.parts.pinned.version }
  }

  /** How its connections and requests stand, or ended. */
  get ledger(): Ledger {
    const leave = this.alive ? 'here' : this.saidDrained ? 'left' : 'died'
    return ledgerOf(this.counts, this.slowest, leave)
  }

  /** Where it may listen: as its generation was configured. */
  get permission(): Permission {
    const { config, identity } = this.parts.pinned
    return { listen: config.listen, identity }
  }

  send(message: ToWorker): void {
    if (message.t === 'drain') this.toldToDrain = true
    this.channel.send({ cmd: CMD, ...message })
  }

  /** Whether the log may have one more line at its word. The first one that it may not have says so. */
  mayBeQuoted(log: { warn(facts: object, text: string): void }): boolean {
    if (this.quoted.take(1, performance.now())) return true
    if (!this.saidMore) {
      const text = `slot ${this.slot} says more than is logged from here on`
      log.warn({ ...this.facts, event: 'worker-warning' }, text)
    }
    this.saidMore = true
    return false
  }

  signal(signal: NodeJS.Signals): void {
    // One that could not be started has no process, but Node would signal what stands for it: 0, which is our own group.
    if (this.alive && this.child.pid !== undefined) this.child.kill(signal)
  }

  /** Why something this worker asked for failed, in more words than its app will have. */
  explain(text: string): void {
    this.explanation = text
  }

  private environment(): NodeJS.ProcessEnv {
    const { pinned, slot, generation, name } = this.parts
    const [known] = this.known
    const { drainTimeoutMs, shutdownTimeoutMs, ready, slots } = pinned.policy
    const { websocketDrain } = pinned.config
    const guest: GuestConfig = {
      version: PROTOCOL_VERSION,
      generation,
      slot,
      ready,
      known,
      times: { drainTimeoutMs, shutdownTimeoutMs },
      keepAliveTimeoutMs: pinned.config.keepAliveTimeoutMs,
      websocketDrain,
      statistics: pinned.config.statistics,
      inspectorPort: this.parts.inspectorPort ?? null,
      pwd: pinned.pwd,
      runtime: dirname(this.parts.preload),
    }
    return {
      NODE_APP_INSTANCE: String(slot),
      ...pinned.env,
      PWD: pinned.pwd,
      USR2_NAME: name,
      USR2_SLOT: String(slot),
      USR2_GENERATION: String(generation),
      USR2_WORKERS: String(slots),
      [GUEST_ENV]: JSON.stringify(guest),
    }
  }

  private receive(message: FromWorker | undefined): void {
    if (!message) return
    this.heardAt = performance.now()
    // Of a drain that nobody asked for it can say nothing: its accounts would be closed before they are.
    if (!this.toldToDrain && (message.t === 'draining' || message.t === 'drained' || message.t === 'died'))
      return
    if (message.t === 'draining') {
      // Once: said again and again it would put the end of a stop off for ever.
      if (this.saidDraining) return
      this.saidDraining = true
    }
    if (message.t === 'hello') this.saidHello = true
    else if (message.t === 'failed') this.failure = message.failure
    else if (message.t === 'stderr') this.stderr = message.text
    else if (message.t === 'counts') this.counts = message.counts
    else if (message.t === 'holding') this.holding = { said: message.holding, at: performance.now() }
    else if (message.t === 'drained') {
      this.counts = message.counts
      this.slowest = message.slowest
      this.saidDrained = true
    } else if (message.t === 'died') {
      this.counts = message.counts
      this.lost = message.lost
    }
    this.parts.onMessage(this, message)
  }

  private onExit(status: number | null, signal: NodeJS.Signals | null): void {
    this.alive = false
    const stillborn = !this.saidHello && signal !== null && STRAY.has(signal)
    const how = signal === null ? `exited with status ${status}` : `was killed by ${signal}`
    const done = (): void => {
      clearTimeout(timer)
      this.child.off('disconnect', done)
      this.end(how, stillborn)
    }
    const timer = setTimeout(done, LAST_WORDS_MS)
    if (this.child.connected) this.child.once('disconnect', done)
    else done()
  }

  private ended = false
  private end(how: string, stillborn: boolean): void {
    if (this.ended) return
    this.ended = true
    this.alive = false
    const words = this.failure ? firstFrame(this.failure) : lastLine(this.stderr)
    const why = [words, this.explanation, this.neverBegan(how)].filter((text) => text !== '').join('; ')
    const who = this.pid === null ? `slot ${this.slot}` : `slot ${this.slot} (pid ${this.pid})`
    this.parts.onExit(this, { reason: `${who} ${how}${why ? `: ${why}` : ''}`, stillborn })
  }

  /** Node preloads what NODE_OPTIONS say before our guest: it cannot tell what went wrong there. */
  private neverBegan(how: string): string {
    const { env, nodeOptionsOf, nodeArgs } = this.parts.pinned
    const options = env['NODE_OPTIONS'] ?? ''
    if (this.saidHello || !how.startsWith('exited') || (options === '' && nodeArgs.length === 0)) return ''
    const given = [
      ...(options === '' ? [] : [`NODE_OPTIONS of ${nodeOptionsOf} (${options})`]),
      ...(nodeArgs.length === 0 ? [] : [`--node-args (${nodeArgs.join(' ')})`]),
    ]
    return `it ended before the app was loaded, as wrong ${given.join(' or ')} would have it; its stderr says why`
  }
}

/** `Error: Cannot find module 'x' (at /srv/app.js:3:1)`: the message and where in the app it came from. */
function firstFrame({ name, message, stack }: Failure): string {
  const lines = stack.split('\n')
  const frame = lines
    // Not Node's frames, nor ours: EADDRINUSE is made by the guest.
    .find((line) => /^\s+at /.test(line) && !/\(?node:|\/preload\.cjs:/.test(line))
    ?.trim()
    .replace(/^at /, '')
  // A syntax error has its place in front of its stack: file:line, the source, a caret.
  const place = frame ?? (/^\/\S+:\d+$|^file:\S+:\d+$/.test(lines[0] ?? '') ? lines[0] : undefined)
  // One line: verdicts are printed in tables, logs and `systemctl status`.
  const text = message.replace(/\s*\n\s*/g, ' ')
  const head = text.startsWith(name) ? text : `${name}: ${text}`
  if (place !== undefined) return `${head} (at ${place})`
  // Node keeps the place of a module that cannot be compiled to itself, and prints it as the process ends.
  const isUnparsed = name === 'SyntaxError' && stack.includes('node:internal/modules/esm')
  return isUnparsed ? `${head} (in an ES module: the worker's stderr shows the file and the line)` : head
}

/** As many as fit into the environment, and the rest. */
function fitting(known: readonly KnownListener[]): [KnownListener[], KnownListener[]] {
  let left = MAX_KNOWN_BYTES
  const end = known.findIndex((listener) => (left -= Buffer.byteLength(JSON.stringify(listener)) + 1) < 0)
  return end < 0 ? [[...known], []] : [known.slice(0, end), known.slice(end)]
}

function lastLine(text: string): string {
  return text.trim().split('\n').slice(-3).join(' | ').slice(0, 500)
}
