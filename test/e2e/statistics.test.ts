/** What a worker says of its requests under load is what its clients have seen. */
import t from 'tap'
import type { Test } from 'tap'
import { loadConfig } from '../../src/config.ts'
import type { Traffic } from '../../src/drill/load.ts'
import { pinGeneration } from '../../src/master/workers/generation.ts'
import { Listeners } from '../../src/master/listening/listeners.ts'
import { StatisticsBook } from '../../src/master/figures/statistics.ts'
import { WorkerHandle } from '../../src/master/workers/worker-handle.ts'
import type { FromWorker, Statistics } from '../../src/protocol.ts'
import { loadUnder } from '../helpers/load.ts'
import { openRaw, request } from '../helpers/raw-client.ts'
import { scopeOf, TOKEN_VARIABLE } from '../helpers/scope.ts'
import { withoutTap } from '../helpers/spawn.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { CLI, fixture } from '../helpers/usr2.ts'
import { until } from '../helpers/wait.ts'

const WAIT_MS = 20_000
const GENERATION = 1

class Master {
  readonly book = new StatisticsBook()
  readonly messages: FromWorker[] = []
  exit: string | null = null

  get statistics(): Statistics[] {
    return this.messages.flatMap((message) => (message.t === 'statistics' ? [message.statistics] : []))
  }

  /** Waits until the worker has told of so many requests. */
  async told(requests: number): Promise<Statistics> {
    const enough = (): Statistics | false => {
      const last = this.statistics.at(-1)
      return last !== undefined && last.requests >= requests && last
    }
    return await until(enough, {
      timeoutMs: WAIT_MS,
      what: `statistics of ${requests} requests`,
      logs: () => JSON.stringify(this.messages.slice(-5)),
    })
  }
}

/** One worker, and a master that gives it its listener and listens. */
async function startWorker(t: Test, flags: readonly string[] = [], env: Record<string, string> = {}) {
  const scope = scopeOf(t)
  const { PATH = '', HOME = '' } = process.env
  const config = loadConfig({
    argv: [...flags, fixture('statistics-app.cjs')],
    env: { PATH, HOME },
    cwd: shortTmp(t),
  })
  if (!config.ok) throw new Error(config.complaints.join('\n'))
  const port = await freePort(t)
  const own = { PATH, HOME, PORT: String(port), [TOKEN_VARIABLE]: scope.nextToken(), ...env }
  const pin = await pinGeneration(config.config, own)
  if (!pin.ok) throw new Error(pin.reasons.join('\n'))
  const { pinned } = pin
  const master = new Master()
  const listeners = new Listeners({ log: { info() {}, warn() {} }, onHeld() {} })
  scope.finally(() => listeners.closeAll())
  const worker = withoutTap(
    () =>
      new WorkerHandle({
        id: 1,
        generation: GENERATION,
        slot: 0,
        name: 't',
        pinned,
        preload: CLI.replace('cli.mjs', 'preload.cjs'),
        known: [],
        // Ours is the test's.
        stdout: 2,
        onMessage(worker, message) {
          master.messages.push(message)
          if (message.t === 'claim') listeners.claim(worker, message.id, message.address)
          else if (message.t === 'verified') listeners.proved(worker, message.key, message.error)
          else if (message.t === 'claimed') void listeners.grant(worker, message.key, 10_000)
          else if (message.t === 'statistics')
            master.book.told(1, GENERATION, message.statistics, performance.now())
        },
        onExit: (_, { reason }) => void (master.exit = reason),
      }),
  )
  t.teardown(() => {
    worker.signal('SIGKILL')
    return ended(master)
  })
  await until(() => master.messages.some((message) => message.t === 'opened'), {
    timeoutMs: WAIT_MS,
    what: 'the worker to listen',
    logs: () => JSON.stringify(master.messages),
  })
  return { master, worker, port }
}

const ended = (master: Master): Promise<string> =>
  until(() => master.exit, { timeoutMs: WAIT_MS, what: 'the worker to end' })

const loads: Readonly<Record<string, Traffic>> = {
  'HTTP/1.1 keep-alive': { mode: 'hot', connections: 8 },
  'HTTP/1.1 pipelined': { mode: 'pipelined', connections: 4 },
  h2c: { mode: 'http2', connections: 4, thinkMs: [0, 0] },
}

