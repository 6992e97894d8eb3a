/**
 * Whatever is wrong: one clear sentence, the right exit status, nothing started or left behind; and for a reload
 * nothing lost. The same mistakes are made at a start and, under load, at a reload.
 */
import { chmodSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { expectNoneFailed, loadUnder, untilServed } from '../helpers/load.ts'
import type { TestLike } from '../helpers/scope.ts'
import { expectNothingLeft, run } from '../helpers/spawn.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { CLI, type Files, startUsr2, type Usr2, usr2 as command, type Usr2Options } from '../helpers/usr2.ts'

type Expected = string | RegExp

/** The control directory of a master that has ended holds what the test has put there, and nothing else. */
function nothingLeftBeside(t: TestLike, usr2: Usr2): void {
  t.same(
    readdirSync(dirname(usr2.control)).filter((name) => name !== 'app'),
    [],
    'no file is left',
  )
}

/** Fails the test unless usr2 says these complaints, nothing else, and ends with status 2. */
async function isRefused(t: Test, options: Usr2Options, ...complaints: readonly Expected[]): Promise<void> {
  const usr2 = startUsr2(t, options)
  const { code } = await usr2.process.ended(20_000)
  t.equal(code, 2)
  t.same(usr2.process.stdout, [], 'the app was not started')
  const lines = usr2.process.stderr
  t.equal(lines.length, complaints.length, lines.join('\n'))
  for (const [at, complaint] of complaints.entries()) t.match(lines[at], complaint)
  for (const line of lines) t.match(line, /^usr2: \S.*[.?]$/, 'a sentence')
  await expectNothingLeft(t, usr2.process)
  nothingLeftBeside(t, usr2)
}

/** Fails the test unless usr2 starts, gives up with that reason, and ends with status 1. */
async function givesUp(t: Test, options: Usr2Options, ...reasons: readonly Expected[]): Promise<Usr2> {
  const usr2 = startUsr2(t, options)
  const { code } = await usr2.process.ended(20_000)
  t.equal(code, 1)
  const last = usr2.events().at(-1)
  t.match(last, { event: 'stopped', status: 1, level: 'error' }, usr2.logs())
  for (const reason of reasons) t.match(last?.msg, reason)
  t.same(
    usr2.events().filter(({ event }) => event === 'ready' || event === 'worker-died'),
    [],
    'it never served, and was not tried again',
  )
  await expectNothingLeft(t, usr2.process)
  nothingLeftBeside(t, usr2)
  return usr2
}

/** A program that answers as another runtime would. */
const FAKES: Readonly<Record<string, string>> = {
  // Old Node prints what it is asked for, as any Node does.
  'node-18': `echo '{"node":"18.20.8"}'`,
  'node-19.9': `echo '{"node":"19.9.0","types":false}'`,
  // Bun runs the question, and says that it is a Node as well.
  bun: `echo '{"node":"22.6.0","bun":"1.2.0"}'`,
  // Deno has no -e; it prints its version.
  deno: `[ "$1" = --version ] && echo 'deno 2.1.4 (stable, release, x86_64-unknown-linux-gnu)' || exit 1`,
  'not-a-node': `echo hello`,
}

function installFakes(t: TestLike): string {
  const bin = shortTmp(t)
  for (const [name, script] of Object.entries(FAKES)) {
    writeFileSync(join(bin, name), `#!/bin/sh\n${script}\n`)
    chmodSync(join(bin, name), 0o755)
  }
  return bin
}

const UNPARSED =
  /SyntaxError: Unexpected token ';' \(in an ES module: the worker's stderr shows the file and the line\)/

const listens = (port: number, more = ''): string =>
  `require('node:http').createServer((req, res) => res.end('served')).listen(${port}, '127.0.0.1')\n${more}`

t.test('usage: every complaint at once, each with what would be right', async (t) => {
  const right = 'a whole number from 1 to 1024, or auto'
  const app = { entry: 'app.cjs', files: { 'app.cjs': 'console.log("started")' } }
  for (const [flags, ...complaints] of [
    [['--workers', '0'], `--workers is "0"; it must be ${right}.`],
    [['--workers', '-1'], `--workers is "-1"; it must be ${right}.`],
    [['--workers', 'abc'], `--workers is "abc"; it must be ${right}.`],
    [['--workers='], `--workers is empty; it must be ${right}.`],
    [
      ['--worker', '2'],
      '--worker is no option of "usr2 run [options] <entry> [args…]"; did you mean --workers?',
    ],
    [['--drain-timout', '3s'], 'did you mean --drain-timeout?'],
    [['--ready', 'now'], '--ready is "now"; it must be listen or message.'],
    [
      ['--workers', '0', '--start-timeout', 'soon', '--nmae', 'x'],
      'did you mean --name?',
      `--workers is "0"; it must be ${right}.`,
      '--start-timeout is "soon"; it must be a time such as 500ms, 30s, 5m or 1h',
    ],
  ] satisfies [string[], ...Expected[]][]) {
    await isRefused(t, { ...app, flags }, ...complaints)
  }
  await isRefused(
    t,
    { ...app, env: { USR2_WORKERS: 'many' } },
    `USR2_WORKERS is "many"; it must be ${right}.`,
  )
  await isRefused(t, {}, 'No entry was given; say which file to run, as in "usr2 run server.js"')
})

t.test('the command itself', async (t) => {
  for (const [args, complaint] of [
    [['server.js'], '"server.js" is no command; did you mean "usr2 run server.js"?'],
    [['reloda'], '"reloda" is no command; did you mean "usr2 reload"?'],
    [['reload', '--drop', '3000'], '--drop is "3000"; it must be a listener key'],
    [['status', '--jsno'], '--jsno is no option of "usr2 status"; did you mean --json?'],
  ] satisfies [string[], string][]) {
    const { code, stdout, stderr } = await command(t, args)
    t.equal(code, 2)
    t.equal(stdout, '')
    t.match(stderr, `usr2: ${complaint}`)
    t.equal(stderr.split('\n').length, 1)
  }
})

t.test('the config file', async (t) => {
  const app = { entry: 'app.cjs', flags: ['--config', 'usr2.json'] }
  const having = (text: string): Usr2Options => ({ ...app, files: { 'app.cjs': '', 'usr2.json': text } })
  await isRefused(
    t,
    { ...app, files: { 'app.cjs': '' } },
    /\/usr2\.json cannot be read: there is no such file\.$/,
  )
  await isRefused(
    t,
    having('{ "wokers": 2 }'),
    /"wokers" in \/.*\/usr2\.json is no key of usr2; did you mean "workers"\?$/,
  )
  await isRefused(
    t,
    having('{ "workers": "two" }'),
    /"workers" in \/.*\/usr2\.json is "two"; it must be a whole number/,
  )
  await isRefused(t, having('{ "nodeArgs": "--inspect" }'), /"nodeArgs" in .* it must be options of Node/)
  await isRefused(
    t,
    having('{\n  "workers": 2,\n  "name": shop\n}'),
    /\/usr2\.json, line 3, column 11: this is not JSON; a value should be there, not shop\.$/,
  )
  await isRefused(t, having('[1]'), /\/usr2\.json must hold a JSON object, in braces\.$/)
  await isRefused(
    t,
    having('{ "workers": 0, "drainTimeout": -1, "typo": 1 }'),
    /"typo" in/,
    /"workers" in .* is 0/,
    /"drainTimeout" in .* is -1/,
  )
  await isRefused(
    t,
    { entry: 'app.cjs', files: { 'app.cjs': '', 'package.json': '{\n "usr2": {\n   "workers": 1,,\n }}' } },
    /\/package\.json, line 3, column 17: this is not JSON/,
  )
})

t.test('an entry that cannot be used', async (t) => {
  const refusal = async (
    entry: string,
    files: Files,
    complaint: Expected,
    args?: readonly string[],
  ): Promise<void> => isRefused(t, { entry, files, args }, complaint)
  await refusal('none.js', {}, /Could not find the entry \/.*\/none\.js: there is no such file\.$/)
  await refusal(
    'app.js/x.js',
    { 'app.js': '' },
    /Could not find the entry .*: a part of the path is not a directory\.$/,
  )
  await refusal('lib', { 'lib/x.txt': '' }, /The entry \/.*\/lib is a directory without a main file\.$/)
  await refusal('data.json', { 'data.json': '{}' }, /The entry \/.*\/data\.json is not a JavaScript file/)

  const manifest = (start: string): Files => ({
    'package.json': JSON.stringify({ name: 'x', scripts: { start } }),
  })
  await refusal(
    'npm',
    manifest('node server.js'),
    /only starts another Node \(npm\).*usr2 run server\.js\.$/,
    ['start'],
  )
  await refusal('npx', {}, /only starts another Node \(npx\).*usr2 run app\.ts\.$/, ['tsx', 'app.ts'])
  await refusal('start.sh', { 'start.sh': '#!/bin/sh\nnode app.js' }, /The entry .*\/start\.sh is /)
  await refusal(
    'start',
    { start: '#!/usr/bin/env bash\nexec node app.js' },
    /is a script for \/usr\/bin\/env bash/,
  )
  // Not only by its name: whatever file the path leads to, as node_modules/.bin does.
  const tsx: Files = {
    'node_modules/tsx/package.json': '{ "name": "tsx", "version": "4.0.0" }',
    'node_modules/tsx/dist/cli.mjs': '#!/usr/bin/env node\nconsole.log("started")',
  }
  const linked = shortTmp(t)
  mkdirSync(join(linked, 'node_modules/.bin'), { recursive: true })
  symlinkSync('../tsx/dist/cli.mjs', join(linked, 'node_modules/.bin/tsx'))
  await isRefused(
    t,
    { cwd: linked, files: tsx, entry: 'node_modules/.bin/tsx', args: ['server.ts'] },
    /only starts another Node \(tsx\), .*usr2 run server\.ts\.$/,
  )
})

/** Root may read and write everything, unless it gives that right up. */
const UNPRIVILEGED: Pick<Usr2Options, 'node' | 'nodeArgs'> =
  process.getuid?.() === 0
    ? { node: 'setpriv', nodeArgs: ['--bounding-set', '-dac_override,-dac_read_search', process.execPath] }
    : {}

t.test('files and directories without the right to them', async (t) => {
  const cwd = shortTmp(t)
  writeFileSync(join(cwd, 'app.cjs'), 'console.log("started")')
  chmodSync(join(cwd, 'app.cjs'), 0)
  const complaint = /Could not read the entry \/.*\/app\.cjs: this user may not read it\.$/
  await isRefused(t, { ...UNPRIVILEGED, cwd, entry: 'app.cjs' }, complaint)

  const locked = join(cwd, 'locked')
  mkdirSync(locked, { mode: 0o555 })
  chmodSync(join(cwd, 'app.cjs'), 0o644)
  const [node = process.execPath, ...nodeArgs] = [UNPRIVILEGED.node, ...(UNPRIVILEGED.nodeArgs ?? [])]
  for (const control of ['locked/c.sock', 'locked/sub/c.sock', 'app.cjs/c.sock']) {
    const args = [...nodeArgs, CLI, 'run', '--control', control, 'app.cjs']
    const { code, stdout, stderr } = await run(t, node, { args, cwd, name: 'usr2 run' })
    t.equal(code, 1)
    t.equal(stdout, '', 'the app was not started')
    t.match(
      stderr,
      /^usr2: There is no place for the control socket: \S+ cannot be written.*pass --control PATH/,
    )
    t.equal(stderr.split('\n').length, 1)
  }
  t.same(readdirSync(cwd).sort(), ['app.cjs', 'locked'])
})

t.test('a control socket', async (t) => {
  const port = await freePort(t)
  const files = { 'app.cjs': listens(port) }
  const first = startUsr2(t, { entry: 'app.cjs', files })
  await first.ready()
  const second = await command(t, ['run', '--control', first.control, join(first.cwd, 'app.cjs')])
  t.equal(second.code, 1)
  t.match(second.stderr, new RegExp(`^usr2: .*${first.control}.*pid ${first.pid}`))
  t.equal(second.stderr.split('\n').length, 1)
  t.match(await first.status(), { ready: 1, pid: first.pid }, 'the first one is as it was')
  await first.stop()
  nothingLeftBeside(t, first)

  const long = join(first.cwd, `${'x'.repeat(108)}.sock`)
  const tooLong = await command(t, ['run', '--control', long, join(first.cwd, 'app.cjs')])
  t.equal(tooLong.code, 2)
  t.match(
    tooLong.stderr,
    `--control is ${long}, ${Buffer.byteLength(long)} bytes; the path of a unix socket has room for 107.`,
  )
})

t.test('a Node binary that cannot be used', async (t) => {
  const bin = installFakes(t)
  const app = { entry: 'app.cjs', files: { 'app.cjs': 'console.log("started")' } }
  for (const [name, complaint] of [
    ['node-18', 'it is Node.js 18.20.8, and usr2 needs 20 or newer.'],
    ['node-19.9', 'it is Node.js 19.9.0, and usr2 needs 20 or newer.'],
    ['bun', 'it is Bun, and handing over sockets needs Node.js 20 or newer'],
    ['deno', 'it is Deno, and handing over sockets needs Node.js 20 or newer'],
    ['not-a-node', 'it is not Node.js'],
    ['none', `There is no program ${join(bin, 'none')} to run the workers with`],
  ] satisfies [string, string][]) {
    await isRefused(t, { ...app, flags: ['--node', join(bin, name)] }, complaint)
  }
})

t.test('a first generation that cannot start', async (t) => {
  const port = await freePort(t)
  const fast = ['--start-timeout', '1s', '--shutdown-timeout', '1s', '--kill-timeout', '1s']
  const fails = (entry: string, text: string, ...reasons: readonly Expected[]): Promise<Usr2> =>
    givesUp(t, { entry, files: { [entry]: text }, flags: fast }, ...reasons)

  await fails('app.cjs', 'const x = ;', /SyntaxError: Unexpected token ';'.*\/app\.cjs:1/)
  const inModule = await fails('app.mjs', 'const x = ;', UNPARSED)
  t.match(inModule.process.stderr.join('\n'), /\/app\.mjs:1\n/)
  await fails('app.cjs', 'require("./missing.cjs")', /Cannot find module '\.\/missing\.cjs'/)
  await fails('app.mjs', 'import "./missing.mjs"', /Cannot find module '.*\/missing\.mjs'/)
  await fails(
    'app.cjs',
    'throw new TypeError("no database")',
    /TypeError: no database \(at .*\/app\.cjs:1:7\)/,
  )
  await fails('app.cjs', 'console.error("no database"); process.exit(3)', /exited with status 3: no database/)
  await fails('app.cjs', 'process.kill(process.pid, "SIGKILL")', /was killed by SIGKILL/)
  await fails(
    'app.cjs',
    'setInterval(() => {}, 1000)',
    /did not listen on any address within the start timeout of 1 s/,
  )
  await fails('app.cjs', 'for (;;);', /did not listen on any address within the start timeout of 1 s/)
  await fails(
    'app.cjs',
    `const cluster = require('node:cluster')
     if (cluster.isPrimary) cluster.fork()
     else ${listens(port)}`,
    /this app forks workers of its own with node:cluster.*--workers N.*\/app\.cjs:2/,
  )

  const stranger = net.createServer()
  await new Promise<void>((resolve) => stranger.listen(port, '127.0.0.1', resolve))
  t.teardown(() => stranger.close())
  const owner = `the address is in use by pid ${process.pid} (`
  const inUse = `listen EADDRINUSE: address already in use 127.0.0.1:${port}`
  const log = (await fails('app.cjs', listens(port), inUse, owner)).events().at(-1)?.msg
  t.notMatch(log, 'preload.cjs', 'no place in our own code is named')
  const other = await freePort(t)
  await fails('app.cjs', listens(other, listens(port)), owner)
  await fails('app.cjs', `require('node:net').createServer().listen('${'x'.repeat(108)}')`, 'ENAMETOOLONG')
})

t.test('the same at a reload, under load: nothing is lost', async (t) => {
  const port = await freePort(t)
  const other = await freePort(t)
  const bin = installFakes(t)
  const stranger = net.createServer()
  const taken = await freePort(t)
  await new Promise<void>((resolve) => stranger.listen(taken, '127.0.0.1', resolve))
  t.teardown(() => stranger.close())

  const answers = `(req, res) => res.end(JSON.stringify({ generation: process.env.USR2_GENERATION }))`
  const good = `const http = require('node:http')
    http.createServer(${answers}).listen(${port}, '127.0.0.1')
    http.createServer(${answers}).listen(${other}, '0.0.0.0')\n`
  // Long enough for one that yields to all of this load while it boots.
  const times = { startTimeout: '3s', shutdownTimeout: '1s', killTimeout: '1s', drainTimeout: '6s' }
  const config = (more: object): string => JSON.stringify({ ...times, entry: 'app.cjs', workers: 2, ...more })
  const files = { 'app.cjs': good, 'usr2.json': config({}) }
  const usr2 = startUsr2(t, { files, flags: ['--config', 'usr2.json'] })
  await usr2.ready()
  const load = await loadUnder(t, {
    target: { port },
    traffic: [
      { mode: 'new', connections: 2, thinkMs: [5, 20] },
      { mode: 'keepalive', connections: 4, thinkMs: [5, 20] },
    ],
    versionOf: 'generation',
  })
  await untilServed(load, '1')

  const only = (where: number, host = '127.0.0.1'): string =>
    `require('node:http').createServer(${answers}).listen(${where}, '${host}')\n`
  const LATE = 'within the start timeout of 3 s'
  for (const [name, written, ...reasons] of [
    ['an entry that is gone', { 'usr2.json': config({ entry: 'none.js' }) }, 'Could not find the entry'],
    ['npm', { 'usr2.json': config({ entry: 'npm', args: ['start'] }) }, 'only starts another Node (npm)'],
    ['a shell script', { 'usr2.json': config({ entry: 'run.sh' }), 'run.sh': '#!/bin/sh\n' }, 'run.sh'],
    ['no workers', { 'usr2.json': config({ workers: 0 }) }, '"workers" in'],
    ['an unknown key', { 'usr2.json': config({ worker: 1 }) }, 'did you mean "workers"?'],
    ['broken JSON', { 'usr2.json': '{\n"workers": 2' }, 'usr2.json, line 2, column 13: this is not JSON'],
    ['an old Node', { 'usr2.json': config({ node: join(bin, 'node-18') }) }, 'it is Node.js 18.20.8'],
    ['Bun', { 'usr2.json': config({ node: join(bin, 'bun') }) }, 'it is Bun'],
    ['Deno', { 'usr2.json': config({ node: join(bin, 'deno') }) }, 'it is Deno'],
    ['no Node', { 'usr2.json': config({ node: join(bin, 'none') }) }, 'There is no program'],
    ['a syntax error', { 'app.cjs': `${good}const x = ;` }, /SyntaxError: Unexpected token ';'.*app\.cjs:4/],
    [
      'a syntax error in a module',
      { 'usr2.json': config({ entry: 'app.mjs' }), 'app.mjs': 'const x = ;' },
      UNPARSED,
    ],
    ['an exception', { 'app.cjs': `${good}throw new Error('no database')` }, 'Error: no database (at '],
    ['a late exception', { 'app.cjs': 'setImmediate(() => { throw new Error("later") })' }, 'Error: later'],
    ['an end without a word', { 'app.cjs': '' }, 'exited with status 0'],
    ['a status', { 'app.cjs': 'console.error("no database"); process.exit(3)' }, 'status 3: no database'],
    ['a death', { 'app.cjs': 'process.kill(process.pid, "SIGKILL")' }, 'was killed by SIGKILL'],
    ['no listener', { 'app.cjs': 'setInterval(() => {}, 1000)' }, `tcp:127.0.0.1:${port}`, LATE],
    ['a loop', { 'app.cjs': 'for (;;);' }, LATE],
    [
      'another address',
      { 'app.cjs': only(port) + only(other) },
      `it overlaps tcp:0.0.0.0:${other}, which`,
      `could not bind tcp:127.0.0.1:${other}`,
    ],
    [
      'a wider address',
      { 'app.cjs': only(port, '0.0.0.0') + only(other, '0.0.0.0') },
      `could not bind tcp:0.0.0.0:${port}: it overlaps tcp:127.0.0.1:${port}, which`,
    ],
    [
      'one listener too few',
      { 'app.cjs': only(port) },
      `did not listen on tcp:0.0.0.0:${other} ${LATE}`,
      `usr2 reload --drop tcp:0.0.0.0:${other}`,
    ],
    ['a port of somebody else', { 'app.cjs': good + only(taken) }, `in use by pid ${process.pid} (`],
    [
      'a path that is too long',
      { 'app.cjs': `${good}http.createServer().listen('${'x'.repeat(108)}')` },
      'ENAMETOOLONG',
    ],
    [
      'cluster',
      { 'app.cjs': `${good}require('node:cluster').fork()` },
      'forks workers of its own with node:cluster',
    ],
  ] satisfies [string, Files, ...Expected[]][]) {
    for (const [file, text] of Object.entries({ ...files, ...written }))
      writeFileSync(join(usr2.cwd, file), text)
    const { code, stdout, stderr } = await usr2.reload()
    t.equal(code, 1, `${name}: ${stdout}`)
    const lines = stderr.split('\n')
    t.equal(lines.length, 1, stderr)
    t.match(
      lines[0],
      /^usr2: (the reload was refused, generation 1 serves on|generation \d+ was rolled back after .*, generation 1 serves on): /,
    )
    for (const reason of reasons) t.match(lines[0], reason, name)
  }
  t.same(Object.keys((await load.snapshot()).versions), ['1'], 'nobody has met any of them')
  const listeners = [`tcp:127.0.0.1:${port}`, `tcp:0.0.0.0:${other}`]
  t.same(
    (await usr2.status()).listeners.map(({ key }) => key).sort(),
    listeners.sort(),
    'nothing stays bound of what only a bad candidate listened on',
  )

  for (const [file, text] of Object.entries(files)) writeFileSync(join(usr2.cwd, file), text)
  t.equal((await usr2.reload()).code, 0, 'and a good one is promoted')
  const { versions } = await load.snapshot()
  const newest = (await usr2.status()).generations.find(({ role }) => role === 'current')?.id
  await untilServed(load, String(newest))
  expectNoneFailed(t, await load.stop())
  t.same(
    Object.keys(versions).filter((version) => !['1', String(newest)].includes(version)),
    [],
  )
  await usr2.stop()
  nothingLeftBeside(t, usr2)
})

t.test('a listener is dropped when asked, is refused afterwards, and can come back', async (t) => {
  const port = await freePort(t)
  const other = await freePort(t)
  const both = { 'app.cjs': listens(port, listens(other)) }
  const usr2 = startUsr2(t, {
    entry: 'app.cjs',
    files: both,
    flags: ['--workers', '2', '--start-timeout', '3s', '--drain-timeout', '6s'],
  })
  await usr2.ready()
  const connects = (to: number): Promise<string> =>
    new Promise((resolve) => {
      const socket = net.connect(to, '127.0.0.1')
      socket
        .once('connect', () => socket.destroy())
        .once('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? ''))
      socket.once('close', (hadError) => hadError || resolve('connected'))
    })
  const key = `tcp:127.0.0.1:${other}`
  const keys = async (): Promise<string[]> => (await usr2.status()).listeners.map((listener) => listener.key)

  writeFileSync(join(usr2.cwd, 'app.cjs'), listens(port))
  const refused = await usr2.reload()
  t.match(refused, { code: 1, stderr: `--drop ${key}` })
  t.equal(await connects(other), 'connected')

  // As long as the new version does listen there, it stays.
  writeFileSync(join(usr2.cwd, 'app.cjs'), both['app.cjs'])
  t.equal((await usr2.reload({ flags: ['--drop', key] })).code, 0)
  t.equal(await connects(other), 'connected')

  writeFileSync(join(usr2.cwd, 'app.cjs'), listens(port))
  t.equal((await usr2.reload({ flags: ['--drop', key, '--wait', 'drained'] })).code, 0)
  t.equal(await connects(other), 'ECONNREFUSED')
  t.same(await keys(), [`tcp:127.0.0.1:${port}`])
  t.equal((await usr2.reload()).code, 0, 'nobody asks for it any more')

  writeFileSync(join(usr2.cwd, 'app.cjs'), both['app.cjs'])
  t.equal((await usr2.reload()).code, 0)
  t.equal(await connects(other), 'connected')
  t.same((await keys()).sort(), [`tcp:127.0.0.1:${port}`, key].sort())
  await usr2.stop()
  t.equal(await connects(other), 'ECONNREFUSED')
  nothingLeftBeside(t, usr2)
})
