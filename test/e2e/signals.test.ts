/**
 * Signals: to the master, to one worker, to everything at once (`pkill`, `systemctl kill`, Ctrl-C), under load and at
 * the worst moments; and every way to stop. Random orders print their seed.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import type { LoadResult, Traffic } from '../../src/drill/load.ts'
import type { Status } from '../../src/master/face.ts'
import { get, getJson } from '../helpers/http.ts'
import { expectNoneFailed, loadUnder } from '../helpers/load.ts'
import { hasToken, processesWithToken } from '../helpers/processes.ts'
import type { TestLike } from '../helpers/scope.ts'
import { expectNothingLeft, run, start, type TestProcess } from '../helpers/spawn.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { CLI, fixture, startUsr2, type Usr2, type Usr2Options } from '../helpers/usr2.ts'
import { until } from '../helpers/wait.ts'

const MIX: readonly Traffic[] = [
  { mode: 'hot', connections: 2 },
  { mode: 'keepalive', connections: 8 },
  { mode: 'new', connections: 2, thinkMs: [2, 6] },
  { mode: 'post', connections: 1, echo: true },
]

async function serving(t: TestLike, options: Usr2Options = {}): Promise<{ usr2: Usr2; port: number }> {
  const port = await freePort(t)
  const app = options.files === undefined ? { fixture: 'http-app.cjs' } : {}
  const usr2 = startUsr2(t, { ...app, ...options, env: { PORT: String(port), ...options.env } })
  await usr2.ready()
  return { usr2, port }
}

const seed = Number(process.env['TEST_SEED'] ?? Date.now() % 1_000_000)
t.comment(`TEST_SEED=${seed}`)

/** mulberry32 */
let random = seed
function nextRandom(): number {
  random = (random + 0x6d2b79f5) | 0
  let x = Math.imul(random ^ (random >>> 15), 1 | random)
  x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x
  return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32
}
const shuffled = <T>(list: readonly T[]): T[] =>
  list
    .map((item) => ({ item, at: nextRandom() }))
    .sort((a, b) => a.at - b.at)
    .map(({ item }) => item)

/** To the master and all of its workers, booting and draining ones too, in random order. Gives how many. */
function signalAll(usr2: Usr2, signal: NodeJS.Signals): number {
  const pids = processesWithToken(usr2.process.token).map(({ pid }) => pid)
  return shuffled(pids).filter((pid) => signalOne(pid, signal)).length
}

function signalOne(pid: number, signal: NodeJS.Signals): boolean {
  try {
    return process.kill(pid, signal)
  } catch {
    return false // It has ended meanwhile.
  }
}

const verdicts = (usr2: Usr2): number =>
  usr2.events().filter(({ event }) => ['promoted', 'rolled-back', 'refused', 'overtaken'].includes(event))
    .length

const untilSteady = (usr2: Usr2): Promise<Status> =>
  until(
    async () => {
      const status = await usr2.status()
      return status.state === 'steady' && status.generations.length === 1 && status
    },
    { timeoutMs: 30_000, what: 'one generation, steady', logs: () => usr2.logs() },
  )

const workersOf = (status: Status) => status.generations.flatMap(({ workers }) => workers)

/** http-app.cjs, which says when a slow request has arrived. */
const TELLING = `
  const http = require('node:http')
  const emit = http.Server.prototype.emit
  http.Server.prototype.emit = function (event, req, ...rest) {
    if (event === 'request' && req.url.startsWith('/slow')) console.log('slow')
    return emit.call(this, event, req, ...rest)
  }
  require(${JSON.stringify(fixture('http-app.cjs'))})`

/** http-app.cjs, which dies at once of whatever signal gets through to its own listeners. */
const FRAGILE = `
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2'])
    process.on(signal, () => process.exit(signal === 'SIGTERM' ? 0 : 9))
  require(${JSON.stringify(fixture('http-app.cjs'))})`
