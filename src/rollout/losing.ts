/** What the loss of a worker means: a rollback, a vacancy, or the end of everything. */
import { Draft, policyOf } from './draft.ts'
import { leaving } from './leaving.ts'
import { comesBack, holder, roleOf, serves, workersOf } from './questions.ts'
import { backoffMs, countDeath, hopeless } from './restart.ts'
import { TRY_AGAIN_MS } from './replacing.ts'
import { answer, endRollout, forget, unpark, verdict } from './rollout.ts'
import type { AskId, ListenerKey, Worker, WorkerId } from './state.ts'

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
    case 'parked':
      return loseParked(draft, worker)
    case 'candidate':
      // Back from the park the others are enough: the bad version is to go now.
      if (comesBack(top, worker.generation) && isLeft(draft, worker)) return vacateParked(draft, worker)
      // Before promotion any death of the candidate is its end: the current generation never stopped answering.
      return endRollout(draft, 'rolled-back', [reason])
    case 'current':
      if (top.k === 'starting') return stop(draft, 1, [reason])
      return vacate(draft, worker, reason)
  }
}

/** Nobody refills it before its generation is current again. */
function vacateParked(draft: Draft, { generation, slot }: Worker): void {
  draft.setSlot(generation, slot, { state: { k: 'empty' } })
}

/** Whether somebody is ready of a generation that has lost this worker. */
const isLeft = (draft: Draft, { id, generation }: Worker): boolean =>
  workersOf(draft.workers, generation).some((other) => other.id !== id && other.phase.k === 'ready')

function loseParked(draft: Draft, worker: Worker): void {
  vacateParked(draft, worker)
  const { top } = draft
  if ((top.k !== 'steady' && top.k !== 'rolling-out') || isLeft(draft, worker)) return
  const what = { a: 'unparked', generation: worker.generation, why: 'its last worker has ended' } as const
  draft.order({ c: 'announce', what })
  draft.top = { ...top, parked: null }
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
      rest(draft, survivor)
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
  goBackToParked(draft, reason)
  const after = draft.generation(generation.id)
  const someServe = [...draft.workers.values()].some(serves)
  // While a rollout runs its candidate may be the cure.
  if (draft.top.k === 'steady' && after && !someServe && hopeless(after.slots, generation.policy)) {
    stop(draft, 1, [`every worker died more than ${generation.policy.maxRestarts} times in a row`, reason])
  }
}

/** Its replacement failed: not tried again at once. */
function rest(draft: Draft, id: WorkerId): void {
  const worker = draft.worker(id)
  if (!worker?.tired) return
  draft.setWorker({ ...worker, tired: { ...worker.tired, when: draft.in(TRY_AGAIN_MS) } })
}

/** The version that was promoted serves no one, and the one before it is still there. */
function goBackToParked(draft: Draft, reason: string): void {
  const { top } = draft
  if (top.k !== 'steady' || top.parked === null || [...draft.workers.values()].some(serves)) return
  const what = { a: 'unparked', generation: top.parked.generation, why: reason } as const
  draft.order({ c: 'announce', what })
  unpark(draft, top.current, [], top.parked.generation, reason)
}

export function stop(draft: Draft, status: 0 | 1, why: readonly string[]): void {
  const { top } = draft
  if (top.k === 'stopping' || top.k === 'ended') return
  const reasons = why.length > 0 ? why : ['the master was told to stop']
  const next = endForGood(draft, reasons)
  draft.top = { k: 'stopping', status, why }
  forget(draft, [])
  // Not only at the end: for as long as a slow drain lasts clients would connect, hang, and be reset in the end.
  draft.setDropping([...draft.dropping, ...allListeners(draft)])
  draft.order({ c: 'announce', what: { a: 'stopping', status, why } })
  answer(draft, next, verdict(draft, 'overtaken', 'r0', null, reasons, 0))
}

/** Ends the rollout that runs. Gives those who asked for the next one: it does not begin any more. */
export function endForGood(draft: Draft, reasons: readonly string[]): AskId[] {
  const { top } = draft
  if (top.k !== 'starting' && top.k !== 'rolling-out') return []
  draft.top = { ...top, next: [] }
  endRollout(draft, 'overtaken', reasons)
  return top.next.map(({ ask }) => ask)
}

function allListeners(draft: Draft): ListenerKey[] {
  const wanted = [...draft.generations.values()].flatMap(({ slots }) =>
    slots.flatMap(({ wants }) => [...(wants ?? [])]),
  )
  return [...wanted, ...[...draft.workers.values()].flatMap(({ claims }) => [...claims.keys()])]
}
