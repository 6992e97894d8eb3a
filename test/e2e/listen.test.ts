/**
 * A contract with Node: whatever an app does with `listen`, it sees the same under usr2 as under bare `node`. One table
 * of calls (fixtures/listen-table.cjs) is run bare, as the first generation (every address is bound for it) and as a
 * later one (every address is held already), and everything it sees and serves is compared line by line.
 */
import { execFileSync } from 'node:child_process'
import http from 'node:http'
import http2 from 'node:http2'
import https from 'node:https'
import net from 'node:net'
import { mkdirSync, writeFileSync } from 'node:fs'
import { basename, isAbsolute, join } from 'node:path'
import t from 'tap'
import { expectNoneFailed, loadUnder, untilServed } from '../helpers/load.ts'
import type { TestLike } from '../helpers/scope.ts'
import { run, start, type TestProcess } from '../helpers/spawn.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { fixture, startUsr2 } from '../helpers/usr2.ts'
import { deadline, until } from '../helpers/wait.ts'

const PORTS = 60

// ---- Asking what the table serves ---------------------------------------------------------------------------------

interface Served {
  readonly name: string
  readonly protocol: 'http' | 'https' | 'h2c' | 'h2' | 'net'
  /** A port, or the path of a unix socket. */
  readonly at: number | string
  /** A port that Node chose. */
  readonly private: boolean
}

/** What a client gets there, over IPv4 and over IPv6. */
async function whatClientsGet(served: readonly Served[], cwd: string): Promise<string[]> {
  const lines: string[] = []
  for (const { name, protocol, at } of served) {
    const places: net.NetConnectOpts[] =
      typeof at === 'number'
        ? ['127.0.0.1', '::1'].map((host) => ({ host, port: at }))
        : [{ path: at.startsWith('\0') || isAbsolute(at) ? at : join(cwd, at) }]
    for (const place of places) {
      const how = 'path' in place ? 'its path' : place.host
      const got = await deadline(ask(protocol, place), 5_000, `an answer of "${name}"`).catch(
        (error: NodeJS.ErrnoException) => error.code ?? error.message,
      )
      lines.push(`${name}, client at ${how}: ${got}`)
    }
  }
  return lines
}

function ask(protocol: Served['protocol'], place: net.NetConnectOpts): Promise<string> {
  const text = (stream: NodeJS.ReadableStream): Promise<string> =>
    new Promise((resolve, reject) => {
      let all = ''
      stream.setEncoding('utf8')
      stream.on('data', (some) => (all += String(some))).on('end', () => resolve(all))
      stream.on('error', reject)
    })
  if (protocol === 'net') return text(net.connect(place))
  if (protocol === 'http' || protocol === 'https') {
    const options = { ...('path' in place ? { socketPath: place.path } : place), agent: false, path: '/' }
    return new Promise((resolve, reject) => {
      const answered = (response: http.IncomingMessage) => text(response).then(resolve, reject)
      const request =
        protocol === 'http'
          ? http.get(options, answered)
          : https.get({ ...options, rejectUnauthorized: false }, answered)
      request.on('error', reject)
    })
  }
  return new Promise((resolve, reject) => {
    const { host, port } = place as net.TcpNetConnectOpts
    const authority = `${protocol === 'h2' ? 'https' : 'http'}://${host?.includes(':') ? `[${host}]` : host}:${port}`
    const session = http2.connect(authority, { rejectUnauthorized: false })
    session.on('error', reject)
    const stream = session.request({ ':path': '/' })
    text(stream).then(resolve, reject)
    stream.on('close', () => session.close())
  })
}

/** `ss` shows the backlog of a listening socket, which no app can see, as its Send-Q. */
function backlogs(served: readonly Served[]): string[] {
  let text: string
  try {
    text = execFileSync('ss', ['-Hltnx'], { encoding: 'utf8' })
  } catch {
    t.comment('NOT CHECKED: the backlog of the sockets, for there is no `ss` on this machine')
    return []
  }
  const rows = text.split('\n').map((row) => row.trim().split(/\s+/))
  return served.map(({ name, at }) => {
    const place = typeof at === 'number' ? `:${at}` : basename(at).replace('\0', '@')
    const row = rows.find((columns) => columns[4]?.endsWith(place))
    return `${name}: backlog ${row?.[3]}`
  })
}

