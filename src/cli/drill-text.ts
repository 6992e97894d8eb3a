/** What a drill found, as text for people. Pure. */
import { formatDuration, printable, table } from './text.ts'
import type { DrillResult, MixResult } from '../drill/options.ts'
import type { KindResult } from '../drill/result.ts'
import type { Latency } from '../drill/tally.ts'
import { ledgerText } from '../master/figures/ledger.ts'

const MAX_DETAILS = 20

const LATENCY_COLUMNS = ['P50', 'P99', 'MAX'].map((title) => [title, 'right'] as const)

export function renderDrill(result: DrillResult): string {
  const { app, reloads, tookMs, latency, mix, ledger, notes, webSocketEnds } = result
  const who = app.private ? 'under a master of its own' : 'under its running master'
  const lines = [
    `usr2 drill: ${printable(app.name)} ${who}, ${plural(reloads.length, 'reload')} in ${formatDuration(tookMs)} ` +
      `(usr2 ${app.usr2}, Node ${app.node.replace(/^v/, '')})`,
    '',
    ...table(
      [
        ['KIND', 'left'],
        ['REQUEST', 'left'],
        ['TARGET', 'left'],
        ['REQUESTS', 'right'],
        ['RETRYABLE', 'right'],
        ['FAILED', 'right'],
        ...LATENCY_COLUMNS,
      ],
      mix.map(mixRow),
    ),
    '',
    ...table(
      [['LATENCY', 'left'], ['REQUESTS', 'right'], ['FAILED', 'right'], ...LATENCY_COLUMNS],
      [
        kindRow('steady', latency.steady),
        kindRow('reload: signal to promotion', latency.reload),
        kindRow('drain: promotion to the end of the last old worker', latency.drain),
      ],
    ),
    'From when a request was due to the end of its answer, counted where it ended; uploads and streams left out.',
    '',
    ...reloads.map(
      ({ number, text, requests, failed }) =>
        `reload ${number}: ${printable(text)}; ${plural(requests, 'request')} meanwhile, ${failed} failed`,
    ),
    ...reloads.flatMap(({ reasons, text }) =>
      reasons.filter((reason) => !text.includes(reason)).map((reason) => `  ${printable(reason)}`),
    ),
    `ledger of all drains: ${ledgerText(ledger)}`,
  ]
  if (Object.keys(webSocketEnds).length > 0)
    lines.push(`WebSockets ended by the server: ${countsText(webSocketEnds)}`)
  if (result.failed > 0) lines.push(`failed: ${countsText(result.failures)}`, ...detailLines(result))
  for (const note of notes) lines.push(`note: ${printable(note)}`)
  return `${lines.join('\n')}\n\n${printable(result.verdict)}\n`
}

function mixRow({ kind, method, path, target, requests, retryable, failed, latency }: MixResult): string[] {
  const request = `${method} ${printable(path)}`
  return [kind, request, printable(target), `${requests}`, `${retryable}`, `${failed}`, ...times(latency)]
}

function kindRow(name: string, kind: KindResult | null): string[] {
  if (kind === null) return [name, '-', '-', '-', '-', '-']
  return [name, `${kind.requests}`, `${kind.failed}`, ...times(kind.latency)]
}

const times = (latency: Latency | null): string[] =>
  latency === null ? ['-', '-', '-'] : [latency.p50Ms, latency.p99Ms, latency.maxMs].map(ms)

/** Always milliseconds below ten seconds: columns are there to be compared. */
const ms = (value: number) =>
  value < 10_000 ? `${value < 10 ? value.toFixed(1) : Math.round(value)} ms` : formatDuration(value)

/** One line for each class, traffic and phase: the rest of them says the same. */
function detailLines({ details }: DrillResult): string[] {
  const seen = new Set<string>()
  const first = details.filter(({ failure, traffic, phase }) => {
    const key = `${failure} ${traffic} ${phase}`
    return !seen.has(key) && seen.add(key)
  })
  return first
    .slice(0, MAX_DETAILS)
    .map(
      ({ failure, traffic, phase, afterMarkMs, text }) =>
        `  ${failure}, ${printable(traffic)}, first ${afterMarkMs} ms into "${phase}": ${printable(text)}`,
    )
}

const countsText = (counts: Readonly<Record<string, number>>) =>
  Object.entries(counts)
    .map(([name, count]) => `${name} ${count}`)
    .join(', ')

const plural = (count: number, noun: string) => `${count} ${noun}${count === 1 ? '' : 's'}`
