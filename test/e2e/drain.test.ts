/** How a worker leaves, seen by clients that see every byte (DESIGN section 6). */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { Test } from 'tap'
import { Load } from '../../src/drill/load.ts'
import { expectNoneFailed, untilServed } from '../helpers/load.ts'
import { openRaw, request, type RawClient } from '../helpers/raw-client.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { startUsr2, type Usr2, type Usr2Options } from '../helpers/usr2.ts'

interface App {
  readonly usr2: Usr2
  readonly port: number
  open(options?: { readonly tls?: boolean; readonly allowHalfOpen?: boolean }): Promise<RawClient>
  /** The app has said so since it started to be asked. */
  said(what: string): Promise<unknown>
}

async function startApp(
  t: Test,
  {
    fixture: name = 'draining-app.cjs',
    env = {},
    flags = [],
  }: Pick<Usr2Options, 'fixture' | 'env' | 'flags'> = {},
): Promise<App> {
  const port = await freePort(t)
  const usr2 = startUsr2(t, { fixture: name, flags, env: { PORT: String(port), ...env } })
  await usr2.ready()
  const tls = env['TLS'] === '1'
  return {
    usr2,
    port,
    open: (options) => openRaw(t, { port, tls, ...options }),
    said: (what) => usr2.process.line(({ stream, text }) => stream === 'stdout' && text === what, { what }),
  }
}

/** A new generation serves, and the old one has begun its drain. */
async function replace({ usr2 }: App): Promise<void> {
  const from = usr2.process.lines.length
  usr2.signal('SIGUSR2')
  await usr2.process.line(/^draining$/, { from, timeoutMs: 20_000 })
}

/** A connection that was answered once, and stayed open. */
async function openIdle(t: Test, app: App): Promise<RawClient> {
  const client = await app.open()
  const { headers } = await client.get('/now').response()
  t.equal(headers['connection'], 'keep-alive', 'before the drain nothing is closed')
  return client
}

function saysClose(t: Test, head: string, what: string): void {
  t.same(head.match(/^connection: .*$/gim), ['Connection: close'], `${what}: Connection: close, and once`)
  t.notMatch(head, /^keep-alive:/im, `${what}: no promise beside it`)
}

t.test('Connection: close in every way of writing a head', async (t) => {
  const checkingPort = await freePort(t)
  const app = await startApp(t, { fixture: 'heads.cjs', env: { CHECKING_PORT: String(checkingPort) } })
  const last = await app.open()
  const names = (await last.get('/names').response()).body.split(' ')
  const { body: constants } = await last.get('/constants').response()
  const expecting = ['Expect: 100-continue', 'Content-Length: 2']
  const exchanges = [
    ...names.map((name) => ({ name, method: 'GET', text: request('GET', `/${name}`), port: app.port })),
    { name: 'HEAD', method: 'HEAD', text: request('HEAD', '/object'), port: app.port },
    {
      name: 'HTTP/1.0',
      method: 'GET',
      text: 'GET /object HTTP/1.0\r\nConnection: keep-alive\r\n\r\n',
      port: app.port,
    },
    {
      name: 'POST',
      method: 'POST',
      text: `${request('POST', '/echo', 'Content-Length: 2')}ok`,
      port: app.port,
    },
    {
      name: '100-continue',
      method: 'POST',
      text: `${request('POST', '/echo', ...expecting)}ok`,
      port: app.port,
    },
    {
      name: 'checkContinue',
      method: 'POST',
      text: `${request('POST', '/echo', ...expecting)}ok`,
      port: checkingPort,
    },
  ]
  const clients = await Promise.all(exchanges.map(({ port }) => openRaw(t, { port })))
  const ask = () =>
    Promise.all(
      exchanges.map(async ({ name, text, method }, i) => {
        const answer = await clients[i]?.send(text).response({ method, what: name })
        if (answer === undefined) throw new Error(`no client for ${name}`)
        return answer
      }),
    )

  const before = await ask()
  await replace(app)
  const after = await ask()
  for (const [i, { name }] of exchanges.entries()) {
    const [then, now] = [before[i], after[i]]
    if (!then || !now) throw new Error(`no answer to ${name}`)
    t.notMatch(then.head, /^connection: close$/im, `${name}: nothing is closed before the drain`)
    saysClose(t, now.head, name)
    const rest = (head: string) =>
      head.split('\r\n').filter((line) => !/^(connection|keep-alive|date):/i.test(line))
    t.same(rest(now.head), rest(then.head), `${name}: the rest of the head is as it was`)
    t.same(
      [now.body, now.before],
      [then.body, then.before],
      `${name}: the body, and what came before the head`,
    )
    t.equal(await clients[i]?.ended(), 'FIN', `${name}: then FIN`)
  }
  t.match(
    before[names.indexOf('object')]?.head,
    /^Keep-Alive: timeout=99$/m,
    'before the drain the app has its way',
  )
  t.match(before.at(-1)?.before, [/^HTTP\/1.1 100 /])
  const { body } = await last.get('/constants').response()
  t.equal(body, constants, 'the constants of the app are what they were')
  await app.usr2.stop()
})

