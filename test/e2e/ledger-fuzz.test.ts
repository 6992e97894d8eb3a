/**
 * Many clients that do what comes to their minds, and a reload in their midst: what the ledgers of both generations say
 * must be what the clients saw, as far as they can know. USR2_FUZZ_SEED repeats a run.
 */
import http2 from 'node:http2'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import type { Test } from 'tap'
import { WebSocket } from 'ws'
import type { Ledger } from '../../src/master/figures/ledger.ts'
import { openRaw, request, type RawClient } from '../helpers/raw-client.ts'
import { freePort } from '../helpers/tmp.ts'
import { startUsr2 } from '../helpers/usr2.ts'
import { deadline } from '../helpers/wait.ts'

const CLIENTS = 80
const WAIT_MS = 30_000
const given = process.env['USR2_FUZZ_SEED']
const SEEDS = given === undefined ? [Date.now() % 100_000, 4711] : given.split(',').map(Number)

/** Mulberry32: from 0 to 1. */
function randomFrom(seed: number): () => number {
  let a = seed | 0
  return () => {
    a = (a + 0x6d2b79f5) | 0
    let x = Math.imul(a ^ (a >>> 15), 1 | a)
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32
  }
}

/** What the clients know of themselves. */
class Seen {
  connected = 0
  /** Requests that were sent, and of which the whole answer came. */
  sent = 0
  answered = 0
  /** Sent, and then left by their client. */
  abandoned = 0
  /** Connections that their client has left, perhaps by a reset. */
  reset = 0
  /** Close frames with status 1001. */
  goingAway = 0
  /** WebSockets that their client has left in its own way. */
  webSocketsLeft = 0
  /** Requests over HTTP/2 that were refused as not processed, or not sent. */
  refused = 0
  readonly failed: string[] = []
}

interface World {
  readonly t: Test
  readonly seen: Seen
  readonly port: number
  readonly tlsPort: number
  upTo(max: number): number
  oneOf<T>(...these: readonly [T, ...T[]]): T
}

async function open({ t, seen, port, tlsPort }: World, tls: boolean): Promise<RawClient> {
  const client = await openRaw(t, { port: tls ? tlsPort : port, tls })
  seen.connected++
  return client
}

async function answerTo(seen: Seen, client: RawClient, what: string): Promise<boolean> {
  try {
    const { headers } = await client.response({ what })
    seen.answered++
    return headers['connection'] === 'close'
  } catch (error) {
    seen.failed.push(`${what}: ${(error as Error).message}`)
    return true
  }
}

function leave({ seen, oneOf }: World, client: RawClient): void {
  // By a close as well: the kernel resets where something came that was not read.
  seen.reset++
  const { socket } = client
  if (oneOf('reset', 'fin') === 'fin' || 'encrypted' in socket) socket.destroy()
  else socket.resetAndDestroy()
}

