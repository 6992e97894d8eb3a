/**
 * The life of one rollout: begun, pinned, brought from share to share, ended. `endRollout` is the only way out of it.
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
import { fit } from './fitting.ts'
import { leave, leaveIfSpare } from './leaving.ts'
import { isLastShare, isSwitch, planOf, spareOf, surgeOf } from './plan.ts'
import {
  candidateOf,
  currentOf,
  holder,
  isSpare,
  isUnready,
  listensOn,
  missing,
  roleOf,
  serves,
  wantsOf,
  workersOf,
} from './questions.ts'
import { resize } from './resize.ts'
import { mustStop } from './rotation.ts'
import type {
  AskId,
  Doing,
  Figures,
  Generation,
  GenerationId,
  ListenerKey,
  Memory,
  Ms,
  Outcome,
  Planned,
  Policy,
  Rollout,
  SlotIndex,
  Top,
  Verdict,
  Waiting,
  Worker,
  WorkerId,
  WorkerPhase,
} from './state.ts'

/** So many earlier versions are kept pinned, for a rollback that boots one of them. */
export const MAX_HISTORY = 3

/** A replacement waits for a candidate so long at least. */
const LEAVING_GRACE_MS = 1_000

export type RollingOut = Extract<Top, { k: 'rolling-out' }>

// --- begun and pinned -----------------------------------------------------------------------------------------

export function beginRollout(draft: Draft, current: GenerationId, waiting: readonly Waiting[]): void {
  const asks = waiting.map(({ ask }) => ask)
  const drop = new Set(waiting.flatMap(({ drop }) => drop))
  begin(draft, current, { kind: 'reload', asks, drop }, null)
}

/** The same for a version that was current before. */
export function beginRollback(
  draft: Draft,
  current: GenerationId,
  asks: readonly AskId[],
  to: GenerationId,
): void {
  const drop = newSince(draft, current, draft.listened.get(to) ?? new Set())
  begin(draft, current, { kind: 'rollback', asks, drop }, to)
}

function begin(
  draft: Draft,
  current: GenerationId,
  asked: Pick<Rollout, 'kind' | 'asks' | 'drop'>,
  of: GenerationId | null,
): void {
  const generation = draft.generation(current)
  if (!generation) return
  const id = draft.newReload()
  const by = draft.in(generation.policy.startTimeoutMs)
  const rollout: Rollout = { ...nothingYet(draft, id), ...asked, of, doing: { k: 'pinning', by } }
  const parked = draft.top.k === 'steady' ? draft.top.parked : null
  draft.top = { k: 'rolling-out', current, rollout, next: [], parked }
  draft.order({ c: 'announce', what: { a: 'rollout-began', reload: id } })
  draft.order({ c: 'pin', reload: id, generation: draft.nextGeneration, of })
}

const nothingYet = (draft: Draft, id: string): Omit<Rollout, 'kind' | 'of' | 'asks' | 'drop' | 'doing'> => ({
  id,
  why: null,
  claimed: new Set(),
  since: draft.at,
  plan: [],
  at: 0,
  raised: 0,
  open: 0,
  out: 0,
  pause: 'none',
  hooked: 'not-yet',
})

/** Back to a generation that is alive: nothing is pinned or booted, its listeners are granted at once. */
export function unpark(
  draft: Draft,
  current: GenerationId,
  asks: readonly AskId[],
  to: GenerationId,
  why: string | null = null,
): void {
  const target = draft.generation(to)
  const now = draft.generation(current)
  if (!target || !now) return
  endReplacements(draft, now)
  const id = draft.newReload()
  const slots = target.slots.length
  const drop = newSince(draft, current, listenedOn(draft, target))
  const plan = planOf(
    { ...target.policy, ...PLAIN, slots },
    draft.generation(current)?.slots.length ?? 0,
  ).steps
  draft.top = {
    k: 'rolling-out',
    current,
    rollout: {
      ...nothingYet(draft, id),
      ...{ kind: 'rollback', of: to, why, asks, drop, plan, raised: slots, open: slots },
      doing: { k: 'shifting', candidate: to, by: draft.in(target.policy.startTimeoutMs) },
    },
    next: [],
    parked: null,
  }
  draft.order({ c: 'announce', what: { a: 'rollout-began', reload: id } })
}

