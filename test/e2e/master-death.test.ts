/**
 * A master that is killed (docs/master-death.md), in every phase of its life. Its workers notice, finish what is in flight
 * within their drain deadline, give their clients a clean end, and leave; the next master of the same name starts at once
 * beside them. What that does about those that cannot leave is in master-death-survivors.test.ts.
 */
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import http2 from 'node:http2'
import { dirname, join } from 'node:path'
import t from 'tap'
import type { Test } from 'tap'
import { WebSocket } from 'ws'
import { get, getJson } from '../helpers/http.ts'
import {
  type App,
  killMaster,
  type Me,
  Next,
  ourFiles,
  startApp,
  untilGone,
  WAIT_MS,
  workersOf,
} from '../helpers/next-master.ts'
import { processesWithToken } from '../helpers/processes.ts'
import { openRaw } from '../helpers/raw-client.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { deadline, until } from '../helpers/wait.ts'

t.test('with work of every kind in flight: finished, ended cleanly, and cut at the deadline', async (t) => {
  const [h2Port, cwd] = [await freePort(t), join(shortTmp(t), 'app')]
  const path = join(cwd, 'app.sock')
  const app = await startApp(t, {
    cwd,
    flags: ['--workers', '2', '--drain-timeout', '5s'],
    env: { H2_PORT: String(h2Port), PATH_OF_SOCKET: path },
  })
  await app.usr2.ready()
  const old = await workersOf(app)
  const raw = () => openRaw(t, { port: app.port })
  const [slow, stream, idle, hot, silent, tooLong] = [
    await raw(),
    await raw(),
    await raw(),
    await raw(),
    await raw(),
    await raw(),
  ]
  slow.get('/slow?ms=2500')
  stream.get('/stream?ms=2500')
  tooLong.get('/slow?ms=60000')
  const overUnix = get({ socketPath: path }, '/slow?ms=2500')
  for (const client of [idle, hot]) t.equal((await client.get('/').response()).status, 200)
  const socket = new WebSocket(`ws://127.0.0.1:${app.port}`)
  t.teardown(() => socket.terminate())
  await deadline(once(socket, 'open'), WAIT_MS, 'a WebSocket')
  const closed = once(socket, 'close')
  const session = http2.connect(`http://127.0.0.1:${h2Port}`)
  t.teardown(() => session.destroy())
  const errors: unknown[] = []
  session.on('error', (error) => errors.push(error))
  const goaway = once(session, 'goaway')
  const h2Stream = session.request({ ':path': '/stream?ms=2500' })
  let h2Body = ''
  h2Stream.setEncoding('utf8').on('data', (text: string) => (h2Body += text))
  const h2Ended = once(h2Stream, 'end')
  const began = () => app.usr2.process.stdout.filter((line) => line.startsWith('began')).length === 5
  await until(began, { timeoutMs: WAIT_MS, what: 'five requests in flight', logs: () => app.usr2.logs() })

  await killMaster(app)
  const next = new Next(t, app)
  await next.event('ready')
  // Where every connection came to one of the two, the other has left.
  const left = app.usr2.process.lines.filter(({ text }) => text.startsWith('left')).length
  t.ok(left < old.length, 'they still drain')
  const found = await next.event('survivors')
  const survivors = (found['survivors'] as Me[]).map(({ pid }) => pid)
  t.ok(survivors.length > 0)
  t.ok(
    survivors.every((pid) => old.includes(pid)),
    'and the next one knows them',
  )
  const pids = await Promise.all([...Array(20)].map(() => getJson<Me>({ port: app.port })))
  t.notOk(
    pids.some(({ pid }) => old.includes(pid)),
    'whoever comes now comes to the next',
  )
  t.notOk(old.includes((await getJson<Me>({ socketPath: path })).pid))

  hot.get('/')
  const last = await hot.response()
  t.ok(old.includes((JSON.parse(last.body) as Me).pid), 'an idle connection is answered once more')
  t.equal(last.headers['connection'], 'close')
  for (const client of [slow, stream]) {
    const response = await client.response()
    t.match(response.body, /whole|last/)
    t.equal(await client.ended(), 'FIN')
  }
  t.match(await overUnix, { status: 200, body: 'slow but whole' })
  await deadline(h2Ended, WAIT_MS, 'the stream of HTTP/2')
  t.equal(h2Body, 'first, last')
  t.equal((await deadline(goaway, WAIT_MS, 'a GOAWAY'))[0], 0)
  t.equal((await deadline(closed, WAIT_MS, 'the end of the WebSocket'))[0], 1001)
  t.equal(await idle.ended(), 'FIN')
  t.equal(await silent.ended(), 'FIN')
  await tooLong.ended()
  t.equal(tooLong.rest, '', 'what takes longer than the drain timeout is cut')
  t.same(errors, [])
  await untilGone(app)
  await next.event('survivors-gone')
  t.ok(
    existsSync(path),
    "the path is the next one's: an app that unlinks it as it leaves takes it from nobody",
  )
  t.equal((await get({ socketPath: path })).status, 200)
  t.same(
    ourFiles(cwd).map((name) => /^\.usr2-(\d+)-/.exec(name)?.[1]),
    [String(next.process.pid)],
    'the spare link of the killed one was swept',
  )
  t.notOk(next.events().some(({ event }) => event === 'survivor-killed'))
  await next.stop(app)
})

