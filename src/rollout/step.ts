/**
 * The machine: (state, event) -> (state, commands). Everything the master decides is decided here.
 *
 * One step has four parts, always in this order:
 *   absorb     take the fact in
 *   expire     act on every timer that has run out
 *   conclude   move the top: serving, shifting, promoted, rolled back, ended
 *   reconcile  compare what is with what should be; the only producer of spawn, open, drain and release
 * `conclude` and `reconcile` repeat until nothing changes, so that one event carries as far as it can.
 *
 * `step` is total: a fact about a worker that is not known (any more), or that its phase has no use for, changes
 * nothing. Facts come from other processes, late and in any order.
 */
import { backoffMs, countDeath, hopeless } from './restart.ts'
import {
  candidateOf,
  currentOf,
  everOpened,
  fills,
  gateIsOpen,
  holder,
  isSpare,
  meetsReadiness,
  missing,
  roleOf,
  serves,
  wantsOf,
  workersOf,
} from './questions.ts'
import type {
  AskId,
  Command,
  Event,
  Generation,
  GenerationId,
  Grant,
  Leave,
  ListenerKey,
  Ms,
  Outcome,
  Policy,
  Rollout,
  Slot,
  SlotIndex,
  SlotState,
  State,
  Timer,
  Top,
  Verdict,
  Waiting,
  Worker,
  WorkerId,
  WorkerPhase,
} from './state.ts'
import { postpone } from './timers.ts'

/** How long an app may have only a private listener (port 0) before that counts as its readiness. */
export const SETTLE_MS = 1_000
/** A signal to one worker is part of a stop when the stop begins within this time. */
export const LEAVING_GRACE_MS = 1_000
/** A booting worker killed by a stray signal is started again at most so often in a row. */
export const MAX_STILLBORN = 5

export interface Step {
  readonly state: State
  readonly commands: readonly Command[]
}

export function step(state: State, event: Event): Step {
  const draft = new Draft(state, event.at)
  absorb(draft, event)
  expire(draft)
  do draft.changed = false
  while ((conclude(draft), reconcile(draft), draft.changed))
  return draft.finish()
}

/** A state under construction within one step. Nothing outside `step` ever sees one. */
class Draft {
  at: Ms
  changed = false
  readonly commands: Command[] = []
  private current: { -readonly [K in keyof State]: State[K] }

  constructor(state: State, at: Ms) {
    this.at = Math.max(at, state.at)
    this.current = { ...state, at: this.at }
  }

  get top(): Top {
    return this.current.top
  }
  set top(top: Top) {
    this.current.top = top
    this.changed = true
  }
  get workers(): State['workers'] {
    return this.current.workers
  }
  get generations(): State['generations'] {
    return this.current.generations
  }
  get dropping(): State['dropping'] {
    return this.current.dropping
  }
  get nextGeneration(): GenerationId {
    return this.current.nextGeneration
  }

  in(delayMs: Ms): Timer {
    return { timerAt: this.at + delayMs }
  }
  due(timer: Timer): boolean {
    return timer.timerAt <= this.at
  }
  order(command: Command): void {
    this.commands.push(command)
    this.changed = true
  }
  newReload(): string {
    return `r${this.current.nextReload++}`
  }

  worker(id: WorkerId): Worker | undefined {
    return this.current.workers.get(id)
  }
  setWorker(worker: Worker): void {
    this.current.workers = new Map(this.current.workers).set(worker.id, worker)
    this.changed = true
  }
  removeWorker(id: WorkerId): void {
    const workers = new Map(this.current.workers)
    workers.delete(id)
    this.current.workers = workers
    this.changed = true
  }
  setClaim(worker: Worker, key: ListenerKey, grant: Grant | null): void {
    const claims = new Map(worker.claims)
    if (grant === null) claims.delete(key)
    else claims.set(key, grant)
    this.setWorker({ ...worker, claims })
  }

