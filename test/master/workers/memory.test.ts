import t from 'tap'
import type { Read } from '../../../src/master/workers/cgroups.ts'
import {
  autoWorkers,
  freeBytes,
  quotaCpus,
  rssBytes,
  typicalBytes,
  workerBytes,
} from '../../../src/master/workers/memory.ts'

const MIB = 1024 * 1024
const NO_LIMIT_V1 = '9223372036854771712'

/** A machine with 1000 MiB available, as /proc and the cgroup files show it. */
function machine(files: Readonly<Record<string, string>>): Read {
  const all: Readonly<Record<string, string>> = {
    '/proc/meminfo': `MemTotal:  ${4000 * 1024} kB\nMemFree:  1024 kB\nMemAvailable:  ${1000 * 1024} kB\n`,
    ...files,
  }
  return (path) => {
    const text = all[path]
    if (text === undefined) throw new Error(`ENOENT: ${path}`)
    return `${text}\n`
  }
}
const mib = (read: Read): number | null => {
  const bytes = freeBytes(read)
  return bytes === null ? null : bytes / MIB
}
const bytes = (count: number): string => String(count * MIB)

const V2_MOUNT = '30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate'
const v1Mount = (controllers: string, root = '/'): string =>
  `40 31 0:32 ${root} /sys/fs/cgroup/${controllers} rw,nosuid shared:9 - cgroup cgroup rw,${controllers}`

/** Of version 2: limit, usage, inactive_file in MiB. */
function v2(
  directory: string,
  max: number | 'max',
  used: number,
  inactive = 0,
  high: number | 'max' = 'max',
) {
  const limit = (value: number | 'max'): string => (value === 'max' ? value : bytes(value))
  return {
    [`${directory}/memory.max`]: limit(max),
    [`${directory}/memory.high`]: limit(high),
    [`${directory}/memory.current`]: bytes(used),
    [`${directory}/memory.stat`]: `anon 1\nworkingset_inactive_file 7\ninactive_file ${bytes(inactive)}\nactive_file 9`,
  }
}
function v1(directory: string, limit: string, used: number, inactive = 0, inherited = NO_LIMIT_V1) {
  return {
    [`${directory}/memory.limit_in_bytes`]: limit,
    [`${directory}/memory.usage_in_bytes`]: bytes(used),
    [`${directory}/memory.stat`]: `inactive_file 1\nhierarchical_memory_limit ${inherited}\ntotal_inactive_file ${bytes(inactive)}`,
  }
}

t.test('no cgroup, no limit: what the machine has', async (t) => {
  t.equal(mib(machine({})), 1000)
  const mount = { '/proc/self/cgroup': '0::/user.slice/a.scope', '/proc/self/mountinfo': V2_MOUNT }
  t.equal(mib(machine(mount)), 1000, 'files cannot be read')
  t.equal(mib(machine({ ...mount, ...v2('/sys/fs/cgroup/user.slice/a.scope', 'max', 5) })), 1000)
  const one = { '/proc/self/cgroup': '4:memory:/', '/proc/self/mountinfo': v1Mount('memory') }
  t.equal(mib(machine({ ...one, ...v1('/sys/fs/cgroup/memory', NO_LIMIT_V1, 500) })), 1000)
  t.equal(
    freeBytes(() => {
      throw new Error('ENOENT')
    }),
    null,
    'no /proc at all',
  )
})

t.test('version 2: its own limit, less what is used, cache that can go not counted', async (t) => {
  const where = { '/proc/self/cgroup': '0::/system.slice/a.service', '/proc/self/mountinfo': V2_MOUNT }
  const at = '/sys/fs/cgroup/system.slice/a.service'
  t.equal(mib(machine({ ...where, ...v2(at, 512, 300, 100) })), 312)
  t.equal(mib(machine({ ...where, ...v2(at, 512, 300, 100, 400) })), 200, 'memory.high')
  t.equal(mib(machine({ ...where, ...v2(at, 4096, 0) })), 1000, 'the machine has less')
  t.equal(mib(machine({ ...where, ...v2(at, 512, 600, 10) })), 0, 'over it')
})

