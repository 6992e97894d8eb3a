/** Second part of a step: acts on every timer that has run out. */
import { Draft, policyOf } from './draft.ts'
import { fail } from './losing.ts'
import { missing } from './questions.ts'
import { endRollout } from './rollout.ts'
import type { Ms, Worker } from './state.ts'

export function expire(draft: Draft): void {
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
