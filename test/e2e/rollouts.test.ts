/** Rollouts under traffic: steps, operators, ways back, replacement, probes, hooks (DESIGN sections 7 and 8). */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { clientsOf, deploysIn, expectNoneLost } from '../helpers/deploys.ts'
import type { Deploys } from '../helpers/deploys.ts'
import { site, verdictOf } from '../helpers/site.ts'
import { freePort } from '../helpers/tmp.ts'
import { startUsr2 } from '../helpers/usr2.ts'
import { until } from '../helpers/wait.ts'

t.test('a good version goes through a canary, and a newer reload ends a hold', async (t) => {
  const { deploys, usr2, clients } = await site(t, {
    flags: ['--workers', '4', '--steps', '20% promote, 60% 300ms, 100%'],
  })
  deploys.to('healthy', '2.0.0')
  const first = verdictOf(usr2, 'reload')
  await usr2.event('holding')
  await clients.served('2.0.0')
  deploys.to('healthy', '3.0.0')
  const from = usr2.process.lines.length
  const second = verdictOf(usr2, 'reload')
  t.match(await first, { outcome: 'overtaken', reasons: [/a newer reload/] })
  await usr2.event('holding', { from })
  const { rollout } = await usr2.status()
  t.match(rollout, { accepting: { current: 4, candidate: 1 }, waitsFor: /usr2 promote/ })
  t.equal((await usr2.cli('promote')).code, 0)
  t.match(await second, { outcome: 'promoted', current: 3 })
  await clients.served('3.0.0')
  expectNoneLost(t, await clients.stop())
  t.match(await usr2.cli('promote'), { code: 1, stderr: /no rollout/ })
  await usr2.stop()
})

t.test('rolling: slot by slot, never more than one worker too many', async (t) => {
  const { deploys, usr2, clients } = await site(t, {
    flags: ['--workers', '3', '--strategy', 'rolling', '--max-surge', '1', '--max-unavailable', '0'],
  })
  deploys.to('healthy', '2.0.0')
  let most = 0
  let done = false
  const watching = (async () => {
    while (!done) {
      const { generations } = await usr2.status()
      const up = generations.flatMap(({ workers }) => workers)
      most = Math.max(most, up.filter(({ phase }) => phase === 'booting' || phase === 'ready').length)
    }
  })()
  t.match(await verdictOf(usr2, 'reload'), { outcome: 'promoted', current: 2 })
  done = true
  await watching
  t.ok(most <= 4, `at most ${most} workers were up beside those that drain`)
  await clients.served('2.0.0')
  expectNoneLost(t, await clients.stop())
  await usr2.stop()
})

t.test('blue-green: promoted by a person, and back from the park at once', async (t) => {
  const { deploys, usr2, clients } = await site(t, {
    flags: ['--workers', '2', '--strategy', 'blueGreen', '--park-for', '5m'],
  })
  const pids = async (role: string) =>
    (await usr2.status()).generations.find((one) => one.role === role)?.workers.map(({ pid }) => pid)
  const blue = await pids('current')
  deploys.to('healthy', '2.0.0')
  const reload = verdictOf(usr2, 'reload')
  await usr2.event('holding')
  t.equal((await clients.sofar()).byVersion['2.0.0'], undefined, 'nobody meets it before')
  await usr2.cli('promote')
  t.match(await reload, { outcome: 'promoted', current: 2 })
  await clients.served('2.0.0')
  t.same(await pids('parked'), blue)
  const back = await verdictOf(usr2, 'rollback')
  t.match(back, { outcome: 'promoted', kind: 'rollback', current: 1 })
  t.same(await pids('current'), blue, 'the same processes')
  await clients.answered('1.0.0', 50)
  expectNoneLost(t, await clients.stop())
  await usr2.stop()
})

t.test(
  'back from the park with the worker that lives, though the version does not boot any more',
  async (t) => {
    const { deploys, usr2, clients } = await site(t, { flags: ['--workers', '2', '--park-for', '60s'] })
    const workers = async (role: string) =>
      (await usr2.status()).generations.find((one) => one.role === role)?.workers ?? []
    deploys.to('healthy', '2.0.0')
    t.match(await verdictOf(usr2, 'reload'), { outcome: 'promoted', current: 2 })
    await clients.served('2.0.0')
    const [lost, kept] = await workers('parked')
    if (!lost?.pid || !kept?.pid) throw new Error('two workers are parked')
    process.kill(lost.pid, 'SIGKILL')
    await until(async () => (await workers('parked')).length === 1, {
      ...{ what: 'the master to see that it is gone', timeoutMs: 20_000 },
    })
    deploys.to('healthy', '1.0.0', { files: { 'server.cjs': `throw new Error('no database today')` } })
    t.match(await verdictOf(usr2, 'rollback'), { outcome: 'promoted', kind: 'rollback', current: 1 })
    t.ok((await workers('current')).some(({ pid }) => pid === kept.pid))
    t.match((await usr2.event('worker-died')).msg, /no database today .*; slot \d is filled again in/)
    await clients.answered('1.0.0', 50)
    expectNoneLost(t, await clients.stop())
    await usr2.stop()
  },
)