// ---- Running the table --------------------------------------------------------------------------------------------

interface Seen {
  readonly table: readonly string[]
  readonly clients: readonly string[]
  readonly backlogs: readonly string[]
}

/** The lines of the `n`th process that said something, up to and with `last`. */
async function linesOf(from: TestProcess, n: number, last: string): Promise<string[]> {
  const pids = (): string[] => [...new Set(from.stdout.flatMap((line) => /^(\d+) /.exec(line)?.[1] ?? []))]
  const isLast = ({ text }: { text: string }): boolean => {
    const pid = pids()[n]
    return pid !== undefined && new RegExp(`^${pid} ${last}$`).test(text)
  }
  await from.line(isLast, { timeoutMs: 30_000, what: `"${last}" of process ${n + 1}` })
  const pid = `${pids()[n]} `
  return from.stdout.filter((line) => line.startsWith(pid)).map((line) => line.slice(pid.length))
}

/** What was served when the table was done, seen from within and from outside. */
async function see(from: TestProcess, n: number, cwd: string): Promise<Seen> {
  const lines = await linesOf(from, n, 'table done')
  const served = lines.flatMap((line) =>
    line.startsWith('serves ') ? [JSON.parse(line.slice('serves '.length)) as Served] : [],
  )
  // Ports that Node chose differ from run to run.
  const chosen = new Set(served.filter((one) => one.private).map((one) => `"port":${one.at}`))
  const hide = (line: string): string =>
    line.replace(/"port":\d+/g, (port) => (chosen.has(port) ? '"port":(chosen)' : port))
  return {
    table: lines.filter((line) => !line.startsWith('serves ')).map(hide),
    clients: await whatClientsGet(served, cwd),
    backlogs: backlogs(served.filter((one) => !one.private)),
  }
}

/** From `GET /end` to its last line: what it says while it closes everything, and that it then just ends. */
async function end(from: TestProcess, n: number, controlPort: number): Promise<string[]> {
  const said = await ask('http', { host: '127.0.0.1', port: controlPort })
  t.equal(said, 'ending')
  const lines = await linesOf(from, n, 'exit \\d+')
  return lines.slice(lines.indexOf('table done') + 1)
}

/**
 * The one difference that is allowed: in a first-ever bind the master has to be asked, so that directly after `listen`
 * the server is not `listening` yet, as in a worker of node:cluster; and what Node makes of a `close` just then.
 */
const AT_ONCE = /: (at once|closing) listening=(true|false) address=/
const CLOSED_AT_ONCE = new Map([
  ['closed undefined', 'closed ERR_SERVER_NOT_RUNNING'],
  ['listening in close at once, listen again at once, close', 'close'],
])

function butForFirstBinds(t: TestLike, bare: readonly string[], first: readonly string[]): string[] {
  let allowed = 0
  const lines = first.map((line, at) => {
    const wanted = bare[at] ?? ''
    const isAtOnce =
      AT_ONCE.exec(wanted)?.[2] === 'true' && /listening=false address=(null|"[^"]+")$/.test(line)
    const isClosedAtOnce =
      wanted.startsWith('close at once') &&
      [...CLOSED_AT_ONCE].some(([inBare, here]) => wanted.replace(inBare, here) === line)
    if (!isAtOnce && !isClosedAtOnce) return line
    allowed++
    return wanted
  })
  t.equal(allowed > 0, true, 'a first bind is seen to be one: else this rule hides nothing and can go')
  return lines
}

async function tableFor(t: TestLike): Promise<{ env: Record<string, string>; cwd: string; ports: number[] }> {
  const ports: number[] = []
  while (ports.length < PORTS) ports.push(await freePort(t))
  const tmp = shortTmp(t)
  const cwd = join(tmp, 'app')
  mkdirSync(cwd)
  const stranger = net.createServer()
  const taken = await freePort(t)
  await new Promise<void>((resolve) => stranger.listen(taken, '127.0.0.1', resolve))
  t.teardown(() => stranger.close())
  return { env: { TABLE: JSON.stringify({ ports, taken, dir: cwd }) }, cwd, ports }
}