const fragile = { files: { 'app.cjs': FRAGILE }, entry: 'app.cjs' }

/** Node says so on stderr when SIGUSR1 has started it. */
const inspector = /Debugger listening/

t.test('USR2, HUP and USR1 to every process at once, under load', async (t) => {
  const { usr2, port } = await serving(t, { ...fragile, flags: ['--workers', '2'] })
  const load = await loadUnder(t, { target: { port }, traffic: MIX, versionOf: 'generation' })
  for (const signal of shuffled(['SIGUSR2', 'SIGHUP', 'SIGUSR1', 'SIGUSR1', 'SIGHUP', 'SIGUSR2'] as const)) {
    const before = verdicts(usr2)
    t.ok(signalAll(usr2, signal) >= 3, `${signal} to a master and two workers at least`)
    if (signal === 'SIGUSR1') continue
    await until(() => verdicts(usr2) > before, { timeoutMs: 20_000, what: `the verdict after ${signal}` })
  }
  await untilSteady(usr2)
  expectNoneFailed(t, await load.stop())
  t.same(
    usr2.events().filter(({ event }) => /worker-died|rolled-back|refused/.test(event)),
    [],
  )
  t.notMatch(usr2.logs(), inspector)
  await usr2.stop()
})

t.test('signals at intervals that hit workers before their first line', async (t) => {
  const { usr2, port } = await serving(t, { ...fragile, flags: ['--workers', '2', '--log-level', 'debug'] })
  const load = await loadUnder(t, { target: { port }, traffic: MIX })
  const from = usr2.process.lines.length
  const signals = ['SIGUSR2', 'SIGHUP', 'SIGUSR1', 'SIGTERM', 'SIGINT', 'SIGQUIT'] as const
  const isBooting = (pid: number) => pid !== usr2.pid
  for (let round = 0; round < 60; round++) {
    const signal = signals[Math.floor(nextRandom() * signals.length)] ?? 'SIGUSR2'
    // What stops the master goes to workers alone.
    const stops = ['SIGTERM', 'SIGINT', 'SIGQUIT'].includes(signal)
    const pids = processesWithToken(usr2.process.token).map(({ pid }) => pid)
    for (const pid of shuffled(stops ? pids.filter(isBooting) : pids)) signalOne(pid, signal)
    await new Promise((resolve) => setTimeout(resolve, nextRandom() * 25))
  }
  const status = await untilSteady(usr2)
  t.equal(status.ready, 2)
  expectNoneFailed(t, await load.stop())
  const events = usr2.events()
  const count = (event: string) => events.filter((line) => line.event === event).length
  const stillborn = events.filter(
    ({ event, msg }) => event === 'worker-exited' && /was killed by/.test(msg),
  ).length
  t.comment(
    `${count('promoted')} promoted, ${count('rolled-back')} rolled back, ${count('worker-died')} died, ` +
      `${stillborn} killed by a signal while they booted`,
  )
  t.ok(count('promoted') > 0)
  t.notMatch(
    usr2.process.lines
      .slice(from)
      .map(({ text }) => text)
      .join('\n'),
    /Debugger attached/,
  )
  await usr2.stop()
})

t.test('a worker killed by a stray signal before its first line is started again', async (t) => {
  const { usr2 } = await serving(t, { flags: ['--log-level', 'debug'] })
  for (const signal of ['SIGUSR2', 'SIGHUP', 'SIGTERM', 'SIGINT', 'SIGQUIT'] as const) {
    const from = usr2.process.lines.length
    usr2.signal('SIGUSR2')
    const { pid, generation } = await usr2.event('spawned', { from })
    signalOne(Number(pid), signal)
    const end = await usr2.process.line(/"event":"(promoted|rolled-back)"/, { from })
    t.match(
      end.text,
      '"event":"promoted"',
      `${signal} to a booting worker of generation ${String(generation)}`,
    )
  }
  const killed = usr2
    .events()
    .filter(({ event, msg }) => event === 'worker-exited' && /was killed by/.test(msg))
  t.ok(killed.length > 0, `${killed.length} of 5 were killed before their first line`)
  await usr2.stop()
})

