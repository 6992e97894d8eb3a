/**
 * What a worker answers to the master's probes, and what its app sees of them. In this process, with servers that listen as
 * anywhere. (With the real preload, a shut gate and a drain: test/e2e/probes.test.ts.)
 */
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import http, { type IncomingMessage, type RequestListener } from 'node:http'
import http2 from 'node:http2'
import https from 'node:https'
import net, { type AddressInfo, type Server } from 'node:net'
import t from 'tap'
import type { Test } from 'tap'
import { CMD, type ProbeTarget } from '../../src/protocol.ts'
import { fromWorker } from '../../src/master/workers/worker-word.ts'
import { Ledger } from '../../src/worker/ledger.ts'
import { type OnProbe, type ProbeKind, type Probes, prepareProbes } from '../../src/worker/probe.ts'
import { deadline } from '../helpers/wait.ts'

const require = createRequire(import.meta.url)

async function listen<S extends Server>(t: Test, server: S): Promise<S> {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  return server
}
const serve = (t: Test, handle: RequestListener): Promise<http.Server> => listen(t, http.createServer(handle))
const portOf = (server: Server): number => (server.address() as AddressInfo).port

interface Asked {
  readonly target: Partial<Extract<ProbeTarget, { k: 'http' }>> | Exclude<ProbeTarget, { k: 'http' }>
  readonly kind?: ProbeKind
  readonly timeoutMs?: number
}

/** The worker's side of the wire: asks, and gives the failure that the master would hear. */
function worker(servers: readonly Server[], functions: readonly OnProbe[] = []) {
  const waiting = new Map<number, (failure: string | null) => void>()
  const probes: Probes = prepareProbes({
    servers: new Set(servers),
    functions,
    send(message) {
      const heard = fromWorker({ cmd: CMD, ...message })
      if (heard?.t !== 'probed') throw new Error(`the master does not take ${JSON.stringify(message)}`)
      waiting.get(heard.id)?.(heard.failure)
      if (!waiting.delete(heard.id)) throw new Error(`a second answer to ${heard.id}`)
    },
  })
  let last = 0
  const ask = ({ target, kind = 'readiness', timeoutMs = 5_000 }: Asked): Promise<string | null> => {
    const whole: ProbeTarget =
      'k' in target && target.k !== 'http'
        ? (target as ProbeTarget)
        : { k: 'http', path: '/healthz', headers: {}, expect: [200, 399], port: null, ...target }
    const answer = new Promise<string | null>((resolve) => waiting.set(++last, resolve))
    probes.answer({ t: 'probe', id: last, kind, target: whole, timeoutMs })
    return deadline(answer, 10_000, 'the answer to a probe')
  }
  return { ask, probes }
}
const get = (
  server: Server,
  target: Asked['target'] = {},
  rest: Omit<Asked, 'target'> = {},
): Promise<string | null> => worker([server]).ask({ target, ...rest })

// ---- What the app sees ---------------------------------------------------------------------------------------------

t.test('a request like any other, and marked', async (t) => {
  const seen: IncomingMessage[] = []
  const server = await serve(t, (req, res) => {
    seen.push(req)
    res.end('ok')
  })
  t.equal(
    await get(server, { path: '/healthz?deep=1', headers: { 'X-Token': 'abc', Connection: 'keep-alive' } }),
    null,
  )
  t.equal(
    await get(server, { headers: { 'User-Agent': 'kube', Host: 'example.org' } }, { kind: 'liveness' }),
    null,
  )
  t.same(
    seen.map(({ method, url }) => `${method} ${url}`),
    ['GET /healthz?deep=1', 'GET /healthz'],
  )
  t.same(seen[0]?.headers, {
    host: `localhost:${portOf(server)}`,
    'x-token': 'abc',
    'user-agent': 'usr2-probe/1',
    'usr2-probe': 'readiness',
    connection: 'close',
  })
  t.match(seen[1]?.headers, { host: 'example.org', 'user-agent': 'kube', 'usr2-probe': 'liveness' })
})

