/**
 * What a worker says, as far as it is one of the messages of src/protocol.ts. A worker's word is never trusted.
 *
 * What is taken is made anew, with the fields that are known and no others. What else a message brings would go on into
 * ledgers, log lines and status: `endings: { accepted: "x" }` took the place of a sum, and a megabyte beside a path was
 * logged.
 */
import * as v from 'valibot'

import {
  CMD,
  ENDINGS,
  HELD_KINDS,
  LATENCY_BUCKETS,
  MAX_FAILURE_BYTES,
  MAX_HOLDING,
  MAX_NEWS,
  OUTCOMES,
} from '../../protocol.ts'
import type { Counts, FromWorker, Held, News, WireAddress, WireError } from '../../protocol.ts'

type Read<T> = v.GenericSchema<unknown, T>

const text = (max: number) => v.pipe(v.string(), v.maxLength(max))
const name = v.pipe(text(64), v.regex(/^\w*$/))
const number = (min: number, max: number) => v.pipe(v.number(), v.minValue(min), v.maxValue(max))
const whole = (min: number, max: number) => v.pipe(number(min, max), v.integer())
/** Sums of thousands of them stay finite. */
const count = number(0, Number.MAX_SAFE_INTEGER)
const flag = v.exactOptional(v.boolean())
const key = text(256)
const counted = <Name extends string>(names: readonly Name[]) =>
  v.object(Object.fromEntries(names.map((each) => [each, count])) as Record<Name, typeof count>)

/** Its length is looked at before what is in it: 8 MB hold millions. */
const list = <T>(max: number, item: Read<T>) =>
  v.pipe(
    v.custom<unknown[]>((x) => Array.isArray(x) && x.length <= max),
    v.array(item),
  )

/** A few names with a count each: what a worker lists of itself must not fill the master. `v.record` drops some names. */
const tally = v.pipe(
  v.custom<object>((x) => typeof x === 'object' && x !== null),
  v.transform((x): unknown[] => Object.entries(x)),
  list<[string, number]>(64, v.tuple([text(64), count])),
  v.transform((entries) => Object.fromEntries(entries)),
)

const wireError: Read<WireError> = v.object({ code: name, errno: number(-4096, 4096), syscall: name })
const internet = {
  // Whether it is an IP address, and one of this machine, the bind tells.
  host: v.pipe(text(64), v.regex(/^[\w.:%-]+$/)),
  port: whole(1, 65_535),
  ...{ ipv6Only: flag, anyFamily: flag, reuseAddr: flag, reusePort: flag },
}
const wireAddress: Read<WireAddress> = v.variant('kind', [
  v.object({ kind: v.picklist(['tcp', 'udp']), ...internet }),
  v.object({
    kind: v.literal('unix'),
    // Absolute, or abstract; a line end in it would be one in the service manager's status line.
    path: v.pipe(text(512), v.regex(/^[/\0][^\u0000-\u001f\u007f]*$/)),
    ...{ readableAll: flag, writableAll: flag, umask: v.exactOptional(whole(0, 0o777)) },
  }),
])

const counts: Read<Counts> = v.object({
  ...{ accepted: count, earlier: count, endings: counted(ENDINGS), open: count },
  ...{ requests: count, outcomes: counted(OUTCOMES), active: count },
})
const held: Read<Held> = v.object({
  what: v.picklist(HELD_KINDS),
  method: v.exactOptional(text(64)),
  path: v.exactOptional(text(4096)),
  ...{ ageMs: count, bytesRead: count, bytesWritten: count, peer: text(256) },
})
const heldList = list(1000, held)
const latency = list(LATENCY_BUCKETS, v.tuple([whole(0, LATENCY_BUCKETS - 1), count]))
const slowest = v.object({ method: text(64), path: text(4096), tookMs: count })

const claimed = { key, error: v.null() }
const onPrivate = { address: text(256) }
const news: Read<News> = v.variant('t', [
  v.object({ t: v.literal('claimed'), ...claimed }),
  v.object({ t: v.picklist(['unclaimed', 'withdrawn']), key }),
  v.object({ t: v.literal('private'), ...onPrivate }),
  v.object({ t: v.literal('ready') }),
])

const messages: { readonly [T in FromWorker['t']]: Read<Omit<Extract<FromWorker, { t: T }>, 't'>> } = {
  hello: v.object({ version: count, node: text(64) }),
  claim: v.object({ id: count, address: wireAddress, backlog: count }),
  verified: v.object({ key, error: v.nullable(wireError) }),
  claimed: v.object(claimed),
  unclaimed: v.object({ key }),
  private: v.object(onPrivate),
  withdrawn: v.object({ key }),
  ready: v.object({}),
  several: v.object({ news: list(MAX_NEWS, news) }),
  opened: v.object({ key, error: v.nullable(wireError) }),
  draining: v.object({ timeoutMs: count }),
  counts: v.object({ counts }),
  statistics: v.object({
    statistics: v.object({
      requests: count,
      errors: count,
      totalMs: count,
      latency,
      loopDelayMs: count,
    }),
  }),
  probed: v.object({ id: count, failure: v.nullable(text(1024)) }),
  warmed: v.object({ sent: count, failure: v.nullable(text(1024)) }),
  drained: v.object({ counts, cut: heldList, slowest: v.nullable(slowest) }),
  holding: v.object({
    holding: v.object({ oldest: list(MAX_HOLDING, held), kinds: tally, resources: tally }),
  }),
  died: v.object({ counts, lost: heldList }),
  failed: v.object({
    failure: v.object({
      name: text(256),
      message: text(MAX_FAILURE_BYTES),
      stack: text(MAX_FAILURE_BYTES),
    }),
  }),
  stderr: v.object({ text: text(MAX_FAILURE_BYTES) }),
  signalled: v.object({ signal: v.pipe(text(16), v.regex(/^\w*$/)) }),
  'leadership-asked': v.object({}),
  'leadership-ended': v.object({}),
  warning: v.object({ text: text(2048) }),
  'ticket-keys-asked': v.object({ key, fingerprint: v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/)) }),
}

/** The message that `x` is, made anew, or undefined when it is not one of ours or not well formed. */
export function fromWorker(x: unknown): FromWorker | undefined {
  if (typeof x !== 'object' || x === null) return undefined
  const { cmd, t } = x as { readonly cmd?: unknown; readonly t?: unknown }
  // By a table: `v.variant` would try all 24, one after the other.
  if (cmd !== CMD || typeof t !== 'string' || !Object.hasOwn(messages, t)) return undefined
  const message: Read<object> = messages[t as FromWorker['t']]
  const result = v.safeParse(message, x, { abortEarly: true })
  return result.success ? ({ t, ...result.output } as FromWorker) : undefined
}