for (const signal of ['SIGTERM', 'SIGINT', 'SIGQUIT'] as const) {
  t.test(`${signal} to every process at once, under load: a stop that loses nothing`, async (t) => {
    const { usr2, port } = await serving(t, {
      flags: ['--workers', '2'],
      files: { 'app.cjs': TELLING },
      entry: 'app.cjs',
    })
    const load = await loadUnder(t, { target: { port }, traffic: MIX })
    await until(async () => (await load.snapshot()).ok > 200, { timeoutMs: 10_000, what: 'load' })
    const from = usr2.process.lines.length
    const slow = Array.from({ length: 8 }, () => get({ port }, '/slow?ms=2500'))
    let answered = 0
    for (const answer of slow) void answer.then(() => answered++).catch(() => {})
    const began = () => usr2.process.lines.slice(from).filter(({ text }) => text === 'slow').length
    await until(() => began() === 8, { timeoutMs: 10_000, what: '8 requests in flight' })
    signalAll(usr2, signal)
    await usr2.event('stopping')
    // Once the workers have withdrawn nobody will ever accept: a client is told so, and does not hang.
    await until(() => refused(port), { timeoutMs: 5_000, what: 'a connect to be refused' })
    t.equal(answered, 0, 'refused while every request is still in flight')
    const answers = await Promise.all(slow)
    t.ok(
      answers.every(({ status }) => status === 200),
      '8 of 8 slow requests were answered',
    )
    t.same({ ...(await usr2.process.ended(30_000)), at: 0 }, { code: 0, signal: null, at: 0 })
    await expectNothingLeft(t, usr2.process)
    expectOnlyRefused(t, await load.stop())
  })
}

function refused(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ port, host: '127.0.0.1' })
    socket.once('connect', () => (socket.destroy(), resolve(false)))
    socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code === 'ECONNREFUSED'))
  })
}

/**
 * After a stop nobody is there. A connection that is in the kernel's queue, accepted by no one, when the last copy of
 * the listener is closed is reset by the kernel: no server can help that, and none of its requests was taken. Each of
 * the client's connections can be there once; after that it is refused.
 */
function expectOnlyRefused(t: TestLike, result: LoadResult): void {
  const { refused = 0, reset = 0, connectReset = 0, ...lost } = result.failures
  if (Object.keys(lost).length > 0) t.fail(`lost: ${JSON.stringify(lost)} ${JSON.stringify(result.details)}`)
  t.equal(
    reset + connectReset <= MIX.reduce((sum, { connections }) => sum + connections, 0),
    true,
    `${refused} refused, ${reset + connectReset} reset in the queue, of ${result.requests}`,
  )
}

t.test('TERM to one worker: its successor comes first', async (t) => {
  const { usr2, port } = await serving(t, { ...fragile, flags: ['--workers', '2'] })
  const load = await loadUnder(t, { target: { port }, traffic: MIX })
  const old = workersOf(await usr2.status()).find(({ slot }) => slot === 0)?.pid ?? 0
  const from = usr2.process.lines.length
  signalOne(old, 'SIGTERM')
  t.match(await usr2.event('worker-signalled'), { slot: 0, pid: old })
  const successor = await usr2.event('worker-ready', { from })
  t.match(successor, { slot: 0, generation: 1 })
  t.ok(hasToken(old, usr2.process.token), 'the old one was there until then')
  await until(() => !hasToken(old, usr2.process.token), {
    timeoutMs: 15_000,
    what: 'the old worker to leave',
  })
  expectNoneFailed(t, await load.stop())
  t.equal(usr2.events().filter(({ event }) => event === 'worker-died').length, 0)
  t.equal((await usr2.cli('status')).code, 0)
  await usr2.stop()
})

