/**
 * Is the candidate as good as it must be? One measurement against its limits, and what several of them come to. Pure.
 *
 * A limit is absolute (`p99 < 300`), or relative to the current generation on the same host at the same time
 * (`p99 < 1.5x`), so that a busy hour does not count against a version. Too few requests say nothing either way.
 */
import type { Analysis, Figures, Finding, Judgement, Limit, Tally } from './state.ts'

export function judge(analysis: Analysis, candidate: Figures, current: Figures): Judgement {
  const findings = analysis.limits.map((limit) => find(limit, candidate, current))
  // A candidate that fails on what can be told has failed, however little traffic there was for the rest.
  const isSampled = candidate.requests >= analysis.minRequests
  const isCompared = current.requests >= analysis.minRequests || !analysis.limits.some(needsTraffic)
  const judged = findings.map((finding) => {
    const enough = !ofRequests(finding.limit) || (isSampled && (!finding.limit.relative || isCompared))
    return enough ? finding : { ...finding, holds: null }
  })
  if (judged.some(({ holds }) => holds === false)) return { verdict: 'fail', findings: judged, why: '' }
  const unknown = judged.filter(({ holds }) => holds === null)
  if (unknown.length === 0) return { verdict: 'pass', findings: judged, why: '' }
  const why = !isSampled
    ? `the candidate had ${candidate.requests} requests, ${analysis.minRequests} are asked for`
    : !isCompared
      ? `the current generation had ${current.requests} requests, ${analysis.minRequests} are asked for`
      : `nothing is known of ${unknown.map(({ limit }) => limit.metric).join(', ')}`
  return { verdict: 'unclear', findings: judged, why }
}

const ofRequests = ({ metric }: Limit): boolean =>
  metric === 'errorRate' || metric === 'p50' || metric === 'p90' || metric === 'p99'

const needsTraffic = (limit: Limit): boolean => limit.relative && ofRequests(limit)

function find(limit: Limit, candidate: Figures, current: Figures): Finding {
  const mine = candidate[limit.metric]
  const theirs = current[limit.metric]
  const bound = limit.relative ? (theirs === null ? null : theirs * limit.value) : limit.value
  const holds = mine === null || bound === null ? null : compare(mine, limit.op, bound)
  return { limit, candidate: mine, current: theirs, holds }
}

function compare(value: number, op: Limit['op'], bound: number): boolean {
  switch (op) {
    case '<':
      // Nothing is less than nothing: a candidate without an error beside a current generation without one is as good.
      return value < bound || (value === 0 && bound === 0)
    case '<=':
      return value <= bound
    case '>':
      return value > bound
    case '>=':
      return value >= bound
  }
}

export function count(tally: Tally, { verdict }: Judgement): Tally {
  return {
    taken: tally.taken + 1,
    failed: tally.failed + (verdict === 'fail' ? 1 : 0),
    unclear: tally.unclear + (verdict === 'unclear' ? 1 : 0),
  }
}

export type Outlook = 'goes-on' | 'passed' | 'failed' | 'unclear'

/** What the measurements so far come to. It fails as soon as it cannot pass any more. */
export function outlook(analysis: Analysis, tally: Tally): Outlook {
  if (tally.failed > analysis.failureLimit) return 'failed'
  if (tally.taken < analysis.count) return 'goes-on'
  if (tally.unclear === 0) return 'passed'
  return analysis.inconclusive === 'pass' ? 'passed' : analysis.inconclusive === 'fail' ? 'failed' : 'unclear'
}

const METRIC_WORDS: Readonly<Record<Limit['metric'], string>> = {
  errorRate: 'error rate',
  p50: 'p50',
  p90: 'p90',
  p99: 'p99',
  probeSuccess: 'probe success',
  loopDelay: 'event-loop delay',
  crashes: 'crashes',
}

const isRate = (metric: Limit['metric']): boolean => metric === 'errorRate' || metric === 'probeSuccess'

/** `212 ms`, `1.4 %`, `3`; `-` for what nobody knows. */
export function figureText(metric: Limit['metric'], value: number | null): string {
  if (value === null) return '-'
  if (isRate(metric)) return `${+(value * 100).toPrecision(3)} %`
  return metric === 'crashes' ? String(value) : `${+value.toPrecision(3)} ms`
}

/** `error rate 9.8 % (must be < 1 %)`, `p99 212 ms (must be < 1.5 times the 20.1 ms of the current generation)`. */
export function findingText({ limit, candidate, current }: Finding): string {
  const { metric, op, value, relative } = limit
  const bound = relative
    ? `${value} times the ${figureText(metric, current)} of the current generation`
    : figureText(metric, value)
  return `${METRIC_WORDS[metric]} ${figureText(metric, candidate)} (must be ${op} ${bound})`
}

/** Every limit that does not hold, in words. */
export const failuresOf = ({ findings }: Judgement): string[] =>
  findings.filter(({ holds }) => holds === false).map(findingText)
