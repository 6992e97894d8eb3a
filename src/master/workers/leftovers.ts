/** What a worker leaves running in its process group when it ends. Linux: read from /proc. */
import { commandOf, pids, statOf } from '../proc.ts'

import type { Logger } from '../report.ts'
import type { WorkerHandle } from './worker-handle.ts'

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
    const stat = statOf(`/proc/${pid}/stat`)
    if (stat === null || stat.group !== leader || stat.state === 'Z') return []
    return [{ pid, command: commandOf(pid) || stat.name }]
  })
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

const isZombie = (pid: number): boolean => statOf(`/proc/${pid}/stat`)?.state === 'Z'

/** Ends what workers have left: SIGTERM, and SIGKILL in time. */
export class LeftoverEnder {
  private readonly log: Logger
  private readonly kills = new Map<number, NodeJS.Timeout>()

  constructor(log: Logger) {
    this.log = log
  }

  /** That worker has ended. */
  end({ pid, slot, facts }: WorkerHandle, killTimeoutMs: number): void {
    const left = pid === null ? [] : leftovers(pid)
    if (pid === null || left.length === 0) return
    const names = left.map(({ pid, command }) => `${pid} (${command})`).join(', ')
    this.log.warn({ ...facts, event: 'leftovers', left }, `slot ${slot} left running: ${names}; ending it`)
    signalGroup(pid, 'SIGTERM')
    const kill = setTimeout(() => {
      this.kills.delete(pid)
      signalGroup(pid, 'SIGKILL')
    }, killTimeoutMs)
    this.kills.set(pid, kill)
  }

  /** The master ends: nothing of theirs is given more time. */
  killAll(): void {
    for (const [pid, timer] of this.kills) {
      clearTimeout(timer)
      signalGroup(pid, 'SIGKILL')
    }
    this.kills.clear()
  }
}
