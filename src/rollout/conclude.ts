/** Third part of a step: moves the top. */
import type { Draft } from './draft.ts'
import { meetsReadiness, roleOf } from './questions.ts'
import { allServe, beginRollout, concludeRollout, learnWants } from './rollout.ts'

export function conclude(draft: Draft): void {
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
