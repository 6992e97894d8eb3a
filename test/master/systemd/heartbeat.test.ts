import t from 'tap'
import { Heartbeat } from '../../../src/master/systemd/heartbeat.ts'
import type { Pulse } from '../../../src/master/systemd/heartbeat.ts'

/** Workers that answer when they are asked, until `hung`; a beat each second, and 6 s to find and replace one. */
function setUp(count: number) {
  const said: string[] = []
  const log = (_facts: object, text: string): void => void said.push(text)
  const workers = Array.from({ length: count }, () => ({
    hung: false,
    asked: 0,
    heardAt: 0,
    ask() {
      this.asked++
      if (!this.hung) this.answer()
    },
    answer() {
      this.heardAt = performance.now()
    },
  }))
  let serving: readonly Pulse[] = workers
  const heartbeat = new Heartbeat({
    ...{
      intervalMs: 1_000,
      serving: () => serving,
      remedyMs: () => 6_000,
      log: { error: log, info: log },
    },
  })
  const beats = (n: number) => Array.from({ length: n }, () => (heartbeat.isBeating() ? '+' : '-')).join('')
  return { workers, beats, said, serve: (next: readonly Pulse[]) => (serving = next) }
}

t.test('beats while at least half answer', async (t) => {
  for (const [count, mayHang] of [
    [1, 0],
    [2, 1],
    [3, 1],
    [4, 2],
    [5, 2],
  ] as const) {
    const { workers, beats } = setUp(count)
    t.equal(beats(3), '+++')
    for (const worker of workers.slice(0, mayHang)) worker.hung = true
    t.equal(beats(20), '+'.repeat(20), `${mayHang} of ${count} may hang`)
    workers[mayHang]!.hung = true
    // Asked at the first beat; from the seventh after it on it is silent for more than 6 s.
    t.equal(beats(20), `${'+'.repeat(7)}${'-'.repeat(13)}`, 'one more, and when its time is over it ends')
  }
})

t.test('beats again when they answer, says so once, and does not fill their channels', async (t) => {
  const { workers, beats, said } = setUp(2)
  for (const worker of workers) worker.hung = true
  beats(100)
  t.same(
    workers.map(({ asked }) => asked),
    [1, 1],
    'one question is open at a time',
  )
  for (const worker of workers) {
    worker.hung = false
    worker.answer()
  }
  t.equal(beats(3), '+++')
  t.match(said, [/^0 of 2 workers answer: systemd's watchdog is not fed/, /^2 of 2 workers answer/])
})

t.test('who does not serve does not count', async (t) => {
  const { workers, beats, serve } = setUp(2)
  for (const worker of workers) worker.hung = true
  t.equal(beats(10).at(-1), '-')
  serve([])
  t.equal(beats(1), '+', 'where none serves, the master is starting some')
  const fresh = setUp(1)
  serve(fresh.workers)
  t.equal(beats(10), '+'.repeat(10), 'their successors answer')
})
