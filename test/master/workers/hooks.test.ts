import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { type HookRun, Hooks, hookEnvironment } from '../../../src/master/workers/hooks.ts'
import { scopeOf, type TestLike, TOKEN_VARIABLE } from '../../helpers/scope.ts'
import { withoutTap } from '../../helpers/spawn.ts'
import { shortTmp } from '../../helpers/tmp.ts'
import { until } from '../../helpers/wait.ts'

/** A zombie does not: whose child an orphan becomes may take its time to bury it. */
function runs(pid: number): boolean {
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
  } catch {
    return false
  }
}

/** A shell script as a hook, and what was logged. */
function hookOf(t: TestLike, script: string, more: Partial<HookRun> = {}) {
  const lines: string[] = []
  const heard = (): string => lines.join('\n')
  const cwd = more.cwd ?? shortTmp(t)
  const order: HookRun = {
    hook: 'beforePromote',
    command: ['/bin/sh', '-c', script],
    cwd,
    env: { PATH: process.env['PATH'] ?? '', [TOKEN_VARIABLE]: scopeOf(t).nextToken() },
    timeoutMs: 10_000,
    killTimeoutMs: 10_000,
    log: { info: (_facts: unknown, text?: string) => void lines.push(text ?? '') } as HookRun['log'],
    ...more,
  }
  const said = (line: string) =>
    until(() => lines.includes(`beforePromote: ${line}`), { timeoutMs: 10_000, what: line, logs: heard })
  const pidIn = (file: string): number => Number(readFileSync(join(cwd, file), 'utf8'))
  return { order, lines, said, pidIn, run: (hooks = new Hooks()) => withoutTap(() => hooks.run(order)) }
}

t.test('status 0 is no failure, and every line is logged', async (t) => {
  const { run, lines } = hookOf(t, 'echo one; echo two >&2; sleep 0.05; printf three')
  t.equal(await run(), null)
  t.same(lines.slice(1).sort(), ['beforePromote: one', 'beforePromote: three', 'beforePromote: two'])
})

t.test('a failure is told with the last lines', async (t) => {
  const sh = (script: string) => `beforePromote: /bin/sh -c ${script}`
  for (const [script, what] of [
    [
      'echo a; echo b; echo c; echo no table users >&2; exit 3',
      /exited with status 3: b \| c \| no table users$/,
    ],
    ['kill -KILL $$', /was killed by SIGKILL$/],
  ] as const) {
    const failure = (await hookOf(t, script).run()) ?? ''
    t.ok(failure.startsWith(sh(script)), failure)
    t.match(failure, what)
  }
})

t.test(
  'it has the directory and the environment that were given, no stdin and a session of its own',
  async (t) => {
    const env = { USR2_HOOK: 'x', PATH: process.env['PATH'] ?? '' }
    const script = 'pwd; env | grep USR2_; cat; ps -o sid= -p $$ | tr -d " " > sid; echo $$ > pid'
    const { run, lines, order, pidIn } = hookOf(t, script, { env })
    t.equal(await run(), null)
    t.same(lines.slice(1), [`beforePromote: ${order.cwd}`, 'beforePromote: USR2_HOOK=x'])
    t.equal(pidIn('sid'), pidIn('pid'))
  },
)

t.test('what could not be started says so', async (t) => {
  const cwd = shortTmp(t)
  const start = (more: Partial<HookRun>) => hookOf(t, '', { cwd, ...more }).run()
  t.match(
    await start({ command: ['./missing.sh', 'x'] }),
    /^beforePromote: \.\/missing\.sh x could not be started: .*ENOENT/,
  )
  t.match(await start({ cwd: join(cwd, 'gone') }), /could not be started: its directory .*gone is gone$/)
  t.match(await start({ command: ['a\0b'] }), /could not be started: .*null bytes/)
  t.match(await start({ command: [] }), /could not be started: /)
})

t.test('at its timeout all of it is ended', async (t) => {
  const script = 'sleep 600 & echo $! > child; echo waits; wait'
  const { run, pidIn } = hookOf(t, script, { timeoutMs: 1_000 })
  t.match(await run(), /did not end within 1\.0 s and was ended: waits$/)
  await until(() => !runs(pidIn('child')), { timeoutMs: 5_000, what: 'the child of the hook to be gone' })
})

t.test('one that ignores SIGTERM is killed', async (t) => {
  const script = 'trap "" TERM; echo $$ > pid; echo waits; while :; do sleep 600; done'
  const { run, pidIn } = hookOf(t, script, { timeoutMs: 1_000, killTimeoutMs: 200 })
  t.match(await run(), /did not end within 1\.0 s and was ended: waits$/)
  t.notOk(runs(pidIn('pid')))
})

t.test('ended at its timeout it has failed, whatever its status', async (t) => {
  const { run } = hookOf(t, 'trap "exit 0" TERM; echo waits; sleep 600 & wait', { timeoutMs: 1_000 })
  t.match(await run(), /did not end within 1\.0 s/)
})

t.test('what it leaves running is ended, and it has not failed for that', async (t) => {
  const { run, pidIn, lines } = hookOf(t, '(trap "" TERM; sleep 600) & echo $! > child', {
    killTimeoutMs: 200,
  })
  t.equal(await run(), null)
  await until(() => !runs(pidIn('child')), { timeoutMs: 5_000, what: 'what it left to be gone' })
  t.ok(lines.some((line) => line.includes(`left running: ${pidIn('child')}`)))
})

