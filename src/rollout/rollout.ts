/** The life of one rollout: begun, pinned, ended. (Between the two: shares.ts.) `endRollout` is the only way out of it. */
import type { Draft } from './draft.ts'
import { fit } from './fitting.ts'
import { LEAVING_GRACE_MS, leave, leaveIfSpare } from './leaving.ts'
import { isSwitch, planOf } from './plan.ts'
import { candidateOf, currentOf, isSpare, listensOn, roleOf, wantsOf, workersOf } from './questions.ts'
import { resize } from './resize.ts'
import { doNow, enterStep, slotWorkers } from './shares.ts'
import type {
  AskId,
  Generation,
  GenerationId,
  ListenerKey,
  Memory,
  Ms,
  Outcome,
  Policy,
  Rollout,
  SlotIndex,
  Top,
  Verdict,
  Waiting,
  WorkerId,
} from './state.ts'

/** So many earlier versions are kept pinned, for a rollback that boots one of them. */
export const MAX_HISTORY = 3

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
  // Its workers live already: whatever strategy it came by, nothing of the bad version leaves before they serve.
  const policy = { ...target.policy, ...PLAIN, replaced: 'parked', slots } as const
  draft.setGeneration({ ...target, policy })
  const plan = planOf(policy, now.slots.length).steps
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

export const hook = (draft: Draft, name: Policy['hooks'][number], candidate: GenerationId | null) =>
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

// --- ended ----------------------------------------------------------------------------------------------------

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
