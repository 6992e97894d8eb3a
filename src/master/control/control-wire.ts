/**
 * What goes over the control socket: one JSON object a line, both ways, and the guards that both ends read by.
 *
 * Rules of this file: no I/O. Neither end trusts the other: the server reads requests only through
 * {@link parseRequest}, the client replies only through {@link parseReply}. A request with a key that we do not
 * know is refused rather than half obeyed: a newer client's `drop` must not be lost on an older master.
 */
import * as v from 'valibot'

import { isListenerKey } from '../../address.ts'
import { ENDINGS, HELD_KINDS, OUTCOMES } from '../../protocol.ts'
import type { Held } from '../../protocol.ts'
import { PROBES, type Order } from '../../rollout/state.ts'
import type {
  AnalysisStatus,
  Drained,
  Progress,
  ReloadRequest,
  RollbackRequest,
  RolloutStatus,
  Status,
  UpgradeRequest,
  Verdict,
  Wait,
  WorkerStatus,
} from '../face.ts'
import type { Ledger } from '../figures/ledger.ts'

/** Raised when a line changes its meaning; the client refuses a master that says another one. */
export const CONTROL_VERSION = 1

/** Longest request line, in bytes without its line end. The longest honest one drops some dozen listeners. */
export const MAX_REQUEST_BYTES = 64 * 1024
/** Longest reply line that a client reads: some 10,000 workers. */
export const MAX_REPLY_BYTES = 4 * 1024 * 1024

const MAX_DROPS = 256
/** As many as `--workers` may be: a slip of `usr2 scale` is no fork bomb either. */
export const MAX_SLOTS = 1024
const MAX_REASON_CHARS = 1000

export type StopHow = 'graceful' | 'now'

export type ControlRequest =
  | { readonly cmd: 'hello' }
  | { readonly cmd: 'status' }
  | ({ readonly cmd: 'reload' } & ReloadRequest)
  | ({ readonly cmd: 'rollback' } & RollbackRequest)
  | ({ readonly cmd: 'upgrade' } & UpgradeRequest)
  /** Only on the connection whose reload, rollback or upgrade it ends. */
  | { readonly cmd: 'abort'; readonly reason: string }
  /** Of whatever rollout runs, whoever asked for it; or of the number of slots. */
  | { readonly cmd: 'order'; readonly what: Order }
  | { readonly cmd: 'stop'; readonly how: StopHow }

export interface Hello {
  readonly protocol: number
  readonly name: string
  readonly pid: number
  readonly usr2: string
}

export type ControlReply =
  | { readonly hello: Hello }
  | { readonly status: Status }
  | { readonly progress: Progress }
  | { readonly verdict: Verdict }
  | { readonly drained: Drained }
  | { readonly stopping: true }
  | { readonly stopped: true }
  /** The order was obeyed. */
  | { readonly done: true }
  /** A sentence: why the order changed nothing. */
  | { readonly refused: string }
  /** A sentence. The request that it answers has changed nothing; `busy`: the same may go through in an instant. */
  | { readonly error: string; readonly busy?: true }

export type Parsed<T> = { readonly ok: T } | { readonly error: string }

const KEYS: Readonly<Record<ControlRequest['cmd'], readonly string[]>> = {
  hello: [],
  status: [],
  reload: ['drop', 'wait'],
  rollback: ['to', 'wait'],
  upgrade: ['node'],
  abort: ['reason'],
  order: ['what'],
  stop: ['how'],
}

/** What each order has beside `k`. */
const ORDERS: Readonly<Record<Order['k'], readonly string[]>> = {
  promote: ['full'],
  pause: [],
  resume: [],
  abort: [],
  scale: ['to'],
  'scale-by': ['by'],
}

function isCommand(value: unknown): value is ControlRequest['cmd'] {
  return typeof value === 'string' && Object.hasOwn(KEYS, value)
}

function isOrder(value: unknown): value is Order['k'] {
  return typeof value === 'string' && Object.hasOwn(ORDERS, value)
}

function isWhole(value: unknown, min: number, max: number): value is number {
  return Number.isSafeInteger(value) && Number(value) >= min && Number(value) <= max
}

type Given = Readonly<Record<string, unknown>>