t.test('pipelined requests are all answered, in order, and only the newest says close', async (t) => {
  const app = await startApp(t)
  const paths = (n: number, path: (i: number) => string) => Array.from({ length: n }, (_, i) => path(i))
  const answered = async (client: RawClient, expected: readonly string[], what: string) => {
    for (const [i, path] of expected.entries()) {
      const { body, head, headers } = await client.response()
      t.equal(body, path, `${what}: ${path}`)
      if (i === expected.length - 1) saysClose(t, head, what)
      else t.equal(headers['connection'], 'keep-alive', `${what}: not the last`)
    }
    t.equal(await client.ended(), 'FIN', what)
    t.equal(client.rest, '', `${what}: nothing more`)
  }
  const batch = (them: readonly string[]) => them.map((path) => request('GET', path)).join('')

  const flying = await app.open()
  // A head that is written before the drain cannot say it; the last one is written after.
  const inFlight = ['/gated', '/later?ms=20', '/now?n=2', '/gated?last']
  flying.send(batch(inFlight))
  await app.said('got /gated?last')
  const [synchronous, delayed, split, gatedThenMore] = await Promise.all([
    openIdle(t, app),
    openIdle(t, app),
    openIdle(t, app),
    openIdle(t, app),
  ])
  const opener = await openIdle(t, app)
  const tickers = await Promise.all(Array.from({ length: 5 }, () => openIdle(t, app)))
  await replace(app)

  const sync = paths(8, (i) => `/now?sync=${i}`)
  await answered(synchronous.send(batch(sync)), sync, 'synchronous handlers')
  const delays = [80, 0, 40, 10, 60, 20].map((ms) => `/later?ms=${ms}`)
  await answered(delayed.send(batch(delays)), delays, 'handlers of different delays')

  // One waits for a gate, so that all the others are sent while it is in flight, each when the one before it was read
  // and had its time to be answered.
  const more = ['/gated', '/now?more=1', '/later?ms=30', '/now?more=3', '/now?more=4']
  for (const [i, path] of more.entries()) {
    gatedThenMore.get(path)
    await tickers[i]?.get('/now').response()
  }

  const text = batch(['/gated', '/now?split=1'])
  split.send(text.slice(0, text.length - 20))
  await app.usr2.process.line(({ text }) => text === 'got /gated', {
    from: lineAfter(app.usr2, 'got /gated'),
  })
  split.send(text.slice(text.length - 20))
  await opener.get('/open').response()
  await Promise.all([
    answered(gatedThenMore, more, 'more than one packet'),
    answered(split, ['/gated', '/now?split=1'], 'cut within a head'),
    answered(flying, inFlight, 'in flight at the beginning'),
  ])
  await app.usr2.stop()
})

