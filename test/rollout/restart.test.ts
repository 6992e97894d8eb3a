import t from 'tap'
import { BACKOFF_LAST_MS, backoffMs, countDeath, hopeless } from '../../src/rollout/restart.ts'
import type { Slot } from '../../src/rollout/state.ts'
import { policy } from './builders.ts'

t.test('the wait before a vacancy is filled doubles from 100 ms to 30 s', async (t) => {
  t.same([1, 2, 3, 4, 9, 10, 50].map(backoffMs), [100, 200, 400, 800, 25_600, 30_000, 30_000])
  t.equal(backoffMs(0), 100)
  t.equal(backoffMs(100_000), BACKOFF_LAST_MS, 'also past what a number can double')
})

t.test('deaths in a row', async (t) => {
  t.equal(countDeath(3, null, policy), 4, 'it never was ready')
  t.equal(countDeath(3, policy.minUptimeMs - 1, policy), 4, 'it was ready, and not for long')
  t.equal(countDeath(3, policy.minUptimeMs, policy), 1, 'it died of something new')
})

t.test('hopeless when every slot is past maxRestarts', async (t) => {
  const slot = (deaths: number): Slot => ({ state: { k: 'filled', by: 1 }, deaths, wants: null })
  t.notOk(hopeless([slot(8)], policy))
  t.ok(hopeless([slot(9)], policy))
  t.notOk(hopeless([slot(9), slot(8)], policy))
  t.ok(hopeless([slot(9), slot(20)], policy))
})