t.test('TERM to one worker right before a stop is part of the stop', async (t) => {
  const { usr2 } = await serving(t, { flags: ['--workers', '2'] })
  const worker = workersOf(await usr2.status())[0]?.pid ?? 0
  signalOne(worker, 'SIGTERM')
  await usr2.event('worker-signalled')
  await usr2.stop()
  t.equal(
    usr2.events().filter(({ event }) => event === 'worker-ready').length,
    2,
    'nothing was started for it',
  )
})

t.test('a second TERM, or INT: stop now', async (t) => {
  for (const [first, second] of [
    ['SIGTERM', 'SIGTERM'],
    ['SIGINT', 'SIGINT'],
  ] as const) {
    const { usr2, port } = await serving(t, {
      files: { 'app.cjs': TELLING },
      entry: 'app.cjs',
      flags: ['--drain-timeout', '5m'],
    })
    const slow = get({ port }, '/slow?ms=200000', 60_000).catch((error: Error) => error)
    await usr2.process.line('slow')
    usr2.signal(first)
    await usr2.event('stopping')
    usr2.signal(second)
    t.equal((await usr2.process.ended()).code, 0)
    t.ok((await slow) instanceof Error, 'its connection is cut')
    await expectNothingLeft(t, usr2.process)
    t.same(readdirSync(join(usr2.control, '..')), ['app'])
  }
})

t.test('TTIN, TTOU and USR1 are never fatal, and USR1 starts no inspector', async (t) => {
  const { usr2, port } = await serving(t)
  const before = workersOf(await usr2.status()).map(({ pid }) => pid)
  for (const signal of ['SIGTTIN', 'SIGTTOU', 'SIGUSR1'] as const) {
    const from = usr2.process.lines.length
    usr2.signal(signal)
    t.match(await usr2.event('signal', { from }), { signal })
  }
  for (const pid of before) signalOne(pid ?? 0, 'SIGUSR1')
  t.equal((await get({ port })).status, 200)
  const ready = workersOf(await usr2.status()).filter(({ phase }) => phase === 'ready')
  t.same(
    ready.map(({ pid }) => pid),
    before,
    'one slot more and one fewer: what served serves on',
  )
  t.notMatch(usr2.logs(), inspector)
  await usr2.stop()
})

/** Signals that a process has a handler for now; proc(5), SigCgt. */
function catches(pid: number, number: number): boolean {
  const mask = /^SigCgt:\s*([0-9a-f]+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? '0'
  return ((BigInt(`0x${mask}`) >> BigInt(number - 1)) & 1n) === 1n
}
/** Looks more often than `until` does: the moment matters. */
async function untilCaught(usr2: Usr2, number: number): Promise<void> {
  const giveUp = performance.now() + 10_000
  while (!catches(usr2.pid, number)) {
    if (performance.now() > giveUp) throw new Error(`no handler for signal ${number}\n${usr2.logs()}`)
    await new Promise((resolve) => setImmediate(resolve))
  }
}
const SIGTTOU = 22
/** Whose handler tells that ours are there: for TERM and INT Node has one of its own from the start. */
const NUMBERS = { SIGHUP: 1, SIGINT: 3, SIGQUIT: 3, SIGUSR2: 12, SIGTERM: 3 } as const

t.test(
  'a signal in the first moments of the master is neither fatal nor lost',
  { skip: !existsSync('/proc/self/status') && 'needs /proc' },
  async (t) => {
    for (const signal of ['SIGUSR2', 'SIGHUP', 'SIGTERM', 'SIGINT', 'SIGQUIT'] as const) {
      const port = await freePort(t)
      const usr2 = startUsr2(t, { fixture: 'http-app.cjs', env: { PORT: String(port) } })
      // Before its first line can have run there is no handler, and nothing that a Node program can do about it.
      await untilCaught(usr2, NUMBERS[signal])
      usr2.signal(signal)
      await untilCaught(usr2, SIGTTOU)
      for (const ignored of ['SIGUSR1', 'SIGTTIN', 'SIGTTOU'] as const) usr2.signal(ignored)
      if (signal === 'SIGUSR2' || signal === 'SIGHUP') {
        t.equal(usr2.events().length, 0, `${signal} came before the first line of the log`)
        t.match(await usr2.event('promoted'), { generation: 2 }, `${signal}: a reload, after the start`)
        await usr2.event('drained')
        t.equal((await getJson<{ generation: string }>({ port })).generation, '2')
        await usr2.stop()
      } else {
        t.equal((await usr2.process.ended()).code, 0, `${signal}: a stop`)
        await expectNothingLeft(t, usr2.process)
        t.same(readdirSync(join(usr2.control, '..')), ['app'])
      }
    }
  },
)

t.test('a burst of signals from the first moment on ends in at most two further generations', async (t) => {
  const port = await freePort(t)
  const usr2 = startUsr2(t, { fixture: 'http-app.cjs', env: { PORT: String(port) } })
  await untilCaught(usr2, NUMBERS.SIGHUP)
  const isUp = usr2.ready().then(() => true)
  for (let isReady = false; !isReady;) {
    usr2.signal('SIGUSR2')
    isReady = await Promise.race([isUp, new Promise<false>((resolve) => setTimeout(() => resolve(false), 5))])
  }
  const { generations } = await untilSteady(usr2)
  t.ok([2, 3].includes(generations[0]?.id ?? 0), `generation ${generations[0]?.id}`)
  await usr2.stop()
})

const sessionOf = (pid: number): number => {
  // proc(5): behind the command in parentheses: state, ppid, pgrp, session.
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
  return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[3])
}

