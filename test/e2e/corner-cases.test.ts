/** What is seldom done with a connection, and must not be lost in a drain either. */
import http2 from 'node:http2'
import { setTimeout as sleep } from 'node:timers/promises'
import { constants, gunzipSync } from 'node:zlib'
import t from 'tap'
import type { Test } from 'tap'
import type { Drained } from '../../src/master/face.ts'
import { openRaw, request, type RawClient, type RawResponse } from '../helpers/raw-client.ts'
import { freePort } from '../helpers/tmp.ts'
import { startUsr2, type Usr2 } from '../helpers/usr2.ts'
import { deadline } from '../helpers/wait.ts'

const WAIT_MS = 20_000

interface App {
  readonly usr2: Usr2
  readonly port: number
  open(): Promise<RawClient>
  said(what: string): Promise<unknown>
  /** From the signal on; returns when the drain has begun. */
  replace(): Promise<void>
  drained(): Promise<Drained['ledger']>
}

async function startApp(
  t: Test,
  mode: string,
  env: Record<string, string> = {},
  drain = '15s',
): Promise<App> {
  const port = await freePort(t)
  const usr2 = startUsr2(t, {
    fixture: 'corner-cases.cjs',
    flags: ['--drain-timeout', drain],
    env: { PORT: String(port), MODE: mode, ...env },
  })
  await usr2.ready()
  return {
    usr2,
    port,
    open: () => openRaw(t, { port, tls: mode !== 'http' }),
    said: (what) => usr2.process.line(({ stream, text }) => stream === 'stdout' && text === what, { what }),
    async replace() {
      const from = usr2.process.lines.length
      usr2.signal('SIGUSR2')
      await usr2.process.line(/^draining$/, { from, timeoutMs: WAIT_MS })
    },
    async drained() {
      const event = await usr2.event('drained', { timeoutMs: 2 * WAIT_MS })
      return (event as unknown as Drained).ledger
    },
  }
}

t.test('allowHTTP1: its HTTP/1.1 connections leave as those of https do', async (t) => {
  const app = await startApp(t, 'allow-http1', { KEEP_ALIVE_MS: '3000' })
  const [idle, leaves, pipelined, slow, silent] = await Promise.all(Array.from({ length: 5 }, app.open))
  if (!idle || !leaves || !pipelined || !slow || !silent) throw new Error('five connections')
  for (const client of [idle, leaves, pipelined])
    t.equal((await client.get('/0').response()).body, '/0 1.1', 'HTTP/1.1')
  const session = http2.connect(`https://127.0.0.1:${app.port}`, { rejectUnauthorized: false })
  t.teardown(() => session.destroy())
  const over2 = new Promise<string>((resolve, reject) => {
    const stream = session.request({ ':path': '/4000' })
    let body = ''
    stream.on('data', (chunk: Buffer) => (body += String(chunk)))
    stream.on('end', () => resolve(body))
    stream.on('error', reject)
  })
  slow.get('/4001')
  for (const path of ['/4000', '/4001']) await app.said(`got ${path}`)
  await app.replace()
  // All in one packet: a handler that answers at once would answer the first as the last.
  pipelined.send(Array.from({ length: 8 }, () => request('GET', '/0')).join(''))
  const answers: RawResponse[] = []
  for (let i = 0; i < 8; i++) answers.push(await pipelined.response())
  t.same(
    answers.map(({ headers }) => headers['connection'] ?? ''),
    [...Array.from({ length: 7 }, () => answers[0]?.headers['connection'] ?? ''), 'close'],
    'all eight are answered, and the last says so',
  )
  leaves.socket.end()
  t.equal((await slow.response()).headers['connection'], 'close')
  t.equal(await deadline(over2, WAIT_MS, 'the answer over HTTP/2'), '/4000 2.0')
  const begun = performance.now()
  t.equal(await idle.ended(), 'FIN', 'idle, at the end of its promise')
  t.ok(performance.now() - begun < 10_000, 'not at the deadline')
  await silent.ended()
  t.match((await app.drained()).connections, {
    ...{ accepted: 6, earlier: 0, client: 1, response: 2, idle: 2, goaway: 1 },
    ...{ other: 0, cut: 0, reset: 0 },
  })
  await app.usr2.stop()
})

