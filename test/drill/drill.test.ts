/**
 * What `usr2 drill` drives an app with, against servers that misbehave: a WebSocket that ends without a close frame, an
 * HTTP/2 stream that is refused, a stall that a closed loop would hide. (HTTP/1.1: load.test.ts.)
 */
import { createHash } from 'node:crypto'
import { createServer as createHttpServer, type Server as HttpServer } from 'node:http'
import http2 from 'node:http2'
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net'
import { readFileSync } from 'node:fs'
import { createServer as createTlsServer } from 'node:https'
import t from 'tap'
import { sumOf } from '../../src/master/figures/ledger.ts'
import { targetOf } from '../../src/drill/drill.ts'
import { Load, type LoadOptions, type LoadResult, summary, type Traffic } from '../../src/drill/load.ts'
import { mixOf } from '../../src/drill/mix.ts'
import { picture } from '../../src/drill/picture.ts'
import type { DrillResult } from '../../src/drill/options.ts'
import { probe } from '../../src/drill/probe.ts'
import { Schedule } from '../../src/drill/schedule.ts'
import { OUTSIDE_REQUESTS } from '../../src/drill/tally.ts'
import { clientFrame, FrameReader } from '../../src/drill/websocket-lane.ts'
import type { TestLike } from '../helpers/scope.ts'
import { fixture } from '../helpers/usr2.ts'
import { deadline, until } from '../helpers/wait.ts'
import { isWellFormed } from '../helpers/xml.ts'

type T = TestLike