const KINDS: Readonly<Record<string, (world: World) => Promise<void>>> = {
  async keepsAlive(world) {
    const { seen, upTo, oneOf } = world
    const tls = oneOf(true, false)
    let client = await open(world, tls)
    for (let i = upTo(6); i >= 0; i--) {
      // Far from the end of the promise: there a request may meet the close.
      if (client.ending !== null) client = await open(world, tls)
      seen.sent++
      client.get(`/${upTo(300)}`)
      if (await answerTo(seen, client, 'kept alive')) {
        client.socket.destroy()
        client = await open(world, tls)
      }
      await sleep(upTo(400))
    }
    if (oneOf('stay', 'leave') === 'leave') client.socket.destroy()
    else await client.ended()
  },
  async pipelines(world) {
    const { seen, upTo, oneOf } = world
    const client = await open(world, oneOf(true, false))
    const count = 1 + upTo(6)
    seen.sent += count
    client.send(Array.from({ length: count }, () => request('GET', `/${oneOf(0, upTo(200))}`)).join(''))
    for (let i = 0; i < count; i++) await answerTo(seen, client, `pipelined, ${i + 1} of ${count}`)
    client.socket.destroy()
  },
  async halfCloses(world) {
    const { seen } = world
    const client = await open(world, false)
    seen.sent++
    client.get('/0').socket.end()
    await answerTo(seen, client, 'half-closed')
  },
  async leavesInFlight(world) {
    const { seen, upTo, oneOf } = world
    const client = await open(world, oneOf(true, false))
    const count = 1 + upTo(2)
    seen.sent += count
    seen.abandoned += count
    client.send(Array.from({ length: count }, () => request('GET', '/2000')).join(''))
    await sleep(upTo(1_000))
    leave(world, client)
  },
  async cutsUpload(world) {
    const client = await open(world, false)
    world.seen.sent++
    world.seen.abandoned++
    client.send(request('POST', '/upload', 'Content-Length: 100000') + 'x'.repeat(world.upTo(50_000)))
    await sleep(world.upTo(800))
    leave(world, client)
  },
  async uploads(world) {
    const { seen, upTo, oneOf } = world
    const client = await open(world, oneOf(true, false))
    seen.sent++
    client.send(request('POST', '/upload', 'Content-Length: 5000'))
    for (let i = 0; i < 5; i++) {
      await sleep(upTo(200))
      client.send('x'.repeat(1000))
    }
    await answerTo(seen, client, 'upload')
    client.socket.destroy()
  },
  async says(world) {
    const client = await open(world, world.oneOf(true, false))
    await sleep(world.upTo(500))
    if (world.oneOf('nothing', 'garbage') === 'garbage') client.send('garbage\r\n\r\n')
    else if (world.oneOf('half', 'nothing') === 'half') client.send('GET / HTTP/1.1\r\nHost:')
    await sleep(world.upTo(500))
    if (client.ending === null) leave(world, client)
  },
  async breaksHandshake(world) {
    world.seen.connected++
    const client = await openRaw(world.t, { port: world.tlsPort })
    await sleep(world.upTo(300))
    if (world.oneOf(true, false)) client.send('\x16\x03\x01')
    await sleep(world.upTo(300))
    leave(world, client)
  },
  async listens(world) {
    const { seen, upTo, oneOf } = world
    const client = await open(world, oneOf(true, false))
    seen.sent++
    client.get('/events')
    if (oneOf('stay', 'leave') === 'leave') {
      seen.abandoned++
      await sleep(upTo(1_000))
      return leave(world, client)
    }
    await answerTo(seen, client, 'events')
    client.socket.destroy()
  },
  async echoes(world) {
    const client = await open(world, world.oneOf(true, false))
    client.get('/', 'Connection: Upgrade', 'Upgrade: echo')
    await client.until(() => client.rest.includes('\r\n\r\n'), 'the upgrade')
    if (world.oneOf('stay', 'leave') === 'stay') await client.ended()
    else {
      await sleep(world.upTo(1_000))
      if (client.ending === null) leave(world, client)
    }
  },
  async speaksWebSocket(world) {
    const { t, seen, upTo, oneOf, port, tlsPort } = world
    const url = oneOf(`ws://127.0.0.1:${port}`, `wss://127.0.0.1:${tlsPort}`)
    const socket = new WebSocket(url, { rejectUnauthorized: false })
    t.teardown(() => socket.terminate())
    const closed = new Promise<number>((resolve) => socket.on('close', resolve))
    socket.on('error', (error) => seen.failed.push(`WebSocket: ${error.message}`))
    await new Promise((resolve) => socket.once('open', resolve))
    seen.connected++
    const chatter = setInterval(() => socket.send('x'.repeat(upTo(100_000))), 20)
    void closed.then(() => clearInterval(chatter))
    if (oneOf('stay', 'leave') === 'stay') {
      const code = await closed
      if (code === 1001) seen.goingAway++
      else seen.failed.push(`a WebSocket was closed with ${code}`)
      return
    }
    await sleep(upTo(1_000))
    seen.webSocketsLeft++
    if (oneOf('close', 'terminate') === 'close') socket.close(1000)
    else socket.terminate()
    await closed
  },
  async speaksHttp2(world) {
    const { t, seen, upTo, oneOf, tlsPort } = world
    const session = http2.connect(`https://127.0.0.1:${tlsPort}`, { rejectUnauthorized: false })
    t.teardown(() => session.destroy())
    session.on('error', (error) => seen.failed.push(`HTTP/2 session: ${error.message}`))
    await new Promise((resolve) => session.once('remoteSettings', resolve))
    seen.connected++
    const get = (path: string): Promise<void> =>
      new Promise((resolve) => {
        if (session.closed || session.destroyed) return resolve()
        const stream = session.request({ ':path': path })
        seen.sent++
        const abandons = oneOf(true, false, false)
        if (abandons) {
          seen.abandoned++
          setTimeout(() => stream.close(http2.constants.NGHTTP2_CANCEL), upTo(300)).unref()
        }
        let status = 0
        stream.on('response', (headers) => (status = Number(headers[':status'])))
        stream.on('error', (error) => {
          const { rstCode } = stream
          // Refused; or cancelled by the client itself as its session closed, before it was sent.
          if (status === 0 && (rstCode === 7 || rstCode === 8)) seen.refused++
          else seen.failed.push(`HTTP/2 ${path}: ${error.message}, ${rstCode}`)
        })
        stream.on('end', () => {
          if (!abandons && status === 200) seen.answered++
        })
        stream.on('close', resolve)
        stream.resume()
      })
    for (let i = upTo(4); i >= 0; i--) {
      await Promise.all([get(`/${upTo(300)}`), get(oneOf('/events', '/0', '/50'))])
      await sleep(upTo(100))
    }
    if (!session.destroyed) session.close()
  },
}

