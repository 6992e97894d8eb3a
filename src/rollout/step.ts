/**
 * The machine: (state, event) -> (state, commands). Everything the master decides is decided here.
 *
 * One step has four parts, always in this order:
 *   absorb     take the fact in
 *   expire     act on every timer that has run out
 *   conclude   move the top: serving, shifting, promoted, rolled back, ended
 *   reconcile  compare what is with what should be; the only producer of spawn, open, lead, drain and release
 * `conclude` and `reconcile` repeat until nothing changes, so that one event carries as far as it can.
 *
 * `step` is total: a fact about a worker that is not known (any more), or that its phase has no use for, changes
 * nothing. Facts come from other processes, late and in any order.
 */
import { absorb } from './absorb.ts'
import { conclude } from './conclude.ts'
import { Draft } from './draft.ts'
import { expire } from './expire.ts'
import { reconcile } from './reconcile.ts'
import type { Command, Event, State } from './state.ts'

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