  generation(id: GenerationId): Generation | undefined {
    return this.current.generations.get(id)
  }
  setGeneration(generation: Generation): void {
    this.current.generations = new Map(this.current.generations).set(generation.id, generation)
    this.changed = true
  }
  removeGeneration(id: GenerationId): void {
    const generations = new Map(this.current.generations)
    generations.delete(id)
    this.current.generations = generations
    this.changed = true
  }
  setSlot(id: GenerationId, index: SlotIndex, change: Partial<Slot>): void {
    const generation = this.current.generations.get(id)
    if (!generation) return
    this.setGeneration({
      ...generation,
      slots: generation.slots.map((slot, i) => (i === index ? { ...slot, ...change } : slot)),
    })
  }
  setDropping(keys: Iterable<ListenerKey>): void {
    this.current.dropping = new Set(keys)
    this.changed = true
  }
  addGeneration(policy: Policy, wants: readonly ReadonlySet<ListenerKey>[] = []): GenerationId {
    const id = this.current.nextGeneration++
    const slots = Array.from({ length: policy.slots }, (_, index) => ({
      state: { k: 'vacant', retry: this.in(0), stillborn: 0 } as SlotState,
      deaths: 0,
      wants: wants[index] ?? null,
    }))
    this.setGeneration({ id, policy, slots })
    return id
  }
  spawn(generation: Generation, slot: SlotIndex, stillborn: number): WorkerId {
    const id = this.current.nextWorker++
    this.setWorker({
      id,
      generation: generation.id,
      slot,
      phase: { k: 'booting', by: this.in(generation.policy.startTimeoutMs), settle: null, stillborn },
      claims: new Map(),
      listensPrivately: false,
      saidReady: false,
    })
    this.order({ c: 'spawn', worker: id, generation: generation.id, slot })
    return id
  }

  finish(): Step {
    return { state: this.current, commands: this.commands }
  }
  /** For a shift of the clock: replaces the whole state. */
  rewrite(change: (state: State) => State): void {
    this.current = { ...change(this.current) }
  }
}

// --- absorb ---------------------------------------------------------------------------------------------------

function absorb(draft: Draft, event: Event): void {
  switch (event.e) {
    case 'started': {
      if (draft.top.k !== 'idle') return
      const current = draft.addGeneration(event.policy)
      draft.top = { k: 'starting', current, since: draft.at, next: [] }
      return
    }
    case 'reload-asked':
      return askReload(draft, { ask: event.ask, drop: event.drop })
    case 'ask-gone':
      return forgetAsk(draft, event.ask, event.reason)
    case 'pinned':
      return absorbPinned(draft, event.reload, event.policy)
    case 'pin-failed': {
      const { top } = draft
      if (top.k !== 'rolling-out' || top.rollout.id !== event.reload || top.rollout.doing.k !== 'pinning')
        return
      return endRollout(draft, 'refused', event.reasons)
    }
    case 'stop-asked':
      return absorbStop(draft, event.how)
    case 'overslept':
      return draft.rewrite((state) => postpone(state, event.lagMs))
    case 'ticked':
      return
    case 'worker-exited': {
      const worker = draft.worker(event.worker)
      if (worker) absorbExit(draft, worker, event.reason, event.stillborn)
      return
    }
    default: {
      const worker = draft.worker(event.worker)
      if (worker) absorbWorkerFact(draft, worker, event)
    }
  }
}

type WorkerFact = Extract<Event, { worker: WorkerId }>

