/**
 * What a worker says, as far as it is one of the messages of src/protocol.ts. A worker's word is never trusted.
 *
 * A reader gives its value made anew, with the fields that are known and no others, or throws WRONG. What else a message
 * brings would go on into ledgers, log lines and status: `endings: { accepted: "x" }` took the place of a sum, and a
 * megabyte beside a path was logged.
 */
import {
  CMD,
  ENDINGS,
  HELD_KINDS,
  LATENCY_BUCKETS,
  MAX_FAILURE_BYTES,
  MAX_HOLDING,
  OUTCOMES,
} from '../../protocol.ts'
import type {
  Counts,
  Failure,
  FromWorker,
  Held,
  Holding,
  Slowest,
  Statistics,
  WireAddress,
  WireError,
} from '../../protocol.ts'

type Read<T> = (x: unknown) => T
type Readers<T> = { readonly [K in keyof T]-?: Read<T[K]> }

const WRONG = Symbol('wrong')
function must(holds: boolean): asserts holds {
  // No Error: a flood of wrong messages is to cost no stacks.
  if (!holds) throw WRONG
}

const object =
  <T extends object>(readers: Readers<T>): Read<T> =>
  (x) => {
    must(typeof x === 'object' && x !== null)
    const given = x as Readonly<Record<string, unknown>>
    const entries = Object.entries<Read<unknown>>(readers).map(([name, read]) => {
      return [name, read(Object.hasOwn(given, name) ? given[name] : undefined)] as const
    })
    return Object.fromEntries(entries.filter(([, value]) => value !== undefined)) as T
  }
const list =
  <T>(max: number, read: Read<T>): Read<T[]> =>
  (x) => {
    must(Array.isArray(x) && x.length <= max)
    // Also of a hole, which `map` leaves out.
    return Array.from(x as unknown[], (each) => read(each))
  }
const maybe =
  <T>(read: Read<T>): Read<T | undefined> =>
  (x) =>
    x === undefined ? undefined : read(x)
const orNull =
  <T>(read: Read<T>): Read<T | null> =>
  (x) =>
    x === null ? null : read(x)
const oneOf =
  <T extends string>(values: readonly T[]): Read<T> =>
  (x) => {
    must((values as readonly unknown[]).includes(x))
    return x as T
  }
const text =
  (max: number, shape = /^/): Read<string> =>
  (x) => {
    must(typeof x === 'string' && x.length <= max && shape.test(x))
    return x as string
  }
const number =
  (min: number, max: number): Read<number> =>
  (x) => {
    must(typeof x === 'number' && x >= min && x <= max)
    return x as number
  }
const whole =
  (min: number, max: number): Read<number> =>
  (x) => {
    must(Number.isInteger(x))
    return number(min, max)(x)
  }
const boolean: Read<boolean> = (x) => {
  must(typeof x === 'boolean')
  return x as boolean
}
/** Sums of thousands of them stay finite. */
const count = number(0, Number.MAX_SAFE_INTEGER)
const key = text(256)
const counted = <Name extends string>(names: readonly Name[]): Read<Record<Name, number>> =>
  object(Object.fromEntries(names.map((name) => [name, count])) as Readers<Record<Name, number>>)

/** A few names with a count each: what a worker lists of itself must not fill the master. */
const tally: Read<Readonly<Record<string, number>>> = (x) => {
  must(typeof x === 'object' && x !== null)
  const entries = Object.entries(x as object)
  must(entries.length <= 64)
  return Object.fromEntries(entries.map(([name, n]) => [text(64)(name), count(n)]))
}