t.test('what is under way when the drain begins is finished', async (t) => {
  const app = await startApp(t, { env: { KEEP_ALIVE_MS: '20000' } })
  const open = () => app.open()
  const [waiting, streaming, half, upload, chunked, slow, halfClosed] = await Promise.all([
    open(),
    open(),
    open(),
    open(),
    open(),
    open(),
    openIdle(t, app),
  ])
  const opener = await openIdle(t, app)
  waiting.get('/gated')
  streaming.get('/stream?ms=1500')
  await streaming.until(() => /begin[^]*\./.test(streaming.rest), 'the first dots')
  half.send('GET /now HTTP/1.1\r\nHost: loc')
  upload.send(request('POST', '/upload?sized', 'Content-Length: 10') + '12345')
  chunked.send(request('POST', '/upload?chunked', 'Transfer-Encoding: chunked') + '5\r\n12345\r\n')
  slow.socket.pause()
  slow.get('/big?mb=32')
  for (const what of ['/gated', '/big?mb=32']) await app.said(`got ${what}`)
  for (const what of ['/upload?sized 5', '/upload?chunked 5']) await app.said(`body ${what}`)
  await replace(app)

  half.send('alhost\r\n\r\n')
  const late = await half.response()
  t.equal(late.body, '/now', 'half a head before, the rest after')
  saysClose(t, late.head, 'half a head')

  upload.send('67890')
  chunked.send('5\r\n67890\r\n0\r\n\r\n')
  for (const [client, what] of [
    [upload, 'an upload'],
    [chunked, 'a chunked upload'],
  ] as const) {
    const { body, head } = await client.response({ method: 'POST' })
    t.equal(body, '10', `${what}: whole`)
    saysClose(t, head, what)
    t.equal(await client.ended(), 'FIN', what)
  }

  await opener.get('/open').response()
  const { head } = await waiting.response()
  saysClose(t, head, 'a response whose head was not out')

  const stream = await streaming.response()
  t.match(stream.body, /^begin\.+end$/, 'a stream: to its end')
  t.notMatch(stream.head, /^connection: close/im, 'its head was out before')
  const next = await streaming.get('/now').response()
  saysClose(t, next.head, 'the next request after a stream')
  t.equal(await streaming.ended(), 'FIN')

  slow.socket.resume()
  const big = await slow.response({ timeoutMs: 30_000 })
  t.equal(big.body.length, 32 * 1024 * 1024, 'more than the buffers hold, to a slow reader: whole')
  saysClose(t, (await slow.get('/now').response()).head, 'the next request after it')
  t.equal(await slow.ended(), 'FIN')

  halfClosed.socket.end(request('GET', '/now?half-closed'))
  const { body } = await halfClosed.response()
  t.equal(body, '/now?half-closed', 'a client that half-closes has its answer')
  await app.usr2.stop()
  const ended = app.usr2.events().find(({ event, generation }) => event === 'drained' && generation === 1)
  t.match(ended, { ledger: { connections: { cut: 0 } } }, 'nothing was cut')
})

t.test('an idle connection lives as long as its client was told, and is answered', async (t) => {
  // Node tells its clients `timeout=2` and closes about a second later.
  const app = await startApp(t, { env: { KEEP_ALIVE_MS: '2000' }, flags: ['--drain-timeout', '1s'] })
  const [unused, prompt, late] = await Promise.all([openIdle(t, app), openIdle(t, app), openIdle(t, app)])
  const since = performance.now()
  const { headers } = await late.get('/now').response()
  t.match(headers['keep-alive'], 'timeout=2')
  const toldAt = performance.now()
  await replace(app)
  saysClose(t, (await prompt.get('/now').response()).head, 'asked at once')
  t.equal(unused.ending, null, 'an idle connection stays open')
  // The time that was promised is what is tested here.
  await new Promise((resolve) => setTimeout(resolve, Math.max(0, toldAt + 1_900 - performance.now())))
  const answer = await late.get('/now?late').response()
  saysClose(t, answer.head, 'asked when the promise is nearly over')
  t.equal(await unused.ended(), 'FIN', 'closed in the end')
  t.ok(
    unused.endedAt - since >= 1_900,
    `not before the promise had ended, but after ${unused.endedAt - since} ms`,
  )
  const ended = await app.usr2.event('drained')
  t.match(
    ended,
    { generation: 1, ledger: { connections: { cut: 0 } } },
    'the drain lasted as long as the promise, and nothing was cut',
  )
  await app.usr2.stop()
})

