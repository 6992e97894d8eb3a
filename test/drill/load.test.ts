/**
 * The load client against servers that misbehave: each class of failure must be seen, counted once, and named. A
 * client that overlooks one would let every "0 failed" of this repository lie.
 */
import { createServer as createHttpServer } from 'node:http'
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import {
  connectFailure,
  Load,
  type LoadOptions,
  type LoadResult,
  type Mode,
  summary,
  type Traffic,
} from '../../src/drill/load.ts'
import { expectNoneFailed, loadUnder, untilServed } from '../helpers/load.ts'
import { processesWithToken } from '../helpers/processes.ts'
import type { TestLike } from '../helpers/scope.ts'
import { start } from '../helpers/spawn.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { fixture } from '../helpers/usr2.ts'
import { deadline, until } from '../helpers/wait.ts'

type T = TestLike
type Answer = (socket: Socket, request: number, connection: number) => void

const ok = (body = 'ok', headers = '') =>
  `HTTP/1.1 200 OK\r\n${headers}Content-Length: ${body.length}\r\n\r\n${body}`

async function listen(t: T, server: Server): Promise<number> {
  const sockets = new Set<Socket>()
  server.on('connection', (socket) =>
    sockets.add(socket.on('error', () => {}).once('close', () => sockets.delete(socket))),
  )
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return (server.address() as AddressInfo).port
}

/** A server that gives each request (by the end of its head) to `answer`, numbered from 1 within its connection. */
function serve(t: T, answer: Answer, greet: (socket: Socket) => void = () => {}): Promise<number> {
  let connections = 0
  const server = createServer({ noDelay: true }, (socket) => {
    const connection = ++connections
    let requests = 0
    greet(socket)
    socket.setEncoding('latin1')
    socket.on('data', (text: string) => {
      for (let count = text.split('\r\n\r\n').length - 1; count > 0; count--)
        answer(socket, ++requests, connection)
    })
  })
  return listen(t, server)
}

async function drive(
  t: T,
  port: number,
  traffic: Mode | readonly Traffic[],
  options: Partial<LoadOptions> = {},
): Promise<LoadResult> {
  const list: readonly Traffic[] = typeof traffic === 'string' ? [{ mode: traffic, connections: 1 }] : traffic
  const load = new Load({ target: { port }, traffic: list, timeoutMs: 2000, maxMs: 5000, ...options }).start()
  const result = await deadline(load.done, 15_000, 'the load to end', () => summary(load.snapshot()))
  sumsAgree(t, result)
  return result
}

/** Each request has exactly one outcome, and the parts make the whole. */
function sumsAgree(t: T, result: LoadResult): void {
  const outside = (result.failures.brokenPromise ?? 0) + (result.failures.stray ?? 0)
  t.equal(
    result.requests,
    result.ok + result.retryable + result.failed - outside,
    'one outcome for each request',
  )
  for (const parts of [Object.values(result.traffic), result.phases]) {
    for (const key of ['requests', 'ok', 'retryable', 'failed'] as const) {
      t.equal(
        parts.reduce((sum, part) => sum + part[key], 0),
        result[key],
        `the sum of ${key}`,
      )
    }
  }
}

const once = { maxRequests: 1 }
const detailOf = (result: LoadResult) => result.details[0]?.text ?? ''

t.test('refused: nobody listens', async (t) => {
  const port = await freePort(t)
  for (const mode of ['new', 'hot', 'preconnect'] as const) {
    const result = await drive(t, port, mode, { maxRequests: 3 })
    t.same(result.failures, { refused: 3 }, mode)
    t.equal(detailOf(result), 'ECONNREFUSED')
  }
  const nowhere = new Load({
    target: { path: join(shortTmp(t), 'no.sock') },
    traffic: [{ mode: 'hot', connections: 1 }],
    ...once,
  })
  t.same((await nowhere.start().done).failures, { refused: 1 })
})