t.test('what took a session of its own may keep the output open: it is not waited for', async (t) => {
  const { run, pidIn } = hookOf(
    t,
    'setsid sh -c "echo \\$\\$ > daemon; exec sleep 600" & sleep 0.1; echo done',
  )
  t.equal(await run(), null)
  const daemon = await until(() => pidIn('daemon'), { timeoutMs: 5_000, what: 'the daemon to be there' })
  t.ok(runs(daemon))
  process.kill(daemon, 'SIGKILL')
})

t.test('output without an end is bounded', async (t) => {
  const { run, lines } = hookOf(t, 'head -c 3000000 /dev/zero | tr "\\0" x; yes | head -n 5000; exit 1')
  const failure = (await run()) ?? ''
  t.ok(failure.length < 1_000)
  t.ok(lines.length <= 1_002)
  t.ok(Math.max(...lines.map((line) => line.length)) < 200_000)
  t.match(lines.at(-1), /the rest is not logged/)
})

t.test('a stop ends what runs, and lets nothing begin', async (t) => {
  const hooks = new Hooks()
  const { run, said, pidIn } = hookOf(t, '(trap "" TERM; sleep 600) & echo $! > child; echo waits; wait', {
    killTimeoutMs: 200,
  })
  const result = run(hooks)
  await said('waits')
  await hooks.stop()
  t.match(await result, /was ended: usr2 stops: waits$/)
  t.notOk(runs(pidIn('child')), 'resolves when nothing is left')
  t.match(await hookOf(t, 'true').run(hooks), /was not started: usr2 stops$/)
  await hooks.stop()
})

/** Ignores SIGTERM, so that it is there until it is killed. */
const STUBBORN = 'trap "" TERM; echo $$ > pid; echo waits; while :; do sleep 600; done'

t.test('none begins while one that was ended is still there', async (t) => {
  const hooks = new Hooks()
  const first = hookOf(t, STUBBORN, { killTimeoutMs: 500 })
  const aborted = first.run(hooks)
  await first.said('waits')
  hooks.end(['beforePromote'], 'the rollout is over')
  const pid = first.pidIn('pid')
  const second = hookOf(t, `kill -0 ${pid} && echo there || echo gone`, { hook: 'beforeSpawn' })
  t.equal(await second.run(hooks), null)
  t.match(second.lines[0], /^beforeSpawn: waits until beforePromote \(pid \d+\) has ended$/)
  t.ok(second.lines.includes('beforeSpawn: gone'), second.lines.join('\n'))
  t.match(await aborted, /was ended: the rollout is over: waits$/)
})

t.test('one that runs on is not waited for', async (t) => {
  const hooks = new Hooks()
  const first = hookOf(t, 'echo waits; sleep 600', { hook: 'afterPromote', killTimeoutMs: 200 })
  const running = first.run(hooks)
  await until(() => first.lines.includes('afterPromote: waits'), { timeoutMs: 10_000, what: 'its line' })
  t.equal(await hookOf(t, 'true').run(hooks), null)
  await hooks.stop()
  t.match(await running, /was ended: usr2 stops/)
})

t.test('one that waits is not started when its own rollout ends, nor in a stop', async (t) => {
  const hooks = new Hooks()
  const first = hookOf(t, STUBBORN, { killTimeoutMs: 500 })
  const aborted = first.run(hooks)
  await first.said('waits')
  hooks.end(['beforePromote'], 'the rollout is over')
  const second = hookOf(t, 'touch started', { hook: 'beforeSpawn' })
  const third = hookOf(t, 'touch started', { hook: 'beforeStop' })
  const waiting = [second.run(hooks), third.run(hooks)]
  hooks.end(['beforeSpawn', 'beforePromote'], 'the rollout is over')
  await hooks.stop()
  t.match(await waiting[0], /^beforeSpawn: .* was not started: the rollout is over$/)
  t.match(await waiting[1], /^beforeStop: .* was not started: usr2 stops$/)
  t.match(await aborted, /was ended: the rollout is over/)
  for (const { order } of [second, third]) t.notOk(existsSync(join(order.cwd, 'started')))
})

t.test('the facts in the environment', async (t) => {
  const env = { PATH: '/bin', NOTIFY_SOCKET: '/run/n', LISTEN_FDS: '1', DATABASE_URL: 'x' }
  const facts = { hook: 'afterPromote', name: 'shop', reload: 7 } as const
  const about = { generation: 3, version: '1.5.0', entry: '/srv/42/app.js' }
  const previous = { generation: 2, version: '1.4.0', entry: '/srv/41/app.js' }
  t.same(hookEnvironment(env, { ...facts, about, previous, outcome: 'promoted', reason: '' }), {
    PATH: '/bin',
    DATABASE_URL: 'x',
    USR2_HOOK: 'afterPromote',
    USR2_NAME: 'shop',
    USR2_RELOAD: '7',
    USR2_GENERATION: '3',
    USR2_VERSION: '1.5.0',
    USR2_ENTRY: '/srv/42/app.js',
    USR2_PREVIOUS_GENERATION: '2',
    USR2_PREVIOUS_VERSION: '1.4.0',
    USR2_OUTCOME: 'promoted',
    USR2_REASON: '',
  })
  const none = hookEnvironment({}, { ...facts, about: null, previous: null })
  t.same(
    Object.entries(none).filter(([, value]) => value === '').length,
    7,
    'set, and empty, where there is none',
  )
})
