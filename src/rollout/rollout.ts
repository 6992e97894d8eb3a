/** The life of one rollout: begun, brought up, shifted, ended. `endRollout` is the only way out of it. */
import type { Draft } from './draft.ts'
import { leaveIfSpare } from './leaving.ts'
import { candidateOf, currentOf, holder, missing, roleOf, serves, workersOf } from './questions.ts'
import type {
  AskId,
  Generation,
  GenerationId,
  ListenerKey,
  Ms,
  Outcome,
  Rollout,
  SlotIndex,
  Top,
  Verdict,
  Waiting,
  Worker,
  WorkerId,
  WorkerPhase,
} from './state.ts'

export function beginRollout(draft: Draft, current: GenerationId, waiting: readonly Waiting[]): void {
  const generation = draft.generation(current)
  if (!generation) return
  const id = draft.newReload()
  const rollout: Rollout = {
    id,
    asks: waiting.map(({ ask }) => ask),
    drop: new Set(waiting.flatMap(({ drop }) => drop)),
    claimed: new Set(),
    since: draft.at,
    doing: { k: 'pinning', by: draft.in(generation.policy.startTimeoutMs) },
  }
  draft.top = { k: 'rolling-out', current, rollout, next: [] }
  draft.order({ c: 'announce', what: { a: 'rollout-began', reload: id } })
  draft.order({ c: 'pin', reload: id, generation: draft.nextGeneration })
}

export function concludeRollout(draft: Draft, top: Extract<Top, { k: 'rolling-out' }>): void {
  const { rollout } = top
  const candidate = candidateOf(top)
  const generation = candidate === null ? undefined : draft.generation(candidate)
  if (!generation || loseReadiness(draft, generation)) return
  if (rollout.doing.k === 'bringing-up') {
    // Whole candidate ready, then all grants: no client meets half of a release.
    if (!slotWorkers(draft, generation).every((worker) => worker?.phase.k === 'ready')) return
    draft.top = { ...top, rollout: { ...rollout, doing: { k: 'shifting', candidate: generation.id } } }
    draft.order({ c: 'announce', what: { a: 'shifting', reload: rollout.id, generation: generation.id } })
  } else if (rollout.doing.k === 'shifting' && allServe(draft, generation)) {
    endRollout(draft, 'promoted', [])
  }
}

/**
 * Until it is promoted, a worker that has closed a listener which is wanted, or of which more is wanted now, boots
 * again: it has the start timeout once more to listen on everything (some apps try a port and open it again).
 */
function loseReadiness(draft: Draft, candidate: Generation): boolean {
  const { startTimeoutMs } = candidate.policy
  const unready = candidate.slots.flatMap((slot): Worker[] => {
    const worker = draft.worker(holder(slot) ?? -1)
    return worker?.phase.k === 'ready' && missing(slot, worker).length > 0 ? [worker] : []
  })
  for (const worker of unready) {
    const phase: WorkerPhase = { k: 'booting', by: draft.in(startTimeoutMs), settle: null, stillborn: 0 }
    draft.setWorker({ ...worker, phase })
  }
  return unready.length > 0
}

/** The only way out of a rollout. Everyone who asked gets its verdict; what was asked meanwhile begins. */
export function endRollout(draft: Draft, outcome: Outcome, reasons: readonly string[]): void {
  const { top } = draft
  if (top.k !== 'rolling-out') return
  const { rollout } = top
  const candidate = candidateOf(top)
  const promoted = outcome === 'promoted' && candidate !== null
  const current = promoted ? candidate : top.current
  const ending: Verdict = {
    outcome,
    reload: rollout.id,
    current,
    other: promoted ? top.current : candidate,
    reasons,
    tookMs: draft.at - rollout.since,
  }
  // What only a failed candidate listened on was bound for it alone; `releaseDropped` spares what is wanted.
  draft.setDropping([...draft.dropping, ...(promoted ? rollout.drop : rollout.claimed)])
  draft.top = { k: 'steady', current }
  if (promoted) for (const worker of workersOf(draft.workers, current)) learnWants(draft, worker.id)
  draft.order({ c: 'announce', what: { a: 'rollout-ended', verdict: ending } })
  answer(draft, rollout.asks, ending)
  for (const worker of workersOf(draft.workers, (promoted ? top.current : candidate) ?? -1)) {
    leaveIfSpare(draft, worker, promoted ? 'replaced' : 'rolled-back')
  }
  if (top.next.length > 0) beginRollout(draft, current, top.next)
}

/**
 * What a slot of the current generation listens on is what a worker that refills it must listen on, and so must a
 * candidate that is on its way already: an app that opens its second port during a reload would lose it.
 */
export function learnWants(draft: Draft, id: WorkerId): void {
  const worker = draft.worker(id)
  const slot = worker && draft.generation(worker.generation)?.slots[worker.slot]
  if (!worker || !slot || roleOf(draft.top, worker.generation) !== 'current') return
  const wants = new Set([...(slot.wants ?? []), ...worker.claims.keys()])
  draft.setSlot(worker.generation, worker.slot, { wants })
  for (const key of worker.claims.keys()) wantOfCandidate(draft, worker.slot, key)
}

function wantOfCandidate(draft: Draft, index: SlotIndex, key: ListenerKey): void {
  const { top } = draft
  const candidate = draft.generation(candidateOf(top) ?? -1)
  if (!candidate || top.k !== 'rolling-out' || top.rollout.drop.has(key)) return
  const isThere = index < candidate.slots.length
  const slot = candidate.slots.at(isThere ? index : -1)
  const asked = isThere ? [slot] : candidate.slots
  if (!slot || asked.some((one) => one?.wants?.has(key))) return
  const wants = new Set([...(slot.wants ?? []), key])
  draft.setSlot(candidate.id, candidate.slots.indexOf(slot), { wants })
}

function slotWorkers(draft: Draft, generation: Generation): (Worker | undefined)[] {
  return generation.slots.map((slot) => draft.worker(holder(slot) ?? -1))
}

export function allServe(draft: Draft, generation: Generation): boolean {
  return slotWorkers(draft, generation).every(serves)
}

export function verdict(
  draft: Draft,
  outcome: Outcome,
  reload: string,
  other: GenerationId | null,
  reasons: readonly string[],
  tookMs: Ms,
): Verdict {
  return { outcome, reload, current: currentOf(draft.top), other, reasons, tookMs }
}

export function answer(draft: Draft, asks: readonly AskId[], given: Verdict): void {
  for (const ask of asks) draft.order({ c: 'answer', ask, verdict: given })
}
