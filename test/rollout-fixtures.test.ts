/** The programs of test/fixtures/rollouts do what they are named for, and only that: tests of rollouts rely on it. */
import t from 'tap'
import { get, getJson } from './helpers/http.ts'
import { openRaw } from './helpers/raw-client.ts'
import { start, type TestProcess } from './helpers/spawn.ts'
import { fixture } from './helpers/usr2.ts'
import type { RolloutFixture } from './helpers/deploys.ts'
import type { TestLike } from './helpers/scope.ts'
import { deadline, until } from './helpers/wait.ts'

interface Answer {
  readonly version: string
  readonly slot: number
  readonly keptBytes?: number
  readonly warmedBefore?: readonly string[]
  readonly warmedSince?: number
  readonly probes?: Readonly<Record<string, number>>
}

interface App {
  readonly process: TestProcess
  readonly port: number
  answer(path?: string): Promise<Answer>
  status(path: string): Promise<number>
  /** As usr2 asks. */
  probe(path: string): Promise<void>
  warmUp(path: string): Promise<void>
}

async function appOf(t: TestLike, name: RolloutFixture, env: Record<string, string> = {}): Promise<App> {
  const process = start(t, globalThis.process.execPath, {
    name,
    args: [fixture(`rollouts/${name}.cjs`)],
    env: { PORT: '0', VERSION: '1.2.3', USR2_SLOT: '1', ...env },
  })
  const { text } = await process.line(/^listening \d+$/)
  const port = Number(text.split(' ')[1])
  const askAs = async (agent: string, path: string): Promise<void> => {
    const client = await openRaw(t, { port })
    await client.get(path, `User-Agent: ${agent}\r\nConnection: close`).response()
  }
  return {
    process,
    port,
    answer: (path) => getJson<Answer>({ port }, path),
    status: async (path) => (await get({ port }, path)).status,
    probe: (path) => askAs('usr2-probe/1', path),
    warmUp: (path) => askAs('usr2-warm-up/1', path),
  }
}

const statuses = async ({ status }: App, count: number, path = '/'): Promise<number[]> => {
  const all: number[] = []
  while (all.length < count) all.push(await status(path))
  return all
}

t.test('healthy tells its version and slot, and is ready', async (t) => {
  const app = await appOf(t, 'healthy')
  t.match(await app.answer(), { version: '1.2.3', slot: 1 })
  t.match(await app.answer('/?slow'), { version: '1.2.3' })
  t.equal(await app.status('/healthz'), 200)
})

t.test('slow takes ten times as long, and only when asked for time', async (t) => {
  const app = await appOf(t, 'slow')
  const before = performance.now()
  await app.answer('/?slow')
  t.ok(performance.now() - before >= 190, 'not before its 200 ms')
})

t.test('fails-a-tenth: the tenth of the clients, and no probe counts', async (t) => {
  const app = await appOf(t, 'fails-a-tenth')
  await app.probe('/')
  t.equal(await app.status('/healthz'), 200)
  const once = [...Array<number>(9).fill(200), 500]
  t.same(await statuses(app, 20), [...once, ...once])
})

t.test('ONLY_SLOT: in another slot it behaves', async (t) => {
  const app = await appOf(t, 'fails-a-tenth', { ONLY_SLOT: '0' })
  t.same(await statuses(app, 10), Array(10).fill(200))
})

t.test('leaks so much a request, up to a bound, resident', async (t) => {
  const app = await appOf(t, 'leaks', { LEAK_MB: '3' })
  const kept: unknown[] = []
  for (let at = 0; at < 5; at++) kept.push((await app.answer()).keptBytes)
  const mb = 1024 * 1024
  t.same(kept, [mb, 2 * mb, 3 * mb, 3 * mb, 3 * mb])
})

t.test('blocks after the nth answer, or when asked; that answer arrives', async (t) => {
  for (const [path, env, answers] of [
    ['/', { BLOCK_AFTER: '2' }, 2],
    ['/block', {}, 1],
  ] as const) {
    const app = await appOf(t, 'blocks', env)
    t.same(await statuses(app, answers, path), Array(answers).fill(200))
    await app.process.line('blocks')
    await t.rejects(get({ port: app.port }, '/', 300), /no answer to/)
  }
})

t.test('never-ready answers clients, and 503 as its readiness', async (t) => {
  const app = await appOf(t, 'never-ready')
  t.same(await statuses(app, 3, '/healthz'), [503, 503, 503])
  t.equal(await app.status('/'), 200)
})

t.test('crashes-after its first client, or its start', async (t) => {
  const app = await appOf(t, 'crashes-after', { CRASH_AFTER_MS: '50' })
  await app.probe('/')
  t.equal(await app.status('/'), 200)
  t.equal((await app.process.ended(10_000)).code, 1)
  t.match(app.process.stderr.join('\n'), /Error: crashes, as it was told to/)
  const atBoot = await appOf(t, 'crashes-after', { CRASH_AFTER_MS: '50', CRASH_FROM: 'boot' })
  t.equal((await atBoot.process.ended(10_000)).code, 1)
})

t.test('flaps between ready and not', async (t) => {
  const app = await appOf(t, 'flaps', { FLAP_MS: '100' })
  t.equal(await app.status('/healthz'), 200, 'ready at first')
  for (const wanted of [503, 200, 503]) {
    const has = async (): Promise<boolean> => (await app.status('/healthz')) === wanted
    await until(has, { timeoutMs: 5_000, what: `/healthz to answer ${wanted}` })
  }
  t.equal(await app.status('/'), 200)
})

t.test('probe-counter tells probes from clients', async (t) => {
  const app = await appOf(t, 'probe-counter')
  t.match(await app.answer('/probes'), { probes: {}, clients: 1 })
  for (const path of ['/healthz', '/healthz', '/']) await app.probe(path)
  await app.warmUp('/')
  await app.answer('/healthz')
  t.match(await app.answer('/probes'), { probes: { '/healthz': 2, '/': 1 }, clients: 2 })
})

t.test('warm tells what came before its first client', async (t) => {
  const app = await appOf(t, 'warm')
  for (const path of ['/a', '/b?c']) await app.warmUp(path)
  for (const path of ['/', '/healthz']) await app.probe(path)
  t.match(await app.answer(), { warmedBefore: ['/a', '/b?c'], warmedSince: 0 })
  await app.warmUp('/late')
  t.match(await deadline(app.answer(), 5_000, 'an answer'), { warmedBefore: ['/a', '/b?c'], warmedSince: 1 })
})