t.test('version 2: those above count, wherever the smallest is', async (t) => {
  const where = { '/proc/self/cgroup': '0::/a.slice/b.slice/c.service', '/proc/self/mountinfo': V2_MOUNT }
  const [a, b, c] = ['a.slice', 'a.slice/b.slice', 'a.slice/b.slice/c.service'].map(
    (x) => `/sys/fs/cgroup/${x}`,
  )
  for (const [at, what] of [
    [[v2(`${a}`, 900, 700), v2(`${b}`, 'max', 600), v2(`${c}`, 600, 10)], 200],
    [[v2(`${a}`, 'max', 700), v2(`${b}`, 640, 600), v2(`${c}`, 600, 10)], 40],
    [[v2(`${a}`, 900, 100), v2(`${b}`, 800, 100), v2(`${c}`, 130, 10)], 120],
  ] as const) {
    t.equal(mib(machine(Object.assign({}, where, ...at) as Record<string, string>)), what)
  }
})

t.test('in a container of version 2 its cgroup is the root', async (t) => {
  const where = { '/proc/self/cgroup': '0::/', '/proc/self/mountinfo': V2_MOUNT }
  t.equal(mib(machine({ ...where, ...v2('/sys/fs/cgroup', 256, 100) })), 156)
})

t.test('version 1, and one whose parents cannot be seen', async (t) => {
  const where = {
    '/proc/self/cgroup': '5:cpu,cpuacct:/x\n4:memory:/jobs/one\n',
    '/proc/self/mountinfo': v1Mount('memory'),
  }
  const [jobs, one] = ['/sys/fs/cgroup/memory/jobs', '/sys/fs/cgroup/memory/jobs/one']
  t.equal(mib(machine({ ...where, ...v1(one, bytes(512), 300, 100) })), 312)
  t.equal(mib(machine({ ...where, ...v1(jobs, bytes(400), 390, 50), ...v1(one, bytes(512), 300, 100) })), 60)
  t.equal(
    mib(machine({ ...where, ...v1(one, NO_LIMIT_V1, 300, 100, bytes(250)) })),
    50,
    'hierarchical_memory_limit',
  )
})

t.test("docker on version 1: the path is the host's, and so is the root of the mount", async (t) => {
  const where = {
    '/proc/self/cgroup': '4:memory:/docker/abc/nested',
    '/proc/self/mountinfo': v1Mount('memory', '/docker/abc'),
  }
  t.equal(mib(machine({ ...where, ...v1('/sys/fs/cgroup/memory', bytes(512), 300) })), 212)
  t.equal(mib(machine({ ...where, ...v1('/sys/fs/cgroup/memory/nested', bytes(512), 500) })), 12)
})

t.test('a path that is not beneath what is mounted leaves the mount itself', async (t) => {
  const unrelated = { ...v2('/sys/fs/cgroup/foo', 10, 0), ...v2('/sys/fs/cgroup/elsewhere', 10, 0) }
  const limits = { ...v2('/sys/fs/cgroup', 256, 100), ...unrelated }
  for (const [path, root] of [
    ['/docker/abc', '/docker/other'],
    ['/', '/..'],
    ['/foo', '/..'],
    ['/../elsewhere', '/'],
    ['/docker/abcdef', '/docker/abc'],
  ] as const) {
    const mount = `30 23 0:26 ${root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw`
    t.equal(
      mib(machine({ '/proc/self/cgroup': `0::${path}`, '/proc/self/mountinfo': mount, ...limits })),
      156,
      path,
    )
  }
})

t.test(
  'hybrid: memory in version 1, the processes also in version 2; a mount point with a blank',
  async (t) => {
    const where = {
      '/proc/self/cgroup': '12:memory:/a b\n1:name=systemd:/a b\n0::/a b',
      '/proc/self/mountinfo': [
        '24 1 0:22 / /sys rw - sysfs sysfs rw',
        v1Mount('memory').replace('/sys/fs/cgroup/memory', '/sys/my\\040cgroups/memory'),
        v1Mount('systemd').replace('rw,systemd', 'rw,name=systemd'),
        V2_MOUNT.replace('/sys/fs/cgroup', '/sys/fs/cgroup/unified'),
      ].join('\n'),
    }
    t.equal(mib(machine({ ...where, ...v1('/sys/my cgroups/memory/a b', bytes(100), 30) })), 70)
  },
)

