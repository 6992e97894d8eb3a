/**
 * What Linux tells of the memory of a process, of what can still be had of it, and of processors. A container has no
 * memory of its own but a limit, which /proc/meminfo does not know of: it is asked of the cgroup, of both versions, and
 * of those above it, whose limits hold as well (cgroups(7); Documentation/admin-guide/cgroup-v2.rst, "Memory Interface
 * Files" and "CPU Interface Files"; cgroup-v1/memory.rst; scheduler/sched-bwc.rst).
 */
import { readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { attempt, cgroups } from './cgroups.ts'
import type { Read } from './cgroups.ts'

const readFile: Read = (path) => readFileSync(path, 'utf8')

/** Resident memory in bytes (proc(5), VmRSS), or null when the process is gone. */
export function rssBytes(pid: number): number | null {
  return fieldBytes(readFile, `/proc/${pid}/status`, 'VmRSS')
}

/**
 * What one more worker like this one costs, in bytes; null when it is gone. Not its VmRSS, which counts pages whole that
 * it shares with its siblings: the binary above all. Two workers of a small Express app on Node 22 have 61.0 MiB of
 * VmRSS each and 30.7 MiB of Pss each: together they take 61, not 122. A surge of ten would be refused for room that is
 * there. Pss divides a shared page by its users, so for one more it is still a little too much (Private: 15.3 MiB).
 *
 * The kernel walks all its pages to tell, in 1 to 3 ms here: for a decision, not for a look every second. VmRSS where
 * that may not be read (another user's process; Linux before 4.14), which errs to the safe side.
 */
export function workerBytes(pid: number, read: Read = readFile): number | null {
  return (
    fieldBytes(read, `/proc/${pid}/smaps_rollup`, 'Pss') ?? fieldBytes(read, `/proc/${pid}/status`, 'VmRSS')
  )
}

/**
 * What one more worker like these costs: asked of the one in the middle by VmRSS. To walk the pages of each of 16 would
 * take the machine 30 ms at the begin of each reload, and each has to wait while its own are walked.
 */
export function typicalBytes(pids: readonly number[], read: Read = readFile): number | null {
  const sizes = pids.flatMap((pid) => {
    const bytes = fieldBytes(read, `/proc/${pid}/status`, 'VmRSS')
    return bytes === null ? [] : [{ pid, bytes }]
  })
  const middle = sizes.sort((a, b) => a.bytes - b.bytes)[Math.floor(sizes.length / 2)]
  return middle === undefined ? null : workerBytes(middle.pid, read)
}

/**
 * Bytes that can still be had without swapping and before the kernel kills for them: the smallest of what the machine
 * has (MemAvailable, proc(5)) and what our cgroup and each visible one above it leave of their limits. Null where
 * nothing tells.
 */
export function freeBytes(read: Read = readFile): number | null {
  const limits = cgroups(read).flatMap(({ version, directory }) =>
    version === 2 ? freeInV2(read, directory) : freeInV1(read, directory),
  )
  const machine = fieldBytes(read, '/proc/meminfo', 'MemAvailable')
  return smallest([...(machine === null ? [] : [machine]), ...limits])
}

/**
 * Processors that our cgroups let us use by a quota of time, which may be a fraction (0.5); null: no quota. Which ones
 * exist for us, `os.availableParallelism()` knows; of quotas it knows only with libuv 1.49 and newer, not on Node 20.
 */
export function quotaCpus(read: Read = readFile): number | null {
  const quotas = cgroups(read).flatMap(({ version, directory }) => {
    if (version === 2) {
      const [quota, period] = (attempt(read, `${directory}/cpu.max`) ?? 'max').trim().split(' ')
      return quota === 'max' ? [] : [Number(quota) / Number(period)]
    }
    const quota = numberIn(read, `${directory}/cpu.cfs_quota_us`)
    const period = numberIn(read, `${directory}/cpu.cfs_period_us`)
    return quota === null || period === null ? [] : [quota / period]
  })
  // Version 1 says -1 for none.
  return smallest(quotas.filter((cpus) => cpus > 0))
}

/**
 * How many workers `auto` is: as many as can compute at the same time. A quota of 1.5 processors is two workers, of which
 * neither can take it all; 64 on a big host under a quota of 2 would be throttled for most of each 100 ms, all at once.
 * (Node 22 and newer round such a quota down by themselves: two are one there.)
 */
export function autoWorkers(read: Read = readFile, cores = availableParallelism()): number {
  return Math.max(1, Math.min(cores, Math.ceil(quotaCpus(read) ?? Infinity)))
}

/** Over memory.high nothing is killed, but all that allocates is put to sleep: for a worker that serves it is a limit. */
function freeInV2(read: Read, directory: string): number[] {
  const used = numberIn(read, `${directory}/memory.current`)
  // "max" is not a number: no limit.
  const limits = ['memory.max', 'memory.high'].flatMap((name) => numberIn(read, `${directory}/${name}`) ?? [])
  return used === null ? [] : limits.map((limit) => left(limit, used, stat(read, directory, 'inactive_file')))
}

function freeInV1(read: Read, directory: string): number[] {
  const used = numberIn(read, `${directory}/memory.usage_in_bytes`)
  const own = numberIn(read, `${directory}/memory.limit_in_bytes`)
  // The smallest of it and all above it, also of those that a container cannot see. No limit is 2^63 rounded down to a
  // page, which leaves more than any machine has.
  const inherited = stat(read, directory, 'hierarchical_memory_limit')
  const limits = [own, inherited].flatMap((limit) => limit ?? [])
  return used === null
    ? []
    : limits.map((limit) => left(limit, used, stat(read, directory, 'total_inactive_file')))
}

/**
 * Usage counts the page cache. What was read once and not again of it is given back first, without a cost: a cgroup that
 * has read big files is always "full". Kubernetes counts the same way (its "working set").
 */
function left(limit: number, used: number, reclaimable: number | null): number {
  return Math.max(0, limit - Math.max(0, used - (reclaimable ?? 0)))
}

function stat(read: Read, directory: string, name: string): number | null {
  const value = new RegExp(`^${name} (\\d+)$`, 'm').exec(attempt(read, `${directory}/memory.stat`) ?? '')?.[1]
  return value === undefined ? null : Number(value)
}

function numberIn(read: Read, path: string): number | null {
  const text = attempt(read, path)?.trim() ?? ''
  return /^-?\d+$/.test(text) ? Number(text) : null
}

/** `VmRSS:   62464 kB`. */
function fieldBytes(read: Read, path: string, name: string): number | null {
  const kib = new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(attempt(read, path) ?? '')?.[1]
  return kib === undefined ? null : Number(kib) * 1024
}

const smallest = (values: readonly number[]): number | null =>
  values.length === 0 ? null : Math.min(...values)
