/** What a drain says of each connection and request, and how those that last are ended. */
import t from 'tap'
import type { Test } from 'tap'
import { WebSocket } from 'ws'
import type { Drained } from '../../src/master/face.ts'
import { openRaw, request, type RawClient } from '../helpers/raw-client.ts'
import { freePort } from '../helpers/tmp.ts'
import { startUsr2, type Usr2 } from '../helpers/usr2.ts'
import { deadline, until } from '../helpers/wait.ts'

const WAIT_MS = 20_000

interface App {
  readonly usr2: Usr2
  open(options?: { readonly allowHalfOpen?: boolean }): Promise<RawClient>
  openWebSocket(): Promise<{ socket: WebSocket; closed: Promise<number> }>
  said(what: string): Promise<unknown>
}

async function startApp(t: Test, flags: readonly string[], env: Record<string, string> = {}): Promise<App> {
  const port = await freePort(t)
  const usr2 = startUsr2(t, { fixture: 'long-lived-app.cjs', flags, env: { PORT: String(port), ...env } })
  await usr2.ready()
  return {
    usr2,
    open: (options) => openRaw(t, { port, ...options }),
    said: (what) => usr2.process.line(({ stream, text }) => stream === 'stdout' && text === what, { what }),
    async openWebSocket() {
      const socket = new WebSocket(`ws://127.0.0.1:${port}`)
      t.teardown(() => socket.terminate())
      const closed = new Promise<number>((resolve) => socket.on('close', resolve))
      socket.on('error', () => {})
      await deadline(new Promise((resolve) => socket.once('open', resolve)), WAIT_MS, 'a WebSocket to open')
      return { socket, closed }
    },
  }
}

async function idle(app: App): Promise<RawClient> {
  const client = await app.open()
  await client.get('/now').response()
  return client
}

async function replace({ usr2 }: App): Promise<void> {
  const from = usr2.process.lines.length
  usr2.signal('SIGUSR2')
  await usr2.process.line(/^draining$/, { from, timeoutMs: WAIT_MS })
}

t.test('every connection ends in one bucket, and every request', async (t) => {
  const app = await startApp(t, ['--drain-timeout', '6s'], { KEEP_ALIVE_MS: '3000' })
  // On a busy machine the new version takes seconds to boot: all of this is still so when the drain begins.
  const { usr2 } = app
  const gone = await idle(app)
  gone.socket.end()
  await gone.ended()
  const [leaves, asks, stays, hangs, resets, destroyed, upgraded, late] = await Promise.all(
    Array.from({ length: 8 }, () => app.open()),
  )
  if (!leaves || !asks || !stays || !hangs || !resets || !destroyed || !upgraded || !late)
    throw new Error('eight connections')
  for (const client of [leaves, asks, stays]) await client.get('/now').response()
  const { closed } = await app.openWebSocket()
  upgraded.get('/', 'Connection: Upgrade', 'Upgrade: echo')
  hangs.get('/later?ms=60000')
  resets.get('/later?ms=59999')
  destroyed.get('/destroy?ms=3000')
  late.get('/later?ms=4500')
  for (const path of ['/later?ms=60000', '/later?ms=59999', '/destroy?ms=3000', '/later?ms=4500'])
    await app.said(`got ${path}`)
  const reload = usr2.reload({ flags: ['--wait', 'drained', '--json'] })
  await app.said('draining')
  leaves.socket.end()
  asks.get('/now')
  t.equal((await asks.response()).headers['connection'], 'close')
  resets.socket.resetAndDestroy()
  t.equal(await upgraded.ended(), 'FIN')
  upgraded.socket.end()
  t.equal(await closed, 1001)
  t.equal((await late.response()).body, '/later?ms=4500')
  const { code, stdout } = await reload
  t.equal(code, 0)
  const { drained } = JSON.parse(stdout.trim().split('\n').at(-1) ?? '') as { drained: Drained }
  t.same(drained.ledger.connections, {
    accepted: 10,
    earlier: 1,
    client: 1,
    response: 2,
    idle: 1,
    goaway: 0,
    websocket: 1,
    other: 2,
    cut: 1,
    reset: 1,
    crashed: 0,
    open: 0,
  })
  t.same(drained.ledger.requests, {
    begun: 9,
    before: 4,
    during: 2,
    cut: 1,
    aborted: 2,
    crashed: 0,
    active: 0,
  })
  t.match(drained.ledger.slowest, { method: 'GET', path: '/later' })
  t.ok((drained.ledger.slowest?.tookMs ?? 0) >= 4_400)
  t.match(
    drained.text,
    '10 connections: 1 before the drain, 1 closed by the client, 2 after their last response, ' +
      '1 idle when their promise ended, 1 by WebSocket 1001, 2 other, 1 cut, 1 reset by the peer; 9 requests: ' +
      '2 completed during the drain, 2 aborted, 1 cut; slowest',
  )
  t.match((await usr2.event('drained')).msg, drained.text, 'the log has the same')
  await usr2.stop()
})