t.test('the socket has what apps ask of one', async (t) => {
  const timedOut: string[] = []
  const server = await serve(t, (req, res) => {
    const { socket } = req
    t.match(socket, {
      remoteAddress: '127.0.0.1',
      remotePort: 0,
      remoteFamily: 'IPv4',
      localAddress: '127.0.0.1',
      localPort: portOf(server),
      encrypted: undefined,
      readyState: 'open',
      connecting: false,
    })
    t.same(socket.address(), { address: '127.0.0.1', family: 'IPv4', port: portOf(server) })
    t.equal(socket.setNoDelay().setKeepAlive(true, 5).ref().unref(), socket)
    t.ok(socket.bytesRead > 0)
    if (req.url === '/slow') {
      res.setTimeout(1, () => {
        // Again, if it takes as long until all is written.
        if (res.headersSent) return
        timedOut.push('res')
        res.writeHead(503).end('too slow')
      })
    } else res.end('ok')
  })
  server.setTimeout(60_000)
  t.equal(await get(server), null)
  t.equal(
    await get(server, { path: '/slow' }),
    'GET /slow answered 503: too slow',
    "the app's own time limit",
  )
  t.same(timedOut, ['res'])
})

type Guest = (t: Test, saw: (ip: unknown) => void) => Promise<Server>
const guests: Readonly<Record<string, Guest>> = {
  async express(t, saw) {
    const app = require('express')()
    app.set('trust proxy', 'loopback')
    app.get('/healthz', (req: { ip: string }, res: { json(body: unknown): void }) => {
      saw(req.ip)
      res.json({ ok: true })
    })
    return serve(t, app as RequestListener)
  },
  async koa(t, saw) {
    const Koa = require('koa')
    const app = new Koa({ proxy: true })
    app.use((context: { ip: string; body: unknown }) => {
      saw(context.ip)
      context.body = { ok: true }
    })
    return serve(t, app.callback() as RequestListener)
  },
  async fastify(t, saw) {
    const { fastify } = require('fastify') as typeof import('fastify')
    const app = fastify({ trustProxy: true, logger: { level: 'silent' } })
    app.get('/healthz', (request) => {
      saw(request.ip)
      return { ok: true }
    })
    await app.listen({ port: 0, host: '127.0.0.1' })
    t.teardown(() => app.close())
    return app.server
  },
  async hapi(t, saw) {
    const hapi = require('@hapi/hapi') as typeof import('@hapi/hapi')
    const app = hapi.server({ port: 0, host: '127.0.0.1' })
    app.route({
      method: 'GET',
      path: '/healthz',
      handler: (request) => {
        saw(request.info.remoteAddress)
        return { ok: true }
      },
    })
    await app.start()
    t.teardown(() => app.stop())
    return app.listener
  },
  async hono(t, saw) {
    const { Hono } = (await import('hono')) as typeof import('hono')
    const { createAdaptorServer } = await import('@hono/node-server')
    const { getConnInfo } = await import('@hono/node-server/conninfo')
    const app = new Hono()
    app.get('/healthz', (context) => {
      saw(getConnInfo(context).remote.address)
      return context.json({ ok: true })
    })
    return listen(t, createAdaptorServer({ fetch: app.fetch }) as http.Server)
  },
}

for (const [name, start] of Object.entries(guests)) {
  t.test(name, async (t) => {
    const seen: unknown[] = []
    const server = await start(t, (ip) => seen.push(ip))
    t.equal(await get(server), null)
    t.match(await get(server, { path: '/nowhere', expect: [500, 500] }), /^GET \/nowhere answered \d+/)
    t.ok(seen.length > 0 && seen.every((ip) => ip === '127.0.0.1'), `who asks: ${seen.join()}`)
  })
}

// ---- What fails, in words ------------------------------------------------------------------------------------------

t.test('a status that is not expected, and the beginning of what was said', async (t) => {
  const server = await serve(t, (req, res) => {
    const status = Number(req.url?.slice(1))
    res.writeHead(status).end(status === 503 ? `no\n\tdatabase\x00 ${'x'.repeat(1_000)}` : undefined)
  })
  t.equal(await get(server, { path: '/503' }), `GET /503 answered 503: no database ${'x'.repeat(188)}`)
  t.equal(await get(server, { path: '/404' }), 'GET /404 answered 404')
  t.equal(await get(server, { path: '/399' }), null)
  t.equal(await get(server, { path: '/302', expect: [200, 200] }), 'GET /302 answered 302')
  t.equal(await get(server, { path: '/204', expect: [200, 204] }), null)
})