t.test('connectTimeout and hang: a server that is stopped, with a full queue', async (t) => {
  const server = start(t, process.execPath, {
    args: [
      '-e',
      `const s = require('net').createServer().listen({ port: 0, host: '127.0.0.1', backlog: 1 }, () => console.log(s.address().port))`,
    ],
  })
  const port = Number((await server.line(/^\d+$/)).text)
  server.kill('SIGSTOP')
  // Linux takes backlog + 1 connections, and drops what more would connect.
  const result = await drive(t, port, [{ mode: 'new', connections: 5 }], { timeoutMs: 600, maxRequests: 5 })
  t.same(result.failures, { hang: 2, connectTimeout: 3 })
  t.match(result.details.find((detail) => detail.failure === 'hang')?.text, /^no byte for \d+ ms/)
})

t.test('connect errors that loopback does not produce', async (t) => {
  t.equal(connectFailure('ECONNRESET'), 'connectReset')
  t.equal(connectFailure('ETIMEDOUT'), 'connectTimeout')
  t.equal(connectFailure('EAGAIN'), 'refused')
  t.equal(connectFailure('EMFILE'), 'local')
  t.equal(connectFailure('EADDRNOTAVAIL'), 'local')
})

t.test('reset: a fresh connection ends without a byte', async (t) => {
  for (const [how, end] of [
    ['FIN', (socket: Socket) => socket.end()],
    ['ECONNRESET', (socket: Socket) => socket.resetAndDestroy()],
  ] as const) {
    const port = await serve(t, end)
    for (const mode of ['new', 'hot', 'preconnect'] as const) {
      const traffic = [{ mode, connections: 1, thinkMs: [0, 5] as const }]
      const result = await drive(t, port, traffic, { maxRequests: 2 })
      t.same(result.failures, { reset: 2 }, `${mode}, ${how}`)
      t.match(detailOf(result), how)
    }
  }
})

t.test('keepaliveReset: a connection that has answered ends without a byte', async (t) => {
  for (const end of [(socket: Socket) => socket.end(), (socket: Socket) => socket.resetAndDestroy()]) {
    const port = await serve(t, (socket, request) => (request === 3 ? end(socket) : socket.write(ok())))
    const result = await drive(t, port, 'hot', { maxRequests: 6 })
    t.same(result.failures, { keepaliveReset: 2 })
    t.equal(result.ok, 4)
    t.equal(result.connects, 2)
  }
})

t.test('keepaliveReset: what http.Server.close() does to busy connections', async (t) => {
  const server = createHttpServer((_request, response) => response.end('ok'))
  const port = await listen(t, server)
  const load = new Load({ target: { port }, traffic: [{ mode: 'hot', connections: 32 }] }).start()
  await until(() => load.snapshot().ok > 1000, { timeoutMs: 10_000, what: '1000 answers' })
  server.close()
  await until(() => (load.snapshot().failures.refused ?? 0) > 32, {
    timeoutMs: 10_000,
    what: 'all to be refused',
  })
  const result = await load.stop()
  sumsAgree(t, result)
  t.ok((result.failures.keepaliveReset ?? 0) + result.idleClosed > 0, JSON.stringify(result.failures))
})

t.test('truncated: the response is cut', async (t) => {
  const cuts = {
    'in the head': 'HTTP/1.1 200 OK\r\nContent-Le',
    'before the body': 'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n',
    'in the body': 'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345',
    'in a chunk': 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n123',
    'between chunks': 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n',
    'before the last line': 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n',
    'after an interim response': 'HTTP/1.1 103 Early Hints\r\n\r\n',
    'after Connection: close': 'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 10\r\n\r\n12345',
  }
  for (const [where, text] of Object.entries(cuts)) {
    const port = await serve(t, (socket) => socket.end(text))
    t.same((await drive(t, port, 'hot', once)).failures, { truncated: 1 }, where)
  }
})

t.test('status: anything but 2xx', async (t) => {
  const statuses = ['503 Service Unavailable', '404 Not Found', '302 Found']
  const port = await serve(t, (socket, request) => {
    socket.write(ok('no').replace('200 OK', statuses[request - 1] ?? '200 OK'))
  })
  const result = await drive(t, port, 'hot', { maxRequests: 5 })
  t.same(result.failures, { status: 3 })
  t.same(result.statuses, { 503: 1, 404: 1, 302: 1 })
  t.equal(result.connects, 1, 'it is no reason to leave the connection')
})

