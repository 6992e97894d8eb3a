/**
 * Who leads: the one worker in which the app's `whileLeader` functions run.
 *
 * One rule: nobody is told to lead while another worker may still be running its functions. A worker leads from the
 * order `lead` until it says that all of them have returned, or its process has ended. So a leader that is told to
 * step down and does not holds everyone else up, for as long as its process lives; the deadlines of its drain end it.
 */
import type { Draft } from './draft.ts'
import { currentOf } from './questions.ts'
import type { Leadership, Worker } from './state.ts'

/** Ready, and of the generation that answers: a candidate never leads, as it may be rolled back. */
function mayLead(draft: Draft, worker: Worker): boolean {
  return worker.phase.k === 'ready' && worker.generation === currentOf(draft.top)
}

export function reconcileLeadership(draft: Draft): void {
  const turn = (worker: Worker, leadership: Leadership): void => draft.setWorker({ ...worker, leadership })
  const workers = [...draft.workers.values()]
  const leader = workers.find(({ leadership }) => leadership === 'leads' || leadership === 'steps-down')
  if (leader === undefined) {
    const next = workers.find((worker) => worker.leadership === 'asked' && mayLead(draft, worker))
    if (next === undefined) return
    turn(next, 'leads')
    draft.order({ c: 'lead', worker: next.id })
  } else if (leader.leadership === 'leads' && !mayLead(draft, leader)) {
    turn(leader, 'steps-down')
    draft.order({ c: 'step-down', worker: leader.id })
  }
}
