/** `whileLeader` in one worker: what it says to the master, and when the app's functions run. */
import { AsyncLocalStorage } from 'node:async_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { prepareLeadership } from '../../src/worker/leadership.ts'
import type { Link } from '../../src/worker/link.ts'

function prepare() {
  const said: string[] = []
  let holds = 0
  const link: Link = {
    send: (message) => void said.push(message.t.replace('leadership-', '')),
    onMessage: () => {},
    onLost: () => {},
    hold() {
      holds++
      return () => void holds--
    },
    connected: true,
  }
  const warnings: string[] = []
  const leadership = prepareLeadership(link, (text) => void warnings.push(text))
  return { leadership, said, warnings, holds: () => holds }
}

/** A function that runs until the test lets it return, and what it was called with. */
function work() {
  const signals: AbortSignal[] = []
  let end = (): void => {}
  let fail = (_: unknown): void => {}
  const run = (signal: AbortSignal): Promise<void> => {
    signals.push(signal)
    return new Promise<void>((resolve, reject) => ([end, fail] = [resolve, reject]))
  }
  return { run, signals, end: () => end(), fail: (error: unknown) => fail(error) }
}

const settle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

t.test('a worker that comes to lead again runs its function again, with a signal of its own', async (t) => {
  const { leadership, said, holds } = prepare()
  const job = work()
  const done = leadership.whileLeader(job.run)
  t.same([said, job.signals.length, holds()], [['asked'], 0, 1])
  leadership.lead()
  leadership.lead()
  t.equal(job.signals.length, 1, 'once a term')
  leadership.stepDown()
  leadership.stepDown()
  t.equal(job.signals[0]?.aborted, true)
  await settle()
  t.same(said, ['asked'], 'told to, it leads until it has returned')
  job.end()
  await settle()
  t.same([said, holds()], [['asked', 'ended', 'asked'], 1], 'and asks again')
  leadership.stepDown()
  leadership.lead()
  t.same([job.signals.length, job.signals[1]?.aborted], [2, false])
  job.end()
  await done
  await settle()
  t.same([said.at(-1), said.length, holds()], ['ended', 4, 0], 'returned by itself: it has resigned')
})

t.test('several functions are one leadership', async (t) => {
  const { leadership, said } = prepare()
  const [a, b, c, d] = [work(), work(), work(), work()]
  const [first, second] = [leadership.whileLeader(a.run), leadership.whileLeader(b.run)]
  leadership.lead()
  const third = leadership.whileLeader(c.run)
  t.equal(c.signals.length, 1, 'who comes later, runs at once')
  a.end()
  await first
  t.same(said, ['asked'], 'others still run')
  leadership.stepDown()
  void leadership.whileLeader(d.run)
  t.equal(d.signals.length, 0, 'nothing new is begun by one who is to step down')
  b.end()
  c.fail(new Error('no database'))
  await t.rejects(third, { message: 'no database' }, 'a failure is one also then')
  await settle()
  t.same(said, ['asked', 'ended', 'asked'])
  leadership.lead()
  t.same(
    [a, b, c, d].map(({ signals }) => signals.length),
    [1, 2, 1, 1],
    'who has not settled runs again',
  )
  leadership.leave(1_000)
  b.end()
  d.end()
  await second
})

t.test('to throw the AbortError of the signal is to return', async (t) => {
  const { leadership, said } = prepare()
  const done = Promise.all([
    leadership.whileLeader((signal) => sleep(60_000, undefined, { signal })),
    leadership.whileLeader(async (signal) => {
      await new Promise((resolve) => signal.addEventListener('abort', resolve))
      signal.throwIfAborted()
    }),
  ])
  leadership.lead()
  leadership.leave(1_000)
  await done
  t.same(said, ['asked', 'ended'])
  const early = prepare()
  const failed = early.leadership.whileLeader(() => fetch('data:,', { signal: AbortSignal.abort() }))
  early.leadership.lead()
  await t.rejects(failed, { name: 'AbortError' }, 'one that was not told to stop has failed')
})

t.test('a worker that leaves', async (t) => {
  await t.test('who waits to lead waits no more, nor does who asks later', async (t) => {
    const { leadership, said, holds } = prepare()
    const job = work()
    const waits = leadership.whileLeader(job.run)
    leadership.leave(1_000)
    await Promise.all([waits, leadership.whileLeader(job.run)])
    // It crossed the order to drain on its way: the master must hear that nobody leads here.
    leadership.lead()
    await settle()
    t.same([said, job.signals.length, holds()], [['asked', 'ended'], 0, 0])
    let over = false
    leadership.whenReturned(() => (over = true))
    t.equal(over, true, 'nothing to wait for')
  })
  for (const way of ['returns', 'runs out of time', 'is cut'] as const) {
    await t.test(`a function that ${way}`, async (t) => {
      const { leadership, said, warnings } = prepare()
      const job = work()
      void leadership.whileLeader(job.run)
      leadership.lead()
      leadership.leave(way === 'runs out of time' ? 20 : 60_000)
      let times = 0
      const over = new Promise<void>((resolve) =>
        leadership.whenReturned(() => {
          times++
          resolve()
        }),
      )
      await settle()
      t.equal(times, 0, 'is waited for')
      if (way === 'returns') job.end()
      if (way === 'is cut') leadership.cut()
      await over
      leadership.cut()
      job.end()
      await settle()
      t.equal(times, 1)
      t.same(said, ['asked', 'ended'], 'ended is said when it has returned, no sooner')
      t.equal(warnings.length, way === 'returns' ? 0 : 1)
    })
  }
})

t.test('functions and their abort listeners run in the async context of the call', async (t) => {
  const { leadership } = prepare()
  const context = new AsyncLocalStorage<string>()
  const seen: unknown[] = []
  const done = context.run('of the app', () =>
    leadership.whileLeader(async (signal) => {
      seen.push(context.getStore())
      await new Promise<void>((resolve) =>
        signal.addEventListener('abort', () => {
          seen.push(context.getStore())
          resolve()
        }),
      )
    }),
  )
  context.run('of the channel', () => leadership.lead())
  context.run('of the channel', () => leadership.leave(1_000))
  await done
  t.same(seen, ['of the app', 'of the app'])
})
