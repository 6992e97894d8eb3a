/** The master itself replaced (docs/upgrade.md): under load, with nothing lost, and nothing changed where it fails. */
import { existsSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { Status } from '../../src/master/face.ts'
import { get } from '../helpers/http.ts'
import { expectNoneFailed, loadUnder, untilServed } from '../helpers/load.ts'
import { openRaw } from '../helpers/raw-client.ts'
import { expectNothingLeft } from '../helpers/spawn.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { APP, TRAFFIC, copyOfUsr2, hello, startBoth, stopAll } from '../helpers/upgrades.ts'
import { deploy, startUsr2, type LogEvent, type Usr2 } from '../helpers/usr2.ts'
import { until } from '../helpers/wait.ts'

t.test('twice in a row, under load, over TCP and a unix socket', async (t) => {
  const { usr2, port, path } = await startBoth(t, { flags: ['--pid-file', 'pid'] })
  const pidFile = join(usr2.cwd, 'pid')
  const loads = [
    await loadUnder(t, { target: { port }, traffic: TRAFFIC, versionOf: 'generation' }),
    await loadUnder(t, {
      target: { path },
      traffic: [{ mode: 'new', connections: 2, thinkMs: [2, 6] }],
      versionOf: 'generation',
    }),
  ]
  for (const load of loads) await untilServed(load, '1')
  const polling = poll(usr2)
  const pids = [usr2.pid]
  for (const generation of [2, 3]) {
    const { code, stdout, stderr } = await usr2.cli('upgrade')
    t.equal(code, 0, `${stdout}${stderr}`)
    const { pid, generations, state } = await usr2.status()
    t.equal(state, 'steady')
    t.notOk(pids.includes(pid), 'another process is the master')
    t.equal(readFileSync(pidFile, 'utf8'), `${pid}\n`)
    t.same(
      generations.map(({ id, role }) => [id, role]),
      [[generation, 'current']],
    )
    for (const load of loads) await untilServed(load, String(generation))
    pids.push(pid)
  }
  const left = () => usr2.events().filter(({ event }) => event === 'left').length === 2
  await until(left, { timeoutMs: 30_000, what: 'both old masters to drain', logs: () => usr2.logs() })
  t.ok(existsSync(path), 'no old master has taken the path of the unix socket with it')
  const { code } = await usr2.reload()
  t.equal(code, 0, 'the new master reloads')
  for (const load of loads) await untilServed(load, '4')
  for (const load of loads) expectNoneFailed(t, await load.stop())
  const { answers, failures } = await polling.stop()
  t.same(failures, [], `all of ${answers} questions for the status were answered`)
  t.ok(answers > 3)
  const told = usr2.events().filter(({ event }) => event === 'predecessor-drained')
  t.same(
    told.map(({ generation, master }) => [generation, master]),
    [
      [1, pids[1]],
      [2, pids[2]],
    ],
    'each told its successor how its generation ended',
  )
  await stopAll(t, usr2)
  t.notOk(existsSync(path))
  t.same(
    readdirSync(usr2.cwd).filter((name) => name.startsWith('.usr2')),
    [],
  )
})

const isRoot = process.getuid?.() === 0
t.test('of a user who may nothing', { skip: !isRoot && 'only root may become another' }, async (t) => {
  const ids = { uid: 65534, gid: 65534 }
  // The checkout may be closed to others.
  const { cli } = copyOfUsr2(t)
  const { usr2, port, path } = await startBoth(t, { ids, cli })
  const load = await loadUnder(t, { target: { port }, traffic: TRAFFIC, versionOf: 'generation' })
  await untilServed(load, '1')
  for (const generation of [2, 3]) {
    const { code, stdout, stderr } = await usr2.cli('upgrade')
    t.equal(code, 0, `${stdout}${stderr}`)
    await untilServed(load, String(generation))
    t.equal(statSync(`/proc/${(await usr2.status()).pid}`).uid, ids.uid)
  }
  expectNoneFailed(t, await load.stop())
  await stopAll(t, usr2)
  t.notOk(existsSync(path))
})

t.test('to another Node.js', async (t) => {
  const node = process.env['OTHER_NODE']
  if (!node) {
    t.pass('OTHER_NODE names no other Node.js: not tried', { skip: true })
    return
  }
  const { usr2, port } = await startBoth(t)
  const load = await loadUnder(t, { target: { port }, traffic: TRAFFIC, versionOf: 'generation' })
  await untilServed(load, '1')
  const { code, stderr } = await usr2.cli('upgrade', ['--node', node])
  t.equal(code, 0, stderr)
  t.not((await usr2.status()).node, process.versions.node)
  await untilServed(load, '2')
  expectNoneFailed(t, await load.stop())
  await stopAll(t, usr2)
})

t.test('one operation at a time', async (t) => {
  const { usr2 } = await startBoth(t, { env: { BOOT_MS: '0' } })
  // It listens when there is a file `go`.
  const gated = `
    const at = setInterval(() => {
      if (!require('node:fs').existsSync(__dirname + '/go')) return
      clearInterval(at)
      ${APP}
    }, 20)`
  const go = join(usr2.cwd, 'go')
  writeFileSync(join(usr2.cwd, 'app.cjs'), gated)
  const upgrading = usr2.cli('upgrade')
  await hello(usr2)
  for (const command of ['reload', 'rollback', 'upgrade']) {
    const { code, stderr } = await usr2.cli(command)
    t.equal(code, 1)
    t.match(stderr, 'The master is being upgraded')
  }
  writeFileSync(go, '')
  t.equal((await upgrading).code, 0)
  rmSync(go)
  const reloading = usr2.reload()
  const began = () => usr2.events().some(({ event }) => event === 'candidate')
  await until(began, { timeoutMs: 10_000, what: 'a reload', logs: () => usr2.logs() })
  const { code, stderr } = await usr2.cli('upgrade')
  t.equal(code, 1)
  t.match(stderr, 'has a rollout under way')
  writeFileSync(go, '')
  t.equal((await reloading).code, 0)
  await stopAll(t, usr2)
})

for (const who of ['the new master', 'the old master']) {
  t.test(`a stop of ${who} while the old one drains`, async (t) => {
    const { usr2, port } = await startBoth(t)
    const slow = await openRaw(t, { port })
    slow.send('POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\nab')
    await until(async () => (await usr2.status()).generations[0]?.workers.some(({ active }) => active > 0), {
      timeoutMs: 10_000,
      what: 'a request in flight',
    })
    t.equal((await usr2.cli('upgrade')).code, 0)
    const { pid } = await usr2.status()
    process.kill(who === 'the new master' ? pid : usr2.pid, 'SIGTERM')
    const isTold = ({ event }: LogEvent) => event === 'signal'
    await until(() => usr2.events().some(isTold), {
      timeoutMs: 10_000,
      what: 'the signal',
      logs: () => usr2.logs(),
    })
    slow.send('cd')
    t.equal((await slow.response()).status, 200, 'what was in flight is answered')
    await expectNothingLeft(t, usr2.process, 10_000)
    t.notOk(existsSync(usr2.control))
    const ends = () => usr2.events().filter(({ event }) => event === 'left' || event === 'stopped')
    const stopped = await until(() => ends().length === 2 && ends(), {
      timeoutMs: 5_000,
      what: 'the last words of both masters',
      logs: () => usr2.logs(),
    })
    t.same(
      stopped.map(({ event, master }) => [event, master === pid]),
      [
        ['left', false],
        ['stopped', true],
      ],
      'the new master has waited for the old one: systemd kills what is left when the main process ends',
    )
  })
}

t.test('what can be gone back to: also what served before the upgrade, with its environment', async (t) => {
  const root = shortTmp(t)
  const port = await freePort(t)
  const app = `
    const version = require('node:fs').readFileSync(__dirname + '/VERSION', 'utf8')
    require('node:http').createServer((_, res) => res.end(version + process.env.SECRET)).listen(${port}, '127.0.0.1')`
  const put = (version: string) => {
    writeFileSync(join(root, '.env'), `SECRET=secret-of-${version}`)
    return deploy(root, version, { files: { 'app.cjs': app } })
  }
  const usr2 = startUsr2(t, { cwd: root, flags: ['--env-file', '.env'], entry: `${put('1')}/app.cjs` })
  await usr2.ready()
  const does = async (...[command, ...flags]: [string, ...string[]]) => {
    const { code, stdout, stderr } = await usr2.cli(command, flags)
    t.equal(code, 0, `${command}: ${stdout}${stderr}`)
    return (await get({ port })).body
  }
  put('2')
  t.equal(await does('reload'), '2secret-of-2')
  put('3')
  t.equal(await does('upgrade'), '3secret-of-3')
  const { pid } = await usr2.status()
  t.notMatch(readFileSync(`/proc/${pid}/environ`, 'latin1'), 'secret', 'no environment has that of an app')
  t.equal(await does('rollback'), '2secret-of-2')
  t.equal(await does('upgrade'), '3secret-of-3')
  t.equal(await does('rollback', '--to', '1'), '1secret-of-1')
  writeFileSync(join(root, 'releases/2/app.cjs'), 'changed')
  const { code, stderr } = await usr2.cli('rollback', ['--to', '4'])
  t.equal(code, 1)
  t.match(stderr, 'changed in place')
  await stopAll(t, usr2)
})

t.test('what only one master can have', async (t) => {
  const metricsPort = await freePort(t)
  const { usr2 } = await startBoth(t, {
    flags: ['--metrics', `127.0.0.1:${metricsPort}`, '--config', 'usr2.json'],
    files: { 'usr2.json': JSON.stringify({ hooks: { beforeStop: 'echo yes > deregistered' } }) },
  })
  const deregistered = () => existsSync(join(usr2.cwd, 'deregistered'))
  const scrape = async () => (await openRaw(t, { port: metricsPort })).get('/metrics', 'Connection: close')
  t.match(await (await scrape()).response(), { status: 200 })
  const running = readFileSync(join(usr2.cwd, 'app.cjs'), 'utf8')
  writeFileSync(join(usr2.cwd, 'app.cjs'), 'throw new Error("no database")')
  t.equal((await usr2.cli('upgrade')).code, 1)
  t.match(await (await scrape()).response(), { status: 200 }, 'an upgrade that fails takes no metrics away')
  writeFileSync(join(usr2.cwd, 'app.cjs'), running)
  const { code, stderr } = await usr2.cli('upgrade')
  t.equal(code, 0, stderr)
  t.match(await (await scrape()).response(), { status: 200 }, 'the new master answers there')
  const left = () => usr2.events().some(({ event }) => event === 'left')
  await until(left, { timeoutMs: 30_000, what: 'the old master to drain', logs: () => usr2.logs() })
  t.notOk(deregistered(), 'no hook takes the host out of service')
  await stopAll(t, usr2)
  t.ok(deregistered())
})

// --- What the tests share ---------------------------------------------------------------------------------------------

interface Polling {
  stop(): Promise<{ readonly answers: number; readonly failures: readonly string[] }>
}

/** Asks for the status, again and again, as monitoring does. */
function poll(usr2: Usr2): Polling {
  let stopping = false
  let answers = 0
  const failures: string[] = []
  const polling = (async () => {
    while (!stopping) {
      const { code, stdout, stderr } = await usr2.cli('status', ['--json'])
      answers++
      const state = stdout === '' ? null : (JSON.parse(stdout) as Status).state
      // A master that has handed over answers whoever had connected before.
      if (code === 3 || state === null) failures.push(`${code} ${state} ${stderr}`)
    }
  })()
  return {
    async stop() {
      stopping = true
      await polling
      return { answers, failures }
    },
  }
}
