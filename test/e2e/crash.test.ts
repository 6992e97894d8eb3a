/** Workers that die, never start, hang, lie, leave something behind; and a master that dies. */
import { existsSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { get, getJson } from '../helpers/http.ts'
import { hasToken, processesWithToken } from '../helpers/processes.ts'
import type { TestLike } from '../helpers/scope.ts'
import { expectNothingLeft, start, type TestProcess } from '../helpers/spawn.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { CLI, deploy, type LogEvent, startUsr2, type Usr2, type Usr2Options } from '../helpers/usr2.ts'
import { until } from '../helpers/wait.ts'

interface Me {
  readonly pid: number
  readonly slot: string
  readonly generation: string
  readonly version: string
}

/** An app that says who it is. `before` runs first; `routes` are more cases of the switch over the path. */
const app = ({ before = '', routes = '', bootMs = '0' } = {}): string => `
  'use strict'
  const http = require('node:http')
  const fs = require('node:fs')
  const here = (name) => require('node:path').join(__dirname, name)
  const version = fs.existsSync(here('VERSION')) ? fs.readFileSync(here('VERSION'), 'utf8') : ''
  const { USR2_SLOT: slot, USR2_GENERATION: generation } = process.env
  ${before}
  const server = http.createServer((req, res) => {
    const url = new URL(req.url, 'http://localhost')
    switch (url.pathname) {
      ${routes}
      case '/slow':
        console.log('slow began')
        return void setTimeout(() => res.end('slow but whole'), Number(url.searchParams.get('ms')))
      default: res.end(JSON.stringify({ pid: process.pid, slot, generation, version }))
    }
  })
  setTimeout(() => server.listen(Number(process.env.PORT), '127.0.0.1'), ${bootMs})`

async function startApp(
  t: TestLike,
  text: string,
  { files = {}, flags = [], env = {}, ...options }: Usr2Options = {},
): Promise<{ usr2: Usr2; port: number; me: () => Promise<Me> }> {
  const port = await freePort(t)
  const usr2 = startUsr2(t, {
    entry: 'app.cjs',
    files: { 'app.cjs': text, ...files },
    flags,
    env: { PORT: String(port), ...env },
    ...options,
  })
  return { usr2, port, me: () => getJson<Me>({ port }) }
}

const isGone = (pid: number, token: string): boolean => !hasToken(pid, token)

async function untilGone(process: TestProcess, pids: readonly number[], what: string): Promise<void> {
  const gone = () => pids.every((pid) => isGone(pid, process.token))
  await until(gone, { timeoutMs: 15_000, what, logs: () => process.log() })
}

/** Gives when the process runs no more: until then it may accept a connection, and reset it by its death. */
async function kill(usr2: Usr2, pid: number): Promise<void> {
  process.kill(pid, 'SIGKILL')
  await untilGone(usr2.process, [pid], `${pid} to be dead`)
}

const deathsOf = (usr2: Usr2, slot: number): LogEvent[] =>
  usr2.events().filter((line) => line.event === 'worker-died' && line['slot'] === slot)

t.test('a killed worker is replaced, and who connects meanwhile waits in the kernel', async (t) => {
  // Each boot after the first takes long enough for a client to be refused, were there something to refuse it.
  const { usr2, me } = await startApp(t, app({ bootMs: `fs.existsSync(here('slow')) ? 400 : 0` }))
  await usr2.ready()
  writeFileSync(join(usr2.cwd, 'slow'), '')
  const old = await me()
  await kill(usr2, old.pid)
  const answers = await Promise.all(Array.from({ length: 20 }, me))
  t.equal(new Set(answers.map(({ pid }) => pid)).size, 1, '20 of 20 were answered by the same worker')
  t.not(answers[0]?.pid, old.pid)
  t.equal(answers[0]?.generation, '1', 'of the same generation')
  const died = await usr2.event('worker-died')
  t.match(died, { generation: 1, slot: 0, deaths: 1, delayMs: 100, level: 'error' })
  t.match(died.msg, new RegExp(`pid ${old.pid}\\) was killed by SIGKILL`))
  await usr2.stop()
})

t.test('a process that cannot even be started is a dead worker, and no end of the master', async (t) => {
  const { usr2, me } = await startApp(t, app({}))
  await usr2.ready()
  // ENOTDIR, which Node throws at once; as it does ETXTBSY, while a new Node is being installed, and ENOMEM.
  renameSync(usr2.cwd, `${usr2.cwd}.away`)
  writeFileSync(usr2.cwd, '')
  await kill(usr2, (await me()).pid)
  const unstarted = (): boolean => deathsOf(usr2, 0).some(({ msg }) => msg.includes('could not be started'))
  await until(unstarted, { timeoutMs: 15_000, what: 'a start that fails' })
  t.match(deathsOf(usr2, 0).at(-1)?.msg, 'could not be started: spawn ENOTDIR')
  rmSync(usr2.cwd)
  renameSync(`${usr2.cwd}.away`, usr2.cwd)
  t.equal((await me()).generation, '1', 'who connected meanwhile waited')
  await usr2.stop()
})

t.test('the wait before a refill doubles; with every slot past --max-restarts usr2 exits 1', async (t) => {
  const crash = `if (fs.existsSync(here('crash'))) throw new Error('no database today')`
  const { usr2, me } = await startApp(t, app({ before: crash }), {
    flags: ['--max-restarts', '3', '--min-uptime', '1h'],
  })
  await usr2.ready()
  writeFileSync(join(usr2.cwd, 'crash'), '')
  process.kill((await me()).pid, 'SIGKILL')
  const { code } = await usr2.process.ended(30_000)
  t.equal(code, 1)
  t.same(
    deathsOf(usr2, 0).map((line) => line['delayMs']),
    [100, 200, 400, 800],
  )
  const stopped = await usr2.event('stopped')
  t.match(stopped, { status: 1 })
  t.match(
    stopped.msg,
    /more than 3 times in a row.*no database today \(at .*app\.cjs:\d+/,
    "the worker's own words",
  )
  await expectNothingLeft(t, usr2.process)
  t.notOk(existsSync(usr2.control))
})

t.test('a worker that was ready for --min-uptime died of something new', async (t) => {
  const { usr2, me } = await startApp(t, app(), { flags: ['--max-restarts', '1', '--min-uptime', '1ms'] })
  await usr2.ready()
  for (const _ of [1, 2]) {
    const { pid } = await me()
    await kill(usr2, pid)
    await until(async () => (await me()).pid !== pid, { timeoutMs: 10_000, what: 'another worker' })
  }
  // The second of two deaths in a row would have been the end.
  t.same(
    deathsOf(usr2, 0).map((line) => line['deaths']),
    [1, 1],
  )
  await usr2.stop()
})

t.test('while another slot serves, usr2 keeps trying', async (t) => {
  const crash = `if (fs.existsSync(here('crash' + slot))) throw new Error('no database for slot ' + slot)`
  const exit = `case '/exit': return process.exit(Number(slot) + 10)`
  const { usr2, port, me } = await startApp(t, app({ before: crash, routes: exit }), {
    flags: ['--workers', '2', '--max-restarts', '2', '--min-uptime', '1h'],
  })
  await usr2.ready()
  writeFileSync(join(usr2.cwd, 'crash1'), '')
  const status = await usr2.status()
  const pidOf = (slot: number) =>
    status.generations.flatMap(({ workers }) => workers).find((worker) => worker.slot === slot)?.pid ?? 0
  await kill(usr2, pidOf(1))
  await until(() => deathsOf(usr2, 1).length >= 5, { timeoutMs: 15_000, what: '5 deaths of slot 1' })
  t.equal((await me()).slot, '0', 'twice past its limit, and the other slot serves')
  t.equal((await usr2.cli('status')).code, 1, 'usr2 status: degraded')

  writeFileSync(join(usr2.cwd, 'crash0'), '')
  await get({ port }, '/exit').catch(() => {})
  t.equal((await usr2.process.ended(30_000)).code, 1)
  t.equal(deathsOf(usr2, 0).length, 3, 'only when the last slot was past it, too')
  t.match(deathsOf(usr2, 0)[0]?.msg, 'exited with status 10')
  await expectNothingLeft(t, usr2.process)
})

t.test('with every slot past its limit, one that serves again is enough to go on', async (t) => {
  const { usr2 } = await startApp(t, app(), {
    flags: ['--workers', '2', '--max-restarts', '0', '--min-uptime', '1h'],
  })
  await usr2.ready()
  for (const slot of [0, 1]) {
    const { generations } = await usr2.status()
    const from = usr2.process.lines.length
    await kill(usr2, generations[0]?.workers.find((worker) => worker.slot === slot)?.pid ?? 0)
    await usr2.event('worker-ready', { from })
  }
  t.equal((await usr2.status()).ready, 2)
  await usr2.stop()
})

t.test('a first generation that does not start ends usr2 with its own words', async (t) => {
  const cases: Record<string, { readonly files: Record<string, string>; readonly says: RegExp }> = {
    'an exception at top level': {
      files: { 'app.cjs': `throw new TypeError('the config has no port')` },
      says: /exited with status 1: TypeError: the config has no port \(at .*app\.cjs:1:7/,
    },
    'a syntax error': {
      files: { 'app.cjs': `const x = ;` },
      says: /exited with status 1: SyntaxError: .*app\.cjs:1/,
    },
    'a missing CommonJS module': {
      files: { 'app.cjs': `require('./not-there')` },
      says: /Cannot find module '\.\/not-there'/,
    },
    'a missing ES module': {
      files: { 'app.mjs': `import './not-there.mjs'` },
      says: /exited with status 1: .*Cannot find module .*not-there\.mjs/,
    },
    'a named export that is none': {
      files: { 'app.mjs': `import { nothing } from './other.mjs'`, 'other.mjs': `export const x = 1` },
      says: /exited with status 1: SyntaxError: .*nothing/,
    },
    'process.exit after a word on stderr': {
      files: { 'app.cjs': `console.error('DATABASE_URL is not set'); process.exit(3)` },
      says: /exited with status 3: DATABASE_URL is not set/,
    },
    'an unhandled rejection': {
      files: { 'app.cjs': `Promise.reject(new Error('the queue is gone')); setInterval(() => {}, 1000)` },
      says: /exited with status 1: Error: the queue is gone/,
    },
    'a SIGKILL': {
      files: { 'app.cjs': `process.kill(process.pid, 'SIGKILL')` },
      says: /was killed by SIGKILL/,
    },
    'an app that just ends': {
      files: { 'app.cjs': `1 + 1` },
      says: /exited with status 0/,
    },
  }
  const inOrder = Object.entries(cases)
  const started = inOrder.map(([name, { files, says }]) => {
    return { name, says, usr2: startUsr2(t, { entry: Object.keys(files)[0], files }) }
  })
  for (const { name, says, usr2 } of started) {
    t.equal((await usr2.process.ended(60_000)).code, 1, `${name}: exit status 1`)
    t.match((await usr2.event('stopped')).msg, says, `${name}: in its own words`)
    await expectNothingLeft(t, usr2.process)
    t.same(readdirSync(join(usr2.control, '..')), ['app'], `${name}: no file is left`)
  }
})

t.test('a worker whose master was killed finishes its request and leaves', async (t) => {
  const { usr2, port, me } = await startApp(t, app())
  await usr2.ready()
  const { pid } = await me()
  const slow = get({ port }, '/slow?ms=1500')
  await usr2.process.line('slow began')
  usr2.process.kill('SIGKILL')
  await usr2.process.exited
  const isRefused = () =>
    get({ port }, '/', 300).then(
      () => false,
      (error: NodeJS.ErrnoException) => error.code === 'ECONNREFUSED',
    )
  let isAnswered = false
  void slow.finally(() => (isAnswered = true))
  await until(isRefused, { timeoutMs: 10_000, what: 'the worker to give its copy of the listener back' })
  t.notOk(isAnswered, 'nothing holds the port any more, while the request is still in flight')
  t.match(await slow, { status: 200, body: 'slow but whole' })
  await untilGone(usr2.process, [pid], 'the worker to leave')
  t.same(processesWithToken(usr2.process.token), [])

  // The next master of that name takes over what the dead one left.
  const directory = join(usr2.control, '..')
  const isOurs = (name: string): boolean => name.startsWith('.usr2-')
  t.equal(readdirSync(directory).filter(isOurs).length, 1, 'a killed master cannot clean up')
  const args = [CLI, 'run', '--control', usr2.control, '--name', 't', 'app.cjs']
  const next = start(t, process.execPath, { name: 'next', args, cwd: usr2.cwd, env: { PORT: String(port) } })
  await next.line('"event":"ready"')
  t.not((await me()).pid, pid)
  t.match(readdirSync(directory).filter(isOurs).join(), new RegExp(`^\\.usr2-t-${next.pid}-\\w{6}$`))
  next.kill()
  t.equal((await next.ended()).code, 0)
  await expectNothingLeft(t, next)
  t.same(readdirSync(directory), ['app'])
})

t.test('what a worker leaves in its process group is ended, and the log names it', async (t) => {
  const stubborn = `process.on('SIGTERM', () => {}); setInterval(() => {}, 1000); console.log('sleeper', process.pid)`
  const routes = `case '/spawn':
    require('node:child_process')
      .spawn(process.execPath, ['-e', ${JSON.stringify(stubborn)}], { stdio: ['ignore', 'pipe', 'ignore'] })
      .stdout.on('data', (text) => res.end(String(text).split(' ')[1].trim()))
    return`
  const { usr2, port, me } = await startApp(t, app({ routes }), { flags: ['--kill-timeout', '200ms'] })
  await usr2.ready()
  const spawnSleeper = async () => Number((await get({ port }, '/spawn')).body)

  const ofKilled = await spawnSleeper()
  const { pid } = await me()
  await kill(usr2, pid)
  const first = await usr2.event('leftovers')
  t.match(first, { pid, slot: 0, left: [{ pid: ofKilled }] })
  // Of a long command, and a Node may be in a deep place, the beginning.
  t.match(first.msg, `left running: ${ofKilled} (${process.execPath}`)
  await untilGone(usr2.process, [ofKilled], 'what the killed worker left')

  const from = usr2.process.lines.length
  const ofReplaced = await spawnSleeper()
  t.equal((await usr2.reload({ flags: ['--wait', 'drained'] })).code, 0)
  t.match(await usr2.event('leftovers', { from }), { left: [{ pid: ofReplaced }] })
  await untilGone(usr2.process, [ofReplaced], 'what the replaced worker left')

  await spawnSleeper()
  await usr2.stop()
})

t.test('a worker that hangs at its drain is ended within the budget, and the log says so', async (t) => {
  const routes = `case '/hang': for (;;);`
  const { usr2, port, me } = await startApp(t, app({ routes }), {
    flags: ['--drain-timeout', '300ms', '--shutdown-timeout', '300ms', '--kill-timeout', '300ms'],
  })
  await usr2.ready()
  const hang = async () => {
    const { pid } = await me()
    void get({ port }, '/hang').catch(() => {})
    const isStuck = () =>
      get({ port }, '/', 300).then(
        () => false,
        () => true,
      )
    await until(isStuck, { timeoutMs: 5_000, what: 'the worker to hang' })
    return pid
  }
  const first = await hang()
  t.equal((await usr2.reload()).code, 0, 'a hanging worker does not hold up its successor')
  await untilGone(usr2.process, [first], 'the hanging worker to be killed')
  const ends = usr2.events().filter((line) => line['pid'] === first)
  t.match(
    ends.map(({ event }) => event).filter((event) => /terminated|killed/.test(event)),
    ['terminated', 'killed'],
  )
  t.match(ends.find(({ event }) => event === 'killed')?.msg, /SIGKILL/)

  const second = await hang()
  await usr2.stop()
  t.ok(usr2.events().some(({ event, pid }) => event === 'killed' && pid === second))
})

t.test('a vacancy is refilled from its own version, wherever the link points by now', async (t) => {
  const root = shortTmp(t)
  const port = await freePort(t)
  const files = (bootMs: number) => ({ 'app.cjs': app({ bootMs: String(bootMs) }) })
  deploy(root, '1', { files: files(0) })
  // As a shell does it: `cd current && usr2 run app.cjs`.
  const cwd = join(root, 'current')
  const usr2 = startUsr2(t, { cwd, entry: 'app.cjs', env: { PORT: String(port), PWD: cwd } })
  await usr2.ready()
  const me = () => getJson<Me>({ port })
  const killed = async () => {
    const { pid } = await me()
    await kill(usr2, pid)
    return until(() => me().then((now) => now.pid !== pid && now), { timeoutMs: 10_000, what: 'a refill' })
  }

  deploy(root, '2', { files: files(1_000) })
  t.equal((await killed()).version, '1', 'the link has moved and nobody has asked for a reload')

  usr2.signal('SIGUSR2')
  await usr2.event('candidate')
  t.match(await killed(), { version: '1', generation: '1' }, 'during the rollout of the next version')
  // At the promotion itself the old worker may accept a last one.
  await usr2.event('drained')
  t.match(await me(), { version: '2', generation: '2' })
  t.match(await killed(), { version: '2', generation: '2' })
  await usr2.stop()
})

t.test('a worker that floods the master with forged messages harms itself at most', async (t) => {
  const flood = `case '/flood': {
    const forge = (message) => process.send({ cmd: 'NODE_USR2', ...message })
    const strange = [undefined, null, -1, 1e308, NaN, '', 'x'.repeat(1e5), [], {}, { kind: 'tcp' }, true]
    const kinds = ['hello', 'claim', 'verified', 'claimed', 'unclaimed', 'private', 'opened', 'withdrawn', 'ready',
      'draining', 'counts', 'drained', 'failed', 'stderr', 'signalled', 'warning', 'ticket-keys-asked', 'toString', '__proto__', 7]
    for (const t of kinds)
      for (const x of strange)
        forge({ t, id: x, key: x, address: x, backlog: x, error: x, counts: x, cut: x, failure: x, text: x, signal: x,
          timeoutMs: x, version: x, node: x, fingerprint: x })
    const port = Number(process.env.PORT)
    const claim = (address, id) => forge({ t: 'claim', id, address, backlog: 511 })
    for (let i = 0; i < 2000; i++) {
      forge({ t: 'verified', key: 'tcp:127.0.0.1:' + port, error: null })
      forge({ t: 'opened', key: 'tcp:127.0.0.1:' + i, error: null })
      claim({ kind: 'tcp', host: 'nonsense' + i, port: 1 + i }, 1e15 + i)
      claim({ kind: 'tcp', host: '127.0.0.1', port }, Number.MAX_VALUE)
      claim({ kind: 'tcp', host: '0.0.0.0', port }, i)
      claim({ kind: 'unix', path: '/proc/nowhere/' + i }, i)
      forge({ t: 'draining', timeoutMs: 1e300 })
    }
    for (let i = 0; i < 20; i++) claim({ kind: 'tcp', host: '127.0.0.1', port: Number(process.env.TAKEN) }, i)
    process.send({ cmd: 'NODE_HANDLE' }); process.send({ cmd: 'NODE_HANDLE_ACK' }); process.send('x'.repeat(1e6))
    return res.end('sent')
  }`
  const taken = await freePort(t)
  const { usr2, port, me } = await startApp(t, app({ routes: flood }), {
    env: { TAKEN: String(taken) },
    flags: ['--workers', '2', '--drain-timeout', '2s'],
  })
  await usr2.ready()
  t.equal((await get({ port }, '/flood')).body, 'sent')
  t.ok((await usr2.status()).pid)
  t.equal((await usr2.reload({ flags: ['--wait', 'drained'] })).code, 0, 'reloads go on')
  t.equal((await me()).generation, '2')
  await usr2.stop()
})

t.test('a worker cannot make its successors wait for an address that nobody holds', async (t) => {
  const routes = `case '/forge': process.send({ cmd: 'NODE_USR2', t: 'claimed', key: 'tcp:1.2.3.4:5', error: null });
    return res.end()`
  const { usr2, port, me } = await startApp(t, app({ routes }), { flags: ['--start-timeout', '5s'] })
  await usr2.ready()
  await get({ port }, '/forge')
  t.equal((await usr2.reload({ flags: ['--wait', 'drained'] })).code, 0)
  t.equal((await me()).generation, '2')
  await usr2.stop()
})
