/**
 * Rollouts of versions that are bad in every way that people meet (DESIGN section 7): each is stopped at the right step,
 * the verdict names the cause with the figures, and no client loses a request.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { Test } from 'tap'
import type { Verdict } from '../../src/master/face.ts'
import { type Clients, type ClientOptions, clientsOf, deploysIn, expectNoneLost } from '../helpers/deploys.ts'
import type { Deploys } from '../helpers/deploys.ts'
import { freePort } from '../helpers/tmp.ts'
import { fixture, startUsr2, type Usr2 } from '../helpers/usr2.ts'
import { until } from '../helpers/wait.ts'

interface Site {
  readonly deploys: Deploys
  readonly usr2: Usr2
  readonly clients: Clients
}

interface SiteOptions {
  readonly flags?: readonly string[]
  /** The config file. */
  readonly config?: object
  readonly env?: Readonly<Record<string, string>>
  readonly clients?: Partial<ClientOptions>
}

/** Version 1.0.0 of the healthy app under traffic. */
async function site(
  t: Test,
  { flags = [], config = {}, env = {}, clients = {} }: SiteOptions,
): Promise<Site> {
  const port = await freePort(t)
  const deploys = deploysIn(t)
  deploys.to('healthy', '1.0.0')
  const usr2 = startUsr2(t, {
    entry: deploys.entry,
    cwd: deploys.root,
    files: { 'usr2.json': JSON.stringify({ maxDraining: 10, ...config }) },
    flags: ['--config', 'usr2.json', ...flags],
    env: { PORT: String(port), ...env },
  })
  await usr2.ready()
  const load = await clientsOf(t, { port, newPerSecond: 100, keepAlive: 4, ...clients })
  await load.served('1.0.0')
  return { deploys, usr2, clients: load }
}

async function verdictOf(usr2: Usr2, command: string, ...flags: string[]): Promise<Verdict> {
  const { stdout, stderr } = await usr2.cli(command, ['--json', ...flags], 60_000)
  const line = stdout.split('\n').find((text) => text.includes('"verdict"'))
  if (line === undefined) throw new Error(`no verdict: ${stdout}${stderr}`)
  return (JSON.parse(line) as { verdict: Verdict }).verdict
}

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

t.test('a good version goes through a canary, and a newer reload ends a hold', async (t) => {
  const { deploys, usr2, clients } = await site(t, {
    flags: ['--workers', '4', '--steps', '20% promote, 60% 300ms, 100%'],
  })
  deploys.to('healthy', '2.0.0')
  const first = verdictOf(usr2, 'reload')
  await usr2.event('holding')
  await clients.served('2.0.0')
  deploys.to('healthy', '3.0.0')
  const second = verdictOf(usr2, 'reload')
  t.match(await first, { outcome: 'overtaken', reasons: [/a newer reload/] })
  await usr2.event('holding', { from: usr2.process.lines.length })
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
  await usr2.event('ready-again')
  await usr2.event('unready', { from: usr2.process.lines.length })
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
  const before = (await clients.sofar()).byVersion
  await clients.answered('1.0.0', 1600)
  const after = (await clients.sofar()).byVersion
  const more = (version: string): number => (after[version]?.ok ?? 0) - (before[version]?.ok ?? 0)
  const share = more('2.0.0') / (more('1.0.0') + more('2.0.0'))
  t.comment(`${(100 * share).toFixed(1)} % of ${more('1.0.0') + more('2.0.0')}`)
  // Within 5 points as measured (docs/traffic-share.md), with as much again for a machine that others use, too. Without
  // turns it was between 2 and 53 %.
  t.ok(share > 0.1 && share < 0.3, `the share was ${(100 * share).toFixed(1)} %`)
  t.equal((await usr2.cli('promote')).code, 0)
  t.match(await reload, { outcome: 'promoted' })
  expectNoneLost(t, await clients.stop())
  await usr2.stop()
})
