/**
 * From share to share: how a candidate takes the place of the current generation, step by step of its plan.
 *
 * A share is reached in batches. Each is brought up behind the gate, opened together when all of it is ready, and then
 * takes the place of current workers. Two numbers say how far the batches may go (Kubernetes, Deployment):
 *
 *     out    <= workers of the candidate that serve + maxUnavailable     never fewer that accept
 *     raised <= slots + maxSurge - (current ones that have not left)     never more that live
 *
 * Where what is replaced is parked and not drained, the second is a matter of memory, asked once before (fitting.ts).
 */
import type { Draft } from './draft.ts'
import { count, failuresOf, judge, outlook } from './analysis.ts'
import { isLastShare, spareOf, surgeOf } from './plan.ts'
import {
  candidateOf,
  comesBack,
  holder,
  inRotation,
  isUnready,
  missing,
  roleOf,
  serves,
  workersOf,
} from './questions.ts'
import { endRollout, hook } from './rollout.ts'
import { mustStop } from './rotation.ts'
import type {
  Doing,
  Figures,
  Generation,
  ListenerKey,
  Planned,
  Rollout,
  Worker,
  WorkerPhase,
} from './state.ts'

function change(draft: Draft, changes: Partial<Rollout>): void {
  const { top } = draft
  if (top.k === 'rolling-out') draft.top = { ...top, rollout: { ...top.rollout, ...changes } }
}

export const doNow = (draft: Draft, doing: Doing): void => change(draft, { doing })

/** The candidate, the policy that it is rolled out by, and the step that it is at. */
function view(draft: Draft) {
  const { top } = draft
  if (top.k !== 'rolling-out') return null
  const candidate = draft.generation(candidateOf(top) ?? -1)
  const current = draft.generation(top.current)
  if (!candidate || !current) return null
  return { top, rollout: top.rollout, candidate, current, step: top.rollout.plan[top.rollout.at] }
}

export function enterStep(draft: Draft, at: number): void {
  change(draft, { at })
  const seen = view(draft)
  if (seen === null) return
  const { candidate, rollout, step, top } = seen
  const { id } = candidate
  // Past the last step it is promoted as soon as it is whole: in a hold after the last share a worker may have closed a
  // listener, or become unready.
  if (step === undefined) {
    const by = draft.in(candidate.policy.progressDeadlineMs)
    return doNow(draft, { k: 'shifting', candidate: id, by })
  }
  switch (step.k) {
    case 'share':
      doNow(draft, { k: 'bringing-up', candidate: id, by: draft.in(candidate.policy.progressDeadlineMs) })
      return raise(draft)
    case 'hold':
    case 'analyse':
      // Asked for during the share; a hold would keep it waiting for hours, or for a person.
      if (top.next.length > 0) return endRollout(draft, 'overtaken', [OVERTAKEN])
      if (step.k === 'hold') {
        if (step.forMs === 0) return enterStep(draft, at + 1)
        const until = step.forMs === 'promote' ? step.forMs : draft.in(step.forMs)
        doNow(draft, { k: 'holding', candidate: id, until })
      } else {
        const next = draft.in(step.analysis.intervalMs)
        const tally = { taken: 0, failed: 0, unclear: 0 }
        doNow(draft, { k: 'analysing', candidate: id, next, tally })
      }
      return draft.order({ c: 'announce', what: { a: 'holding', reload: rollout.id, at } })
    case 'watch':
      change(draft, { out: seen.current.slots.length })
      doNow(draft, { k: 'holding', candidate: id, until: draft.in(step.forMs) })
      return draft.order({ c: 'announce', what: { a: 'holding', reload: rollout.id, at } })
  }
}

export const OVERTAKEN = 'a newer reload was asked for'

/** Sets how far the next batch goes. */
function raise(draft: Draft): void {
  const seen = view(draft)
  if (seen?.step?.k !== 'share') return
  const { candidate, current, rollout, step } = seen
  const { policy } = candidate
  if (policy.replaced === 'parked') return change(draft, { raised: Math.max(rollout.raised, step.raise) })
  const slots = current.slots.length
  const serving = slotWorkers(draft, candidate).slice(0, rollout.open).filter(isServing).length
  const spared = serving + spareOf(policy, slots)
  const out = Math.max(
    rollout.out,
    serving >= step.open && serving > 0 ? step.out : Math.min(step.out, spared),
  )
  const room = Math.max(slots, policy.slots) - slots + out + surgeOf(policy.maxSurge, slots)
  change(draft, { out, raised: Math.max(rollout.raised, Math.min(step.raise, room)) })
}

