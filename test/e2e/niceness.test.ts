/** A booting worker yields the processor to those that serve. */
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { getPriority } from 'node:os'
import { basename, join } from 'node:path'
import t from 'tap'
import { BOOT_NICE, canRaise, lower, raise } from '../../src/master/workers/niceness.ts'
import { WorkerGroups, placeForGroups } from '../../src/master/workers/worker-groups.ts'
import { freePort } from '../helpers/tmp.ts'
import { until } from '../helpers/wait.ts'
import { startUsr2, type Usr2, type Usr2Options } from '../helpers/usr2.ts'

t.test('canRaise', async (t) => {
  const status = (capabilities: string) => `Name:\tnode\nCapEff:\t${capabilities}\n`
  const limits = (limit: number) => `Max nice priority         ${limit}                   ${limit}  \n`
  const all = '         0          0 4294967295\n'
  const given =
    (capabilities: string, limit: number, ids = all) =>
    (path: string) =>
      path.endsWith('status') ? status(capabilities) : path.endsWith('uid_map') ? ids : limits(limit)
  t.equal(canRaise(given('0000003fffffffff', 0)), true, 'root')
  t.equal(canRaise(given('0000000000800000', 0)), true, 'CAP_SYS_NICE alone')
  t.equal(canRaise(given('0000003fff7fffff', 0)), false, 'everything but that')
  const mapped = '         0     100000      65536\n'
  t.equal(canRaise(given('0000003fffffffff', 0, mapped)), false, 'root of a user namespace')
  t.equal(canRaise(given('0000000000000000', 20 - getPriority())), true, 'RLIMIT_NICE')
  t.equal(canRaise(given('0000000000000000', 19 - getPriority())), false)
  t.equal(
    canRaise(() => {
      throw new Error('no /proc')
    }),
    false,
  )
})

/** Of the session that a process is in; null where the kernel groups by nothing or by cgroup alone. */
function sessionNiceness(pid: number): number | null {
  try {
    const nice = / nice (-?\d+)/.exec(readFileSync(`/proc/${pid}/autogroup`, 'utf8'))?.[1]
    return nice === undefined ? null : Number(nice)
  } catch {
    return null
  }
}
const noSessions = sessionNiceness(process.pid) === null ? 'this kernel has no autogroups' : false

t.test(
  'the session of a worker is lowered and raised without any privilege',
  { skip: noSessions },
  async (t) => {
    const child = spawn(process.execPath, ['-e', 'process.stdin.resume()'], {
      detached: true,
      env: {},
      stdio: ['pipe', 'ignore', 'ignore'],
    })
    t.teardown(() => child.kill('SIGKILL'))
    const { pid } = child
    if (pid === undefined) throw new Error('no child')
    lower(pid, false)
    t.equal(sessionNiceness(pid), BOOT_NICE)
    t.equal(getPriority(pid), getPriority(), 'its own niceness cannot be raised again, so it stays')
    raise(pid, false, () => true)
    // Other users of the machine may have used up the tenth of a second.
    await until(() => sessionNiceness(pid) === 0, { timeoutMs: 5_000, what: 'the session to be raised' })
  },
)

const APP = `
const { spawn } = require('node:child_process')
const { existsSync } = require('node:fs')
const options = { stdio: ['pipe', 'ignore', 'ignore'] }
const child = spawn(process.execPath, ['-e', 'process.stdin.resume()'], options)
// As browsers are: its stdin ends with us, and so does it.
const apart = spawn(process.execPath, ['-e', 'process.stdin.resume()'], { ...options, detached: true })
const idle = spawn(process.execPath, ['-e', 'process.stdin.resume()'], options)
require('node:os').setPriority(idle.pid, 19)
process.on('SIGTERM', () => process.exit(0))
console.log('booting', process.pid, child.pid, apart.pid, idle.pid)
require('node:crypto').pbkdf2('x', 'y', 1, 8, 'sha256', () => {})
const gate = setInterval(() => {
  if (process.env.USR2_GENERATION !== '1' && !existsSync('gate')) return
  clearInterval(gate)
  require('node:http').createServer((req, res) => res.end()).listen(Number(process.env.PORT), '127.0.0.1')
}, 10)
`

/** Booting, with what they have started, and one helper that is nice by its own choice. */
interface Family {
  readonly worker: number
  readonly all: readonly number[]
  readonly idle: number
}

async function booting(usr2: Usr2, from: number): Promise<Family> {
  const { text } = await usr2.process.line(/^booting( \d+){4}$/, { from })
  const [worker = 0, child = 0, apart = 0, idle = 0] = text.split(' ').slice(1).map(Number)
  return { worker, all: [worker, child, apart], idle }
}

const appOptions = async (t: Parameters<typeof freePort>[0]): Promise<Usr2Options> => ({
  entry: 'app.cjs',
  files: { 'app.cjs': APP },
  env: { PORT: String(await freePort(t)) },
})

/** In a mount namespace without cgroups of version 1, where nobody can have one of his own. */
const HIDE = ['--mount', 'sh', '-c', 'umount --all --lazy --types cgroup; exec "$@"', 'sh']
const withoutGroups = (options: Usr2Options): Usr2Options =>
  placeForGroups() === null ? options : { ...options, node: 'unshare', nodeArgs: [...HIDE, process.execPath] }

const cannotHide = placeForGroups() !== null && spawnSync('unshare', ['--mount', 'true']).status !== 0
const skip =
  (!canRaise() && 'this user may not raise a priority again (needs root, CAP_SYS_NICE or LimitNICE)') ||
  (cannotHide && 'workers would have groups: to hide them takes root and unshare(1)')