t.test('processors by quota', async (t) => {
  const two = { '/proc/self/cgroup': '0::/a/b', '/proc/self/mountinfo': V2_MOUNT }
  t.equal(quotaCpus(machine(two)), null)
  t.equal(quotaCpus(machine({ ...two, '/sys/fs/cgroup/a/b/cpu.max': 'max 100000' })), null)
  t.equal(quotaCpus(machine({ ...two, '/sys/fs/cgroup/a/b/cpu.max': '150000 100000' })), 1.5)
  t.equal(
    quotaCpus(
      machine({
        ...two,
        '/sys/fs/cgroup/a/b/cpu.max': '400000 100000',
        '/sys/fs/cgroup/a/cpu.max': '50000 100000',
      }),
    ),
    0.5,
    'of the one above',
  )
  const one = { '/proc/self/cgroup': '3:cpu,cpuacct:/x', '/proc/self/mountinfo': v1Mount('cpu,cpuacct') }
  const quota = (us: string) => ({
    '/sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us': us,
    '/sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us': '100000',
  })
  t.equal(quotaCpus(machine({ ...one, ...quota('-1') })), null)
  t.equal(quotaCpus(machine({ ...one, ...quota('200000') })), 2)
})

t.test('workers by quota: no more than can compute at once, and one at least', async (t) => {
  const under = (quota: string): Read =>
    machine({
      '/proc/self/cgroup': '0::/a',
      '/proc/self/mountinfo': V2_MOUNT,
      '/sys/fs/cgroup/a/cpu.max': quota,
    })
  t.equal(autoWorkers(under('max 100000'), 64), 64)
  t.equal(autoWorkers(machine({}), 64), 64, 'no cgroup at all')
  t.equal(autoWorkers(under('200000 100000'), 64), 2)
  t.equal(autoWorkers(under('150000 100000'), 64), 2, 'a part of one needs one, too')
  t.equal(autoWorkers(under('1000 100000'), 64), 1)
  t.equal(autoWorkers(under('800000 100000'), 2), 2)
})

t.test('what a worker costs: what is its own, or VmRSS where that is not told', async (t) => {
  const vm = 'VmPeak:  900 kB\nVmRSS:\t  600 kB'
  const status = (text: string): Read => machine({ '/proc/7/status': text })
  t.equal(workerBytes(7, status(`${vm}\nRssAnon: 200 kB\nRssFile: 370 kB\nRssShmem: 30 kB`)), 230 * 1024)
  t.equal(workerBytes(7, status(`${vm}\nRssAnon: 200 kB\nRssFile: 400 kB`)), 200 * 1024)
  t.equal(workerBytes(7, status(vm)), 600 * 1024)
  t.equal(workerBytes(7, machine({})), null)
})

t.test('this machine', { skip: process.platform === 'linux' ? false : 'Linux tells by /proc' }, async (t) => {
  const rss = rssBytes(process.pid) ?? 0
  const cost = workerBytes(process.pid) ?? 0
  t.ok(rss > MIB)
  t.ok(cost > MIB && cost < rss, `${cost} of ${rss}: the binary is not its own`)
  t.ok((freeBytes() ?? 0) > MIB)
  const cpus = quotaCpus()
  t.ok(cpus === null || cpus > 0)
})

t.test('what one more worker takes is what the one in the middle has', async (t) => {
  const worker = (pid: number, kib: number) => ({
    [`/proc/${pid}/status`]: `Name:\tnode\nVmRSS:\t  9000 kB\nRssAnon:\t  ${kib} kB`,
  })
  const read = machine({ ...worker(1, 800), ...worker(2, 50), ...worker(3, 70) })
  t.equal(typicalBytes([1, 2, 3], read), 70 * 1024)
  t.equal(typicalBytes([4, 2], read), 50 * 1024, 'one has gone')
  t.equal(typicalBytes([4], read), null)
  t.equal(typicalBytes([], read), null)
})