export function concludeRollout(draft: Draft): void {
  const seen = view(draft)
  if (seen === null) return
  const { top, rollout, candidate, step } = seen
  const { doing } = rollout
  if (loseReadiness(draft, candidate)) return
  if (doing.k !== 'bringing-up' && doing.k !== 'shifting') return
  const areServing = candidate.slots
    .slice(0, rollout.open)
    .filter(({ state }) => state.k !== 'empty' || !comesBack(top, candidate.id))
    .every((slot) => isServing(draft.worker(holder(slot) ?? -1)))
  if (step === undefined) {
    if (areServing) endRollout(draft, 'promoted', [])
  } else if (step.k !== 'share') {
    return
  } else if (doing.k === 'bringing-up') {
    // A batch is opened whole: with `switch`, no client meets half of a version.
    const batch = slotWorkers(draft, candidate).slice(0, rollout.raised)
    if (!batch.every((worker) => worker?.phase.k === 'ready' && !isUnready(worker))) return
    const asks = rollout.kind === 'reload' && candidate.policy.hooks.includes('beforePromote')
    if (asks && isLastShare(rollout.plan, rollout.at) && rollout.hooked === 'not-yet') {
      change(draft, { hooked: 'beforePromote' })
      const by = draft.in(candidate.policy.hookTimeoutMs)
      doNow(draft, { k: 'before-promote', candidate: candidate.id, by })
      return draft.order(hook(draft, 'beforePromote', candidate.id))
    }
    openBatch(draft)
  } else if (areServing) {
    concludeBatch(draft)
  }
}

function openBatch(draft: Draft): void {
  const seen = view(draft)
  if (seen?.step?.k !== 'share') return
  const { rollout, candidate, step } = seen
  const { progressDeadlineMs, minReadyMs } = candidate.policy
  const { doing } = rollout
  const open = Math.max(rollout.open, Math.min(step.open, rollout.raised))
  // A batch that is opened is progress (Kubernetes, progressDeadlineSeconds), and its time to settle is no delay.
  const isProgress = open > rollout.open || doing.k !== 'bringing-up'
  const by = isProgress ? draft.in(progressDeadlineMs + minReadyMs) : doing.by
  change(draft, { open, doing: { k: 'shifting', candidate: candidate.id, by } })
  if (open === 0) return
  draft.order({ c: 'announce', what: { a: 'shifting', reload: rollout.id, generation: candidate.id } })
}

/** The batch serves: as many of the current generation make room, and the next one follows. */
function concludeBatch(draft: Draft): void {
  const seen = view(draft)
  if (seen?.step?.k !== 'share') return
  const { rollout, candidate, current, step } = seen
  const isReached = rollout.open >= step.open
  const isLast = isReached && rollout.plan[rollout.at + 1] === undefined
  // Promoted with the same breath: what is current leaves by itself then.
  if (isLast && candidate.policy.replaced === 'parked') return endRollout(draft, 'promoted', [])
  if (isReached && rollout.out < step.out) return change(draft, { out: step.out })
  const isTakenOut = workersOf(draft.workers, current.id).every((worker) =>
    [...worker.claims].every(([key, { k }]) =>
      k === 'withdrawing'
        ? false
        : k !== 'open' || worker.phase.k !== 'ready' || !mustStop(draft, worker, key),
    ),
  )
  if (!isTakenOut) return
  const { minReadyMs, replaced } = candidate.policy
  const { doing } = rollout
  if (replaced === 'drained' && minReadyMs > 0 && doing.k === 'shifting') {
    const until = draft.in(minReadyMs)
    return doNow(draft, { k: 'settling', candidate: candidate.id, until, by: doing.by })
  }
  goOn(draft)
}

/** To the next batch of this share, or to the next step. */
export function goOn(draft: Draft): void {
  const seen = view(draft)
  if (seen?.step?.k !== 'share') return
  const { rollout, candidate, step } = seen
  if (rollout.open < step.open) {
    const { doing } = rollout
    if (doing.k !== 'shifting' && doing.k !== 'settling') return
    doNow(draft, { k: 'bringing-up', candidate: candidate.id, by: doing.by })
    return raise(draft)
  }
  draft.order({ c: 'announce', what: { a: 'share-reached', reload: rollout.id, at: rollout.at } })
  change(draft, { at: rollout.at + 1 })
  if (rollout.pause === 'asked') return pause(draft, 'operator', 'the operator asked for it')
  enterStep(draft, rollout.at + 1)
}

export function pause(draft: Draft, by: 'operator' | 'analysis', why: string): void {
  const seen = view(draft)
  if (seen === null) return
  const { rollout, candidate } = seen
  const { doing } = rollout
  const isTimed = doing.k === 'holding' && doing.until !== 'promote'
  const leftMs = isTimed ? Math.max(0, doing.until.timerAt - draft.at) : null
  const tally = doing.k === 'analysing' ? doing.tally : null
  change(draft, { pause: 'none', doing: { k: 'paused', candidate: candidate.id, by, why, leftMs, tally } })
  draft.order({ c: 'announce', what: { a: 'paused', reload: rollout.id, why } })
}

export function resume(draft: Draft): void {
  const seen = view(draft)
  if (seen?.rollout.doing.k !== 'paused') return
  const { rollout, candidate } = seen
  const { leftMs } = seen.rollout.doing
  draft.order({ c: 'announce', what: { a: 'resumed', reload: rollout.id } })
  if (leftMs === null) return enterStep(draft, rollout.at)
  // A timer of this very moment would be acted on only at the next.
  if (leftMs === 0) return enterStep(draft, rollout.at + 1)
  doNow(draft, { k: 'holding', candidate: candidate.id, until: draft.in(leftMs) })
}