for (const seed of SEEDS) {
  t.test(`${CLIENTS} clients, seed ${seed}`, async (t) => {
    const random = randomFrom(seed)
    const [port, tlsPort] = [await freePort(t), await freePort(t)]
    const usr2 = startUsr2(t, {
      fixture: 'everything-app.cjs',
      flags: ['--drain-timeout', '9s'],
      env: { PORT: String(port), TLS_PORT: String(tlsPort) },
    })
    await usr2.ready()
    const seen = new Seen()
    const upTo = (max: number): number => Math.floor(random() * (max + 1))
    const world: World = {
      ...{ t, seen, port, tlsPort, upTo },
      oneOf: (...these) => these[upTo(these.length - 1)] ?? these[0],
    }
    const kinds = Object.entries(KINDS)
    const clients = Array.from({ length: CLIENTS }, async (_, i) => {
      const [name, live] = kinds[i % kinds.length] ?? ['', () => Promise.resolve()]
      await sleep(upTo(1_200))
      await live(world).catch((error: unknown) => seen.failed.push(`${name}: ${(error as Error).message}`))
    })
    await sleep(400 + upTo(600))
    t.equal((await usr2.reload()).code, 0)
    await usr2.event('drained', { timeoutMs: WAIT_MS })
    // Those of the second generation: what stays, stays until the end.
    const stopped = usr2.stop()
    await deadline(Promise.all(clients), WAIT_MS, 'the clients', () => usr2.logs())
    await stopped
    const ledgers = usr2
      .events()
      .flatMap(({ event, ledger }) => (event === 'drained' ? [ledger as Ledger] : []))
    t.equal(ledgers.length, 2)
    const sum = (of: (ledger: Ledger) => number): number => ledgers.reduce((all, one) => all + of(one), 0)
    const told = JSON.stringify({ seen, ledgers }, null, 1)
    const ok = (fact: boolean, what: string): unknown => t.ok(fact, what, fact ? {} : { told })
    t.same(seen.failed, [], 'nobody lost anything', { told })
    const { connected, sent, answered, abandoned, reset, goingAway, webSocketsLeft, refused } = seen
    ok(sum(({ connections }) => connections.accepted) === connected, 'every connection was counted')
    ok(sum(({ connections: { cut, crashed, open } }) => cut + crashed + open) === 0, 'none was cut')
    const resets = sum(({ connections }) => connections.reset)
    ok(resets <= reset + webSocketsLeft, `reset: ${resets} of ${reset} by the client`)
    const closed = sum(({ connections }) => connections.websocket)
    ok(closed >= goingAway && closed <= goingAway + webSocketsLeft, `1001: ${closed} sent, ${goingAway} seen`)
    const completed = sum(({ requests: { before, during } }) => before + during)
    ok(completed >= answered && completed <= sent, `${completed} requests completed, ${answered} answers`)
    const aborted = sum(({ requests }) => requests.aborted)
    ok(aborted <= abandoned, `${aborted} requests aborted, ${abandoned} abandoned`)
    const begun = sum(({ requests }) => requests.begun)
    ok(begun <= sent && begun >= sent - abandoned - refused, `${begun} requests begun, ${sent} sent`)
    ok(sum(({ requests: { cut, crashed, active } }) => cut + crashed + active) === 0, 'none was cut')
  })
}
