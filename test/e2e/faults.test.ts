/**
 * The fault table: what clients and apps do to a drain. In each row other clients are at work from before the reload
 * until after it, and lose nothing; the drain ends as it must, and its verdict counts and names who lost something.
 */
import t from 'tap'
import type { Test } from 'tap'
import type { Ledger } from '../../src/master/figures/ledger.ts'
import { expectNoneFailed, loadUnder, untilServed } from '../helpers/load.ts'
import { openRaw, request, type RawClient } from '../helpers/raw-client.ts'
import { freePort } from '../helpers/tmp.ts'
import { startUsr2, type Usr2 } from '../helpers/usr2.ts'

interface App {
  readonly usr2: Usr2
  readonly port: number
  open(): Promise<RawClient>
  /** The app has said so, or will. */
  said(what: string): Promise<unknown>
}

interface Named {
  readonly what: string
  readonly method?: string
  readonly path?: string
}

type BadEnds = Pick<Ledger['connections'], 'cut' | 'reset' | 'crashed' | 'other' | 'open'>
type BadOutcomes = Pick<Ledger['requests'], 'cut' | 'aborted' | 'crashed' | 'active'>

interface Row {
  readonly env?: Readonly<Record<string, string>>
  readonly flags?: readonly string[]
  /** Before the reload; gives what the drain will meet. */
  before?(app: App, t: Test): Promise<RawClient[]>
  /** After the old generation was told to drain. */
  during?(app: App, clients: readonly RawClient[], t: Test): Promise<unknown>
  /** When `usr2 reload --wait drained` has ended. */
  after?(app: App, clients: readonly RawClient[], t: Test): Promise<unknown>
  /** Who loses something by the end of the drain, and by which one. */
  readonly loses?: { readonly by: 'cut' | 'died-draining'; readonly named: readonly Named[] }
  /** What the ledger has of bad ends; all others are 0. */
  readonly ledger?: { readonly connections?: Partial<BadEnds>; readonly requests?: Partial<BadOutcomes> }
  /** What the log must say of it. Nothing else is warned of. */
  readonly warns?: readonly RegExp[]
}

/** Enough of each kind that something of it is in flight at any moment. */
const OTHERS = [
  { mode: 'hot', connections: 2 },
  { mode: 'keepalive', connections: 4, thinkMs: [0, 10] },
  { mode: 'new', connections: 1, thinkMs: [0, 5] },
  { mode: 'post', connections: 1, thinkMs: [0, 10], echo: true },
] as const

/** A drain that somebody holds to its end: short. */
const SHORT = { env: { KEEP_ALIVE_MS: '100' }, flags: ['--drain-timeout', '2500ms'] }

function fault(name: string, row: Row): void {
  t.test(name, async (t) => {
    const port = await freePort(t)
    const env = { PORT: String(port), ...row.env }
    const usr2 = startUsr2(t, { fixture: 'faults.cjs', flags: row.flags, env })
    await usr2.ready()
    const app: App = {
      usr2,
      port,
      open: () => openRaw(t, { port }),
      said: (what) => usr2.process.line(({ text }) => text === what, { what, timeoutMs: 20_000 }),
    }
    const load = await loadUnder(t, { target: { port }, traffic: OTHERS, versionOf: 'generation' })
    await untilServed(load, '1')
    const clients = (await row.before?.(app, t)) ?? []
    const reload = usr2.reload({ flags: ['--wait', 'drained'] })
    await app.said('draining')
    await row.during?.(app, clients, t)

    const { code, stdout, stderr } = await reload
    t.equal(code, 0, `promoted; ${stderr}`)
    t.match(stdout, /generation 1 has ended: /, 'the verdict comes when it has')
    const ends = usr2.events().filter(({ event }) => event === 'cut' || event === 'died-draining')
    t.same(
      ends.map(({ event }) => event),
      row.loses ? [row.loses.by] : [],
      'how the drain ended',
    )
    t.same(
      ends.flatMap(({ held }) => (held as Named[]).map(nameOf)).sort(),
      row.loses?.named.map(nameOf).sort() ?? [],
      'who lost something',
    )
    expectLedger(t, ledgerOf(usr2), row.ledger)
    await row.after?.(app, clients, t)
    await untilServed(load, '2')
    expectNoneFailed(t, await load.stop())
    const warned = usr2.events().flatMap(({ event, msg }) => (event === 'worker-warning' ? [msg] : []))
    t.match(warned, row.warns ?? [])
    t.equal(warned.length, row.warns?.length ?? 0, 'nothing else is wrong')
    await usr2.stop()
  })
}

/** Of the first generation. */
function ledgerOf(usr2: Usr2): Ledger {
  const drained = usr2.events().find(({ event, generation }) => event === 'drained' && generation === 1)
  return drained?.['ledger'] as Ledger
}