const listenedOn = (draft: Draft, { slots }: Generation): ReadonlySet<ListenerKey> =>
  new Set(slots.flatMap((slot) => listensOn(slot, draft.workers)))

/** Listeners that go with a rollback: the version before did not know them, and nobody would ever accept there. */
function newSince(draft: Draft, current: GenerationId, before: ReadonlySet<ListenerKey>): Set<ListenerKey> {
  const generation = draft.generation(current)
  return new Set([...(generation ? listenedOn(draft, generation) : [])].filter((key) => !before.has(key)))
}

/** How a rollback is rolled out: whatever the strategy, the bad version goes at once. */
const PLAIN = { steps: [{ k: 'share', percent: 100 }], minReadyMs: 0 } as const satisfies Partial<Policy>

export function pinned(draft: Draft, reload: string, given: Policy, memory: Memory | null): void {
  const { top } = draft
  if (top.k !== 'rolling-out' || top.rollout.id !== reload || top.rollout.doing.k !== 'pinning') return
  const current = draft.generation(top.current)
  if (!current) return
  const isBack = top.rollout.kind === 'rollback'
  // The number of slots that an operator asked for stays until the configured one changes.
  if (draft.scale !== null && draft.scale.configured !== given.slots) draft.scale = null
  let policy: Policy = { ...given, slots: draft.scale?.slots ?? given.slots, ...(isBack ? PLAIN : {}) }
  let { steps: plan, problems } = planOf(policy, current.slots.length)
  if (problems.length > 0) return endRollout(draft, 'refused', problems)
  const fitting = memory === null ? { k: 'fits' as const } : fit(policy, plan, isSwitch(policy.steps), memory)
  if (fitting.k === 'refused') return endRollout(draft, 'refused', [fitting.why])
  if (fitting.k === 'falls-back') {
    policy = fitting.policy
    plan = planOf(policy, current.slots.length).steps
    draft.order({ c: 'announce', what: { a: 'fell-back', reload, why: fitting.why } })
  }
  draft.top = { ...top, rollout: { ...top.rollout, plan } }
  draft.order({ c: 'announce', what: { a: 'planned', reload, plan } })
  if (!isBack && policy.hooks.includes('beforeSpawn')) {
    doNow(draft, { k: 'before-spawn', by: draft.in(policy.hookTimeoutMs), policy })
    return draft.order(hook(draft, 'beforeSpawn', null))
  }
  spawnCandidate(draft, policy)
}

const hook = (draft: Draft, name: Policy['hooks'][number], candidate: GenerationId | null) =>
  ({
    c: 'run-hook',
    hook: name,
    reload: draft.top.k === 'rolling-out' ? draft.top.rollout.id : '',
    current: currentOf(draft.top),
    candidate,
  }) as const

function spawnCandidate(draft: Draft, policy: Policy): void {
  const { top } = draft
  const current = draft.generation(currentOf(top) ?? -1)
  if (top.k !== 'rolling-out' || !current) return
  endReplacements(draft, current)
  // Whoever was parked is no longer: this rollout has its own way back, and memory is for two generations.
  if (top.parked !== null) {
    draft.top = { ...top, parked: null }
    const what = { a: 'unparked', generation: top.parked.generation, why: 'a rollout begins' } as const
    draft.order({ c: 'announce', what })
  }
  const wants = wantsOf(current, draft.workers, policy.slots, top.rollout.drop)
  const candidate = draft.addGeneration(policy, { k: 'empty' }, wants)
  doNow(draft, { k: 'bringing-up', candidate, by: draft.in(policy.progressDeadlineMs) })
  const what = { a: 'candidate-spawned', reload: top.rollout.id, generation: candidate } as const
  draft.order({ c: 'announce', what })
  enterStep(draft, 0)
}

