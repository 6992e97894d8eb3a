/** Last part of a step: compares what is with what should be. The only producer of spawn, open and release. */
import { Draft, policyOf } from './draft.ts'
import { reconcileLeadership } from './leadership.ts'
import { LEAVING_GRACE_MS, leave, leaveIfSpare } from './leaving.ts'
import { reconcileProbes } from './probing.ts'
import { comesBack, currentOf, fills, isSpare, roleOf, workersOf } from './questions.ts'
import { reconcileTired } from './replacing.ts'
import { reconcileRotation } from './rotation.ts'
import type { Generation, GenerationId, ListenerKey, SlotIndex, Worker } from './state.ts'

export function reconcile(draft: Draft): void {
  for (const generation of [...draft.generations.values()]) {
    switch (roleOf(draft.top, generation.id)) {
      case 'current':
      case 'candidate':
        for (const index of generation.slots.keys()) {
          followRollout(draft, generation, index)
          reconcileSlot(draft, generation.id, index)
        }
        // One that could not be spared when its slot went has no place either when there is such a slot again.
        for (const worker of workersOf(draft.workers, generation.id))
          if (!hasPlace(draft, worker)) leaveIfSpare(draft, worker, 'scaled-down')
        break
      case 'parked':
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
  reconcileTired(draft)
  reconcileProbes(draft)
  reconcileRotation(draft)
  limitDraining(draft)
  reconcileLeadership(draft)
  releaseDropped(draft)
}

function hasPlace(draft: Draft, { id, generation, slot }: Worker): boolean {
  const state = draft.generation(generation)?.slots[slot]?.state
  return state !== undefined && 'by' in state && (state.by === id || ('with' in state && state.with === id))
}

function endGeneration(draft: Draft, id: GenerationId): void {
  draft.removeGeneration(id)
  draft.order({ c: 'announce', what: { a: 'generation-ended', generation: id } })
  if (!draft.history.includes(id)) draft.order({ c: 'unpin', generation: id })
}

/**
 * A slot of the candidate is filled when the rollout has come to it. One of the current generation is emptied when its
 * worker is to leave for good before the promotion, and filled again when there is no rollout any more.
 */
function followRollout(draft: Draft, { id }: Generation, index: SlotIndex): void {
  const { top } = draft
  const slot = draft.generation(id)?.slots[index]
  if (!slot) return
  const rollout = top.k === 'rolling-out' ? top.rollout : null
  const isCurrent = roleOf(top, id) === 'current'
  const candidate = draft.generation(rollout && 'candidate' in rollout.doing ? rollout.doing.candidate : -1)
  const isOut =
    isCurrent && rollout !== null && index < rollout.out && candidate?.policy.replaced === 'drained'
  // A slot whose worker has died in the park is filled once its generation is current: nobody waits for a boot on the way
  // back, and none can fail it.
  const isWanted = isCurrent ? !isOut : rollout !== null && index < rollout.raised && !comesBack(top, id)
  if (slot.state.k === 'empty') {
    if (isWanted) draft.setSlot(id, index, { state: { k: 'vacant', retry: draft.in(0), stillborn: 0 } })
  } else if (isOut) {
    const worker = 'by' in slot.state ? draft.worker(slot.state.by) : undefined
    if (worker && !isSpare(draft, worker)) return
    if (worker) leave(draft, worker, 'replaced')
    if (slot.state.k === 'replacing') {
      const other = draft.worker(slot.state.with)
      if (other) leave(draft, other, 'replaced')
    }
    draft.setSlot(id, index, { state: { k: 'empty' } })
  }
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
      const { by } = slot.state
      return draft.setSlot(id, index, { state: { k: 'replacing', by, with: replacement, why: 'signal' } })
    }
    case 'clearing':
      if (draft.worker(slot.state.of) !== undefined) return
      return draft.setSlot(id, index, { state: { k: 'vacant', retry: draft.in(0), stillborn: 0 } })
    case 'replacing': {
      if (!fills(slot, draft.worker(slot.state.with))) return
      const old = draft.worker(slot.state.by)
      draft.setSlot(id, index, { state: { k: 'filled', by: slot.state.with } })
      if (old) leave(draft, old, slot.state.why)
      return
    }
    case 'filled':
    case 'empty':
      return
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
