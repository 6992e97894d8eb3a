/**
 * Reloads under load: how many requests fail? Each request has one outcome, nothing is sent twice, and the client
 * sits in a process of its own (src/drill/load.ts). See README.md beside this file.
 *
 *     node --import tsx scripts/bench/reload.ts [--reloads 50] [--profiles mix,hot,everything] [--node PATH] [--peers] [--json]
 */
import { parseArgs } from 'node:util'
import { bench, type Bench, DEFAULT_CLI, goneIn, nodeVersion, progress, sleep } from './bench.ts'
import { type ClientDetail, prepareEverything, type Row, rowsOf } from './everything.ts'
import { type Drains, drainsOf, drainsText } from './drains.ts'
import { HOT, type LoadResult, MIX, summary, type TallyResult, type Traffic } from '../../src/drill/load.ts'
import { table } from './stats.ts'
import { startLoad } from '../../src/drill/start-load.ts'
import { PEERS, startSubject, SUBJECTS, type Subject, type SubjectName } from './subjects.ts'

const { values: flags } = parseArgs({
  options: {
    reloads: { type: 'string', default: '50' },
    /** Peers leave their old workers up to 10 s for each reload. */
    'peer-reloads': { type: 'string', default: '6' },
    profiles: { type: 'string', default: 'mix,hot' },
    workers: { type: 'string', default: '2' },
    'boot-ms': { type: 'string', default: '500' },
    node: { type: 'string', default: process.execPath },
    cli: { type: 'string', default: DEFAULT_CLI },
    peers: { type: 'boolean', default: false },
    only: { type: 'string' },
    json: { type: 'boolean', default: false },
  },
})

type Profile = 'mix' | 'hot' | 'everything'

/** Undisturbed traffic before the first reload, between two, and after the last. */
const STEADY_MS: Readonly<Record<Profile, number>> = { mix: 500, hot: 500, everything: 100 }
/** Old processes that are still there then are left alone, and the next reload begins. */
const OLD_GONE_MS = 20_000

const TRAFFIC: Record<Exclude<Profile, 'everything'>, readonly Traffic[]> = { mix: MIX, hot: HOT }

interface Run {
  readonly subject: string
  readonly profile: Profile
  readonly node: string
  readonly reloads: readonly Reload[]
  readonly load: LoadResult
  /** Of `everything`: what is not in `load`. */
  readonly everything: { readonly rows: readonly Row[]; readonly details: readonly string[] } | null
  /** Of usr2: how the generations ended, and what is wrong with that. */
  readonly drains: Drains | null
  /** Of all clients, and of the drains. */
  readonly failed: number
}

interface Reload {
  /** From the signal to the end of the command, to the first answer of a new process, to the end of the old ones. */
  readonly doneMs: number
  readonly firstAnswerMs: number | null
  readonly oldGoneMs: number | null
  /** Until the next reload. */
  readonly requests: number
  readonly failed: number
  readonly promisesBroken: number
  /** `keepalive: keepaliveReset 3, slow: truncated 1` */
  readonly failures: string
}

async function measure(bench: Bench, name: SubjectName, profile: Profile, reloads: number): Promise<Run> {
  const node = nodeVersion(flags.node)
  const { cli } = flags
  const options = { node: flags.node, cli, workers: Number(flags.workers), bootMs: Number(flags['boot-ms']) }
  const everything = profile === 'everything' ? await prepareEverything(bench) : null
  const subject = await startSubject(name, bench, { ...options, ...everything?.options })
  const { traffic, skipped } = trafficFor(subject, everything?.traffic ?? TRAFFIC[profile as 'mix' | 'hot'])
  if (skipped.length > 0) progress(`${name} has no app behind it: without ${skipped.join(', ')}`)
  const load = await startLoad({ target: { port: subject.port }, traffic, versionOf: 'pid' })
  const clients = everything?.startClients(subject.port)
  const times: { doneMs: number; oldGoneMs: number | null; before: number[]; atMs: number }[] = []
  await sleep(STEADY_MS[profile])
  for (let count = 1; count <= reloads; count++) {
    const before = subject.workers()
    load.mark(`reload ${count}`)
    const at = performance.now()
    const atMs = Date.now()
    await subject.reload()
    const doneMs = performance.now() - at
    const gone = await goneIn(before, OLD_GONE_MS)
    times.push({ doneMs, oldGoneMs: gone ? performance.now() - at : null, before, atMs })
    await sleep(STEADY_MS[profile])
    if (count % 10 === 0 || count === reloads) {
      const { requests, failed } = await load.snapshot()
      progress(`${name}, ${profile}, ${node}: ${count} reloads, ${requests} requests, ${failed} failed`)
    }
  }
  const [result, others] = await Promise.all([load.stop(), clients?.stop()])
  const drains = subject.log === undefined ? null : drainsOf(subject.log)
  await subject.stop()
  const started = times.map(({ atMs }) => atMs)
  const rows = [...rowsOf(result.traffic), ...(others?.rows ?? [])]
  return {
    subject: name,
    profile,
    node,
    load: result,
    everything:
      others === undefined ? null : { rows, details: others.details.map((detail) => told(detail, started)) },
    drains,
    failed: rows.reduce((sum, { failed }) => sum + failed, drains?.complaints.length ?? 0),
    reloads: times.map((time, at) => reloadOf(result, time, at)),
  }
}

