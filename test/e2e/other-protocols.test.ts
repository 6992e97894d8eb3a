/** How connections that do not speak HTTP/1.1 leave: HTTP/2 sessions, WebSockets, other upgraded ones. */
import { once } from 'node:events'
import http2 from 'node:http2'
import net from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import type { Test } from 'tap'
import { WebSocket } from 'ws'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { startUsr2, type Usr2 } from '../helpers/usr2.ts'
import { deadline } from '../helpers/wait.ts'

const WAIT_MS = 15_000

async function startApp(
  t: Test,
  fixture: string,
  env: Record<string, string> = {},
  drain = '3s',
): Promise<[Usr2, number]> {
  const port = await freePort(t)
  const usr2 = startUsr2(t, {
    fixture,
    flags: ['--drain-timeout', drain],
    env: { PORT: String(port), ...env },
  })
  await usr2.ready()
  return [usr2, port]
}

async function replace(usr2: Usr2): Promise<void> {
  const from = usr2.process.lines.length
  usr2.signal('SIGUSR2')
  await usr2.event('promoted', { from, timeoutMs: WAIT_MS })
}

interface Session {
  readonly session: http2.ClientHttp2Session
  readonly goaways: number[]
  readonly errors: Error[]
  readonly closed: Promise<void>
}

async function openSession(t: Test, url: string): Promise<Session> {
  const session = http2.connect(url, { rejectUnauthorized: false })
  t.teardown(() => session.destroy())
  const goaways: number[] = []
  const errors: Error[] = []
  session.on('goaway', (code) => goaways.push(code))
  session.on('error', (error) => errors.push(error))
  const closed = new Promise<void>((resolve) => session.once('close', resolve))
  await deadline(
    new Promise((resolve) => session.once('remoteSettings', resolve)),
    WAIT_MS,
    'the settings of the server',
  )
  return { session, goaways, errors, closed }
}

function get(session: http2.ClientHttp2Session, path: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const stream = session.request({ ':path': path })
    let body = ''
    stream.setEncoding('utf8')
    stream.on('data', (text: string) => (body += text))
    stream.on('end', () => resolve(body))
    stream.on('error', reject)
    stream.end()
  })
}

for (const [name, scheme, env] of [
  ['h2c', 'http', {}],
  ['h2 over TLS', 'https', { TLS: '1' }],
] as const) {
  t.test(
    `${name}: GOAWAY without an error, streams in flight finish, the session closes with its last one`,
    async (t) => {
      const [usr2, port] = await startApp(t, 'http2-app.cjs', env)
      const busy = await openSession(t, `${scheme}://127.0.0.1:${port}`)
      // Node sends it again when the session closes.
      const told = ({ goaways }: Session, who: string): unknown =>
        t.same(
          new Set(goaways),
          new Set([http2.constants.NGHTTP2_NO_ERROR]),
          `${who} was told to go, without an error`,
        )
      const idle = await openSession(t, `${scheme}://127.0.0.1:${port}`)
      t.equal(await get(idle.session, '/0'), '1', 'answered by generation 1')
      const slow = get(busy.session, '/1500')
      await usr2.process.line(/^got \/1500$/)
      await replace(usr2)
      await deadline(idle.closed, WAIT_MS, 'the end of the idle session')
      told(idle, 'the idle session')
      t.equal(
        await deadline(slow, WAIT_MS, 'the slow answer'),
        '1',
        'the stream in flight got its whole answer',
      )
      await deadline(busy.closed, WAIT_MS, 'the end of the busy session')
      told(busy, 'the busy session')
      t.same([...idle.errors, ...busy.errors], [], 'no session had an error')
      const again = await openSession(t, `${scheme}://127.0.0.1:${port}`)
      t.equal(await get(again.session, '/0'), '2', 'a new connection reaches generation 2')
      const drained = await usr2.event('drained', { timeoutMs: WAIT_MS })
      t.match(
        drained,
        { generation: 1, ledger: { connections: { accepted: 2, cut: 0 }, requests: { begun: 2 } } },
        'counted, and nothing was cut',
      )
      again.session.close()
      await usr2.stop()
    },
  )
}

