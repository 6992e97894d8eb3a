/**
 * From "stop" to the first worker that drains. A graceful stop is announced first, and everything serves on meanwhile:
 * `beforeStop` takes the host out of a registry, then load balancers have `stopDelayMs` to see that /readyz fails. Kubernetes
 * sends SIGTERM at the same time as it begins to tell its proxies: without a delay they send connections to a closed door.
 */
import type { Draft } from './draft.ts'
import { leaving } from './leaving.ts'
import { endForGood, stop } from './losing.ts'
import { currentOf, isGoing, serves } from './questions.ts'
import { answer, verdict } from './rollout.ts'
import type { Generation, Leave, Ms, Worker } from './state.ts'

/** @param how `now`: nothing is waited for, and what is in flight is lost */
export function askStop(draft: Draft, how: 'graceful' | 'now' | 'replaced'): void {
  if (draft.top.k === 'ended') return
  if (how === 'graceful') return takeLeave(draft)
  stop(draft, 0, [])
  if (how === 'replaced') return
  for (const worker of draft.workers.values()) {
    if (worker.phase.k === 'killed') continue
    draft.setWorker(leaving(worker, { k: 'killed', why: leaveOf(worker) ?? 'stop' }))
    draft.order({ c: 'kill', worker: worker.id })
  }
}

const ASKED = ['the master was told to stop']

function takeLeave(draft: Draft): void {
  const { top } = draft
  if (isGoing(top)) return
  const current = draft.generation(currentOf(top) ?? -1)
  if (current === undefined) return stop(draft, 0, [])
  const isHooked = current.policy.hooks.includes('beforeStop')
  const delayMs = delayMsOf(draft, current)
  if (!isHooked && delayMs === 0) return stop(draft, 0, [])
  const next = endForGood(draft, ASKED)
  const hookMs = isHooked ? current.policy.hookTimeoutMs : 0
  draft.order({ c: 'announce', what: { a: 'leaving', inMs: hookMs + delayMs } })
  if (isHooked) {
    draft.top = { k: 'leaving', current: current.id, doing: 'before-stop', until: draft.in(hookMs) }
    const hook = { hook: 'beforeStop', reload: 'r0', current: current.id, candidate: null } as const
    draft.order({ c: 'run-hook', ...hook })
  } else delay(draft, current)
  answer(draft, next, verdict(draft, 'overtaken', 'r0', null, ASKED, 0))
}

/** What does not serve is known to no load balancer. */
function delayMsOf({ workers }: Draft, { policy }: Generation): Ms {
  return [...workers.values()].some(serves) ? policy.stopDelayMs : 0
}

function delay(draft: Draft, current: Generation): void {
  const until = draft.in(delayMsOf(draft, current))
  draft.top = { k: 'leaving', current: current.id, doing: 'delay', until }
}

/** Whether it went well or not: a registry that cannot be reached is no reason to serve on. */
export function hookOfStopEnded(draft: Draft): void {
  const { top } = draft
  if (top.k !== 'leaving' || top.doing !== 'before-stop') return
  const current = draft.generation(top.current)
  if (current === undefined) return stop(draft, 0, [])
  delay(draft, current)
  // The delay may be none.
  expireFarewell(draft)
}

export function expireFarewell(draft: Draft): void {
  const { top } = draft
  if (top.k !== 'leaving' || !draft.due(top.until)) return
  if (top.doing === 'before-stop') hookOfStopEnded(draft)
  else stop(draft, 0, [])
}

function leaveOf(worker: Worker): Leave | null {
  return worker.phase.k === 'booting' || worker.phase.k === 'ready' ? null : worker.phase.why
}