for (const kind of ['cjs', 'mjs']) {
  t.test(`the table of listen calls, from ${kind}`, async (t) => {
    const { env, cwd, ports } = await tableFor(t)
    const entry = fixture(`listen-table-entry.${kind}`)

    const node = start(t, process.execPath, { args: [entry], env, cwd, name: 'bare node' })
    const bare = await see(node, 0, cwd)
    const bareEnd = await end(node, 0, ports[0] ?? 0)
    t.equal((await node.ended()).code, 0)

    const flags = ['--ready', 'message', '--drain-timeout', '3s']
    const usr2 = startUsr2(t, { entry, env, cwd, flags })
    const first = await see(usr2.process, 0, cwd)
    await usr2.ready()
    const reload = await usr2.reload()
    t.equal(reload.code, 0, reload.stderr)
    const later = await see(usr2.process, 1, cwd)
    const laterEnd = await end(usr2.process, 1, ports[0] ?? 0)

    t.same(
      butForFirstBinds(t, bare.table, first.table),
      bare.table,
      'a first generation sees what a bare app sees',
    )
    t.same(first.clients, bare.clients, 'and its clients get the same')
    t.same(first.backlogs, bare.backlogs, 'with the same backlogs')
    t.same(later.table, bare.table, 'a later generation sees what a bare app sees')
    t.same(later.clients, bare.clients, 'and its clients get the same')
    t.same(later.backlogs, bare.backlogs, 'with the same backlogs')
    t.same(laterEnd, bareEnd, 'and it ends as a bare app does')
    await usr2.stop()
  })
}

// ---- What the table does not show ---------------------------------------------------------------------------------

const get = (port: number): Promise<string> => ask('http', { host: '127.0.0.1', port })

t.test('a port in use: the app gets its error as Node words it, the log says whose port it is', async (t) => {
  const PORT = String(await freePort(t))
  const stranger = net.createServer()
  await new Promise<void>((resolve) => stranger.listen(Number(PORT), '127.0.0.1', resolve))
  t.teardown(() => stranger.close())
  const entry = 'app.cjs'
  const files = { [entry]: `require('node:http').createServer().listen(${PORT}, '127.0.0.1')` }
  const usr2 = startUsr2(t, { entry, files })
  t.equal((await usr2.process.ended()).code, 1)
  const log = usr2.process.stderr.join('\n')
  t.match(log, `could not bind tcp:127.0.0.1:${PORT}: the address is in use by pid ${process.pid} (`)
  t.match(log, `listen EADDRINUSE: address already in use 127.0.0.1:${PORT}`)
})

t.test('a privileged port without the right to it', async (t) => {
  const entry = 'app.cjs'
  const app = `
    const server = require('node:http').createServer()
    server.on('error', (error) => {
      console.log(JSON.stringify({ ...error, message: error.message }))
      process.exit(1)
    })
    server.listen(...JSON.parse(process.env.LISTEN), () => process.exit())`
  // Root without this capability is as good as another user, and may read every file.
  const [node, nodeArgs] =
    process.getuid?.() === 0
      ? ['setpriv', ['--bounding-set', '-net_bind_service', process.execPath]]
      : [process.execPath, []]
  for (const LISTEN of ['[81]', '[81, "127.0.0.1"]', '[81, "::1"]']) {
    const env = { LISTEN }
    const usr2 = startUsr2(t, { entry, files: { [entry]: app }, env, node, nodeArgs })
    const bare = start(t, node, { args: [...nodeArgs, join(usr2.cwd, entry)], env, name: 'bare node' })
    await bare.exited.catch((error: Error) => t.comment(`NOT CHECKED: ${error.message}`))
    if (!bare.stdout.join('').includes('EACCES')) {
      await usr2.process.ended()
      t.comment(`NOT CHECKED: on this machine anybody may listen on port 81: ${bare.log()}`)
      continue
    }
    t.equal((await usr2.process.ended()).code, 1)
    t.same(usr2.process.stdout, bare.stdout, `listen${LISTEN} fails as in bare Node`)
    t.match(usr2.process.stderr.join('\n'), /could not bind \S+:81: this user has no right to it \(EACCES\)/)
  }
})

