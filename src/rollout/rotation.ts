/**
 * Who accepts: grants and withdrawals, so that each ready worker accepts where and as long as it is to.
 *
 * A worker accepts when its place in the rollout says so (`inRotation`) and its readiness probe does not fail. Against
 * both stands one rule: the last that accepts on a listener is not taken away, and where nobody accepts any more a worker
 * that is not ready is better than none, and so is one of the current generation that has made room: a candidate that
 * has taken everything over may close a port an hour before its hold ends.
 */
import type { Draft } from './draft.ts'
import { policyOf } from './draft.ts'
import { inRotation, isUnready, othersAccept, roleOf } from './questions.ts'
import type { ListenerKey, Worker } from './state.ts'

export function reconcileRotation(draft: Draft): void {
  for (const { id } of [...draft.workers.values()]) {
    for (const key of draft.worker(id)?.claims.keys() ?? []) {
      const worker = draft.worker(id)
      if (worker?.phase.k === 'ready' && roleOf(draft.top, worker.generation) !== 'old')
        reconcileGrant(draft, worker, key)
    }
  }
}

function reconcileGrant(draft: Draft, worker: Worker, key: ListenerKey): void {
  const grant = worker.claims.get(key)
  const { grantTimeoutMs, startTimeoutMs } = policyOf(draft, worker)
  if (grant?.k === 'held' && mayAccept(draft, worker, key)) {
    // An app may be at its start still: one that compiles its templates for 13 s as soon as it listens.
    const ofStartMs = worker.phase.k === 'ready' ? worker.phase.since + startTimeoutMs - draft.at : 0
    const withinMs = Math.max(grantTimeoutMs, ofStartMs)
    draft.setClaim({ ...worker, wasOpened: true }, key, { k: 'opening', by: draft.in(withinMs), withinMs })
    draft.order({ c: 'open', worker: worker.id, key, withinMs })
  } else if (grant?.k === 'open' && mustStop(draft, worker, key)) {
    const by = draft.in(grantTimeoutMs)
    draft.setClaim(worker, key, { k: 'withdrawing', by, withinMs: grantTimeoutMs })
    draft.order({ c: 'withdraw', worker: worker.id, key })
  }
}

function mayAccept(draft: Draft, worker: Worker, key: ListenerKey): boolean {
  if (inRotation(draft.top, worker) && !isUnready(worker)) return true
  const isLastResort = inRotation(draft.top, worker) || roleOf(draft.top, worker.generation) === 'current'
  return isLastResort && !someoneWill(draft, worker, key)
}

/** Whether it is to accept no more there, and can be told so. */
export function mustStop(draft: Draft, worker: Worker, key: ListenerKey): boolean {
  const isTo = inRotation(draft.top, worker) && !isUnready(worker)
  return !isTo && othersAccept(draft, worker, key)
}

/** Somebody else accepts there, or has just been told to. */
function someoneWill(draft: Draft, worker: Worker, key: ListenerKey): boolean {
  return [...draft.workers.values()].some((other) => {
    const k = other.claims.get(key)?.k
    return other.id !== worker.id && (k === 'open' || k === 'opening') && inRotation(draft.top, other)
  })
}
