/**
 * What became of the connections and requests of workers: sums over a generation, and their words. Pure.
 *
 * Every connection is in one place, and every request: accepted = earlier + endings + crashed + open,
 * begun = outcomes + crashed + active.
 */
import { ENDINGS, OUTCOMES } from '../../protocol.ts'
import type { Counts, Ending, Outcome, Slowest } from '../../protocol.ts'
import { plural, seconds } from '../words.ts'

export interface Ledger {
  readonly connections: Readonly<Record<Ending, number>> & {
    readonly accepted: number
    /** Had ended before the drain. */
    readonly earlier: number
    /** Open when their worker died before its drain was over, as far as it could still say. */
    readonly crashed: number
    readonly open: number
  }
  readonly requests: Readonly<Record<Outcome, number>> & {
    readonly begun: number
    readonly crashed: number
    readonly active: number
  }
  /** The slowest request that was completed during the drain. */
  readonly slowest: Slowest | null
}

/** How a worker left: it still lives, it drained and left, or it died before that. */
export type Leave = 'here' | 'left' | 'died'

export function ledgerOf(counts: Counts, slowest: Slowest | null, leave: Leave): Ledger {
  const { accepted, earlier, endings, open, requests, outcomes, active } = counts
  return {
    connections: {
      accepted,
      earlier,
      ...endings,
      // What the drain did not wait for ended with its process: an app's connections to itself.
      other: endings.other + (leave === 'left' ? open : 0),
      crashed: leave === 'died' ? open : 0,
      open: leave === 'here' ? open : 0,
    },
    requests: {
      begun: requests,
      ...outcomes,
      aborted: outcomes.aborted + (leave === 'left' ? active : 0),
      crashed: leave === 'died' ? active : 0,
      active: leave === 'here' ? active : 0,
    },
    slowest,
  }
}

/** The sum; undefined is nothing. */
export function sumOf(ledgers: readonly (Ledger | undefined)[]): Ledger {
  return ledgers.reduce<Ledger>((a, b) => (b ? plus(a, b) : a), EMPTY)
}

function plus(a: Ledger, b: Ledger): Ledger {
  return {
    connections: added(a.connections, b.connections),
    requests: added(a.requests, b.requests),
    slowest: (b.slowest?.tookMs ?? 0) > (a.slowest?.tookMs ?? 0) ? b.slowest : a.slowest,
  }
}

function added<T extends Readonly<Record<string, number>>>(a: T, b: T): T {
  return Object.fromEntries(Object.keys(a).map((name) => [name, (a[name] ?? 0) + (b[name] ?? 0)])) as T
}

export const NO_COUNTS: Counts = {
  accepted: 0,
  earlier: 0,
  endings: Object.fromEntries(ENDINGS.map((name) => [name, 0])) as Record<Ending, number>,
  open: 0,
  requests: 0,
  outcomes: Object.fromEntries(OUTCOMES.map((name) => [name, 0])) as Record<Outcome, number>,
  active: 0,
}

const EMPTY = ledgerOf(NO_COUNTS, null, 'left')

const WORDS: Readonly<Record<Ending | 'crashed' | 'open', string>> = {
  client: 'closed by the client',
  response: 'after their last response',
  idle: 'idle when their promise ended',
  goaway: 'by GOAWAY',
  websocket: 'by WebSocket 1001',
  other: 'other',
  cut: 'cut',
  reset: 'reset by the peer',
  crashed: 'crashed',
  open: 'open',
}

/** `48212 connections: 48000 before the drain, 200 after their last response, 12 idle when their promise ended, 0 cut`. */
export function ledgerText({ connections, requests, slowest }: Ledger): string {
  const ended = (Object.keys(WORDS) as (keyof typeof WORDS)[])
    .filter((name) => connections[name] > 0 || name === 'cut')
    .map((name) => `${connections[name]} ${WORDS[name]}`)
  const { begun, during, cut, aborted, crashed, active } = requests
  const became = [
    `${during} completed during the drain`,
    ...(aborted > 0 ? [`${aborted} aborted`] : []),
    ...(active > 0 ? [`${active} in flight`] : []),
    `${cut} cut`,
    ...(crashed > 0 ? [`${crashed} crashed`] : []),
  ]
  const earlier = connections.earlier > 0 ? [`${connections.earlier} before the drain`] : []
  return (
    `${plural(connections.accepted, 'connection')}: ${[...earlier, ...ended].join(', ')}; ` +
    `${plural(begun, 'request')}: ${became.join(', ')}` +
    (slowest ? `; slowest ${seconds(slowest.tookMs)} ${slowest.method} ${slowest.path}` : '')
  )
}
