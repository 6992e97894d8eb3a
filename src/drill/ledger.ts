/** Adds up what drains say of themselves, whatever it is that they count. */
import type { Ledger } from './options.ts'

/** No bucket of connections or requests: how long it took, and which one it was. */
const NOT_COUNTED: ReadonlySet<string> = new Set(['generation', 'tookMs'])

/** Every number of each drain, by its key, also in objects within. */
export function ledgerOf(drains: readonly object[]): Ledger {
  const sum: Record<string, number | Ledger> = {}
  for (const drain of drains) {
    for (const [key, value] of Object.entries(drain) as [string, unknown][]) {
      if (NOT_COUNTED.has(key)) continue
      const before = sum[key]
      if (typeof value === 'number') sum[key] = (typeof before === 'number' ? before : 0) + value
      else if (typeof value === 'object' && value !== null && !Array.isArray(value))
        sum[key] = ledgerOf([...(typeof before === 'object' ? [before] : []), value])
    }
  }
  return sum
}
