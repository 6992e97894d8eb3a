/**
 * Probes of a worker: when it is asked, and what its answers come to. Fields and meanings are Kubernetes' (Pod
 * lifecycle, "Container probes").
 *
 * - startup: asked from when it listens until it passes; the others wait for it. Failing, the worker has failed.
 * - readiness: a worker is ready only once it passes. Failing later takes it out of rotation until it passes again.
 * - liveness: asked of a worker that is ready. Failing, it is replaced.
 *
 * An answer that comes after its timeout, or after the worker has become something else, counts for nothing.
 */
import type { Draft } from './draft.ts'
import { policyOf } from './draft.ts'
import { hasPassed, isUnready, meetsReadiness, othersAccept } from './questions.ts'
import { PROBES } from './state.ts'
import type { Policy, ProbeKind, ProbePolicy, Probing, Worker } from './state.ts'

/** Begins the probes whose time has come, and drops those of a worker that leaves. */
export function reconcileProbes(draft: Draft): void {
  for (const worker of draft.workers.values()) {
    const { k } = worker.phase
    if (k !== 'booting' && k !== 'ready') {
      if (Object.keys(worker.probes).length > 0) draft.setWorker({ ...worker, probes: {} })
      continue
    }
    const policy = policyOf(draft, worker)
    for (const kind of PROBES) {
      const asked = policy.probes[kind]
      const latest = draft.worker(worker.id)
      if (!asked || !latest || latest.probes[kind] || !isDue(draft, latest, kind, policy)) continue
      setProbing(draft, latest, kind, {
        doing: { k: 'waiting', next: draft.in(asked.initialDelayMs) },
        ...{ nth: 0, successes: 0, failures: 0, standing: 'unknown', why: '' },
      })
    }
  }
  askDue(draft)
}

function isDue(draft: Draft, worker: Worker, kind: ProbeKind, policy: Policy): boolean {
  if (kind === 'liveness') return worker.phase.k === 'ready'
  const generation = draft.generation(worker.generation)
  const listens = worker.phase.k === 'ready' || (generation && meetsReadiness(generation, worker))
  return listens === true && (kind === 'startup' || hasPassed(policy, worker, 'startup'))
}

function askDue(draft: Draft): void {
  for (const worker of draft.workers.values()) {
    for (const kind of PROBES) {
      const probing = draft.worker(worker.id)?.probes[kind]
      const policy = policyOf(draft, worker).probes[kind]
      if (!policy || probing?.doing.k !== 'waiting' || !draft.due(probing.doing.next)) continue
      const nth = probing.nth + 1
      const doing = { k: 'asking', by: draft.in(policy.timeoutMs) } as const
      setProbing(draft, draft.worker(worker.id) ?? worker, kind, { ...probing, nth, doing })
      draft.order({ c: 'probe', worker: worker.id, probe: kind, nth, timeoutMs: policy.timeoutMs })
    }
  }
}

export function expireProbes(draft: Draft, worker: Worker): void {
  for (const kind of PROBES) {
    const latest = draft.worker(worker.id)
    const probing = latest?.probes[kind]
    if (!latest || probing?.doing.k !== 'asking' || !draft.due(probing.doing.by)) continue
    const timeoutMs = policyOf(draft, latest).probes[kind]?.timeoutMs ?? 0
    learn(draft, latest, kind, `no answer within ${timeoutMs / 1000} s`)
  }
}

/** @param failure null: it passed */
export function answered(
  draft: Draft,
  worker: Worker,
  kind: ProbeKind,
  nth: number,
  failure: string | null,
): void {
  const probing = worker.probes[kind]
  if (probing?.doing.k !== 'asking' || probing.nth !== nth) return
  learn(draft, worker, kind, failure)
}

function learn(draft: Draft, worker: Worker, kind: ProbeKind, failure: string | null): void {
  const policy = policyOf(draft, worker).probes[kind]
  const probing = worker.probes[kind]
  if (!policy || !probing) return
  const next = judged(probing, policy, failure)
  const isOver = kind === 'startup' && next.standing === 'passing'
  const doing = isOver
    ? ({ k: 'done' } as const)
    : ({ k: 'waiting', next: draft.in(policy.periodMs) } as const)
  setProbing(draft, worker, kind, { ...next, doing })
  if (kind === 'readiness') tellReadiness(draft, worker, next)
  // Whether it is busy or hangs, an operator wants to know at what; the worker will not be there for long.
  const isLost = kind === 'liveness' && next.standing === 'failing' && probing.standing !== 'failing'
  if (isLost) draft.order({ c: 'look-into', worker: worker.id })
}

function tellReadiness(draft: Draft, before: Worker, { standing, why }: Probing): void {
  const { id, phase } = before
  if (phase.k !== 'ready' || (standing === 'failing') === isUnready(before)) return
  if (standing === 'passing') return draft.order({ c: 'announce', what: { a: 'ready-again', worker: id } })
  const stays = [...before.claims].some(([key, { k }]) => k === 'open' && !othersAccept(draft, before, key))
  draft.order({ c: 'announce', what: { a: 'unready', worker: id, why, stays } })
}

/** Pure: one more answer. */
export function judged(probing: Probing, policy: ProbePolicy, failure: string | null): Probing {
  if (failure === null) {
    const successes = probing.successes + 1
    const standing = successes >= policy.successThreshold ? 'passing' : probing.standing
    return { ...probing, successes, failures: 0, standing }
  }
  const failures = probing.failures + 1
  const standing = failures >= policy.failureThreshold ? 'failing' : probing.standing
  return { ...probing, failures, successes: 0, standing, why: failure }
}

function setProbing(draft: Draft, worker: Worker, kind: ProbeKind, probing: Probing): void {
  draft.setWorker({ ...worker, probes: { ...worker.probes, [kind]: probing } })
}