t.test('while the first generation starts, with a worker that is blocked in its boot', async (t) => {
  for (const env of [{ BOOT_MS: '60000' }, { BOOT_MS: '1500', BLOCK_BOOT: '1' }]) {
    const app = await startApp(t, { flags: ['--workers', '2'], env })
    for (const slot of [0, 1]) await app.usr2.process.line(new RegExp(`^booting \\d+ ${slot}$`))
    await killMaster(app)
    const next = new Next(t, app, { BOOT_MS: '0' })
    await next.event('ready')
    await untilGone(app)
    await next.stop(app)
  }
})

interface Phase {
  readonly flags: readonly string[]
  readonly env?: Record<string, string>
  readonly reach: (app: App) => Promise<unknown>
}

t.test('in the midst of a reload', async (t) => {
  const phases: Record<string, Phase> = {
    'the candidate boots': {
      flags: [],
      env: { LATER_BOOT_MS: '60000' },
      async reach(app) {
        const isBooting = async () => (await workersOf(app)).length === 4
        await until(isBooting, { timeoutMs: WAIT_MS, what: 'the candidate', logs: () => app.usr2.logs() })
      },
    },
    'both generations serve': {
      flags: ['--steps', '50% promote, 100%'],
      reach: (app) => app.usr2.event('holding'),
    },
    'the old one drains': {
      flags: [],
      async reach(app) {
        await app.usr2.event('promoted')
        await until(async () => (await app.usr2.status()).generations.length === 2, {
          timeoutMs: WAIT_MS,
          what: 'a generation that drains',
        })
      },
    },
    'the old one is parked': {
      flags: ['--park-for', '5m'],
      async reach(app) {
        await app.usr2.event('promoted')
        const isParked = async () =>
          (await app.usr2.status()).generations.some(({ role }) => role === 'parked')
        await until(isParked, {
          timeoutMs: WAIT_MS,
          what: 'a parked generation',
          logs: () => app.usr2.logs(),
        })
      },
    },
  }
  for (const [phase, { flags, env = {}, reach }] of Object.entries(phases)) {
    await t.test(phase, async (t) => {
      const app = await startApp(t, { flags: ['--workers', '2', '--drain-timeout', '10s', ...flags], env })
      await app.usr2.ready()
      const slow = await openRaw(t, { port: app.port })
      slow.get('/slow?ms=2000')
      await app.usr2.process.line('began /slow')
      app.usr2.signal('SIGUSR2')
      await reach(app)
      await killMaster(app)
      const next = new Next(t, app)
      await next.event('ready')
      t.match(await slow.response(), { status: 200, body: 'slow but whole' })
      await untilGone(app)
      t.equal((await getJson<Me>({ port: app.port })).generation, '1')
      await next.stop(app)
    })
  }
})

