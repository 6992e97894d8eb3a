/**
 * A cgroup for each worker, which is idle (`cpu.idle`) while the worker boots. Whoever else wakes then gets the processor
 * at once; by niceness alone he waits until the slice of the one that runs is over, 1.4 to 4 ms, however low its priority
 * (Linux 6.18). p99 while two workers boot on two processors: 1.1 to 1.7 of what it was before, and 1.8 to 2.5 by
 * niceness, in turns (docs/measurements.md). To become like the others takes one write of 0.1 ms, which holds
 * for all that the worker has started as well; to move a process takes the kernel 7 to 15 ms, so it is done once.
 * (Documentation/admin-guide/cgroup-v2.rst, "CPU Interface Files"; Linux 5.15 and newer, both versions.)
 *
 * Where such groups can be made:
 *  - version 2, in a service that systemd has delegated to us: `Delegate=cpu` and `DelegateSubgroup=usr2` (systemd 254 and
 *    newer). The name of the subgroup is how we know; the groups are beside it.
 *  - version 1, and no systemd: below our own.
 * Elsewhere the tree is not ours to change (systemd.io/CGROUP_DELEGATION, "the single-writer rule"), and no process may
 * be in a group of version 2 whose controllers are at work.
 */
import { existsSync, mkdirSync, readFileSync, readdirSync, rmdirSync, writeFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { attempt, cgroups } from './cgroups.ts'
import type { Read } from './cgroups.ts'
import { statOf } from '../proc.ts'

export const SUBGROUP = 'usr2'
const NAME = /^usr2-(\d+)-(\d+)-\d+$/

/** What this looks at, for tests. */
export interface Surroundings {
  readonly read: Read
  /** systemd runs (sd_booted(3)). */
  readonly systemd: boolean
  readonly pid: number
}

const here = (): Surroundings => ({
  read: (path) => readFileSync(path, 'utf8'),
  systemd: existsSync('/run/systemd/system'),
  pid: process.pid,
})

/** Directories. */
export interface PlaceForGroups {
  /** In which groups can be made. */
  readonly place: string
  /** Of the cgroup that the master is in. */
  readonly own: string
}

/** null: groups can be made nowhere. Whether it may be written shows when it is. */
export function placeForGroups({ read, systemd, pid }: Surroundings = here()): PlaceForGroups | null {
  for (const { version, controllers, directory } of cgroups(read)) {
    const members = (attempt(read, join(directory, 'cgroup.procs')) ?? '').split('\n')
    // Our own, not one above it, nor what a container has mounted in its place.
    if (!members.includes(String(pid))) continue
    if (version === 1 && controllers.includes('cpu') && !systemd) return { place: directory, own: directory }
    if (version === 2 && basename(directory) === SUBGROUP) {
      const service = dirname(directory)
      const has = (attempt(read, join(service, 'cgroup.controllers')) ?? '').trim().split(' ')
      if (has.includes('cpu')) return { place: service, own: directory }
    }
  }
  return null
}

export class WorkerGroups {
  private readonly place: string
  /** Where the master is. */
  private readonly own: string
  /** Not those that nobody has moved to yet: another worker's end would take them away. */
  private readonly made = new Set<string>()

  /**
   * Removes what masters that have died have left there, unless a worker of theirs lives.
   *
   * @param where what {@link placeForGroups} gives
   * @throws {Error} the system's, when it may not be written
   */
  constructor({ place, own }: PlaceForGroups) {
    this.place = place
    this.own = own
    const control = join(place, 'cgroup.subtree_control')
    // Of version 1 there is none.
    if (existsSync(control) && !readFileSync(control, 'utf8').split(/\s/).includes('cpu'))
      writeFileSync(control, '+cpu')
    for (const name of readdirSync(place)) {
      const [, master, since] = NAME.exec(name) ?? []
      if (master !== undefined && sinceOf(Number(master)) !== since) remove(join(place, name))
    }
  }

  /**
   * To move a process, the kernel waits for a grace period (RCU), 7 to 15 ms; the next move within a few milliseconds takes
   * 0.1 ms. Without this a worker would not be idle for that time after its start: of 31 late requests in 6 reloads 10 waited
   * for one, all within 28 ms of the signal. What is moved here is this process, to where it is.
   *
   * @throws {Error} the system's
   */
  async prepare(): Promise<void> {
    await writeFile(join(this.own, 'cgroup.procs'), String(process.pid))
  }

  /**
   * A group for a worker.
   *
   * @throws {Error} the system's: a kernel without `cpu.idle`, or it may not be written
   */
  make(id: number, { idle }: { readonly idle: boolean }): void {
    const name = nameOf(id)
    mkdirSync(join(this.place, name))
    try {
      writeFileSync(join(this.place, name, 'cpu.idle'), idle ? '1' : '0')
    } catch (error) {
      this.made.add(name)
      throw error
    }
  }

  /** @throws {Error} the system's, and the process is where it was */
  async move(id: number, pid: number): Promise<void> {
    try {
      await writeFile(join(this.place, nameOf(id), 'cgroup.procs'), String(pid))
    } finally {
      this.made.add(nameOf(id))
    }
  }

  /**
   * Its processes are like all others from now on.
   *
   * @throws {Error} the system's
   */
  serve(id: number): void {
    writeFileSync(join(this.place, nameOf(id), 'cpu.idle'), '0')
  }

  /** Groups whose last process has ended; others at the next call. */
  removeEmpty(): 'all-gone' | 'some-stay' {
    for (const name of this.made) {
      if (remove(join(this.place, name)) === 'gone') this.made.delete(name)
    }
    return this.made.size === 0 ? 'all-gone' : 'some-stay'
  }
}

function remove(group: string): 'gone' | 'stays' {
  try {
    rmdirSync(group)
    return 'gone'
  } catch (error) {
    // One of its processes lives.
    return (error as NodeJS.ErrnoException).code === 'EBUSY' ? 'stays' : 'gone'
  }
}

/** When it was started. With its pid that tells it from all others, also from the first process of another container. */
const sinceOf = (pid: number): string => statOf(`/proc/${pid}/stat`)?.since ?? ''

const prefix = `usr2-${process.pid}-${sinceOf(process.pid)}-`
const nameOf = (id: number): string => `${prefix}${id}`