t.test('Ctrl-C reaches the master alone: each worker has a session of its own', async (t) => {
  const { usr2, port } = await serving(t, { detached: true, files: { 'app.cjs': TELLING }, entry: 'app.cjs' })
  const worker = workersOf(await usr2.status())[0]?.pid ?? 0
  t.equal(sessionOf(worker), worker)
  const slow = get({ port }, '/slow?ms=500')
  await usr2.process.line('slow')
  process.kill(-usr2.pid, 'SIGINT')
  t.equal((await slow).status, 200)
  t.equal((await usr2.process.ended()).code, 0)
  await expectNothingLeft(t, usr2.process)
})

/** Runs a command on a terminal of its own, takes the terminal away at "serves after", says how the command ended. */
const LOSE_TERMINAL = `
import os, pty, sys
pid, fd = pty.fork()
if pid == 0: os.execvp(sys.argv[1], sys.argv[1:])
seen = b''
while b'serves after' not in seen:
    try: seen += os.read(fd, 65536)
    except OSError: break
print(seen.decode(errors='replace'), flush=True)
sys.stdin.readline() if sys.argv[-1] == 'wait' else None
os.close(fd)
_, status = os.waitpid(pid, 0)
print('ended', os.waitstatus_to_exitcode(status), flush=True)`

t.test('HUP because the terminal is gone: a stop', async (t) => {
  const python = await run(t, 'python3', { args: ['-c', 'import os, pty; os.waitstatus_to_exitcode'] }).catch(
    () => null,
  )
  if (python?.code !== 0)
    return void t.comment('NOT TESTED: no python3 (3.9 or newer) for a terminal of its own')
  const directory = shortTmp(t)
  const port = await freePort(t)
  const control = join(directory, 'c.sock')
  const lost = start(t, 'python3', {
    args: ['-c', LOSE_TERMINAL, process.execPath, CLI, 'run', '--control', control, fixture('http-app.cjs')],
    env: { PORT: String(port) },
  })
  const { text } = await lost.line(/^ended /, { timeoutMs: 30_000 })
  t.equal(text, 'ended 0')
  await lost.ended()
  await expectNothingLeft(t, lost)
  t.same(readdirSync(directory), [], 'no socket and no runtime directory')
})