t.test('in the midst of an upgrade', async (t) => {
  const begin = async (t: Test, env: Record<string, string> = {}) => {
    const app = await startApp(t, {
      flags: ['--workers', '2', '--drain-timeout', '10s'],
      env: { LEAD: '500', ...env },
    })
    await app.usr2.ready()
    const slow = await openRaw(t, { port: app.port })
    slow.get('/slow?ms=2000')
    await app.usr2.process.line('began /slow')
    return { app, slow }
  }
  const newMaster = async ({ usr2 }: App): Promise<number> => {
    const said = () =>
      usr2.events().flatMap(({ msg }) => /\(pid (\d+)\) starts generation/.exec(msg)?.[1] ?? [])[0]
    const pid = await until(said, { timeoutMs: WAIT_MS, what: 'the new master', logs: () => usr2.logs() })
    return Number(pid)
  }

  await t.test('the old one, before the new one has taken over', async (t) => {
    const { app, slow } = await begin(t, { LATER_BOOT_MS: '60000' })
    const upgrading = app.usr2.cli('upgrade')
    await newMaster(app)
    for (const slot of [0, 1]) await app.usr2.process.line(new RegExp(`^booting \\d+ ${slot}$`), { from: 5 })
    await killMaster(app)
    t.equal((await upgrading).code, 4, 'whoever asked for it is told that the master was lost')
    t.match(await slow.response(), { status: 200, body: 'slow but whole' })
    await untilGone(app)
    const next = new Next(t, app)
    await next.event('ready')
    await next.stop(app)
  })

  await t.test('the old one, as it drains', async (t) => {
    const { app, slow } = await begin(t)
    const token = app.usr2.process.token
    t.equal((await app.usr2.cli('upgrade')).code, 0)
    const { pid, generations } = await app.usr2.status()
    t.not(pid, app.usr2.pid)
    await killMaster(app)
    t.match(await slow.response(), { status: 200, body: 'slow but whole' })
    const current = generations.flatMap(({ workers }) => workers.map((worker) => worker.pid))
    const only = () => {
      const left = processesWithToken(token).map((process) => process.pid)
      return left.length === 3 && left.every((one) => one === pid || current.includes(one))
    }
    await until(only, {
      timeoutMs: WAIT_MS,
      what: 'the workers of the old one to leave',
      logs: () => app.usr2.logs(),
    })
    const leads = () => app.usr2.process.stdout.filter((line) => line.startsWith('leads')).length === 2
    await until(leads, { timeoutMs: WAIT_MS, what: 'the next leader', logs: () => app.usr2.logs() })
    neverTwoLead(t, app.usr2.process.stdout)
    const home = dirname(app.usr2.control)
    t.same(
      ourFiles(home).flatMap((name) => /^\.usr2-t-(\d+)/.exec(name)?.[1] ?? []),
      [String(pid)],
      'what the killed one could not remove was removed',
    )
    t.equal((await app.usr2.reload()).code, 0, 'the new master reloads')
    t.equal((await app.usr2.cli('stop')).code, 0)
    await untilGone(app)
    t.same(ourFiles(home), [])
  })

  await t.test('the new one, as its generation starts', async (t) => {
    const { app, slow } = await begin(t, { LATER_BOOT_MS: '60000' })
    const upgrading = app.usr2.cli('upgrade')
    process.kill(await newMaster(app), 'SIGKILL')
    t.match(await upgrading, { code: 1, stderr: /ended without a word/ })
    t.match(await app.usr2.status(), { pid: app.usr2.pid, state: 'steady' })
    t.match(await slow.response(), { status: 200 })
    const only = () => processesWithToken(app.usr2.process.token).length === 3
    await until(only, {
      timeoutMs: WAIT_MS,
      what: 'the workers of the new one to leave',
      logs: () => app.usr2.logs(),
    })
    await app.usr2.stop()
  })

  await t.test('the new one, as the old one drains', async (t) => {
    const { app, slow } = await begin(t)
    t.equal((await app.usr2.cli('upgrade')).code, 0)
    process.kill((await app.usr2.status()).pid, 'SIGKILL')
    const next = new Next(t, app)
    await next.event('ready')
    t.match(await slow.response(), { status: 200, body: 'slow but whole' })
    await untilGone(app)
    await next.stop(app)
  })
})

function neverTwoLead(t: Test, lines: readonly string[]): void {
  let leader: string | null = null
  for (const line of lines) {
    const [, what, pid = ''] = /^(leads|led) (\d+)$/.exec(line) ?? []
    if (what === 'leads') {
      t.equal(leader, null, `nobody else leads when ${pid} begins`)
      leader = pid
    } else if (what === 'led' && leader === pid) leader = null
  }
}