t.test('a rollback boots the version before; changed in place, it is refused', async (t) => {
  const { deploys, usr2, clients } = await site(t, {})
  deploys.to('healthy', '2.0.0')
  t.match(await verdictOf(usr2, 'reload'), { outcome: 'promoted', current: 2 })
  await clients.served('2.0.0')
  t.match(await verdictOf(usr2, 'rollback'), { outcome: 'promoted', kind: 'rollback', current: 3 })
  await clients.answered('1.0.0', 20)
  t.match(await verdictOf(usr2, 'reload'), { outcome: 'promoted', current: 4 })
  t.match((await usr2.event('rolled-back-before')).msg, /was rolled back at .*, as generation 2/)
  deploys.to('healthy', '1.0.1', { release: '1.0.0' })
  t.match(await verdictOf(usr2, 'rollback'), {
    outcome: 'refused',
    current: 4,
    reasons: [/changed in place/],
  })
  expectNoneLost(t, await clients.stop())
  await usr2.stop()
})

t.test('abort, pause and resume', async (t) => {
  const { deploys, usr2, clients } = await site(t, { flags: ['--workers', '2', '--steps', '50% 60s, 100%'] })
  deploys.to('healthy', '2.0.0')
  const reload = verdictOf(usr2, 'reload')
  await usr2.event('holding')
  t.equal((await usr2.cli('pause')).code, 0)
  t.match((await usr2.status()).rollout, { paused: /operator/ })
  t.equal((await usr2.cli('resume')).code, 0)
  t.equal((await usr2.cli('abort')).code, 0)
  t.match(await reload, { outcome: 'rolled-back', reasons: [/operator aborted/] })
  const accepting = async () => (await usr2.status()).listeners[0]?.accepting
  await until(async () => (await accepting()) === 2, { what: 'both workers accept again', timeoutMs: 20_000 })
  await clients.answered('1.0.0', 50)
  expectNoneLost(t, await clients.stop())
  await usr2.stop()
})

t.test('paused in its analysis, the status tells what was measured', async (t) => {
  const analysis = { interval: '1s', count: 100, minRequests: 1, limits: ['errorRate < 50%'] }
  const { deploys, usr2, clients } = await site(t, {
    config: { workers: 2, steps: '50% analyse, 100%', analysis },
  })
  deploys.to('healthy', '2.0.0')
  const reload = verdictOf(usr2, 'reload')
  await usr2.event('analysed')
  t.equal((await usr2.cli('pause')).code, 0)
  const { rollout } = await usr2.status()
  t.match(rollout, { paused: /operator/, analysis: { of: 100, findings: [{ limit: 'errorRate < 50%' }] } })
  t.ok((rollout?.analysis?.taken ?? 0) >= 1)
  t.equal((await usr2.cli('abort')).code, 0)
  t.match(await reload, { outcome: 'rolled-back' })
  expectNoneLost(t, await clients.stop())
  await usr2.stop()
})

t.test('a worker that is not ready is out of rotation, and back when it is', async (t) => {
  const port = await freePort(t)
  const deploys = deploysIn(t)
  deploys.to('flaps', '1.0.0')
  const probe = { http: { path: '/healthz' }, period: '100ms', failureThreshold: 1 }
  const usr2 = startUsr2(t, {
    entry: deploys.entry,
    cwd: deploys.root,
    files: { 'usr2.json': JSON.stringify({ probes: { readiness: probe } }) },
    flags: ['--workers', '2', '--config', 'usr2.json'],
    env: { PORT: String(port), ONLY_SLOT: '1', FLAP_MS: '600' },
  })
  await usr2.ready()
  const clients = await clientsOf(t, { port })
  const out = await usr2.event('unready')
  t.match(out, { slot: 1, why: /answered 503/ })
  const from = usr2.process.lines.length
  await usr2.event('ready-again')
  await usr2.event('unready', { from })
  expectNoneLost(t, await clients.stop())
  await usr2.stop()
})