t.test('HUP without a terminal: a reload', async (t) => {
  const { usr2 } = await serving(t, { detached: true })
  usr2.signal('SIGHUP')
  t.match(await usr2.event('promoted'), { generation: 2 })
  await usr2.stop()
})

t.test('whoever reads the log may go away', async (t) => {
  const { usr2, port } = await serving(t)
  usr2.process.child.stderr?.destroy()
  usr2.process.child.stdout?.destroy()
  t.equal((await usr2.reload()).code, 0)
  t.equal((await getJson<{ generation: string }>({ port })).generation, '2')
  await usr2.stop()
})

t.test(
  'a disk that is full does not end the master',
  { skip: !existsSync('/dev/full') && 'no /dev/full' },
  async (t) => {
    const port = await freePort(t)
    const control = join(shortTmp(t), 'c.sock')
    const command = [process.execPath, CLI, 'run', '--control', control, fixture('http-app.cjs')]
    const script = `exec ${command.map((word) => `'${word}'`).join(' ')} 2> /dev/full`
    const usr2 = start(t, '/bin/sh', { name: 'usr2 run', args: ['-c', script], env: { PORT: String(port) } })
    await usr2.line(`listening ${port}`)
    t.equal(
      (await run(t, process.execPath, { args: [CLI, 'reload', '--wait', 'drained', '--control', control] }))
        .code,
      0,
    )
    t.equal((await getJson<{ generation: string }>({ port })).generation, '2')
    usr2.kill()
    t.equal((await usr2.ended()).code, 0)
    await expectNothingLeft(t, usr2)
  },
)

t.test('a stop takes everything away: socket, runtime directory, pid file', async (t) => {
  const directory = shortTmp(t)
  const pidFile = join(directory, 'app.pid')
  const port = await freePort(t)
  const usr2 = startUsr2(t, {
    files: { 'app.cjs': `require(${JSON.stringify(fixture('http-app.cjs'))})` },
    entry: 'app.cjs',
    env: { PORT: String(port), BOOT_MS: '300' },
    flags: ['--pid-file', pidFile],
  })
  await usr2.event('starting')
  t.notOk(existsSync(pidFile), 'no pid file before it is ready: whoever sees the file may signal at once')
  await until(() => existsSync(pidFile), { timeoutMs: 10_000, what: 'the pid file' })
  t.equal(readFileSync(pidFile, 'utf8'), `${usr2.pid}\n`)
  t.equal((await get({ port })).status, 200)
  await usr2.stop()
  t.same(readdirSync(directory), [])
  t.same(readdirSync(join(usr2.control, '..')), ['app'])
})

t.test("a pid file that is somebody else's by now stays", async (t) => {
  const pidFile = join(shortTmp(t), 'app.pid')
  const { usr2 } = await serving(t, { flags: ['--pid-file', pidFile] })
  await until(() => existsSync(pidFile), { timeoutMs: 10_000, what: 'the pid file' })
  writeFileSync(pidFile, '1\n')
  await usr2.stop()
  t.equal(readFileSync(pidFile, 'utf8'), '1\n')
})

t.test('an app that ignores everything is stopped within the budget', async (t) => {
  const ignoring = `
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP']) process.on(signal, () => console.log('ignored', signal))
    require('node:net').createServer((socket) => { socket.write('hello'); socket.on('error', () => {}) })
      .listen(Number(process.env.PORT), '127.0.0.1')
    setInterval(() => {}, 1000)`
  const { usr2, port } = await serving(t, {
    files: { 'app.cjs': ignoring },
    entry: 'app.cjs',
    flags: ['--drain-timeout', '300ms', '--shutdown-timeout', '300ms', '--kill-timeout', '300ms'],
  })
  const socket = connect({ port, host: '127.0.0.1' })
  await new Promise((resolve) => socket.once('data', resolve))
  const cut = new Promise((resolve) => socket.once('close', resolve).on('error', () => {}))
  await usr2.stop()
  await cut
  t.match((await usr2.event('cut')).msg, /cut 1 connection at the drain deadline: raw connection/)
  await usr2.process.line('ignored SIGTERM')
})

