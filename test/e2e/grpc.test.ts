/** gRPC (@grpc/grpc-js), unmodified, its clients with their default settings: no call fails in a reload. */
import { createRequire } from 'node:module'
import * as grpc from '@grpc/grpc-js'
import t, { type Test } from 'tap'
import { start } from '../helpers/spawn.ts'
import { freePort } from '../helpers/tmp.ts'
import { fixture, startUsr2, type Usr2 } from '../helpers/usr2.ts'
import { deadline } from '../helpers/wait.ts'

const RELOADS = 6
const WAIT_MS = 20_000

const service = createRequire(import.meta.url)(
  '../fixtures/guests/grpc-service.cjs',
) as grpc.ServiceDefinition

type Reply = (error: grpc.ServiceError | null, message?: Buffer) => void
interface TestClient extends grpc.Client {
  unary(request: Buffer, reply: Reply): grpc.ClientUnaryCall
  serverStream(request: Buffer): grpc.ClientReadableStream<Buffer>
}

async function startServer(
  t: Test,
  env: Record<string, string> = {},
  drain = '10s',
): Promise<[Usr2, number]> {
  const port = await freePort(t)
  const usr2 = startUsr2(t, {
    fixture: 'guests/grpc.cjs',
    flags: ['--drain-timeout', drain],
    env: { PORT: String(port), ...env },
  })
  await usr2.ready()
  return [usr2, port]
}

const cutOf = (ledger: unknown): number =>
  (ledger as { readonly connections: { readonly cut: number } }).connections.cut

async function replace(usr2: Usr2): Promise<void> {
  const from = usr2.process.lines.length
  usr2.signal('SIGUSR2')
  await usr2.event('promoted', { from, timeoutMs: WAIT_MS })
}

function clientOf(t: Test, port: number, options: grpc.ClientOptions = {}): TestClient {
  const Client = grpc.makeGenericClientConstructor(service, 'Test')
  const client = new Client(`127.0.0.1:${port}`, grpc.credentials.createInsecure(), options)
  t.teardown(() => client.close())
  return client as unknown as TestClient
}

const unary = (client: TestClient, ms = 0): Promise<string> =>
  new Promise((resolve, reject) =>
    client.unary(Buffer.from(String(ms)), (error, message) =>
      error ? reject(error) : resolve(String(message)),
    ),
  )

interface LoadResult {
  readonly calls: number
  readonly failed: number
  readonly failures: object
  readonly byKind: Readonly<Record<string, { readonly calls: number }>>
  readonly generations: object
}

// Each of them waits most of its time.
t.jobs = 4
const test = (name: string, body: (t: Test) => Promise<void>) => t.test(name, { buffered: true }, body)

test(`calls of all four kinds: none fails through ${RELOADS} reloads`, async (t) => {
  const [usr2, port] = await startServer(t)
  const load = start(t, process.execPath, {
    name: 'grpc-load',
    args: [fixture('grpc-load.mjs'), String(port)],
  })
  await load.line('generation 1')
  for (let reload = 1; reload <= RELOADS; reload++) {
    const from = usr2.process.lines.length
    await replace(usr2)
    await load.line(new RegExp(`^generation ${reload + 1}$`), { timeoutMs: WAIT_MS })
    // Of more than two old generations (maxDraining) the oldest would be cut.
    await usr2.event('drained', { from, timeoutMs: WAIT_MS })
  }
  load.stdin.end()
  const { text } = await load.line(/^\{/, { timeoutMs: WAIT_MS })
  await load.ended()
  const result = JSON.parse(text) as LoadResult
  t.same(result.failures, {})
  t.equal(result.failed, 0, `0 failed of ${result.calls} calls`)
  t.same(Object.keys(result.byKind).sort(), ['bidi', 'clientStream', 'serverStream', 'unary'])
  t.ok(
    Object.values(result.byKind).every(({ calls }) => calls > 0),
    'of each kind some',
  )
  await usr2.stop()
  const ended = usr2.events().filter(({ event }) => event === 'drained')
  t.ok(ended.length >= RELOADS, `${ended.length} generations have ended`)
  const lost = ended.filter(({ ledger }) => cutOf(ledger) !== 0)
  t.same(lost, [], 'and nothing of them was cut')
})

test('a stream comes whole through a GOAWAY of the server itself and one of the drain', async (t) => {
  // Every connection is sent away by its server after 300 ms. (Calls under load are no test of this: one that both
  // refuse fails, since a client repeats it only once.)
  const [usr2, port] = await startServer(t, { MAX_AGE_MS: '300' })
  const client = clientOf(t, port)
  const messages: string[] = []
  const call = client.serverStream(Buffer.from('1000'))
  call.on('data', (message: Buffer) => messages.push(String(message)))
  const status = new Promise<grpc.StatusObject>((resolve) => call.on('status', resolve))
  await usr2.process.line('got serverStream 1000')
  await replace(usr2)
  t.match(await deadline(status, WAIT_MS, 'the end of the stream'), { code: grpc.status.OK })
  t.same(messages, ['0 1', '1 1', '2 1', '3 1', '4 1'])
  t.equal(await unary(client), '2')
  client.close()
  await usr2.stop()
})

test('an idle channel reconnects, with and without keepalive pings', async (t) => {
  const [usr2, port] = await startServer(t)
  const pinging = { 'grpc.keepalive_time_ms': 50, 'grpc.keepalive_permit_without_calls': 1 }
  const clients = [clientOf(t, port), clientOf(t, port, pinging)]
  for (const client of clients) t.equal(await unary(client), '1')
  await replace(usr2)
  // Both connections are over: the channels are idle, and nobody has noticed.
  const { ledger } = await usr2.event('drained', { timeoutMs: WAIT_MS })
  t.match(ledger, { connections: { accepted: 2, goaway: 2, cut: 0 }, requests: { before: 2, cut: 0 } })
  for (const client of clients) t.equal(await deadline(unary(client), WAIT_MS, 'an answer'), '2')
  for (const client of clients) client.close()
  await usr2.stop()
})

test('a stream that is longer than the drain is cut, counted and named', async (t) => {
  const [usr2, port] = await startServer(t, {}, '1s')
  const client = clientOf(t, port)
  // Five messages, 3 s between two of them.
  const call = client.serverStream(Buffer.from('3000')).on('data', () => {})
  const failed = new Promise<grpc.ServiceError>((resolve) => call.on('error', resolve))
  await usr2.process.line('got serverStream 3000')
  // On the same connection, younger, and long since answered: not what holds the drain.
  t.equal(await unary(client), '1')
  await replace(usr2)
  const error = await deadline(failed, WAIT_MS, 'the end of the call')
  t.equal(error.code, grpc.status.UNAVAILABLE, `its client is told: ${error.message}`)
  const { ledger } = await usr2.event('drained', { timeoutMs: WAIT_MS })
  t.match(ledger, { connections: { accepted: 1, cut: 1 }, requests: { begun: 2, before: 1, cut: 1 } })
  const named = [{ what: 'request', method: 'POST', path: '/usr2.Test/ServerStream' }]
  t.match(await usr2.event('cut'), { generation: 1, held: named }, 'by its path')
  client.close()
  await usr2.stop()
})
