/** Medians that say how sure they are. */

export interface Median {
  readonly median: number
  /** The interval that holds the true median with at least 95 %. */
  readonly low: number
  readonly high: number
  readonly runs: number
}

const CONFIDENCE = 0.95

/**
 * The median and its interval by order statistics: whatever the distribution, the true median lies between the k-th
 * smallest and the k-th largest of n values unless fewer than k fall on one side of it, which is a matter of n fair
 * coins. 15 values: from the 4th to the 12th, 96.5 %. (David and Nagaraja, Order Statistics, 7.1.) With fewer than
 * six values there is no such interval: the whole range is given.
 */
export function medianOf(values: readonly number[]): Median {
  const sorted = [...values].sort((a, b) => a - b)
  const runs = sorted.length
  const at = (index: number): number => sorted[index] ?? NaN
  let cut = 0
  while (2 * atMost(cut, runs) <= 1 - CONFIDENCE) cut++
  const out = Math.max(0, cut - 1)
  const median = (at(Math.floor((runs - 1) / 2)) + at(Math.ceil((runs - 1) / 2))) / 2
  return { median, low: at(out), high: at(runs - 1 - out), runs }
}

export interface Ratio {
  readonly ratio: number
  /** The interval that holds the true ratio with 95 %. */
  readonly low: number
  readonly high: number
  readonly pairs: number
}

/**
 * The ratio of two sums of counts that were taken in pairs, with its interval by the jackknife: what the ratio becomes
 * without each pair in turn says how much it depends on chance (Efron and Tibshirani, An Introduction to the Bootstrap,
 * 11.2). Counts are not taken as independent of each other: what lies within a pair may come in bursts.
 */
export function ratioOf(pairs: readonly (readonly [over: number, under: number])[]): Ratio {
  const over = pairs.reduce((sum, [count]) => sum + count, 0)
  const under = pairs.reduce((sum, [, count]) => sum + count, 0)
  const without = pairs.map((pair) => (over - pair[0]) / (under - pair[1]))
  const mean = without.reduce((sum, ratio) => sum + ratio, 0) / pairs.length
  const squares = without.reduce((sum, ratio) => sum + (ratio - mean) ** 2, 0)
  const error = Math.sqrt(((pairs.length - 1) / pairs.length) * squares)
  const ratio = over / under
  return { ratio, low: ratio - STUDENT * error, high: ratio + STUDENT * error, pairs: pairs.length }
}

/** Student's t for 95 % with 19 degrees of freedom: right for 20 pairs, a little wide for more, too narrow for few. */
const STUDENT = 2.09

/** How likely at most `heads` of `coins` fair coins show heads. */
function atMost(heads: number, coins: number): number {
  let ways = 1
  let sum = 0
  for (let k = 0; k <= heads; k++) {
    sum += ways
    ways = (ways * (coins - k)) / (k + 1)
  }
  return sum / 2 ** coins
}

/** `0.982 [0.971, 0.994]` */
export const show = ({ median, low, high }: Median, digits: number): string =>
  `${median.toFixed(digits)} [${low.toFixed(digits)}, ${high.toFixed(digits)}]`

/** A Markdown table, aligned for those who read it as text. */
export function table(head: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  const cells = [head, ...rows].map((row) => row.map(String))
  const widths = head.map((_, column) => Math.max(3, ...cells.map((row) => row[column]?.length ?? 0)))
  const line = (row: readonly string[]): string =>
    `| ${widths.map((width, column) => (row[column] ?? '').padEnd(width)).join(' | ')} |`
  const rule = `|${widths.map((width) => '-'.repeat(width + 2)).join('|')}|`
  return [line(cells[0] ?? []), rule, ...cells.slice(1).map(line)].join('\n')
}
