/**
 * Plain HTTP/2 clients under reloads. A stream that crosses a GOAWAY is refused, which no server can avoid and a client
 * may repeat (RFC 9113, 8.7). Here: nothing worse happens, and no more than once. How often it happens is a matter of
 * chance: scripts/bench/http2.ts measures it beside a bare `session.close()`.
 */
import http2 from 'node:http2'
import net from 'node:net'
import t from 'tap'
import { start, type TestProcess } from '../helpers/spawn.ts'
import { freePort } from '../helpers/tmp.ts'
import { fixture, startUsr2 } from '../helpers/usr2.ts'
import { deadline } from '../helpers/wait.ts'

const RELOADS = 8
/** Of test/fixtures/http2-load.mjs: 8 sessions with 4 each. */
const LANES = 32
const WAIT_MS = 20_000

interface LoadResult {
  readonly requests: number
  readonly refused: number
  readonly unsent: number
  readonly retryFailed: object
  readonly other: object
}

for (const [name, scheme, env] of [
  ['h2c', 'http', {}],
  ['h2 over TLS', 'https', { TLS: '1' }],
] as const) {
  t.test(`${name}: refused as not processed, and nothing with one retry`, async (t) => {
    const port = await freePort(t)
    const usr2 = startUsr2(t, { fixture: 'http2-app.cjs', env: { PORT: String(port), ...env } })
    await usr2.ready()
    const load: TestProcess = start(t, process.execPath, {
      name: 'http2-load',
      args: [fixture('http2-load.mjs'), `${scheme}://127.0.0.1:${port}`],
    })
    await load.line('generation 1')
    for (let n = 1; n <= RELOADS; n++) {
      const from = usr2.process.lines.length
      usr2.signal('SIGUSR2')
      await usr2.event('promoted', { from, timeoutMs: WAIT_MS })
      await load.line(new RegExp(`^generation ${n + 1}$`), { timeoutMs: WAIT_MS })
    }
    load.stdin.end()
    const { text } = await load.line(/^\{/, { timeoutMs: WAIT_MS })
    await load.ended()
    await usr2.stop()

    const { requests, refused, unsent, retryFailed, other } = JSON.parse(text) as LoadResult
    t.comment(`${RELOADS} reloads: ${refused} of ${requests} requests refused, ${unsent} unsent`)
    t.same(other, {}, 'every failure is a refusal or an unsent request of the client')
    t.same(retryFailed, {}, 'and none with one retry')
    // Each lane has one request at a time and leaves a session with its first GOAWAY. A reload that sent GOAWAY to the
    // sessions that came after it, too, would cost more.
    t.ok(refused + unsent <= LANES * RELOADS, 'a reload costs no lane more than one')
  })
}

t.test('a connection that was accepted in the last moment: its first streams are served', async (t) => {
  const port = await freePort(t)
  const usr2 = startUsr2(t, { fixture: 'http2-app.cjs', env: { PORT: String(port) } })
  await usr2.ready()
  const socket = net.connect(port, '127.0.0.1')
  t.teardown(() => socket.destroy())
  await deadline(new Promise((resolve) => socket.once('connect', resolve)), WAIT_MS, 'a connection')
  // Connections are accepted in their order: with this one's answer the other has been accepted, too.
  const other = http2.connect(`http://127.0.0.1:${port}`)
  t.teardown(() => other.destroy())
  t.equal(await answerOf(other), '1')
  const from = usr2.process.lines.length
  usr2.signal('SIGUSR2')
  await usr2.event('promoted', { from, timeoutMs: WAIT_MS })
  const late = http2.connect(`http://127.0.0.1:${port}`, { createConnection: () => socket })
  t.teardown(() => late.destroy())
  const closed = new Promise((resolve) => late.once('close', resolve))
  // As gRPC clients do: they count a connection as ready with the server's SETTINGS.
  await deadline(new Promise((resolve) => late.once('remoteSettings', resolve)), WAIT_MS, 'settings')
  const answers = [answerOf(late), answerOf(late, '/200'), answerOf(late)]
  t.same(await deadline(Promise.all(answers), WAIT_MS, 'the answers'), ['1', '1', '1'])
  await deadline(closed, WAIT_MS, 'the end of the session')
  const { ledger } = await usr2.event('drained', { timeoutMs: WAIT_MS })
  t.match(ledger, { connections: { accepted: 2, cut: 0 }, requests: { begun: 4, cut: 0 } })
  await usr2.stop()
})

t.test('a GOAWAY of the app in the same turn does not raise the last stream of ours', async (t) => {
  const port = await freePort(t)
  const entry = 'app.cjs'
  // As @grpc/grpc-js does at the end of a connection's max_connection_age, which here is in the midst of the drain.
  const app = `
    const { onDrain } = globalThis[Symbol.for('usr2.guest.v1')]
    const server = require('node:http2').createServer()
    server.on('stream', (stream) => {
      console.log('got it')
      const { session } = stream
      const { close } = session
      // Whoever says it: this turn is the one in which the session is closed.
      session.close = (...args) => {
        process.nextTick(() => session.goaway(0, 2 ** 31 - 1, Buffer.from('max_age')))
        close.apply(session, args)
      }
      onDrain(() => setTimeout(() => {
        stream.respond({ ':status': 200 })
        stream.end('whole')
      }, 500))
    })
    server.listen(${port}, '127.0.0.1')`
  const usr2 = startUsr2(t, { entry, files: { [entry]: app } })
  await usr2.ready()
  const client = http2.connect(`http://127.0.0.1:${port}`)
  t.teardown(() => client.destroy())
  client.on('error', () => {})
  const goaways: [code: number, lastStreamId: number][] = []
  client.on('goaway', (code, lastStreamId) => goaways.push([code, lastStreamId]))
  const answer = answerOf(client)
  await usr2.process.line('got it')
  t.equal((await usr2.reload()).code, 0)
  t.equal(await deadline(answer, WAIT_MS, 'the answer'), 'whole')
  t.same([...new Set(goaways.map(String))], ['0,1'])
  t.ok(goaways.length >= 2, 'both have been said')
  await usr2.stop()
})

function answerOf(session: http2.ClientHttp2Session, path = '/0'): Promise<string> {
  return new Promise((resolve, reject) => {
    const stream = session.request({ ':path': path })
    let body = ''
    stream.setEncoding('utf8').on('data', (text: string) => (body += text))
    stream.on('end', () => resolve(body)).on('error', reject)
    stream.end()
  })
}
