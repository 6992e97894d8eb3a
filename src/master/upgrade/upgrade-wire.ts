/**
 * What the master that is replaced and its successor tell each other: a bequest in the environment, then messages over
 * the IPC channel. Both may be of different versions, so each reads only what it can check. No I/O here.
 *
 *     old                                 new
 *      | -- environment: Bequest ---------> |
 *      | <----------------- hello, failed - |   speaks our protocol; its configuration is right
 *      | -- begin ------------------------> |   with what is nobody else's to see: an environment can be read, a channel not
 *      | <----------------- ready, failed - |   its generation serves, beside ours
 *      | -- take-over --------------------> |   it takes control socket, pid file, paths of unix sockets, metrics
 *      | <------------- took-over, failed - |   the point of no return
 *      | -- main -------------------------> |   systemd has been told: watchdog and status are its own
 *      | -- drained (each generation) ----> |
 *      | <--------- stop, or stop --------> |   whoever is asked to stop takes the other one along
 *      | (the channel closes: it has left)  |
 *
 * Until the old one has heard took-over either may end the attempt: `leave`, `failed`, or the channel closing. A stop that
 * comes before (the control socket is the new one's already) is the old one's, too.
 */
import * as v from 'valibot'

import type { Address } from '../../address.ts'
import type { KnownListener } from '../../protocol.ts'
import type { GenerationId, Heritage } from '../../rollout/state.ts'
import type { Version } from '../workers/generation.ts'

/** Raised when a message changes its meaning. A successor that says another one is ended. */
export const UPGRADE_VERSION = 2

/** Private: the successor takes it out of its environment before anything else reads that. */
export const UPGRADE_ENV = 'USR2_UPGRADE'

/** A descriptor: its number in the master that has it, in the bequest its number in the successor. */
interface Descriptor {
  readonly fd: number
}

export interface BequeathedListener extends Descriptor {
  /** As it was asked for, from which its key follows. */
  readonly address: Address
  readonly known: KnownListener
}

/**
 * A socket that the service manager passed to the first master of the line. It may be lent to apps under several keys, and
 * has one descriptor: what was lent the successor lends anew when its workers ask.
 */
export interface BequeathedActivated extends Descriptor {
  readonly name: string
  readonly address: Address
}

export interface Bequest {
  readonly protocol: number
  /** Of the master that is to be replaced. */
  readonly pid: number
  readonly name: string
  readonly control: string
  /** What the masters of this line have bound. */
  readonly listeners: readonly BequeathedListener[]
  readonly activated: readonly BequeathedActivated[]
  /** By which the service manager is told things (inherited.ts). */
  readonly notifyFd: number | null
  readonly heritage: Heritage
  /** The longest that its drain may take. */
  readonly stopBudgetMs: number
}

export type StopHow = 'graceful' | 'now'

/** A version of the app that can be booted again. Its environment may hold secrets. */
export interface BequeathedVersion extends Version {
  /** As which it served. */
  readonly id: GenerationId
}

/** With which workers seal TLS session tickets (ticket-keys.ts). */
export interface BequeathedKeys {
  /** Until the next rotation, which no upgrade puts off. */
  readonly rotateInMs: number
  readonly entries: readonly {
    /** Of the listener. */
    readonly key: string
    readonly fingerprint: string
    readonly keys: string
  }[]
}

export type FromSuccessor =
  | {
      readonly t: 'hello'
      readonly protocol: number
      readonly usr2: string
      readonly node: string
      readonly pid: number
      readonly startTimeoutMs: number
    }
  /** Whole sentences. It ends by itself. */
  | { readonly t: 'failed'; readonly reasons: readonly string[] }
  | { readonly t: 'ready'; readonly generation: number }
  | { readonly t: 'took-over' }
  | { readonly t: 'stop'; readonly how: StopHow }

export type ToSuccessor =
  /** Our hello is accepted: boot the generation. */
  | {
      readonly t: 'begin'
      readonly ticketKeys: BequeathedKeys | null
      readonly versions: readonly BequeathedVersion[]
    }
  /** End yourself and your workers, and give back what you took: the other one goes on. */
  | { readonly t: 'leave'; readonly reason: string }
  /** `directories`: made for the control socket, so to be removed with it. */
  | { readonly t: 'take-over'; readonly directories: readonly string[] }
  | { readonly t: 'main' }
  | { readonly t: 'drained'; readonly generation: number; readonly text: string }
  | { readonly t: 'stop'; readonly how: StopHow }

const text = v.string()
const count = v.pipe(v.number(), v.finite())
const flag = v.exactOptional(v.boolean())
const how = v.picklist(['graceful', 'now'])

