/** Third part of a step: moves the top. */
import type { Draft } from './draft.ts'
import { fail } from './losing.ts'
import { hasPassed, meetsReadiness, roleOf } from './questions.ts'
import { spread, tire } from './replacing.ts'
import { beginRollout, learnWants } from './rollout.ts'
import { allServe, concludeRollout } from './shares.ts'
import type { Policy, Timer, Worker } from './state.ts'

export function conclude(draft: Draft): void {
  heedProbes(draft)
  becomeReady(draft)
  const { top } = draft
  if (top.k === 'starting') {
    const current = draft.generation(top.current)
    if (!current || !allServe(draft, current)) return
    draft.top = { k: 'steady', current: top.current, parked: null }
    const what = { a: 'serving', generation: top.current, tookMs: draft.at - top.since } as const
    draft.order({ c: 'announce', what })
    if (top.next.length > 0) beginRollout(draft, top.current, top.next)
  } else if (top.k === 'rolling-out') {
    concludeRollout(draft)
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
    const { policy } = generation
    if (!hasPassed(policy, worker, 'startup') || !hasPassed(policy, worker, 'readiness')) continue
    if (!isWarm(draft, worker, policy)) continue
    const ages = agesAt(draft, worker, policy)
    draft.setWorker({ ...worker, phase: { k: 'ready', since: draft.at, ages } })
    learnWants(draft, worker.id)
    draft.order({ c: 'announce', what: { a: 'worker-ready', worker: worker.id } })
  }
}

/** So that the first request of a client meets code that is compiled, and pools that are filled. */
function isWarm(draft: Draft, worker: Worker, policy: Policy): boolean {
  if (!policy.warmUp || worker.warmth === 'warm') return true
  if (worker.warmth === 'cold') {
    draft.setWorker({ ...worker, warmth: 'warming' })
    draft.order({ c: 'warm-up', worker: worker.id })
  }
  return false
}

function agesAt(draft: Draft, { id }: Worker, { replaceAt }: Policy): Timer | null {
  return replaceAt.ageMs === null ? null : draft.in(spread(replaceAt.ageMs, id))
}

function heedProbes(draft: Draft): void {
  for (const { id } of [...draft.workers.values()]) {
    const worker = draft.worker(id)
    const { startup, liveness } = worker?.probes ?? {}
    if (worker && startup?.standing === 'failing') {
      fail(draft, worker, `slot ${worker.slot} did not start: its startup probe fails: ${startup.why}`)
    } else if (worker && liveness?.standing === 'failing' && worker.tired?.why !== 'liveness') {
      const detail = `its liveness probe fails: ${liveness.why}`
      tire(draft, worker, { why: 'liveness', detail, urgent: true, when: 'now', memory: null })
    }
  }
}
