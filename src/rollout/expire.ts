/** Second part of a step: acts on every timer that has run out. */
import { Draft, policyOf } from './draft.ts'
import { expireFarewell } from './farewell.ts'
import { fail } from './losing.ts'
import { expireProbes } from './probing.ts'
import { missing } from './questions.ts'
import { expireTired } from './replacing.ts'
import { endRollout, hookEnded } from './rollout.ts'
import { enterStep, expireAnalysis, goOn } from './shares.ts'
import type { Ms, Planned, Worker } from './state.ts'

export function expire(draft: Draft): void {
  // Workers first: what a rollout goes on with may have run out at the same moment.
  for (const worker of [...draft.workers.values()]) {
    // An expiry may end a rollout and thereby change workers that come later in this list.
    const now = draft.worker(worker.id)
    if (now) expireWorker(draft, now)
  }
  expireRollout(draft)
  expireFarewell(draft)
  const { top } = draft
  if ((top.k === 'steady' || top.k === 'rolling-out') && top.parked && draft.due(top.parked.until)) {
    const what = { a: 'unparked', generation: top.parked.generation, why: 'its time is over' } as const
    draft.order({ c: 'announce', what })
    draft.top = { ...top, parked: null }
  }
}

function expireRollout(draft: Draft): void {
  const { top } = draft
  if (top.k !== 'rolling-out') return
  const { doing, id, plan, at } = top.rollout
  switch (doing.k) {
    case 'pinning':
      if (!draft.due(doing.by)) return
      return endRollout(draft, 'refused', [
        'reading the configuration and the code path took longer than the start timeout',
      ])
    case 'before-spawn':
    case 'before-promote': {
      if (!draft.due(doing.by)) return
      const name = doing.k === 'before-spawn' ? 'beforeSpawn' : 'beforePromote'
      return hookEnded(draft, id, name, `the hook ${name} has not ended within its time`)
    }
    case 'bringing-up':
    case 'shifting':
      return draft.due(doing.by) ? endRollout(draft, 'rolled-back', [stalled(plan[at])]) : undefined
    case 'settling':
      if (draft.due(doing.by)) return endRollout(draft, 'rolled-back', [stalled(plan[at])])
      return draft.due(doing.until) ? goOn(draft) : undefined
    case 'holding':
      if (doing.until === 'promote' || !draft.due(doing.until)) return
      return enterStep(draft, at + 1)
    case 'analysing':
      return draft.due(doing.next) ? expireAnalysis(draft) : undefined
    case 'paused':
      return
  }
}

const stalled = (step: Planned | undefined): string => {
  const share = step?.k === 'share' ? `the share of ${step.realPercent} %` : 'this step'
  return `${share} was not reached within the progress deadline`
}

function expireWorker(draft: Draft, worker: Worker): void {
  expireProbes(draft, worker)
  const probed = draft.worker(worker.id)
  if (probed) expireTired(draft, probed)
  const latest = draft.worker(worker.id)
  if (latest) expirePhase(draft, latest)
}

function expirePhase(draft: Draft, worker: Worker): void {
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
  for (const [key, grant] of worker.claims) {
    if (!('by' in grant) || !draft.due(grant.by)) continue
    const what = grant.k === 'opening' ? `did not accept on ${key}` : `did not stop accepting on ${key}`
    fail(draft, worker, `${what} within ${seconds(grant.withinMs)}`)
    return true
  }
  return false
}

const seconds = (ms: Ms): string => `${Math.round(ms) / 1000} s`

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
  const { startup, readiness } = worker.probes
  const failing = [startup, readiness].find(
    (probing) => probing !== undefined && probing.standing !== 'passing',
  )
  if (failing) {
    const which = failing === startup ? 'startup' : 'readiness'
    const why = failing.why === '' ? 'it was not answered' : failing.why
    return `slot ${worker.slot} did not pass its ${which} probe ${within}: ${why}`
  }
  if (worker.warmth === 'warming') return `slot ${worker.slot} was not warmed up ${within}`
  if (ready === 'message') return `slot ${worker.slot} did not say that it is ready ${within}`
  return `slot ${worker.slot} did not listen on any address ${within} (an app without listeners: --ready message)`
}
