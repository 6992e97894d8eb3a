/** What outlives a master that was killed, and what the next one does about it (docs/master-death.md). */
import dgram from 'node:dgram'
import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { connect } from 'node:tls'
import t from 'tap'
import { get, getJson } from '../helpers/http.ts'
import { loadUnder, untilServed } from '../helpers/load.ts'
import { killMaster, type Me, Next, startApp, untilGone, WAIT_MS, workersOf } from '../helpers/next-master.ts'
import { hasToken } from '../helpers/processes.ts'
import { openRaw, request } from '../helpers/raw-client.ts'
import { freePort } from '../helpers/tmp.ts'
import { fixture } from '../helpers/usr2.ts'
import { deadline, until } from '../helpers/wait.ts'

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
  const app = await startApp(t, { flags: ['--kill-timeout', '1s'] })
  await app.usr2.ready()
  const [pid = 0] = await workersOf(app)
  const sleeper = Number((await get({ port: app.port }, '/spawn')).body)
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
  t.match(await next.event('leftovers'), { pid, left: [{ pid: sleeper }] })
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
  const app = await startApp(t, { env: { LEAD: '3000' } })
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
