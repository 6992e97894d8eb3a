/** A booting worker yields the processor to those that serve. */
import { spawn } from 'node:child_process'
import { readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { getPriority } from 'node:os'
import t from 'tap'
import { BOOT_NICE, canRaise, lower, raise } from '../../src/master/workers/niceness.ts'
import { freePort } from '../helpers/tmp.ts'
import { until } from '../helpers/wait.ts'
import { startUsr2 } from '../helpers/usr2.ts'

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

const skip = canRaise()
  ? false
  : 'this user may not raise a priority again (needs root, CAP_SYS_NICE or LimitNICE)'
t.test('lower while it boots, beside others that serve; as before when it serves', { skip }, async (t) => {
  const usr2 = startUsr2(t, {
    entry: 'app.cjs',
    files: { 'app.cjs': APP },
    env: { PORT: String(await freePort(t)) },
  })
  const booting = async (from: number) => {
    const { text } = await usr2.process.line(/^booting( \d+){4}$/, { from })
    const [worker = 0, child = 0, apart = 0, idle = 0] = text.split(' ').slice(1).map(Number)
    return { worker, all: [worker, child, apart], idle }
  }
  const niceness = (pids: readonly number[]): number[] =>
    pids.flatMap((pid) => readdirSync(`/proc/${pid}/task`).map((thread) => getPriority(Number(thread))))
  const ours = getPriority()
  const first = await booting(0)
  t.same(new Set(niceness(first.all)), new Set([ours]), 'the first generation boots as fast as it can')
  await usr2.ready()
  const from = usr2.process.lines.length
  usr2.signal('SIGUSR2')
  const second = await booting(from)
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
