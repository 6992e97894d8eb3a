/** What the master says, as text for people: columns of 100 at most, nothing that a terminal would obey. Pure. */
import { ASCII, renderRollout, type Marks } from './rollout-text.ts'
import { formatBytes, formatDuration, inOneLine, plural, printable, table } from './text.ts'
import type { GenerationStatus, ProbeStatus, Status, Verdict, WorkerStatus } from '../master/face.ts'
import { ledgerText } from '../master/figures/ledger.ts'

/**
 * Slots whose traffic somebody takes. In the midst of a canary the candidate's workers stand in for those of the current
 * generation that have made room for them: nothing is degraded then.
 */
export function readySlots({ slots, ready, rollout }: Status): number {
  if (rollout === null) return ready
  const { current, candidate } = rollout.accepting
  return Math.max(ready, Math.min(slots, current + candidate))
}

/** `usr2 status`. */
export function renderStatus(status: Status, marks: Marks = ASCII): string {
  const { name, pid, state, slots, uptimeMs, usr2, node, listeners, vacancies } = status
  const lines = [
    `${inOneLine(name)}: ${state}, ${readySlots(status)} of ${slots} ${plural(slots, 'slot')} ready, pid ${pid}, ` +
      `up ${formatDuration(uptimeMs)} (usr2 ${usr2}, Node ${node.replace(/^v/, '')})`,
  ]
  const { usr2OnDisk } = status
  if (usr2OnDisk !== null) {
    lines.push(`usr2 ${inOneLine(usr2OnDisk)} is on disk, ${inOneLine(usr2)} runs: usr2 upgrade`)
  }
  if (status.rollout !== null) lines.push('', ...renderRollout(status.rollout, marks))
  else if (status.waitsFor !== null) lines.push(`waits ${inOneLine(status.waitsFor)}`)
  for (const generation of status.generations)
    lines.push('', ...renderGeneration(generation, listeners.length > 0))
  lines.push('', listeners.length === 0 ? 'listeners: none' : 'listeners:')
  for (const { key, accepting } of listeners) {
    lines.push(`  ${inOneLine(key)}  ${accepting} ${plural(accepting, 'worker')} accepting`)
  }
  if (vacancies.length > 0) lines.push('', 'vacancies:')
  for (const { slot, deaths, retryInMs } of vacancies) {
    const when = retryInMs > 0 ? `tried again in ${formatDuration(retryInMs)}` : 'being filled'
    lines.push(`  slot ${slot}: ${deaths} ${plural(deaths, 'death')} in a row, ${when}`)
  }
  const back = waysBack(status)
  if (back.length > 0) lines.push('', 'ways back:', ...back)
  const last = status.lastVerdict
  if (last !== null) lines.push('', `last ${last.kind}: ${renderVerdict(last)}`)
  return `${lines.join('\n')}\n`
}

/** What a rollback would go to now. During a rollout the way back is `usr2 abort`. */
function waysBack({ rollout, parked, bootable }: Status): string[] {
  if (rollout !== null) return []
  const lines: string[] = []
  if (parked !== null) {
    lines.push(
      `  generation ${parked.generation}, parked for ${formatDuration(parked.leftMs)} more: usr2 rollback`,
    )
  }
  const others = bootable.filter((id) => id !== parked?.generation)
  // Without --to it is the parked one, or else the one before the current one.
  const next = parked === null ? others.slice(0, 1) : []
  for (const id of next) lines.push(`  generation ${id}, booted again: usr2 rollback`)
  for (const id of others.slice(next.length)) {
    lines.push(`  generation ${id}, booted again: usr2 rollback --to ${id}`)
  }
  return lines
}

function renderGeneration(
  { id, role, version, entry, workers }: GenerationStatus,
  hasListeners: boolean,
): string[] {
  // A parked generation accepts nothing: that is what parked means.
  const isRotating = hasListeners && role !== 'parked'
  const [titles = '', ...rows] = table(
    [
      ['  SLOT', 'right'],
      ['PID', 'right'],
      ['PHASE', 'left'],
      ['READY', 'left'],
      ['UP', 'right'],
      ['CONNS', 'right'],
      ['ACTIVE', 'right'],
      ['REQUESTS', 'right'],
      ['CUT', 'right'],
      ['RSS', 'right'],
    ],
    workers.map(workerRow),
  )
  return [
    `generation ${id}, ${role}: ${version === '' ? '' : `version ${inOneLine(version)}, `}${inOneLine(entry)}`,
    `${titles}  NOTES`,
    ...rows.flatMap((row, i) => withNotes(row, notesOf(workers[i], isRotating))),
  ]
}

const WIDTH = 100

/** The first note in the row where it fits, the others below. */
function withNotes(row: string, [first, ...others]: readonly string[]): string[] {
  if (first === undefined) return [row]
  const inRow = `${row}  ${first}`
  const below = inRow.length <= WIDTH ? others : [first, ...others]
  return [inRow.length <= WIDTH ? inRow : row, ...below.map((note) => `        ${note}`)]
}

function workerRow(worker: WorkerStatus): string[] {
  return [
    String(worker.slot),
    worker.pid === null ? '-' : String(worker.pid),
    worker.phase,
    readiness(worker.probes),
    formatDuration(worker.uptimeMs),
    String(worker.connections),
    String(worker.active),
    String(worker.requests),
    String(worker.ledger.connections.cut),
    worker.rssBytes === null ? '-' : formatBytes(worker.rssBytes),
  ]
}

/** As its probes have it: `-` without any. A readiness probe begins only after the startup probe has passed. */
function readiness(probes: readonly ProbeStatus[]): string {
  const telling =
    probes.find(({ probe }) => probe === 'readiness') ?? probes.find(({ probe }) => probe === 'startup')
  if (telling === undefined) return '-'
  return { passing: 'yes', failing: 'no', unknown: 'not yet' }[telling.standing]
}

/** What is wrong with a worker, and what it waits for. */
function notesOf(worker: WorkerStatus | undefined, isRotating: boolean): string[] {
  if (worker === undefined) return []
  const { phase, open, probes, tired, waitsFor } = worker
  const notes = isRotating && phase === 'ready' && open.length === 0 ? ['accepts nothing'] : []
  notes.push(...probes.flatMap(noteOf))
  if (tired !== null) notes.push(`tired, to be replaced: ${inOneLine(tired)}`)
  if (waitsFor !== null) notes.push(`waits ${inOneLine(waitsFor)}`)
  return notes
}

/** A probe that failed, but has not said so often enough yet, is of interest while a worker is waited for. */
function noteOf({ probe, standing, why }: ProbeStatus): string[] {
  if (why === '' || standing === 'passing' || (probe === 'liveness' && standing === 'unknown')) return []
  const what = { startup: 'not started', readiness: 'not ready', liveness: 'not alive' }[probe]
  return [`${what}: ${inOneLine(why)}`]
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
      `${readySlots(status)}/${status.slots}`,
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
