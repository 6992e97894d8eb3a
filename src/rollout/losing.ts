/** What the loss of a worker means: a rollback, a vacancy, or the end of everything. */
import { Draft, policyOf } from './draft.ts'
import { leaving } from './leaving.ts'
import { holder, roleOf, serves } from './questions.ts'
import { backoffMs, countDeath, hopeless } from './restart.ts'
import { answer, endRollout, verdict } from './rollout.ts'
import type { ListenerKey, Worker } from './state.ts'

/** A worker that cannot be used any more is told to exit at once; its slot is treated as if it had died. */
export function fail(draft: Draft, worker: Worker, reason: string): void {
  const by = draft.in(policyOf(draft, worker).killTimeoutMs)
  draft.setWorker(leaving(worker, { k: 'dying', why: 'failed', by }))
  draft.order({ c: 'terminate', worker: worker.id })
  bereave(draft, worker, reason)
}

/** A worker that was up is lost. What that means depends on the role of its generation. */
export function bereave(draft: Draft, worker: Worker, reason: string): void {
  const { top } = draft
  switch (roleOf(top, worker.generation)) {
    case 'old':
      return
    case 'candidate':
      // Before promotion any death of the candidate is its end: the current generation never stopped answering.
      return endRollout(draft, 'rolled-back', [reason])
    case 'current':
      if (top.k === 'starting') return stop(draft, 1, [reason])
      return vacate(draft, worker, reason)
  }
}

function vacate(draft: Draft, worker: Worker, reason: string): void {
  const generation = draft.generation(worker.generation)
  const slot = generation?.slots[worker.slot]
  if (!generation || !slot) return
  if (slot.state.k === 'replacing') {
    // One of the two is left and keeps the slot. The old one got its signal long ago and serves on.
    const survivor = slot.state.by === worker.id ? slot.state.with : slot.state.by
    if (survivor === slot.state.by) {
      const what = { a: 'replacement-failed', generation: generation.id, slot: worker.slot, reason } as const
      draft.order({ c: 'announce', what })
    }
    return draft.setSlot(generation.id, worker.slot, { state: { k: 'filled', by: survivor } })
  }
  if (holder(slot) !== worker.id) return
  const readyForMs = worker.phase.k === 'ready' ? draft.at - worker.phase.since : null
  const deaths = countDeath(slot.deaths, readyForMs, generation.policy)
  const delayMs = backoffMs(deaths)
  draft.setSlot(generation.id, worker.slot, {
    deaths,
    state: { k: 'vacant', retry: draft.in(delayMs), stillborn: 0 },
  })
  const what = {
    a: 'vacancy',
    generation: generation.id,
    slot: worker.slot,
    deaths,
    delayMs,
    reason,
  } as const
  draft.order({ c: 'announce', what })
  const after = draft.generation(generation.id)
  const someServe = [...draft.workers.values()].some(serves)
  // While a rollout runs its candidate may be the cure.
  if (draft.top.k === 'steady' && after && !someServe && hopeless(after.slots, generation.policy)) {
    stop(draft, 1, [`every worker died more than ${generation.policy.maxRestarts} times in a row`, reason])
  }
}

export function stop(draft: Draft, status: 0 | 1, why: readonly string[]): void {
  const { top } = draft
  if (top.k === 'stopping' || top.k === 'ended') return
  const next = top.k === 'starting' || top.k === 'rolling-out' ? top.next : []
  const reasons = why.length > 0 ? why : ['the master was told to stop']
  if (top.k === 'rolling-out') {
    // What waits does not begin any more: it is answered below.
    draft.top = { ...top, next: [] }
    endRollout(draft, 'overtaken', reasons)
  }
  draft.top = { k: 'stopping', status, why }
  // Not only at the end: for as long as a slow drain lasts clients would connect, hang, and be reset in the end.
  draft.setDropping([...draft.dropping, ...allListeners(draft)])
  draft.order({ c: 'announce', what: { a: 'stopping', status, why } })
  const asks = next.map((waiting) => waiting.ask)
  answer(draft, asks, verdict(draft, 'overtaken', 'r0', null, reasons, 0))
}

function allListeners(draft: Draft): ListenerKey[] {
  const wanted = [...draft.generations.values()].flatMap(({ slots }) =>
    slots.flatMap(({ wants }) => [...(wants ?? [])]),
  )
  return [...wanted, ...[...draft.workers.values()].flatMap(({ claims }) => [...claims.keys()])]
}