const address: v.GenericSchema<unknown, Address> = v.variant('kind', [
  v.object({ kind: v.literal('tcp'), host: text, port: count, ipv6Only: flag, anyFamily: flag }),
  v.object({
    ...{ kind: v.literal('unix'), path: text, readableAll: flag, writableAll: flag },
    umask: v.exactOptional(count),
  }),
  v.object({
    ...{ kind: v.literal('udp'), host: text, port: count, ipv6Only: flag },
    ...{ reuseAddr: flag, reusePort: flag },
  }),
])

const bound = v.object({ address: text, family: text, port: count })

const bequest: v.GenericSchema<unknown, Bequest> = v.object({
  ...{ protocol: v.literal(UPGRADE_VERSION), pid: count, name: text, control: text, stopBudgetMs: count },
  listeners: v.array(
    v.object({ fd: count, address, known: v.object({ key: text, bound: v.nullable(bound) }) }),
  ),
  activated: v.array(v.object({ fd: count, name: text, address })),
  notifyFd: v.nullable(count),
  heritage: v.object({
    ...{ nextGeneration: count, nextReload: count, wants: v.array(v.array(text)) },
    scale: v.nullable(v.object({ slots: count, configured: count })),
    history: v.array(v.object({ id: count, listened: v.array(text) })),
  }),
})

const fromSuccessor: v.GenericSchema<unknown, FromSuccessor> = v.variant('t', [
  v.object({
    ...{ t: v.literal('hello'), protocol: count, usr2: text, node: text, pid: count },
    startTimeoutMs: count,
  }),
  v.object({ t: v.literal('failed'), reasons: v.array(text) }),
  v.object({ t: v.literal('ready'), generation: count }),
  v.object({ t: v.literal('took-over') }),
  v.object({ t: v.literal('stop'), how }),
])

const version: v.GenericSchema<unknown, BequeathedVersion> = v.object({
  ...{ id: count, entry: text, cwd: text, pwd: text, node: text, nodeVersion: text, version: text },
  ...{ nodeArgs: v.array(text), args: v.array(text), env: v.record(text, text), nodeOptionsOf: text },
  fingerprint: text,
})

const ticketKeys = v.object({
  rotateInMs: count,
  // 48 bytes in base64.
  entries: v.array(v.object({ key: text, fingerprint: text, keys: v.pipe(text, v.length(64)) })),
})

const toSuccessor: v.GenericSchema<unknown, ToSuccessor> = v.variant('t', [
  v.object({ t: v.literal('begin'), ticketKeys: v.nullable(ticketKeys), versions: v.array(version) }),
  v.object({ t: v.literal('leave'), reason: text }),
  v.object({ t: v.literal('take-over'), directories: v.array(text) }),
  v.object({ t: v.literal('main') }),
  v.object({ t: v.literal('drained'), generation: count, text }),
  v.object({ t: v.literal('stop'), how }),
])

/**
 * For its environment. A variable takes at most 128 KiB (execve(2)), and the bequest of 600 unix sockets in 2 workers is 160 KB:
 * what is too much for {@link UPGRADE_ENV} follows in variables with a number.
 */
export function bequestEnv(bequest: Bequest): Record<string, string> {
  // Characters of one byte each, so that none is cut in two.
  const json = JSON.stringify(bequest).replace(
    /[^\x00-\x7f]/g,
    (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`,
  )
  const parts = Array.from({ length: Math.ceil(json.length / MAX_PART) }, (_, i) =>
    json.slice(i * MAX_PART, (i + 1) * MAX_PART),
  )
  return Object.fromEntries(parts.map((part, i) => [partName(i), part]))
}

/** Takes it out of an environment. Undefined: there is none. */
export function takeBequest(env: NodeJS.ProcessEnv): string | undefined {
  const parts: string[] = []
  for (let part = env[UPGRADE_ENV]; part !== undefined; part = env[partName(parts.length)]) {
    delete env[partName(parts.length)]
    parts.push(part)
  }
  return parts.length === 0 ? undefined : parts.join('')
}

const MAX_PART = 100_000
const partName = (i: number): string => (i === 0 ? UPGRADE_ENV : `${UPGRADE_ENV}_${i}`)

/** @returns null when a master of another version, or nobody of ours, wrote it */
export function parseBequest(json: string): Bequest | null {
  try {
    return parsed(bequest, JSON.parse(json))
  } catch {
    return null
  }
}

/** @returns null for a message that this version does not know */
export const parseFromSuccessor = (message: unknown): FromSuccessor | null => parsed(fromSuccessor, message)
/** @returns null for a message that this version does not know */
export const parseToSuccessor = (message: unknown): ToSuccessor | null => parsed(toSuccessor, message)

function parsed<T>(schema: v.GenericSchema<unknown, T>, value: unknown): T | null {
  const result = v.safeParse(schema, value)
  return result.success ? result.output : null
}
