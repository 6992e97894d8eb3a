/** What an operator asks: refused with a sentence where it makes no sense, and nothing is changed then. */
import type { Draft } from './draft.ts'
import { candidateOf, currentOf, isGoing, parkedOf } from './questions.ts'
import { resize } from './resize.ts'
import { answer, beginRollback, endRollout, unpark, verdict } from './rollout.ts'
import { pause, promoteNow, resume } from './shares.ts'
import type { AskId, GenerationId, Order, OrderId } from './state.ts'

const MAX_SLOTS = 1024
const NO_ROLLOUT = 'There is no rollout.'

export function obey(draft: Draft, order: OrderId, what: Order): void {
  draft.order({ c: 'reply', order, problem: tryTo(draft, what) })
}

/** Gives why not. */
function tryTo(draft: Draft, what: Order): string | null {
  const { top } = draft
  if (isGoing(top)) return 'The master is stopping.'
  if (what.k === 'scale' || what.k === 'scale-by') return scale(draft, what)
  if (top.k !== 'rolling-out') return NO_ROLLOUT
  const { doing } = top.rollout
  switch (what.k) {
    case 'promote':
      if (doing.k === 'holding' || doing.k === 'analysing' || doing.k === 'paused') {
        promoteNow(draft, what.full)
        return null
      }
      return 'The rollout waits for no promotion: its next share is on its way.'
    case 'pause':
      if (doing.k === 'paused') return 'The rollout is paused already.'
      if (top.rollout.plan.length === 0) return 'The rollout has only just begun.'
      if (doing.k === 'holding' || doing.k === 'analysing') pause(draft, 'operator', ASKED)
      else if (endsWithThisShare(draft))
        return 'It is at its last share, and is promoted with that: usr2 abort ends it.'
      else draft.top = { ...top, rollout: { ...top.rollout, pause: 'asked' } }
      return null
    case 'resume':
      if (doing.k === 'paused') resume(draft)
      else if (top.rollout.pause === 'asked')
        draft.top = { ...top, rollout: { ...top.rollout, pause: 'none' } }
      else return 'The rollout is not paused.'
      return null
    case 'abort':
      endRollout(draft, 'candidate' in doing ? 'rolled-back' : 'overtaken', ['the operator aborted it'])
      return null
  }
}

/** Else a pause has its place: between this share and what follows. */
function endsWithThisShare(draft: Draft): boolean {
  const { top } = draft
  if (top.k !== 'rolling-out') return false
  const { doing, plan, at } = top.rollout
  const policy = doing.k === 'before-spawn' ? doing.policy : draft.generation(candidateOf(top) ?? -1)?.policy
  return policy?.replaced === 'parked' && plan[at + 1] === undefined
}

const ASKED = 'the operator asked for it'

function scale(draft: Draft, what: Extract<Order, { k: 'scale' | 'scale-by' }>): string | null {
  const { top } = draft
  if (top.k !== 'steady')
    return 'The number of workers is changed only while nothing else is: try again later.'
  const generation = draft.generation(top.current)
  if (!generation) return NO_ROLLOUT
  const from = generation.slots.length
  const to = what.k === 'scale' ? what.to : from + what.by
  if (!Number.isInteger(to) || to < 1 || to > MAX_SLOTS)
    return `The number of workers must be from 1 to ${MAX_SLOTS}, not ${to}.`
  if (to === from) return null
  const configured = draft.scale?.configured ?? from
  draft.scale = { slots: to, configured }
  resize(draft, generation, to)
  return null
}

/** @param to null: the generation before the current one */
export function askRollback(draft: Draft, ask: AskId, to: GenerationId | null): void {
  const { top } = draft
  const current = currentOf(top)
  const say = (outcome: 'refused' | 'overtaken' | 'promoted', reasons: readonly string[]): void =>
    answer(draft, [ask], verdict(draft, outcome, 'r0', null, reasons, 0, 'rollback'))
  if (isGoing(top)) return say('overtaken', ['the master is stopping'])
  if (top.k === 'rolling-out' && (to === null || to === current)) {
    endRollout(draft, 'candidate' in top.rollout.doing ? 'rolled-back' : 'overtaken', [
      'the operator rolled it back',
    ])
    return say('promoted', ['the rollout was ended'])
  }
  if (top.k !== 'steady' || current === null) {
    const why = top.k === 'rolling-out' ? 'a rollout runs: abort it first' : 'nothing serves yet'
    return say('refused', [why])
  }
  if (to === current) return say('refused', [`generation ${to} is the current one`])
  const parked = parkedOf(top)
  const target = to ?? parked ?? draft.history.at(-1) ?? null
  if (target === null) return say('refused', ['there is no earlier generation to go back to'])
  if (target === parked) return unpark(draft, current, [ask], target)
  if (draft.history.includes(target)) return beginRollback(draft, current, [ask], target)
  const known = draft.history.length > 0 ? `; known are ${draft.history.join(', ')}` : ''
  say('refused', [`nothing is kept of generation ${target}${known}`])
}
