/** What the app is told, and when. (Closers, and the rest with a real worker: test/e2e/app-api.test.ts.) */
import { AsyncLocalStorage } from 'node:async_hooks'
import t from 'tap'
import { faceApp } from '../../src/worker/app-face.ts'
import type { Leadership } from '../../src/worker/leadership.ts'

function face() {
  const told: string[] = []
  const warnings: string[] = []
  const leadership: Leadership = {
    whileLeader: () => Promise.resolve(),
    lead: () => {},
    stepDown: () => {},
    leave: (timeoutMs) => void told.push(`leader leaves in ${timeoutMs}`),
    whenReturned: (then) => then(),
    cut: () => {},
  }
  const warn = (text: string): void => void warnings.push(text)
  const app = faceApp({ generation: 3, slot: 1, leadership, ready: () => void told.push('ready'), warn })
  return { ...app, told, warnings }
}

const settle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

t.test('granted again: told once, and only after a withdrawal', async (t) => {
  const { guest, told, withdrawn, granted } = face()
  guest.onResume(() => told.push('resumed'))
  granted()
  granted()
  t.same(told, [], 'the first grants of a worker are its start')
  // Two listeners.
  withdrawn()
  withdrawn()
  t.same(told, [])
  granted()
  granted()
  t.same(told, ['resumed'])
  withdrawn()
  granted()
  t.same(told, ['resumed', 'resumed'], 'each time')
})

t.test('the drain: the signal first, then the leader, then the listeners', async (t) => {
  const { guest, told, drains, warnings } = face()
  guest.drainSignal.addEventListener('abort', () => told.push('signal'))
  guest.onDrain(() => {
    throw new Error('no queue')
  })
  guest.onDrain(() => Promise.reject(new Error('no bus')))
  guest.onDrain((timeoutMs) => told.push(`drain within ${timeoutMs}`))
  t.equal(guest.drainSignal, guest.drainSignal, 'one signal')
  t.equal(guest.drainSignal.aborted, false)
  drains(500)
  t.same(told, ['signal', 'leader leaves in 500', 'drain within 500'])
  await settle()
  t.same(warnings, ['onDrain of the app failed: no queue', 'onDrain of the app failed: no bus'])
})

t.test('who comes during the drain is told, too', async (t) => {
  const { guest, drains } = face()
  drains(60_000)
  t.equal(guest.drainSignal.aborted, true)
  const given: number[] = []
  guest.onDrain((timeoutMs) => given.push(timeoutMs))
  t.same(given, [], 'after the caller has done what it is at')
  await settle()
  t.equal(given.length, 1)
  t.ok((given[0] ?? 0) > 0 && (given[0] ?? 0) <= 60_000, 'what is left of the time')
})

t.test('in the async context in which the app said so', async (t) => {
  const { guest, closers, probes, drains, withdrawn, granted } = face()
  const context = new AsyncLocalStorage<string>()
  const seen: unknown[] = []
  const see = (): void => void seen.push(context.getStore())
  context.run('of the app', () => {
    guest.onDrain(see)
    guest.onResume(see)
    guest.onShutdown('database', see, { timeoutMs: 5 })
    guest.onShutdown('server', see)
    guest.onProbe(see)
  })
  context.run('of the channel', () => {
    withdrawn()
    granted()
    drains(1)
    for (const { close } of closers) close()
    for (const answer of probes) void answer('liveness')
  })
  t.same(
    seen,
    Array.from({ length: 5 }, () => 'of the app'),
  )
  t.same(
    closers.map(({ name, timeoutMs }) => [name, timeoutMs]),
    [
      ['database', 5],
      ['server', undefined],
    ],
  )
})