function expectLedger(t: Test, { connections, requests }: Ledger, bad: Row['ledger']): void {
  const { cut, reset, crashed, other, open } = connections
  const noEnds: BadEnds = { cut: 0, reset: 0, crashed: 0, other: 0, open: 0 }
  t.same(
    { cut, reset, crashed, other, open },
    { ...noEnds, ...bad?.connections },
    'connections that end badly',
  )
  const { cut: requestsCut, aborted, crashed: requestsCrashed, active } = requests
  const noOutcomes: BadOutcomes = { cut: 0, aborted: 0, crashed: 0, active: 0 }
  t.same(
    { cut: requestsCut, aborted, crashed: requestsCrashed, active },
    { ...noOutcomes, ...bad?.requests },
    'requests that end badly',
  )
  const { accepted, ...ends } = connections
  t.equal(sum(ends), accepted, 'each connection in one place')
  const { begun, ...outcomes } = requests
  t.equal(sum(outcomes), begun, 'each request in one place')
}

const sum = (counts: Readonly<Record<string, number>>): number =>
  Object.values(counts).reduce((a, b) => a + b, 0)

const nameOf = ({ what, method = '', path = '' }: Named): string => `${what} ${method} ${path}`

/** A connection that was answered once. */
async function openIdle(app: App): Promise<RawClient> {
  const client = await app.open()
  await client.get('/').response()
  return client
}

async function ask(app: App, path: string): Promise<RawClient> {
  const client = await app.open()
  client.get(path)
  await app.said(`got ${path.split('?')[0] ?? ''}`)
  return client
}

/** The answer, which says that the connection ends, or else the next one does. */
async function answeredAndClosed(t: Test, client: RawClient | undefined, body: string): Promise<void> {
  const answer = await client?.response()
  t.equal(answer?.body, body)
  const last = answer?.headers['connection'] === 'close' ? answer : await client?.get('/').response()
  t.equal(last?.headers['connection'], 'close', body)
  t.equal(await client?.ended(), 'FIN', body)
}

/** Until nobody else is left whom the end of this worker could hurt. */
const alone = (app: App, clients: readonly RawClient[]) => app.said(`left ${clients.length}`)

fault('a client half-closes while it waits: Node ends the connection, which is no cut', {
  before: async (app) => [
    await ask(app, '/held?ms=200'),
    await ask(app, '/held?ms=200'),
    await openIdle(app),
  ],
  async during(_, clients, t) {
    for (const { socket } of clients) socket.end()
    for (const client of clients) t.equal(await client.ended(), 'FIN')
  },
  ledger: { requests: { aborted: 2 } },
})

fault('a client half-closes before and after the drain order, and the app allows it: it is answered', {
  env: { HALF_OPEN: '1' },
  async before(app) {
    const [before, after] = [await ask(app, '/held?ms=200'), await ask(app, '/held?ms=200')]
    before.socket.end()
    return [before, after]
  },
  async during(_, clients, t) {
    clients[1]?.socket.end()
    for (const client of clients) {
      t.equal((await client.response()).body, '/held?ms=200')
      t.equal(await client.ended(), 'FIN')
    }
  },
})

fault('a client vanishes (RST) in the midst of its response, of its request, and while it waits', {
  async before(app) {
    const [reading, waiting, uploading] = [
      await ask(app, '/big?mb=64'),
      await ask(app, '/later?ms=60000'),
      await app.open(),
    ]
    uploading.send(`${request('POST', '/upload', 'Content-Length: 10')}12345`)
    await reading.until(() => reading.rest.length > 1024 * 1024, 'the first MiB')
    reading.socket.pause()
    await app.said('body 5')
    return [reading, waiting, uploading, await openIdle(app)]
  },
  async during(app, clients) {
    for (const { socket } of clients) socket.resetAndDestroy()
    // Not at the deadline.
    await app.said('left 0')
  },
  ledger: { connections: { reset: 4 }, requests: { aborted: 3 } },
})

fault('a body never arrives', {
  ...SHORT,
  async before(app) {
    const client = await app.open()
    client.send(`${request('POST', '/upload', 'Content-Length: 10')}12345`)
    await app.said('body 5')
    return [client]
  },
  loses: { by: 'cut', named: [{ what: 'request', method: 'POST', path: '/upload' }] },
  ledger: { connections: { cut: 1 }, requests: { cut: 1 } },
  after: async (_, [client], t) => t.equal(client?.rest, '', 'nothing that could pass for a response'),
})

