import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { Read } from '../../../src/master/workers/cgroups.ts'
import { statOf } from '../../../src/master/proc.ts'
import { WorkerGroups, placeForGroups } from '../../../src/master/workers/worker-groups.ts'

const PID = 42
const NAME = `usr2-${process.pid}-${statOf('/proc/self/stat')?.since}`
const V2 = '30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate'
const V1 = '40 31 0:32 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct'

const files =
  (all: Readonly<Record<string, string>>): Read =>
  (path) => {
    const text = all[path]
    if (text === undefined) throw new Error(`ENOENT: ${path}`)
    return `${text}\n`
  }

t.test('version 2: only where systemd has made our subgroup', async (t) => {
  const at = '/sys/fs/cgroup/system.slice/shop.service'
  const place = (path: string, more: Readonly<Record<string, string>>) => {
    const own = { [`/sys/fs/cgroup${path}/cgroup.procs`]: `1\n${PID}` }
    const proc = { '/proc/self/cgroup': `0::${path}`, '/proc/self/mountinfo': V2 }
    return placeForGroups({ read: files({ ...proc, ...own, ...more }), systemd: true, pid: PID })
  }
  const has = { [`${at}/cgroup.controllers`]: 'cpu memory pids' }
  t.same(place('/system.slice/shop.service/usr2', has), { place: at, own: `${at}/usr2` })
  t.equal(place('/system.slice/shop.service', has), null, 'Delegate= alone, or none')
  t.equal(place('/system.slice/shop.service/main', has), null, 'somebody else’s subgroup')
  t.equal(
    place('/system.slice/shop.service/usr2', { [`${at}/cgroup.controllers`]: 'cpuset memory' }),
    null,
    'without cpu',
  )
  t.equal(place('/system.slice/shop.service/usr2', {}), null)
})

t.test('version 1: where no systemd minds, below our own', async (t) => {
  const place = (systemd: boolean, members: string, mount = V1, own = '4:cpu,cpuacct:/jobs') =>
    placeForGroups({
      read: files({
        '/proc/self/cgroup': `${own}\n3:memory:/jobs\n0::/`,
        '/proc/self/mountinfo': mount,
        '/sys/fs/cgroup/cpu,cpuacct/jobs/cgroup.procs': members,
        '/sys/fs/cgroup/cpu,cpuacct/cgroup.procs': members,
      }),
      ...{ systemd, pid: PID },
    })
  const jobs = '/sys/fs/cgroup/cpu,cpuacct/jobs'
  t.same(place(false, `7\n${PID}`), { place: jobs, own: jobs })
  t.equal(place(true, `7\n${PID}`), null)
  t.equal(place(false, '7\n421'), null, 'what is mounted there is not ours')
  const memory = '41 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,memory'
  t.equal(place(false, `${PID}`, memory, '3:memory:/jobs'), null, 'another controller')
})

t.test('no cgroups at all', async (t) => {
  t.equal(placeForGroups({ read: files({}), systemd: false, pid: PID }), null)
})

t.test('the controller is switched on once', async (t) => {
  const place = t.testdir({ 'cgroup.subtree_control': 'memory\n' })
  new WorkerGroups({ place, own: place })
  t.equal(readFileSync(join(place, 'cgroup.subtree_control'), 'utf8'), '+cpu')
  writeFileSync(join(place, 'cgroup.subtree_control'), 'memory cpu\n')
  new WorkerGroups({ place, own: place })
  t.equal(readFileSync(join(place, 'cgroup.subtree_control'), 'utf8'), 'memory cpu\n')
})

t.test('a group is made, entered, no longer idle', async (t) => {
  const place = t.testdir({})
  const groups = new WorkerGroups({ place, own: t.testdirName })
  await groups.prepare()
  t.equal(readFileSync(join(place, 'cgroup.procs'), 'utf8'), `${process.pid}`, 'moved to where it is')
  groups.make(3, { idle: true })
  const group = join(place, `${NAME}-3`)
  const file = (name: string) => readFileSync(join(group, name), 'utf8')
  t.equal(file('cpu.idle'), '1')
  await groups.move(3, 4711)
  t.equal(file('cgroup.procs'), '4711')
  groups.serve(3)
  t.equal(file('cpu.idle'), '0')
  groups.make(4, { idle: false })
  t.equal(readFileSync(join(place, `${NAME}-4`, 'cpu.idle'), 'utf8'), '0')
  t.throws(() => groups.make(4, { idle: true }), { code: 'EEXIST' })
  await t.rejects(groups.move(5, 1), { code: 'ENOENT' })
})

t.test('what dead masters have left is removed, and nothing else', async (t) => {
  const [mine, foreign] = [`${NAME}-1`, 'usr2-jobs']
  const place = t.testdir({ [mine]: {}, [foreign]: {} })
  // No pid is as large (proc(5), pid_max); and an earlier process of our own pid.
  const dead = ['usr2-99999999-1234-1', `usr2-${process.pid}-1-1`]
  for (const name of dead) mkdirSync(join(place, name))
  new WorkerGroups({ place, own: place })
  for (const name of dead) t.notOk(existsSync(join(place, name)), name)
  t.ok(existsSync(join(place, mine)))
  t.ok(existsSync(join(place, foreign)))
})
