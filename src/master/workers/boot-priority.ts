/**
 * A booting worker yields the processor to those that serve: by a cgroup of its own where it may have one, else by
 * niceness. For at most {@link MAX_YIELD_MS}; and where there is nobody to yield to, as at the first start, not at all.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from '../report.ts'
import { MAX_YIELD_MS, canRaise, lower, raise } from './niceness.ts'
import { WorkerGroups, placeForGroups } from './worker-groups.ts'

/** What a worker has left running was killed just now. A group that stays is removed by the next master. */
const CLOSE_MS = 500
const LOOK_MS = 20
/** It takes 7 to 15. */
const PREPARE_MS = 100

interface Booting {
  readonly id: number
  readonly pid: number | null
  readonly alive: boolean
}

interface Yielding {
  readonly pid: number
  readonly isAlive: () => boolean
  readonly timer: NodeJS.Timeout
  readonly by: 'group' | 'niceness'
}

export class BootPriority {
  private readonly log: Logger
  private readonly canRaise = canRaise()
  private readonly groups: WorkerGroups | null
  /** Whether a group that could not be made or entered has shown that there can be none here. */
  private refused = false
  private readonly yielding = new Map<number, Yielding>()

  constructor(log: Logger) {
    this.log = log
    this.groups = this.groupsHere()
  }

  private groupsHere(): WorkerGroups | null {
    const place = placeForGroups()
    if (place === null) return null
    try {
      return new WorkerGroups(place)
    } catch (error) {
      this.giveUp(error)
      return null
    }
  }

  /** Workers will be started in a moment: what takes the kernel its time is done before. */
  async prepare(): Promise<void> {
    if (this.refused) return
    const prepared = this.groups?.prepare().catch((error: unknown) => this.giveUp(error))
    // A kernel that takes its time holds up no reload: the workers then move a little later.
    await Promise.race([prepared, sleep(PREPARE_MS, undefined, { ref: false })])
  }

  /** It was just started. `yields`: others serve. */
  begin(worker: Booting, yields: boolean): void {
    const { id, pid } = worker
    if (pid === null) return
    // Also one that does not yield: beside the groups of others, all that have none share one weight.
    const by = this.enterGroup(worker, pid, yields) ? 'group' : 'niceness'
    if (!yields) return
    if (by === 'niceness') lower(pid, this.canRaise)
    const timer = setTimeout(() => this.end(id), MAX_YIELD_MS).unref()
    this.yielding.set(id, { pid, isAlive: () => worker.alive, timer, by })
  }

  private enterGroup(worker: Booting, pid: number, idle: boolean): boolean {
    const { groups } = this
    if (groups === null || this.refused) return false
    try {
      groups.make(worker.id, { idle })
    } catch (error) {
      this.giveUp(error)
      groups.removeEmpty()
      return false
    }
    groups.move(worker.id, pid).catch((error: unknown) => {
      groups.removeEmpty()
      if (!worker.alive) return
      this.giveUp(error)
      const yielding = this.yielding.get(worker.id)
      if (yielding === undefined) return
      lower(pid, this.canRaise)
      this.yielding.set(worker.id, { ...yielding, by: 'niceness' })
    })
    return true
  }

  /** It serves, or has yielded for long enough. */
  end(id: number): void {
    const yielding = this.yielding.get(id)
    if (yielding === undefined) return
    this.forget(id)
    const { pid, isAlive, by } = yielding
    if (by === 'niceness') return raise(pid, this.canRaise, isAlive)
    try {
      this.groups?.serve(id)
    } catch (error) {
      // It never got there, or there is nothing that one could do.
      this.giveUp(error)
    }
  }

  /** It has ended. */
  exited(id: number): void {
    this.forget(id)
    this.groups?.removeEmpty()
  }

  /** No worker is left. */
  async close(): Promise<void> {
    for (const id of [...this.yielding.keys()]) this.forget(id)
    const until = performance.now() + CLOSE_MS
    while (this.groups?.removeEmpty() === 'some-stay' && performance.now() < until) await sleep(LOOK_MS)
  }

  private forget(id: number): void {
    clearTimeout(this.yielding.get(id)?.timer)
    this.yielding.delete(id)
  }

  private giveUp(error: unknown): void {
    this.refused = true
    const why = error instanceof Error ? error.message : String(error)
    this.log.debug({ event: 'no-groups' }, `workers get no cgroups of their own: ${why}`)
  }
}