t.test('lower while it boots, beside others that serve; as before when it serves', { skip }, async (t) => {
  const usr2 = startUsr2(t, withoutGroups(await appOptions(t)))
  const niceness = (pids: readonly number[]): number[] =>
    pids.flatMap((pid) => readdirSync(`/proc/${pid}/task`).map((thread) => getPriority(Number(thread))))
  const ours = getPriority()
  const first = await booting(usr2, 0)
  t.same(new Set(niceness(first.all)), new Set([ours]), 'the first generation boots as fast as it can')
  await usr2.ready()
  const from = usr2.process.lines.length
  usr2.signal('SIGUSR2')
  const second = await booting(usr2, from)
  const threads = niceness(second.all)
  t.ok(threads.length > 5, 'with all of its threads')
  t.same(new Set(threads), new Set([Math.min(19, ours + BOOT_NICE)]))
  const boots = sessionNiceness(second.worker)
  writeFileSync(`${usr2.cwd}/gate`, '')
  await usr2.event('promoted', { from })
  t.same(
    new Set(niceness(second.all)),
    new Set([ours]),
    'every thread, and what it had started, also in a group of its own',
  )
  // Of a test run that is nice itself, nobody can tell: there is nothing below 19.
  if (ours <= 0) t.equal(getPriority(second.idle), 19, 'what the app made nice itself stays so')
  if (!noSessions) {
    t.equal(boots, BOOT_NICE, 'its session, too')
    await until(() => sessionNiceness(second.worker) === 0, {
      timeoutMs: 5_000,
      what: 'the session to be raised',
    })
  }
  await usr2.stop()
})

const place = placeForGroups()?.place ?? null
const noGroups =
  place !== null && existsSync(join(place, 'cpu.shares'))
    ? false
    : 'here no worker can have a cgroup of its own (root, cgroup v1 with cpu, Linux 5.15, no systemd)'
t.test(
  'in a group of its own, idle until it serves, where it may have one',
  { skip: noGroups },
  async (t) => {
    const usr2 = startUsr2(t, await appOptions(t))
    const groupOf = (pid: number): string =>
      /^\d+:(?:\w+,)*cpu(?:,\w+)*:(.*)$/m.exec(readFileSync(`/proc/${pid}/cgroup`, 'utf8'))?.[1] ?? ''
    const nameOf = (pid: number): string => basename(groupOf(pid))
    const isIn = (pid: number) => nameOf(pid).startsWith(`usr2-${usr2.pid}-`)
    const isIdle = (pid: number) => readFileSync(join(place ?? '', nameOf(pid), 'cpu.idle'), 'utf8').trim()
    const first = await booting(usr2, 0)
    await until(() => isIn(first.worker), { timeoutMs: 5_000, what: 'the first worker to be in its group' })
    t.equal(isIdle(first.worker), '0', 'the first generation boots as fast as it can')
    await usr2.ready()
    const from = usr2.process.lines.length
    usr2.signal('SIGUSR2')
    const second = await booting(usr2, from)
    await until(() => isIn(second.worker), { timeoutMs: 5_000, what: 'the second worker to be in its group' })
    t.equal(isIdle(second.worker), '1')
    const groups = new Set(second.all.map(nameOf))
    t.same(groups, new Set([nameOf(second.worker)]), 'with all that it has started')
    const left = (): string[] =>
      readdirSync(place ?? '').filter((name) => name.startsWith(`usr2-${usr2.pid}-`))
    t.equal(left().length, 2)
    writeFileSync(`${usr2.cwd}/gate`, '')
    await usr2.event('promoted', { from })
    t.equal(isIdle(second.worker), '0')
    await usr2.event('drained', { from })
    await usr2.stop()
    t.same(left(), [], 'the groups go with their workers')
  },
)

t.test('a group that nobody is in yet stays when others are removed', { skip: noGroups }, async (t) => {
  const own = placeForGroups()
  if (own === null) throw new Error('no place')
  const child = spawn(process.execPath, ['-e', 'process.stdin.resume()'], {
    stdio: ['pipe', 'ignore', 'ignore'],
  })
  t.teardown(() => child.kill('SIGKILL'))
  const { pid } = child
  if (pid === undefined) throw new Error('no child')
  const mine = (): string[] =>
    readdirSync(own.place).filter((name) => name.startsWith(`usr2-${process.pid}-`))
  const groups = new WorkerGroups(own)
  await groups.prepare()
  groups.make(1, { idle: true })
  t.equal(groups.removeEmpty(), 'all-gone')
  t.equal(mine().length, 1)
  await groups.move(1, pid)
  t.equal(groups.removeEmpty(), 'some-stay')
  groups.serve(1)
  const ended = new Promise((resolve) => child.once('exit', resolve))
  child.stdin?.end()
  await ended
  t.equal(groups.removeEmpty(), 'all-gone')
  t.same(mine(), [])
})

t.test('what a killed master has left is removed by the next one', { skip: noGroups }, async (t) => {
  const dead = startUsr2(t, await appOptions(t))
  await dead.ready()
  const mine = (): string[] => readdirSync(place ?? '').filter((name) => name.startsWith(`usr2-${dead.pid}-`))
  await until(() => mine().length === 1, { timeoutMs: 5_000, what: 'its worker to have a group' })
  const [worker = 0] = (await dead.status()).generations.flatMap(({ workers }) =>
    workers.map(({ pid }) => pid ?? 0),
  )
  dead.signal('SIGKILL')
  await until(() => !existsSync(`/proc/${worker}`), { timeoutMs: 10_000, what: 'its worker to leave' })
  // By now any other master may have removed it, of a test beside this one.
  const next = startUsr2(t, await appOptions(t))
  await next.ready()
  t.same(mine(), [])
  await next.stop()
})