t.test('a unix path that is too long is refused by name', async (t) => {
  const entry = 'app.cjs'
  const name = `${'x'.repeat(108)}.sock`
  const files = { [entry]: `require('node:http').createServer().listen('${name}')` }
  const usr2 = startUsr2(t, { entry, files })
  t.equal((await usr2.process.ended()).code, 1)
  const log = usr2.process.stderr.join('\n')
  t.match(log, 'ENAMETOOLONG')
  t.match(log, /limited .*\(107 bytes/)
  t.match(log, name)
})

const ENDINGS: Readonly<Record<string, string>> = {
  'nothing to do': '',
  'a server unref’d at once': 'server.listen(port).unref()',
  'a server unref’d later': 'server.listen(port, () => server.unref())',
  'a server unref’d, with a host':
    'server.listen(port, "127.0.0.1", () => setImmediate(() => server.unref()))',
  'a server closed': 'server.listen(port, () => server.close())',
  'a server closed at once': 'server.listen(port); server.close()',
  'a listener of messages, unref’d by nobody': 'process.on("exit", () => {})',
  'a status': 'server.listen(port, () => process.exit(7))',
  'an exit code': 'process.exitCode = 5; server.listen(port, () => server.close())',
  'an exception': 'server.listen(port, () => { throw new Error("on purpose") })',
  'a rejection': 'server.listen(port, () => Promise.reject(new Error("on purpose")))',
  'nobody handles the error': 'server.listen(port, "192.0.2.1")',
}

t.test('an app ends when, and as, it does without us', async (t) => {
  const ends = await Promise.all(
    Object.entries(ENDINGS).map(async ([name, code]) => {
      const port = await freePort(t)
      const entry = 'app.cjs'
      const app = `
        const port = ${port}
        const server = require('node:http').createServer()
        process.on('exit', (status) => console.log('exit', status))
        ${code}`
      // It never says so: whatever it listens on, it only boots.
      const flags = ['--ready', 'message']
      const usr2 = startUsr2(t, { entry, files: { [entry]: app }, flags })
      const bare = start(t, process.execPath, { args: [join(usr2.cwd, entry)], name: 'bare node' })
      const [inBare, inUsr2] = await Promise.all([bare.ended(20_000), usr2.process.ended(20_000)])
      return { name, bare, usr2, inBare, inUsr2 }
    }),
  )
  for (const { name, bare, usr2, inBare, inUsr2 } of ends) {
    t.same(usr2.process.stdout, bare.stdout, name)
    t.equal(inUsr2.code, 1, 'the first generation failed')
    t.match(usr2.process.stderr.join('\n'), `exited with status ${inBare.code}`)
  }
})

t.test('a candidate whose event loop ends has failed, its gate still shut', async (t) => {
  const port = await freePort(t)
  const entry = 'app.cjs'
  const app = (more: string): string => `
    const server = require('node:http').createServer((req, res) => res.end('served'))
    server.listen(${port}, '127.0.0.1')${more}`
  const usr2 = startUsr2(t, { entry, files: { [entry]: app('') } })
  await usr2.ready()
  writeFileSync(join(usr2.cwd, entry), app('.unref()'))
  const { code, stderr } = await usr2.reload()
  t.equal(code, 1)
  t.match(stderr, /exited with status 0/)
  t.equal(await get(port), 'served')
  await usr2.stop()
})

t.test('nobody meets a candidate while one of its listens waits, of which it may die', async (t) => {
  const [port, taken] = [await freePort(t), await freePort(t)]
  const other = http.createServer().listen(taken, '127.0.0.1')
  t.teardown(() => new Promise((resolve) => other.close(resolve)))
  const entry = 'app.cjs'
  const app = (more: string): string => `
    const http = require('node:http')
    const answer = (req, res) => res.end(JSON.stringify({ generation: process.env.USR2_GENERATION }))
    http.createServer(answer).listen(${port}, '127.0.0.1')\n${more}`
  const usr2 = startUsr2(t, { entry, files: { [entry]: app('') } })
  await usr2.ready()
  const load = await loadUnder(t, {
    target: { port },
    traffic: [{ mode: 'new', connections: 2, thinkMs: [2, 6] }],
    versionOf: 'generation',
  })
  await untilServed(load, '1')
  // Its only listener is held already, and it would be ready at once.
  const slow = `
    const dns = require('node:dns')
    const { existsSync } = require('node:fs')
    const { lookup } = dns
    dns.lookup = (...args) => {
      console.log('looks up')
      const gate = setInterval(() => {
        if (!existsSync('gate')) return
        clearInterval(gate)
        lookup(...args)
      }, 10)
    }
    http.createServer(answer).listen(${taken}, 'localhost')`
  writeFileSync(join(usr2.cwd, entry), app(slow))
  const reload = usr2.reload()
  await usr2.process.line(/^looks up$/)
  // Time enough for new connections to meet it, if they could.
  const { requests } = await load.snapshot()
  await until(async () => (await load.snapshot()).requests > requests + 100, {
    timeoutMs: 10_000,
    what: '100 more answers',
  })
  writeFileSync(join(usr2.cwd, 'gate'), '')
  const { code, stderr } = await reload
  t.equal(code, 1)
  t.match(stderr, `in use by pid ${process.pid} (`)
  const result = await load.stop()
  expectNoneFailed(t, result)
  t.same(Object.keys(result.versions), ['1'])
  await usr2.stop()
})

t.test('forked children and threads of the app are its own', async (t) => {
  const PORT = String(await freePort(t))
  const about = (process: TestProcess): Promise<unknown> =>
    process.line('"end of child"').then(() => process.stdout.map((line): unknown => JSON.parse(line)))

  const bare = start(t, process.execPath, { args: [fixture('descendants.cjs')], env: { PORT } })
  const inBare = await about(bare)
  bare.kill('SIGKILL')
  await bare.ended()

  const usr2 = startUsr2(t, { fixture: 'descendants.cjs', env: { PORT } })
  await usr2.ready()
  t.same(await about(usr2.process), inBare)
  t.equal(await get(Number(PORT)), 'served', 'and the server that was sent to a child serves on')
  t.equal((await usr2.status()).vacancies.length, 0)
  await usr2.stop()
})

t.test('our messages are not seen, and nothing that an app clears is missed', async (t) => {
  const PORT = await freePort(t)
  const usr2 = startUsr2(t, {
    fixture: 'clears-listeners.cjs',
    env: { PORT: String(PORT) },
    flags: ['--drain-timeout', '3s'],
  })
  await usr2.ready()
  let before = 0
  for (const generation of [1, 2, 3]) {
    if (generation > 1) t.equal((await usr2.reload()).code, 0)
    const { pid, ...rest } = JSON.parse(await get(PORT)) as { pid: number }
    t.not(pid, before)
    t.same(rest, { heard: [], listeners: 1 })
    // Without a listener these would end the worker, or start its inspector.
    for (const signal of ['SIGUSR2', 'SIGHUP', 'SIGINT', 'SIGQUIT', 'SIGUSR1'] as const)
      process.kill(pid, signal)
    t.same(JSON.parse(await get(PORT)), { pid, heard: [], listeners: 1 })
    before = pid
  }
  t.same(
    usr2.events().filter(({ event }) => event === 'worker-died'),
    [],
  )
  await usr2.stop()
})

t.test('the environment of a worker: ours, and nothing else of ours or systemd’s', async (t) => {
  const port = await freePort(t)
  const entry = 'app.cjs'
  const app = `
    console.log(JSON.stringify(process.env))
    require('node:http').createServer().listen(${port}, '127.0.0.1')`
  const notForWorkers = {
    NOTIFY_SOCKET: '/nonexistent/notify',
    WATCHDOG_USEC: '60000000',
    WATCHDOG_PID: '1',
    LISTEN_PID: '1',
    LISTEN_FDS: '1',
    LISTEN_FDNAMES: 'web',
    FDSTORE: '1',
    USR2_LOG_LEVEL: 'info',
    USR2_DRAIN_TIMEOUT: '3s',
    USR2_GUEST: '{}',
  }
  const env = { ...notForWorkers, FROM_USER: 'yes' }
  const usr2 = startUsr2(t, { entry, files: { [entry]: app }, env, flags: ['--workers', '2'] })
  await usr2.ready()
  const bare = start(t, process.execPath, {
    args: [join(usr2.cwd, entry)],
    env: { FROM_USER: 'yes' },
    name: 'bare node',
  })
  await bare.line('FROM_USER')
  bare.kill('SIGKILL')
  const inBare = JSON.parse(bare.stdout[0] ?? '') as Record<string, string>

  const workers = usr2.process.stdout
    .map((line) => JSON.parse(line) as Record<string, string>)
    .sort((a, b) => Number(a['USR2_SLOT']) - Number(b['USR2_SLOT']))
  t.equal(workers.length, 2)
  for (const [slot, seen] of workers.entries()) {
    t.same(
      { ...seen, TEST_TOKEN: '' },
      {
        ...inBare,
        TEST_TOKEN: '',
        PWD: usr2.cwd,
        NODE_APP_INSTANCE: String(slot),
        USR2_NAME: 't',
        USR2_SLOT: String(slot),
        USR2_GENERATION: '1',
        USR2_WORKERS: '2',
      },
    )
  }
  await bare.ended()
  await usr2.stop()
})

t.test('NODE_APP_INSTANCE that the user has set stays', async (t) => {
  const entry = 'app.cjs'
  const files = { [entry]: 'console.log(process.env.NODE_APP_INSTANCE)' }
  const usr2 = startUsr2(t, { entry, files, env: { NODE_APP_INSTANCE: 'mine' } })
  await usr2.process.ended()
  t.same(usr2.process.stdout, ['mine'])
})

t.test('a TypeScript entry', async (t) => {
  const port = await freePort(t)
  const entry = 'app.ts'
  const app = `
    import http, { type RequestListener } from 'node:http'
    const serve: RequestListener = (req, res) => void res.end('typed')
    http.createServer(serve).listen(${port} as number, '127.0.0.1')`
  const files = { [entry]: app, 'package.json': '{ "type": "module" }' }
  const asked = await run(t, process.execPath, { args: ['-p', 'Boolean(process.features.typescript)'] })
  const usr2 = startUsr2(t, { entry, files })
  if (asked.stdout === 'true') {
    await usr2.ready()
    t.equal(await get(port), 'typed')
    t.equal((await usr2.reload()).code, 0)
    t.equal(await get(port), 'typed')
    await usr2.stop()
  } else {
    t.equal((await usr2.process.ended()).code, 2)
    t.same(usr2.process.stderr, [
      `usr2: ${join(usr2.cwd, entry)} is TypeScript, and Node.js ${process.versions.node} does not run that by ` +
        'itself: build it to JavaScript, or use Node.js 22.18 or newer (22.6 with --node-args ' +
        '--experimental-strip-types).',
    ])
  }
})

t.test('a server that listens on another one’s handle is drained as that one would be', async (t) => {
  const port = await freePort(t)
  const entry = 'app.cjs'
  const app = `
    const http = require('node:http')
    const a = http.createServer()
    const b = http.createServer((req, res) => {
      console.log('asked')
      setTimeout(() => res.end('answered by ' + process.env.USR2_GENERATION), 1000)
    })
    a.listen(${port}, '127.0.0.1', () => b.listen(a))`
  const usr2 = startUsr2(t, { entry, files: { [entry]: app } })
  await usr2.ready()
  const answer = get(port)
  await usr2.process.line('asked')
  t.equal((await usr2.reload()).code, 0)
  t.equal(await answer, 'answered by 1')
  await usr2.stop()
})
