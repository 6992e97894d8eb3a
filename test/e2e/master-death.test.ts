/**
 * A master that is killed (docs/master-death.md), in every phase of its life. Its workers notice, finish what is in flight
 * within their drain deadline, give their clients a clean end, and leave; the next master of the same name starts at once
 * beside them.
 */
import dgram from 'node:dgram'
import { once } from 'node:events'
import { existsSync, readFileSync, readdirSync } from 'node:fs'
import http2 from 'node:http2'
import { dirname, join } from 'node:path'
import { connect } from 'node:tls'
import t from 'tap'
import type { Test } from 'tap'
import { WebSocket } from 'ws'
import { get, getJson } from '../helpers/http.ts'
import { loadUnder, untilServed } from '../helpers/load.ts'
import { hasToken, processesWithToken } from '../helpers/processes.ts'
import { openRaw, request } from '../helpers/raw-client.ts'
import { expectNothingLeft, start, type TestProcess } from '../helpers/spawn.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { CLI, fixture, type LogEvent, startUsr2, type Usr2, type Usr2Options } from '../helpers/usr2.ts'
import { deadline, until } from '../helpers/wait.ts'

const WAIT_MS = 20_000

interface Me {
  readonly pid: number
  readonly slot: string
  readonly generation: string
}

interface App {
  readonly usr2: Usr2
  readonly port: number
  /** What the next master is started with, too. */
  readonly args: readonly string[]
  readonly env: Record<string, string>
}

async function startApp(t: Test, { flags = [], env = {}, ...options }: Usr2Options = {}): Promise<App> {
  const port = await freePort(t)
  const all = { PORT: String(port), ...env } as Record<string, string>
  const { cwd = join(shortTmp(t), 'app'), entry = fixture('busy-app.cjs') } = options
  const usr2 = startUsr2(t, { ...options, cwd, entry, flags, env: all })
  return { usr2, port, args: [...flags, entry], env: all }
}

/** SIGKILL, and it runs no more. */
async function killMaster({ usr2 }: App): Promise<void> {
  usr2.process.kill('SIGKILL')
  await usr2.process.exited
}

/** `usr2 run` of the same name, once more. */
class Next {
  readonly process: TestProcess
  readonly #t: Test
  readonly #control: string

  constructor(t: Test, { usr2, args, env }: App, more: Record<string, string> = {}) {
    this.#t = t
    this.#control = usr2.control
    this.process = start(t, process.execPath, {
      name: 'the next usr2',
      args: [CLI, 'run', '--control', usr2.control, '--name', 't', ...args],
      cwd: usr2.cwd,
      env: { ...env, ...more },
    })
  }

  event(name: string): Promise<LogEvent> {
    const found = this.process.line((line) => eventOf(line.text)?.event === name, {
      timeoutMs: WAIT_MS,
      what: `the event ${name}`,
    })
    return found.then(({ text }) => JSON.parse(text) as LogEvent)
  }

  events(): LogEvent[] {
    return this.process.stderr.flatMap((text) => eventOf(text) ?? [])
  }

  /** Stops it; then nothing is left of it nor of the killed one. */
  async stop(dead: App): Promise<void> {
    this.process.kill('SIGTERM')
    this.#t.equal((await this.process.ended(60_000)).code, 0, 'the next master stops as asked')
    await expectNothingLeft(this.#t, this.process)
    this.#t.same(processesWithToken(dead.usr2.process.token), [], 'no process of the killed one is left')
    this.#t.same(ourFiles(dirname(this.#control)), [], 'nor a file')
    this.#t.same(ourFiles(dead.usr2.cwd), [])
  }
}

const ourFiles = (directory: string): string[] =>
  readdirSync(directory).filter((name) => name.startsWith('.usr2-') || name.startsWith('c.sock'))

function eventOf(text: string): LogEvent | null {
  try {
    return text.startsWith('{') ? (JSON.parse(text) as LogEvent) : null
  } catch {
    return null
  }
}

async function untilGone({ usr2 }: App, timeoutMs = WAIT_MS): Promise<void> {
  const none = () => processesWithToken(usr2.process.token).length === 0
  await until(none, {
    timeoutMs,
    what: 'every process of the killed master to leave',
    logs: () => usr2.logs(),
  })
}

const workersOf = async ({ usr2 }: App): Promise<number[]> =>
  (await usr2.status()).generations.flatMap(({ workers }) => workers.flatMap(({ pid }) => pid ?? []))

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
  t.equal(app.usr2.process.lines.filter(({ text }) => text.startsWith('left')).length, 0, 'they still drain')
  const found = await next.event('survivors')
  t.same((found['survivors'] as Me[]).map(({ pid }) => pid).sort(), [...old].sort())
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
      slow.get('/slow?ms=3000')
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
      env: { LEAD: '1', ...env },
    })
    await app.usr2.ready()
    const slow = await openRaw(t, { port: app.port })
    slow.get('/slow?ms=3000')
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

