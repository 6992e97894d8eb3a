/** What the app sees of usr2, by src/index.ts, and what it wants to be told. */
import { AsyncResource } from 'node:async_hooks'
import { abortController } from './leadership.ts'
import type { Leadership, WhileLeader } from './leadership.ts'
import type { OnProbe } from './probe.ts'
import type { Closer } from './shutdown.ts'

/**
 * The object under `Symbol.for('usr2.guest.v1')`. The app's copy of `usr2` may be older or newer than the master's:
 * what is here stays as it is, and is only added to.
 */
export interface Guest {
  readonly generation: number
  readonly slot: number
  readonly drainSignal: AbortSignal
  ready(): void
  onDrain(listener: (timeoutMs: number) => unknown): void
  onResume(listener: () => unknown): void
  onShutdown(name: string, close: () => unknown, options?: { readonly timeoutMs?: number }): void
  whileLeader(run: WhileLeader): Promise<void>
  onProbe(answer: OnProbe): void
}

export interface AppFaceParts {
  readonly generation: number
  readonly slot: number
  readonly leadership: Leadership
  ready(): void
  warn(text: string): void
}

export interface AppFace {
  readonly guest: Guest
  readonly closers: readonly Closer[]
  /** What answers a `message` probe. */
  readonly probes: readonly OnProbe[]
  /** The drain begins, and takes at most so long. */
  drains(timeoutMs: number): void
  /** A listener was taken away, while the worker stays. */
  withdrawn(): void
  /** A listener was granted. */
  granted(): void
}

export function faceApp({ generation, slot, leadership, ready, warn }: AppFaceParts): AppFace {
  const drainListeners: ((timeoutMs: number) => unknown)[] = []
  const resumeListeners: (() => unknown)[] = []
  const closers: Closer[] = []
  const probes: OnProbe[] = []
  let drainsBy: number | null = null
  let isWithdrawn = false
  /** Made when the app asks for it: most never do. */
  let drain: AbortController | undefined

  const tell = (what: string, call: () => unknown): void => callSafely(call, what, warn)

  return {
    closers,
    probes,
    drains(timeoutMs) {
      drainsBy = performance.now() + timeoutMs
      // First: a leader that is told to stop can tell by it whether its worker leaves.
      drain?.abort()
      leadership.leave(timeoutMs)
      for (const listener of drainListeners) tell('onDrain', () => listener(timeoutMs))
    },
    withdrawn() {
      isWithdrawn = true
    },
    granted() {
      if (!isWithdrawn) return
      // Once, with the first of its listeners: the others follow in the same breath.
      isWithdrawn = false
      for (const listener of resumeListeners) tell('onResume', listener)
    },
    guest: {
      generation,
      slot,
      ready,
      get drainSignal() {
        drain ??= abortController()
        if (drainsBy !== null) drain.abort()
        return drain.signal
      },
      onDrain(listener) {
        const bound = AsyncResource.bind(listener)
        drainListeners.push(bound)
        if (drainsBy === null) return
        // A module that is loaded by a late request has a right to know, too.
        const leftMs = Math.max(0, drainsBy - performance.now())
        queueMicrotask(() => tell('onDrain', () => bound(leftMs)))
      },
      onResume: (listener) => void resumeListeners.push(AsyncResource.bind(listener)),
      onShutdown: (name, close, { timeoutMs } = {}) =>
        void closers.push({ name, close: AsyncResource.bind(close), timeoutMs }),
      whileLeader: (run) => leadership.whileLeader(run),
      onProbe: (answer) => void probes.push(AsyncResource.bind(answer)),
    },
  }
}

function callSafely(call: () => unknown, what: string, warn: (text: string) => void): void {
  const complain = (error: unknown): void =>
    warn(`${what} of the app failed: ${error instanceof Error ? error.message : String(error)}`)
  try {
    const result = call()
    if (result instanceof Promise) result.catch(complain)
  } catch (error) {
    complain(error)
  }
}
