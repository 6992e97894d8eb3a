/**
 * Keep-alive clients with a time to think of every length up to and beyond the server's idle timer, and most of them
 * at the end of its promise and of the timer itself; reloads at random phases.
 *
 * The app promises 1 s (`Keep-Alive: timeout=1`), and Node closes after 2 s. Within the promise nothing may be lost.
 * After it, and so at the end of the timer, a request may meet the FIN: the race that HTTP/1.1 has by design. How many
 * do is measured, beside the same app on bare Node in the same run.
 */
import t from 'tap'
import { start } from '../helpers/spawn.ts'
import { Thinkers, type ThinkersResult } from '../helpers/thinkers.ts'
import { freePort } from '../helpers/tmp.ts'
import { fixture, startUsr2 } from '../helpers/usr2.ts'

const RELOADS = 5
const TIMER_MS = 2_000
const NEAR_MS = 10
const env = { SET: 'before', KEEP_ALIVE_MS: '1000' }
const steps = (from: number, to: number, step: number): number[] =>
  Array.from({ length: Math.round((to - from) / step) + 1 }, (_, i) => from + i * step)
const THINK_MS = [
  ...steps(0, 2_200, 20),
  ...steps(980, 1_020, 2),
  ...steps(1_980, 2_020, 1),
  ...steps(1_990, 2_010, 1),
]

t.test('no request within the promise is lost, at no phase of the idle timer', async (t) => {
  const seed = Math.floor(Math.random() * 2 ** 31)
  t.comment(`seed ${seed}`)
  const random = randomOf(seed)
  const [port, barePort] = [await freePort(t), await freePort(t)]
  const bare = start(t, process.execPath, {
    name: 'bare Node',
    args: [fixture('keep-alive.cjs')],
    env: { ...env, PORT: String(barePort) },
  })
  const usr2 = startUsr2(t, {
    fixture: 'keep-alive.cjs',
    env: { ...env, PORT: String(port) },
    flags: ['--workers', '2'],
  })
  await Promise.all([usr2.ready(), bare.line('listening')])
  const [mine, others] = [new Thinkers(t, port, THINK_MS), new Thinkers(t, barePort, THINK_MS)]
  for (let i = 0; i < RELOADS; i++) {
    await new Promise((resolve) => setTimeout(resolve, random() * 1_000))
    const { code, stdout } = await usr2.reload({ flags: ['--wait', 'drained'] })
    t.equal(code, 0)
    t.match(stdout, /has ended: .* 0 cut/)
  }
  const [result, bareResult] = [mine.stop(), others.stop()]
  await usr2.stop()

  t.comment(`usr2, ${RELOADS} reloads: ${summaryOf(result)}`)
  t.comment(`bare Node, no reload: ${summaryOf(bareResult)}`)
  t.ok(result.answered > 20 * RELOADS, 'they were at work')
  t.same(result.refused, [], 'every first request of a connection was answered')
  t.same(result.broken, [], 'no idle connection ended before its promise')
  t.same(
    result.lost.filter(({ afterAnswerMs, promisedMs }) => afterAnswerMs < promisedMs),
    [],
    'no request that was sent before it was lost',
  )
})

function summaryOf({ answered, idleClosed, lateMs, lost }: ThinkersResult): string {
  const off = lost.map(({ afterAnswerMs }) => afterAnswerMs - TIMER_MS).sort((a, b) => a - b)
  const near = lateMs.filter((ms) => Math.abs(ms - TIMER_MS) <= NEAR_MS).length
  return (
    `${answered} answered, ${idleClosed} idle connections closed; of ${near} requests sent within ${NEAR_MS} ms of the ` +
    `timer's end ${off.filter((ms) => Math.abs(ms) <= NEAR_MS).length} met the FIN, of all ${off.length} ` +
    (off.length === 0 ? '' : `(sent ${off[0]?.toFixed(1)} to ${off.at(-1)?.toFixed(1)} ms after it)`)
  )
}

/** mulberry32. */
function randomOf(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0
    let x = Math.imul(seed ^ (seed >>> 15), 1 | seed)
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32
  }
}
