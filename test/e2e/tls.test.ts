/** TLS: sessions are resumed by siblings and across generations, where that is safe; and drains lose nothing. */
import { once } from 'node:events'
import http2 from 'node:http2'
import https from 'node:https'
import net from 'node:net'
import { Duplex } from 'node:stream'
import tls from 'node:tls'
import t from 'tap'
import type { Test } from 'tap'
import { expectNothingLeft, start } from '../helpers/spawn.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { deploy, fixture, startUsr2, type Usr2 } from '../helpers/usr2.ts'
import { deadline, until } from '../helpers/wait.ts'

const WAIT_MS = 15_000
const VERSIONS = ['TLSv1.2', 'TLSv1.3'] as const
type Version = (typeof VERSIONS)[number]
type Kind = 'https' | 'http2' | 'tls'

/** Of test/fixtures/tls-app.cjs. */
interface Settings {
  readonly kind?: Kind
  readonly cert?: string
  readonly ca?: string
  readonly options?: tls.TlsOptions
  readonly names?: Readonly<Record<string, string>>
  readonly ticketKeys?: 'option' | 'fixed' | 'before' | 'after'
}

interface App {
  readonly usr2: Usr2
  readonly port: number
  readonly kind: Kind
  /** A new release, by symlink. */
  deploy(settings: Settings): Promise<void>
  /** The same release again. */
  reload(): Promise<void>
}

async function startApp(t: Test, settings: Settings, workers = 1): Promise<App> {
  const root = shortTmp(t)
  const port = await freePort(t)
  let release = 0
  const put = (settings: Settings): string =>
    deploy(root, String(++release), {
      fixture: 'tls-app.cjs',
      files: { 'tls.json': JSON.stringify(settings) },
    })
  const usr2 = startUsr2(t, {
    entry: `${put(settings)}/tls-app.cjs`,
    flags: ['--workers', String(workers), '--drain-timeout', '10s'],
    env: { PORT: String(port), CERTIFICATES: fixture('tls') },
  })
  await usr2.ready()
  const reload = async (): Promise<void> => {
    const { code, stderr } = await usr2.reload()
    t.equal(code, 0, `reloaded ${stderr}`)
  }
  return {
    usr2,
    port,
    kind: settings.kind ?? 'https',
    reload,
    deploy(settings) {
      put(settings)
      return reload()
    },
  }
}

interface Visit {
  /** By the client's own view. */
  readonly resumed: boolean
  /** The newest that the server gave. */
  readonly session: Buffer
  readonly generation: string
  readonly slot: string
  readonly authorized: boolean
  readonly hasOwnKeys: boolean
}

interface Visitor {
  readonly version: Version
  readonly session?: Buffer
  readonly servername?: string
  readonly path?: string
}

/** One connection, one answer. */
async function visit(
  { port, kind }: App,
  { version, session: offered, servername, path = '/' }: Visitor,
): Promise<Visit> {
  const socket = tls.connect({
    port,
    host: '127.0.0.1',
    rejectUnauthorized: false,
    minVersion: version,
    maxVersion: version,
    ...(kind === 'http2' && { ALPNProtocols: ['h2'] }),
    ...(offered && { session: offered }),
    ...(servername !== undefined && { servername }),
  })
  let session: Buffer | undefined
  let resumed = false
  // TLS 1.3 gives tickets after the handshake, TLS 1.2 none where it has resumed one.
  socket.once('secureConnect', () => {
    resumed = socket.isSessionReused()
    session = socket.getSession()
  })
  socket.on('session', (given: Buffer) => (session = given))
  try {
    const text = await deadline(
      kind === 'http2' ? askHttp2(socket, path) : ask(socket, path),
      WAIT_MS,
      'an answer',
    )
    if (!session) throw new Error('the server gave no session')
    return { ...(JSON.parse(text) as Omit<Visit, 'resumed' | 'session'>), resumed, session }
  } finally {
    socket.destroy()
  }
}

async function ask(socket: tls.TLSSocket, path: string): Promise<string> {
  socket.setEncoding('utf8').write(`GET ${path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`)
  let text = ''
  for await (const chunk of socket) text += chunk as string
  return text.slice(text.indexOf('{'))
}

