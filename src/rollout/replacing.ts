/**
 * Replacement without a reload: a worker that is not alive any more, takes too much memory, or has done its time.
 *
 * New first, then the old one drains; one at a time. Where one has outgrown its memory and two do not fit, the old one
 * first, as far as `maxUnavailable` lets it: the kernel would kill for the second. A rollout replaces them all anyway, so
 * it is not disturbed, unless the worker is of no use (its liveness probe fails) or a danger (it takes half as much again
 * as it may): then it leaves, if others accept, and its slot is filled again. A candidate that needs replacing has failed.
 */
import type { Draft } from './draft.ts'
import { policyOf } from './draft.ts'
import { leave } from './leaving.ts'
import { fail } from './losing.ts'
import { spareOf } from './plan.ts'
import { isSpare, isUnready, roleOf, serves, workersOf } from './questions.ts'
import { endRollout } from './rollout.ts'
import type { Generation, Leave, Memory, Ms, SlotState, Tired, Worker, WorkerId } from './state.ts'

/** A replacement that failed is tried again after this. */
export const TRY_AGAIN_MS = 30_000
const URGENT_FACTOR = 1.5
/** Workers that began together are not replaced together: limits of age and requests are up to a tenth earlier. */
const SPREAD = 0.1

/** The same of the same worker, spread evenly over [0, 1) (Knuth, multiplicative hashing). */
const fraction = (id: WorkerId): number => ((id * 2_654_435_761) % 2 ** 32) / 2 ** 32

export const spread = (limit: number, id: WorkerId): number => Math.ceil(limit * (1 - SPREAD * fraction(id)))

export function weighed(
  draft: Draft,
  worker: Worker,
  rssBytes: number | null,
  requests: number,
  memory: Memory | null,
): void {
  const { replaceAt } = policyOf(draft, worker)
  const { memoryBytes } = replaceAt
  if (memoryBytes !== null && rssBytes !== null && rssBytes > memoryBytes) {
    const detail = `it takes ${mib(rssBytes)} of memory, more than the ${mib(memoryBytes)} it may (maxMemory)`
    tire(draft, worker, {
      why: 'memory',
      detail,
      urgent: rssBytes > memoryBytes * URGENT_FACTOR,
      when: 'now',
      memory,
    })
    const now = draft.worker(worker.id)
    if (now?.tired?.why === 'memory') draft.setWorker({ ...now, tired: { ...now.tired, memory } })
  } else if (replaceAt.requests !== null && requests >= spread(replaceAt.requests, worker.id)) {
    const detail = `it has answered ${requests} requests (maxRequests ${replaceAt.requests})`
    tire(draft, worker, { why: 'requests', detail, urgent: false, when: 'now', memory: null })
  }
}

const mib = (bytes: number): string => `${Math.round(bytes / 1024 / 1024)} MiB`

/** @param tired the first cause stays, but becomes urgent with a later one that is */
export function tire(draft: Draft, worker: Worker, tired: Tired): void {
  if (worker.phase.k !== 'ready') return
  const role = roleOf(draft.top, worker.generation)
  // It leaves as every worker does: what it has in flight may yet come to its end.
  if (role === 'candidate' && (tired.why === 'liveness' || tired.why === 'memory'))
    return endRollout(draft, 'rolled-back', [`slot ${worker.slot}: ${tired.detail}`])
  if (role === 'parked' && tired.urgent) return fail(draft, worker, `slot ${worker.slot}: ${tired.detail}`)
  if (role !== 'current' || (worker.tired !== null && (worker.tired.urgent || !tired.urgent))) return
  draft.setWorker({ ...worker, tired })
  draft.order({ c: 'announce', what: { a: 'tired', worker: worker.id, tired } })
}

export function expireTired(draft: Draft, worker: Worker): void {
  const { tired, phase } = worker
  if (tired !== null && tired.when !== 'now' && draft.due(tired.when)) {
    draft.setWorker({ ...worker, tired: { ...tired, when: 'now' } })
  } else if (phase.k === 'ready' && phase.ages !== null && draft.due(phase.ages)) {
    // A candidate is not replaced for its age, nor who is parked; both may be current later.
    const ages = roleOf(draft.top, worker.generation) === 'current' ? null : draft.in(TRY_AGAIN_MS)
    const rested: Worker = { ...worker, phase: { ...phase, ages } }
    draft.setWorker(rested)
    const detail = `it has served for ${hours(draft.at - phase.since)} (maxAge)`
    tire(draft, rested, { why: 'age', detail, urgent: false, when: 'now', memory: null })
  }
}

const hours = (ms: Ms): string =>
  ms < 120_000
    ? `${Math.round(ms / 1000)} s`
    : ms < 7_200_000
      ? `${Math.round(ms / 60_000)} min`
      : `${Math.round(ms / 3_600_000)} h`

const leaveOf = ({ why }: Tired): Leave => (why === 'liveness' ? 'liveness' : 'limit')

export function reconcileTired(draft: Draft): void {
  const { top } = draft
  if (top.k !== 'steady' && top.k !== 'rolling-out') return
  const generation = draft.generation(top.current)
  if (!generation) return
  for (const [index, slot] of generation.slots.entries()) {
    if (slot.state.k !== 'filled') continue
    const worker = draft.worker(slot.state.by)
    if (worker?.phase.k !== 'ready' || worker.tired?.when !== 'now') continue
    if (top.k === 'rolling-out') {
      if (!worker.tired.urgent || !isSpare(draft, worker)) continue
      leaveFirst(draft, worker, worker.tired)
      continue
    }
    const isBusy = draft
      .generation(generation.id)
      ?.slots.some(
        ({ state }) => state.k === 'clearing' || (state.k === 'replacing' && state.why !== 'signal'),
      )
    if (isBusy) return
    const { memory } = worker.tired
    if (memory !== null && lacksRoom(worker.tired)) {
      const leaves = mayGoFirst(draft, generation, worker)
      draft.order({ c: 'announce', what: { a: 'no-room', worker: worker.id, memory, leaves } })
      if (leaves) return leaveFirst(draft, worker, worker.tired)
      draft.setWorker({ ...worker, tired: { ...worker.tired, when: draft.in(TRY_AGAIN_MS) } })
      continue
    }
    const replacement = draft.spawn(generation, index, 0)
    const why = leaveOf(worker.tired)
    draft.setSlot(generation.id, index, {
      state: { k: 'replacing', by: worker.id, with: replacement, why },
    })
  }
}

/** It leaves, and its slot is filled: where there is no room for two, when it has gone, since it has its memory until then. */
function leaveFirst(draft: Draft, worker: Worker, tired: Tired): void {
  leave(draft, worker, leaveOf(tired))
  const state: SlotState = lacksRoom(tired)
    ? { k: 'clearing', of: worker.id }
    : { k: 'vacant', retry: draft.in(0), stillborn: 0 }
  draft.setSlot(worker.generation, worker.slot, { state })
}

const lacksRoom = ({ memory }: Tired): boolean => memory !== null && memory.workerBytes > memory.freeBytes

/** Whether as many serve without it as must. */
function mayGoFirst(draft: Draft, { id, policy, slots }: Generation, worker: Worker): boolean {
  const others = workersOf(draft.workers, id).filter(
    (other) => other.id !== worker.id && serves(other) && !isUnready(other),
  )
  return isSpare(draft, worker) && others.length >= slots.length - spareOf(policy, slots.length)
}
