/**
 * Sockets on their way to one child.
 *
 * Rules, each from an observation of Node 20 to 26:
 * - One at a time. A channel carries one handle until the child's end acknowledges it, and Node queues everything else
 *   behind it. We queue here instead, so that a socket whose deadline passes meanwhile was never sent.
 * - None before the child has said READY (wire.ts): one that nobody takes would stay open there, unpolled, and swallow
 *   clients.
 * - Only the receiver's own acknowledgement counts. A child that is out of file descriptors drops a handle without any
 *   sign, and `send`'s callback says success.
 * - Callbacks may never come (49 of 50 did not when the child was killed), so `'disconnect'` ends the wait as well.
 * - A handle that is closed while Node or libuv still has to write it fails with EINVAL, or worse is read after its
 *   memory is gone: `letGo` tells the owner when it may be closed.
 * - `send` always gets a callback: without one, its errors become `'error'` events on the child.
 */
import type { ChildProcess, SendHandle } from 'node:child_process'
import type { EventEmitter } from 'node:events'
import { SendError } from './errors.ts'
import type { Sendable } from './native.ts'
import { HELLO, isAck, isReady, type Envelope } from './wire.ts'

export interface Letter {
  readonly envelope: Envelope
  readonly handle: Sendable
  /** For error texts: `the socket of 127.0.0.1:3000`. */
  readonly what: string
  /** Called once: with the reason, or without when the child has acknowledged. */
  settle(error?: SendError): void
  /** Called once: neither Node nor libuv will touch the handle for this letter again. */
  letGo(): void
}

/** How far a letter has come. */
export type Stage = 'before READY' | 'behind another' | 'sent'

interface UnderWay extends Letter {
  settled: boolean
  gone: boolean
}

const outboxes = new WeakMap<ChildProcess, Outbox>()

export function outboxOf(child: ChildProcess): Outbox {
  let outbox = outboxes.get(child)
  if (!outbox) outboxes.set(child, (outbox = new Outbox(child)))
  return outbox
}

export class Outbox {
  readonly #child: ChildProcess
  readonly #waiting: UnderWay[] = []
  #underWay: UnderWay | null = null
  #listening = false
  #ready = false

  constructor(child: ChildProcess) {
    this.#child = child
  }

  post(letter: Letter): void {
    this.#waiting.push({ ...letter, settled: false, gone: false })
    this.#next()
  }

  /** Gives up on a letter: `makeError` is told how far it came. */
  cancel(id: number, makeError: (stage: Stage) => SendError): void {
    const at = this.#waiting.findIndex((letter) => letter.envelope.id === id)
    const [letter] = at < 0 ? [] : this.#waiting.splice(at, 1)
    if (letter) {
      this.#finish(letter, makeError(this.#ready ? 'behind another' : 'before READY'))
      this.#next()
    } else if (this.#underWay?.envelope.id === id) {
      this.#settle(this.#underWay, makeError('sent'))
    }
  }

  #next(): void {
    if (!this.#child.connected) this.#rejectAll('disconnected')
    while (this.#ready && !this.#underWay) {
      const letter = this.#waiting.shift()
      if (!letter) break
      this.#send(letter)
    }
    this.#listen(this.#underWay !== null || this.#waiting.length > 0)
  }

  #send(letter: UnderWay): void {
    const child = this.#child
    this.#underWay = letter
    try {
      child.send(letter.envelope, letter.handle as unknown as SendHandle, (error) => {
        if (error) this.#fail(letter, error)
        this.#letGo(letter)
      })
    } catch (error) {
      // The message cannot be serialised (a cycle, a BigInt): nothing has been queued.
      this.#underWay = null
      this.#finish(letter, failed(letter, child, error))
    }
  }

  #fail(letter: UnderWay, error: Error): void {
    this.#settle(letter, failed(letter, this.#child, error))
  }

  #settle(letter: UnderWay, error?: SendError): void {
    if (letter.settled) return
    letter.settled = true
    letter.settle(error)
    this.#free(letter)
  }

  #letGo(letter: UnderWay): void {
    if (letter.gone) return
    letter.gone = true
    letter.letGo()
    this.#free(letter)
  }

  /** The channel is free for the next letter when this one is settled and no longer in Node's hands. */
  #free(letter: UnderWay): void {
    if (!letter.settled || !letter.gone || this.#underWay !== letter) return
    this.#underWay = null
    this.#next()
  }

  /** For a letter that was never handed to Node. */
  #finish(letter: UnderWay, error: SendError): void {
    letter.settled = letter.gone = true
    letter.settle(error)
    letter.letGo()
  }

  readonly #onMessage = (message: unknown): void => {
    if (isReady(message)) {
      this.#ready = true
      this.#next()
      return
    }
    const letter = this.#underWay
    // A late acknowledgement, after the deadline, finds its letter gone.
    if (!letter || !isAck(message) || message.ack !== letter.envelope.id) return
    const { refused } = message
    const text = `Child ${this.#child.pid} refused ${letter.what}: ${refused}`
    this.#settle(letter, refused === undefined ? undefined : new SendError('refused', false, text))
  }

  readonly #onExit = (): void => this.#rejectAll('exited')

  readonly #onDisconnect = (): void => {
    this.#rejectAll('disconnected')
    if (this.#underWay) this.#letGo(this.#underWay)
  }

  #rejectAll(code: 'exited' | 'disconnected'): void {
    for (const letter of this.#waiting.splice(0)) {
      this.#finish(
        letter,
        new SendError(code, false, `${capital(letter.what)} was not sent: ${why(this.#child)}.`),
      )
    }
    const letter = this.#underWay
    if (!letter) return
    const text = `${capital(letter.what)} was not acknowledged: ${why(this.#child)}.`
    this.#settle(letter, new SendError(code, code === 'disconnected', text))
  }

  /** Only while there are letters. None of these events keeps a process alive or swallows an error. */
  #listen(on: boolean): void {
    if (on === this.#listening) return
    this.#listening = on
    const child: EventEmitter = this.#child
    const act = (on ? child.on : child.off).bind(child)
    act('internalMessage', this.#onMessage)
    act('exit', this.#onExit)
    act('disconnect', this.#onDisconnect)
    // A child that began to listen before us said READY when nobody heard it.
    if (on && !this.#ready) this.#child.send({ cmd: HELLO }, () => {})
  }
}

function failed(letter: Letter, child: ChildProcess, cause: unknown): SendError {
  const reason = cause instanceof Error ? cause.message : String(cause)
  return new SendError('failed', false, `Cannot send ${letter.what} to child ${child.pid}: ${reason}`, {
    cause,
  })
}

function why(child: ChildProcess): string {
  if (child.pid === undefined) return 'the child was never started'
  if (child.signalCode) return `child ${child.pid} was killed by ${child.signalCode}`
  if (child.exitCode !== null) return `child ${child.pid} exited with status ${child.exitCode}`
  if (typeof child.send !== 'function')
    return `child ${child.pid} has no IPC channel (add 'ipc' to its stdio)`
  return `child ${child.pid} has closed its IPC channel`
}

function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1)
}
