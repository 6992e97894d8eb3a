/** How the old generations ended, by the ledgers in the master's log: their sum, and what is wrong with them. */
import { type Ledger, ledgerText, sumOf } from '../../src/master/figures/ledger.ts'
import { ENDINGS, OUTCOMES } from '../../src/protocol.ts'
import type { LogLine } from './bench.ts'

export interface Drains {
  readonly generations: number
  readonly ledger: Ledger
  /** Sums that do not agree, what was cut, what a crash took along; one sentence each. */
  readonly complaints: readonly string[]
}

export function drainsOf(log: readonly LogLine[]): Drains {
  const drained = log.filter(({ event }) => event === 'drained')
  const ledgers = drained.map(({ ledger }) => ledger as Ledger)
  const cuts = log.filter(({ event }) => event === 'cut').map(({ msg }) => String(msg))
  const complaints = drained.flatMap(({ generation }, at) => {
    const ledger = ledgers[at]
    return ledger === undefined
      ? []
      : wrongWith(ledger).map((what) => `generation ${String(generation)}: ${what}`)
  })
  return { generations: drained.length, ledger: sumOf(ledgers), complaints: [...complaints, ...cuts] }
}

function wrongWith({ connections, requests }: Ledger): string[] {
  const { accepted, earlier, crashed, open } = connections
  const ended = ENDINGS.reduce((sum, name) => sum + connections[name], 0)
  const became = OUTCOMES.reduce((sum, name) => sum + requests[name], 0)
  const { begun, active } = requests
  return [
    ...(accepted === earlier + ended + crashed + open
      ? []
      : [`${accepted} connections were accepted, not the sum`]),
    ...(begun === became + requests.crashed + active ? [] : [`${begun} requests began, not the sum`]),
    ...(connections.cut + requests.cut > 0
      ? [`${connections.cut} connections, ${requests.cut} requests cut`]
      : []),
    ...(crashed + requests.crashed > 0
      ? [`${crashed} connections, ${requests.crashed} requests crashed`]
      : []),
  ]
}

export const drainsText = ({ generations, ledger, complaints }: Drains): string[] => [
  `${generations} generations have ended: ${ledgerText(ledger)}`,
  ...complaints.map((complaint) => `  ${complaint}`),
]
