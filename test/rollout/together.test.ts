/** Facts that came at the same moment. */
import t from 'tap'
import { initialState } from '../../src/rollout/state.ts'
import type { Command, Fact, State } from '../../src/rollout/state.ts'
import { step } from '../../src/rollout/step.ts'
import { policy } from './builders.ts'

const KEYS = ['tcp:[::]:3000', 'tcp:[::]:3001', 'unix:/run/app.sock']

function start() {
  let { state } = step(initialState, { at: 0, e: 'started', policy: { ...policy, slots: 1 } })
  const [worker = 0] = state.workers.keys()
  const facts = (e: 'claimed' | 'opened' | 'unclaimed', keys = KEYS): Fact[] =>
    keys.map((key) => ({ e, worker, key }))
  const tell = (...told: readonly Fact[]): readonly Command[] => {
    const next = step(state, { at: 1, e: 'together', facts: told })
    state = next.state
    return next.commands
  }
  return { facts, tell, state: (): State => state, worker }
}

t.test('what follows is looked at when all of them are taken in', async (t) => {
  const { facts, tell, state } = start()
  const opened = tell(...facts('claimed')).flatMap((command) => (command.c === 'open' ? [command.key] : []))
  t.same(opened, KEYS)
  t.same([...(state().generations.get(1)?.slots[0]?.wants ?? [])], KEYS, 'it is ready with all of them')
  t.match(tell(...facts('opened')), [{ c: 'announce', what: { a: 'serving' } }])
  t.equal(state().top.k, 'steady')
})

t.test('in their order', async (t) => {
  const { facts, tell, state, worker } = start()
  tell(...facts('claimed'), ...facts('unclaimed', KEYS.slice(1)))
  t.same([...(state().workers.get(worker)?.claims.keys() ?? [])], KEYS.slice(0, 1))
})

t.test('it comes to the same as one after the other', async (t) => {
  const one = start()
  one.tell(...one.facts('claimed'))
  for (const fact of one.facts('opened')) one.tell(fact)
  const other = start()
  other.tell(...other.facts('claimed'))
  other.tell(...other.facts('opened'))
  t.same(other.state(), one.state())
})

t.test('no state is touched by the steps after it', async (t) => {
  const { facts, tell, state, worker } = start()
  tell(...facts('claimed'))
  const before = state()
  tell(...facts('opened'))
  t.same(
    [...(before.workers.get(worker)?.claims.values() ?? [])].map(({ k }) => k),
    KEYS.map(() => 'opening'),
  )
})