t.test('a connection that was promised nothing is closed after 5 s, by FIN', async (t) => {
  const check = async (what: string, tls: boolean) => {
    const app = await startApp(t, { env: { KEEP_ALIVE_MS: '0', ...(tls && { TLS: '1' }) } })
    const [silent, asking, idle] = await Promise.all([app.open(), app.open(), openIdle(t, app)])
    // Over TLS also one that has not shaken hands.
    const mute = await app.open({ tls: false })
    await replace(app)
    const drainedAt = performance.now()
    saysClose(t, (await asking.get('/now').response()).head, `${what}: a first request within that time`)
    t.equal(await asking.ended(), 'FIN')
    for (const [client, name] of [
      [silent, 'never used'],
      [mute, 'not a byte'],
      [idle, 'no promise'],
    ] as const) {
      t.equal(await client.ended(), 'FIN', `${what}, ${name}: FIN`)
      // `draining` is said a moment after the withdrawal, and read a moment after that.
      t.ok(client.endedAt - drainedAt > 4_500, `${what}, ${name}: after ${client.endedAt - drainedAt} ms`)
    }
    t.match(
      await app.usr2.event('drained'),
      { generation: 1, ledger: { connections: { cut: 0 } } },
      `${what}: nobody lost anything`,
    )
    await app.usr2.stop()
  }
  await Promise.all([check('http', false), check('https', true)])
})

t.test('https: keep-alive, pipelined, in flight', async (t) => {
  const app = await startApp(t, { env: { TLS: '1', KEEP_ALIVE_MS: '20000' } })
  const [idle, blocking, halfClosed, pipelined, flying, uploading] = await Promise.all([
    openIdle(t, app),
    openIdle(t, app),
    openIdle(t, app),
    openIdle(t, app),
    app.open(),
    app.open(),
  ])
  flying.get('/gated')
  await app.said('got /gated')
  uploading.send(request('POST', '/upload', 'Content-Length: 10') + '12345')
  await app.said('body /upload 5')
  await replace(app)
  saysClose(t, (await idle.get('/now').response()).head, 'keep-alive')
  // Over TLS the end of the client's half is read with its request, if both are there by then.
  blocking.get('/block?ms=300')
  await app.said('got /block?ms=300')
  halfClosed.socket.end(request('GET', '/now?half-closed'))
  t.equal((await halfClosed.response()).body, '/now?half-closed', 'a client that half-closes has its answer')
  pipelined.send(['/now?0', '/later?ms=20', '/now?2'].map((path) => request('GET', path)).join(''))
  t.equal((await pipelined.response()).headers['connection'], 'keep-alive')
  t.equal((await pipelined.response()).body, '/later?ms=20')
  const last = await pipelined.response()
  t.equal(last.body, '/now?2')
  saysClose(t, last.head, 'pipelined')
  const { body } = await uploading.send('67890').response({ method: 'POST' })
  t.equal(body, '10')
  // The gate is in the process of the old generation, which no new connection reaches.
  flying.send(request('GET', '/open') + request('GET', '/now?newest'))
  for (const path of ['/gated', '/open']) {
    const { body: own, headers } = await flying.response()
    t.equal(own, path, 'in flight; and the one behind it, which opened the gate')
    t.equal(headers['connection'], 'keep-alive', 'not the newest')
  }
  saysClose(t, (await flying.response()).head, 'the newest')
  for (const client of [idle, pipelined, flying, uploading]) t.equal(await client.ended(), 'FIN')
  await app.usr2.stop()
})

