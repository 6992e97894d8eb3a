/** Reload after reload: nothing of them stays, neither in the master nor on disk, and no request is lost. */
import t from 'tap'
import { growthFrom, holdsMore, type Sample, sampleOf, type Watched } from '../../scripts/bench/growth.ts'
import { childrenOf, isAlive } from '../../scripts/bench/proc.ts'
import { expectNoneFailed, loadUnder } from '../helpers/load.ts'
import { processesWithToken } from '../helpers/processes.ts'
import { freePort } from '../helpers/tmp.ts'
import { dirname } from 'node:path'
import { startUsr2 } from '../helpers/usr2.ts'
import { until } from '../helpers/wait.ts'

const RELOADS = 60
/** Growth counts from here on: until then pools and caches fill. */
const FROM = 20
const EVERY = 10

t.test(`${RELOADS} reloads in a row leave no fd, process or file, and no memory to speak of`, async (t) => {
  const port = await freePort(t)
  const usr2 = startUsr2(t, { fixture: 'http-app.cjs', env: { PORT: String(port) } })
  await usr2.ready()
  const watched: Watched = {
    master: usr2.pid,
    directory: dirname(usr2.control),
    processes: () => processesWithToken(usr2.process.token).map(({ pid }) => pid),
  }
  const load = await loadUnder(t, {
    target: { port },
    traffic: [
      { mode: 'new', connections: 1, thinkMs: [5, 15] },
      { mode: 'keepalive', connections: 3, thinkMs: [5, 30] },
    ],
  })
  const samples: Sample[] = []
  for (let reload = 1; reload <= RELOADS; reload++) {
    const old = childrenOf(usr2.pid)
    const from = usr2.process.lines.length
    usr2.signal('SIGUSR2')
    await usr2.event('promoted', { from })
    await until(() => !old.some(isAlive), { timeoutMs: 20_000, what: 'the old worker to end' })
    if (reload % EVERY > 0) continue
    // The end of a worker's channel reaches the master a moment after the end of its process. One that stays open
    // is still there at the end of the wait, and is told below.
    let sample = sampleOf(watched, reload)
    const before = samples.at(-1)
    const settled = () => before === undefined || !holdsMore((sample = sampleOf(watched, reload)), before)
    await until(settled, { timeoutMs: 2_000, what: 'no more than before' }).catch(() => {})
    samples.push(sample)
  }
  expectNoneFailed(t, await load.stop())
  t.same(growthFrom(samples, FROM), [], 'no growth')
  t.equal(samples.at(-1)?.processes, 2, 'the master and its one worker')
  await usr2.stop()
})

t.test('growth is seen: one fd, one file, one process, 6 MB more', async (t) => {
  const sample: Sample = { reload: 20, fds: { socket: 3 }, processes: 2, files: ['c.sock'], rssMb: 50 }
  const later = { ...sample, reload: 30 }
  t.same(growthFrom([sample, { ...later, rssMb: 54.9 }], 20), [])
  t.equal(growthFrom([sample, { ...later, fds: { socket: 4 } }], 20).length, 1)
  t.equal(growthFrom([sample, { ...later, files: ['c.sock', 'left'] }], 20).length, 1)
  t.equal(growthFrom([sample, { ...later, processes: 3 }], 20).length, 1)
  t.same(growthFrom([{ ...sample, fds: { socket: 4 } }, later], 20), [], 'one less is no growth')
  t.match(growthFrom([sample, { ...later, rssMb: 56 }], 20), [/RSS of the master: 6.0 MB more/])
  t.match(growthFrom([{ ...sample, reload: 10 }, later], 20), [/no two samples/])
})
