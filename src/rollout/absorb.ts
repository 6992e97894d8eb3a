/** First part of a step: takes one fact in. A fact that its state has no use for changes nothing. */
import { Draft, policyOf } from './draft.ts'
import { askStop, hookOfStopEnded } from './farewell.ts'
import { LEAVING_GRACE_MS } from './leaving.ts'
import { bereave, fail } from './losing.ts'
import { askRollback, obey } from './orders.ts'
import { answered } from './probing.ts'
import { candidateOf, roleOf } from './questions.ts'
import { weighed } from './replacing.ts'
import { answer, beginRollout, endRollout, hookEnded, learnWants, pinned, verdict } from './rollout.ts'
import { OVERTAKEN, measured } from './shares.ts'
import { postpone } from './timers.ts'
import type {
  AskId,
  Fact,
  GenerationId,
  Heritage,
  ListenerKey,
  Policy,
  Waiting,
  Worker,
  WorkerId,
} from './state.ts'

/** How long an app may have only a private listener (port 0) before that counts as its readiness. */
export const SETTLE_MS = 1_000

/** A booting worker killed by a stray signal is started again at most so often in a row. */
export const MAX_STILLBORN = 5

export function absorb(draft: Draft, event: Fact): void {
  switch (event.e) {
    case 'started': {
      if (draft.top.k !== 'idle') return
      const current = firstGeneration(draft, event.policy, event.heritage)
      draft.top = { k: 'starting', current, since: draft.at, next: [] }
      return
    }
    case 'reload-asked':
      return askReload(draft, { ask: event.ask, drop: event.drop })
    case 'ask-gone':
      return forgetAsk(draft, event.ask, event.reason)
    case 'pinned':
      return pinned(draft, event.reload, event.policy, event.memory)
    case 'pin-failed': {
      const { top } = draft
      if (top.k !== 'rolling-out' || top.rollout.id !== event.reload || top.rollout.doing.k !== 'pinning')
        return
      return endRollout(draft, 'refused', event.reasons)
    }
    case 'rollback-asked':
      return askRollback(draft, event.ask, event.to)
    case 'ordered':
      return obey(draft, event.order, event.what)
    case 'hook-ended':
      if (event.hook === 'beforeStop') return hookOfStopEnded(draft)
      return hookEnded(draft, event.reload, event.hook, event.failure)
    case 'measured':
      return measured(draft, event.reload, event.candidate, event.current)
    case 'stop-asked':
      return askStop(draft, event.how)
    case 'overslept':
      return draft.rewrite((state) => postpone(state, event.lagMs))
    case 'ticked':
      return
    case 'together':
      for (const fact of event.facts) absorb(draft, fact)
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

/** Also the first one of a master that replaces another: it counts on, and must listen wherever its predecessor does. */
function firstGeneration(draft: Draft, given: Policy, heritage: Heritage | undefined): GenerationId {
  const vacant = { k: 'vacant', retry: draft.in(0), stillborn: 0 } as const
  if (heritage === undefined) return draft.addGeneration(given, vacant)
  // The number of slots that an operator asked for stays until the configured one changes.
  const scale = heritage.scale?.configured === given.slots ? heritage.scale : null
  draft.inherit({ ...heritage, scale })
  const wants = heritage.wants.map((keys) => new Set(keys))
  return draft.addGeneration({ ...given, slots: scale?.slots ?? given.slots }, vacant, wants)
}

type WorkerFact = Extract<Fact, { worker: WorkerId }>

function absorbWorkerFact(
  draft: Draft,
  worker: Worker,
  event: Exclude<WorkerFact, { e: 'worker-exited' }>,
): void {
  const isUp = worker.phase.k === 'booting' || worker.phase.k === 'ready'
  switch (event.e) {
    case 'claimed': {
      if (worker.claims.has(event.key)) return
      draft.setClaim(worker, event.key, { k: 'held' })
      // It crossed our order to leave on its way: bound for nobody, unless the current generation listens there too.
      // So is what a parked worker opens, and one whose slot was scaled away.
      const role = roleOf(draft.top, worker.generation)
      const slot = draft.generation(worker.generation)?.slots[worker.slot]
      if (!isUp || role === 'old' || role === 'parked' || slot === undefined)
        return draft.setDropping([...draft.dropping, event.key])
      noteClaim(draft, worker, event.key)
      if (worker.phase.k === 'ready') learnWants(draft, worker.id)
      return
    }
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
    case 'worker-broke':
      // One that leaves has its deadlines.
      if (isUp) fail(draft, worker, `slot ${worker.slot} ${event.reason}`)
      return
    case 'withdrawn':
      if (!isUp) draft.setClaim(worker, event.key, null)
      // It has no copy now, and waits to be granted again.
      else if (worker.claims.get(event.key)?.k === 'withdrawing')
        draft.setClaim(worker, event.key, { k: 'held' })
      return
    case 'probed':
      return answered(draft, worker, event.probe, event.nth, event.failure)
    case 'warmed':
      if (worker.warmth !== 'warming') return
      if (event.failure !== null) {
        const what = { a: 'warm-up-failed', worker: worker.id, why: event.failure } as const
        draft.order({ c: 'announce', what })
      }
      return draft.setWorker({ ...worker, warmth: 'warm' })
    case 'weighed':
      return weighed(draft, worker, event.rssBytes, event.requests, event.memory)
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
    case 'leadership-asked':
      if (worker.leadership === 'none') draft.setWorker({ ...worker, leadership: 'asked' })
      return
    case 'leadership-ended':
      if (worker.leadership === 'asked') return
      return draft.setWorker({ ...worker, leadership: 'none' })
    case 'replace-asked': {
      const slot = draft.generation(worker.generation)?.slots[worker.slot]
      if (slot?.state.k !== 'filled' || slot.state.by !== worker.id) return
      const role = roleOf(draft.top, worker.generation)
      if (role === 'old' || role === 'parked') return
      return draft.setSlot(worker.generation, worker.slot, {
        state: { k: 'leaving', by: worker.id, when: draft.in(LEAVING_GRACE_MS) },
      })
    }
  }
}

function noteClaim(draft: Draft, worker: Worker, key: ListenerKey): void {
  const { top } = draft
  if (top.k !== 'rolling-out' || worker.generation !== candidateOf(top)) return
  draft.top = { ...top, rollout: { ...top.rollout, claimed: new Set(top.rollout.claimed).add(key) } }
}

function askReload(draft: Draft, waiting: Waiting): void {
  const { top } = draft
  switch (top.k) {
    case 'rolling-out': {
      draft.top = { ...top, next: [...top.next, waiting] }
      // A hold would keep it waiting for hours, or for a person.
      const { doing, plan, at } = top.rollout
      const waits = doing.k === 'holding' || doing.k === 'analysing' || doing.k === 'paused'
      if (waits && plan[at]?.k !== 'watch') endRollout(draft, 'overtaken', [OVERTAKEN])
      return
    }
    case 'starting':
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
    roleOf(draft.top, generation.id) !== 'old' &&
    roleOf(draft.top, generation.id) !== 'parked'
  ) {
    const stillborn = worker.phase.stillborn + 1
    return draft.setSlot(generation.id, worker.slot, {
      state: { k: 'vacant', retry: draft.in(0), stillborn },
    })
  }
  bereave(draft, worker, reason)
}