t.test('a response is read whole though the client has sent more than was read', async (t) => {
  const app = await startApp(t, { env: { KEEP_ALIVE_MS: '20000' } })
  const clients = await Promise.all(Array.from({ length: 20 }, () => openIdle(t, app)))
  await replace(app)
  const body = 'x'.repeat(64 * 1024)
  await Promise.all(
    clients.map(async (client, i) => {
      // Not read yet, while the server would like to close.
      client.socket.pause()
      client.send(request('POST', `/early?n=${i}`, 'Content-Length: 2000000'))
      for (let sent = 0; sent < 1_900_000; sent += body.length) client.send(body)
      await app.said(`got /early?n=${i}`)
      for (let more = 0; more < 10; more++) {
        await new Promise((resolve) => setImmediate(resolve))
        client.send('y')
      }
      client.socket.resume()
      const { body: answer } = await client.response({ method: 'POST' })
      t.equal(answer.length, 64 * 1024, 'whole')
      t.equal(await client.ended(), 'FIN')
    }),
  )
  await app.usr2.stop()
})

t.test('a net server: waits, then the deadline cuts, and says so', async (t) => {
  const app = await startApp(t, { fixture: 'echo-net.cjs', flags: ['--drain-timeout', '2s'] })
  const [leaving, staying] = await Promise.all([app.open(), app.open()])
  const echo = async (client: RawClient, text: string) => {
    const from = client.rest.length
    await client.send(text).until(() => client.rest.slice(from) === text, `the echo of ${text}`)
  }
  await echo(leaving, 'before')
  await echo(staying, 'before')
  const from = app.usr2.process.lines.length
  const reload = app.usr2.reload({ flags: ['--wait', 'drained'] })
  await app.usr2.process.line(/^draining$/, { from })
  await echo(leaving, 'after')
  await echo(staying, 'after')
  leaving.socket.end()
  t.equal(await leaving.ended(), 'FIN')
  const peer = `127.0.0.1:${staying.socket.localPort ?? 0}`
  await staying.ended()
  const { code, stdout } = await reload
  t.equal(code, 0)
  t.match(
    stdout,
    /generation 1 has ended: 2 connections: 1 closed by the client, 1 cut; 0 requests/,
    'usr2 reload --wait drained tells',
  )
  const cut = await app.usr2.event('cut')
  t.match(cut, { cut: 1, generation: 1, slot: 0, held: [{ what: 'raw', peer }] })
  t.match(cut.msg, `cut 1 connection with 0 requests at the drain deadline: raw connection`)
  t.match(await app.usr2.event('drained'), {
    generation: 1,
    ledger: { connections: { accepted: 2, cut: 1 } },
  })
  await app.usr2.stop()
})