t.test('WebSockets are closed with 1001, spread over the drain, and answered until then', async (t) => {
  const [usr2, port] = await startApp(t, 'websocket-app.cjs', {}, '6s')
  const sockets = await Promise.all(
    Array.from({ length: 20 }, async () => {
      const socket = new WebSocket(`ws://127.0.0.1:${port}`)
      t.teardown(() => socket.terminate())
      const errors: Error[] = []
      socket.on('error', (error) => errors.push(error))
      const closed = new Promise<{ code: number; at: number }>((resolve) =>
        socket.on('close', (code) => resolve({ code, at: performance.now() })),
      )
      await deadline(new Promise((resolve) => socket.once('open', resolve)), WAIT_MS, 'a WebSocket to open')
      return { socket, errors, closed }
    }),
  )
  await replace(usr2)
  const open = sockets.filter(({ socket }) => socket.readyState === WebSocket.OPEN)
  t.ok(open.length > 10, `most are still open after the promotion (${open.length} of 20)`)
  const last = open.at(-1)
  const ends = await deadline(
    Promise.all(sockets.map(({ closed }) => closed)),
    WAIT_MS,
    'the end of every WebSocket',
  )
  t.same(new Set(ends.map(({ code }) => code)), new Set([1001]), 'every one got a close frame with 1001')
  t.same(
    sockets.flatMap(({ errors }) => errors),
    [],
    'none had an error: no reset',
  )
  const times = ends.map(({ at }) => at).sort((a, b) => a - b)
  const within = (times.at(-1) ?? 0) - (times[0] ?? 0)
  // 20 in a window of 3 s: a storm would be all in one turn. No bound on the time itself.
  t.ok(new Set(times.map((at) => Math.round(at / 50))).size > 5, `spread over ${Math.round(within)} ms`)
  t.ok(last)
  t.match(await usr2.event('drained', { timeoutMs: WAIT_MS }), {
    generation: 1,
    ledger: { connections: { accepted: 20, cut: 0, websocket: 20 } },
  })
  await usr2.stop()
})

t.test(
  'another upgraded connection ends by FIN, and an app without upgrades is asked as before',
  async (t) => {
    const [usr2, port] = await startApp(t, 'websocket-app.cjs')
    const socket = net.connect(port, '127.0.0.1')
    t.teardown(() => socket.destroy())
    let text = ''
    const errors: Error[] = []
    socket.setEncoding('latin1').on('data', (data: string) => (text += data))
    socket.on('error', (error) => errors.push(error))
    const ended = new Promise<void>((resolve) => socket.once('end', resolve))
    socket.write('GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n')
    await deadline(new Promise((resolve) => socket.once('data', resolve)), WAIT_MS, 'the switch of protocols')
    await replace(usr2)
    socket.write('still there?')
    await deadline(ended, WAIT_MS, 'the FIN')
    t.match(text, /^HTTP\/1\.1 101 [^]*still there\?$/, 'it was answered until its end')
    t.same(errors, [], 'by FIN, not by a reset')
    socket.end()
    t.match(await usr2.event('drained', { timeoutMs: WAIT_MS }), {
      generation: 1,
      ledger: { connections: { cut: 0 } },
    })
    await usr2.stop()
  },
)

t.test('a raw connection over a unix socket: waits for its end, then the deadline cuts', async (t) => {
  const PATH_NAME = join(shortTmp(t), 'a.sock')
  const usr2 = startUsr2(t, { fixture: 'echo-net.cjs', flags: ['--drain-timeout', '2s'], env: { PATH_NAME } })
  await usr2.ready()
  const [leaving, staying] = [net.connect(PATH_NAME), net.connect(PATH_NAME)]
  t.teardown(() => staying.destroy())
  const echo = async (socket: net.Socket, text: string): Promise<void> => {
    socket.write(text)
    const [data] = (await deadline(once(socket, 'data'), WAIT_MS, `the echo of ${text}`)) as [Buffer]
    t.equal(String(data), text)
  }
  await Promise.all([echo(leaving, 'before'), echo(staying, 'before')])
  const from = usr2.process.lines.length
  const reload = usr2.reload({ flags: ['--wait', 'drained'] })
  await usr2.process.line(/^draining$/, { from })
  await Promise.all([echo(leaving, 'after'), echo(staying, 'after')])
  const next = net.connect(PATH_NAME)
  await echo(next, 'to the new generation')
  next.end()
  leaving.end()
  await deadline(once(leaving, 'close'), WAIT_MS, 'the end of the connection that leaves')
  t.notOk(
    usr2.events().some(({ event }) => event === 'cut'),
    'the one that left was not cut',
  )
  await deadline(once(staying.resume(), 'close'), WAIT_MS, 'the cut')
  t.match((await reload).stdout, /generation 1 has ended: 2 connections, 0 requests, 1 cut/)
  t.match(await usr2.event('cut'), { cut: 1, connections: [{ what: 'raw', peer: 'unix' }] })
  await usr2.stop()
})
