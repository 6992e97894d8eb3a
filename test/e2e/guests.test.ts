/** Real apps, unmodified, reloaded under traffic: nothing fails. Prints a row for each. */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { Traffic } from '../../src/drill/load.ts'
import type { RemoteLoad, RemoteLoadOptions } from '../../src/drill/start-load.ts'
import { getJson } from '../helpers/http.ts'
import { expectNoneFailed, loadUnder } from '../helpers/load.ts'
import { start } from '../helpers/spawn.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { fixture, startUsr2, type Usr2 } from '../helpers/usr2.ts'
import { until } from '../helpers/wait.ts'

const RELOADS = 5

const MIX: readonly Traffic[] = [
  { mode: 'hot', connections: 2 },
  { mode: 'keepalive', connections: 6 },
  { mode: 'new', connections: 2, thinkMs: [2, 6] },
  { mode: 'post', connections: 2, echo: true },
]

const versionOf = (name: string): string =>
  `${name} ${(createRequire(import.meta.url)(`${name}/package.json`) as { version: string }).version}`

/** `traffic` waits until the generation that was just promoted has had its share. */
async function reloads(usr2: Usr2, traffic: (generation: number) => unknown = () => {}): Promise<void> {
  for (let reload = 0; reload < RELOADS; reload++) {
    const from = usr2.process.lines.length
    usr2.signal('SIGUSR2')
    const { text } = await usr2.process.line(/"event":"(promoted|rolled-back|refused)"/, {
      from,
      timeoutMs: 30_000,
    })
    if (!text.includes('"event":"promoted"')) throw new Error(text)
    await traffic(reload + 2)
  }
}

function row(t: Test, name: string, requests: number, failed: number, more = ''): void {
  t.comment(`${name.padEnd(28)} ${String(requests).padStart(6)} requests, ${failed} failed ${more}`)
}

// Each of them waits much for its own processes.
t.jobs = 3
const guest = (name: string, test: (t: Test) => Promise<void>) => t.test(name, { buffered: true }, test)

interface PlainGuest {
  readonly file: string
  readonly package?: string
}
const plain: Record<string, PlainGuest> = {
  'http, CommonJS': { file: 'http-app.cjs' },
  'http, ES module': { file: 'http-app.mjs' },
  Express: { file: 'guests/express.cjs', package: 'express' },
  Fastify: { file: 'guests/fastify.mjs', package: 'fastify' },
  Koa: { file: 'guests/koa.cjs', package: 'koa' },
  'one port and a private one': { file: 'guests/private-and-public.cjs' },
}

for (const [name, { file, package: from }] of Object.entries(plain)) {
  guest(name, async (t) => {
    const port = await freePort(t)
    // Some of them listen on `localhost`, which is ::1 on some machines.
    await underLoad(
      t,
      name,
      { file, env: { PORT: String(port) }, loads: [{ target: { port, host: 'localhost' }, traffic: MIX }] },
      from,
    )
  })
}

guest('two ports', async (t) => {
  const [port, admin] = [await freePort(t), await freePort(t)]
  const loads = [port, admin].map((port) => ({ target: { port }, traffic: MIX }))
  await underLoad(t, 'two ports', {
    file: 'guests/two-ports.cjs',
    env: { PORT: String(port), ADMIN_PORT: String(admin) },
    loads,
  })
})

guest('a unix socket', async (t) => {
  const path = join(shortTmp(t), 'app.sock')
  const loads = [{ target: { path }, traffic: MIX }]
  await underLoad(t, 'a unix socket', { file: 'http-app.cjs', env: { PORT: path }, loads })
})

async function more(load: RemoteLoad): Promise<void> {
  const { ok } = await load.snapshot()
  const enough = async () => (await load.snapshot()).ok > ok + 100
  await until(enough, { timeoutMs: 20_000, what: '100 more answers' })
}

interface Guest {
  readonly file: string
  readonly env: Record<string, string>
  readonly loads: readonly RemoteLoadOptions[]
}

