/** What an app is told by usr2, and what it may ask for (DESIGN section 6; docs/app-api.md). */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { Test } from 'tap'
import { run } from '../helpers/spawn.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { fixture, startUsr2, type Usr2, type Usr2Options } from '../helpers/usr2.ts'

interface App {
  readonly usr2: Usr2
  /** From the next reload on. */
  env(variables: Readonly<Record<string, string>>): void
  /** What the app said from that line on, of the kinds named. */
  said(kinds: RegExp, from?: number): string[]
}

async function startApp(
  t: Test,
  {
    fixture: name = 'app-api/main.cjs',
    flags = [],
    env = {},
  }: Pick<Usr2Options, 'fixture' | 'flags' | 'env'>,
): Promise<App> {
  const envFile = join(shortTmp(t), 'env')
  const put = (variables: Readonly<Record<string, string | undefined>>): void =>
    writeFileSync(
      envFile,
      Object.entries(variables)
        .map(([key, value]) => `${key}=${value}\n`)
        .join(''),
    )
  put(env)
  const usr2 = startUsr2(t, {
    fixture: name,
    flags: ['--env-file', envFile, ...flags],
    env: { PORT: String(await freePort(t)) },
  })
  await usr2.ready()
  return {
    usr2,
    env: put,
    said: (kinds, from = 0) =>
      usr2.process.lines
        .slice(from)
        .flatMap(({ stream, text }) => (stream === 'stdout' && kinds.test(text) ? [text] : [])),
  }
}

/** The process that leads in that generation. */
async function leaderOf({ usr2 }: App, generation: number, from = 0): Promise<number> {
  const { text } = await usr2.process.line(new RegExp(`^leads \\d+ ${generation}$`), { from })
  return Number(text.split(' ')[1])
}

async function promoted(t: Test, { usr2 }: App, flags: readonly string[] = []): Promise<void> {
  const { code, stderr } = await usr2.reload({ flags })
  t.equal(code, 0, `promoted ${stderr}`)
}

/** What the guest warns of, but for what every short drain timeout brings. */
const warningsOf = ({ usr2 }: App): string[] =>
  usr2
    .events()
    .flatMap(({ event, msg }) =>
      event === 'worker-warning' && !msg.includes('keepAliveTimeout') ? [msg] : [],
    )

/** Each term has ended before the next one begins: by its own word, or with its process. */
function neverTwo(t: Test, app: App, killed: readonly number[] = []): void {
  let leader: string | null = null
  for (const line of app.said(/^(leads|led) /)) {
    const [what, pid = ''] = line.split(' ')
    if (what === 'led') t.equal(leader, pid, `${line}: it was the leader`)
    else t.ok(leader === null || killed.includes(Number(leader)), `${line}: ${leader} leads no more`)
    leader = what === 'leads' ? pid : null
  }
}

t.test('one leader among three workers, through reloads, a crash and a rollback', async (t) => {
  const app = await startApp(t, { flags: ['--workers', '3'] })
  let leader = await leaderOf(app, 1)
  const killed: number[] = []
  let generation = 1
  for (let i = 0; i < 8; i++) {
    const from = app.usr2.process.lines.length
    if (i === 3) {
      killed.push(leader)
      process.kill(leader, 'SIGKILL')
      const next = await leaderOf(app, generation, from)
      t.not(next, leader, 'another worker leads when the leader has died')
      leader = next
    } else if (i === 5) {
      app.env({ BROKEN: '1' })
      const { code } = await app.usr2.reload()
      t.equal(code, 1, 'rolled back')
      t.same(app.said(/^(leads|told|led) /, from), [], 'the leader is the same, and noticed nothing')
      app.env({})
      generation++
    } else {
      await promoted(t, app)
      leader = await leaderOf(app, ++generation, from)
    }
  }
  const from = app.usr2.process.lines.length
  await app.usr2.stop()
  t.same(
    app.said(/^(leads|led) /, from),
    [`led ${leader} ${generation}`],
    'a stop: the leader ends, nobody follows',
  )
  neverTwo(t, app, killed)
  t.equal(app.said(/^leads /).length, 8, 'one for each generation that answered, and one after the crash')
  t.match(
    app.usr2
      .events()
      .filter(({ event }) => event === 'leads')
      .map(({ msg }) => msg),
    [/^slot \d leads$/],
  )
})

