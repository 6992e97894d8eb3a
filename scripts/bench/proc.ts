/** What Linux tells about a process: its time, its memory, its open files, its children. Source: proc(5). */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'

/**
 * Its time on the processor so far, user and system, of all threads that it has now. From schedstat, in nanoseconds:
 * /proc/PID/stat counts in steps of 10 ms, as much as a master needs in a minute.
 */
export function cpuMs(pid: number): number {
  const threads = readdirSync(`/proc/${pid}/task`)
  const ns = threads.map((thread) => Number(read(`/proc/${pid}/task/${thread}/schedstat`).split(' ')[0]))
  return ns.reduce((sum, of) => sum + of, 0) / 1e6
}

export function rssMb(pid: number): number {
  const kib = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
  return Number(kib) / 1024
}

/** Open files by kind: `{ socket: 7, '/dev/null': 1, 'anon_inode:[eventpoll]': 1 }`. */
export function openFiles(pid: number): Record<string, number> {
  const kinds: Record<string, number> = {}
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    try {
      const kind = readlinkSync(`/proc/${pid}/fd/${fd}`).replace(/:\[\d+\]$/, '')
      kinds[kind] = (kinds[kind] ?? 0) + 1
    } catch {
      // Closed since the directory was read.
    }
  }
  return Object.fromEntries(Object.entries(kinds).sort())
}

/** Living children; a zombie is none. */
export function childrenOf(parent: number): number[] {
  return allPids().filter((pid) => {
    const fields = statFields(pid)
    return fields !== null && Number(fields[1]) === parent && fields[0] !== 'Z'
  })
}

export function isAlive(pid: number): boolean {
  const state = statFields(pid)?.[0]
  return state !== undefined && state !== 'Z' && state !== 'X'
}

/** Processes that have the variable `name` with this value in their environment. A zombie has none any more. */
export function processesWith(name: string, value: string): number[] {
  return allPids().filter((pid) => `\0${read(`/proc/${pid}/environ`)}`.includes(`\0${name}=${value}\0`))
}

function allPids(): number[] {
  return readdirSync('/proc').map(Number).filter(Number.isInteger)
}

/** From the third field, the state, on: the second, the command in parentheses, may hold anything. */
function statFields(pid: number): string[] | null {
  const stat = read(`/proc/${pid}/stat`)
  return stat === '' ? null : stat.slice(stat.lastIndexOf(')') + 2).split(' ')
}

function read(path: string): string {
  try {
    return readFileSync(path, 'latin1')
  } catch {
    // It has ended, or is somebody else's.
    return ''
  }
}
