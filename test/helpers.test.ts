/** The helpers against processes that misbehave: a helper that overlooks them would make every other test worthless. */
import { readlinkSync, statSync, writeFileSync, readFileSync, mkdirSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import { processesWithToken } from './helpers/processes.ts'
import { Scope, TOKEN_VARIABLE } from './helpers/scope.ts'
import { expectNothingLeft, run, start } from './helpers/spawn.ts'
import { freePort, shortTmp } from './helpers/tmp.ts'
import { deploy, fixture } from './helpers/usr2.ts'
import { deadline, until } from './helpers/wait.ts'

const node = process.execPath
const script = (code: string) => ({ args: ['-e', code] })

t.test('a child sees nothing of tap, and what the test names', async (t) => {
  const { stdout } = await run(t, node, {
    ...script(`
      const signals = ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR2', 'SIGALRM']
      console.log(JSON.stringify({ env: process.env, heard: signals.filter((s) => process.listenerCount(s) > 0) }))`),
    env: { COLOUR: 'blue' },
  })
  const { env, heard } = JSON.parse(stdout) as { env: Record<string, string>; heard: string[] }
  t.same(Object.keys(env).sort(), ['COLOUR', 'HOME', 'PATH', 'TMPDIR', TOKEN_VARIABLE].sort())
  t.equal(env['COLOUR'], 'blue')
  t.same(heard, [])
})

t.test('line() finds lines of the past and of the future, of both streams', async (t) => {
  const child = start(
    t,
    node,
    script(`console.log('one'); process.stdin.on('data', () => console.error('two'))`),
  )
  t.equal((await child.line('one')).stream, 'stdout')
  t.equal((await child.line(/^on/)).index, 0, 'said already')
  const two = child.line(({ text }) => text === 'two')
  child.stdin.write('go\n')
  t.equal((await two).stream, 'stderr')
  await t.rejects(
    child.line('one', { from: 1, timeoutMs: 50 }),
    /gave up after 50 ms.*one[^]*\| one[^]*! two/,
  )
  child.kill()
  t.match(await child.exited, { code: null, signal: 'SIGTERM' })
})

t.test('line() does not wait for a process that has ended', async (t) => {
  const child = start(t, node, script(`console.error('sorry'); process.exit(3)`))
  await t.rejects(child.line('ready', { timeoutMs: 60_000 }), /ended \(exit status 3\) without[^]*sorry/)
})

t.test('the last line of a process is there when it has ended, also without a newline', async (t) => {
  const { stdout, code } = await run(t, node, script(`process.stdout.write('a\\nb'); process.exitCode = 4`))
  t.equal(stdout, 'a\nb')
  t.equal(code, 4)
})

t.test('a command that does not exist', async (t) => {
  await t.rejects(run(t, '/nowhere/node'), /could not be started: .*ENOENT/)
})

t.test('deadline() and until()', async (t) => {
  t.equal(await deadline(Promise.resolve(1), 1000, 'one'), 1)
  await t.rejects(deadline(Promise.reject(new Error('bad')), 1000, 'good'), /^bad$|bad/)
  await t.rejects(
    deadline(new Promise(() => {}), 20, 'Godot', () => 'nobody came'),
    /gave up after 20 ms waiting for Godot\nnobody came/,
  )
  let asked = 0
  t.equal(await until(() => ++asked >= 3 && 'three', { timeoutMs: 1000, what: 'three' }), 'three')
  await t.rejects(
    until(() => false, { timeoutMs: 30, what: 'the truth' }),
    /gave up after 30 ms waiting for the truth/,
  )
})

/** A program that starts a grandchild out of its own session, as a leaking supervisor would, and ends. */
const orphaning = `
  const { spawn } = require('node:child_process')
  const orphan = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)'], { detached: true, stdio: 'ignore' })
  console.log(orphan.pid)
  orphan.unref()`

t.test('expectNothingLeft() fails for an orphan and not for a neighbour', async (t) => {
  const neighbour = start(t, node, script('setInterval(() => {}, 1000)'))
  const parent = start(t, node, script(orphaning))
  const orphan = Number((await parent.line(/^\d+$/)).text)
  await parent.exited
  const failures: string[] = []
  const watching = Object.assign(Object.create(t) as typeof t, {
    fail: (why: string) => failures.push(why) > 0,
  })
  await expectNothingLeft(watching, parent, 50)
  t.equal(failures.length, 1)
  t.match(failures[0], new RegExp(`still alive: ${orphan} \\(`))
  t.same(
    processesWithToken(parent.token).map(({ pid }) => pid),
    [orphan],
  )
  process.kill(orphan, 'SIGKILL')
  await expectNothingLeft(t, parent)
  t.same(
    processesWithToken(neighbour.token).map(({ pid }) => pid),
    [neighbour.pid],
  )
  neighbour.kill()
  await neighbour.exited
})

t.test('the end of a test kills what is left, and fails after a clean stop that was none', async (t) => {
  const dir = shortTmp(t)
  const spawnModule = new URL('./helpers/spawn.ts', import.meta.url).href
  const tap = import.meta.resolve('tap')
  const testOf = (body: string) => `
    import t from ${JSON.stringify(tap)}
    import { start } from ${JSON.stringify(spawnModule)}
    t.test('inner', async (t) => { ${body} })`
  const inner = async (name: string, body: string) => {
    writeFileSync(join(dir, name), testOf(body))
    const result = await run(t, node, { args: ['--import', import.meta.resolve('tsx'), join(dir, name)] })
    return { ...result, orphan: Number(/orphan (\d+)/.exec(result.stdout)?.[1]) }
  }
  const startOrphan = `
    const parent = start(t, process.execPath, { args: ['-e', ${JSON.stringify(orphaning)}] })
    t.comment('orphan ' + (await parent.line(/^\\d+$/)).text)`

  const unclean = await inner('unclean.mts', `${startOrphan}\nawait parent.exited`)
  t.not(unclean.code, 0)
  t.match(unclean.stdout, 'every process that the test started had ended, but these were left')
  // SIGKILL was sent before that test ended; a busy kernel takes its time to carry it out.
  await until(() => isGone(unclean.orphan), { timeoutMs: 10_000, what: 'the end of the orphan' })

  const killed = await inner(
    'killed.mts',
    `start(t, process.execPath, { args: ['-e', 'setInterval(() => {}, 1000)'] })`,
  )
  t.equal(killed.code, 0, 'a child that nobody stopped is ended without a complaint')

  const failing = await inner(
    'failing.mts',
    `const child = start(t, process.execPath, { args: ['-e', 'console.log("my last words")'] })
     await child.exited
     t.fail('no')`,
  )
  t.not(failing.code, 0)
  t.match(failing.stderr, 'my last words', 'a failing test prints the logs')
})

function isGone(pid: number): boolean {
  try {
    return readFileSync(`/proc/${pid}/stat`, 'latin1').includes(') Z ')
  } catch {
    return true
  }
}

t.test('a scope gives back in order: processes, then what was taken last', async (t) => {
  const scope = new Scope()
  const order: string[] = []
  scope.finally(() => order.push('directory'))
  scope.finally(() => order.push('port'))
  await scope.end(true)
  t.same(order, ['port', 'directory'])
})

t.test('shortTmp() is short, and gone after the test', async (t) => {
  let path = ''
  await t.test('inner', async (t) => {
    path = shortTmp(t)
    writeFileSync(join(path, 'file'), '')
    t.ok(Buffer.byteLength(join(path, 'c.sock')) < 107)
  })
  t.throws(() => statSync(path), { code: 'ENOENT' })
})

t.test('freePort() never gives a port twice, and none that is in use', async (t) => {
  const ports = await Promise.all(Array.from({ length: 20 }, () => freePort(t)))
  t.equal(new Set(ports).size, 20)
  t.ok(ports.every((port) => port >= 20_000 && port < 30_000))
  const [port] = ports
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(port, '127.0.0.1', resolve))
  await new Promise((resolve) => server.close(resolve))

  let given = 0
  await t.test('inner', async (t) => {
    given = await freePort(t)
  })
  const lock = createServer()
  await new Promise<void>((resolve, reject) => {
    lock.once('error', reject).listen({ path: `\0usr2-test-port-${given}` }, resolve)
  })
  t.pass('the lock of a port is free after its test')
  await new Promise((resolve) => lock.close(resolve))
})