t.test('no answer in time, and the app hears that its client has gone', async (t) => {
  const gone: string[] = []
  const closed: Promise<unknown>[] = []
  const server = await serve(t, (req, res) => {
    closed.push(
      once(req.socket, 'close'),
      once(res, 'close').then(() => gone.push(req.url ?? '')),
    )
    if (req.url === '/half') res.write('the first half')
    if (req.url === '/half-503') res.writeHead(503).write('the first half')
  })
  const answers = ['/never', '/half', '/half-503'].map((path) => get(server, { path }, { timeoutMs: 500 }))
  t.same(await Promise.all(answers), [
    'GET /never did not answer within 0.5 s',
    'GET /half answered 200, but not to its end within 0.5 s',
    'GET /half-503 answered 503: the first half',
  ])
  await deadline(Promise.all(closed), 5_000, 'the close of all three')
  t.same(gone.sort(), ['/half', '/half-503', '/never'])
})

t.test('an app that closes the connection', async (t) => {
  const server = await serve(t, (req, res) => {
    if (req.url === '/destroyed') return void req.socket.destroy()
    res.writeHead(200, { 'content-length': 100 }).write('of a hundred bytes')
    setImmediate(() => req.socket.destroy())
  })
  t.equal(
    await get(server, { path: '/destroyed' }),
    'GET /destroyed: its connection was closed without an answer',
  )
  t.equal(await get(server, { path: '/broken' }), 'GET /broken answered 200, but broke off')
})

t.test('of a huge answer only the beginning is read', async (t) => {
  let written = 0
  let closed: Promise<unknown> = Promise.resolve()
  const server = await serve(t, (_, res) => {
    closed = once(res, 'close')
    const chunk = Buffer.alloc(64 * 1024)
    const write = (): void => {
      while (!res.destroyed && written < 1e9) {
        written += chunk.length
        if (!res.write(chunk)) return void res.once('drain', write)
      }
    }
    write()
  })
  t.equal(await get(server), null)
  await deadline(closed, 5_000, 'the end of the answer')
  t.ok(written < 1e6, `it wrote ${written} bytes`)
})

t.test('an answer of many parts comes whole, whatever the app says of the connection', async (t) => {
  const server = await serve(t, (_, res) => {
    res.writeHead(500, { connection: 'keep-alive', 'keep-alive': 'timeout=60' })
    for (const part of 'parts') res.write(part)
    res.end()
  })
  const open = (): Promise<number> =>
    new Promise((resolve) => server.getConnections((_, count) => resolve(count)))
  t.equal(await get(server), 'GET /healthz answered 500: parts')
  t.equal(await open(), 0)
})

t.test('an app that writes by itself, and closes after that', async (t) => {
  const server = await serve(t, ({ socket }) => {
    socket.write('HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n')
    for (let i = 0; i < 5; i++) socket.write('x'.repeat(1_000))
    socket.destroySoon()
  })
  t.equal(await get(server), null)
})

t.test('a request that cannot be', async (t) => {
  const server = await serve(t, (_, res) => res.end())
  t.match(
    await get(server, { path: '/a b' }),
    /^GET \/a b could not be sent: Request path contains unescaped/,
  )
  t.match(await get(server, { headers: { a: '\n' } }), /could not be sent: Invalid character in header/)
  server.on('connection', () => {
    throw new Error('no connections on Sundays')
  })
  t.match(await get(server), /no connections on Sundays/)
})

// ---- Which server --------------------------------------------------------------------------------------------------

t.test('no server that can be asked', async (t) => {
  const pem = (name: string): Buffer => readFileSync(new URL(`../fixtures/tls/${name}.pem`, import.meta.url))
  const identity = { cert: pem('cert'), key: pem('key') }
  const say = (_: unknown, res: { end(): unknown }): void => void res.end()
  const servers: [Server, string][] = [
    [https.createServer(identity, say), 'speaks TLS'],
    [http2.createSecureServer(identity), 'speaks TLS'],
    [http2.createSecureServer({ ...identity, allowHTTP1: true }), 'speaks TLS'],
    [http2.createServer(), 'speaks HTTP/2 without TLS'],
  ]
  for (const [server, what] of servers) {
    await listen(t, server)
    const words = `the server on port ${portOf(server)} ${what}: use a tcp or message probe`
    t.equal(await get(server), words)
    t.equal(await get(server, { port: portOf(server) }), words)
  }
  const plain = await listen(t, net.createServer())
  t.equal(
    await get(plain),
    `no HTTP server listens in this worker (it listens on ${portOf(plain)})`,
    'a server of another protocol',
  )
  t.equal(
    await get(plain, { port: portOf(plain) }),
    `the server on port ${portOf(plain)} is no HTTP server: use a tcp or message probe`,
  )
  t.equal(await worker([]).ask({ target: {} }), 'no HTTP server listens in this worker')
})

