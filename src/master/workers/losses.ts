/** What a worker took with it when it was cut off, ended by force or died: the lines of the log that say so. */
import type { FromWorker, Held } from '../../protocol.ts'
import type { Logger } from '../report.ts'
import type { WorkerHandle } from './worker-handle.ts'
import { heldText, plural } from '../words.ts'

const MAX_NAMED = 20

/** A worker that hangs cannot say what is cut off; what it said last is at most a second older than its hang. */
export function reportForce(
  log: Logger,
  { counts, slot, pid, facts }: WorkerHandle,
  event: 'terminated' | 'killed',
): void {
  const { open, active } = counts
  const why =
    event === 'terminated' ? 'has not left in time and gets SIGTERM' : 'is still there and gets SIGKILL'
  const held = `${plural(open, 'connection')}, ${plural(active, 'request')} in flight when it last said so`
  const text = `slot ${slot} (pid ${pid}) ${why}: ${held}`
  log.warn({ ...facts, event, connections: open, active }, text)
}

/** By the drain deadline. */
export function reportCuts(
  log: Logger,
  { facts }: WorkerHandle,
  { counts, cut }: Extract<FromWorker, { t: 'drained' }>,
): void {
  const connections = counts.endings.cut
  const requests = counts.outcomes.cut
  log.warn(
    { ...facts, event: 'cut', cut: connections, requests, held: cut.slice(0, MAX_NAMED) },
    `cut ${plural(connections, 'connection')}${requests > 0 ? ` with ${plural(requests, 'request')}` : ''} ` +
      `at the drain deadline: ${named(cut, connections)}`,
  )
}

/**
 * A worker that ends before its drain is over takes what it held with it. Killed, it has no last words, and what it
 * said last is at most a second old.
 */
export function reportDeathInDrain(log: Logger, { lost, facts, ledger }: WorkerHandle, reason: string): void {
  const { connections, requests } = ledger
  const which = lost ? `: ${named(lost, connections.crashed)}` : ' when it last said so'
  const text =
    `${reason}, in the midst of its drain; with it ended ${plural(connections.crashed, 'connection')}, ` +
    `${plural(requests.crashed, 'request')} in flight${connections.crashed > 0 ? which : ''}`
  const crashed = { connections: connections.crashed, requests: requests.crashed }
  log.error({ ...facts, event: 'died-draining', crashed, held: lost ?? [], reason }, text)
}

/** The first of them, and how many more there are of `count`. */
function named(held: readonly Held[], count: number): string {
  const first = held.slice(0, MAX_NAMED)
  const more = count > first.length ? `, and ${count - first.length} more` : ''
  return first.map(heldText).join('; ') + more
}