t.test('while a hook runs: it goes on until it writes, and the next master starts beside it', async (t) => {
  const beforePromote = 'echo > begun; sleep 2; echo > done; echo nobody reads this; echo > never'
  const app = await startApp(t, {
    flags: ['--config', 'usr2.json'],
    files: { 'usr2.json': JSON.stringify({ hooks: { beforePromote } }) },
  })
  await app.usr2.ready()
  const has = (name: string) => existsSync(join(app.usr2.cwd, name))
  app.usr2.signal('SIGUSR2')
  await until(() => has('begun'), { timeoutMs: WAIT_MS, what: 'the hook', logs: () => app.usr2.logs() })
  await killMaster(app)
  const next = new Next(t, app)
  await next.event('ready')
  await until(() => has('done'), { timeoutMs: WAIT_MS, what: 'the end of the hook' })
  await untilGone(app)
  t.notOk(has('never'), 'with its reader the pipe has gone: SIGPIPE')
  await next.stop(app)
})

t.test(
  'TLS: what is in flight is answered, and a ticket of the killed one costs a full handshake',
  async (t) => {
    const app = await startApp(t, {
      entry: 'tls-app.cjs',
      files: { 'tls-app.cjs': readFileSync(fixture('tls-app.cjs'), 'utf8'), 'tls.json': '{}' },
      env: { CERTIFICATES: fixture('tls') },
    })
    await app.usr2.ready()
    const visit = async (session?: Buffer): Promise<{ resumed: boolean; ticket: Buffer | undefined }> => {
      const socket = connect({
        ...{ port: app.port, host: '127.0.0.1', rejectUnauthorized: false },
        ...(session && { session }),
      })
      t.teardown(() => socket.destroy())
      let ticket: Buffer | undefined
      // TLS 1.3 gives tickets after the handshake.
      socket.on('session', (given: Buffer) => (ticket = given))
      socket.write(request('GET', '/', 'Connection: close'))
      socket.resume()
      await deadline(once(socket, 'end'), WAIT_MS, 'an answer over TLS')
      return { resumed: socket.isSessionReused(), ticket }
    }
    const { ticket } = await visit()
    t.ok((await visit(ticket)).resumed)
    const slow = await openRaw(t, { port: app.port, tls: true })
    slow.get('/later?ms=1500')
    const isInFlight = async () =>
      (await app.usr2.status()).generations[0]?.workers.some(({ active }) => active > 0)
    await until(isInFlight, { timeoutMs: WAIT_MS, what: 'a request in flight' })
    await killMaster(app)
    const next = new Next(t, app)
    await next.event('ready')
    t.equal((await slow.response()).status, 200)
    t.notOk((await visit(ticket)).resumed, 'the keys went with their master')
    await untilGone(app)
    await next.stop(app)
  },
)

t.test('a worker that is blocked at that moment keeps the address for killTimeout at most', async (t) => {
  const app = await startApp(t, { flags: ['--kill-timeout', '1s', '--drain-timeout', '5s'] })
  await app.usr2.ready()
  const [pid = 0] = await workersOf(app)
  const sleeper = Number((await get({ port: app.port }, '/spawn')).body)
  t.equal((await get({ port: app.port }, '/spin?ms=3600000')).body, 'spins')
  await killMaster(app)
  const next = new Next(t, app)
  await next.event('ready')
  t.match(await next.event('survivor-killed'), { pid, slot: 0, generation: 1 })
  t.not((await getJson<Me>({ port: app.port })).pid, pid)
  await next.event('survivors-gone')
  t.notOk(hasToken(sleeper, app.usr2.process.token), 'what it had started itself is ended with it')
  await next.stop(app)
})