t.test('two servers, of which one is closed', async (t) => {
  const [first, second] = [await serve(t, (_, res) => res.end('1')), await serve(t, (_, res) => res.end('2'))]
  const [one, two] = [portOf(first), portOf(second)]
  const { ask } = worker([first, second])
  const whichIs = async (port: number | null): Promise<string | null> =>
    ask({ target: { port, expect: [0, 0] } })
  t.equal(await whichIs(null), 'GET /healthz answered 200: 1')
  t.equal(await whichIs(one), 'GET /healthz answered 200: 1')
  t.equal(await whichIs(two), 'GET /healthz answered 200: 2')
  t.equal(await ask({ target: { k: 'tcp', port: one } }), null)
  t.equal(await ask({ target: { k: 'tcp', port: null } }), null)
  first.close()
  t.equal(await whichIs(null), 'GET /healthz answered 200: 2')
  t.equal(await whichIs(one), `no HTTP server listens on port ${one} in this worker (it listens on ${two})`)
  t.equal(
    await ask({ target: { k: 'tcp', port: one } }),
    `no server of this worker listens on port ${one} (it listens on ${two})`,
  )
  t.equal(await ask({ target: { k: 'tcp', port: two } }), null)
  second.close()
  t.equal(await ask({ target: { k: 'tcp', port: null } }), 'no server of this worker listens')
})

t.test('an HTTPS server first: its plain one, which redirects, is not asked in its place', async (t) => {
  const [secure, plain] = [await listen(t, https.createServer()), await serve(t, (_, res) => res.end())]
  const { ask } = worker([secure, plain])
  t.match(await ask({ target: {} }), `port ${portOf(secure)} speaks TLS`)
  t.equal(await ask({ target: { port: portOf(plain) } }), null, 'unless it is named')
})

// ---- message and event-loop ----------------------------------------------------------------------------------------

t.test('message: without a function, whether the app has said that it is ready', async (t) => {
  const { ask, probes } = worker([])
  const target = { k: 'message' } as const
  t.equal(await ask({ target }), 'the app has not said that it is ready, and has no onProbe function')
  probes.heardReady()
  t.equal(await ask({ target }), null)
})

t.test('message: what the functions of the app say', async (t) => {
  const target = { k: 'message' } as const
  const asked: string[] = []
  const says = (...functions: OnProbe[]): Promise<string | null> =>
    worker([], functions).ask({ target, timeoutMs: 50, kind: 'liveness' })
  const beginning = 'onProbe of the app, asked for its liveness: '
  t.equal(await says((kind) => asked.push(kind)), null)
  t.same(asked, ['liveness'])
  t.equal(await says(() => Promise.resolve()), null)
  t.equal(
    await says(
      () => true,
      () => undefined,
    ),
    null,
  )
  t.equal(
    await says(
      () => true,
      () => false,
    ),
    `${beginning}it answered false`,
  )
  t.equal(await says(async () => false), `${beginning}it answered false`)
  const fail = (): never => {
    throw new Error('no database')
  }
  t.equal(await says(fail), `${beginning}no database`)
  t.equal(await says(async () => fail()), `${beginning}no database`)
  t.equal(await says(() => Promise.reject('a string')), `${beginning}a string`)
  t.equal(await says(() => new Promise(() => {})), `${beginning}no answer within 0.05 s`)
  t.equal((await says(() => Promise.reject(new Error('x'.repeat(5_000)))))?.length, 1_000)
})

t.test('event-loop: answered in the turn in which it is read', async (t) => {
  const said: unknown[] = []
  const probes = prepareProbes({ servers: new Set(), functions: [], send: (message) => said.push(message) })
  const target = { k: 'event-loop' } as const
  probes.answer({ t: 'probe', id: 7, kind: 'liveness', target, timeoutMs: 1 })
  t.same(said, [{ t: 'probed', id: 7, failure: null }])
})

t.test('many at the same time, each with its own answer, unseen by the ledger', async (t) => {
  const ledger = new Ledger()
  const server = await serve(t, (req, res) => {
    const at = Number(req.url?.slice(1))
    setTimeout(() => res.writeHead(at % 2 === 0 ? 200 : 500).end(String(at)), (20 - at) % 5)
  })
  const { ask } = worker([server])
  const answers = await Promise.all(
    Array.from({ length: 20 }, (_, at) => ask({ target: { path: `/${at}` } })),
  )
  t.same(
    answers,
    answers.map((_, at) => (at % 2 === 0 ? null : `GET /${at} answered 500: ${at}`)),
  )
  t.match(ledger.counts(), { accepted: 0, requests: 0, open: 0, active: 0 })
})
