import t from 'tap'
import { initialState } from '../../src/rollout/state.ts'
import type { Rollout, State } from '../../src/rollout/state.ts'
import { deadline, postpone } from '../../src/rollout/timers.ts'
import * as built from './builders.ts'
import { booting, byId, generation, open, opening, ready, slotOf, vacant, worker } from './builders.ts'

const rollout: Rollout = {
  ...built.rollout,
  asks: [1],
  drop: new Set(['tcp:[::]:3000']),
  since: 7,
  doing: { k: 'pinning', by: { timerAt: 900 } },
}

const state: State = {
  ...initialState,
  at: 50,
  top: { k: 'rolling-out', current: 1, rollout, next: [{ ask: 2, drop: [] }], parked: null },
  generations: new Map([[1, generation([slotOf(1, ['a']), vacant(null)])]]),
  workers: byId(
    worker(1, ready, { a: open, b: opening }),
    worker(2, booting),
    worker(3, { k: 'draining', by: { timerAt: 400 }, why: 'replaced' }),
  ),
}

t.test('the deadline is the first timer, wherever it is', async (t) => {
  t.equal(deadline(initialState), null)
  t.equal(deadline(state), 200, 'a vacancy')
  t.equal(deadline({ ...state, generations: new Map() }), 400, 'a drain')
  const [one, two] = state.workers.values()
  if (!one || !two) throw new Error('there are three workers')
  t.equal(deadline({ ...state, generations: new Map(), workers: byId(one, two) }), 500, 'a grant')
  t.equal(deadline({ ...state, generations: new Map(), workers: byId(two) }), 900, 'the pinning')
  t.equal(deadline({ ...initialState, workers: byId(two) }), 60_000, 'a start')
})

t.test('a settling private listener is a timer too', async (t) => {
  const settling = worker(1, { ...booting, settle: { timerAt: 1_100 } })
  t.equal(deadline({ ...initialState, workers: byId(settling) }), 1_100)
  const settled = worker(1, { ...booting, settle: 'settled' })
  t.equal(deadline({ ...initialState, workers: byId(settled) }), 60_000)
})

t.test('postponed: every timer later by as much, and nothing else changed', async (t) => {
  const later = postpone(state, 1_000)
  t.equal(deadline(later), 1_200)
  t.same(later.workers.get(1)?.claims.get('b'), { k: 'opening', by: { timerAt: 1_500 }, withinMs: 500 })
  t.same(later.workers.get(3)?.phase, { k: 'draining', by: { timerAt: 1_400 }, why: 'replaced' })
  t.equal(later.at, 50, 'the time it is does not change')
  t.same(later.workers.get(1)?.phase, ready, 'nor what was')
  t.strictSame(postpone(later, -1_000), state, 'and back again: Maps, Sets and lists are as they were')
  t.equal(deadline(state), 200, 'the state itself was not touched')
})
