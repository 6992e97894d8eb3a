/**
 * Rollouts of versions that are bad in every way that people meet (DESIGN section 7): each is stopped at the right step,
 * the verdict names the cause with the figures, and no client loses a request.
 */
import { readFileSync } from 'node:fs'
import t from 'tap'
import { expectNoneLost } from '../helpers/deploys.ts'
import { site, verdictOf } from '../helpers/site.ts'
import { fixture } from '../helpers/usr2.ts'

/** A fifth of the connections for the new version, and a judgement. */
const canary = (...limits: string[]) => ({
  workers: 4,
  steps: '20% analyse, 100%',
  analysis: { interval: '2s', count: 3, minRequests: 10, limits },
})

t.test('a version that answers a tenth with 500 is stopped by its error rate', async (t) => {
  const { deploys, usr2, clients } = await site(t, { config: canary('errorRate < 1%') })
  deploys.to('fails-a-tenth', '2.0.0')
  const verdict = await verdictOf(usr2, 'reload')
  t.match(verdict, { outcome: 'rolled-back', current: 1 })
  t.match(verdict.text, /the analysis failed: error rate [\d.]+ % \(must be < 1 %\)/)
  await clients.answered('1.0.0', 200)
  const result = await clients.stop()
  expectNoneLost(t, result)
  t.equal(result.byVersion['1.0.0']?.errors, 0)
  t.ok((result.byVersion['2.0.0']?.errors ?? 0) > 0, 'some met the bad version, and were counted')
  t.match((await usr2.event('analysed')).msg, /error rate/)
  await usr2.stop()
})

t.test('one that is ten times slower is stopped by comparison with the current one', async (t) => {
  const { deploys, usr2, clients } = await site(t, {
    config: canary('p50 < 2x', 'errorRate < 1%'),
    clients: { path: '/?slow' },
  })
  deploys.to('slow', '2.0.0')
  const verdict = await verdictOf(usr2, 'reload')
  t.match(verdict, { outcome: 'rolled-back', current: 1 })
  t.match(verdict.text, /p50 \d+ ms \(must be < 2 times the [\d.]+ ms of the current generation\)/)
  expectNoneLost(t, await clients.stop())
  await usr2.stop()
})

t.test('one that leaks is stopped at its limit', async (t) => {
  const { deploys, usr2, clients } = await site(t, {
    flags: ['--workers', '4', '--steps', '20% 60s, 100%', '--max-memory', '160M'],
  })
  deploys.to('leaks', '2.0.0')
  const verdict = await verdictOf(usr2, 'reload')
  t.match(verdict, { outcome: 'rolled-back', current: 1 })
  t.match(verdict.text, /it takes \d+ MiB of memory, more than the 160 MiB it may/)
  expectNoneLost(t, await clients.stop())
  await usr2.stop()
})

t.test(
  'one whose event loop blocks is replaced by the version before, and its stack is in the log',
  async (t) => {
    const { deploys, usr2, clients } = await site(t, {
      config: {
        ...{
          workers: 4,
          steps: '20% 60s, 100%',
          drainTimeout: '2s',
          shutdownTimeout: '1s',
          killTimeout: '1s',
        },
        probes: { liveness: { eventLoop: true, period: '300ms', timeout: '400ms', failureThreshold: 2 } },
      },
      env: { BLOCK_AFTER: '20' },
      clients: { keepAlive: 0, newPerSecond: 50 },
    })
    deploys.to('blocks', '2.0.0')
    const verdict = await verdictOf(usr2, 'reload')
    t.match(verdict, { outcome: 'rolled-back', current: 1 })
    t.match(verdict.text, /its liveness probe fails: no answer within/)
    t.match((await usr2.event('blocked')).msg, /blocksForEver/)
    const { lost, requests } = await clients.stop()
    // What it had accepted in the very turn that never ended, nobody else can answer.
    const count = Object.values(lost).reduce((sum, n) => sum + n, 0)
    t.ok(count <= 5, `${count} of ${requests} lost with the worker that blocked: ${JSON.stringify(lost)}`)
    await usr2.stop()
  },
)

t.test('one that never gets ready meets no client', async (t) => {
  const { deploys, usr2, clients } = await site(t, {
    config: {
      ...{ workers: 2, startTimeout: '6s' },
      probes: { readiness: { http: { path: '/healthz' }, period: '300ms' } },
    },
  })
  deploys.to('never-ready', '2.0.0')
  const verdict = await verdictOf(usr2, 'reload')
  t.match(verdict, { outcome: 'rolled-back', current: 1 })
  t.match(
    verdict.text,
    /did not pass its readiness probe within the start timeout of 6 s: GET \/healthz answered 503/,
  )
  const result = await clients.stop()
  expectNoneLost(t, result)
  t.equal(result.byVersion['2.0.0'], undefined)
  await usr2.stop()
})

