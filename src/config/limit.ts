/** How a limit of an analysis is written: `errorRate < 1%`, `p99 < 300ms`, `p99 < 1.5x`, `crashes <= 0`. Pure. */
import { METRICS } from '../rollout/state.ts'
import type { Limit, Metric } from '../rollout/state.ts'

/** `x` is a multiple of the current generation's figure; crashes have none, since their usual figure is 0. */
const UNITS: Readonly<Record<Metric, readonly string[]>> = {
  errorRate: ['%', 'x'],
  p50: ['ms', 's', 'x'],
  p90: ['ms', 's', 'x'],
  p99: ['ms', 's', 'x'],
  probeSuccess: ['%', 'x'],
  loopDelay: ['ms', 's', 'x'],
  crashes: [''],
}
const FACTOR: Readonly<Record<string, number>> = { '%': 0.01, s: 1000 }

const LIMIT = /^\s*(\w+)\s*(<=|>=|<|>)\s*(\d{1,9}(?:\.\d{1,6})?)\s*(%|ms|s|x|)\s*$/
const isMetric = (name: string): name is Metric => METRICS.some((metric) => metric === name)
/** Without the dust of binary fractions: 1.1 s are 1100 ms, and 0.07 is 7%. */
const rounded = (value: number) => Number(value.toPrecision(15))

/** A limit as text in its fields (rates as fractions, times in milliseconds); undefined for any other text. */
export function parseLimit(text: string): Limit | undefined {
  const [, metric = '', op = '', digits = '', unit = ''] = LIMIT.exec(text) ?? []
  if (!isMetric(metric) || !UNITS[metric].includes(unit)) return undefined
  const value = rounded(Number(digits) * (FACTOR[unit] ?? 1))
  if (unit === '%' && value > 1) return undefined
  return { metric, op: op as Limit['op'], value, relative: unit === 'x' }
}

/** The inverse: what {@link parseLimit} reads. */
export function limitText({ metric, op, value, relative }: Limit): string {
  const unit = relative ? 'x' : (UNITS[metric][0] ?? '')
  return `${metric} ${op} ${rounded(unit === '%' ? value * 100 : value)}${unit}`
}