for (const [name, traffic] of Object.entries(loads)) {
  t.test(`${name}: as the client has counted`, async (t) => {
    const env: Record<string, string> = name === 'h2c' ? { HTTP2: '1' } : {}
    const { master, port } = await startWorker(t, [], env)
    const load = await loadUnder(t, {
      target: { port },
      traffic: [{ ...traffic, name: 'all' }],
      maxRequests: 4_000,
      maxMs: WAIT_MS,
    })
    const result = await load.done
    const answers = result.answers['all'] ?? {}
    const [good = 0, bad = 0] = [answers['200'], answers['500']]
    t.ok(bad >= 300, `${bad} of ${good + bad} answers were a 500`)
    t.same(result.failures, { status: bad }, 'and nothing else failed')
    const last = await master.told(good + bad)
    t.equal(last.requests, good + bad, 'every answer was counted, once')
    t.equal(last.errors, bad)
    t.equal(
      last.latency.reduce((sum, [, count]) => sum + count, 0),
      last.requests,
      'and timed',
    )
    const { p50, p99, ...figures } = master.book.figuresOver(GENERATION, 60_000, performance.now())
    t.match(figures, { requests: good + bad, errorRate: bad / (good + bad) })
    const { latency } = result
    t.ok((p50 ?? 0) > 0 && (p50 ?? NaN) <= (p99 ?? NaN))
    // The server's part of what the client saw; a bucket is a fifth wide.
    t.ok((p50 ?? NaN) <= (latency?.p50Ms ?? 0) * 1.25 + 0.125, `${p50} ms of ${latency?.p50Ms}`)
  })
}

t.test('each pipelined request has its own time', async (t) => {
  const { master, worker, port } = await startWorker(t)
  const client = await openRaw(t, { port })
  client.get('/later?ms=1200')
  // It has been read when the worker counts it.
  await until(() => worker.counts.active === 1, { timeoutMs: WAIT_MS, what: 'the first request' })
  client.get('/later?ms=0')
  await client.response()
  await client.response()
  const { latency, totalMs } = await master.told(2)
  const [fast, slow] = latency
  t.equal(latency.length, 2, `two buckets: ${JSON.stringify(latency)}`)
  t.ok(fast && slow && slow[0] >= 53, 'the first took 1.2 s')
  t.ok(totalMs >= 1_199, 'from its first byte on')
})

t.test('upgrades and streams of events are counted, and have no time', async (t) => {
  for (const http2 of [false, true]) {
    const { master, port } = await startWorker(t, [], http2 ? { HTTP2: '1' } : {})
    if (http2) {
      const traffic = [{ mode: 'http2', connections: 1, depth: 1, path: '/events?ms=50' }] as const
      const load = await loadUnder(t, { target: { port }, traffic, maxRequests: 2, maxMs: WAIT_MS })
      t.equal((await load.done).ok, 2)
    } else {
      const [events, upgrade] = [await openRaw(t, { port }), await openRaw(t, { port })]
      await events.get('/events?ms=50').response()
      upgrade.send(request('GET', '/', 'Connection: Upgrade', 'Upgrade: echo'))
      await upgrade.ended()
    }
    t.match(await master.told(2), { requests: 2, errors: 0, totalMs: 0, latency: [] })
  }
})

t.test('requests over private connections are not counted', async (t) => {
  const { master, port } = await startWorker(t)
  const client = await openRaw(t, { port })
  for (let asked = 0; asked < 3; asked++) await client.get('/private').response()
  t.equal((await master.told(3)).requests, 3, 'only those from outside')
})

t.test('what blocks the event loop is told', async (t) => {
  const { master, port } = await startWorker(t)
  const client = await openRaw(t, { port })
  const blockMs = 200
  const longest = (): number => master.book.figuresOver(GENERATION, 60_000, performance.now()).loopDelay ?? 0
  // It is watched from its first requests on, while more come.
  await until(
    async () => {
      await client.get(`/block?ms=${blockMs}`).response()
      return longest() >= blockMs - 25
    },
    { timeoutMs: WAIT_MS, what: 'the delay', logs: () => `${longest()} ms` },
  )
  t.ok(longest() >= blockMs - 25, `${longest()} ms`)
})

t.test('a worker that crashes tells first', async (t) => {
  const { master, port } = await startWorker(t)
  const client = await openRaw(t, { port })
  for (let asked = 0; asked < 20; asked++) await client.get('/').response()
  client.get('/crash')
  t.match(await ended(master), 'as asked')
  t.match(master.statistics.at(-1), { requests: 20, errors: 2 })
})

t.test('a worker at rest says nothing, and one told not to count never does', async (t) => {
  const [quiet, off] = [await startWorker(t), await startWorker(t, ['--statistics', 'off'])]
  for (const { port } of [quiet, off]) {
    const client = await openRaw(t, { port })
    await client.get('/').response()
    client.socket.end()
    await client.ended()
  }
  const counted = (worker: WorkerHandle): Promise<unknown> =>
    until(() => worker.counts.requests === 1 && worker.counts.open === 0, {
      timeoutMs: WAIT_MS,
      what: 'its counts',
    })
  await Promise.all([counted(quiet.worker), counted(off.worker)])
  await quiet.master.told(1)
  t.equal(off.master.statistics.length, 0)
  // Two more ticks: a worker sends its counts only when they change, so each is made by a connection.
  for (const accepted of [2, 3]) {
    const client = await openRaw(t, { port: quiet.port })
    await until(() => quiet.worker.counts.accepted === accepted, { timeoutMs: WAIT_MS, what: 'a tick' })
    client.socket.end()
  }
  const idle = quiet.master.statistics.slice(1)
  t.ok(
    idle.every(({ loopDelayMs }) => loopDelayMs >= 20),
    `only of delays: ${JSON.stringify(idle)}`,
  )
})
