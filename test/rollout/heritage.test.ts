/** A master that replaces another one goes on from where that was. */
import t from 'tap'
import { initialState } from '../../src/rollout/state.ts'
import type { Fact, Heritage, State } from '../../src/rollout/state.ts'
import { step } from '../../src/rollout/step.ts'
import { policy } from './builders.ts'

const KEY = 'tcp:[::]:3000'
const OTHER = 'unix:/run/app.sock'
const heritage: Heritage = {
  ...{ nextGeneration: 8, nextReload: 5, wants: [[KEY, OTHER]], scale: null },
  history: [
    { id: 3, listened: [KEY] },
    { id: 7, listened: [KEY, OTHER] },
  ],
}

const started = (given: Heritage, slots = 1): State =>
  step(initialState, { at: 0, e: 'started', policy: { ...policy, slots }, heritage: given }).state

t.test('its numbers go on', async (t) => {
  const state = started(heritage)
  t.match(state.top, { k: 'starting', current: 8 })
  t.match(state, { nextGeneration: 9, nextReload: 5 })
})

t.test('what the other one could go back to, and that one itself, can be booted again', async (t) => {
  let state = started({ ...heritage, wants: [[KEY, OTHER]] })
  const [worker = 0] = state.workers.keys()
  const tell = (event: Fact) => {
    const { state: next, commands } = step(state, { at: 1, ...event })
    state = next
    return commands.flatMap((command) => (command.c === 'pin' ? [command] : []))
  }
  for (const e of ['claimed', 'opened'] as const) {
    for (const key of [KEY, OTHER]) tell({ e, worker, key })
  }
  t.equal(state.top.k, 'steady')
  const to3 = step(state, { at: 1, e: 'rollback-asked', ask: 1, to: 3 }).state.top
  t.ok(to3.k === 'rolling-out' && to3.rollout.drop.has(OTHER), 'what that one did not listen on goes')
  t.match(tell({ e: 'rollback-asked', ask: 2, to: null }), [{ of: 7, generation: 9 }])
})

t.test('it serves only when it listens wherever the other one does', async (t) => {
  let state = started(heritage)
  const [worker = 0] = state.workers.keys()
  const tell = (e: 'claimed' | 'opened', key: string) => {
    const { state: next, commands } = step(state, { at: 1, e, worker, key })
    state = next
    return commands.flatMap((command) => (command.c === 'open' ? [command.key] : []))
  }
  t.same(tell('claimed', KEY), [], 'its gate is shut')
  t.same(tell('claimed', OTHER).toSorted(), [KEY, OTHER])
  tell('opened', KEY)
  t.equal(state.top.k, 'starting')
  tell('opened', OTHER)
  t.equal(state.top.k, 'steady')
})

t.test('the number of slots that an operator asked for stays until the configured one changes', async (t) => {
  const scale = { slots: 3, configured: 1 }
  t.equal(started({ ...heritage, scale }).generations.get(8)?.slots.length, 3)
  const changed = started({ ...heritage, scale }, 2)
  t.equal(changed.generations.get(8)?.slots.length, 2)
  t.equal(changed.scale, null)
})
