/**
 * The worker's end of the wire: messages to and from the master, invisible to the app.
 *
 * What is taken from `process` is taken at load, before the app can change it. The channel is unreferenced, so
 * that it does not keep an app alive that would otherwise exit, except while something waits for the master.
 */
import { CMD, toWorker } from '../protocol.ts'
import type { FromWorker, ToWorker } from '../protocol.ts'

export interface Link {
  send(message: FromWorker): void
  onMessage(listener: (message: ToWorker) => void): void
  onLost(listener: () => void): void
  /** Keeps the process alive until the release that it gives is called. */
  hold(): () => void
  readonly connected: boolean
}

export function connectLink(): Link {
  const { channel } = process
  const send = process.send?.bind(process)
  if (!channel || !send) throw new Error('usr2: the guest was loaded without an IPC channel to its master')
  channel.unref()
  let holds = 0
  const lost: (() => void)[] = []
  const listeners: ((message: ToWorker) => void)[] = []

  const onInternalMessage = (raw: unknown): void => {
    const message = toWorker(raw)
    if (message) for (const listener of listeners) listener(message)
  }
  // Not in @types/node: Node's own door for messages whose cmd begins with NODE_.
  const events = process as NodeJS.EventEmitter
  events.on('internalMessage', onInternalMessage)

  // An app may clear every listener of `process`. Node's own handling of passed handles is one of them.
  const removeAllListeners = process.removeAllListeners
  process.removeAllListeners = function (this: NodeJS.Process, ...args: [event?: string | symbol]) {
    const isOurs = args[0] === undefined || args[0] === 'internalMessage'
    const kept = isOurs ? events.rawListeners('internalMessage') : []
    removeAllListeners.apply(this, args)
    for (const listener of kept) events.on('internalMessage', listener as (message: unknown) => void)
    return this
  } as typeof process.removeAllListeners

  // In bare Node an app has no channel to cut; here it would look like the master's death.
  // Node itself calls it, too, when the master's end is closed, and clears `process.channel` right after
  // (lib/internal/child_process.js, `channel.onread`): only then it means what it says.
  process.disconnect = () => {
    process.nextTick(() => {
      if (process.channel || !process.connected) return
      process.connected = false
      process.emit('disconnect')
    })
  }

  return {
    send(message) {
      // A failed send means that the master is gone, which 'disconnect' tells; an error event would hit the app.
      if (process.connected) send({ cmd: CMD, ...message }, undefined, undefined, () => {})
    },
    onMessage: (listener) => void listeners.push(listener),
    onLost: (listener) => {
      if (lost.push(listener) === 1) hideDisconnect(() => lost.forEach((call) => call()))
    },
    hold() {
      if (++holds === 1) process.channel?.ref()
      let held = true
      return () => {
        if (!held) return
        held = false
        if (--holds === 0) process.channel?.unref()
      }
    },
    get connected() {
      return process.connected
    },
  }
}

/** The master's death is ours to handle first: many apps exit at once on 'disconnect' and would cut requests. */
function hideDisconnect(onLost: () => void): void {
  const emit = process.emit as (...args: unknown[]) => boolean
  process.emit = function (this: NodeJS.Process, ...args: unknown[]): boolean {
    if (args[0] !== 'disconnect') return emit.apply(this, args)
    onLost()
    return true
  } as typeof process.emit
}