fault('a response is never read', {
  ...SHORT,
  async before(app) {
    const client = await app.open()
    client.socket.pause()
    client.get('/big?mb=64')
    await app.said('got /big')
    return [client]
  },
  loses: { by: 'cut', named: [{ what: 'request', method: 'GET', path: '/big' }] },
  ledger: { connections: { cut: 1 }, requests: { cut: 1 } },
  async after(_, [client], t) {
    client?.socket.resume()
    t.not(await client?.ended(), null)
    t.ok((client?.rest.length ?? 0) < 64 * 1024 * 1024, 'its client sees that it is not whole')
  },
})

for (const [path, what] of [
  ['/throw', 'throws in a handler'],
  ['/exit', 'exits'],
] as const) {
  fault(`the app ${what} while draining: what it held is told`, {
    before: async (app) => [await ask(app, '/later?ms=60000'), await openIdle(app)],
    async during(app, clients, t) {
      await alone(app, clients)
      clients[1]?.get(path)
      await Promise.all(clients.map((client) => client.ended()))
      t.equal(clients[0]?.rest, '', 'no half response')
    },
    loses: {
      by: 'died-draining',
      named: [
        { what: 'request', method: 'GET', path: '/later' },
        { what: 'request', method: 'GET', path },
      ],
    },
    ledger: { connections: { crashed: 2 }, requests: { crashed: 2 } },
  })
}

for (const [how, ON_DRAIN] of [
  ['closes its server when it is told of the drain', '/close'],
  ['calls process.disconnect() when it is told of the drain', '/disconnect'],
] as const) {
  fault(`the app ${how}`, {
    env: { ON_DRAIN },
    before: async (app) => [await ask(app, '/held?ms=200'), await openIdle(app)],
    async during(_, [waiting, idle], t) {
      t.equal((await idle?.get('/later?ms=1').response())?.body, '/later?ms=1', 'idle: answered')
      t.equal((await waiting?.response())?.body, '/held?ms=200', 'in flight: answered')
      for (const client of [waiting, idle]) t.equal(await client?.ended(), 'FIN')
    },
  })
}

fault('the app calls process.disconnect() while it serves', {
  async before(app, t) {
    const client = await app.open()
    t.equal((await client.get('/disconnect').response()).status, 200)
    t.equal((await client.get('/later?ms=1').response()).status, 200, 'it serves on')
    return [client]
  },
  async during(_, [client], t) {
    t.equal((await client?.get('/').response())?.headers['connection'], 'close', 'and hears of the drain')
  },
})

fault('the app closes its server, while draining, in a handler', {
  before: async (app) => [await openIdle(app), await ask(app, '/held?ms=200')],
  async during(app, [closing, waiting], t) {
    t.equal((await closing?.get('/close').response())?.body, '/close')
    t.equal((await waiting?.response())?.body, '/held?ms=200')
    await app.said('closed')
  },
})

fault('the app listens again, while draining, on the same port', {
  env: { ON_DRAIN: '/relisten' },
  before: async (app) => [await ask(app, '/held?ms=200')],
  async during(app, [waiting], t) {
    await app.said(`listening ${app.port}`)
    t.equal((await waiting?.response())?.body, '/held?ms=200')
  },
})

fault('the app listens, while draining, with a second server on the same port', {
  before: async (app) => [await openIdle(app), await ask(app, '/held?ms=200')],
  async during(app, [asking, waiting], t) {
    asking?.get(`/listen?port=${app.port}`)
    await app.said('refused EADDRINUSE')
    t.equal((await waiting?.response())?.body, '/held?ms=200')
  },
})

fault('the app listens, while draining, on another port', {
  before: async (app) => [await openIdle(app), await ask(app, '/held?ms=200')],
  async during(app, [asking, waiting], t) {
    const port = await freePort(t)
    asking?.get(`/listen?port=${port}`)
    await app.said(`listening ${port}`)
    t.equal((await waiting?.response())?.body, '/held?ms=200')
  },
  async after({ usr2, port }, _, t) {
    const { listeners } = await usr2.status()
    t.same(
      listeners.map(({ key }) => key),
      [`tcp:127.0.0.1:${port}`],
      'the master holds nothing for a worker that is gone',
    )
  },
})

fault('the event loop is blocked for 3 s at the moment of the drain order', {
  async before(app) {
    const [idle, uploading] = [await openIdle(app), await app.open()]
    uploading.send(`${request('POST', '/upload', 'Content-Length: 10')}12345`)
    await app.said('body 5')
    // Before the reload is asked for, which boots a candidate meanwhile: the order comes into the block.
    const blocking = await ask(app, '/block?ms=3000')
    idle.get('/later?ms=1')
    uploading.send('67890')
    return [blocking, idle, uploading]
  },
  async during(_, [blocking, idle, uploading], t) {
    await answeredAndClosed(t, blocking, '/block?ms=3000')
    await answeredAndClosed(t, idle, '/later?ms=1')
    await answeredAndClosed(t, uploading, '10')
  },
})