async function listen(t: T, server: Server | HttpServer | http2.Http2Server): Promise<number> {
  const sockets = new Set<Socket>()
  server.on('connection', (socket: Socket) => {
    sockets.add(socket.on('error', () => {}).once('close', () => sockets.delete(socket)))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return (server.address() as AddressInfo).port
}

async function drive(
  t: T,
  traffic: Traffic,
  port: number,
  options: Partial<LoadOptions> = {},
): Promise<LoadResult> {
  const load = new Load({
    target: { port },
    traffic: [traffic],
    timeoutMs: 2000,
    maxMs: 600,
    ...options,
  }).start()
  const result = await deadline(load.done, 15_000, 'the load to end', () => summary(load.snapshot()))
  const outside = OUTSIDE_REQUESTS.reduce((sum, name) => sum + (result.failures[name] ?? 0), 0)
  t.equal(
    result.requests,
    result.ok + result.retryable + result.failed - outside,
    'one outcome for each request',
  )
  return result
}

// ---- WebSocket ----------------------------------------------------------------------------------------------------

const WEBSOCKET: Traffic = { mode: 'websocket', connections: 2, pingMs: 20 }

/** Shakes hands, answers pings, and does `end` with each connection after its `pongs`-th pong. */
function webSockets(t: T, end: (socket: Socket) => void, pongs = 3): Promise<number> {
  const server = createHttpServer()
  server.on('upgrade', (request, socket: Socket) => {
    const key = `${request.headers['sec-websocket-key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`
    const accept = createHash('sha1').update(key).digest('base64')
    socket.write(
      `HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`,
    )
    let answered = 0
    socket.on('data', (bytes: Buffer) => {
      // A client's ping with 4 bytes is 10: head, mask, payload.
      if (bytes[0] !== 0x89) return void socket.end(Buffer.from([0x88, 0]))
      const payload = bytes.subarray(6, 10).map((byte, at) => byte ^ (bytes[2 + at] ?? 0))
      if (++answered > pongs) end(socket)
      else socket.write(Buffer.concat([Buffer.from([0x8a, 4]), payload]))
    })
  })
  return listen(t, server)
}

const closeFrame = (code: number) => Buffer.from([0x88, 2, code >> 8, code & 0xff])

t.test(
  'WebSocket: closed as its protocol says is no failure, and the ping behind it is retryable',
  async (t) => {
    const result = await drive(t, WEBSOCKET, await webSockets(t, (socket) => socket.end(closeFrame(1001))))
    t.equal(result.failed, 0, summary(result))
    t.ok((result.webSocketEnds['1001'] ?? 0) >= 2, 'the closes are counted by code')
    t.ok(result.retryable >= 2)
    t.ok((result.answers['websocket']?.['101'] ?? 0) >= 2, 'and it came back after them')
  },
)

for (const [name, end, failure, ended] of [
  ['a FIN', (socket: Socket) => socket.end(), 'bareClose', 'bare'],
  ['a reset', (socket: Socket) => socket.resetAndDestroy(), 'bareClose', 'bare'],
  ['code 1011', (socket: Socket) => socket.end(closeFrame(1011)), 'closeCode', '1011'],
  ['no code', (socket: Socket) => socket.end(Buffer.from([0x88, 0])), 'closeCode', 'without a code'],
  ['a masked frame', (socket: Socket) => socket.write(clientFrame(10, Buffer.alloc(0))), 'malformed', null],
] as const) {
  t.test(`WebSocket: ended by ${name} is ${failure}`, async (t) => {
    const result = await drive(t, WEBSOCKET, await webSockets(t, end))
    t.ok((result.failures[failure] ?? 0) >= 2, summary(result))
    if (ended !== null) t.ok((result.webSocketEnds[ended] ?? 0) >= 2)
  })
}

t.test('WebSocket: pings without pongs hang, and a server without WebSockets is a status', async (t) => {
  const deaf = await webSockets(t, () => {}, 0)
  const hangs = await drive(t, WEBSOCKET, deaf, { timeoutMs: 100 })
  t.ok((hangs.failures.hang ?? 0) >= 2, summary(hangs))
  const plain = await listen(
    t,
    createHttpServer((_request, response) => response.writeHead(404).end()),
  )
  const refused = await drive(t, WEBSOCKET, plain)
  t.ok((refused.failures.status ?? 0) >= 2, summary(refused))
})

t.test(
  'WebSocket: our own farewell is a close frame, and `once` is one handshake and one ping',
  async (t) => {
    const port = await webSockets(t, () => {}, Infinity)
    const result = await drive(t, { ...WEBSOCKET, connections: 3 }, port, { once: true })
    t.match(result, { requests: 6, ok: 6, failed: 0, webSocketEnds: {} }, summary(result))
  },
)

t.test('frames: cut anywhere, data of any length skipped', async (t) => {
  const data = (size: number, head: readonly number[]) =>
    Buffer.concat([Buffer.from(head), Buffer.alloc(size, 1)])
  const long = Buffer.alloc(10)
  long.set([0x82, 127])
  long.writeBigUInt64BE(70_000n, 2)
  const bytes = Buffer.concat([
    data(3, [0x81, 3]),
    data(300, [0x82, 126, 1, 44]),
    Buffer.from([0x89, 1, 65]),
    data(70_000, [...long]),
    closeFrame(1001),
  ])
  for (const step of [1, 2, 7, 1000, bytes.length]) {
    const reader = new FrameReader()
    const frames: string[][] = []
    for (let at = 0; at < bytes.length; at += step) {
      const found = reader.feed(bytes.subarray(at, at + step))
      if (typeof found === 'string') throw new Error(found)
      frames.push(...found.map(({ opcode, payload }) => [`${opcode}`, payload.toString('hex')]))
    }
    t.same(
      frames,
      [
        ['9', '41'],
        ['8', '03e9'],
      ],
      `in pieces of ${step}`,
    )
  }
  for (const wrong of [
    [0xc1, 0],
    [0x81, 0x80],
    [0x88, 126, 0, 200],
    [0x08, 0],
  ])
    t.type(new FrameReader().feed(Buffer.from(wrong)), 'string', `${wrong} is refused`)
})

// ---- HTTP/2 -------------------------------------------------------------------------------------------------------

const HTTP2: Traffic = { mode: 'http2', connections: 1, depth: 4, perSecond: 100 }
const { NGHTTP2_REFUSED_STREAM, NGHTTP2_INTERNAL_ERROR } = http2.constants

t.test('HTTP/2: a session that is told to go loses nothing', async (t) => {
  const server = http2.createServer()
  let sessions = 0
  server.on('session', (session) => {
    sessions++
    setTimeout(() => session.close(), 100)
  })
  server.on('stream', (stream) => {
    setTimeout(() => {
      if (stream.destroyed) return
      stream.respond({ ':status': 200 })
      stream.end('ok')
    }, 20)
  })
  const result = await drive(t, HTTP2, await listen(t, server))
  t.equal(result.failed, 0, summary(result))
  t.ok(sessions > 2, 'it came back on new sessions')
  t.ok(result.ok > 20)
})

t.test('HTTP/2: refused is retryable and sent once more; refused again has failed', async (t) => {
  for (const [times, failures] of [
    [1, {}],
    [2, { refusedTwice: 1 }],
  ] as const) {
    const server = http2.createServer()
    let refused = 0
    server.on('stream', (stream) => {
      stream.on('error', () => {})
      if (refused++ < times) return stream.close(NGHTTP2_REFUSED_STREAM)
      stream.respond({ ':status': 200 })
      stream.end('ok')
    })
    const result = await drive(t, { ...HTTP2, depth: 1 }, await listen(t, server))
    t.same(result.failures, failures, summary(result))
    t.equal(result.retryable, 1)
  }
})

t.test('HTTP/2: what a server breaks is counted by what there was of the answer', async (t) => {
  const connections = new Set<Socket>()
  const breakConnections = () => connections.forEach((socket) => socket.destroy())
  const broken = (answer: (stream: http2.ServerHttp2Stream) => void): Promise<number> => {
    const server = http2.createServer()
    server.on('connection', (socket) => connections.add(socket))
    server.on('sessionError', () => {})
    server.on('stream', (stream) => {
      stream.on('error', () => {})
      answer(stream)
    })
    return listen(t, server)
  }
  const cases: readonly [string, (stream: http2.ServerHttp2Stream) => void, string][] = [
    ['an error before the head', (stream) => stream.close(NGHTTP2_INTERNAL_ERROR), 'reset'],
    ['the connection gone before the head', () => breakConnections(), 'reset'],
    [
      'the connection gone within the body',
      (stream) => {
        stream.respond({ ':status': 200 })
        // Its acknowledgement says that the client has what was sent before.
        stream.write('half', () => stream.session?.ping(breakConnections))
      },
      'truncated',
    ],
    [
      'less than announced',
      (stream) => {
        stream.respond({ ':status': 200, 'content-length': 10 })
        stream.end('half')
      },
      'truncated',
    ],
    ['an error of the app', (stream) => (stream.respond({ ':status': 500 }), stream.end()), 'status'],
    ['silence', () => {}, 'hang'],
  ]
  for (const [name, answer, failure] of cases) {
    const result = await drive(t, { ...HTTP2, depth: 1 }, await broken(answer), { timeoutMs: 200 })
    t.same([result.ok, Object.keys(result.failures)], [0, [failure]], `${name}: ${summary(result)}`)
  }
  const nobody = createServer()
  const port = await listen(t, nobody)
  await new Promise((resolve) => nobody.close(resolve))
  t.same(Object.keys((await drive(t, HTTP2, port)).failures), ['refused'])
})

// ---- Open loop, uploads, TLS --------------------------------------------------------------------------------------

t.test('open loop: a stall is in the latency of everybody whom it would have hit', async (t) => {
  let from = 0
  const server = createHttpServer((_request, response) => {
    from ||= performance.now() + 200
    // Answers nothing for 400 ms, in the middle.
    const stall = performance.now() > from ? Math.max(0, from + 400 - performance.now()) : 0
    setTimeout(() => response.end('ok'), stall)
  })
  const port = await listen(t, server)
  const traffic: Traffic = { mode: 'keepalive', connections: 2, thinkMs: [0, 0] }
  const open = await drive(t, { ...traffic, perSecond: 200 }, port, { maxMs: 1200, sliceMs: 100 })
  t.equal(open.failed, 0, summary(open))
  // Of 240 requests in 1.2 s, 80 were due within the stall: a closed loop would have been late with two.
  const late = open.slices.filter(({ latency }) => (latency?.p50Ms ?? 0) > 50)
  t.ok(late.length > 0, 'the median of a slice is late')
  t.ok(late.reduce((sum, { ok }) => sum + ok, 0) > 20, 'and so are many requests')
  t.equal(
    open.slices.reduce((sum, { ok }) => sum + ok, 0) <= open.ok,
    true,
    'slices hold no more than there was',
  )
})

t.test('open loop: what is due and cannot be sent is counted', async (t) => {
  const server = createHttpServer((_request, response) => setTimeout(() => response.end('ok'), 100))
  const result = await drive(
    t,
    { mode: 'keepalive', connections: 1, perSecond: 100 },
    await listen(t, server),
  )
  t.ok(result.unsent > 10, `${result.unsent} unsent`)
})

t.test('a schedule gives each due time once, to whoever waits longest', async (t) => {
  const schedule = new Schedule(200)
  const got: string[] = []
  const waiter = (name: string) => ({ due: () => void got.push(name) })
  const [a, b, c] = [waiter('a'), waiter('b'), waiter('c')]
  for (const one of [a, b, c]) schedule.wait(one)
  schedule.leave(b)
  schedule.start()
  schedule.wait(b)
  await until(() => got.length === 3, { timeoutMs: 5000, what: 'three due times' })
  t.same(got, ['a', 'c', 'b'])
  t.equal(schedule.overdue() >= 0, true)
})

t.test(
  'a slow upload comes in pieces; one that is answered early ends its connection, not the load',
  async (t) => {
    const sizes: number[] = []
    let early = false
    const server = createHttpServer((request, response) => {
      let pieces = 0
      let size = 0
      if (early) return void response.end('early')
      request.on('data', (chunk: Buffer) => {
        pieces++
        size += chunk.length
      })
      request.on('end', () => {
        sizes.push(size)
        response.end(String(pieces))
      })
    })
    const port = await listen(t, server)
    const upload: Traffic = {
      mode: 'upload',
      connections: 2,
      bodyBytes: 50_000,
      uploadMs: 250,
      untimed: true,
    }
    const whole = await drive(t, upload, port)
    t.equal(whole.failed, 0, summary(whole))
    t.ok(sizes.length > 0 && sizes.every((size) => size === 50_000))
    t.ok((whole.latency?.p50Ms ?? 0) >= 200, 'it took its time')
    early = true
    const cut = await drive(t, upload, port)
    t.equal(cut.failed, 0, summary(cut))
    t.ok(cut.ok > 2)
  },
)

const tls = { key: readFileSync(fixture('tls/key.pem')), cert: readFileSync(fixture('tls/cert.pem')) }

t.test('HTTP/1.1 over TLS; the headers and statuses that were asked for', async (t) => {
  const seen = new Set<string>()
  const server = createTlsServer(tls, (request, response) => {
    seen.add(`${request.headers.host} ${request.headers['x-key']}`)
    response.writeHead(request.url === '/gone' ? 404 : 200).end('ok')
  })
  const port = await listen(t, server)
  const target = { port, tls: true }
  const headers = ['Host: shop.example', 'X-Key: 1']
  const good = await drive(t, { mode: 'keepalive', connections: 2, headers, target }, port)
  t.equal(good.failed, 0, summary(good))
  t.same([...seen], ['shop.example 1'])
  const gone: Traffic = { mode: 'new', connections: 1, path: '/gone', target }
  t.equal((await drive(t, { ...gone, statuses: [404] }, port)).failed, 0)
  t.equal((await drive(t, { ...gone, statuses: 'below500' }, port)).failed, 0)
  t.ok((await drive(t, { ...gone, statuses: [200] }, port)).failures.status)
})

// ---- Finding out, and telling -------------------------------------------------------------------------------------

t.test('the probe tells what a listener speaks', async (t) => {
  const handler = (_request: unknown, response: { end(text: string): unknown }) => void response.end('ok')
  const servers: readonly [string, Server | HttpServer | http2.Http2Server, unknown][] = [
    ['http', createHttpServer(handler), { tls: false, http1: true, http2: false }],
    ['h2c', http2.createServer(handler), { tls: false, http1: false, http2: true }],
    ['https', createTlsServer(tls, handler), { tls: true, http1: true, http2: false }],
    ['h2', http2.createSecureServer(tls, handler), { tls: true, http1: false, http2: true }],
    [
      'both',
      http2.createSecureServer({ ...tls, allowHTTP1: true }, handler),
      { tls: true, http1: true, http2: true },
    ],
    ['echo', createServer((socket) => socket.pipe(socket)), /^answered "GET \/ HTTP\/1\.1.*not HTTP\/1\.1/],
    ['deaf', createServer((socket) => socket.destroy()), /^answered nothing/],
  ]
  for (const [name, server, expected] of servers) {
    server.on('sessionError', () => {})
    t.match(await probe({ port: await listen(t, server) }, '/', 1000), expected, name)
  }
})

t.test('listeners as targets', async (t) => {
  t.same(targetOf('tcp:0.0.0.0:3000')?.target, { host: '127.0.0.1', port: 3000 })
  t.same(targetOf('tcp:[::]:3000')?.target, { host: '127.0.0.1', port: 3000 })
  t.same(targetOf('tcp:[::]:3000/ipv6only')?.target, { host: '::1', port: 3000 })
  t.same(targetOf('tcp:[fe80::1%eth0]:80')?.target, { host: 'fe80::1%eth0', port: 80 })
  t.same(targetOf('unix:/run/a.sock')?.target, { path: '/run/a.sock' })
  t.same(targetOf('unix:@a')?.target, { path: '\0a' })
  t.equal(targetOf('udp:0.0.0.0:53'), null)
})

const MIX = {
  paths: ['/'],
  streams: [],
  post: null,
  body: null,
  uploadMs: 1000,
  webSocket: null,
  webSockets: 3,
  http2: false,
  headers: [],
  perSecond: 100,
  connections: 8,
}

t.test('the mix: nothing is posted unasked, and the rate is the sum of all kinds', async (t) => {
  const spoken = { tls: true, http1: true, http2: true }
  const targets = [{ label: 'a', target: { port: 1 }, spoken }]
  const bare = mixOf(targets, MIX)
  t.same(
    bare.map(({ traffic }) => traffic.mode),
    ['new', 'keepalive', 'pipelined', 'http2'],
  )
  t.ok(bare.every(({ method }) => method === 'GET'))
  const all = mixOf(targets, { ...MIX, post: '/p', webSocket: '/ws', streams: ['/s'], paths: ['/', '/b'] })
  t.ok(
    ['post', 'upload', 'stream', 'websocket'].every((mode) =>
      all.some(({ traffic }) => traffic.mode === mode),
    ),
  )
  const rate = all
    .filter(({ traffic }) => traffic.untimed !== true)
    .reduce((sum, { traffic }) => sum + (traffic.perSecond ?? 0), 0)
  t.equal(Math.round(rate), 100)
  t.equal(new Set(all.map(({ traffic }) => traffic.name)).size, all.length, 'every name is its own')
})

t.test('the picture is well-formed whatever there is to show', async (t) => {
  const slice = {
    atMs: 0,
    ok: 5,
    retryable: 0,
    failed: 2,
    latency: { p50Ms: 1, p99Ms: 20, maxMs: 30 },
    epochs: { 0: 3, 1: 2 },
  }
  const reload = {
    ...{ number: 1, outcome: 'promoted' as const, from: 1, to: 2, promotedMs: 100, drainedMs: 200 },
    ...{
      askedAtMs: 100,
      promotedAtMs: 200,
      drainedAtMs: 300,
      requests: 5,
      failed: 2,
      text: '',
      reasons: [],
      drained: null,
    },
  }
  const result: DrillResult = {
    ...{
      ok: false,
      verdict: 'LOST: <2> & "more"\u001b[31m',
      startedAt: '2026-01-01T00:00:00.000Z',
      tookMs: 1,
      requests: 7,
    },
    ...{
      app: { name: 'a<b>&', private: true, usr2: '1', node: 'v20.0.0' },
      good: 5,
      retryable: 0,
      failed: 2,
      failures: {},
    },
    ...{
      unsent: 0,
      latency: { steady: null, reload: null, drain: null },
      mix: [],
      ledger: sumOf([]),
      webSocketEnds: {},
    },
    ...{
      details: [],
      notes: [],
      generations: [7, 8],
      sliceMs: 250,
      reloads: [reload],
      timeline: [slice, { ...slice, atMs: 250 }],
    },
  }
  const many = Array.from({ length: 1000 }, (_, at) => ({ ...slice, atMs: at * 250 }))
  const generations = Array.from({ length: 30 }, (_, at) => at + 1)
  for (const variant of [
    result,
    { ...result, timeline: [], reloads: [], generations: [1] },
    {
      ...result,
      timeline: many,
      generations,
      reloads: generations.map((number) => ({ ...reload, number, drainedAtMs: null })),
    },
    { ...result, timeline: [{ ...slice, latency: null, ok: 0, failed: 0, epochs: {} }] },
  ]) {
    const svg = picture(variant)
    t.equal(isWellFormed(svg), true)
    t.notMatch(
      svg,
      /NaN|Infinity|undefined|\u001b|<script|href=/,
      'every number is one, and nothing is loaded',
    )
  }
  t.match(picture(result), /generation 7<[^]*generation 8<[^]*failed/)
  t.equal(isWellFormed('<a><b></a></b>'), false, 'the check can fail')
})
