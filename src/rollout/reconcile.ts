/** Last part of a step: compares what is with what should be. The only producer of spawn, open and release. */
import { LEAVING_GRACE_MS } from './absorb.ts'
import { Draft, policyOf } from './draft.ts'
import { reconcileLeadership } from './leadership.ts'
import { leave, leaveIfSpare } from './leaving.ts'
import { currentOf, fills, gateIsOpen, roleOf, workersOf } from './questions.ts'
import type { GenerationId, ListenerKey, SlotIndex, Worker } from './state.ts'

export function reconcile(draft: Draft): void {
  for (const generation of [...draft.generations.values()]) {
    switch (roleOf(draft.top, generation.id)) {
      case 'current':
      case 'candidate':
        for (const index of generation.slots.keys()) reconcileSlot(draft, generation.id, index)
        for (const worker of workersOf(draft.workers, generation.id)) openGate(draft, worker)
        break
      case 'old':
        // It has no slots any more, and so no timers of theirs.
        if (generation.slots.length > 0) draft.setGeneration({ ...generation, slots: [] })
        for (const worker of workersOf(draft.workers, generation.id)) {
          if (draft.top.k === 'stopping') leave(draft, worker, 'stop')
          else leaveIfSpare(draft, worker, 'replaced')
        }
        if (workersOf(draft.workers, generation.id).length === 0) endGeneration(draft, generation.id)
    }
  }
  limitDraining(draft)
  reconcileLeadership(draft)
  releaseDropped(draft)
}

function endGeneration(draft: Draft, id: GenerationId): void {
  draft.removeGeneration(id)
  draft.order({ c: 'announce', what: { a: 'generation-ended', generation: id } })
  draft.order({ c: 'unpin', generation: id })
}

function reconcileSlot(draft: Draft, id: GenerationId, index: SlotIndex): void {
  const generation = draft.generation(id)
  const slot = generation?.slots[index]
  if (!generation || !slot) return
  switch (slot.state.k) {
    case 'vacant':
      if (!draft.due(slot.state.retry)) return
      return draft.setSlot(id, index, {
        state: { k: 'filled', by: draft.spawn(generation, index, slot.state.stillborn) },
      })
    case 'leaving': {
      if (!draft.due(slot.state.when)) return
      if (draft.top.k !== 'steady') {
        // During a rollout the candidate is the replacement; should it be rolled back, this is tried again.
        const when = draft.in(LEAVING_GRACE_MS)
        return draft.setSlot(id, index, { state: { ...slot.state, when } })
      }
      // New first: the worker that was told to go serves until its replacement does.
      const replacement = draft.spawn(generation, index, 0)
      return draft.setSlot(id, index, { state: { k: 'replacing', by: slot.state.by, with: replacement } })
    }
    case 'replacing': {
      if (!fills(slot, draft.worker(slot.state.with))) return
      const old = draft.worker(slot.state.by)
      draft.setSlot(id, index, { state: { k: 'filled', by: slot.state.with } })
      if (old) leave(draft, old, 'signal')
      return
    }
    case 'filled':
      return
  }
}

function openGate(draft: Draft, worker: Worker): void {
  if (worker.phase.k !== 'ready' || !gateIsOpen(draft.top, worker.generation)) return
  for (const [key, grant] of worker.claims) {
    if (grant.k !== 'held') continue
    const latest = draft.worker(worker.id)
    if (!latest) return
    const by = draft.in(policyOf(draft, worker).grantTimeoutMs)
    draft.setClaim(latest, key, { k: 'opening', by })
    draft.order({ c: 'open', worker: worker.id, key })
  }
}

/** Each draining generation holds memory and sockets; clients that never leave must not pile them up. */
function limitDraining(draft: Draft): void {
  const current = draft.generation(currentOf(draft.top) ?? -1)
  if (!current) return
  const drains = (id: GenerationId): Worker[] =>
    workersOf(draft.workers, id).filter((worker) => worker.phase.k === 'draining')
  const draining = [...draft.generations.keys()].filter(
    (id) => roleOf(draft.top, id) === 'old' && drains(id).length > 0,
  )
  draining.sort((a, b) => a - b)
  for (const id of draining.slice(0, Math.max(0, draining.length - current.policy.maxDraining))) {
    draft.order({ c: 'announce', what: { a: 'crowded-out', generation: id } })
    for (const worker of drains(id)) {
      draft.order({ c: 'cut', worker: worker.id })
      const by = draft.in(policyOf(draft, worker).shutdownTimeoutMs)
      draft.setWorker({ ...worker, phase: { k: 'terminating', why: 'crowded-out', by } })
    }
  }
}

/**
 * A listener goes only when the current generation does not listen on it and no worker has a copy of it left: a
 * copy that nobody polls is a black hole in which clients connect and hang.
 */
function releaseDropped(draft: Draft): void {
  // A rollout may want it again.
  if (draft.dropping.size === 0 || draft.top.k === 'rolling-out') return
  const claimants = (key: ListenerKey): Worker[] =>
    [...draft.workers.values()].filter(({ claims }) => claims.has(key))
  const current = draft.generation(currentOf(draft.top) ?? -1)
  const wanted = (key: ListenerKey): boolean => current?.slots.some(({ wants }) => wants?.has(key)) ?? false
  const waiting: ListenerKey[] = []
  for (const key of draft.dropping) {
    if (wanted(key)) continue
    if (claimants(key).length > 0) waiting.push(key)
    else draft.order({ c: 'release', key })
  }
  if (waiting.length !== draft.dropping.size) draft.setDropping(waiting)
}
