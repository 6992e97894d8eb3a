/** The guest's clock is that of `performance.now()`, whatever the app makes of that. */
import { performance } from 'node:perf_hooks'
import t from 'tap'
import { now } from '../../src/worker/clock.ts'

t.test('the same clock', (t) => {
  const before = performance.now()
  const at = now()
  t.ok(before <= at && at <= performance.now(), 'between two looks at it')
  t.end()
})

t.test('an app that puts a clock of its own in its place', (t) => {
  const original = performance.now
  t.teardown(() => (performance.now = original))
  const before = now()
  performance.now = () => -1
  t.ok(now() >= before)
  t.end()
})
