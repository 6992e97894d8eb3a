/** How a worker is told to go: once, and never the last one that accepts. */
import { Draft, policyOf } from './draft.ts'
import { isSpare } from './questions.ts'
import type { Leave, Worker, WorkerPhase } from './state.ts'

/**
 * A signal to one worker is part of a stop when the stop begins within this time. While a rollout runs, whose candidate
 * is the replacement, it is looked at again as often.
 */
export const LEAVING_GRACE_MS = 1_000

export function leaveIfSpare(draft: Draft, worker: Worker, why: Leave): void {
  if (isSpare(draft, worker)) return leave(draft, worker, why)
  // It accepts, and had lost its readiness as a candidate: nothing more is expected of it.
  if (worker.phase.k === 'booting')
    draft.setWorker({ ...worker, phase: { k: 'ready', since: draft.at, ages: null } })
}

/**
 * Tells a worker to drain and go, once. One that never accepted and does not lead has nothing to finish: only its
 * shutdown is left.
 */
export function leave(draft: Draft, worker: Worker, why: Leave): void {
  if (worker.phase.k !== 'booting' && worker.phase.k !== 'ready') return
  const { drainTimeoutMs, shutdownTimeoutMs } = policyOf(draft, worker)
  const phase: WorkerPhase =
    worker.wasOpened || worker.listensPrivately || worker.leadership === 'leads'
      ? { k: 'draining', why, by: draft.in(drainTimeoutMs) }
      : { k: 'terminating', why, by: draft.in(shutdownTimeoutMs) }
  draft.setWorker(leaving(worker, phase))
  draft.order({ c: 'drain', worker: worker.id })
}

/**
 * It accepts no more, and has its copies until it says otherwise or ends. No grant of it stays `opening`: nothing
 * would act on that timer any more, and a deadline in the past makes the shell wake for ever.
 */
export function leaving(worker: Worker, phase: WorkerPhase): Worker {
  return {
    ...worker,
    phase,
    tired: null,
    claims: new Map([...worker.claims.keys()].map((key) => [key, { k: 'held' }])),
  }
}
