/** What a worker leaves running in its process group when it ends. Linux: read from /proc. */
import { readFileSync, readdirSync } from 'node:fs'

export interface Leftover {
  readonly pid: number
  readonly command: string
}

/** Processes of the group that `leader` led. Cheap when there is none: one kill(2) with signal 0. */
export function leftovers(leader: number): Leftover[] {
  try {
    process.kill(-leader, 0)
  } catch {
    return []
  }
  return pids().flatMap((pid) => {
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
      // proc(5): the command is in parentheses and may hold some itself; state, ppid and pgrp follow it.
      const [state, , pgrp] = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
      if (Number(pgrp) !== leader || state === 'Z') return []
      const command = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replace(/\0/g, ' ').trim()
      return [{ pid, command: command || stat.slice(stat.indexOf('(') + 1, stat.lastIndexOf(')')) }]
    } catch {
      return []
    }
  })
}

function pids(): number[] {
  try {
    return readdirSync('/proc').map(Number).filter(Number.isInteger)
  } catch {
    return []
  }
}

/** Signals every process of the group; none left is no error. */
export function signalGroup(leader: number, signal: NodeJS.Signals): void {
  try {
    process.kill(-leader, signal)
  } catch {
    // Gone.
  }
}

/** A process of another user's is one, too; one that has ended and that nobody has reaped is none. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return !isZombie(pid)
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EPERM'
  }
}

function isZombie(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    return stat[stat.lastIndexOf(')') + 2] === 'Z'
  } catch {
    return false
  }
}