async function underLoad(t: Test, name: string, { file, env, loads }: Guest, from?: string): Promise<void> {
  const usr2 = startUsr2(t, { fixture: file, env })
  await usr2.ready()
  const running = await Promise.all(loads.map((load) => loadUnder(t, { ...load, versionOf: 'generation' })))
  await reloads(usr2, () => Promise.all(running.map((load) => more(load))))
  for (const load of running) {
    const result = await load.stop()
    row(t, name, result.requests, result.failed, from === undefined ? '' : `(${versionOf(from)})`)
    expectNoneFailed(t, result)
    t.ok(
      Object.keys(result.versions).length >= RELOADS,
      `answers of ${Object.keys(result.versions).length} generations`,
    )
  }
  await usr2.stop()
}

for (const [name, file] of [
  ['https', 'guests/https.cjs'],
  ['http2 with allowHTTP1', 'guests/http2-with-http1.cjs'],
] as const) {
  guest(name, async (t) => {
    const port = await freePort(t)
    const usr2 = startUsr2(t, { fixture: file, env: { PORT: String(port) } })
    await usr2.ready()
    const load = start(t, process.execPath, {
      name: 'tls-load',
      args: [fixture('tls-load.mjs'), String(port)],
    })
    await load.line('generation 1')
    await reloads(usr2, (generation) => load.line(`generation ${generation}`))
    load.stdin.end()
    const { text } = await load.line(/^\{/, { timeoutMs: 20_000 })
    await load.ended()
    const result = JSON.parse(text) as {
      requests: number
      failed: number
      failures: object
      generations: object
    }
    row(t, `${name} (HTTP/1.1 clients)`, result.requests, result.failed)
    t.same(result.failures, {})
    t.ok(result.requests > 0, `${result.requests} requests`)
    t.equal(Object.keys(result.generations).length, RELOADS + 1, 'answers of every generation')
    await usr2.stop()
  })
}

guest('a private port only', async (t) => {
  const registry = join(shortTmp(t), 'port')
  const usr2 = startUsr2(t, { fixture: 'guests/private-port.cjs', env: { REGISTRY: registry } })
  await usr2.ready()
  let stopped = false
  const seen = new Set<string>()
  const failures: string[] = []
  let requests = 0
  const lane = async (path: string) => {
    while (!stopped) {
      requests++
      const port = Number(readFileSync(registry, 'utf8'))
      await getJson<{ generation: string }>({ port }, path).then(
        ({ generation }) => seen.add(generation),
        (error: Error) => failures.push(error.message),
      )
    }
  }
  const lanes = ['/', '/', '/slow?ms=150', '/slow?ms=700'].map(lane)
  await reloads(usr2)
  stopped = true
  await Promise.all(lanes)
  row(t, 'a private port only', requests, failures.length)
  t.same(failures, [])
  t.ok(seen.size >= RELOADS, `answers of ${seen.size} generations`)
  await usr2.stop()
})

guest('a queue worker without listeners', async (t) => {
  const queue = shortTmp(t)
  for (const name of ['new', 'taken']) mkdirSync(join(queue, name))
  writeFileSync(join(queue, 'done'), '')
  const usr2 = startUsr2(t, {
    fixture: 'guests/jobs.cjs',
    flags: ['--ready', 'message', '--workers', '2'],
    env: { QUEUE: queue },
  })
  await usr2.ready()
  let fed = 0
  const feeding = setInterval(() => writeFileSync(join(queue, 'new', String(++fed)), ''), 8)
  await reloads(usr2)
  clearInterval(feeding)
  // A stop loses none of what was taken, either.
  await usr2.stop()
  const done = readFileSync(join(queue, 'done'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => line.split(' '))
  const left = readdirSync(join(queue, 'new'))
  row(
    t,
    'a queue worker',
    fed,
    readdirSync(join(queue, 'taken')).length,
    `(${done.length} jobs done, ${left.length} never taken)`,
  )
  t.same(readdirSync(join(queue, 'taken')), [], 'no job that was taken was left undone')
  t.equal(new Set(done.map(([job]) => job)).size, done.length, 'none was done twice')
  t.equal(done.length + left.length, fed, 'none was lost')
  t.ok(new Set(done.map(([, generation]) => generation)).size >= RELOADS, 'every generation worked')
})