/**
 * The candidate replaces every worker: one that is being replaced by itself waits for it, so that there are never more
 * than twice the slots. (A replacement that alone accepts on something already stays.)
 */
function endReplacements(draft: Draft, current: Generation): void {
  for (const [index, slot] of current.slots.entries()) {
    if (slot.state.k !== 'replacing') continue
    const replacement = draft.worker(slot.state.with)
    if (!replacement || !isSpare(draft, replacement)) continue
    const when = draft.in(LEAVING_GRACE_MS)
    const { by, why } = slot.state
    const state = why === 'signal' ? ({ k: 'leaving', by, when } as const) : ({ k: 'filled', by } as const)
    draft.setSlot(current.id, index, { state })
    leave(draft, replacement, 'replaced')
  }
}

export function hookEnded(draft: Draft, reload: string, name: string, failure: string | null): void {
  const { top } = draft
  if (top.k !== 'rolling-out' || top.rollout.id !== reload) return
  const { doing } = top.rollout
  if (name === 'beforeSpawn' && doing.k === 'before-spawn') {
    if (failure !== null) return endRollout(draft, 'refused', [failure])
    spawnCandidate(draft, doing.policy)
  } else if (name === 'beforePromote' && doing.k === 'before-promote') {
    if (failure !== null) return endRollout(draft, 'rolled-back', [failure])
    // While it ran a worker may have closed a listener, or become unready: the batch is looked at again.
    const { candidate } = doing
    const progressDeadlineMs = draft.generation(candidate)?.policy.progressDeadlineMs ?? 0
    doNow(draft, { k: 'bringing-up', candidate, by: draft.in(progressDeadlineMs) })
  }
}

// --- from share to share --------------------------------------------------------------------------------------

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
  const { rollout, candidate, step } = seen
  const { doing } = rollout
  if (doing.k !== 'bringing-up' && doing.k !== 'shifting') return
  if (loseReadiness(draft, candidate)) return
  const areServing = slotWorkers(draft, candidate).slice(0, rollout.open).every(isServing)
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
    const by =
      'by' in doing && doing.k !== 'paused' ? doing.by : draft.in(candidate.policy.progressDeadlineMs)
    doNow(draft, { k: 'bringing-up', candidate: candidate.id, by })
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
  change(draft, { pause: 'none', doing: { k: 'paused', candidate: candidate.id, by, why, leftMs } })
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

// --- ended ----------------------------------------------------------------------------------------------------

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
    kind: rollout.kind,
    reload: rollout.id,
    current,
    other: promoted ? top.current : candidate,
    reasons: promoted && rollout.why !== null ? [rollout.why, ...reasons] : reasons,
    tookMs: draft.at - rollout.since,
  }
  // What only a failed candidate listened on was bound for it alone; `releaseDropped` spares what is wanted.
  draft.setDropping([...draft.dropping, ...(promoted ? rollout.drop : rollout.claimed)])
  draft.top = { k: 'steady', current, parked: top.parked }
  if (promoted) for (const worker of workersOf(draft.workers, current)) learnWants(draft, worker.id)
  draft.order({ c: 'announce', what: { a: 'rollout-ended', verdict: ending } })
  answer(draft, rollout.asks, ending)
  if (promoted) {
    const old = draft.generation(top.current)
    if (old) draft.listened = new Map(draft.listened).set(old.id, listenedOn(draft, old))
    forget(draft, historyAfter(draft, rollout, top.current))
  }
  runLastHook(draft, top, ending)
  if (!promoted || !park(draft, top)) {
    for (const worker of workersOf(draft.workers, (promoted ? top.current : candidate) ?? -1)) {
      leaveIfSpare(draft, worker, promoted && rollout.kind === 'reload' ? 'replaced' : 'rolled-back')
    }
  }
  // Who comes back from the park has the number of slots of before, and an operator may have asked for another since.
  const back = promoted && rollout.kind === 'rollback' ? draft.generation(current) : undefined
  if (back && draft.scale !== null) resize(draft, back, draft.scale.slots)
  if (top.next.length > 0) beginRollout(draft, current, top.next)
}