t.test('a leader that never returns holds up the next one until its process has ended', async (t) => {
  const app = await startApp(t, {
    flags: ['--workers', '2', '--drain-timeout', '3s'],
    env: { LEADER: 'stubborn' },
  })
  const stubborn = await leaderOf(app, 1)
  app.env({ LEADER: 'loop' })
  const from = app.usr2.process.lines.length
  const drained = promoted(t, app, ['--wait', 'drained'])
  await app.usr2.process.line(/^onDrain/)
  const status = await app.usr2.status()
  const old = status.generations.flatMap(({ workers }) => workers).find(({ pid }) => pid === stubborn)
  t.match(old?.waitsFor, /^for 0 connections, 0 requests in flight, its whileLeader functions \(at most /)
  await drained
  await leaderOf(app, 2, from)
  const lines = app.said(/^(leads|still) /)
  t.ok(lines.lastIndexOf(`still ${stubborn}`) < lines.findIndex((line) => /^leads \d+ 2$/.test(line)))
  t.same(warningsOf(app), [
    'a function of whileLeader has not returned within the 3 s of the drain; it ends with the process',
  ])
  await app.usr2.stop()
})

t.test('who returns has resigned, and who throws as well: the next one leads', async (t) => {
  for (const [LEADER, settled] of [
    ['resign', /^resolved 1\/\d$/],
    ['throw', /^rejected 1\/\d no lease$/],
  ] as const) {
    const app = await startApp(t, { flags: ['--workers', '2'], env: { LEADER } })
    const first = await app.usr2.process.line(settled)
    await app.usr2.process.line(settled, { from: first.index + 1 })
    neverTwo(t, app)
    const leaders = app.said(/^leads /)
    t.equal(new Set(leaders).size, 2, `${LEADER}: each of them led`)
    t.equal(leaders.length, 2, `${LEADER}: once`)
    await app.usr2.stop()
  }
})

t.test('only waiting to lead keeps a worker alive, and a leader has the time of the drain', async (t) => {
  const app = await startApp(t, {
    fixture: 'app-api/leaders-only.mjs',
    flags: ['--workers', '2', '--ready', 'message', '--shutdown-timeout', '500ms'],
  })
  await leaderOf(app, 1)
  await promoted(t, app, ['--wait', 'drained'])
  await leaderOf(app, 2)
  t.same(app.said(/^left 1/).sort(), ['left 1/0', 'left 1/1'], 'the leader, and who only waited')
  await app.usr2.stop()
  t.same(app.said(/^left 2/).sort(), ['left 2/0', 'left 2/1'])
  neverTwo(t, app)
  t.same(
    app.usr2.events().filter(({ level }) => level > 30),
    [],
    'nothing to warn of',
  )
})

for (const kind of ['cjs', 'mjs']) {
  t.test(`the end of a worker, told to ${kind}`, async (t) => {
    const app = await startApp(t, {
      fixture: `app-api/main.${kind}`,
      flags: ['--workers', '1', '--drain-timeout', '7s'],
      env: { CLOSERS: '1' },
    })
    const leader = await leaderOf(app, 1)
    await app.usr2.stop()
    t.same(app.said(/./), [
      `leads ${leader} 1`,
      'drainSignal 1/0',
      `told ${leader} leaving=true own context`,
      'onDrain 1/0 7000 own context',
      `led ${leader} 1`,
      'resolved 1/0',
      'closed server',
      'closed database own context',
    ])
    t.same(warningsOf(app), [
      'shutting down metrics failed: no route',
      'shutting down consumer took longer than its 0.1 s; going on with the next',
    ])
  })
}

t.test(
  'all closers together have the shutdown timeout, and what it was not enough for is named',
  async (t) => {
    const app = await startApp(t, {
      flags: ['--shutdown-timeout', '60ms'],
      env: { CLOSERS: '1', LEADER: 'resign' },
    })
    await app.usr2.process.line('resolved 1/0')
    await app.usr2.stop()
    t.same(app.said(/^closed/), [], 'nothing after it was closed')
    // The worker and the master have the same deadline: one of them is first.
    t.match(warningsOf(app).at(-1), /^the process ends before it has shut down consumer, server, database$/)
  },
)

const alone = `
  const failed = (what, call) => { try { call() } catch (error) { console.log(what, error.name, error.message) } }
  failed('drain', () => usr2.onDrain(undefined))
  failed('resume', () => usr2.onResume(5))
  failed('probe', () => usr2.onProbe(true))
  failed('shutdown', () => usr2.onShutdown('db', Promise.resolve()))
  failed('timeout', () => usr2.onShutdown('db', () => {}, { timeoutMs: 0 }))
  failed('timeout', () => usr2.onShutdown('db', () => {}, { timeoutMs: '5s' }))
  for (let i = 0; i < 20; i++) usr2.drainSignal.addEventListener('abort', () => {})
  usr2.ready()
  for (const call of [usr2.onDrain, usr2.onResume, usr2.onProbe]) call(() => console.log('called'))
  usr2.onShutdown('db', () => console.log('called'), { timeoutMs: 1 })
  usr2.whileLeader(async (signal) => {
    await new Promise((resolve) => setTimeout(resolve, 20))
    console.log('leads', signal.aborted)
  })
    .then(() => usr2.whileLeader(() => { throw new Error('no lease') }))
    .catch((error) => console.log(error.message))
    .then(() => usr2.whileLeader()).catch((error) => console.log(error.name, error.message))
    .then(() => console.log(usr2.supervised, usr2.generation, usr2.slot, usr2.drainSignal.aborted))`

for (const [flags, head] of [
  [[], `const usr2 = require('usr2')`],
  [['--input-type=module'], `import * as usr2 from 'usr2'`],
] as const) {
  t.test(`without a supervisor: ${head}`, async (t) => {
    const { code, stdout, stderr } = await run(t, process.execPath, {
      args: [...flags, '--eval', `${head}\n${alone}`],
      cwd: fixture('.'),
    })
    t.same({ code, stderr }, { code: 0, stderr: '' })
    t.same(stdout.split('\n'), [
      'drain TypeError onDrain of usr2 takes a function, not undefined',
      'resume TypeError onResume of usr2 takes a function, not number',
      'probe TypeError onProbe of usr2 takes a function, not boolean',
      "shutdown TypeError onShutdown('db') of usr2 takes a function, not object",
      "timeout RangeError onShutdown('db') of usr2 takes a timeoutMs in milliseconds above 0, not 0",
      "timeout RangeError onShutdown('db') of usr2 takes a timeoutMs in milliseconds above 0, not 5s",
      'leads false',
      'no lease',
      'TypeError whileLeader of usr2 takes a function, not undefined',
      'false null null false',
    ])
  })
}
