/** Requests of ours before the first real one. (Of a real worker with its gate shut: test/e2e/probes.test.ts.) */
import { once } from 'node:events'
import http, { type IncomingMessage, type RequestListener } from 'node:http'
import net, { type Server } from 'node:net'
import t from 'tap'
import type { Test } from 'tap'
import { CMD } from '../../src/protocol.ts'
import { fromWorker } from '../../src/master/workers/worker-word.ts'
import { Ledger } from '../../src/worker/ledger.ts'
import { warmUp } from '../../src/worker/warm-up.ts'
import { deadline } from '../helpers/wait.ts'

async function listen<S extends Server>(t: Test, server: S): Promise<S> {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  return server
}

/** A server that has seen requests. */
async function serve(t: Test, handle: RequestListener) {
  const seen: IncomingMessage[] = []
  let active = 0
  let atOnce = 0
  const server = http.createServer((req, res) => {
    seen.push(req)
    atOnce = Math.max(atOnce, ++active)
    res.once('close', () => active--)
    handle(req, res)
  })
  await listen(t, server)
  return { server, seen, atOnce: () => atOnce }
}

const allClosed = (seen: readonly IncomingMessage[]): Promise<unknown> =>
  deadline(
    Promise.all(seen.map(({ socket }) => socket.destroyed || once(socket, 'close'))),
    5_000,
    'the close of every connection',
  )

async function warm(server: Server | null, paths: readonly string[], count: number, timeoutMs = 10_000) {
  const order = { t: 'warm-up', paths, count, timeoutMs } as const
  const warmed = await warmUp(order, new Set(server === null ? [] : [server]))
  if (!fromWorker({ cmd: CMD, ...warmed }))
    throw new Error(`the master does not take ${JSON.stringify(warmed)}`)
  return [warmed.sent, warmed.failure]
}

t.test(
  'over the paths by turns, four at once, on connections that are kept, marked, in no count',
  async (t) => {
    const ledger = new Ledger()
    const { server, seen, atOnce } = await serve(t, (_, res) =>
      setTimeout(() => res.end('x'.repeat(100_000)), 1),
    )
    t.same(await warm(server, ['/', '/search'], 21), [21, null])
    t.equal(seen.filter(({ url }) => url === '/').length, 11)
    t.equal(seen.filter(({ url }) => url === '/search').length, 10)
    t.equal(atOnce(), 4)
    const sockets = new Set(seen.map(({ socket }) => socket))
    t.equal(sockets.size, 4)
    await allClosed(seen)
    t.match(seen[20]?.headers, {
      'user-agent': 'usr2-warm-up/1',
      'usr2-warm-up': '1',
      connection: 'keep-alive',
    })
    t.match(ledger.counts(), { accepted: 0, requests: 0 })
  },
)

t.test('fewer than four', async (t) => {
  const { server, seen } = await serve(t, (_, res) => res.end())
  t.same(await warm(server, ['/'], 2), [2, null])
  t.equal(seen.length, 2)
  t.same(await warm(server, ['/'], 0), [0, null])
})

t.test('an app that keeps no connections', async (t) => {
  const { server, seen } = await serve(t, (_, res) => res.writeHead(200, { connection: 'close' }).end('x'))
  t.same(await warm(server, ['/'], 12), [12, null])
  t.equal(new Set(seen.map(({ socket }) => socket)).size, 12)
})

t.test('the first failure is told, and the rest goes on', async (t) => {
  let count = 0
  const { server, seen } = await serve(t, (req, res) => {
    count++
    if (count === 3) return void res.writeHead(503).end()
    if (count === 5) return void req.socket.destroy()
    res.writeHead(404).end()
  })
  t.same(await warm(server, ['/a'], 20), [20, 'GET /a answered 503'])
  t.equal(seen.length, 20)
  count = 4
  t.same(await warm(server, ['/a'], 20), [20, 'GET /a failed: socket hang up'])
  t.equal(seen.length, 40)
  t.match((await warm(server, ['/a b'], 2))[1], /^GET \/a b failed: Request path contains unescaped/)
})

t.test('until its time is over', async (t) => {
  const { server, seen } = await serve(t, (req, res) => {
    if (req.url === '/') res.end()
  })
  t.same(await warm(server, ['/', '/never'], 100, 500), [8, 'only 8 of 100 requests were sent within 0.5 s'])
  await allClosed(seen)
})

t.test('a server that the app closes meanwhile, and none at all', async (t) => {
  const { server } = await serve(t, (_, res) => {
    server.close()
    res.end()
  })
  t.match((await warm(server, ['/'], 100))[1], 'the app closed its server')
  t.same(await warm(null, ['/'], 9), [0, 'no HTTP server listens in this worker'])
  t.match(await warm(await listen(t, net.createServer()), ['/'], 9), [0, /^no HTTP server listens/])
})