t.test('server-sent events end between two events', async (t) => {
  const app = await startApp(t, ['--drain-timeout', '8s'])
  const paths = ['/events', '/events?bound', '/events?silent']
  const clients = await Promise.all(paths.map(() => app.open()))
  for (const [i, client] of clients.entries()) {
    client.get(paths[i] ?? '')
    await app.said(`got ${paths[i]}`)
  }
  await replace(app)
  const began = await idle(app)
  const bodies = await Promise.all(clients.map((client) => client.response({ timeoutMs: WAIT_MS })))
  for (const [i, { headers, body }] of bodies.entries()) {
    const path = paths[i] ?? ''
    t.equal(headers['content-type'], 'text/event-stream', path)
    const ids = [...body.matchAll(/^id: (\d+)\n/gm)].map(([, id]) => Number(id))
    t.same(
      ids,
      ids.map((_, i) => i + 1),
      `${path}: none is missing`,
    )
    if (path !== '/events?bound')
      t.match(body, /^(id: \d+\ndata: something\n\n)+$/, `${path}: the last event is whole, and the response`)
    await app.said(`closed ${path}`)
  }
  // The connection of an event stream is as good as any other.
  const [again] = clients
  if (!again) throw new Error('three clients')
  t.match((await again.get('/now').response()).headers['connection'], 'close')
  began.socket.end()
  for (const client of clients) client.socket.end()
  const { ledger } = (await app.usr2.event('drained', { timeoutMs: WAIT_MS })) as unknown as Drained
  t.match(ledger.requests, { during: 4, cut: 0, aborted: 0, crashed: 0 })
  await app.usr2.stop()
})

t.test('a request that came before its connection is closed as idle is answered', async (t) => {
  const app = await startApp(t, [], { KEEP_ALIVE_MS: '3000' })
  const [blocker, late] = await Promise.all([app.open(), idle(app)])
  await replace(app)
  // Both timers of `late`, its promise and the second that Node adds, end while nothing can be read.
  blocker.get('/block?ms=5000')
  await app.said('got /block?ms=5000')
  late.get('/now')
  const { headers, body } = await late.response()
  t.equal(body, '/now')
  t.equal(headers['connection'], 'close')
  t.equal(await late.ended(), 'FIN')
  await blocker.response()
  const { ledger } = (await app.usr2.event('drained', { timeoutMs: WAIT_MS })) as unknown as Drained
  t.match(ledger.connections, { response: 2, idle: 0, reset: 0, cut: 0 })
  await app.usr2.stop()
})

