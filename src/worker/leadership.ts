/**
 * `whileLeader` in this worker: asks the master to lead, runs the app's functions while it does, and says when all
 * have returned. The master lets nobody else lead before that (src/rollout/leadership.ts), so "returned" is said only
 * when it is true: also a function that ignores its signal is waited for.
 */
import { AsyncResource } from 'node:async_hooks'
import { setMaxListeners } from 'node:events'
import type { Link } from './link.ts'

export type WhileLeader = (signal: AbortSignal) => unknown

/** One call of `whileLeader`, until its promise is settled. */
interface Candidacy {
  readonly run: WhileLeader
  /** The app's async context of that call. */
  readonly context: AsyncResource
  readonly resolve: () => void
  readonly reject: (error: unknown) => void
}

export interface Leadership {
  whileLeader(run: WhileLeader): Promise<void>
  /** The master's order. */
  lead(): void
  /** The master's order. */
  stepDown(): void
  /** This worker drains: whoever waits to lead waits no more, and what runs has so long to return. */
  leave(timeoutMs: number): void
  /** Calls `then` when every function has returned, at once when none runs, and at the latest when that time is over. */
  whenReturned(then: () => void): void
  /** That time is over now. */
  cut(): void
}

export function prepareLeadership(link: Link, warn: (text: string) => void): Leadership {
  let standing: 'none' | 'asked' | 'leads' | 'steps-down' = 'none'
  const waiting = new Set<Candidacy>()
  const running = new Map<Candidacy, AbortController>()
  let leaving: { readonly timeoutMs: number; readonly by: number } | null = null
  let onReturned: (() => void) | null = null
  let deadline: NodeJS.Timeout | undefined

  const ask = (): void => {
    standing = 'asked'
    link.send({ t: 'leadership-asked' })
  }

  const start = (candidacy: Candidacy): void => {
    waiting.delete(candidacy)
    const controller = abortController()
    running.set(candidacy, controller)
    const { signal } = controller
    void candidacy.context.runInAsyncScope(async () => {
      let isDone = true
      try {
        await returnOf(candidacy.run, signal)
        // Told to step down, and not because this worker leaves: it waits for its next term.
        isDone = !signal.aborted || leaving !== null
        if (isDone) candidacy.resolve()
      } catch (error) {
        candidacy.reject(error)
      }
      running.delete(candidacy)
      if (!isDone) waiting.add(candidacy)
      if (running.size === 0) endTerm()
    })
  }

  const endTerm = (): void => {
    standing = 'none'
    link.send({ t: 'leadership-ended' })
    if (waiting.size > 0) ask()
    returned()
  }

  const stepDown = (): void => {
    if (standing !== 'leads') return
    standing = 'steps-down'
    for (const [{ context }, controller] of running) context.runInAsyncScope(() => controller.abort())
  }

  const returned = (): void => {
    clearTimeout(deadline)
    const then = onReturned
    onReturned = null
    then?.()
  }

  const cut = (): void => {
    if (onReturned === null || leaving === null) return
    const time = `${leaving.timeoutMs / 1000} s`
    warn(
      `a function of whileLeader has not returned within the ${time} of the drain; it ends with the process`,
    )
    returned()
  }

  return {
    whileLeader(run) {
      if (leaving) return Promise.resolve()
      // Nothing else may keep the process alive while it waits for the master's order, or a function for its signal.
      const release = link.hold()
      const done = new Promise<void>((resolve, reject) => {
        const candidacy = { run, context: new AsyncResource('usr2.whileLeader'), resolve, reject }
        waiting.add(candidacy)
        if (standing === 'leads') start(candidacy)
        else if (standing === 'none') ask()
      })
      return done.finally(release)
    },
    lead() {
      if (standing !== 'asked') return
      standing = 'leads'
      if (waiting.size === 0) return endTerm()
      for (const candidacy of [...waiting]) start(candidacy)
    },
    stepDown,
    leave(timeoutMs) {
      leaving = { timeoutMs, by: performance.now() + timeoutMs }
      for (const { resolve } of waiting) resolve()
      waiting.clear()
      stepDown()
    },
    whenReturned(then) {
      if (running.size === 0) return then()
      onReturned = then
      // Keeps the process alive, too.
      deadline = setTimeout(cut, Math.max(0, (leaving?.by ?? 0) - performance.now()))
    },
    cut,
  }
}

/** Node 20 takes eleven waits on one signal for a leak, and warns. */
export function abortController(): AbortController {
  const controller = new AbortController()
  setMaxListeners(0, controller.signal)
  return controller
}

/** `await sleep(1000, null, { signal })` throws when the signal fires: that is how a function returns, no failure. */
async function returnOf(run: WhileLeader, signal: AbortSignal): Promise<void> {
  try {
    await run(signal)
  } catch (error) {
    const isAbort = error === signal.reason || (error instanceof Error && error.name === 'AbortError')
    if (!signal.aborted || !isAbort) throw error
  }
}
