/** Sockets, and a descriptor for sd_notify(3), that a service manager passes. Here this test is the manager: it holds them. */
import { execFileSync } from 'node:child_process'
import dgram from 'node:dgram'
import { once } from 'node:events'
import {
  closeSync,
  existsSync,
  fstatSync,
  openSync,
  readFileSync,
  readlinkSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { bind } from 'native-free-fd-passing'
import type { HeldSocket } from 'native-free-fd-passing'
import t from 'tap'
import type { TestLike } from '../helpers/scope.ts'
import { get, getJson } from '../helpers/http.ts'
import { expectNoneFailed, loadUnder, untilServed } from '../helpers/load.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { startUsr2, type Usr2Options } from '../helpers/usr2.ts'
import { deadline, until } from '../helpers/wait.ts'

interface Facts {
  readonly n: number
  readonly pid: number
  readonly generation: number
  readonly told: readonly string[]
  readonly descriptors?: readonly string[]
}

const hasIPv6 = readFileSync('/proc/net/if_inet6', 'utf8').includes('00000000000000000000000000000001')

/** Held until the end of the test, as systemd holds what it passes. */
function held(t: TestLike & { teardown(f: () => void): void }, ...args: Parameters<typeof bind>): HeldSocket {
  const socket = bind(...args)
  t.teardown(() => socket.close())
  return socket
}

/** An app that calls `listen` with each of these; `n` in its answers counts them. */
const app = (...listens: readonly unknown[]): Pick<Usr2Options, 'fixture' | 'args'> => ({
  fixture: 'activated.cjs',
  args: listens.map((args) => JSON.stringify(args)),
})

const inodeOf = (fd: number): string => `socket:[${fstatSync(fd).ino}]`

/** What listen(2) was last told (cut to somaxconn), as `ss` shows it; null where there is no `ss`. */
function backlogOf(port: number): number | null {
  try {
    const row = execFileSync('ss', ['-Hltn', `sport = :${port}`], { encoding: 'utf8' })
    return Number(row.trim().split(/\s+/)[2])
  } catch {
    return null
  }
}

async function echoed(port: number, host: string, text: string): Promise<string> {
  const client = dgram.createSocket('udp4')
  try {
    client.send(text, port, host)
    const [data] = (await deadline(once(client, 'message'), 10_000, 'an echo')) as [Buffer]
    return String(data)
  } finally {
    client.close()
  }
}

t.test('every kind of socket, by its address, whatever its place', async (t) => {
  const [p4, p6, spare, udpPort] = [
    await freePort(t),
    await freePort(t),
    await freePort(t),
    await freePort(t),
  ]
  const directory = shortTmp(t)
  const path = join(directory, 'a.sock')
  // As /var/run leads to /run.
  const sameDirectory = join(shortTmp(t), 'l')
  symlinkSync(directory, sameDirectory)
  const abstract = `\0usr2-activation-${process.pid}-${p4}`
  const sockets = {
    unclaimed: held(t, { kind: 'tcp', host: '127.0.0.1', port: spare }),
    unix: held(t, { kind: 'unix', path }),
    dns: held(t, { kind: 'udp', host: '127.0.0.1', port: udpPort }),
    web: held(t, { kind: 'tcp', host: '127.0.0.1', port: p4 }),
    abstract: held(t, { kind: 'unix', path: abstract }),
    ...(hasIPv6 && { web6: held(t, { kind: 'tcp', host: '::1', port: p6 }) }),
  }
  const six = hasIPv6 ? [[p6, '::1']] : []
  const usr2 = startUsr2(t, {
    ...app(
      [p4, '127.0.0.1'],
      [join(sameDirectory, 'a.sock')],
      [{ path: abstract }],
      { udp: [udpPort, '127.0.0.1'] },
      ...six,
      // Compared with what was passed, although nothing can be there.
      ['/etc/passwd/x.sock'],
    ),
    flags: ['--workers', '2'],
    passed: Object.entries(sockets).map(([name, { fd }]) => ({ name, fd })),
  })
  await usr2.ready()
  await usr2.process.line('listen ENOTDIR: not a directory /etc/passwd/x.sock')
  const answers = async (generation: number) => {
    const places = [{ port: p4 }, { socketPath: path }, { socketPath: abstract }]
    const all = await Promise.all(places.map((where) => getJson<Facts>(where)))
    t.same(
      all.map((facts) => [facts.n, facts.generation]),
      [0, 1, 2].map((n) => [n, generation]),
      `generation ${generation} answers on TCP, a path and an abstract name`,
    )
    t.equal(await echoed(udpPort, '127.0.0.1', 'hello'), 'hello', 'and on UDP')
    if (hasIPv6) t.equal((await getFrom('::1', p6)).n, 4, 'and on IPv6')
  }
  await answers(1)

  await usr2.event('unclaimed')
  const unclaimed = usr2.events().filter(({ event }) => event === 'unclaimed')
  t.same(
    unclaimed.map(({ name, listener }) => [name, listener]),
    [['unclaimed', `tcp:127.0.0.1:${spare}`]],
    'what nobody listens on is named',
  )
  t.notOk((await usr2.status()).listeners.some(({ key }) => key.endsWith(`:${spare}`)))

  const facts = await getJson<Facts>({ port: p4 }, '/descriptors')
  t.same(facts.told, [], 'the app sees nothing of what the manager said')
  t.notOk(
    facts.descriptors?.includes(inodeOf(sockets.unclaimed.fd)),
    'nor a socket that it does not listen on',
  )
  t.ok(facts.descriptors?.includes(inodeOf(sockets.web.fd)), '(one that it does is seen)')

  const somaxconn = Number(readFileSync('/proc/sys/net/core/somaxconn', 'utf8'))
  const backlog = backlogOf(p4)
  if (backlog !== null) t.equal(backlog, somaxconn, "not Node's 511")

  const load = await loadUnder(t, {
    target: { port: p4 },
    traffic: [{ mode: 'new', connections: 4, thinkMs: [2, 6] }],
    versionOf: 'generation',
  })
  await untilServed(load, '1')
  t.equal((await usr2.reload()).code, 0)
  await untilServed(load, '2')
  expectNoneFailed(t, await load.stop())
  await answers(2)
  if (backlog !== null) t.equal(backlogOf(p4), somaxconn, 'also after a reload')
  await usr2.stop()
  t.ok(existsSync(path), 'the path is not ours to remove')
})

t.test('an app that asks for every address gets what was passed of its port', async (t) => {
  const asks = [
    { has: ['0.0.0.0'], asks: [], sees: '0.0.0.0' },
    { has: ['127.0.0.1'], asks: [], sees: '127.0.0.1' },
    { has: ['127.0.0.1', '127.0.0.2'], asks: ['0.0.0.0'], sees: '127.0.0.1' },
    ...(hasIPv6
      ? [
          { has: ['::'], asks: [], sees: '::' },
          { has: ['::'], asks: ['0.0.0.0'], sees: '::' },
          { has: ['0.0.0.0', '::'], asks: [], sees: '::' },
        ]
      : []),
  ]
  for (const { has, asks: host, sees } of asks) {
    await t.test(`${has.join(' and ')} for listen(port${host.map((h) => `, ${h}`).join('')})`, async (t) => {
      const port = await freePort(t)
      const ipv6Only = has.length > 1
      const passed = has.map((host) => ({
        name: `at-${host.replaceAll(':', '.')}`,
        fd: held(t, { kind: 'tcp', host, port, ...(host === '::' && { ipv6Only }) }).fd,
      }))
      const usr2 = startUsr2(t, { ...app([port, ...host]), flags: ['--workers', '2'], passed })
      await usr2.ready()
      const [line] = usr2.process.stdout
      t.match(line, new RegExp(`"address":"${sees.replaceAll('.', '\\.')}"`))
      const hosts = has.map((host) => (host === '0.0.0.0' ? '127.0.0.1' : host === '::' ? '::1' : host))
      const answers = (generation: number) =>
        Promise.all(
          hosts.map(async (host) => {
            const body = await getFrom(host, port)
            t.equal(body.generation, generation, `${host} answers`)
          }),
        )
      await answers(1)
      t.equal((await usr2.reload()).code, 0)
      await answers(2)
      t.same(
        usr2.events().filter(({ event }) => event === 'unclaimed'),
        [],
      )
      await usr2.stop()
    })
  }
})

async function getFrom(host: string, port: number): Promise<Facts> {
  const response = await fetch(`http://${host.includes(':') ? `[${host}]` : host}:${port}/`, {
    headers: { connection: 'close' },
  })
  return (await response.json()) as Facts
}

t.test('an app that asks for the loopback does not get every address', async (t) => {
  const port = await freePort(t)
  const { fd } = held(t, { kind: 'tcp', host: '0.0.0.0', port })
  const usr2 = startUsr2(t, { ...app([port, '127.0.0.1']), passed: [{ name: 'web', fd }] })
  const line = await usr2.process.line(/could not bind/)
  t.match(line.text, /overlaps tcp:0\.0\.0\.0:\d+, which the service manager passed \(web\)/)
  await usr2.process.line(/refused 0 listen EADDRINUSE/)
  usr2.signal('SIGKILL')
})

t.test('a socket that its app has left is there for the next version', async (t) => {
  const port = await freePort(t)
  const other = await freePort(t)
  const { fd } = held(t, { kind: 'tcp', host: '127.0.0.1', port })
  const files = {
    'app.cjs': `require('node:http').createServer((_, r) => r.end('1')).listen(${port}, '127.0.0.1')`,
  }
  const usr2 = startUsr2(t, { files, entry: 'app.cjs', passed: [{ name: 'web', fd }] })
  await usr2.ready()
  const write = (to: number, text: string) =>
    writeFileSync(
      join(usr2.cwd, 'app.cjs'),
      files['app.cjs'].replace(String(port), String(to)).replace("'1'", `'${text}'`),
    )
  write(other, '2')
  t.equal((await usr2.reload({ flags: ['--drop', `tcp:127.0.0.1:${port}`] })).code, 0)
  t.equal((await get({ port: other })).body, '2')
  await usr2.process.line(/nobody listens on .* any more/)
  const waiting = get({ port })
  write(port, '3')
  t.equal((await usr2.reload({ flags: ['--drop', `tcp:127.0.0.1:${other}`] })).code, 0)
  t.equal((await waiting).body, '3', 'a client that came meanwhile has waited')
  await usr2.stop()
})

t.test('what cannot be served is refused by name', async (t) => {
  const file = openSync('/dev/null', 'r')
  t.teardown(() => closeSync(file))
  const port = await freePort(t)
  const { fd } = held(t, { kind: 'tcp', host: '127.0.0.1', port })
  const refused = async (passed: Usr2Options['passed'], why: RegExp, env: Usr2Options['env'] = {}) => {
    const usr2 = startUsr2(t, { ...app([port, '127.0.0.1']), passed, env })
    const { code } = await usr2.process.ended()
    t.equal(code, 1)
    t.match(usr2.process.stderr.join('\n'), why)
  }
  await refused(
    [
      { name: 'web', fd },
      { name: 'log', fd: file },
    ],
    /^usr2: The service manager passed file descriptor 4 \(log\), which is a character device/m,
  )
  await refused(
    [
      { name: 'web', fd },
      { name: 'twin', fd },
    ],
    /two sockets for tcp:127\.0\.0\.1:\d+ \(web, twin\)/,
  )
  await refused([{ name: 'notify', fd: file }], /file descriptor 3 as "notify", which is not a socket/)
  await refused([{ name: 'web', fd }], /LISTEN_FDS is not a number/, { LISTEN_FDS: '1x' })
})

t.test('what was passed to another process is left alone', async (t) => {
  const port = await freePort(t)
  const env = { LISTEN_FDS: '1', LISTEN_PID: '1', LISTEN_FDNAMES: 'web' }
  const usr2 = startUsr2(t, { ...app([port, '127.0.0.1']), env })
  t.match((await usr2.event('not-activated')).msg, /is for process 1, and this is \d+/)
  await usr2.ready()
  t.same((await getJson<Facts>({ port })).told, [])
  await usr2.stop()
})

t.test('the notify descriptor: messages by write(2), and it never reaches a worker', async (t) => {
  const port = await freePort(t)
  const usr2 = startUsr2(t, {
    ...app([port, '127.0.0.1']),
    flags: ['--workers', '2'],
    passed: [{ name: 'notify', fd: 'pipe' }],
    // No program systemd-notify could be found: it is not asked for.
    env: { NOTIFY_SOCKET: '/nowhere', WATCHDOG_USEC: '200000' },
  })
  let said = ''
  const pipe = usr2.process.child.stdio[3] as Readable
  pipe.setEncoding('utf8').on('data', (text: string) => (said += text))
  const says = (what: RegExp) =>
    until(() => what.test(said), { timeoutMs: 10_000, what: String(what), logs: () => said + usr2.logs() })
  await usr2.ready()
  await says(/READY=1\nSTATUS=generation 1/)
  await says(/WATCHDOG=1/)
  t.notMatch(said, /MAINPID/)

  const { descriptors, told } = await getJson<Facts>({ port }, '/descriptors')
  t.same(told, [])
  const inode = readlinkSync(`/proc/${usr2.pid}/fd/3`)
  t.match(inode, /^socket:/)
  t.notOk(descriptors?.includes(inode), 'no worker has it')

  t.equal((await usr2.reload()).code, 0)
  await says(/RELOADING=1\nMONOTONIC_USEC=\d+/)
  await says(/READY=1\nSTATUS=generation 2/)
  await usr2.stop()
  t.match(said, /STOPPING=1\nSTATUS=/)
})

t.test('the watchdog is not fed while no worker answers and none can be replaced', async (t) => {
  const port = await freePort(t)
  const probe = { eventLoop: true, period: '100ms', timeout: '100ms', failureThreshold: 1 }
  const usr2 = startUsr2(t, {
    files: {
      'app.cjs': `
        const block = () => { for (;;); }
        if (require('node:fs').existsSync(__dirname + '/hang')) block()
        const answer = (request, response) => request.url === '/hang' ? block() : response.end('1')
        require('node:http').createServer(answer).listen(${port}, '127.0.0.1')`,
      'usr2.json': JSON.stringify({ workers: 1, startTimeout: '5s', probes: { liveness: probe } }),
    },
    entry: 'app.cjs',
    flags: ['--config', 'usr2.json'],
    passed: [{ name: 'notify', fd: 'pipe' }],
    env: { WATCHDOG_USEC: '100000' },
  })
  let beats = 0
  const pipe = usr2.process.child.stdio[3] as Readable
  pipe.setEncoding('utf8').on('data', (text: string) => (beats += text.split('WATCHDOG=1').length - 1))
  const moreBeats = async () => {
    const enough = beats + 5
    await until(() => beats >= enough, { timeoutMs: 10_000, what: 'five beats', logs: () => usr2.logs() })
  }
  await usr2.ready()
  await moreBeats()
  const hang = () => get({ port }, '/hang').catch(() => {})
  void hang()
  await moreBeats()
  t.equal((await get({ port })).body, '1', 'a worker that can be replaced is, and costs no beat')

  writeFileSync(join(usr2.cwd, 'hang'), '')
  const from = usr2.process.lines.length
  void hang()
  t.match(await usr2.event('heartbeat-lost', { from, timeoutMs: 30_000 }), { answering: 0, serving: 1 })
  // A beat that was on its way has come by the time of the first answer, and several would have by that of the second.
  await usr2.status()
  const before = beats
  t.equal((await usr2.status()).state, 'steady', 'the master itself is well')
  t.equal(beats, before, 'and beats no more')
  usr2.signal('SIGKILL')
})
