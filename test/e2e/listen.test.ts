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
import { mkdirSync } from 'node:fs'
import { basename, isAbsolute, join } from 'node:path'
import t from 'tap'
import type { TestLike } from '../helpers/scope.ts'
import { start, type TestProcess } from '../helpers/spawn.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { fixture, startUsr2 } from '../helpers/usr2.ts'
import { deadline } from '../helpers/wait.ts'

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
