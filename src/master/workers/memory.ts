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
 * it shares with its siblings: the binary above all. Two workers of a small app have 46.4 MB of VmRSS each, 9.1 of it
 * their own (RssAnon; RssShmem is none): a surge of ten would be refused for room that is there.
 *
 * Pss would say 21.1, but the kernel walks all pages of a worker to tell: 3 ms here at the begin of each reload, in
 * which those who serve wait, for us and for the pages. These it has counted (Linux 4.5). VmRSS before that, which errs
 * to the safe side.
 */
export function workerBytes(pid: number, read: Read = readFile): number | null {
  const status = attempt(read, `/proc/${pid}/status`) ?? ''
  const anonymous = fieldIn(status, 'RssAnon')
  return anonymous === null ? fieldIn(status, 'VmRSS') : anonymous + (fieldIn(status, 'RssShmem') ?? 0)
}

/** What one more worker like these costs: the one in the middle. */
export function typicalBytes(pids: readonly number[], read: Read = readFile): number | null {
  const sizes = pids.flatMap((pid) => workerBytes(pid, read) ?? []).sort((a, b) => a - b)
  return sizes[Math.floor(sizes.length / 2)] ?? null
}

/**
 * Bytes that can still be had without swapping and before the kernel kills for them: the smallest of what the machine
 * has (MemAvailable, proc(5)) and what our cgroup and each visible one above it leave of their limits. Null where
 * nothing tells.
 */
export function freeBytes(read: Read = readFile): number | null {
  const groups = cgroups(read)
  const limits = groups.flatMap((group) => (group.version === 2 ? freeInV2(read, group.directory) : []))
  const [own, ...above] = groups.filter(({ controllers }) => controllers.includes('memory'))
  if (own !== undefined) limits.push(...freeInV1(read, own.directory, 'own'))
  for (const { directory } of above) limits.push(...freeInV1(read, directory, 'above'))
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

/**
 * Over memory.high nothing is killed, but all that allocates is put to sleep: for a worker that serves it is a limit.
 * memory.stat is read where there is a limit alone: the kernel adds it up for that from all processors, in 8 ms at worst.
 */
function freeInV2(read: Read, directory: string): number[] {
  // "max" is not a number: no limit.
  const limits = ['memory.max', 'memory.high'].flatMap((name) => numberIn(read, `${directory}/${name}`) ?? [])
  if (limits.length === 0) return []
  const used = numberIn(read, `${directory}/memory.current`)
  const reclaimable = fieldOf(attempt(read, `${directory}/memory.stat`), 'inactive_file')
  return used === null ? [] : limits.map((limit) => left(limit, used, reclaimable))
}

/** In version 1 no limit is 2^63 rounded down to a page. */
const NO_LIMIT_BYTES = 2 ** 62

/** Our own also tells of the smallest limit above it, which counts where a container cannot see what has it. */
function freeInV1(read: Read, directory: string, whose: 'own' | 'above'): number[] {
  const limit = numberIn(read, `${directory}/memory.limit_in_bytes`)
  const isLimited = limit !== null && limit < NO_LIMIT_BYTES
  if (!isLimited && whose === 'above') return []
  const stat = attempt(read, `${directory}/memory.stat`)
  const limits = [limit, fieldOf(stat, 'hierarchical_memory_limit')].flatMap((bytes) => bytes ?? [])
  const used = numberIn(read, `${directory}/memory.usage_in_bytes`)
  const reclaimable = fieldOf(stat, 'total_inactive_file')
  return used === null ? [] : limits.map((limit) => left(limit, used, reclaimable))
}

/**
 * Usage counts the page cache. What was read once and not again of it is given back first, without a cost: a cgroup that
 * has read big files is always "full". Kubernetes counts the same way (its "working set").
 */
function left(limit: number, used: number, reclaimable: number | null): number {
  return Math.max(0, limit - Math.max(0, used - (reclaimable ?? 0)))
}

/** `inactive_file 1331200`, of a memory.stat. */
function fieldOf(stat: string | null, name: string): number | null {
  const value = new RegExp(`^${name} (\\d+)$`, 'm').exec(stat ?? '')?.[1]
  return value === undefined ? null : Number(value)
}

function numberIn(read: Read, path: string): number | null {
  const text = attempt(read, path)?.trim() ?? ''
  return /^-?\d+$/.test(text) ? Number(text) : null
}

/** `VmRSS:   62464 kB`. */
function fieldIn(text: string, name: string): number | null {
  const kib = new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(text)?.[1]
  return kib === undefined ? null : Number(kib) * 1024
}

const fieldBytes = (read: Read, path: string, name: string): number | null =>
  fieldIn(attempt(read, path) ?? '', name)

const smallest = (values: readonly number[]): number | null =>
  values.length === 0 ? null : Math.min(...values)