t.test('malformed: not HTTP/1.1', async (t) => {
  const chunked = 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n'
  const bad = {
    'no status line': 'hello\r\n\r\n',
    'no header': 'HTTP/1.1 200 OK\r\nnonsense\r\n\r\n',
    'a space in a name': 'HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok',
    'no length': 'HTTP/1.1 200 OK\r\n\r\nok',
    'a length that is no number': 'HTTP/1.1 200 OK\r\nContent-Length: 2x\r\n\r\nok',
    'two lengths': 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok',
    'both framings': `${chunked}Content-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n`,
    'a chunk without a size': `${chunked}\r\nxyz\r\nok\r\n0\r\n\r\n`,
    'a chunk longer than its size': `${chunked}\r\n1\r\nok\r\n0\r\n\r\n`,
    'a bad trailer': `${chunked}\r\n0\r\nnonsense\r\n\r\n`,
    'an endless line': `${chunked}\r\n${'1'.repeat(2000)}`,
    'an endless head': `HTTP/1.1 200 OK\r\nX: ${'x'.repeat(100_000)}`,
  }
  for (const [what, text] of Object.entries(bad)) {
    const port = await serve(t, (socket) => socket.write(text))
    t.same((await drive(t, port, 'hot', once)).failures, { malformed: 1 }, what)
  }
})

t.test('malformed: an echo that is not what was sent', async (t) => {
  let spoil = (body: Buffer) => body
  const server = createHttpServer((request, response) => {
    const chunks: Buffer[] = []
    request
      .on('data', (chunk: Buffer) => chunks.push(chunk))
      .on('end', () => response.end(spoil(Buffer.concat(chunks))))
  })
  const port = await listen(t, server)
  const traffic = [{ mode: 'post', connections: 1, echo: true, thinkMs: [0, 0] }] as const
  const good = await drive(t, port, traffic, { maxRequests: 3 })
  t.equal(good.ok, 3)
  t.equal(good.failed, 0)
  spoil = (body) => body.subarray(1)
  t.same((await drive(t, port, traffic, once)).failures, { malformed: 1 }, 'too short')
  spoil = (body) => Buffer.concat([body, Buffer.from('x')])
  t.same((await drive(t, port, traffic, once)).failures, { malformed: 1 }, 'too long')
  spoil = (body) => Buffer.concat([body.subarray(0, 40_000), Buffer.from('\0'), body.subarray(40_001)])
  t.same((await drive(t, port, traffic, once)).failures, { malformed: 1 }, 'one byte wrong')
})

t.test('stray: bytes that no request asked for', async (t) => {
  const longer = await serve(t, (socket) => socket.write(`${ok()}more`))
  const result = await drive(t, longer, 'hot', { maxRequests: 2 })
  t.same(result.failures, { stray: 2 }, 'a body longer than its length')
  t.equal(result.ok, 2)

  const afterClose = await serve(t, (socket) => socket.write(ok('ok', 'Connection: close\r\n') + ok()))
  t.same((await drive(t, afterClose, 'hot', once)).failures, { stray: 1 }, 'after Connection: close')

  const greeting = await serve(
    t,
    () => {},
    (socket) => socket.write('220 hello\r\n'),
  )
  const preconnect = [{ mode: 'preconnect', connections: 1, thinkMs: [5000, 5000] }] as const
  t.same((await drive(t, greeting, preconnect, once)).failures, { stray: 1 }, 'before any request')
})

t.test('hang: no end within the time', async (t) => {
  const silent = await serve(t, () => {})
  const result = await drive(t, silent, 'hot', { ...once, timeoutMs: 200 })
  t.same(result.failures, { hang: 1 })
  t.match(detailOf(result), /^no byte for [23]\d\d ms/)
  const stuck = await serve(t, (socket) => socket.write('HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345'))
  const other = await drive(t, stuck, 'hot', { ...once, timeoutMs: 200 })
  t.same(other.failures, { hang: 1 })
  t.match(detailOf(other), /^stuck within a response/)
})

