/**
 * As PID 1, the usual place of a container's program, the master becomes the parent of every process that loses its own
 * (pid_namespaces(7)), and PID 1 is who waits for those when they end. Node waits for its own children only: each such
 * orphan stays as a zombie until the container is gone, and they count as processes (pids.max). Nothing in
 * JavaScript can wait for them; an init can.
 */
import { pids, statOf } from '../proc.ts'

const LOOK_EVERY_MS = 5_000

export interface OrphansParts {
  readonly log: { warn(facts: object, text: string): void }
  /** Names of ended processes that wait for PID 1 to take notice, by their pid. */
  readonly look?: () => ReadonlyMap<number, string>
  readonly everyMs?: number
}

/** Warns once, of orphans that nobody reaps. Only for PID 1. Gives what ends the watch; it keeps no process alive. */
export function watchOrphans({
  log,
  look = zombiesOfPid1,
  everyMs = LOOK_EVERY_MS,
}: OrphansParts): () => void {
  let before: ReadonlyMap<number, string> = new Map()
  const timer = setInterval(() => {
    const now = look()
    // A child of our own is one for an instant, too, until Node has heard of its end.
    const stay = [...now].filter(([pid, name]) => before.get(pid) === name)
    before = now
    if (stay.length === 0) return
    clearInterval(timer)
    const names = [...new Set(stay.map(([, name]) => name))].join(', ')
    log.warn(
      { event: 'orphans', orphans: stay.map(([pid, command]) => ({ pid, command })) },
      `processes that lost their parent have ended and stay as zombies (${names}): usr2 is PID 1 here, and Node.js does ` +
        'not wait for them; start the container with an init: docker run --init, or tini as its entry point',
    )
  }, everyMs)
  timer.unref()
  return () => clearInterval(timer)
}

function zombiesOfPid1(): Map<number, string> {
  const found = new Map<number, string>()
  for (const pid of pids()) {
    const stat = statOf(`/proc/${pid}/stat`)
    if (stat?.state === 'Z' && stat.parent === 1) found.set(pid, stat.name)
  }
  return found
}