function trafficFor(
  { hasApp }: Subject,
  all: readonly Traffic[],
): { traffic: readonly Traffic[]; skipped: string[] } {
  const needsApp = ({ mode }: Traffic): boolean => ['post', 'slow', 'stream'].includes(mode)
  if (hasApp) return { traffic: all, skipped: [] }
  return {
    traffic: all.filter((one) => !needsApp(one)),
    skipped: all.filter(needsApp).map(({ mode }) => mode),
  }
}

/** `gRPC unary UNAVAILABLE, 120 ms into reload 7: …` */
function told({ kind, failure, text, atMs }: ClientDetail, reloads: readonly number[]): string {
  const reload = reloads.filter((startedAtMs) => startedAtMs <= atMs).length
  const when =
    reload === 0 ? 'before reload 1' : `${atMs - (reloads[reload - 1] ?? 0)} ms into reload ${reload}`
  return `${kind} ${failure}, ${when}: ${text}`
}

function reloadOf(
  load: LoadResult,
  { doneMs, oldGoneMs }: Pick<Reload, 'doneMs' | 'oldGoneMs'>,
  at: number,
): Reload {
  const phase = load.phases[at + 1]
  const next = load.phases[at + 2]
  if (phase === undefined) throw new Error(`the load client has no phase for reload ${at + 1}`)
  const firsts = Object.values(load.versions)
    .filter(({ firstAtMs }) => firstAtMs >= phase.startedAtMs && firstAtMs < (next?.startedAtMs ?? Infinity))
    .map(({ firstAfterMarkMs }) => firstAfterMarkMs)
  const failures = Object.entries(phase.traffic)
    .filter(([, { failed }]) => failed > 0)
    .map(([mode, { failures }]) => `${mode}: ${classes(failures)}`)
    .join(', ')
  const firstAnswerMs = firsts.length === 0 ? null : Math.min(...firsts)
  const { requests } = phase
  return { doneMs, oldGoneMs, firstAnswerMs, requests, ...countsOf(phase), failures }
}

/** An idle connection that was closed before the time its client was told is no failed request: counted apart. */
function countsOf({ failed, failures }: TallyResult): Pick<Reload, 'failed' | 'promisesBroken'> {
  const promisesBroken = failures.brokenPromise ?? 0
  return { failed: failed - promisesBroken, promisesBroken }
}

const classes = (failures: Readonly<Record<string, number>>): string =>
  Object.entries(failures)
    .map(([failure, count]) => `${failure} ${count}`)
    .join(' ')

