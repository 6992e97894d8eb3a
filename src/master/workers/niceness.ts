/**
 * A booting worker yields the processor to those that serve: nice 18 until it is ready. With two big apps booting on two
 * busy cores the p99 of the old generation's requests was 5.0 ms without, 3.3 ms with nice 10 (1.1 ms undisturbed), and the
 * boot took no longer. Of some 1,400 requests of 5 ms of work 142 took more than 8.5 ms at nice 10 (the most interrupted for
 * a tick of 4 ms), and 43 at nice 19: Linux lets whoever is owed time run for a slice, however low its priority.
 *
 * There are two of it. Each worker has a session of its own, and where Linux groups processes by session for its
 * scheduler (autogroup, sched(7): on by default, unless a cgroup with the cpu controller is between) the niceness of a
 * process counts within its session alone, that is not at all here: two such workers at nice 0 and 10 got half of a
 * processor each. So the session gets its own niceness too, at /proc/PID/autogroup.
 *
 * Done only where it can be undone, since a worker must not serve like that: raising a priority takes root,
 * CAP_SYS_NICE, or an RLIMIT_NICE that allows it (setpriority(2)). A session may be raised to 0 by its owner, but to do
 * so more often than ten times a second, all users together, takes CAP_SYS_ADMIN, and fails with EAGAIN without.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { getPriority, setPriority } from 'node:os'
import { entries, read } from '../proc.ts'
import { leftovers } from './leftovers.ts'

/** Not 19: that is what an app chooses for a helper that is to work in the background, which would be raised with it. */
export const BOOT_NICE = 18
/**
 * Then the worker gets its full share, ready or not. Beside many that never pause, nice 18 is 2 % of that, and nice 10 a
 * tenth: with it, at a load average of 30 on 2 cores, a boot of 40 ms of processor time took 2.5 s, and one of five seconds
 * would not have ended within the start timeout.
 */
export const MAX_YIELD_MS = 2_000
const CAP_SYS_NICE = 23n
/** A session that could not be raised is tried again after as long, more than the kernel's tenth of a second. */
const RETRY_MS = 110
/** Threads that start while the others are changed inherit the old value. */
const MAX_PASSES = 5

/** Whether a process of ours at {@link BOOT_NICE} may be raised to our own niceness again. */
export function canRaise(read: (path: string) => string = (path) => readFileSync(path, 'utf8')): boolean {
  try {
    // In a user namespace (rootless and LXC containers, PrivateUsers=) root seems to have it, but setpriority(2) asks for it
    // in the first namespace: a worker would never come up again (user_namespaces(7); the first one maps all ids).
    const isFirst = /^\s*0\s+0\s+4294967295\s*$/.test(read('/proc/self/uid_map'))
    const capabilities = /^CapEff:\s*([0-9a-f]+)/m.exec(read('/proc/self/status'))?.[1] ?? '0'
    if (isFirst && (BigInt(`0x${capabilities}`) >> CAP_SYS_NICE) & 1n) return true
    const limit = /^Max nice priority\s+(\d+)/m.exec(read('/proc/self/limits'))?.[1] ?? '0'
    // getrlimit(2): the ceiling is 20 minus the limit.
    return 20 - Number(limit) <= getPriority()
  } catch {
    return false
  }
}

/**
 * Of a process that was just started, and leads a session.
 * @param mayRaise what {@link canRaise} says
 */
export function lower(pid: number, mayRaise: boolean): void {
  setSessionNiceness(pid, BOOT_NICE)
  const ours = getPriority()
  if (mayRaise) renice(() => [pid], ours, loweredFrom(ours))
}

/**
 * The worker's session, every thread of the worker and of what it started, unless the app chose a niceness itself.
 * @param isAlive asked before a session is tried again: the pid may be another's by then
 */
export function raise(pid: number, mayRaise: boolean, isAlive: () => boolean): void {
  raiseSession(pid, isAlive)
  const ours = getPriority()
  if (mayRaise) renice(() => withDescendants(pid), loweredFrom(ours), ours)
}

function raiseSession(pid: number, isAlive: () => boolean): void {
  if (sessionNiceness(pid) !== BOOT_NICE || setSessionNiceness(pid, 0) !== 'EAGAIN') return
  // Ends with the worker at the latest.
  setTimeout(() => isAlive() && raiseSession(pid, isAlive), RETRY_MS).unref()
}

/** `/autogroup-71 nice 10`; null where sessions have none. */
function sessionNiceness(pid: number): number | null {
  try {
    const nice = / nice (-?\d+)/.exec(readFileSync(`/proc/${pid}/autogroup`, 'utf8'))?.[1]
    return nice === undefined ? null : Number(nice)
  } catch {
    return null
  }
}

/** Gives the error's code. ENOENT: this kernel knows no autogroups. */
function setSessionNiceness(pid: number, niceness: number): string | null {
  try {
    writeFileSync(`/proc/${pid}/autogroup`, String(niceness))
    return null
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? null
  }
}

const loweredFrom = (niceness: number): number => Math.min(19, niceness + BOOT_NICE)

/** Every thread of these processes that has the one niceness gets the other. */
function renice(processes: () => number[], from: number, to: number): void {
  for (let pass = 0; pass < MAX_PASSES && from !== to; pass++) {
    const found = processes()
      .flatMap(threads)
      .filter((thread) => {
        try {
          if (getPriority(thread) !== from) return false
          // setpriority(2): on Linux it acts on one thread.
          setPriority(thread, to)
          return true
        } catch {
          // It has ended, or this is not allowed after all.
          return false
        }
      })
    if (found.length === 0) return
  }
}

const threads = (pid: number): number[] => entries(`/proc/${pid}/task`).map(Number)

/**
 * Also those that it started detached, in groups of their own, as browsers are. (proc(5), /proc/PID/task/TID/children; a
 * kernel without CONFIG_PROC_CHILDREN has its process group instead, for which all of /proc is read: 2 ms for 70
 * processes, at the moment when the worker is to serve.)
 */
function withDescendants(pid: number): number[] {
  if (!existsSync(`/proc/${process.pid}/task/${process.pid}/children`))
    return [pid, ...leftovers(pid).map(({ pid }) => pid)]
  const children = threads(pid).flatMap((thread) =>
    (read(`/proc/${pid}/task/${thread}/children`).match(/\d+/g) ?? []).map(Number),
  )
  return [pid, ...children.flatMap(withDescendants)]
}