t.test('one that crashes within minReadySeconds is rolled back from what it replaced', async (t) => {
  const { deploys, usr2, clients } = await site(t, {
    flags: ['--workers', '2', '--min-ready-seconds', '10'],
    env: { CRASH_AFTER_MS: '1000', CRASH_FROM: 'boot' },
    clients: { keepAlive: 0 },
  })
  const pids = (await usr2.status()).generations.flatMap(({ workers }) => workers.map(({ pid }) => pid))
  deploys.to('crashes-after', '2.0.0')
  const verdict = await verdictOf(usr2, 'reload')
  t.match(verdict, { outcome: 'rolled-back', current: 1 })
  t.match(verdict.text, /crashes, as it was told to/)
  const after = await usr2.status()
  const current = after.generations.find(({ role }) => role === 'current')
  t.same(
    current?.workers.map(({ pid }) => pid),
    pids,
    'the same processes serve again',
  )
  await clients.answered('1.0.0', 100)
  const { lost, requests } = await clients.stop()
  const count = Object.values(lost).reduce((sum, n) => sum + n, 0)
  // A crash takes with it what its kernel socket had been given and it had not read.
  t.ok(count <= 3, `${count} of ${requests} lost with the process that crashed: ${JSON.stringify(lost)}`)
  await usr2.stop()
})

t.test('one whose readiness flaps is stopped by its probes', async (t) => {
  const { deploys, usr2, clients } = await site(t, {
    config: {
      ...canary('probeSuccess >= 98%'),
      probes: { readiness: { http: { path: '/healthz' }, period: '150ms', failureThreshold: 2 } },
    },
    env: { FLAP_MS: '700' },
  })
  deploys.to('flaps', '2.0.0')
  const verdict = await verdictOf(usr2, 'reload')
  t.match(verdict, { outcome: 'rolled-back', current: 1 })
  t.match(verdict.text, /probe success [\d.]+ % \(must be >= 98 %\)/)
  expectNoneLost(t, await clients.stop())
  await usr2.stop()
})

t.test('the time in which it boots says nothing against a version', async (t) => {
  const { deploys, usr2, clients } = await site(t, {
    config: {
      ...canary('loopDelay < 1s', 'probeSuccess >= 98%'),
      probes: { readiness: { http: { path: '/healthz' }, period: '100ms', failureThreshold: 1000 } },
    },
  })
  // Every one of its workers is blocked for that long, and then not ready yet, just before it is let in.
  const base = readFileSync(fixture('rollouts/base.cjs'), 'utf8')
  const blocks =
    'const until = Date.now() + 3000\nwhile (Date.now() < until);\nconst readyAt = Date.now() + 500\n'
  const ready = base.replace('isReady(req) ?', 'isReady(req) && Date.now() > readyAt ?')
  t.not(ready, base)
  deploys.to('healthy', '2.0.0', { files: { 'base.cjs': blocks + ready } })
  t.match(await verdictOf(usr2, 'reload'), { outcome: 'promoted', current: 2 })
  expectNoneLost(t, await clients.stop())
  await usr2.stop()
})

t.test('probes that are not answered are failures', async (t) => {
  const { deploys, usr2, clients } = await site(t, {
    config: {
      ...canary('probeSuccess >= 98%'),
      ...{ drainTimeout: '2s', shutdownTimeout: '1s', killTimeout: '1s' },
      probes: { liveness: { eventLoop: true, period: '300ms', timeout: '200ms', failureThreshold: 1000 } },
    },
    env: { BLOCK_AFTER: '20' },
    clients: { keepAlive: 0, newPerSecond: 50, timeoutMs: 30_000 },
  })
  deploys.to('blocks', '2.0.0')
  const verdict = await verdictOf(usr2, 'reload')
  t.match(verdict, { outcome: 'rolled-back', current: 1 })
  t.match(verdict.text, /probe success [\d.]+ % \(must be >= 98 %\)/)
  await clients.stop()
  await usr2.stop()
})

t.test('an abort ends the hook that runs', async (t) => {
  const { deploys, usr2, clients } = await site(t, {
    config: { hooks: { beforeSpawn: 'echo begins; sleep 50; echo goes on' } },
  })
  deploys.to('healthy', '2.0.0')
  const reload = verdictOf(usr2, 'reload')
  await usr2.process.line(({ text }) => text.includes('beforeSpawn: begins'), { what: 'the hook' })
  t.equal((await usr2.cli('abort')).code, 0)
  t.match(await reload, { outcome: 'overtaken' })
  t.match((await usr2.event('hook-failed')).msg, /was ended: the rollout is over/)
  await clients.stop()
  await usr2.stop()
})

t.test('who asks need not wait for a generation that is parked and accepts no more', async (t) => {
  const { deploys, usr2, clients } = await site(t, { flags: ['--workers', '2', '--park-for', '5m'] })
  deploys.to('healthy', '2.0.0')
  const reload = usr2.reload().then(() => performance.now())
  await usr2.event('parked')
  const parkedAt = performance.now()
  // A verdict waits for 2 s for workers that do not say that they accept no more.
  t.ok((await reload) - parkedAt < 1_500)
  await clients.stop()
  await usr2.stop()
})