function absorbWorkerFact(
  draft: Draft,
  worker: Worker,
  event: Exclude<WorkerFact, { e: 'worker-exited' }>,
): void {
  const isUp = worker.phase.k === 'booting' || worker.phase.k === 'ready'
  switch (event.e) {
    case 'claimed':
      if (worker.claims.has(event.key)) return
      draft.setClaim(worker, event.key, { k: 'held' })
      // It crossed our order to leave on its way: bound for nobody, unless the current generation listens there too.
      if (!isUp || roleOf(draft.top, worker.generation) === 'old')
        return draft.setDropping([...draft.dropping, event.key])
      noteClaim(draft, worker, event.key)
      if (worker.phase.k === 'ready') learnWants(draft, worker.id)
      return
    case 'unclaimed':
      // `wants` stays: a crashing app closes its servers before it exits, and its successor must open them again.
      if (worker.claims.has(event.key)) draft.setClaim(worker, event.key, null)
      return
    case 'listened-privately':
      if (worker.phase.k !== 'booting' || worker.listensPrivately) return
      return draft.setWorker({
        ...worker,
        listensPrivately: true,
        phase: { ...worker.phase, settle: draft.in(SETTLE_MS) },
      })
    case 'said-ready':
      return draft.setWorker({ ...worker, saidReady: true })
    case 'opened':
      if (worker.claims.get(event.key)?.k === 'opening') draft.setClaim(worker, event.key, { k: 'open' })
      return
    case 'open-failed':
      // Else the app has closed that server meanwhile.
      if (!isUp || worker.claims.get(event.key)?.k !== 'opening') return
      fail(draft, worker, `could not accept on ${event.key}: ${event.reason}`)
      return
    case 'withdrawn':
      if (!isUp) draft.setClaim(worker, event.key, null)
      return
    case 'drain-began':
      if (worker.phase.k !== 'draining') return
      return draft.setWorker({
        ...worker,
        phase: {
          ...worker.phase,
          by: draft.in(Math.max(event.timeoutMs, policyOf(draft, worker).drainTimeoutMs)),
        },
      })
    case 'worker-drained':
      if (worker.phase.k !== 'draining') return
      return draft.setWorker({
        ...worker,
        claims: new Map(),
        phase: {
          k: 'terminating',
          why: worker.phase.why,
          by: draft.in(policyOf(draft, worker).shutdownTimeoutMs),
        },
      })
    case 'replace-asked': {
      const slot = draft.generation(worker.generation)?.slots[worker.slot]
      if (slot?.state.k !== 'filled' || slot.state.by !== worker.id) return
      if (roleOf(draft.top, worker.generation) === 'old') return
      return draft.setSlot(worker.generation, worker.slot, {
        state: { k: 'leaving', by: worker.id, when: draft.in(LEAVING_GRACE_MS) },
      })
    }
  }
}

function policyOf(draft: Draft, worker: Worker): Policy {
  const generation = draft.generation(worker.generation)
  // A generation is removed only after its last worker (see reconcile), so this cannot happen.
  if (!generation) throw new Error(`worker ${worker.id} has no generation ${worker.generation}`)
  return generation.policy
}

/**
 * What a slot of the current generation listens on is what a worker that refills it must listen on, and so must a
 * candidate that is on its way already: an app that opens its second port during a reload would lose it.
 */