function askHttp2(socket: tls.TLSSocket, path: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const session = http2.connect('https://127.0.0.1', { createConnection: () => socket })
    const stream = session.request({ ':path': path })
    let text = ''
    stream.setEncoding('utf8').on('data', (chunk: string) => (text += chunk))
    stream.on('end', () => resolve(text)).on('error', reject)
    session.on('error', reject)
  })
}

/** Visits until every slot has answered. */
async function visitAll(app: App, visitor: Visitor, slots: number): Promise<Visit[]> {
  const visits: Visit[] = []
  await until(
    async () => {
      visits.push(...(await Promise.all(Array.from({ length: 6 }, () => visit(app, visitor)))))
      return new Set(visits.map(({ slot }) => slot)).size === slots
    },
    { timeoutMs: WAIT_MS, what: `an answer of each of ${slots} workers`, logs: () => app.usr2.logs() },
  )
  return visits
}

for (const kind of ['https', 'http2', 'tls'] as const) {
  t.test(
    `${kind}: a session is resumed by siblings, after a reload and after a symlink deploy`,
    async (t) => {
      const app = await startApp(t, { kind }, 2)
      const sessions = new Map<Version, Buffer>()
      for (const version of VERSIONS) {
        const first = await visit(app, { version })
        t.notOk(first.resumed, `${version}: the first handshake is a full one`)
        sessions.set(version, first.session)
      }
      const check = async (generation: string, what: string): Promise<void> => {
        for (const version of VERSIONS) {
          // Always the session of generation 1.
          const visits = await visitAll(app, { version, session: sessions.get(version)! }, 2)
          t.same(new Set(visits.map(({ generation }) => generation)), new Set([generation]))
          const full = visits.filter(({ resumed }) => !resumed)
          t.same(full, [], `${version}: ${what}: all of ${visits.length} resumed, by both workers`)
        }
      }
      await check('1', 'siblings')
      await app.reload()
      await check('2', 'a reload')
      await app.deploy({ kind })
      await check('3', 'a symlink deploy')
      await app.usr2.stop()
    },
  )
}

t.test('a session is resumed after an upgrade of the master, and after a second one', async (t) => {
  const app = await startApp(t, {}, 2)
  const sessions = await Promise.all(VERSIONS.map(async (version) => (await visit(app, { version })).session))
  for (const generation of ['2', '3']) {
    const { code, stderr } = await app.usr2.cli('upgrade')
    t.equal(code, 0, stderr)
    for (const [i, version] of VERSIONS.entries()) {
      const visits = await visitAll(app, { version, session: sessions[i]! }, 2)
      t.same(new Set(visits.map(({ generation }) => generation)), new Set([generation]))
      const full = visits.filter(({ resumed }) => !resumed)
      t.same(full, [], `${version}: all of ${visits.length} resumed, by both workers`)
    }
  }
  t.equal((await app.usr2.cli('stop')).code, 0)
  await expectNothingLeft(t, app.usr2.process, 5_000)
})

interface Change {
  readonly name: string
  readonly from: Settings
  /** Default: as before. */
  readonly to?: Settings
  readonly resumed: boolean
  readonly servername?: string
  /** What the new generation says, beside. */
  readonly says?: Partial<Visit>
}

