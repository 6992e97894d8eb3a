/** A reload, as the people who ask for it and the clients of the app see it (DESIGN sections 4 and 5). */
import { rmSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import t from 'tap'
import type { Test } from 'tap'
import type { Traffic } from '../../src/drill/load.ts'
import { expectNoneFailed, loadUnder, untilServed } from '../helpers/load.ts'
import { openRaw } from '../helpers/raw-client.ts'
import { type Finished, start, type TestProcess } from '../helpers/spawn.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { CLI, deploy, startUsr2, type Usr2, type Usr2Options } from '../helpers/usr2.ts'
import { deadline, until } from '../helpers/wait.ts'

/** As the peers were measured, with shorter waits. */
const MIX: readonly Traffic[] = [
  { mode: 'new', connections: 4, thinkMs: [2, 6] },
  { mode: 'keepalive', connections: 16, thinkMs: [5, 15] },
  { mode: 'hot', connections: 4 },
  { mode: 'pipelined', connections: 2 },
  { mode: 'post', connections: 2, thinkMs: [5, 15], echo: true },
  { mode: 'slow', connections: 4, path: '/slow?ms=400' },
  { mode: 'stream', connections: 4, path: '/stream?ms=600' },
]
const LIGHT: readonly Traffic[] = [
  { mode: 'new', connections: 2, thinkMs: [2, 6] },
  { mode: 'keepalive', connections: 4, thinkMs: [5, 15] },
  { mode: 'hot', connections: 1 },
]

const codeOf = ({ code }: Pick<Finished, 'code'>) => code
const timeOf = (event: { readonly [key: string]: unknown }): number => Date.parse(String(event['time']))

t.test('SIGUSR2, SIGHUP and usr2 reload, under a mix of traffic', async (t) => {
  const port = await freePort(t)
  const root = shortTmp(t)
  const current = deploy(root, '1', { fixture: 'http-app.cjs' })
  const usr2 = startUsr2(t, {
    entry: join(current, 'http-app.cjs'),
    cwd: root,
    // The reloads follow each other faster than the streams end.
    flags: ['--workers', '2', '--max-draining', '10'],
    env: { PORT: String(port), BOOT_MS: '100' },
  })
  await usr2.ready()
  const load = await loadUnder(t, { target: { port }, traffic: MIX, versionOf: 'generation' })
  await untilServed(load, '1')
  const byCommand = async () => {
    const next = usr2.events().filter(({ event }) => event === 'promoted').length + 2
    const { verdict } = await askInLine(t, usr2)
    t.match(await verdict(), { outcome: 'promoted', current: next })
    const bodies = Array.from({ length: 8 }, async () => {
      const client = await openRaw(t, { port })
      return JSON.parse((await client.get('/', 'Connection: close').response()).body) as unknown
    })
    const one = { generation: String(next), version: String(next) }
    t.match(
      await Promise.all(bodies),
      Array(8).fill(one),
      'connections made after the verdict: the new version',
    )
  }
  const ways: readonly (() => unknown)[] = [
    () => usr2.signal('SIGUSR2'),
    () => usr2.signal('SIGHUP'),
    byCommand,
    () => usr2.signal('SIGUSR2'),
    () => usr2.signal('SIGHUP'),
    byCommand,
  ]
  for (const [i, ask] of ways.entries()) {
    deploy(root, String(i + 2), { fixture: 'http-app.cjs' })
    const from = usr2.process.lines.length
    await ask()
    const promoted = await usr2.event('promoted', { from, timeoutMs: 30_000 })
    t.equal(promoted.generation, i + 2)
    await untilServed(load, String(i + 2))
  }
  const result = await load.stop()
  expectNoneFailed(t, result)
  const generations = ways.map((_, i) => i + 2)
  t.same(Object.keys(result.versions).map(Number).sort(), [1, ...generations])
  for (const generation of generations) {
    const ready = usr2
      .events()
      .filter((line) => line.event === 'worker-ready' && line.generation === generation)
    t.equal(ready.length, 2)
    const first = result.versions[generation]?.firstAtMs ?? 0
    // Our clock, the load client's and the master's are the same but for fractions of a millisecond.
    t.ok(
      first > Math.max(...ready.map(timeOf)) - 2,
      `generation ${generation} answers only when all of it is ready`,
    )
  }
  await usr2.stop()
})

t.test('whole candidate ready, then all grants', async (t) => {
  const { usr2, port, openGate } = await startGated(t, {
    flags: ['--workers', '2'],
    env: { GATED_SLOT: '1' },
  })
  const load = await loadUnder(t, { target: { port }, traffic: LIGHT, versionOf: 'generation' })
  await untilServed(load, '1')
  const client = ask(t, usr2)
  await usr2.event('worker-ready', { from: await lineOf(usr2, 'candidate') })
  // Slot 0 of the candidate is ready and slot 1 is not.
  const before = (await load.snapshot()).requests
  await until(async () => (await load.snapshot()).requests > before + 200, {
    timeoutMs: 20_000,
    what: '200 answers',
  })
  t.same(Object.keys((await load.snapshot()).versions), ['1'], 'half a candidate answers nobody')
  openGate()
  t.equal((await client.exited).code, 0)
  await untilServed(load, '2')
  load.mark('after')
  const settled = (await load.snapshot()).requests
  await until(async () => (await load.snapshot()).requests > settled + 200, {
    timeoutMs: 20_000,
    what: '200 answers',
  })
  const result = await load.stop()
  expectNoneFailed(t, result)
  await usr2.stop()
})

t.test('the verdict comes when the old generation accepts no more', async (t) => {
  const { usr2, openGate } = await startGated(t)
  const { generations } = await usr2.status()
  const pid = generations[0]?.workers[0]?.pid ?? 0
  const asked = await askInLine(t, usr2)
  await usr2.process.line('waits')
  // So busy that it does not hear of its replacement.
  process.kill(pid, 'SIGSTOP')
  openGate()
  await usr2.event('promoted')
  const verdict = asked.verdict()
  const first = await Promise.race([verdict.then(() => 'verdict'), usr2.status().then(() => 'status')])
  t.equal(first, 'status', 'it may still accept')
  process.kill(pid, 'SIGCONT')
  t.match(await verdict, { outcome: 'promoted', current: 2 })
  await usr2.stop()
})

t.test('usr2 reload tells its progress and the verdict', async (t) => {
  const { usr2, openGate } = await startGated(t, { flags: ['--workers', '2'] })
  openGate()
  const { code, stdout, stderr } = await usr2.reload({ flags: ['--wait', 'drained'] })
  t.equal(code, 0)
  t.equal(stderr, '')
  t.match(stdout.split('\n'), [
    /^generation 2: starting 2 workers of .*gated\.cjs$/,
    /^generation 2: 1 of 2 workers ready$/,
    /^generation 2: 2 of 2 workers ready$/,
    /^generation 2: every worker is ready; handing over the listeners$/,
    /^generation 1 -> 2 in [\d.]+ m?s: .*gated\.cjs/,
    /^generation 1 has ended: 0 connections: 0 cut; 0 requests: 0 completed during the drain, 0 cut$/,
  ])
  const json = await usr2.reload({ flags: ['--json', '--wait', 'drained'] })
  const lines = json.stdout.split('\n').map((line) => JSON.parse(line) as Record<string, unknown>)
  t.match(lines.at(-2), { verdict: { outcome: 'promoted', current: 3, reasons: [] } })
  t.match(lines.at(-1), {
    drained: {
      generation: 2,
      ledger: { connections: { accepted: 0, cut: 0 }, requests: { begun: 0 } },
    },
  })
  t.ok(lines.slice(0, -2).every((line) => 'progress' in line))
  await usr2.stop()
  const { code: lost, stderr: why } = await usr2.reload()
  t.equal(lost, 3, 'no master answers')
  t.match(why, /No usr2 master answers/)
})

t.test('a reload whose time is over, or whose client is told to end, is aborted', async (t) => {
  const { usr2, port, serving } = await startGated(t)
  const load = await loadUnder(t, { target: { port }, traffic: LIGHT })

  const late = await usr2.reload({ flags: ['--timeout', '500ms'] })
  t.equal(late.code, 1)
  t.match(late.stderr, /the reload was ended after .*: --timeout 500ms expired/)
  t.match(await usr2.event('overtaken'), { generation: 2, reasons: ['--timeout 500ms expired'] })
  await serving(1)

  const terminated = ask(t, usr2)
  await terminated.line('starting')
  terminated.kill('SIGTERM')
  t.same(codeOf(await terminated.exited), 143)
  t.match(terminated.stderr.join('\n'), /the client that asked for it got SIGTERM/)
  await serving(1)

  expectNoneFailed(t, await load.stop())
  await usr2.stop()
})

t.test('a client that goes away changes nothing', async (t) => {
  const { usr2, openGate, closeGate, serving } = await startGated(t)

  const interrupted = ask(t, usr2)
  await interrupted.line('starting')
  interrupted.kill('SIGINT')
  t.same(codeOf(await interrupted.exited), 130, 'Ctrl-C detaches')
  t.match(interrupted.stderr.join('\n'), /the rollout goes on. To follow it: usr2 status --control/)
  openGate()
  t.match(await usr2.event('promoted'), { generation: 2 })
  await serving(2)

  closeGate()
  const from = usr2.process.lines.length
  const killed = ask(t, usr2)
  await killed.line('starting')
  killed.kill('SIGKILL')
  await killed.exited
  openGate()
  t.match(await usr2.event('promoted', { from }), { generation: 3 })
  await serving(3)

  const [one, two] = await Promise.all([usr2.reload(), usr2.reload()])
  for (const { code, stdout } of [one, two]) {
    t.equal(code, 0)
    t.match(stdout, /generation \d+ -> \d+ in /, 'two at once both get a verdict')
  }
  await usr2.stop()
})

t.test('reloads asked for meanwhile become one more, and all who asked get its verdict', async (t) => {
  const { usr2, openGate, serving } = await startGated(t)
  const first = ask(t, usr2)
  await first.line('starting')
  const later = await Promise.all([askInLine(t, usr2), askInLine(t, usr2), askInLine(t, usr2)])
  const from = usr2.process.lines.length
  usr2.signal('SIGUSR2')
  await usr2.event('signal', { from })
  openGate()
  t.same(codeOf(await first.exited), 0)
  t.match(first.stdout.join('\n'), /generation 1 -> 2 in/)
  for (const { verdict } of later) t.match(await verdict(), { outcome: 'promoted', current: 3 })
  await serving(3)
  t.equal(usr2.events().filter(({ event }) => event === 'reload').length, 2)
  await usr2.stop()
})

t.test('200 signals in a burst end in at most two further generations', async (t) => {
  const { usr2, port, openGate } = await startGated(t)
  const load = await loadUnder(t, { target: { port }, traffic: LIGHT, versionOf: 'generation' })
  await untilServed(load, '1')
  for (let i = 0; i < 100; i++) {
    usr2.signal('SIGUSR2')
    usr2.signal('SIGHUP')
  }
  t.equal((await usr2.status()).state, 'rolling-out')
  openGate()
  const steady = async () => (await usr2.status()).state === 'steady'
  await until(steady, { timeoutMs: 20_000, what: 'the last of the reloads', logs: () => usr2.logs() })
  const further = usr2.events().filter(({ event }) => event === 'promoted')
  t.match(further, [{ generation: 2 }, { generation: 3 }])
  expectNoneFailed(t, await load.stop())
  await usr2.stop()
})

t.test('a broken candidate is rolled back, in its own words, and nobody notices', async (t) => {
  const broken: readonly (readonly [how: string, words: RegExp])[] = [
    [
      'throws at once',
      /slot 0 \(pid \d+\) exited with status 1: TypeError: no database url \(at .*broken\.cjs:\d+:\d+\)/,
    ],
    ['prints and exits', /slot 0 \(pid \d+\) exited with status 7: config\.json: missing "port"/],
    ['throws later', /slot 0 \(pid \d+\) exited with status 1: Error: thrown later/],
    ['rejects', /slot 0 \(pid \d+\) exited with status 1: Error: could not connect to postgres/],
    ['exits 0', /slot 0 \(pid \d+\) exited with status 0/],
    ['ends by itself', /slot 0 \(pid \d+\) exited with status 0/],
    ['hangs', /slot \d did not listen on tcp:127\.0\.0\.1:\d+ within the start timeout of 2 s/],
    ['listens elsewhere', /slot \d did not listen on tcp:127\.0\.0\.1:\d+ within the start timeout of 2 s/],
    ['throws after listening', /slot 0 \(pid \d+\) exited with status 1: Error: thrown after listening/],
    ['exits 0 after listening', /slot 0 \(pid \d+\) exited with status 0/],
    ['is killed', /slot 0 \(pid \d+\) was killed by SIGKILL/],
  ]
  // What is broken is in the env file, which every reload reads anew.
  const port = await freePort(t)
  const otherPort = await freePort(t)
  const envFile = join(shortTmp(t), 'env')
  writeFileSync(envFile, '')
  const usr2 = startUsr2(t, {
    fixture: 'broken.cjs',
    flags: ['--workers', '2', '--start-timeout', '2s', '--env-file', envFile],
    env: { PORT: String(port), OTHER_PORT: String(otherPort) },
  })
  await usr2.ready()
  const load = await loadUnder(t, { target: { port }, traffic: LIGHT, versionOf: 'generation' })
  await untilServed(load, '1')
  for (const [how, words] of broken) {
    writeFileSync(envFile, `HOW="${how}"\n`)
    const from = usr2.process.lines.length
    const { code, stderr } = await usr2.reload()
    t.equal(code, 1, how)
    t.match(stderr, /generation \d+ was rolled back after .*, generation 1 serves on: /, how)
    t.match(stderr, words, how)
    t.match((await usr2.event('rolled-back', { from })).reasons, [words])
  }
  writeFileSync(envFile, '')
  t.equal((await usr2.reload()).code, 0, 'the next one is whole again')
  const last = String(broken.length + 2)
  await untilServed(load, last)
  const result = await load.stop()
  expectNoneFailed(t, result)
  t.same(Object.keys(result.versions).sort(), ['1', last].sort(), 'the broken ones answered nobody')
  await usr2.stop()
})

t.test('an app says itself that it is ready; it needs no listener', async (t) => {
  await t.test('a queue worker, by process.send, by require and by import', async (t) => {
    const tmp = shortTmp(t)
    const [gate, envFile] = [join(tmp, 'gate'), join(tmp, 'env')]
    writeFileSync(envFile, 'HOW=message\n')
    const usr2 = startUsr2(t, {
      fixture: 'queue-worker.cjs',
      flags: ['--ready', 'message', '--start-timeout', '20s', '--env-file', envFile],
      env: { GATE: gate },
    })
    await usr2.ready()
    await usr2.process.line(/^done 1 1$/)
    for (const [i, how] of ['cjs', 'esm', 'message'].entries()) {
      const old = i + 1
      writeFileSync(envFile, `HOW=${how}\n`)
      const client = ask(t, usr2, ['--wait', 'drained'])
      await client.line('starting')
      const from = usr2.process.lines.length
      await usr2.process.line(new RegExp(`^done ${old} `), { from })
      t.notOk(
        client.stdout.some((line) => line.includes('->')),
        `${how}: alive and not ready, the old one works on`,
      )
      writeFileSync(gate, '')
      t.equal((await client.exited).code, 0, how)
      await usr2.process.line(`done ${old + 1} 1`)
      t.ok(usr2.process.stdout.includes(`last job of ${old}`), 'the old one has finished its job')
      rmSync(gate)
    }
    const late = await usr2.reload({ flags: ['--timeout', '500ms'] })
    t.equal(late.code, 1)
    await usr2.stop()
    t.ok(usr2.process.stdout.includes('last job of 4'))
  })
  await t.test('one that never says so', async (t) => {
    const usr2 = startUsr2(t, {
      files: {
        'app.js': `process.env.USR2_GENERATION === '1' && process.send('ready'); setInterval(() => {}, 1000)`,
      },
      entry: 'app.js',
      flags: ['--ready', 'message', '--start-timeout', '500ms'],
    })
    await usr2.ready()
    const { code, stderr } = await usr2.reload()
    t.equal(code, 1)
    t.match(stderr, /slot 0 did not say that it is ready within the start timeout of 0\.5 s/)
    await usr2.stop()
  })
})

t.test('each reload reads the config anew: 1, 3, 2 workers; options of Node', async (t) => {
  const port = await freePort(t)
  const root = shortTmp(t)
  const config = join(root, 'usr2.json')
  const write = (keys: object) => writeFileSync(config, JSON.stringify(keys))
  write({ workers: 1, nodeArgs: [] })
  const usr2 = startUsr2(t, {
    files: {
      'app.js': `require('node:http')
        .createServer((req, res) => res.end(JSON.stringify({ args: process.execArgv, of: process.env.USR2_WORKERS })))
        .listen(${port}, '127.0.0.1')`,
    },
    entry: 'app.js',
    flags: ['--config', config],
  })
  await usr2.ready()
  const load = await loadUnder(t, { target: { port }, traffic: LIGHT })
  const look = async () => {
    const { generations, slots, ready } = await usr2.status()
    const current = generations.find(({ role }) => role === 'current')
    const [client] = await Promise.all([openRaw(t, { port })])
    const { body } = await client.get('/', 'Connection: close').response()
    return { workers: current?.workers.length, slots, ready, ...(JSON.parse(body) as object) }
  }
  t.match(await look(), { workers: 1, slots: 1, ready: 1, args: [], of: '1' })
  write({ workers: 3, nodeArgs: ['--enable-source-maps', '--max-http-header-size=20000'] })
  t.equal((await usr2.reload({ flags: ['--wait', 'drained'] })).code, 0)
  const args = ['--enable-source-maps', '--max-http-header-size=20000']
  t.match(await look(), { workers: 3, slots: 3, ready: 3, args, of: '3' })
  write({ workers: 2, nodeArgs: ['--enable-source-maps'] })
  t.equal((await usr2.reload({ flags: ['--wait', 'drained'] })).code, 0)
  t.match(await look(), { workers: 2, slots: 2, ready: 2, args: ['--enable-source-maps'], of: '2' })

  write({ workers: 0, nodeArgs: 'x', wokers: 2 })
  const refused = await usr2.reload()
  t.equal(refused.code, 1)
  t.match(
    refused.stderr,
    /the reload was refused, generation 3 serves on: .*"wokers" .*"workers" .*"nodeArgs" /,
  )
  t.match(await look(), { workers: 2, slots: 2, ready: 2 })
  expectNoneFailed(t, await load.stop())
  await usr2.stop()
})

t.test('a stop during a reload ends it', async (t) => {
  const { usr2, port } = await startGated(t)
  const waiting = await openRaw(t, { port })
  waiting.get('/?ms=500')
  const first = ask(t, usr2)
  await first.line('starting')
  const next = await askInLine(t, usr2)
  usr2.signal('SIGTERM')
  t.same(codeOf(await first.exited), 1)
  t.match(first.stderr.join('\n'), /the master was told to stop/)
  t.match(await next.verdict(), { outcome: 'overtaken', reasons: ['the master was told to stop'] })
  t.equal((await waiting.response()).status, 200, 'what was in flight is answered')
  t.match(await usr2.process.ended(20_000), { code: 0, signal: null })
})

t.test('a master that dies before the verdict: exit status 4', async (t) => {
  const { usr2 } = await startGated(t)
  const client = ask(t, usr2)
  await client.line('starting')
  usr2.signal('SIGKILL')
  t.same(codeOf(await client.exited), 4)
  t.match(client.stderr.join('\n'), /was lost before the verdict/)
})

t.test('current -> releases/N is followed, and the old release may be deleted while it drains', async (t) => {
  const port = await freePort(t)
  const root = shortTmp(t)
  const app = { fixture: 'http-app.cjs' }
  const current = deploy(root, '1', app)
  // As a shell does after `cd current`.
  const usr2 = startUsr2(t, {
    entry: 'http-app.cjs',
    cwd: current,
    env: { PORT: String(port), PWD: current },
  })
  await usr2.ready()
  const load = await loadUnder(t, { target: { port }, traffic: LIGHT, versionOf: 'version' })
  await untilServed(load, '1')
  const slow = await openRaw(t, { port })
  const from = usr2.process.lines.length
  slow.get('/stream?ms=2000')
  await slow.until(() => slow.rest.includes('ticks'), 'the head of the stream')
  deploy(root, '2', app)
  const { code, stdout } = await usr2.reload()
  t.equal(code, 0)
  t.match(stdout, /generation 1 -> 2 in .*: \S+\/releases\/1 -> \S+\/releases\/2/)
  rmSync(join(root, 'releases', '1'), { recursive: true })
  t.equal((await slow.response()).body.endsWith('"}'), true, 'its streams end as if nothing had happened')
  t.match((await slow.get('/').response()).headers, { connection: 'close' }, 'and it answers')
  await usr2.event('drained', { from })
  await untilServed(load, '2')

  rmSync(join(root, 'releases', '2'), { recursive: true })
  const gone = await usr2.reload()
  t.equal(gone.code, 1)
  t.match(gone.stderr, /the reload was refused, generation 2 serves on: .*no such file/)
  deploy(root, '3', app)
  t.equal((await usr2.reload()).code, 0)
  await untilServed(load, '3')
  const result = await load.stop()
  expectNoneFailed(t, result)
  await usr2.stop()
})

interface Gated {
  readonly usr2: Usr2
  readonly port: number
  /** Lets workers of later generations listen. */
  openGate(): void
  closeGate(): void
  /** A new connection is answered by that generation. */
  serving(generation: number): Promise<unknown>
}

async function startGated(
  t: Test,
  { flags = [], env = {} }: Pick<Usr2Options, 'flags' | 'env'> = {},
): Promise<Gated> {
  const port = await freePort(t)
  const gate = join(shortTmp(t), 'gate')
  const usr2 = startUsr2(t, { fixture: 'gated.cjs', flags, env: { PORT: String(port), GATE: gate, ...env } })
  await usr2.ready()
  return {
    usr2,
    port,
    openGate: () => writeFileSync(gate, ''),
    closeGate: () => rmSync(gate),
    serving: (generation) =>
      until(
        async () => {
          const client = await openRaw(t, { port })
          const { body } = await client.get('/', 'Connection: close').response()
          return (JSON.parse(body) as { generation: number }).generation === generation
        },
        { timeoutMs: 10_000, what: `an answer of generation ${generation}`, logs: () => usr2.logs() },
      ),
  }
}

/** `usr2 reload`, not waited for. */
function ask(t: Test, usr2: Usr2, flags: readonly string[] = []): TestProcess {
  const args = [CLI, 'reload', '--control', usr2.control, ...flags]
  return start(t, process.execPath, { name: 'usr2 reload', args })
}

async function lineOf(usr2: Usr2, event: string): Promise<number> {
  await usr2.event(event)
  return usr2.process.lines.findLastIndex(({ text }) => text.includes(`"event":"${event}"`)) + 1
}

interface InLine {
  verdict(): Promise<unknown>
}

/** Asks for a reload on the control socket, and is sure to have been heard: what it asks next is refused. */
async function askInLine(t: Test, usr2: Usr2): Promise<InLine> {
  const socket = connect(usr2.control)
  t.teardown(() => socket.destroy())
  const lines = createInterface({ input: socket })[Symbol.asyncIterator]()
  const reply = async (key: string) => {
    for (;;) {
      const { value } = await deadline(lines.next(), 20_000, `"${key}" on the control socket`, () =>
        usr2.logs(),
      )
      const found = (JSON.parse(String(value)) as Record<string, unknown>)[key]
      if (found !== undefined) return found
    }
  }
  socket.write('{"cmd":"reload","drop":[],"wait":"promoted"}\n{"cmd":"status"}\n')
  t.match(await reply('error'), /already waits for an answer/)
  return { verdict: () => reply('verdict') }
}