t.test('hang: a stop does not wait for ever', async (t) => {
  // Each byte is a sign of life, so the timeout never comes.
  const trickle = await serve(t, (socket) => {
    socket.write('HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n')
    const timer = setInterval(() => socket.write('x'), 20)
    socket.once('close', () => clearInterval(timer))
  })
  const result = await drive(t, trickle, 'hot', { timeoutMs: 200, maxMs: 100, stopMs: 300 })
  t.same(result.failures, { hang: 1 })
  t.match(detailOf(result), 'still in flight 300 ms after the stop')
})

const idle = (thinkMs: number, connections = 1) =>
  [{ mode: 'keepalive', connections, thinkMs: [thinkMs, thinkMs] }] as const

t.test('brokenPromise: an idle connection closed before its Keep-Alive timeout', async (t) => {
  for (const end of [(socket: Socket) => socket.end(), (socket: Socket) => socket.resetAndDestroy()]) {
    const port = await serve(t, (socket) => {
      socket.write(ok('ok', 'Keep-Alive: timeout=5\r\n'))
      setTimeout(() => end(socket), 50)
    })
    const result = await drive(t, port, idle(300), { maxMs: 900 })
    t.same(Object.keys(result.failures), ['brokenPromise'])
    t.match(detailOf(result), /^(FIN|ECONNRESET) on an idle connection 4\d\d\d ms before/)
    t.equal(result.idleClosed, 0)
    t.equal(result.ok, result.requests, 'no request was lost')
  }
})

t.test('idleClosed: what a server may do', async (t) => {
  for (const [what, headers, afterMs] of [
    ['no promise', '', 30],
    ['the promise has passed', 'Keep-Alive: timeout=1\r\n', 1010],
  ] as const) {
    const port = await serve(t, (socket) => {
      socket.write(ok('ok', headers))
      setTimeout(() => socket.end(), afterMs)
    })
    const result = await drive(t, port, idle(afterMs + 150), { maxMs: afterMs + 100 + 2 * (afterMs + 150) })
    t.equal(result.failed, 0, what)
    t.ok(result.idleClosed > 0, what)
    t.equal(result.connects, result.requests)
  }
  const closing = await serve(
    t,
    (socket) => socket.write(ok()),
    (socket) => setTimeout(() => socket.end(), 30),
  )
  const preconnect = [{ mode: 'preconnect', connections: 1, thinkMs: [10_000, 10_000] }] as const
  const result = await drive(t, closing, preconnect, { maxMs: 300 })
  t.equal(result.failed + result.requests, 0, 'a connection that never said anything')
  t.ok(result.idleClosed > 1)
})

t.test('Connection: close is obeyed', async (t) => {
  const perConnection: number[] = []
  const port = await serve(t, (socket, request, connection) => {
    perConnection[connection - 1] = request
    socket.write(ok('ok', request === 3 ? 'Keep-Alive: timeout=5\r\nConnection: close\r\n' : ''))
  })
  for (const mode of ['hot', 'keepalive'] as const) {
    perConnection.length = 0
    const result = await drive(t, port, mode, { maxRequests: 9 })
    t.equal(result.failed, 0, mode)
    t.equal(result.ok, 9)
    t.equal(result.closeHeaders, 3)
    t.equal(result.idleClosed, 0)
  }
})

t.test('new and preconnect use a connection once', async (t) => {
  const requests: number[] = []
  const server = createHttpServer((_request, response) => response.end('ok'))
  server.on('request', () => requests.push(1))
  const port = await listen(t, server)
  for (const mode of ['new', 'preconnect'] as const) {
    const result = await drive(t, port, [{ mode, connections: 2, thinkMs: [0, 20] }], { maxRequests: 10 })
    t.equal(result.failed, 0, mode)
    t.equal(result.connects, 10)
    t.equal(result.closeHeaders, 0, 'what was asked for is no news')
  }
})