t.test('usr2 status while a reload runs, usr2 stop', async (t) => {
  const { usr2, port } = await serving(t, {
    files: { 'app.cjs': `require(${JSON.stringify(fixture('http-app.cjs'))})`, '.env': 'BOOT_MS=0\n' },
    entry: 'app.cjs',
    flags: ['--workers', '2', '--env-file', '.env', '--drain-timeout', '20s'],
  })
  writeFileSync(join(usr2.cwd, '.env'), 'BOOT_MS=2000\n')
  const reload = usr2.reload({ flags: ['--wait', 'drained'] })
  await usr2.event('candidate')
  const status = await usr2.status()
  t.match(status, {
    state: 'rolling-out',
    slots: 2,
    ready: 2,
    waitsFor: /^reload r1: for 2 workers of generation 2 to become ready/,
  })
  t.same(
    status.generations.map(({ id, role }) => ({ id, role })),
    [
      { id: 1, role: 'current' },
      { id: 2, role: 'candidate' },
    ],
  )
  t.same(
    workersOf(status).map(({ phase }) => phase),
    ['ready', 'ready', 'booting', 'booting'],
  )
  t.equal(status.listeners[0]?.accepting, 2)
  const human = await usr2.cli('status')
  t.equal(human.code, 0, 'all slots are ready, whatever the candidate does')
  t.match(human.stdout, /generation 2/)
  const verdict = await reload
  t.equal(verdict.code, 0)
  t.match(verdict.stdout, /2 of 2 workers ready/)

  t.equal((await get({ port })).status, 200)
  const stop = await usr2.cli('stop')
  t.equal(stop.code, 0)
  t.match(stop.stdout, /stopped "t" \(pid \d+\)/)
  t.equal((await usr2.process.ended()).code, 0)
  await expectNothingLeft(t, usr2.process)
  t.equal((await usr2.cli('status')).code, 3, 'no master answers')
})

t.test('a reload that a stop overtakes', async (t) => {
  const { usr2 } = await serving(t, {
    files: { 'app.cjs': `require(${JSON.stringify(fixture('http-app.cjs'))})`, '.env': 'BOOT_MS=0\n' },
    entry: 'app.cjs',
    flags: ['--env-file', '.env'],
  })
  writeFileSync(join(usr2.cwd, '.env'), 'BOOT_MS=20000\n')
  const reload = usr2.reload()
  await usr2.event('candidate')
  await usr2.stop()
  const { code, stderr } = await reload
  t.equal(code, 1)
  t.match(stderr, /told to stop/)
})

t.test('usr2 ls', async (t) => {
  const directory = shortTmp(t)
  const env = { XDG_RUNTIME_DIR: directory }
  mkdirSync(join(directory, 'usr2'))
  const masters: TestProcess[] = []
  for (const name of ['one', 'two']) {
    const port = await freePort(t)
    const control = join(directory, 'usr2', `${name}.sock`)
    const args = [CLI, 'run', '--name', name, '--control', control, fixture('http-app.cjs')]
    const master = start(t, process.execPath, { name, args, env: { ...env, PORT: String(port) } })
    await master.line('"event":"ready"')
    masters.push(master)
  }
  const names = async () => {
    const { stdout } = await run(t, process.execPath, { args: [CLI, 'ls', '--json'], env })
    // Other masters of this machine may be listed, too.
    const mine = (JSON.parse(stdout) as { control: string; name: string }[]).filter(({ control }) =>
      control.startsWith(directory),
    )
    return mine.map(({ name }) => name)
  }
  t.same(await names(), ['one', 'two'])
  masters[0]?.kill()
  await masters[0]?.ended()
  t.same(await names(), ['two'])
  masters[1]?.kill()
  await masters[1]?.ended()
  t.same(readdirSync(join(directory, 'usr2')), [])
})