t.test('a request that the app answers when its time is over is answered', async (t) => {
  const app = await startApp(t, 'http')
  const client = await app.open()
  client.get('/timeout')
  await app.said('got /timeout')
  await app.replace()
  t.match(await client.response(), { status: 503, body: 'too late' })
  await app.drained()
  await app.usr2.stop()
})

t.test('a WebSocket is not told to go before it was agreed to', async (t) => {
  const app = await startApp(t, 'http', {}, '3s')
  const client = await app.open()
  client.get('/', 'Connection: Upgrade', 'Upgrade: websocket')
  await app.said('got /')
  await app.replace()
  const head = await client.until(() => client.rest.includes('\r\n\r\n') && client.rest, 'an answer')
  t.match(head, /^HTTP\/1\.1 101 /, 'first of all')
  await client.until(() => client.rest.includes('\x88\x02\x03\xe9'), 'the close frame')
  client.socket.end()
  t.match((await app.drained()).connections, { accepted: 1, websocket: 1, cut: 0 })
  await app.usr2.stop()
})

t.test('a WebSocket whose client is slow to read gets all of it, and 1001 last', async (t) => {
  const app = await startApp(t, 'http', {}, '10s')
  const clients = await Promise.all(Array.from({ length: 4 }, app.open))
  for (const client of clients) {
    client.get('/much', 'Connection: Upgrade', 'Upgrade: websocket')
    client.socket.pause()
  }
  await app.replace()
  // All are told in the first 6 s; 4 s later those who do not answer are given up.
  await sleep(7_000)
  for (const { socket } of clients) socket.resume()
  for (const client of clients) {
    const isAll = (): boolean => client.socket.bytesRead > 8 << 20 && client.rest.endsWith('\x88\x02\x03\xe9')
    await client.until(isAll, 'all of it, and the close frame')
    client.socket.end()
  }
  t.match((await app.drained()).connections, { accepted: 4, websocket: 4, cut: 0, reset: 0 })
  await app.usr2.stop()
})

t.test('a tunnel of CONNECT ends by FIN', async (t) => {
  const app = await startApp(t, 'http', {}, '6s')
  const client = await app.open()
  client.send(request('CONNECT', 'a.example:443'))
  await client.until(() => client.rest.endsWith('\r\n\r\n'), 'the answer')
  client.send('echo')
  await client.until(() => client.rest.endsWith('\r\n\r\necho'), 'the echo')
  await app.replace()
  t.equal(await client.ended(), 'FIN')
  t.match((await app.drained()).connections, { accepted: 1, other: 1, cut: 0 })
  await app.usr2.stop()
})

t.test('event streams that do not end on an empty line', async (t) => {
  const app = await startApp(t, 'http', {}, '8s')
  const [comments, half, gzip] = await Promise.all(Array.from({ length: 3 }, app.open))
  if (!comments || !half || !gzip) throw new Error('three connections')
  for (const [client, kind] of [
    [comments, 'comments'],
    [half, 'half'],
    [gzip, 'gzip'],
  ] as const) {
    client.get(`/events?${kind}`)
    await app.said(`got /events?${kind}`)
  }
  await app.replace()
  t.match((await comments.response()).body, /^id: 1\ndata: something\n\n(: still here\n)+$/)
  t.equal((await half.response()).body, 'id: 1\n')
  const zipped = Buffer.from((await gzip.response()).body, 'latin1')
  const text = gunzipSync(zipped, { finishFlush: constants.Z_SYNC_FLUSH }).toString()
  t.match(text, /^(id: 1\ndata: something\n\n)+$/, 'whole events')
  t.match((await app.drained()).requests, { during: 3, cut: 0, aborted: 0 })
  await app.usr2.stop()
})