t.test('the deadline cuts what is left of http, and names it', async (t) => {
  const app = await startApp(t, { env: { KEEP_ALIVE_MS: '100' }, flags: ['--drain-timeout', '2500ms'] })
  const [hanging, streaming, uploading, half, silent] = await Promise.all([
    app.open(),
    app.open(),
    app.open(),
    app.open(),
    app.open(),
  ])
  hanging.get('/later?ms=60000&secret=1')
  streaming.get('/stream?ms=60000')
  uploading.send(request('POST', '/upload', 'Content-Length: 10') + '12345')
  half.send('GET /now HTTP/1.1\r\nHo')
  for (const what of ['got /later?ms=60000&secret=1', 'got /stream?ms=60000', 'body /upload 5'])
    await app.said(what)
  const peers = new Map(
    [hanging, streaming, uploading, half].map((client) => [
      client,
      `127.0.0.1:${client.socket.localPort ?? 0}`,
    ]),
  )
  const { code, stdout } = await app.usr2.reload({ flags: ['--wait', 'drained'] })
  t.equal(code, 0)
  t.match(stdout, /has ended: 5 connections: 1 idle when their promise ended, 4 cut; 3 requests: 0 .*, 3 cut/)
  const cut = await app.usr2.event('cut')
  const named = cut['held'] as {
    readonly what: string
    readonly path?: string
    readonly ageMs: number
    readonly bytesRead: number
    readonly bytesWritten: number
  }[]
  t.same(
    named
      .map(({ ageMs: _, bytesRead: __, bytesWritten: ___, ...rest }) => rest)
      .sort((a, b) => (a.path ?? '~').localeCompare(b.path ?? '~')),
    [
      { what: 'request', method: 'GET', path: '/later', peer: peers.get(hanging) },
      { what: 'request', method: 'GET', path: '/stream', peer: peers.get(streaming) },
      { what: 'request', method: 'POST', path: '/upload', peer: peers.get(uploading) },
      { what: 'raw', peer: peers.get(half) },
    ],
    'method, path without its query, peer; whoever said nothing lost nothing',
  )
  t.ok(
    named.every(({ ageMs }) => ageMs >= 2_000),
    'how old each was',
  )
  t.ok(
    named.every(({ bytesRead }) => bytesRead > 20),
    'how much came from each',
  )
  t.ok((named.find(({ path }) => path === '/stream')?.bytesWritten ?? 0) > 100, 'and how much went to it')
  t.match(
    cut.msg,
    /cut 4 connections with 3 requests at the drain deadline: .*GET \/later, [\d.]+ s, 127\.0\.0\.1:\d+/,
  )
  t.notMatch(
    app.usr2.logs().replaceAll(/^ *\| .*$/gm, ''),
    'secret',
    'what is in a query stays out of the log',
  )
  await Promise.all([hanging, streaming, uploading, half, silent].map((client) => client.ended()))
  await app.usr2.stop()
})

t.test('the app closes its server and its idle connections itself', async (t) => {
  await t.test('while it serves', async (t) => {
    const app = await startApp(t)
    const [idle, pipelined, closing] = await Promise.all([
      openIdle(t, app),
      openIdle(t, app),
      openIdle(t, app),
    ])
    saysClose(t, (await closing.get('/close').response()).head, 'the response that closes')
    saysClose(t, (await idle.get('/now').response()).head, 'an idle connection is answered')
    pipelined.send(request('GET', '/now?0') + request('GET', '/now?1'))
    t.equal((await pipelined.response()).headers['connection'], 'keep-alive')
    saysClose(t, (await pipelined.response()).head, 'the newest')
    await app.said('server closed')
    for (const client of [idle, pipelined, closing]) t.equal(await client.ended(), 'FIN')
    await app.usr2.stop()
  })
  await t.test('when it is told of the drain', async (t) => {
    const app = await startApp(t, { env: { CLOSE_ON_DRAIN: '1' } })
    const [idle, waiting] = await Promise.all([openIdle(t, app), app.open()])
    waiting.get('/gated')
    await app.said('got /gated')
    await replace(app)
    saysClose(t, (await idle.get('/open').response()).head, 'an idle connection')
    saysClose(t, (await waiting.response()).head, 'what was in flight')
    await app.said('server closed')
    await app.usr2.stop()
  })
})

