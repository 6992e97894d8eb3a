/**
 * The keys with which workers seal TLS session tickets: made here, so that they outlive workers and generations, and
 * held in memory alone. What they are shared between, and what not, is src/worker/tls-tickets.ts.
 */
import { createRequire } from 'node:module'
import type { ToWorker } from '../../protocol.ts'
import type { BequeathedKeys } from '../upgrade/upgrade-wire.ts'

/** A name, a key for HMAC and one for AES, 16 bytes each (Node's `ticketKeys`). */
const KEY_BYTES = 48

/**
 * Who steals a key can read every TLS 1.2 session whose ticket was sealed with it, though recorded long before: so it
 * must not live as long as the master (RFC 5077, 5.5). Node takes one key for each server, without a previous one
 * to open what it sealed, so each rotation costs each client that comes back one full handshake. Twelve hours, because
 * a ticket lives two (OpenSSL's default, as its lifetime hint says): one in six ends early, and no more.
 */
export const ROTATE_EVERY_MS = 12 * 60 * 60_000

/** A worker, as far as it is known here. */
export interface KeyTaker {
  send(message: Extract<ToWorker, { t: 'ticket-keys' }>): void
}

export interface TicketKeysParts {
  random(bytes: number): Buffer
  /** Milliseconds of a clock that runs evenly. */
  now(): number
  /** Calls once; gives what prevents it. */
  after(ms: number, call: () => void): () => void
}

interface Entry {
  keys: string
  readonly takers: Set<KeyTaker>
}

export class TicketKeys {
  /** By listener, then by fingerprint. */
  private readonly listeners = new Map<string, Map<string, Entry>>()
  private readonly parts: TicketKeysParts
  private rotation: { readonly at: number; readonly stop: () => void } | null = null

  constructor(parts: TicketKeysParts = { random: randomBytes, now: () => performance.now(), after }) {
    this.parts = parts
  }

  /** A worker listens there with a server of that fingerprint, and of no other any more. */
  asked(taker: KeyTaker, key: string, fingerprint: string): void {
    const entries = this.listeners.get(key) ?? new Map<string, Entry>()
    this.listeners.set(key, entries)
    for (const [other, { takers }] of entries) {
      // A certificate was renewed in the running app: the keys go with the last worker that still had the old one.
      if (other !== fingerprint && takers.delete(taker) && takers.size === 0) entries.delete(other)
    }
    const entry = entries.get(fingerprint) ?? { keys: this.make(), takers: new Set<KeyTaker>() }
    entries.set(fingerprint, entry)
    entry.takers.add(taker)
    taker.send({ t: 'ticket-keys', key, fingerprint, keys: entry.keys })
    if (this.rotation === null) this.rotateAfter(ROTATE_EVERY_MS)
  }

  /** What a master needs that replaces this one; null: there are none. */
  bequeath(): BequeathedKeys | null {
    if (this.rotation === null) return null
    const entries = [...this.listeners].flatMap(([key, entries]) =>
      [...entries].map(([fingerprint, { keys }]) => ({ key, fingerprint, keys })),
    )
    return { rotateInMs: Math.max(0, this.rotation.at - this.parts.now()), entries }
  }

  /** Before any worker asks. Who asks for none of them until the next rotation gets new ones. */
  inherit({ rotateInMs, entries }: BequeathedKeys): void {
    for (const { key, fingerprint, keys } of entries) {
      const known = this.listeners.get(key) ?? new Map<string, Entry>()
      this.listeners.set(key, known.set(fingerprint, { keys, takers: new Set() }))
    }
    this.rotateAfter(Math.min(rotateInMs, ROTATE_EVERY_MS))
  }

  private rotateAfter(ms: number): void {
    const rotate = (): void => {
      this.rotate()
      this.rotateAfter(ROTATE_EVERY_MS)
    }
    this.rotation = { at: this.parts.now() + ms, stop: this.parts.after(ms, rotate) }
  }

  /** It has ended. Its keys wait for its successor, at most until the next rotation. */
  forgetTaker(taker: KeyTaker): void {
    for (const entries of this.listeners.values()) {
      for (const { takers } of entries.values()) takers.delete(taker)
    }
  }

  /** It was released. */
  forgetListener(key: string): void {
    this.listeners.delete(key)
    if (this.listeners.size === 0) this.close()
  }

  close(): void {
    this.listeners.clear()
    this.rotation?.stop()
    this.rotation = null
  }

  private rotate(): void {
    for (const [key, entries] of this.listeners) {
      for (const [fingerprint, entry] of entries) {
        if (entry.takers.size === 0) {
          entries.delete(fingerprint)
          continue
        }
        entry.keys = this.make()
        for (const taker of entry.takers) taker.send({ t: 'ticket-keys', key, fingerprint, keys: entry.keys })
      }
    }
  }

  private make(): string {
    return this.parts.random(KEY_BYTES).toString('base64')
  }
}

/** Loaded when the first key is made: it costs a master 12 ms, and 0.6 MB on Node 20 to 1.8 MB on 26. */
function randomBytes(bytes: number): Buffer {
  const crypto = createRequire(import.meta.url)('node:crypto') as typeof import('node:crypto')
  return crypto.randomBytes(bytes)
}

function after(ms: number, call: () => void): () => void {
  const timer = setTimeout(call, ms).unref()
  return () => clearTimeout(timer)
}