t.test('pipelined: behind Connection: close is retryable, behind a reset is lost', async (t) => {
  const closing = await serve(t, (socket, request) => {
    if (request < 3) socket.write(ok())
    else if (request === 3) socket.end(ok('ok', 'Connection: close\r\n'))
  })
  const closed = await drive(t, closing, 'pipelined', { maxRequests: 16 })
  t.same(
    { ok: closed.ok, retryable: closed.retryable, failed: closed.failed },
    { ok: 6, retryable: 10, failed: 0 },
  )
  t.equal(closed.closeHeaders, 2)

  const ending = await serve(t, (socket, request) => (request <= 3 ? socket.write(ok()) : socket.end()))
  const lost = await drive(t, ending, 'pipelined', { maxRequests: 8 })
  t.same(lost.failures, { keepaliveReset: 5 })

  const cutting = await serve(t, (socket, request) => {
    if (request <= 3) socket.write(ok())
    else if (request === 4) socket.end(ok().slice(0, -1))
  })
  t.same((await drive(t, cutting, 'pipelined', { maxRequests: 8 })).failures, {
    truncated: 1,
    keepaliveReset: 4,
  })
})

t.test('good answers in every form and in every cut', async (t) => {
  const good = [
    ok(),
    'HTTP/1.1 204 No Content\r\n\r\n',
    'HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n',
    `HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n${ok()}`,
    'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nok\r\nA\r\n0123456789\r\n0\r\nX: y\r\n\r\n',
  ].join('')
  const answers = 5
  for (const size of [1, 2, 3, 7, 50, 10_000]) {
    const port = await serve(t, (socket, request) => {
      if (request !== 1) return
      const pieces = good.match(new RegExp(`[^]{1,${size}}`, 'g')) ?? []
      const next = () => {
        const piece = pieces.shift()
        if (piece !== undefined) socket.write(piece, () => setImmediate(next))
      }
      next()
    })
    const result = await drive(t, port, [{ mode: 'pipelined', connections: 1, depth: answers }], {
      maxRequests: answers,
    })
    t.equal(result.failed, 0, `${size} bytes at a time: ${summary(result)}`)
    t.equal(result.ok, answers)
  }
})

t.test('phases and versions', async (t) => {
  let version = '1'
  const server = createHttpServer((_request, response) =>
    response.end(JSON.stringify({ version, pid: 4711, town: 'Köln' })),
  )
  const port = await listen(t, server)
  const load = new Load({
    target: { port },
    traffic: [{ mode: 'hot', connections: 2 }],
    versionOf: 'version',
  })
  load.start().mark('steady')
  await until(() => load.snapshot().versions['1'], { timeoutMs: 5000, what: 'version 1' })
  load.mark('reload')
  version = '2'
  await until(() => load.snapshot().versions['2'], { timeoutMs: 5000, what: 'version 2' })
  const result = await load.stop()
  sumsAgree(t, result)
  t.same(
    result.phases.map((phase) => phase.name),
    ['start', 'steady', 'reload'],
  )
  const [, steady, reload] = result.phases
  t.same(Object.keys(steady?.versions ?? {}), ['1'])
  t.ok(reload?.versions['2'])
  const { 1: one, 2: two } = result.versions
  t.equal((one?.responses ?? 0) + (two?.responses ?? 0), result.ok)
  t.ok(two !== undefined && two.firstAfterMarkMs >= 0 && two.firstAfterMarkMs < (reload?.durationMs ?? 0))
  t.ok((two?.firstAtMs ?? 0) > (one?.firstAtMs ?? Infinity))
  t.match(reload?.latency, { p50Ms: Number, p99Ms: Number, maxMs: Number })
  t.ok((reload?.latency?.p50Ms ?? 1) <= (reload?.latency?.maxMs ?? 0))
})

t.test('a load that makes no sense is refused', async (t) => {
  t.throws(() => new Load({ target: { port: 1 }, traffic: [] }), /without traffic/)
  const twice: Traffic[] = [
    { mode: 'hot', connections: 1 },
    { mode: 'hot', connections: 2 },
  ]
  t.throws(() => new Load({ target: { port: 1 }, traffic: twice }), /same name twice: hot, hot/)
})

