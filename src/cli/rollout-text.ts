/** A rollout that runs, drawn for people. Pure. */
import { formatDuration, inOneLine, plural, table } from './text.ts'
import type { AnalysisStatus, RolloutStatus } from '../master/face.ts'

/** The signs of a drawing. One column each in every terminal. */
export interface Marks {
  readonly done: string
  readonly now: string
  readonly toCome: string
  /** A cell of the bar: of the current generation, of the candidate. */
  readonly current: string
  readonly candidate: string
}

export const ASCII: Marks = { done: 'x', now: '>', toCome: '-', current: '#', candidate: '.' }
export const UNICODE: Marks = { done: '✓', now: '▸', toCome: '·', current: '█', candidate: '░' }

/** By the locale: the first of these that is set counts (locale(7)). Without one it is the C locale, which is ASCII. */
export function marksFor(env: Readonly<Record<string, string | undefined>>): Marks {
  const locale = env['LC_ALL'] || env['LC_CTYPE'] || env['LANG'] || ''
  return /utf-?8/i.test(locale) ? UNICODE : ASCII
}

/** Lines without line ends: at most 100 columns, but for what the app or its operator named longer. */
export function renderRollout(rollout: RolloutStatus, marks: Marks = ASCII): string[] {
  const { reload, kind, current, candidate, sinceMs, steps, waitsFor, paused, analysis } = rollout
  const generations =
    candidate === null ? `from generation ${current}` : `generation ${current} -> ${candidate}`
  const lines = [`${kind} ${inOneLine(reload)}: ${generations}, for ${formatDuration(sinceMs)}`]
  lines.push(`  ${renderShares(rollout, marks)}`)
  const mark = { done: marks.done, now: marks.now, 'to-come': marks.toCome }
  for (const { text, state } of steps) lines.push(`  ${mark[state]} ${inOneLine(text)}`)
  if (paused === null) {
    lines.push(`  waits ${inOneLine(waitsFor)}`)
  } else {
    lines.push(
      `  paused: ${inOneLine(paused)}`,
      '    usr2 resume: goes on   usr2 promote: skips what is paused   usr2 abort: back to before',
    )
  }
  if (analysis !== null) lines.push(...renderAnalysis(analysis))
  return lines
}

const BAR_CELLS = 20

/** Who really accepts: each worker that does gets as many of the new connections as another. */
function renderShares({ current, candidate, accepting }: RolloutStatus, marks: Marks): string {
  const all = accepting.current + accepting.candidate
  if (candidate === null) {
    return `gen ${current} ${marks.current.repeat(BAR_CELLS)}   ${all} ${plural(all, 'worker')}`
  }
  const ours = all === 0 ? BAR_CELLS : (BAR_CELLS * accepting.current) / all
  // One worker of a thousand is seen, and so is it that the bar is not all of one side yet.
  const least = accepting.current > 0 ? 1 : 0
  const most = accepting.candidate > 0 ? BAR_CELLS - 1 : BAR_CELLS
  const cells = Math.min(most, Math.max(least, Math.round(ours)))
  const bar = marks.current.repeat(cells) + marks.candidate.repeat(BAR_CELLS - cells)
  const of = `${accepting.current} of ${all} ${plural(all, 'worker')} | ${accepting.candidate} of ${all}`
  return `gen ${current} ${bar} gen ${candidate}   ${of}`
}

function renderAnalysis({ taken, of, failed, failureLimit, findings }: AnalysisStatus): string[] {
  const head =
    `  analysis: ${taken} of ${of} ${plural(of, 'measurement')}, ` +
    `${failed} failed (at most ${failureLimit} may)`
  if (findings.length === 0) return [head]
  const columns = [
    ['LIMIT', 'left'],
    ['CANDIDATE', 'right'],
    ['CURRENT', 'right'],
    ['HOLDS', 'left'],
  ] as const
  const rows = findings.map(({ limit, candidate, current, holds }) => [
    inOneLine(limit),
    inOneLine(candidate),
    inOneLine(current),
    holds === null ? '-' : holds ? 'yes' : 'no',
  ])
  return [head, ...table(columns, rows).map((line) => `    ${line}`)]
}