t.test('deploy() turns the link over to the new release', async (t) => {
  const root = shortTmp(t)
  for (const version of ['1', '2']) {
    const current = deploy(root, version, { fixture: 'http-app.cjs', files: { 'lib/a.txt': 'a' } })
    t.equal(readlinkSync(current), `releases/${version}`)
    t.equal(readFileSync(join(current, 'VERSION'), 'utf8'), version)
    t.equal(readFileSync(join(current, 'lib/a.txt'), 'utf8'), 'a')
    t.ok(statSync(join(current, 'http-app.cjs')).isFile())
  }
})

for (const name of ['http-app.cjs', 'http-app.mjs']) {
  t.test(`the fixture ${name}`, async (t) => {
    const root = shortTmp(t)
    mkdirSync(join(root, 'app'))
    const app = start(t, node, {
      args: [fixture(name)],
      env: { VERSION: '7', USR2_GENERATION: '3', BOOT_MS: '20' },
    })
    const port = (await app.line('listening')).text.split(' ')[1]
    const get = async (path: string, init?: RequestInit) =>
      (await fetch(`http://127.0.0.1:${port}${path}`, init)).text()
    const me = { version: '7', pid: app.pid, generation: '3' }
    t.same(JSON.parse(await get('/')), me)
    t.same(JSON.parse(await get('/slow?ms=30')), me)
    t.match(JSON.parse(await get('/stream?ms=250')), { ...me, ticks: /^\.+$/ })
    t.equal(await get('/echo', { method: 'POST', body: 'hello' }), 'hello')
    t.equal((await fetch(`http://127.0.0.1:${port}/none`)).status, 404)

    const path = join(root, 'a.sock')
    const other = start(t, node, { args: [fixture(name)], env: { PORT: path } })
    t.equal((await other.line('listening')).text, `listening ${path}`)
  })
}
