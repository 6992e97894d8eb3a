/**
 * Workers that outlived their master, which was killed. Each of them drains and leaves by itself, with its own deadline
 * (`onLost` in src/worker/preload.ts); but one that is blocked in a loop or stopped (SIGSTOP) hears of nothing, and its
 * copy of a listener keeps the address. The next master of the same name finds them, and
 * - lets nobody lead, and does not end after a stop, before they have gone;
 * - kills one that keeps an address from being bound for longer than `killTimeout`;
 * - kills what is left of them after the time in which a stop would have ended it.
 *
 * A worker is known by its master's runtime directory, which is in the environment that it was started with: an app may
 * change its command line (`process.title`), and a pid is soon another's. What a worker starts may have inherited that
 * (a `--require` in NODE_OPTIONS comes before our guest, a `node` may be a script), and so may have what runs in a container
 * with file systems of its own, where the same path is another master's. So these things more:
 * - it leads its process group, as every worker does: another one could not be ended, and would be waited for for ever;
 * - it runs as the user of our workers, and is in our PID namespace: the pid that it names is nobody's otherwise;
 * - its master is no more: nobody has that pid, or who has it began after the worker.
 *
 * Linux: read from /proc, see proc(5). Where that hides them (a `node` with file capabilities), they are not found, and all
 * is as if there were none.
 */
import type { Address } from '../../address.ts'
import { GUEST_ENV } from '../../protocol.ts'
import { leftovers, signalGroup } from './leftovers.ts'
import { holds } from '../listening/port-owner.ts'
import { link, pids, read, statOf } from '../proc.ts'
import type { Stat } from '../proc.ts'
import type { Logger } from '../report.ts'
import { masterOf } from '../control/runtime-directory.ts'
import { seconds } from '../words.ts'

const LOOK_EVERY_MS = 50
/** A killed process is a zombie while a thread of its may still have the descriptors. */
const LAST_THREAD_MS = 2_000

export interface SurvivorsParts {
  readonly log: Pick<Logger, 'info' | 'warn'>
  readonly control: string
  readonly name: string
  /** How long one may keep an address that is needed. */
  readonly killTimeoutMs: number
  /** How long they may drain. */
  readonly stopBudgetMs: number
  /** As whom workers run: anybody else may have written that environment himself. */
  readonly uid: number
}

interface Survivor {
  readonly pid: number
  /** When it was started, in ticks since the boot: another process of that pid has another one. */
  readonly since: string
  readonly generation: number
  readonly slot: number
  /** The pid of its master. */
  readonly master: number
}

export class Survivors {
  /** Settles when none is left of those that were found so far. */
  gone: Promise<void> = Promise.resolve()
  private readonly parts: SurvivorsParts
  private found: Survivor[] = []
  private killBy = Infinity

  constructor(parts: SurvivorsParts) {
    this.parts = parts
  }

  /**
   * Looks for them: once when a master starts, and when one that it was to replace has gone.
   *
   * @param dead a master that is known to be gone: the kernel may still be about to end it
   */
  look(dead: number | null = null): void {
    const { log, control, name, stopBudgetMs, uid } = this.parts
    const known = new Set(this.found.map(({ pid }) => pid))
    const found = workersBeside(control, name, uid).filter(
      ({ pid, since, master }) => !known.has(pid) && (master === dead || !isMasterOf(master, since)),
    )
    if (found.length === 0) return
    this.found.push(...found)
    this.killBy = performance.now() + stopBudgetMs
    const who = found.map(
      ({ pid, slot, generation }) => `pid ${pid} (slot ${slot} of generation ${generation})`,
    )
    const masters = [...new Set(found.map(({ master }) => master))].join(', ')
    log.warn(
      { event: 'survivors', survivors: found },
      `workers of a master that was killed (pid ${masters}) are still there: ${who.join(', ')}; they finish what they ` +
        `have begun, and are killed if they are not gone in ${seconds(stopBudgetMs)}`,
    )
    const before = this.gone
    this.gone = before.then(() => this.attend())
  }

  /**
   * One of them keeps `address` from being bound: waits for it to give it back.
   *
   * @returns false: none of them has it, so that another try would fail like the last one
   */
  async makeWay(address: Address): Promise<boolean> {
    const { log, killTimeoutMs } = this.parts
    const holder = this.alive().find(({ pid }) => holds(pid, address))
    if (holder === undefined) {
      if (performance.now() > this.releasedBy) return false
      await after(LOOK_EVERY_MS)
      return true
    }
    this.impatientAt ??= performance.now() + killTimeoutMs
    const { pid } = holder
    while (performance.now() < this.impatientAt) {
      await after(LOOK_EVERY_MS)
      if (!holds(pid, address)) return true
    }
    if (!isThere(holder)) return true
    log.warn(
      { event: 'survivor-killed', ...holder },
      `pid ${pid}, a worker of a master that was killed, has not given its listener back in ${seconds(killTimeoutMs)}: it ` +
        'is blocked or stopped, or holds a UDP socket while it drains; killed it, with what it had in flight',
    )
    signalGroup(pid, 'SIGKILL')
    for (const until = performance.now() + LAST_THREAD_MS; isThere(holder);) {
      if (performance.now() > until) return false
      await after(LOOK_EVERY_MS)
    }
    this.alive()
    return true
  }
  private impatientAt: number | null = null