t.test('a worker that was stopped finishes its work when it goes on', async (t) => {
  const app = await startApp(t)
  await app.usr2.ready()
  const [pid = 0] = await workersOf(app)
  const slow = await openRaw(t, { port: app.port })
  slow.get('/slow?ms=1000')
  await app.usr2.process.line('began /slow')
  process.kill(pid, 'SIGSTOP')
  await killMaster(app)
  const next = new Next(t, app)
  await next.event('survivors')
  process.kill(pid, 'SIGCONT')
  t.match(await slow.response(), { status: 200, body: 'slow but whole' })
  await next.event('ready')
  await untilGone(app)
  await next.stop(app)
})

t.test('an app that handles the end of its channel itself loses nothing', async (t) => {
  const app = await startApp(t, { env: { OWN_DISCONNECT: '1' } })
  await app.usr2.ready()
  const slow = await openRaw(t, { port: app.port })
  slow.get('/slow?ms=1000')
  await app.usr2.process.line('began /slow')
  await killMaster(app)
  t.match(await slow.response(), { status: 200, body: 'slow but whole' })
  await untilGone(app)
})

t.test('a leader has returned before the next master has one', async (t) => {
  const app = await startApp(t, { env: { LEAD: '1' } })
  await app.usr2.ready()
  const [pid = 0] = await workersOf(app)
  await app.usr2.process.line(`leads ${pid}`)
  await killMaster(app)
  const next = new Next(t, app)
  const { at } = await next.process.line(/^leads /, { timeoutMs: WAIT_MS })
  const led = await app.usr2.process.line(`led ${pid}`)
  t.ok(led.at < at, 'the new one begins when the old one has returned')
  await untilGone(app)
  await next.stop(app)
})

t.test('a UDP socket, which a worker keeps to its end, is bound anew', async (t) => {
  const udpPort = await freePort(t)
  const app = await startApp(t, {
    flags: ['--kill-timeout', '1s', '--drain-timeout', '60s'],
    env: { UDP_PORT: String(udpPort) },
  })
  await app.usr2.ready()
  const idle = await openRaw(t, { port: app.port })
  idle.get('/slow?ms=60000')
  await app.usr2.process.line('began /slow')
  const [pid = 0] = await workersOf(app)
  await killMaster(app)
  const next = new Next(t, app)
  await next.event('ready')
  const client = dgram.createSocket('udp4')
  t.teardown(() => client.close())
  const answer = once(client, 'message')
  // Until it is bound what is sent is lost, as in any restart.
  const asking = setInterval(() => client.send('hello', udpPort, '127.0.0.1'), 50)
  t.teardown(() => clearInterval(asking))
  const [data] = (await deadline(answer, WAIT_MS, 'an answer by UDP')) as [Buffer]
  clearInterval(asking)
  t.match(String(data), /^hello \d+$/)
  t.not(String(data), `hello ${pid}`)
  await next.stop(app)
})

t.test('a stop of the next master waits for what the killed one left; a second one ends that', async (t) => {
  for (const how of ['once', 'twice']) {
    const app = await startApp(t, { flags: ['--drain-timeout', '20s'] })
    await app.usr2.ready()
    const slow = await openRaw(t, { port: app.port })
    slow.get(`/slow?ms=${how === 'once' ? 3_000 : 60_000}`)
    await app.usr2.process.line('began /slow')
    await killMaster(app)
    const next = new Next(t, app)
    await next.event('ready')
    if (how === 'once') {
      await next.stop(app)
      t.match(await slow.response(), { status: 200, body: 'slow but whole' })
      continue
    }
    next.process.kill('SIGTERM')
    await next.process.line('got SIGTERM')
    t.equal(slow.ending, null)
    await next.stop(app)
    t.not(await slow.ended(), null)
  }
})

t.test(
  'one worker is killed, as for its memory: the others serve, and what it had in flight is lost',
  async (t) => {
    const app = await startApp(t, { flags: ['--workers', '3'] })
    await app.usr2.ready()
    const load = await loadUnder(t, {
      target: { port: app.port },
      traffic: [{ mode: 'new', connections: 4, thinkMs: [2, 6] }],
      versionOf: 'generation',
    })
    await untilServed(load, '1')
    const from = app.usr2.process.lines.length
    process.kill((await workersOf(app))[1] ?? 0, 'SIGKILL')
    await app.usr2.event('worker-died', { from })
    await app.usr2.event('worker-ready', { from })
    const { requests, failed, failures } = await load.stop()
    t.ok(requests > 20)
    t.ok(failed <= 4, `no more than each client's one in flight: ${JSON.stringify(failures)}`)
    t.notOk('ECONNREFUSED' in failures)
    await app.usr2.stop()
  },
)

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