const CLIENTS = { requestCert: true, rejectUnauthorized: false }
const changes: readonly Change[] = [
  { name: 'another certificate', from: {}, to: { cert: 'other-cert' }, resumed: false },
  { name: 'another CA', from: { ca: 'cert' }, to: { ca: 'other-cert' }, resumed: false },
  { name: 'other ciphers', from: {}, to: { options: { ciphers: 'HIGH' } }, resumed: false },
  { name: 'the same CA and options', from: { ca: 'cert', options: { ciphers: 'HIGH' } }, resumed: true },
  { name: 'requestCert', from: { options: CLIENTS }, resumed: false, says: { authorized: false } },
  {
    name: 'requestCert from now on',
    from: {},
    to: { options: CLIENTS },
    resumed: false,
    says: { authorized: false },
  },
  { name: 'requestCert no more', from: { options: CLIENTS }, to: {}, resumed: false },
  {
    name: 'the option ticketKeys',
    from: { ticketKeys: 'option' },
    resumed: false,
    says: { hasOwnKeys: true },
  },
  {
    name: 'the same keys of the app in each generation',
    from: { ticketKeys: 'fixed' },
    resumed: true,
    says: { hasOwnKeys: true },
  },
  {
    name: 'setTicketKeys before listen',
    from: { ticketKeys: 'before' },
    resumed: false,
    says: { hasOwnKeys: true },
  },
  {
    name: 'setTicketKeys after listen',
    from: { ticketKeys: 'after' },
    resumed: false,
    says: { hasOwnKeys: true },
  },
  {
    name: 'another sessionIdContext of the app',
    from: { options: { sessionIdContext: 'one' } },
    to: { options: { sessionIdContext: 'two' } },
    resumed: false,
  },
  {
    name: 'the same sessionIdContext of the app',
    from: { options: { sessionIdContext: 'one' } },
    resumed: true,
  },
  {
    name: 'a certificate of addContext',
    from: { names: { 'a.test': 'other-cert' } },
    servername: 'a.test',
    resumed: true,
  },
  {
    name: 'another certificate of addContext',
    from: { names: { 'a.test': 'other-cert' } },
    to: { names: { 'a.test': 'cert' } },
    servername: 'a.test',
    resumed: false,
  },
]

for (const { name, from, to = from, resumed, servername, says = {} } of changes) {
  t.test(`a symlink deploy with ${name}: ${resumed ? '' : 'not '}resumed`, async (t) => {
    const app = await startApp(t, from)
    const sessions = new Map<Version, Buffer>()
    for (const version of VERSIONS) {
      const visitor = { version, ...(servername !== undefined && { servername }) }
      const { session } = await visit(app, visitor)
      const again = await visit(app, { ...visitor, session })
      t.ok(again.resumed, `${version}: resumed while the worker is the same`)
      sessions.set(version, session)
    }
    await app.deploy(to)
    for (const version of VERSIONS) {
      const visitor = { version, ...(servername !== undefined && { servername }) }
      const after = await visit(app, { ...visitor, session: sessions.get(version)! })
      t.match(after, { generation: '2', resumed, ...says }, version)
    }
    await app.usr2.stop()
  })
}

t.test(
  'a certificate that the running app renews has its own keys, which the next generation has, too',
  async (t) => {
    const app = await startApp(t, {})
    const version = 'TLSv1.3'
    const { session: before } = await visit(app, { version })
    await visit(app, { version, path: '/renew' })
    t.notOk(
      (await visit(app, { version, session: before })).resumed,
      'the old session ended with its certificate',
    )
    const { session: after } = await visit(app, { version })
    await app.deploy({ cert: 'other-cert' })
    t.match(await visit(app, { version, session: after }), { generation: '2', resumed: true })
    t.notOk((await visit(app, { version, session: before })).resumed)
    await app.usr2.stop()
  },
)

t.test('an app without TLS does not load it', async (t) => {
  const port = await freePort(t)
  const usr2 = startUsr2(t, {
    entry: 'app.cjs',
    files: {
      'app.cjs':
        "require('node:http').createServer().listen(Number(process.env.PORT), () => " +
        "console.log('loaded', process.moduleLoadList.filter((name) => /tls|https/.test(name)).join()))",
    },
    env: { PORT: String(port) },
  })
  await usr2.ready()
  t.equal((await usr2.process.line(/^loaded/)).text, 'loaded ', 'neither node:tls nor node:https')
  await usr2.stop()
})