  /** Waits for them no longer. */
  kill(): void {
    this.killBy = 0
  }

  private async attend(): Promise<void> {
    const { log, stopBudgetMs } = this.parts
    for (let left = this.alive(); left.length > 0; left = this.alive()) {
      if (performance.now() > this.killBy) {
        const pids = left.map(({ pid }) => pid).join(', ')
        const why = this.killBy === 0 ? 'are to stop at once' : `did not leave in ${seconds(stopBudgetMs)}`
        const text = `workers of a master that was killed ${why}: killed ${pids}`
        log.warn({ event: 'survivors-killed', left }, text)
        for (const { pid } of left) signalGroup(pid, 'SIGKILL')
        this.killBy = Infinity
      }
      await after(LOOK_EVERY_MS)
    }
    await Promise.all(this.endings)
    log.info({ event: 'survivors-gone' }, 'the last worker of a master that was killed has left')
  }

  private alive(): Survivor[] {
    const there = this.found.filter(isThere)
    const gone = this.found.filter((survivor) => !there.includes(survivor))
    if (gone.length > 0) this.releasedBy = performance.now() + LAST_THREAD_MS
    this.endings.push(...gone.map(({ pid }) => this.endLeftovers(pid)))
    this.found = there
    return there
  }
  private releasedBy = 0
  private readonly endings: Promise<void>[] = []

  /** Of what a worker has started itself its own master would rid the machine. */
  private async endLeftovers(pid: number): Promise<void> {
    const { log, killTimeoutMs } = this.parts
    const left = leftovers(pid)
    if (left.length === 0) return
    const names = left.map(({ pid, command }) => `${pid} (${command})`).join(', ')
    log.warn(
      { event: 'leftovers', pid, left },
      `pid ${pid}, whose master was killed, left running: ${names}; ending it`,
    )
    signalGroup(pid, 'SIGTERM')
    // As long as somebody is in the group its number is nobody else's, so it is watched without a break.
    for (const killAt = performance.now() + killTimeoutMs; leftovers(pid).length > 0;) {
      if (performance.now() > killAt) return signalGroup(pid, 'SIGKILL')
      await after(LOOK_EVERY_MS)
    }
  }
}

function workersBeside(control: string, name: string, uid: number): Survivor[] {
  const ours = namespaceOf('self')
  return pids().flatMap((pid) => {
    const guest = guestOf(pid)
    const master = guest === null ? null : masterOf(guest.runtime, control, name)
    const stat = aliveStat(pid)
    if (guest === null || master === null || stat === null) return []
    if (stat.group !== pid || namespaceOf(pid) !== ours || ownerOf(pid) !== uid) return []
    return [{ pid, since: stat.since, generation: guest.generation, slot: guest.slot, master }]
  })
}

/** Whether who has the pid `master` may have started a process that began at `since`. */
function isMasterOf(master: number, since: string): boolean {
  const stat = aliveStat(master)
  return stat !== null && BigInt(stat.since) <= BigInt(since)
}

const ownerOf = (pid: number): number => Number(/^Uid:\s*(\d+)/m.exec(read(`/proc/${pid}/status`))?.[1] ?? -1)

/** pid_namespaces(7); empty where /proc does not say. */
const namespaceOf = (pid: number | 'self'): string => link(`/proc/${pid}/ns/pid`)

/** A zombie has let go of everything; one that is dying has not. */
const isThere = ({ pid, since }: Survivor): boolean => aliveStat(pid)?.since === since

interface Guest {
  readonly runtime: string
  readonly generation: number
  readonly slot: number
}

/** null: not a worker. */
function guestOf(pid: number): Guest | null {
  const entry = read(`/proc/${pid}/environ`)
    .split('\0')
    .find((entry) => entry.startsWith(`${GUEST_ENV}=`))
  if (entry === undefined) return null
  try {
    const guest = JSON.parse(entry.slice(GUEST_ENV.length + 1)) as Partial<Guest> | null
    const { runtime, generation, slot } = guest ?? {}
    if (typeof runtime !== 'string' || typeof generation !== 'number' || typeof slot !== 'number') return null
    return { runtime, generation, slot }
  } catch {
    return null
  }
}

/** null: there is no such process, or it is a zombie. */
function aliveStat(pid: number): Stat | null {
  const stat = statOf(`/proc/${pid}/stat`)
  return stat === null || stat.state === 'Z' || stat.state === 'X' ? null : stat
}

const after = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))
