/** What the master says, as text for people: plain ASCII columns, nothing that a terminal would obey. Pure. */
import type { GenerationStatus, Status, Verdict, WorkerStatus } from './master/face.ts'
import { ledgerText } from './master/ledger.ts'

/** `800 ms`, `2.1 s`, `42 s`, `37 min`, `5 h 12 min`, `3 d 4 h`. */
export function formatDuration(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`
  if (ms < 9950) return `${(ms / 1000).toFixed(1)} s`
  const s = Math.round(ms / 1000)
  if (s < 120) return `${s} s`
  const min = Math.floor(s / 60)
  if (min < 120) return `${min} min`
  const h = Math.floor(min / 60)
  return h < 48 ? `${h} h ${min % 60} min` : `${Math.floor(h / 24)} d ${h % 24} h`
}

/**
 * Text of others (an app's error, a path) made safe to print: an escape sequence in a crashed worker's message must
 * not repaint the operator's terminal. Line ends and tabs stay.
 */
export function printable(text: string): string {
  return text.replace(
    /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g,
    (char) => `\\x${char.charCodeAt(0).toString(16).padStart(2, '0')}`,
  )
}

export type Align = 'left' | 'right'

/** Columns two spaces apart; the last one is not padded. */
export function table(
  columns: readonly (readonly [string, Align])[],
  rows: readonly (readonly string[])[],
): string[] {
  const lines = [columns.map(([title]) => title), ...rows]
  const widths = columns.map((_, i) => Math.max(...lines.map((line) => line[i]?.length ?? 0)))
  return lines.map((line) =>
    columns
      .map(([, align], i) => {
        const cell = line[i] ?? ''
        const width = widths[i] ?? 0
        return align === 'right' ? cell.padStart(width) : cell.padEnd(width)
      })
      .join('  ')
      .trimEnd(),
  )
}

const inOneLine = (text: string) => printable(text).replace(/\s+/g, ' ')

/** `usr2 status`. */
export function renderStatus(status: Status): string {
  const { name, pid, state, slots, ready, uptimeMs, usr2, node, listeners, vacancies } = status
  const lines = [
    `${inOneLine(name)}: ${state}, ${ready} of ${slots} ${plural(slots, 'slot')} ready, pid ${pid}, ` +
      `up ${formatDuration(uptimeMs)} (usr2 ${usr2}, Node ${node.replace(/^v/, '')})`,
  ]
  if (status.waitsFor !== null) lines.push(`waits for: ${inOneLine(status.waitsFor)}`)
  for (const generation of status.generations) lines.push('', ...renderGeneration(generation))
  lines.push('', listeners.length === 0 ? 'listeners: none' : 'listeners:')
  for (const { key, accepting } of listeners) {
    lines.push(`  ${inOneLine(key)}  ${accepting} ${plural(accepting, 'worker')} accepting`)
  }
  if (vacancies.length > 0) lines.push('', 'vacancies:')
  for (const { slot, deaths, retryInMs } of vacancies) {
    const when = retryInMs > 0 ? `tried again in ${formatDuration(retryInMs)}` : 'being filled'
    lines.push(`  slot ${slot}: ${deaths} ${plural(deaths, 'death')} in a row, ${when}`)
  }
  if (status.lastVerdict !== null) lines.push('', `last reload: ${renderVerdict(status.lastVerdict)}`)
  return `${lines.join('\n')}\n`
}

function renderGeneration({ id, role, version, entry, workers }: GenerationStatus): string[] {
  return [
    `generation ${id}, ${role}: version ${inOneLine(version)}, ${inOneLine(entry)}`,
    ...table(
      [
        ['  SLOT', 'right'],
        ['PID', 'right'],
        ['PHASE', 'left'],
        ['UP', 'right'],
        ['CONNS', 'right'],
        ['ACTIVE', 'right'],
        ['REQUESTS', 'right'],
        ['CUT', 'right'],
        ['WAITS FOR', 'left'],
      ],
      workers.map(workerRow),
    ),
  ]
}

function workerRow(worker: WorkerStatus): string[] {
  return [
    String(worker.slot),
    worker.pid === null ? '-' : String(worker.pid),
    worker.phase,
    formatDuration(worker.uptimeMs),
    String(worker.connections),
    String(worker.active),
    String(worker.requests),
    String(worker.ledger.connections.cut),
    worker.waitsFor === null ? '-' : inOneLine(worker.waitsFor),
  ]
}

/** After that long without a word from a worker that speaks every second, its event loop is blocked. */
const SILENT_MS = 5_000

/** `usr2 status --drain`. */
export function renderDrains(status: Status): string {
  const leaving = status.generations
    .flatMap(({ workers }) => workers)
    .filter(({ phase }) => phase !== 'booting' && phase !== 'ready')
  if (leaving.length === 0) return `${inOneLine(status.name)}: no worker is leaving\n`
  return `${leaving.flatMap(drainOf).join('\n')}\n`
}

function drainOf(worker: WorkerStatus): string[] {
  const { generation, slot, pid, phase, waitsFor, ledger, holding } = worker
  const waits = waitsFor === null ? '' : `, waits ${inOneLine(waitsFor)}`
  const lines = [
    `generation ${generation}, slot ${slot}, pid ${pid ?? '-'}: ${phase}${waits}`,
    `  ${inOneLine(ledgerText(ledger))}`,
  ]
  if (holding === null) return lines
  const { oldest, kinds, resources, saidMsAgo } = holding
  const ago = formatDuration(saidMsAgo)
  if (saidMsAgo > SILENT_MS) lines.push(`  has not said a word for ${ago}: its event loop is blocked`)
  const tally = (counts: Readonly<Record<string, number>>): string =>
    Object.entries(counts)
      .map(([name, count]) => `${count} ${inOneLine(name)}`)
      .join(', ')
  if (oldest.length === 0) {
    const alive = tally(resources)
    lines.push(
      `  no connection holds it; the app's own: ${alive === '' ? 'nothing that it waits for' : alive}`,
    )
    return lines
  }
  const all = Object.values(kinds).reduce((sum, count) => sum + count, 0)
  lines.push(`  held ${ago} ago by ${all}: ${tally(kinds)}; the oldest:`)
  const rows = oldest.map(({ what, method, path, ageMs, bytesRead, bytesWritten, peer }) => [
    `    ${what}`,
    path === undefined ? '-' : inOneLine(`${method} ${path}`),
    formatDuration(ageMs),
    String(bytesRead),
    String(bytesWritten),
    inOneLine(peer),
  ])
  const columns = [
    ['    WHAT', 'left'],
    ['REQUEST', 'left'],
    ['AGE', 'right'],
    ['BYTES IN', 'right'],
    ['BYTES OUT', 'right'],
    ['PEER', 'left'],
  ] as const
  return [...lines, ...table(columns, rows)]
}