t.test("the app's own shutdown comes last and loses nothing", async (t) => {
  const styles: readonly (readonly [style: string, says: readonly string[], warns?: readonly RegExp[]])[] = [
    ['no handler', []],
    ['process.exit', ['stopped process.exit']],
    ['async', ['stopped async']],
    ['close-with-grace', ['signal SIGTERM', 'stopped close-with-grace']],
    ['http-terminator', ['stopped http-terminator']],
    ['fastify', ['stopped fastify']],
    ['PM2 SIGINT', ['stopped PM2 SIGINT']],
    // The worker and the master have the same deadline for it: one of them is first, sometimes both are.
    [
      'never ends',
      ['stopped never ends'],
      [/shutdown took longer than 1 s|has not left in time and gets SIGTERM/],
    ],
    ['blocked', ['stopped blocked'], [/slot 0 .* gets SIGTERM/, /slot 0 .* gets SIGKILL/]],
    [
      'onShutdown',
      ['closed queue', 'closed database', 'closed by SIGTERM', 'stopped onShutdown'],
      [/shutting down broken failed: it was never open/],
    ],
  ]
  // Each is a generation of its own: the style is in the env file, which every reload reads anew.
  const envFile = join(shortTmp(t), 'env')
  const next = (style: string) => writeFileSync(envFile, `STYLE="${style}"\n`)
  next(styles[0]?.[0] ?? '')
  const app = await startApp(t, {
    fixture: 'shutdown-styles.cjs',
    flags: ['--env-file', envFile, '--shutdown-timeout', '1s', '--kill-timeout', '500ms'],
  })
  const load = new Load({
    target: { port: app.port },
    traffic: [
      { mode: 'hot', connections: 2 },
      { mode: 'keepalive', connections: 4, thinkMs: [0, 10] },
      { mode: 'new', connections: 1, thinkMs: [0, 5] },
    ],
    versionOf: 'generation',
  }).start()
  t.teardown(() => load.stop())
  for (const [i, [style, says, warns = []]] of styles.entries()) {
    const generation = i + 1
    await untilServed(load, String(generation))
    next(styles[generation]?.[0] ?? 'no handler')
    const from = app.usr2.process.lines.length
    const { code, stdout, stderr } = await app.usr2.reload({ flags: ['--wait', 'drained'] })
    t.equal(code, 0, `${style} ${stderr}`)
    t.match(stdout, new RegExp(`generation ${generation} has ended: .* 0 cut`), style)
    const lines = app.usr2.process.lines.slice(from).map(({ text }) => text)
    const heard = lines.filter((line) => /^(stopped|closed|signal) /.test(line))
    t.same(heard, says, `${style}: all of the shutdown, in its order`)
    const warnings = lines.filter(
      (line) => /"level":"(warn|error)"/.test(line) && !line.includes('keepAliveTimeout'),
    )
    t.match(warnings, warns, `${style}: what is wrong is said`)
    t.ok(warnings.length === warns.length || style === 'never ends', `${style}: and nothing else`)
  }
  const result = await load.stop()
  expectNoneFailed(t, result)
  await app.usr2.stop()
})

t.test('an end in the midst of a drain is no silence', async (t) => {
  const ends = [
    ['/exit?status=0', 'exited with status 0', true],
    ['/exit?status=3', 'exited with status 3', true],
    ['/throw', 'exited with status 1: Error: thrown in a request .*', true],
    ['/kill', 'was killed by SIGKILL', false],
  ] as const
  for (const [path, how, names] of ends) {
    const app = await startApp(t)
    const [idle, waiting] = await Promise.all([openIdle(t, app), app.open()])
    waiting.get('/later?ms=60000')
    await app.said('got /later?ms=60000')
    const reload = app.usr2.reload({ flags: ['--wait', 'drained'] })
    await app.said('draining')
    idle.get(path)
    await waiting.ended()
    const { code, stdout } = await reload
    t.equal(code, 0)
    const { msg } = await app.usr2.event('died-draining')
    t.match(msg, new RegExp(`slot 0 \\(pid \\d+\\) ${how}, in the midst of its drain`))
    if (names) {
      t.match(stdout, /has ended: 2 connections: 0 cut, 2 crashed; 3 requests: .* 0 cut, 2 crashed/)
      t.match(
        msg,
        new RegExp(
          `with it ended 2 connections, 2 requests in flight: GET ${path.split('?')[0] ?? ''}, .* ms, .*; GET /later, .* ms, `,
        ),
      )
    }
    await app.usr2.stop()
  }
})

function lineAfter({ process }: Usr2, text: string): number {
  return process.lines.findLastIndex((line) => line.text === text) + 1
}