t.test(
  'workers are replaced by their requests, one after another, and the number of them changes',
  async (t) => {
    const { usr2, clients } = await site(t, { config: { workers: 2, maxRequests: 150 } })
    const pids = async () =>
      new Set((await usr2.status()).generations.flatMap(({ workers }) => workers.map(({ pid }) => pid)))
    const first = await pids()
    await until(async () => [...(await pids())].every((pid) => !first.has(pid)), {
      what: 'both workers were replaced',
      timeoutMs: 60_000,
    })
    t.equal((await usr2.cli('scale', ['+1'])).code, 0)
    await until(async () => (await usr2.status()).ready === 3, { what: 'three slots', timeoutMs: 20_000 })
    usr2.signal('SIGTTOU')
    await until(async () => (await usr2.status()).slots === 2, { what: 'two slots', timeoutMs: 20_000 })
    usr2.signal('SIGTTIN')
    await until(async () => (await usr2.status()).slots === 3, {
      what: 'three slots again',
      timeoutMs: 20_000,
    })
    t.match(await usr2.cli('scale', ['0']), { code: 2 })
    t.match(await usr2.cli('scale', ['-7']), { code: 1, stderr: /from 1 to 1024, not -4/ })
    expectNoneLost(t, await clients.stop())
    await usr2.stop()
  },
)

t.test('warmed up before its first client; hooks before and after', async (t) => {
  const port = await freePort(t)
  const deploys = deploysIn(t)
  deploys.to('warm', '1.0.0')
  const hook = (name: string): string =>
    `echo "${name} $USR2_PREVIOUS_VERSION $USR2_VERSION" >> ../../hooks.txt`
  const usr2 = startUsr2(t, {
    entry: deploys.entry,
    cwd: deploys.root,
    files: {
      'usr2.json': JSON.stringify({
        warmUp: 20,
        hooks: {
          beforeSpawn: hook('beforeSpawn'),
          beforePromote: `${hook('beforePromote')}; test ! -e refuse || { echo not today; exit 3; }`,
          afterPromote: hook('afterPromote'),
          afterRollback: hook('afterRollback'),
          beforeStop: hook('beforeStop'),
        },
      }),
    },
    flags: ['--config', 'usr2.json', '--cwd', deploys.current],
    env: { PORT: String(port) },
  })
  await usr2.ready()
  const body = (await (await fetch(`http://127.0.0.1:${port}/`)).json()) as { warmedBefore: string[] }
  t.same(body.warmedBefore, Array(20).fill('/'))
  deploys.to('warm', '2.0.0')
  t.match(await verdictOf(usr2, 'reload'), { outcome: 'promoted' })
  deploys.to('warm', '3.0.0', { files: { refuse: '' } })
  const refused = await verdictOf(usr2, 'reload')
  t.match(refused, { outcome: 'rolled-back', reasons: [/beforePromote: .* exited with status 3: not today/] })
  await until(() => linesOf(deploys).length >= 6, { what: 'six hooks', timeoutMs: 20_000 })
  await usr2.stop()
  t.same(linesOf(deploys), [
    'beforeSpawn 1.0.0 2.0.0',
    'beforePromote 1.0.0 2.0.0',
    'afterPromote 1.0.0 2.0.0',
    'beforeSpawn 2.0.0 3.0.0',
    'beforePromote 2.0.0 3.0.0',
    'afterRollback 2.0.0 3.0.0',
    'beforeStop 1.0.0 2.0.0',
  ])
})

const linesOf = (deploys: Deploys): string[] => {
  try {
    return readFileSync(join(deploys.root, 'hooks.txt'), 'utf8').trim().split('\n')
  } catch {
    return []
  }
}

t.test('a candidate of one in five gets about a fifth of the new connections', async (t) => {
  const { deploys, usr2, clients } = await site(t, {
    config: { workers: 4, steps: '20% promote, 100%' },
    clients: { keepAlive: 0, newPerSecond: 200 },
  })
  deploys.to('healthy', '2.0.0')
  const reload = verdictOf(usr2, 'reload')
  await usr2.event('holding')
  const accepted = async (): Promise<Map<number, number>> => {
    const workers = (await usr2.status()).generations.flatMap((generation) => generation.workers)
    return new Map(workers.map(({ pid, ledger }) => [pid ?? 0, ledger.connections.accepted]))
  }
  const before = await accepted()
  await clients.answered('1.0.0', 1600)
  const more = [...(await accepted())].map(([pid, count]) => count - (before.get(pid) ?? 0))
  const all = more.reduce((sum, count) => sum + count, 0)
  const shares = more.map((count) => Math.round((1000 * count) / all) / 10)
  t.comment(`${shares.join(', ')} % of ${all}`)
  // Every worker has every place in the queue equally often. (Without turns: 6.4 to 7.7 % and 29.2 to 30.2 %.)
  t.equal(shares.length, 5)
  t.ok(Math.min(...shares) > 12 && Math.max(...shares) < 28, `the shares were ${shares.join(', ')} %`)
  t.equal((await usr2.cli('promote')).code, 0)
  t.match(await reload, { outcome: 'promoted' })
  expectNoneLost(t, await clients.stop())
  await usr2.stop()
})
