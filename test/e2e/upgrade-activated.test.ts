/**
 * The master replaced where a service manager has passed descriptors: sockets, and one for sd_notify(3). Here this test
 * is the manager: it holds the sockets, and reads what it is told.
 */
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import dgram from 'node:dgram'
import {
  existsSync,
  fstatSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { bind } from 'native-free-fd-passing'
import type { HeldSocket } from 'native-free-fd-passing'
import t from 'tap'
import type { Test } from 'tap'
import type { RemoteLoad } from '../../src/drill/start-load.ts'
import { getJson } from '../helpers/http.ts'
import { expectNoneFailed, loadUnder, untilServed } from '../helpers/load.ts'
import { openRaw, type RawClient } from '../helpers/raw-client.ts'
import { expectNothingLeft } from '../helpers/spawn.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { fixture, imbalancesOf, startUsr2, type Usr2 } from '../helpers/usr2.ts'
import { deadline, until } from '../helpers/wait.ts'

/** Of test/fixtures/activated.cjs. */
interface Facts {
  readonly n: number
  readonly generation: number
  readonly told: readonly string[]
  readonly descriptors?: readonly string[]
}

const hasIPv6 = readFileSync('/proc/net/if_inet6', 'utf8').includes('00000000000000000000000000000001')

/** Held until the end of the test, as systemd holds what it passes. */
function held(t: Test, ...args: Parameters<typeof bind>): HeldSocket {
  const socket = bind(...args)
  t.teardown(() => socket.close())
  return socket
}

/** test/fixtures/activated.cjs, unless there is a file `broken` beside it. */
const app = {
  entry: 'app.cjs',
  files: {
    'app.cjs':
      "if (require('node:fs').existsSync(__dirname + '/broken')) throw new Error('no database')\n" +
      `require(${JSON.stringify(fixture('activated.cjs'))})`,
  },
} as const

t.test('sockets, twice in a row under load: nothing failed, and they stay the manager’s', async (t) => {
  const ports = {
    web: await freePort(t),
    spare: await freePort(t),
    udp: await freePort(t),
    lent: await freePort(t),
    own: await freePort(t),
  }
  const directory = shortTmp(t)
  const path = join(directory, 'a.sock')
  const abstract = `\0usr2-upgrade-${process.pid}-${ports.web}`
  const sockets = {
    spare: held(t, { kind: 'tcp', host: '127.0.0.1', port: ports.spare }),
    web: held(t, { kind: 'tcp', host: '0.0.0.0', port: ports.web }),
    unix: held(t, { kind: 'unix', path }),
    abstract: held(t, { kind: 'unix', path: abstract }),
    dns: held(t, { kind: 'udp', host: '127.0.0.1', port: ports.udp }),
    lent: held(t, { kind: 'tcp', host: '0.0.0.0', port: ports.lent }),
    // With 0.0.0.0 one server's two sockets.
    ...(hasIPv6 && { web6: held(t, { kind: 'tcp', host: '::', port: ports.web, ipv6Only: true }) }),
  }
  const listens = [[ports.web], [path], [{ path: abstract }], { udp: [ports.udp, '127.0.0.1'] }, [ports.lent]]
  const usr2 = startUsr2(t, {
    ...app,
    args: [...listens, [ports.own, '127.0.0.1']].map((args) => JSON.stringify(args)),
    flags: ['--workers', '2'],
    passed: Object.entries(sockets).map(([name, { fd }]) => ({ name, fd })),
  })
  await usr2.ready()
  const targets = [
    { port: ports.web },
    { path },
    { path: abstract },
    { port: ports.lent },
    { port: ports.own },
  ]
  const loads = await Promise.all(
    targets.map((target) =>
      loadUnder(t, {
        target,
        traffic: [
          { mode: 'new', connections: 2, thinkMs: [2, 8] },
          { mode: 'keepalive', connections: 2, thinkMs: [5, 15] },
        ],
        versionOf: 'generation',
      }),
    ),
  )
  const answers = async (generation: number) => {
    for (const load of loads) await untilServed(load, String(generation))
    t.equal(await echoed(ports.udp), 'hello', 'UDP answers')
    if (hasIPv6) {
      const response = await fetch(`http://[::1]:${ports.web}/`, { headers: { connection: 'close' } })
      t.equal(((await response.json()) as Facts).generation, generation, 'IPv6 answers')
    }
  }
  await answers(1)
  const before = await listenersOf(usr2)
  t.ok(before.includes(`tcp:[::]:${ports.lent}`), 'one socket is held under two keys')
  const backlog = backlogOf(ports.web)
  const somaxconn = Number(readFileSync('/proc/sys/net/core/somaxconn', 'utf8'))
  if (backlog !== null) t.equal(backlog, somaxconn)
  // Half a request, which the old master of the second upgrade has to wait for.
  let half: RawClient | undefined
  const pids = [usr2.pid]
  for (const generation of [2, 3]) {
    if (generation === 3) half = (await openRaw(t, { port: ports.own })).send('GET / HTTP/1.1\r\nHost: x\r\n')
    await upgrade(t, usr2)
    await answers(generation)
    const { pid } = await usr2.status()
    t.same(await listenersOf(usr2), before, 'the same listeners')
    t.equal(backlogOf(ports.web), backlog, 'their queues are as long as before')
    const inodes = descriptorsOf(pid)
    for (const [name, { fd }] of Object.entries(sockets)) {
      t.equal(inodes.filter((inode) => inode === inodeOf(fd)).length, 1, `the new master has ${name} once`)
    }
    t.same(readdirSync(directory), ['a.sock'], 'no spare link is made of the path of another')
    pids.push(pid)
  }
  await until(
    () => usr2.events().some(({ event, master }) => event === 'unclaimed' && master === pids.at(-1)),
    { timeoutMs: 20_000, what: 'the new master to report what nobody listens on', logs: () => usr2.logs() },
  )
  t.equal((await half?.send('Connection: close\r\n\r\n').response())?.status, 200)
  await left(usr2, 2)
  const unclaimed = usr2.events().filter(({ event }) => event === 'unclaimed')
  t.same(
    [...new Set(unclaimed.map(({ listener }) => listener))],
    [`tcp:127.0.0.1:${ports.spare}`],
    'and that alone: no old master says that nobody listens any more',
  )
  const facts = await getJson<Facts>({ port: ports.own }, '/descriptors')
  t.same(facts.told, [])
  t.notOk(facts.descriptors?.includes(inodeOf(sockets.spare.fd)), 'no worker has what it does not listen on')
  t.equal((await usr2.reload()).code, 0, 'the new master reloads')
  await answers(4)
  await failing(t, usr2)
  await answers(4)
  await stopped(t, usr2, loads)
  t.ok(existsSync(path), 'the path is not ours to remove')
})

t.test('the notify descriptor goes along, and the watchdog is fed throughout', async (t) => {
  const port = await freePort(t)
  const watchdogMs = 1_500
  const usr2 = startUsr2(t, {
    ...app,
    args: [JSON.stringify([port, '127.0.0.1'])],
    flags: ['--workers', '2'],
    passed: [
      { name: 'notify', fd: 'pipe' },
      { name: 'web', fd: held(t, { kind: 'tcp', host: '127.0.0.1', port }).fd },
    ],
    // No program systemd-notify could be found: it is not asked for.
    env: { NOTIFY_SOCKET: '/nowhere', WATCHDOG_USEC: String(watchdogMs * 1000), WATCHDOG_PID: undefined },
  })
  const said: { readonly text: string; readonly at: number }[] = []
  const pipe = usr2.process.child.stdio[3] as Readable
  pipe.setEncoding('utf8').on('data', (text: string) => said.push({ text, at: performance.now() }))
  const textFrom = (from: number) =>
    said
      .slice(from)
      .map(({ text }) => text)
      .join('\n')
  const says = (what: RegExp, from = 0) =>
    until(() => what.test(textFrom(from)), {
      timeoutMs: 10_000,
      what: String(what),
      logs: () => textFrom(0) + usr2.logs(),
    })
  await usr2.ready()
  await says(/READY=1\nSTATUS=generation 1[^]*WATCHDOG=1/)
  const notify = readlinkSync(`/proc/${usr2.pid}/fd/3`)
  for (const generation of [2, 3]) {
    const from = said.length
    await failing(t, usr2)
    t.notMatch(textFrom(from), /MAINPID|READY|STOPPING/, 'one that fails says nothing')
    await upgrade(t, usr2)
    const { pid } = await usr2.status()
    await says(new RegExp(`READY=1\nSTATUS=generation ${generation}`), from)
    // Of the old one: the word of another process is not listened to with NotifyAccess=main.
    t.match(
      textFrom(from).replaceAll('WATCHDOG=1', '').trim(),
      new RegExp(`^MAINPID=${pid}\nREADY=1\\s*READY=1\nSTATUS=generation ${generation}`),
      'first the old master names the new one, then that speaks',
    )
    await says(/STATUS=generation[^]*WATCHDOG=1/, from)
    await left(usr2, generation - 1)
    t.notMatch(textFrom(from), /STOPPING/, 'the old one leaves without a word')
    t.ok(descriptorsOf(pid).includes(notify))
    const { descriptors, told } = await getJson<Facts>({ port }, '/descriptors')
    t.notOk(descriptors?.includes(notify), 'no worker has it')
    t.same(told, [])
  }
  const beats = said.filter(({ text }) => text.includes('WATCHDOG=1')).map(({ at }) => at)
  const gaps = beats.slice(1).map((at, i) => at - (beats[i] ?? at))
  t.ok(
    gaps.every((gap) => gap < watchdogMs),
    `no gap above ${watchdogMs} ms: ${Math.round(Math.max(...gaps))}`,
  )
  const from = said.length
  await stopped(t, usr2, [])
  await says(/STOPPING=1/, from)
})

// --- What the tests share ---------------------------------------------------------------------------------------------

async function upgrade(t: Test, usr2: Usr2): Promise<void> {
  const { code, stdout, stderr } = await usr2.cli('upgrade')
  t.equal(code, 0, `${stdout}${stderr}`)
}

/** An upgrade whose app does not start. The same master goes on. */
async function failing(t: Test, usr2: Usr2): Promise<void> {
  const { pid } = await usr2.status()
  writeFileSync(join(usr2.cwd, 'broken'), '')
  const { code, stderr } = await usr2.cli('upgrade')
  rmSync(join(usr2.cwd, 'broken'))
  t.equal(code, 1)
  t.match(stderr, 'no database')
  t.equal((await usr2.status()).pid, pid)
}

/** So many old masters have left. */
async function left(usr2: Usr2, count: number): Promise<void> {
  const all = () => usr2.events().filter(({ event }) => event === 'left').length === count
  await until(all, { timeoutMs: 30_000, what: 'the old master to leave', logs: () => usr2.logs() })
}

async function stopped(t: Test, usr2: Usr2, loads: readonly RemoteLoad[]): Promise<void> {
  for (const load of loads) expectNoneFailed(t, await load.stop())
  const { code, stderr } = await usr2.cli('stop')
  t.equal(code, 0, stderr)
  await expectNothingLeft(t, usr2.process, 5_000)
  t.same(usr2.events().flatMap(imbalancesOf), [], 'the accounts of every generation agree')
}

const listenersOf = async (usr2: Usr2) => (await usr2.status()).listeners.map(({ key }) => key).toSorted()

const inodeOf = (fd: number): string => `socket:[${fstatSync(fd).ino}]`

const descriptorsOf = (pid: number): string[] =>
  readdirSync(`/proc/${pid}/fd`).map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`))

/** What listen(2) was last told (cut to somaxconn), as `ss` shows it; null where there is no `ss`. */
function backlogOf(port: number): number | null {
  try {
    const rows = execFileSync('ss', ['-Hltn4', `sport = :${port}`], { encoding: 'utf8' })
    return Number(rows.trim().split(/\s+/)[2])
  } catch {
    return null
  }
}

async function echoed(port: number): Promise<string> {
  const client = dgram.createSocket('udp4')
  try {
    client.send('hello', port, '127.0.0.1')
    const [data] = (await deadline(once(client, 'message'), 10_000, 'an echo')) as [Buffer]
    return String(data)
  } finally {
    client.close()
  }
}