function report(runs: readonly Run[]): string {
  const rows = runs.map(({ subject, profile, node, reloads, load }) => {
    const failed = reloads.map((reload) => reload.failed).sort((a, b) => a - b)
    const all = countsOf(load)
    const steady = all.failed - failed.reduce((sum, count) => sum + count, 0)
    const spread = `${middle(failed)} [${failed[0]}-${failed.at(-1)}]`
    return [
      ...[subject, profile, node, reloads.length, load.requests, all.failed],
      ...[
        steady === 0 ? spread : `${spread}, ${steady} before the first`,
        all.promisesBroken,
        failuresByMode(load),
      ],
      ...[msOf(reloads, 'firstAnswerMs'), msOf(reloads, 'doneMs'), msOf(reloads, 'oldGoneMs')],
    ]
  })
  const head = [
    '',
    'profile',
    'node',
    'reloads',
    'requests',
    'failed',
    'per reload, median [min-max]',
    'promises broken',
    'by mode and class',
  ]
  const lines = [table([...head, 'first new answer ms', 'done ms', 'old gone ms'], rows), '']
  for (const { subject, profile, node, reloads, load, everything, drains } of runs) {
    lines.push(
      `${subject}, ${profile}, ${node}: failed per reload: ${reloads.map(({ failed }) => failed).join(' ')}`,
    )
    reloads.forEach(({ failures }, at) => failures && lines.push(`  reload ${at + 1}: ${failures}`))
    if (everything !== null) lines.push(...allKinds(everything.rows, load), ...everything.details)
    if (drains !== null) lines.push(...drainsText(drains))
    if (load.failed > 0 && subject === 'usr2') lines.push(summary(load))
  }
  return lines.join('\n')
}

/** One row for each kind of client, and their sum. */
function allKinds(rows: readonly Row[], load: LoadResult): string[] {
  const sum = (field: 'requests' | 'retryable' | 'failed'): number =>
    rows.reduce((total, row) => total + row[field], 0)
  const ends = Object.entries(load.webSocketEnds).map(([how, count]) => `${how}: ${count}`)
  return [
    '',
    table(
      ['kind', 'requests', 'failed', 'by class', 'retryable'],
      [
        ...rows.map(({ kind, requests, failed, failures, retryable }) => [
          ...[kind, requests, failed, classes(failures) || '-', retryable],
        ]),
        ['all', sum('requests'), sum('failed'), '', sum('retryable')],
      ],
    ),
    '',
    `WebSockets that the server ended, by the code of its close frame: ${ends.join(', ') || 'none'}`,
  ]
}

function failuresByMode({ traffic }: LoadResult): string {
  const failing = Object.entries(traffic).filter(([, { failed }]) => failed > 0)
  return failing.map(([mode, { failures }]) => `${mode}: ${classes(failures)}`).join(', ') || '-'
}

function msOf(reloads: readonly Reload[], field: 'firstAnswerMs' | 'doneMs' | 'oldGoneMs'): string {
  const values = reloads.flatMap((reload) => reload[field] ?? []).sort((a, b) => a - b)
  const never = reloads.length - values.length
  const text = values.length === 0 ? '-' : String(Math.round(middle(values)))
  return never > 0 && field === 'oldGoneMs' ? `${text} (${never} not in ${OLD_GONE_MS / 1000} s)` : text
}

function middle(sorted: readonly number[]): number {
  const { length } = sorted
  return ((sorted[Math.floor((length - 1) / 2)] ?? 0) + (sorted[Math.ceil((length - 1) / 2)] ?? 0)) / 2
}

await bench(async (bench) => {
  const profiles = flags.profiles.split(',') as Profile[]
  for (const profile of profiles)
    if (!(profile in TRAFFIC) && profile !== 'everything')
      throw new Error(`no profile ${profile}: mix, hot, everything`)
  const all: readonly SubjectName[] = flags.peers ? ['usr2', ...PEERS] : ['usr2']
  const subjects = flags.only === undefined ? all : (flags.only.split(',') as SubjectName[])
  for (const name of subjects)
    if (!SUBJECTS.includes(name)) throw new Error(`no subject ${name}: ${SUBJECTS.join(', ')}`)
  const runs: Run[] = []
  for (const subject of subjects) {
    for (const profile of profiles) {
      // One app with all protocols is ours to bring; what peers do to them is known (FIN without a close frame).
      if (profile === 'everything' && subject !== 'usr2') continue
      const reloads = Number(subject === 'usr2' ? flags.reloads : flags['peer-reloads'])
      try {
        runs.push(await measure(bench, subject, profile, reloads))
      } catch (error) {
        // A peer that does not work is no reason to lose the figures of the others.
        if (subject === 'usr2') throw error
        progress(`SKIPPED ${subject}: ${error instanceof Error ? error.message : String(error)}`)
        break
      }
    }
  }
  console.log(flags.json ? JSON.stringify(runs, null, 2) : report(runs))
  return runs.some(({ subject, failed }) => subject === 'usr2' && failed > 0) ? 1 : 0
})