t.test('in a process of its own: every mode, 0 failed, then a server that is killed', async (t) => {
  const app = start(t, process.execPath, { args: [fixture('http-app.cjs')], env: { VERSION: '7' } })
  const port = Number((await app.line('listening')).text.split(' ')[1])
  const load = await loadUnder(t, {
    target: { port },
    versionOf: 'version',
    traffic: [
      { mode: 'new', connections: 2, thinkMs: [1, 5] },
      { mode: 'keepalive', connections: 4 },
      { mode: 'hot', connections: 2 },
      { mode: 'post', connections: 2, echo: true },
      { mode: 'slow', connections: 2, path: '/slow?ms=200' },
      { mode: 'stream', connections: 2, path: '/stream?ms=250' },
      { mode: 'pipelined', connections: 1 },
      { mode: 'preconnect', connections: 2, thinkMs: [0, 100] },
    ],
  })
  await untilServed(load, '7')
  load.mark('steady')
  const modes = ['new', 'keepalive', 'hot', 'post', 'slow', 'stream', 'pipelined', 'preconnect']
  const all = async () => {
    const { traffic } = await load.snapshot()
    return modes.every((mode) => (traffic[mode]?.ok ?? 0) >= 2)
  }
  await until(all, { timeoutMs: 10_000, what: 'answers in each mode' })
  const steady = await load.snapshot()
  expectNoneFailed(t, steady)
  sumsAgree(t, steady)
  t.equal(
    steady.connects - (steady.traffic['new']?.requests ?? 0) - (steady.traffic['preconnect']?.requests ?? 0) <
      18,
    true,
  )

  load.mark('killed')
  app.kill('SIGKILL')
  await until(async () => ((await load.snapshot()).failures.refused ?? 0) > 20, {
    timeoutMs: 10_000,
    what: 'refusals',
  })
  const result = await load.stop()
  sumsAgree(t, result)
  t.ok(result.failures.truncated, 'streams were cut')
  t.ok(result.failures.keepaliveReset, 'requests on used connections were lost')
  t.equal(result.phases.find((phase) => phase.name === 'steady')?.failed, 0)
  t.ok(result.details.every((detail) => detail.phase === 'killed'))
  t.match(summary(result), /refused \d+/)
})

t.test('a long result comes whole to a reader that is busy', async (t) => {
  const server = await serve(t, (socket) => socket.write(ok()))
  const load = await loadUnder(t, {
    target: { port: server },
    traffic: Array.from({ length: 8 }, (_, at) => ({
      mode: 'keepalive',
      connections: 1,
      name: `lane ${at}`,
    })),
  })
  // Some 1.5 kB a phase: more than a pipe holds, which is up to 256 KiB.
  for (let phase = 1; phase <= 400; phase++) load.mark(`phase ${phase}`)
  const result = load.stop()
  // The order leaves with this turn. Meanwhile the client answers and would end, with most of it unwritten: there is
  // nothing to wait for but its time.
  setImmediate(() => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 3000))
  t.equal((await result).phases.length, 401)
})

t.test('a client process that dies is no result, and one whose starter is gone ends', async (t) => {
  const server = await serve(t, (socket) => socket.write(ok()))
  const load = await loadUnder(t, {
    target: { port: server },
    traffic: [{ mode: 'keepalive', connections: 1 }],
  })
  load.kill()
  await t.rejects(load.stop(), /ended with SIGKILL without a result/)
  await t.rejects(loadUnder(t, { target: { port: server }, traffic: [] }), /a load without traffic/)

  const startModule = new URL('../../src/drill/start-load.ts', import.meta.url).href
  const starter = start(t, process.execPath, {
    args: [
      '--import',
      import.meta.resolve('tsx'),
      '--input-type=module',
      '-e',
      `const { startLoad } = await import(${JSON.stringify(startModule)})
       const { pid } = await startLoad({ target: { port: ${server} }, traffic: [{ mode: 'keepalive', connections: 1 }] },
         { env: { TEST_TOKEN: process.env.TEST_TOKEN } })
       console.log(pid)`,
    ],
  })
  const pid = Number((await starter.line(/^\d+$/)).text)
  t.ok(processesWithToken(starter.token).some((process) => process.pid === pid))
  starter.kill('SIGKILL')
  await until(() => processesWithToken(starter.token).length === 0, {
    timeoutMs: 5000,
    what: 'the client to end',
  })
})