/** A client whose handshake stops after so many bytes, until it is let go on. */
function gatedSocket(port: number, stopAfterBytes: number): { readonly socket: Duplex; open(): void } {
  const raw = net.connect(port, '127.0.0.1')
  let open: () => void = () => {}
  const opened = new Promise<void>((resolve) => (open = resolve))
  let sent = 0
  const socket = new Duplex({
    read() {},
    write(chunk: Buffer, _encoding, done) {
      const now = Math.max(0, Math.min(chunk.length, stopAfterBytes - sent))
      sent += chunk.length
      raw.write(chunk.subarray(0, now))
      if (now === chunk.length) return done()
      void opened.then(() => raw.write(chunk.subarray(now), done))
    },
    final: (done) => void raw.end(done),
    destroy(error, done) {
      raw.destroy()
      done(error)
    },
  })
  raw.on('data', (chunk) => socket.push(chunk))
  raw.on('end', () => socket.push(null))
  raw.on('error', (error) => socket.destroy(error))
  return { socket, open }
}

for (const kind of ['https', 'http2', 'tls'] as const) {
  t.test(
    `${kind}: a handshake in flight when the drain begins is finished, and its request answered`,
    async (t) => {
      const app = await startApp(t, { kind })
      // In its first message, and before its last one.
      const clients = [100, 600].map((bytes) => {
        const { socket, open } = gatedSocket(app.port, bytes)
        const client = tls.connect({
          socket,
          rejectUnauthorized: false,
          ...(kind === 'http2' && { ALPNProtocols: ['h2'] }),
        })
        t.teardown(() => client.destroy())
        const answer = kind === 'http2' ? askHttp2(client, '/') : ask(client, '/')
        answer.catch(() => {})
        return { answer, open }
      })
      const { usr2 } = app
      await until(() => usr2.process.stdout.filter((line) => line === 'accepted').length === 2, {
        timeoutMs: WAIT_MS,
        what: 'both connections to be accepted',
        logs: () => usr2.logs(),
      })
      await app.reload()
      for (const { answer, open } of clients) {
        open()
        t.match(JSON.parse(await deadline(answer, WAIT_MS, 'an answer')), { generation: '1' })
      }
      t.match(await usr2.event('drained', { timeoutMs: WAIT_MS }), {
        generation: 1,
        ledger: { connections: { accepted: 2, cut: 0, reset: 0 } },
      })
      await usr2.stop()
    },
  )
}

t.test('https: nothing is lost under load, and slow answers in flight are finished', async (t) => {
  const app = await startApp(t, {}, 2)
  const load = start(t, process.execPath, {
    name: 'tls-load',
    args: [fixture('tls-load.mjs'), String(app.port)],
  })
  await load.line('generation 1')
  let stopped = false
  const slow = { requests: 0, failures: [] as string[] }
  const lane = async (): Promise<void> => {
    const agent = new https.Agent({ keepAlive: true, maxSockets: 1 })
    t.teardown(() => agent.destroy())
    while (!stopped) {
      slow.requests++
      await get(agent, app.port, '/later?ms=400').catch((error: Error) => slow.failures.push(error.message))
    }
  }
  const lanes = Array.from({ length: 6 }, lane)
  for (const generation of [2, 3, 4, 5]) {
    await app.reload()
    await load.line(`generation ${generation}`)
  }
  stopped = true
  await deadline(Promise.all(lanes), WAIT_MS, 'the slow answers')
  load.stdin.end()
  const { text } = await load.line(/^\{/, { timeoutMs: WAIT_MS })
  const result = JSON.parse(text) as { requests: number; failures: object }
  t.same(result.failures, {}, `0 failed of ${result.requests}`)
  t.same(slow.failures, [], `0 failed of ${slow.requests} slow ones`)
  await app.usr2.stop()
  t.same(
    app.usr2.events().filter(({ event }) => event === 'cut'),
    [],
    'nothing was cut',
  )
})

async function get(agent: https.Agent, port: number, path: string): Promise<void> {
  const request = https.get({
    agent,
    port,
    host: '127.0.0.1',
    path,
    rejectUnauthorized: false,
    timeout: WAIT_MS,
  })
  request.on('timeout', () => request.destroy(new Error('hang')))
  const [response] = (await once(request, 'response')) as [import('node:http').IncomingMessage]
  for await (const _ of response);
  if (response.statusCode !== 200 || !response.complete) throw new Error(`status ${response.statusCode}`)
}