/** A rollback leads away from a bad version: that one is no place to go back to. */
function historyAfter(draft: Draft, { kind, of }: Rollout, old: GenerationId): readonly GenerationId[] {
  if (kind === 'rollback') return draft.history.filter((id) => id !== of)
  return [...draft.history, old].slice(-MAX_HISTORY)
}

/** What is remembered from now on; the version of what is not is let go once its last worker has ended. */
export function forget(draft: Draft, kept: readonly GenerationId[]): void {
  const gone = draft.history.filter((id) => !kept.includes(id) && !draft.generation(id))
  draft.history = kept
  draft.listened = new Map([...draft.listened].filter(([id]) => kept.includes(id)))
  for (const generation of gone) draft.order({ c: 'unpin', generation })
}

function runLastHook(draft: Draft, top: RollingOut, { outcome, kind, reload, current }: Verdict): void {
  const candidate = candidateOf(top)
  const name = outcome === 'promoted' && kind === 'reload' ? 'afterPromote' : 'afterRollback'
  // A rollout that came to no candidate has changed nothing that anybody would have to hear of.
  if (candidate === null || (outcome !== 'promoted' && outcome !== 'rolled-back')) return
  if (!draft.generation(candidate)?.policy.hooks.includes(name)) return
  draft.order({ c: 'run-hook', hook: name, reload, current, candidate })
}

/** Keeps the generation that was replaced alive for an instant rollback, where that is asked for. */
function park(draft: Draft, { current: old, rollout }: RollingOut): boolean {
  const { top } = draft
  if (top.k !== 'steady' || rollout.kind === 'rollback') return false
  const parkForMs = draft.generation(top.current)?.policy.parkForMs ?? 0
  const generation = draft.generation(old)
  const isWhole = generation && slotWorkers(draft, generation).every((worker) => worker?.phase.k === 'ready')
  if (parkForMs === 0 || !isWhole) return false
  // Nothing of it is replaced any more, also where that had begun: nobody would look at such a slot again.
  for (const [index, slot] of generation.slots.entries()) {
    const { state } = slot
    // What its app has closed for good is not wanted of it when it comes back.
    draft.setSlot(old, index, { wants: new Set(listensOn(slot, draft.workers)) })
    if (state.k !== 'leaving' && state.k !== 'replacing') continue
    draft.setSlot(old, index, { state: { k: 'filled', by: state.by } })
    const replacement = state.k === 'replacing' ? draft.worker(state.with) : undefined
    if (replacement) leave(draft, replacement, 'replaced')
  }
  draft.top = { ...top, parked: { generation: old, until: draft.in(parkForMs) } }
  draft.order({ c: 'announce', what: { a: 'parked', generation: old, forMs: parkForMs } })
  return true
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
  if (top.rollout.kind === 'rollback' && !listenedOn(draft, candidate).has(key)) {
    // A version before cannot know what a later one opens now.
    draft.top = { ...top, rollout: { ...top.rollout, drop: new Set([...top.rollout.drop, key]) } }
    return
  }
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

/** @param kind of what was asked for */
export function verdict(
  draft: Draft,
  outcome: Outcome,
  reload: string,
  other: GenerationId | null,
  reasons: readonly string[],
  tookMs: Ms,
  kind: Rollout['kind'] = 'reload',
): Verdict {
  return { outcome, kind, reload, current: currentOf(draft.top), other, reasons, tookMs }
}

export function answer(draft: Draft, asks: readonly AskId[], given: Verdict): void {
  for (const ask of asks) draft.order({ c: 'answer', ask, verdict: given })
}
