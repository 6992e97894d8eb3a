/**
 * A booting worker yields the processor to those that serve: nice 10 until it is ready. With two big apps booting on two
 * busy cores the p99 of the old generation's requests was 5.0 ms without, 3.3 ms with it (1.1 ms undisturbed), and the
 * boot took no longer (FACTS W8).
 *
 * Done only where it can be undone, since a worker must not serve like that: raising a priority takes root,
 * CAP_SYS_NICE, or an RLIMIT_NICE that allows it (setpriority(2)).
 */
import { readFileSync, readdirSync } from 'node:fs'
import { getPriority, setPriority } from 'node:os'
import { leftovers } from './leftovers.ts'

export const BOOT_NICE = 10
const CAP_SYS_NICE = 23n
/** Threads that start while the others are raised inherit the old value. */
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

/** Of a process that was just started, and has one thread. */
export function lower(pid: number): void {
  try {
    setPriority(pid, Math.min(19, getPriority() + BOOT_NICE))
  } catch {
    // It has ended already, or this is not allowed after all: then it boots as it would without us.
  }
}

/** Every thread of the worker and of what it started in its process group, unless the app chose a niceness itself. */
export function raise(pid: number): void {
  const lowered = Math.min(19, getPriority() + BOOT_NICE)
  for (let pass = 0; pass < MAX_PASSES; pass++) {
    const found = [pid, ...leftovers(pid).map(({ pid }) => pid)].flatMap(threads).filter((thread) => {
      try {
        if (getPriority(thread) !== lowered) return false
        // setpriority(2): on Linux it acts on one thread.
        setPriority(thread, getPriority())
        return true
      } catch {
        return false
      }
    })
    if (found.length === 0) return
  }
}

function threads(pid: number): number[] {
  try {
    return readdirSync(`/proc/${pid}/task`).map(Number)
  } catch {
    return []
  }
}