t.test('who holds a drain is told while it lasts, and at its end', async (t) => {
  const app = await startApp(t, ['--drain-timeout', '5s', '--shutdown-timeout', '4s'], {
    HANG_ON_SIGTERM: '1',
  })
  const [slow, uploads, { socket }] = await Promise.all([app.open(), app.open(), app.openWebSocket()])
  slow.get('/later?ms=60000&secret=1')
  await app.said('got /later?ms=60000&secret=1')
  uploads.send(request('POST', '/upload', 'Content-Length: 1000') + 'x'.repeat(500))
  await app.said('got /upload')
  socket.on('close', () => {})
  await replace(app)
  const shown = (pattern: RegExp): Promise<string> =>
    until(
      async () => {
        const { stdout } = await app.usr2.cli('status', ['--drain'])
        return pattern.test(stdout) ? stdout : ''
      },
      { timeoutMs: WAIT_MS, what: String(pattern), logs: () => app.usr2.logs() },
    )
  const text = await shown(/the oldest:/)
  t.match(text, /^generation 1, slot 0, pid \d+: draining, waits for \d connections?, 2 requests in flight/)
  t.match(text, /held .* by \d: 2 request/)
  const rows = text.split('\n').filter((line) => /^ +request/.test(line))
  t.match(rows, [/GET \/later .* 127\.0\.0\.1:/, /POST \/upload .* 127\.0\.0\.1:/], 'the oldest first')
  t.match(rows[1]?.split(/\s{2,}/)[4], /^5\d\d$/, 'how much of the upload came')
  t.notMatch(text, 'secret')
  const cut = await app.usr2.event('cut', { timeoutMs: WAIT_MS })
  t.match(
    cut.msg,
    /cut 2 connections with 2 requests at the drain deadline: GET \/later, .*; POST \/upload, /,
  )
  t.match(
    await shown(/no connection holds it/),
    /no connection holds it; the app's own: .*\d Timeout/,
    "then it is the app's own",
  )
  await app.usr2.event('drained', { timeoutMs: WAIT_MS })
  t.match(await app.usr2.cli('status', ['--drain']), { stdout: 't: no worker is leaving' })
  await app.usr2.cli('stop', ['--now'])
})

for (const [how, codeAtEnd, drainTimeout] of [
  // So short that `close` would have said goodbye within a second, long before the slow answer.
  ['wait', 1000, '4s'],
  ['ignore', 1001, '15s'],
] as const) {
  t.test(`--websocket-drain ${how}`, async (t) => {
    const app = await startApp(t, ['--drain-timeout', drainTimeout, '--websocket-drain', how])
    const { socket, closed } = await app.openWebSocket()
    const slow = await app.open()
    slow.get('/later?ms=2500')
    await app.said('got /later?ms=2500')
    await replace(app)
    const echoed = new Promise((resolve) => socket.once('message', (text) => resolve(String(text))))
    socket.send('still there?')
    t.equal(await deadline(echoed, WAIT_MS, 'the echo'), 'still there?')
    await slow.response()
    slow.socket.end()
    if (how === 'wait') {
      t.equal(socket.readyState, WebSocket.OPEN)
      socket.close(1000)
    }
    t.equal(await deadline(closed, WAIT_MS, 'the end of the WebSocket'), codeAtEnd)
    const { ledger } = (await app.usr2.event('drained', { timeoutMs: WAIT_MS })) as unknown as Drained
    t.match(ledger.connections, how === 'wait' ? { websocket: 0, cut: 0 } : { websocket: 1, cut: 0 })
    await app.usr2.stop()
  })
}

t.test('a long promise to idle clients does not put off the goodbyes', async (t) => {
  const app = await startApp(t, ['--drain-timeout', '3s'], { KEEP_ALIVE_MS: '300000' })
  const sockets = await Promise.all(Array.from({ length: 5 }, () => app.openWebSocket()))
  const stays = await idle(app)
  await replace(app)
  const codes = Promise.all(sockets.map(({ closed }) => closed))
  t.same(await deadline(codes, WAIT_MS, 'five WebSockets to be closed'), [1001, 1001, 1001, 1001, 1001])
  t.equal((await stays.get('/now').response()).body, '/now')
  stays.socket.end()
  await app.usr2.event('drained', { timeoutMs: WAIT_MS })
  await app.usr2.stop()
})