/**
 * The verdict's line, and below it, indented, the reasons that it does not say already, with their own lines (a
 * stack) further in.
 */
export function renderVerdict({ text, reasons }: Verdict): string {
  const more = reasons.filter((reason) => !text.includes(reason))
  const below = more.map((reason) => `\n  ${printable(reason).trimEnd().replaceAll('\n', '\n    ')}`)
  return printable(text) + below.join('')
}

/** `usr2 ls`. */
export function renderMasters(
  masters: readonly { readonly path: string; readonly status: Status }[],
): string {
  const rows = masters.map(({ path, status }) => {
    const current = status.generations.find(({ role }) => role === 'current')
    return [
      inOneLine(status.name),
      String(status.pid),
      status.state,
      `${status.ready}/${status.slots}`,
      current === undefined ? '-' : String(current.id),
      current === undefined ? '-' : inOneLine(current.version),
      inOneLine(path),
    ]
  })
  const lines = table(
    [
      ['NAME', 'left'],
      ['PID', 'right'],
      ['STATE', 'left'],
      ['READY', 'right'],
      ['GENERATION', 'right'],
      ['VERSION', 'left'],
      ['CONTROL', 'left'],
    ],
    rows,
  )
  return `${lines.join('\n')}\n`
}

function plural(count: number, noun: string): string {
  return count === 1 ? noun : `${noun}s`
}