function learnWants(draft: Draft, id: WorkerId): void {
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

function noteClaim(draft: Draft, worker: Worker, key: ListenerKey): void {
  const { top } = draft
  if (top.k !== 'rolling-out' || worker.generation !== candidateOf(top)) return
  draft.top = { ...top, rollout: { ...top.rollout, claimed: new Set([...top.rollout.claimed, key]) } }
}

function askReload(draft: Draft, waiting: Waiting): void {
  const { top } = draft
  switch (top.k) {
    case 'starting':
    case 'rolling-out':
      draft.top = { ...top, next: [...top.next, waiting] }
      return
    case 'steady':
      return beginRollout(draft, top.current, [waiting])
    default:
      return answer(
        draft,
        [waiting.ask],
        verdict(draft, 'overtaken', 'r0', null, ['the master is stopping'], 0),
      )
  }
}

/**
 * Whoever asked takes the request back (`--timeout`, TERM to the client). With others still waiting for the same
 * rollout it goes on for them.
 */
function forgetAsk(draft: Draft, ask: AskId, reason: string): void {
  const { top } = draft
  if (top.k !== 'starting' && top.k !== 'rolling-out') return
  const mine = top.next.find((waiting) => waiting.ask === ask)
  if (mine) {
    draft.top = { ...top, next: top.next.filter((waiting) => waiting !== mine) }
    return answer(draft, [ask], verdict(draft, 'overtaken', 'r0', null, [reason], 0))
  }
  if (top.k !== 'rolling-out' || !top.rollout.asks.includes(ask)) return
  const asks = top.rollout.asks.filter((other) => other !== ask)
  if (asks.length === 0) return endRollout(draft, 'overtaken', [reason])
  draft.top = { ...top, rollout: { ...top.rollout, asks } }
  answer(
    draft,
    [ask],
    verdict(draft, 'overtaken', top.rollout.id, null, [reason], draft.at - top.rollout.since),
  )
}

function absorbPinned(draft: Draft, reload: string, policy: Policy): void {
  const { top } = draft
  if (top.k !== 'rolling-out' || top.rollout.id !== reload || top.rollout.doing.k !== 'pinning') return
  const current = draft.generation(top.current)
  if (!current) return
  // The candidate replaces every worker: one that is being replaced by itself waits for it, so that there are
  // never more than twice the slots. (A replacement that alone accepts on something already stays.)
  for (const [index, slot] of current.slots.entries()) {
    if (slot.state.k !== 'replacing') continue
    const replacement = draft.worker(slot.state.with)
    if (!replacement || !isSpare(current, draft.workers, replacement)) continue
    const when = draft.in(LEAVING_GRACE_MS)
    draft.setSlot(current.id, index, { state: { k: 'leaving', by: slot.state.by, when } })
    leave(draft, replacement, 'replaced')
  }
  const candidate = draft.addGeneration(
    policy,
    wantsOf(current, draft.workers, policy.slots, top.rollout.drop),
  )
  draft.top = { ...top, rollout: { ...top.rollout, doing: { k: 'bringing-up', candidate } } }
  draft.order({ c: 'announce', what: { a: 'candidate-spawned', reload, generation: candidate } })
}

function absorbStop(draft: Draft, how: 'graceful' | 'now'): void {
  if (draft.top.k === 'ended') return
  stop(draft, 0, [])
  if (how === 'graceful') return
  for (const worker of draft.workers.values()) {
    if (worker.phase.k === 'killed') continue
    draft.setWorker(leaving(worker, { k: 'killed', why: leaveOf(worker) ?? 'stop' }))
    draft.order({ c: 'kill', worker: worker.id })
  }
}

function leaveOf(worker: Worker): Leave | null {
  return worker.phase.k === 'booting' || worker.phase.k === 'ready' ? null : worker.phase.why
}

function stop(draft: Draft, status: 0 | 1, why: readonly string[]): void {
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

/** A worker that cannot be used any more is told to exit at once; its slot is treated as if it had died. */
function fail(draft: Draft, worker: Worker, reason: string): void {
  const by = draft.in(policyOf(draft, worker).killTimeoutMs)
  draft.setWorker(leaving(worker, { k: 'dying', why: 'failed', by }))
  draft.order({ c: 'terminate', worker: worker.id })
  bereave(draft, worker, reason)
}

function absorbExit(draft: Draft, worker: Worker, reason: string, stillborn: boolean): void {
  draft.removeWorker(worker.id)
  if (worker.phase.k !== 'booting' && worker.phase.k !== 'ready') return
  const generation = draft.generation(worker.generation)
  const slot = generation?.slots[worker.slot]
  if (
    stillborn &&
    generation &&
    slot?.state.k === 'filled' &&
    worker.phase.k === 'booting' &&
    worker.phase.stillborn < MAX_STILLBORN &&
    roleOf(draft.top, generation.id) !== 'old'
  ) {
    const stillborn = worker.phase.stillborn + 1
    return draft.setSlot(generation.id, worker.slot, {
      state: { k: 'vacant', retry: draft.in(0), stillborn },
    })
  }
  bereave(draft, worker, reason)
}

/** A worker that was up is lost. What that means depends on the role of its generation. */
function bereave(draft: Draft, worker: Worker, reason: string): void {
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

// --- expire ---------------------------------------------------------------------------------------------------

function expire(draft: Draft): void {
  const { top } = draft
  if (top.k === 'rolling-out' && top.rollout.doing.k === 'pinning' && draft.due(top.rollout.doing.by)) {
    endRollout(draft, 'refused', [
      'reading the configuration and the code path took longer than the start timeout',
    ])
  }
  for (const worker of [...draft.workers.values()]) {
    // An expiry may end a rollout and thereby change workers that come later in this list.
    const now = draft.worker(worker.id)
    if (now) expireWorker(draft, now)
  }
}

function expireWorker(draft: Draft, worker: Worker): void {
  const { phase } = worker
  switch (phase.k) {
    case 'booting':
      if (draft.due(phase.by)) return fail(draft, worker, notReady(draft, worker))
      if (expireGrant(draft, worker)) return
      if (phase.settle === null || phase.settle === 'settled' || !draft.due(phase.settle)) return
      return draft.setWorker({ ...worker, phase: { ...phase, settle: 'settled' } })
    case 'ready':
      expireGrant(draft, worker)
      return
    case 'draining':
      if (!draft.due(phase.by)) return
      draft.order({ c: 'cut', worker: worker.id })
      return draft.setWorker({
        ...worker,
        phase: { k: 'terminating', why: phase.why, by: draft.in(policyOf(draft, worker).shutdownTimeoutMs) },
      })
    case 'terminating':
      if (!draft.due(phase.by)) return
      draft.order({ c: 'terminate', worker: worker.id })
      return draft.setWorker({
        ...worker,
        phase: { k: 'dying', why: phase.why, by: draft.in(policyOf(draft, worker).killTimeoutMs) },
      })
    case 'dying':
      if (!draft.due(phase.by)) return
      draft.order({ c: 'kill', worker: worker.id })
      return draft.setWorker({ ...worker, phase: { k: 'killed', why: phase.why } })
    case 'killed':
      return
  }
}

function expireGrant(draft: Draft, worker: Worker): boolean {
  const late = [...worker.claims].find(([, grant]) => grant.k === 'opening' && draft.due(grant.by))
  if (!late) return false
  fail(
    draft,
    worker,
    `did not accept on ${late[0]} within ${seconds(policyOf(draft, worker).grantTimeoutMs)}`,
  )
  return true
}

const seconds = (ms: Ms): string => `${ms / 1000} s`

/** Why a worker was not ready in time, with every listener that is missing by name. */
function notReady(draft: Draft, worker: Worker): string {
  const { startTimeoutMs, ready } = policyOf(draft, worker)
  const slot = draft.generation(worker.generation)?.slots[worker.slot]
  const lacking = slot ? missing(slot, worker) : []
  const within = `within the start timeout of ${seconds(startTimeoutMs)}`
  if (lacking.length > 0) {
    const keys = lacking.join(', ')
    return (
      `slot ${worker.slot} did not listen on ${keys} ${within}; the current generation does ` +
      `(if that is meant: usr2 reload ${lacking.map((key) => `--drop ${key}`).join(' ')})`
    )
  }
  if (ready === 'message') return `slot ${worker.slot} did not say that it is ready ${within}`
  return `slot ${worker.slot} did not listen on any address ${within} (an app without listeners: --ready message)`
}

// --- conclude -------------------------------------------------------------------------------------------------

function conclude(draft: Draft): void {
  becomeReady(draft)
  const { top } = draft
  if (top.k === 'starting') {
    const current = draft.generation(top.current)
    if (!current || !allServe(draft, current)) return
    draft.top = { k: 'steady', current: top.current }
    const what = { a: 'serving', generation: top.current, tookMs: draft.at - top.since } as const
    draft.order({ c: 'announce', what })
    if (top.next.length > 0) beginRollout(draft, top.current, top.next)
  } else if (top.k === 'rolling-out') {
    concludeRollout(draft, top)
  } else if (top.k === 'stopping' && draft.workers.size === 0 && draft.generations.size === 0) {
    // After the last `unpin` and `release` (see reconcile): whoever performs `exit` performs nothing after it.
    draft.top = { k: 'ended' }
    draft.order({ c: 'exit', status: top.status, why: top.why })
  }
}

function becomeReady(draft: Draft): void {
  for (const worker of draft.workers.values()) {
    if (worker.phase.k !== 'booting' || roleOf(draft.top, worker.generation) === 'old') continue
    const generation = draft.generation(worker.generation)
    if (!generation || !meetsReadiness(generation, worker)) continue
    draft.setWorker({ ...worker, phase: { k: 'ready', since: draft.at } })
    learnWants(draft, worker.id)
    draft.order({ c: 'announce', what: { a: 'worker-ready', worker: worker.id } })
  }
}

function slotWorkers(draft: Draft, generation: Generation): (Worker | undefined)[] {
  return generation.slots.map((slot) => draft.worker(holder(slot) ?? -1))
}

function allServe(draft: Draft, generation: Generation): boolean {
  return slotWorkers(draft, generation).every(serves)
}

function concludeRollout(draft: Draft, top: Extract<Top, { k: 'rolling-out' }>): void {
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

function beginRollout(draft: Draft, current: GenerationId, waiting: readonly Waiting[]): void {
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

/** The only way out of a rollout. Everyone who asked gets its verdict; what was asked meanwhile begins. */
function endRollout(draft: Draft, outcome: Outcome, reasons: readonly string[]): void {
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

function verdict(
  draft: Draft,
  outcome: Outcome,
  reload: string,
  other: GenerationId | null,
  reasons: readonly string[],
  tookMs: Ms,
): Verdict {
  return { outcome, reload, current: currentOf(draft.top), other, reasons, tookMs }
}

function answer(draft: Draft, asks: readonly AskId[], given: Verdict): void {
  for (const ask of asks) draft.order({ c: 'answer', ask, verdict: given })
}

// --- reconcile ------------------------------------------------------------------------------------------------

function reconcile(draft: Draft): void {
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

function leaveIfSpare(draft: Draft, worker: Worker, why: Leave): void {
  const current = draft.generation(currentOf(draft.top) ?? -1)
  if (isSpare(current, draft.workers, worker)) return leave(draft, worker, why)
  // It accepts, and had lost its readiness as a candidate: nothing more is expected of it.
  if (worker.phase.k === 'booting') draft.setWorker({ ...worker, phase: { k: 'ready', since: draft.at } })
}

/** Tells a worker to drain and go, once. One that never accepted has nothing to drain: only its shutdown is left. */
function leave(draft: Draft, worker: Worker, why: Leave): void {
  if (worker.phase.k !== 'booting' && worker.phase.k !== 'ready') return
  const { drainTimeoutMs, shutdownTimeoutMs } = policyOf(draft, worker)
  const phase: WorkerPhase =
    everOpened(worker) || worker.listensPrivately
      ? { k: 'draining', why, by: draft.in(drainTimeoutMs) }
      : { k: 'terminating', why, by: draft.in(shutdownTimeoutMs) }
  draft.setWorker(leaving(worker, phase))
  draft.order({ c: 'drain', worker: worker.id })
}

/**
 * It accepts no more, and has its copies until it says otherwise or ends. No grant of it stays `opening`: nothing
 * would act on that timer any more, and a deadline in the past makes the shell wake for ever.
 */
function leaving(worker: Worker, phase: WorkerPhase): Worker {
  return { ...worker, phase, claims: new Map([...worker.claims.keys()].map((key) => [key, { k: 'held' }])) }
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