function isGiven(value: unknown): value is Given {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function isStrings(value: unknown): value is readonly string[] {
  return Array.isArray(value) && value.every((item) => typeof item === 'string')
}

/**
 * What a client wrote, as text for an error: short, and without anything that a terminal would obey. Never what is in a
 * list or an object: `JSON.parse` reads 32,000 brackets, at 5,000 `JSON.stringify` throws (Node 20 to 24).
 */
function quote(value: unknown): string {
  if (typeof value === 'object' && value !== null) return Array.isArray(value) ? 'a list' : 'an object'
  const text = JSON.stringify(value) ?? String(value)
  return text.length <= 60 ? text : `${text.slice(0, 57)}...`
}

/** Whether a line is JSON at all tells a confused client (closed) from one of another version (told, kept). */
export function parseRequest(line: string): Parsed<ControlRequest> & { readonly notJson?: true } {
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch {
    return { error: 'The request is not a line of JSON, such as {"cmd":"status"}.', notJson: true }
  }
  if (!isGiven(value)) return { error: 'The request is not a JSON object, such as {"cmd":"status"}.' }
  const given = value
  const { cmd } = given
  if (!isCommand(cmd)) {
    return { error: `Unknown command ${quote(cmd)}; known: ${Object.keys(KEYS).join(', ')}.` }
  }
  const strange = strangers(`The command "${cmd}"`, given, 'cmd', KEYS[cmd])
  if (strange !== null) return { error: strange }
  switch (cmd) {
    case 'hello':
    case 'status':
      return { ok: { cmd } }
    case 'reload':
      return parseReload(given)
    case 'rollback':
      return parseRollback(given)
    case 'upgrade': {
      const node = given['node'] ?? null
      if (node !== null && (typeof node !== 'string' || !node.startsWith('/') || node.includes('\0'))) {
        return { error: `"node" must be an absolute path, or null, not ${quote(node)}.` }
      }
      return { ok: { cmd, node } }
    }
    case 'order':
      return parseOrder(given['what'])
    case 'abort': {
      const reason = given['reason'] ?? 'the client asked for it'
      if (typeof reason !== 'string') return { error: `"reason" must be a string, not ${quote(reason)}.` }
      return { ok: { cmd, reason: reason.slice(0, MAX_REASON_CHARS) } }
    }
    case 'stop': {
      const how = given['how'] ?? 'graceful'
      if (how !== 'graceful' && how !== 'now') {
        return { error: `"how" must be "graceful" or "now", not ${quote(how)}.` }
      }
      return { ok: { cmd, how } }
    }
  }
}

/** A sentence about the keys of `given` that are neither `own` nor `known`, or null. */
function strangers(what: string, given: Given, own: string, known: readonly string[]): string | null {
  const unknown = Object.keys(given).filter((key) => key !== own && !known.includes(key))
  if (unknown.length === 0) return null
  const right = known.length === 0 ? 'it takes none' : `known: ${known.join(', ')}`
  return `${what} has no option ${unknown.map(quote).join(', ').slice(0, 200)}; ${right}.`
}

function parseReload(given: Given): Parsed<ControlRequest> {
  const drop = given['drop'] ?? []
  if (!isStrings(drop) || drop.length > MAX_DROPS) {
    return {
      error: `"drop" must be a list of at most ${MAX_DROPS} listener keys, such as ["tcp:0.0.0.0:3000"].`,
    }
  }
  const bad = drop.find((key) => !isListenerKey(key))
  if (bad !== undefined) {
    return {
      error: `${quote(bad)} in "drop" is not a listener key; keys look like tcp:0.0.0.0:3000 or unix:/run/app.sock.`,
    }
  }
  const wait = parseWait(given)
  return 'error' in wait ? wait : { ok: { cmd: 'reload', drop, wait: wait.ok } }
}

function parseRollback(given: Given): Parsed<ControlRequest> {
  const to = given['to'] ?? null
  if (to !== null && !isWhole(to, 1, Number.MAX_SAFE_INTEGER)) {
    return {
      error: `"to" must be the number of a generation, or null for the one before the current, not ${quote(to)}.`,
    }
  }
  const wait = parseWait(given)
  return 'error' in wait ? wait : { ok: { cmd: 'rollback', to, wait: wait.ok } }
}

function parseWait(given: Given): Parsed<Wait> {
  const wait = given['wait'] ?? 'promoted'
  if (wait === 'promoted' || wait === 'drained') return { ok: wait }
  return { error: `"wait" must be "promoted" or "drained", not ${quote(wait)}.` }
}

function parseOrder(what: unknown): Parsed<ControlRequest> {
  if (!isGiven(what)) return { error: '"what" must be an order, such as {"k":"pause"}.' }
  const { k } = what
  if (!isOrder(k)) return { error: `Unknown order ${quote(k)}; known: ${Object.keys(ORDERS).join(', ')}.` }
  const strange = strangers(`The order "${k}"`, what, 'k', ORDERS[k])
  if (strange !== null) return { error: strange }
  switch (k) {
    case 'promote': {
      const full = what['full'] ?? false
      if (typeof full !== 'boolean') return { error: `"full" must be true or false, not ${quote(full)}.` }
      return { ok: { cmd: 'order', what: { k, full } } }
    }
    case 'pause':
    case 'resume':
    case 'abort':
      return { ok: { cmd: 'order', what: { k } } }
    case 'scale': {
      const { to } = what
      if (isWhole(to, 1, MAX_SLOTS)) return { ok: { cmd: 'order', what: { k, to } } }
      return { error: `"to" must be a whole number from 1 to ${MAX_SLOTS}, not ${quote(to)}.` }
    }
    case 'scale-by': {
      const { by } = what
      if (isWhole(by, -MAX_SLOTS, MAX_SLOTS) && by !== 0) return { ok: { cmd: 'order', what: { k, by } } }
      return {
        error: `"by" must be a whole number from -${MAX_SLOTS} to ${MAX_SLOTS} and not 0; it is ${quote(by)}.`,
      }
    }
  }
}

const text = v.string()
// JSON has no NaN, but 1e999 is Infinity.
const count = v.pipe(v.number(), v.finite())

const progress: v.GenericSchema<unknown, Progress> = v.object({
  reload: text,
  generation: v.nullable(count),
  text,
})

const rolloutKind = v.picklist(['reload', 'rollback'])

const verdict: v.GenericSchema<unknown, Verdict> = v.object({
  kind: v.picklist(['reload', 'rollback', 'upgrade']),
  outcome: v.picklist(['promoted', 'rolled-back', 'refused', 'overtaken']),
  reload: text,
  current: v.nullable(count),
  reasons: v.array(text),
  tookMs: count,
  text,
})

const counts = <Name extends string>(names: readonly Name[]) =>
  v.object(Object.fromEntries(names.map((name) => [name, count])) as Record<Name, typeof count>)

const ledger: v.GenericSchema<unknown, Ledger> = v.object({
  connections: counts(['accepted', 'earlier', ...ENDINGS, 'crashed', 'open']),
  requests: counts(['begun', ...OUTCOMES, 'crashed', 'active']),
  slowest: v.nullable(v.object({ method: text, path: text, tookMs: count })),
})

const held: v.GenericSchema<unknown, Held> = v.object({
  what: v.picklist(HELD_KINDS),
  method: v.exactOptional(text),
  path: v.exactOptional(text),
  ageMs: count,
  bytesRead: count,
  bytesWritten: count,
  peer: text,
})

const drained: v.GenericSchema<unknown, Drained> = v.object({
  generation: count,
  ledger,
  tookMs: count,
  text,
})

const worker: v.GenericSchema<unknown, WorkerStatus> = v.object({
  slot: count,
  generation: count,
  pid: v.nullable(count),
  phase: v.picklist(['booting', 'ready', 'draining', 'terminating', 'killed']),
  uptimeMs: count,
  open: v.array(text),
  connections: count,
  requests: count,
  active: count,
  ledger,
  holding: v.nullable(
    v.object({
      oldest: v.array(held),
      kinds: v.record(text, count),
      resources: v.record(text, count),
      saidMsAgo: count,
    }),
  ),
  rssBytes: v.nullable(count),
  probes: v.array(
    v.object({
      probe: v.picklist(PROBES),
      standing: v.picklist(['unknown', 'passing', 'failing']),
      why: text,
    }),
  ),
  tired: v.nullable(text),
  waitsFor: v.nullable(text),
})

const analysis: v.GenericSchema<unknown, AnalysisStatus> = v.object({
  taken: count,
  of: count,
  failed: count,
  failureLimit: count,
  findings: v.array(
    v.object({ limit: text, candidate: text, current: text, holds: v.nullable(v.boolean()) }),
  ),
})

const rollout: v.GenericSchema<unknown, RolloutStatus> = v.object({
  reload: text,
  kind: rolloutKind,
  current: count,
  candidate: v.nullable(count),
  sinceMs: count,
  steps: v.array(v.object({ text, state: v.picklist(['done', 'now', 'to-come']) })),
  waitsFor: text,
  paused: v.nullable(text),
  accepting: v.object({ current: count, candidate: count }),
  analysis: v.nullable(analysis),
})

const status: v.GenericSchema<unknown, Status> = v.object({
  name: text,
  pid: count,
  usr2: text,
  usr2OnDisk: v.nullable(text),
  node: text,
  uptimeMs: count,
  state: v.picklist(['starting', 'steady', 'rolling-out', 'stopping']),
  slots: count,
  ready: count,
  listeners: v.array(v.object({ key: text, accepting: count })),
  generations: v.array(
    v.object({
      id: count,
      role: v.picklist(['current', 'candidate', 'parked', 'old']),
      version: text,
      entry: text,
      cwd: text,
      node: text,
      workers: v.array(worker),
    }),
  ),
  vacancies: v.array(v.object({ slot: count, deaths: count, retryInMs: count })),
  waitsFor: v.nullable(text),
  lastVerdict: v.nullable(verdict),
  rollout: v.nullable(rollout),
  parked: v.nullable(v.object({ generation: count, leftMs: count })),
  bootable: v.array(count),
})

const reply: v.GenericSchema<unknown, ControlReply> = v.union([
  v.object({ hello: v.object({ protocol: count, name: text, pid: count, usr2: text }) }),
  v.object({ status }),
  v.object({ progress }),
  v.object({ verdict }),
  v.object({ drained }),
  v.object({ stopping: v.literal(true) }),
  v.object({ stopped: v.literal(true) }),
  v.object({ done: v.literal(true) }),
  v.object({ refused: text }),
  v.object({ error: text, busy: v.exactOptional(v.literal(true)) }),
])

/** The reply of a master, or why the line is none. Keys that a newer master adds are left out. */
export function parseReply(line: string): Parsed<ControlReply> {
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch {
    return { error: 'it is not a line of JSON' }
  }
  const parsed = v.safeParse(reply, value)
  if (parsed.success) return { ok: parsed.output }
  return { error: `this usr2 does not know it: ${line.slice(0, 80)}` }
}

/** Splits a byte stream into lines, and bounds what a peer can make us hold. */
export class Lines {
  readonly #limit: number
  /** From {@link #from} to {@link #to} not taken yet; no line end before {@link #searched}. */
  #held: Buffer = Buffer.alloc(0)
  #from = 0
  #to = 0
  #searched = 0

  /** @param limit longest line in bytes, without its line end */
  constructor(limit: number) {
    this.#limit = limit
  }

  push(chunk: Buffer): void {
    const length = this.#to - this.#from
    if (length === 0) {
      this.#held = chunk
      this.#from = this.#searched = 0
      this.#to = chunk.length
      return
    }
    if (this.#held.length - this.#to < chunk.length) {
      // Twice as much as is needed: a peer that sends single bytes does not have all of them copied for each one.
      const larger = Buffer.allocUnsafe(2 * (length + chunk.length))
      this.#held.copy(larger, 0, this.#from, this.#to)
      this.#held = larger
      this.#searched -= this.#from
      this.#from = 0
      this.#to = length
    }
    this.#to += chunk.copy(this.#held, this.#to)
  }

  /** The next whole line without its line end; null when there is none yet; `'too-long'` past the limit. */
  take(): { readonly line: string } | 'too-long' | null {
    const end = this.#held.subarray(0, this.#to).indexOf(0x0a, this.#searched)
    if ((end < 0 ? this.#to : end) - this.#from > this.#limit) return 'too-long'
    this.#searched = end < 0 ? this.#to : end + 1
    if (end < 0) return null
    const line = this.#held.toString('utf8', this.#from, end)
    this.#from = end + 1
    return { line }
  }

  /** Forgets what is held. */
  clear(): void {
    this.#held = Buffer.alloc(0)
    this.#from = this.#to = this.#searched = 0
  }
}