const wireError = object<WireError>({
  code: text(64, /^\w*$/),
  errno: number(-4096, 4096),
  syscall: text(64, /^\w*$/),
})
const unix = object<WireAddress & { readonly kind: 'unix' }>({
  kind: oneOf(['unix']),
  // Absolute, or abstract; a line end in it would be one in the service manager's status line.
  path: text(512, /^[/\0][^\u0000-\u001f\u007f]*$/),
  readableAll: maybe(boolean),
  writableAll: maybe(boolean),
  umask: maybe(whole(0, 0o777)),
} as Readers<WireAddress & { readonly kind: 'unix' }>)
const internet = object<WireAddress>({
  kind: oneOf(['tcp', 'udp']),
  // Whether it is an IP address, and one of this machine, the bind tells.
  host: text(64, /^[\w.:%-]+$/),
  port: whole(1, 65_535),
  ipv6Only: maybe(boolean),
  anyFamily: maybe(boolean),
  reuseAddr: maybe(boolean),
  reusePort: maybe(boolean),
} as Readers<WireAddress>)
const wireAddress: Read<WireAddress> = (x) =>
  (x as Partial<WireAddress> | null)?.kind === 'unix' ? unix(x) : internet(x)

const counts = object<Counts>({
  accepted: count,
  earlier: count,
  endings: counted(ENDINGS),
  open: count,
  requests: count,
  outcomes: counted(OUTCOMES),
  active: count,
})
const held = object<Held>({
  what: oneOf(HELD_KINDS),
  method: maybe(text(64)),
  path: maybe(text(4096)),
  ageMs: count,
  bytesRead: count,
  bytesWritten: count,
  peer: text(256),
} as Readers<Held>)
const heldList = list(1000, held)
const latency: Read<readonly [bucket: number, count: number]> = (x) => {
  must(Array.isArray(x))
  const [bucket, n] = x as unknown[]
  return [whole(0, LATENCY_BUCKETS - 1)(bucket), count(n)]
}

const readers: { readonly [T in FromWorker['t']]: Read<Omit<Extract<FromWorker, { t: T }>, 't'>> } = {
  hello: object({ version: count, node: text(64) }),
  claim: object({ id: count, address: wireAddress, backlog: count }),
  verified: object({ key, error: orNull(wireError) }),
  claimed: object({ key, error: orNull<never>(() => must(false) as never) }),
  unclaimed: object({ key }),
  private: object({ address: text(256) }),
  opened: object({ key, error: orNull(wireError) }),
  withdrawn: object({ key }),
  ready: object({}),
  draining: object({ timeoutMs: count }),
  counts: object({ counts }),
  statistics: object({
    statistics: object<Statistics>({
      requests: count,
      errors: count,
      totalMs: count,
      latency: list(LATENCY_BUCKETS, latency),
      loopDelayMs: count,
    }),
  }),
  probed: object({ id: count, failure: orNull(text(1024)) }),
  warmed: object({ sent: count, failure: orNull(text(1024)) }),
  drained: object({
    counts,
    cut: heldList,
    slowest: orNull(object<Slowest>({ method: text(64), path: text(4096), tookMs: count })),
  }),
  holding: object({
    holding: object<Holding>({ oldest: list(MAX_HOLDING, held), kinds: tally, resources: tally }),
  }),
  died: object({ counts, lost: heldList }),
  failed: object({
    failure: object<Failure>({
      name: text(256),
      message: text(MAX_FAILURE_BYTES),
      stack: text(MAX_FAILURE_BYTES),
    }),
  }),
  stderr: object({ text: text(MAX_FAILURE_BYTES) }),
  signalled: object({ signal: text(16, /^\w*$/) }),
  'leadership-asked': object({}),
  'leadership-ended': object({}),
  warning: object({ text: text(2048) }),
  'ticket-keys-asked': object({ key, fingerprint: text(64, /^[0-9a-f]{64}$/) }),
}

/** The message that `x` is, made anew, or undefined when it is not one of ours or not well formed. */
export function fromWorker(x: unknown): FromWorker | undefined {
  if (typeof x !== 'object' || x === null) return undefined
  const { cmd, t } = x as { readonly cmd?: unknown; readonly t?: unknown }
  if (cmd !== CMD || typeof t !== 'string' || !Object.hasOwn(readers, t)) return undefined
  try {
    const read: Read<object> = readers[t as FromWorker['t']]
    return { t, ...read(x) } as FromWorker
  } catch (error) {
    if (error === WRONG) return undefined
    throw error
  }
}