/** The operator's word: the hold, analysis or pause is over; `full`: and so is every later one. */
export function promoteNow(draft: Draft, full: boolean): void {
  const seen = view(draft)
  if (seen === null) return
  const { rollout } = seen
  const isAtShare = seen.step?.k === 'share'
  if (full) {
    const after = isAtShare ? rollout.at : rollout.at + 1
    const rest = rollout.plan.slice(after).filter((step, i) => (isAtShare && i === 0) || isWhole(step))
    change(draft, { plan: [...rollout.plan.slice(0, after), ...rest] })
  }
  enterStep(draft, isAtShare ? rollout.at : rollout.at + 1)
}

const isWhole = (step: Planned): boolean => step.k === 'watch' || (step.k === 'share' && step.percent === 100)

// --- analysis -------------------------------------------------------------------------------------------------

export function expireAnalysis(draft: Draft): void {
  const seen = view(draft)
  if (seen?.step?.k !== 'analyse' || seen.rollout.doing.k !== 'analysing') return
  const { rollout, candidate, current, step } = seen
  const overMs = step.analysis.intervalMs
  doNow(draft, { ...seen.rollout.doing, next: draft.in(overMs) })
  draft.order({
    ...{ c: 'measure', reload: rollout.id, candidate: candidate.id, current: current.id, overMs },
  })
}

export function measured(draft: Draft, reload: string, candidate: Figures, current: Figures): void {
  const seen = view(draft)
  if (seen?.step?.k !== 'analyse' || seen.rollout.doing.k !== 'analysing' || seen.rollout.id !== reload)
    return
  const { rollout, step } = seen
  const judgement = judge(step.analysis, candidate, current)
  const tally = count(seen.rollout.doing.tally, judgement)
  draft.order({ c: 'announce', what: { a: 'analysed', reload, judgement, tally } })
  doNow(draft, { ...seen.rollout.doing, tally })
  switch (outlook(step.analysis, tally)) {
    case 'goes-on':
      return
    case 'passed':
      return enterStep(draft, rollout.at + 1)
    case 'unclear':
      return pause(
        draft,
        'analysis',
        `the analysis is inconclusive: ${tally.unclear} of ${tally.taken} measurements said nothing` +
          (judgement.why === '' ? '' : `: ${judgement.why}`),
      )
    case 'failed': {
      const why = failuresOf(judgement)
      const text = `the analysis failed: ${(why.length > 0 ? why : [judgement.why]).join('; ')}`
      if (seen.candidate.policy.onFailure === 'rollback') return endRollout(draft, 'rolled-back', [text])
      return pause(draft, 'analysis', text)
    }
  }
}

/**
 * Until it is promoted, a worker that has closed a listener which is wanted, or of which more is wanted now, boots
 * again: it has the start timeout once more to listen on everything (some apps try a port and open it again). The current
 * generation accepts there meanwhile (rotation.ts); where its workers have left already, it comes back at once.
 */
function loseReadiness(draft: Draft, candidate: Generation): boolean {
  const { startTimeoutMs } = candidate.policy
  const unready = candidate.slots.flatMap((slot): Worker[] => {
    const worker = draft.worker(holder(slot) ?? -1)
    return worker?.phase.k === 'ready' && missing(slot, worker).length > 0 ? [worker] : []
  })
  for (const worker of unready) {
    const lost = missingForAll(draft, candidate, worker)
    if (lost !== undefined) {
      const why = `slot ${worker.slot} listens on ${lost} no more, and nobody is left who would`
      endRollout(draft, 'rolled-back', [why])
      return true
    }
    const phase: WorkerPhase = { k: 'booting', by: draft.in(startTimeoutMs), settle: null, stillborn: 0 }
    draft.setWorker({ ...worker, phase })
  }
  return unready.length > 0
}

/** What this worker has closed that was granted to it alone, with nobody of the current generation to go back to. */
function missingForAll(draft: Draft, { slots }: Generation, worker: Worker): ListenerKey | undefined {
  const slot = slots[worker.slot]
  if (slot === undefined || !inRotation(draft.top, worker)) return undefined
  const others = [...draft.workers.values()].filter(
    (other) =>
      (other.phase.k === 'ready' || other.phase.k === 'booting') &&
      (inRotation(draft.top, other) || roleOf(draft.top, other.generation) === 'current'),
  )
  return missing(slot, worker).find((key) => !others.some(({ claims }) => claims.has(key)))
}

export function slotWorkers(draft: Draft, generation: Generation): (Worker | undefined)[] {
  return generation.slots.map((slot) => draft.worker(holder(slot) ?? -1))
}

const isServing = (worker: Worker | undefined): boolean =>
  worker !== undefined && serves(worker) && !isUnready(worker)

/** One that was ready and is not at this moment does not hold the others up: its probe may come and go for ever. */
export function allServe(draft: Draft, generation: Generation): boolean {
  const workers = slotWorkers(draft, generation)
  return (
    workers.some(serves) &&
    workers.every((worker) => serves(worker) || (worker?.phase.k === 'ready' && isUnready(worker)))
  )
}
