/**
 * A drill: the app under load, reloaded again and again, and what became of every request.
 *
 *     app ready -> what does it speak? -> preflight -> load: steady, (reload, drain, steady) x N -> verdict
 *
 * Rules:
 * - The load runs in a process of its own, open-loop (plan.ts), and so does the app, under a master that is ours alone
 *   unless a running one was named.
 * - What fails in the preflight, before the first reload, is the user's to set right (status 2): no loss.
 * - A request is good if its status is one that the preflight saw for its path, and no 5xx.
 * - When a reload is over is the master's to say: the control client waits for `drained`.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { describeKey } from '../address.ts'
import {
  askReload,
  askStatus,
  connectControl,
  findMaster,
  type RolloutEnd,
} from '../master/control/control-client.ts'
import { sumOf } from '../master/figures/ledger.ts'
import type { Status } from '../master/face.ts'
import { PrivateApp } from './app.ts'
import { mixOf, type MixEntry } from './mix.ts'
import {
  DrillComplaint,
  type DrillOptions,
  type DrillResult,
  type NamedTarget,
  type ReloadResult,
} from './options.ts'
import { probe, type Spoken } from './probe.ts'
import type { LoadResult } from './result.ts'
import { type RemoteLoad, startLoad } from './start-load.ts'
import { OUTSIDE_REQUESTS } from './tally.ts'
import { now } from './world.ts'

export const SLICE_MS = 250
/** Connections are opened and code is warm before anything is measured. */
const WARM_UP_MS = 1000
/** Above the longest drain (15 min) that a master allows. */
const RELOAD_MS = 20 * 60_000

/** A verdict of zero failures: says what was done, as it happens. */
export type Say = (line: string) => void

/**
 * @param say gets a line for each step
 * @param signal ends the drill early: app, load and files are taken away, and it throws the signal's reason
 * @throws {DrillComplaint} what the user has to set right before there can be a drill
 * @throws {ControlError} of a running master that does not answer
 */
export async function drill(options: DrillOptions, say: Say, signal: AbortSignal): Promise<DrillResult> {
  const { app } = options
  if ('control' in app) {
    const { path } = await hangUp(findMaster(app.control, app.name === undefined ? {} : { name: app.name }))
    return drillMaster(options, path, say, signal)
  }
  const own = new PrivateApp({ ...app, cwd: options.cwd, env: options.env })
  try {
    await orAborted(own.ready(), signal)
    return await drillMaster(options, own.control, say, signal, own.pid)
  } catch (error) {
    if (signal.aborted || error instanceof DrillComplaint || !(error instanceof Error)) throw error
    throw new Error(`${error.message}\nThe end of the output of the app and its master:\n${own.tail()}`, {
      cause: error,
    })
  } finally {
    await own.stop(signal.aborted ? 'now' : 'graceful')
  }
}

async function hangUp<T extends { close(): void }>(opening: Promise<T>): Promise<T> {
  const connection = await opening
  connection.close()
  return connection
}

/** The promise, or the signal's reason. */
function orAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason as Error)
    if (signal.aborted) return onAbort()
    signal.addEventListener('abort', onAbort, { once: true })
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort))
  })
}

async function drillMaster(
  options: DrillOptions,
  control: string,
  say: Say,
  signal: AbortSignal,
  ownPid?: number,
): Promise<DrillResult> {
  const status = await askStatus(await connectControl(control))
  const first = status.generations.find(({ role }) => role === 'current')?.id ?? 0
  const notes: string[] = []
  const mix = await orAborted(planMix(options, status, notes), signal)
  for (const line of notes) say(line)
  const normal = await orAborted(preflight(mix, options), signal)
  for (const [at, { method, path, target }] of mix.entries()) {
    const codes = (normal[at] ?? []).filter((code) => code >= 300)
    const note = `${method} ${path} of ${target} answers ${codes.join(', ')}: taken as its normal answer.`
    if (codes.length > 0 && !notes.includes(note)) notes.push(note)
  }
  const startedAt = new Date()
  const load = await startLoad(
    {
      target: { port: 0 },
      traffic: mix.map(({ traffic }, at) => ({ ...traffic, statuses: normal[at] ?? [] })),
      timeoutMs: options.timeoutMs,
      sliceMs: SLICE_MS,
    },
    ownPid === undefined ? {} : { guard: ownPid },
  )
  try {
    const reloads = await orAborted(drive(options, control, first, load, say), signal)
    const stoppedAt = now()
    const result = await orAborted(load.stop(), signal)
    const base = {
      status,
      stoppedAt,
      private: !('control' in options.app),
      startedAt: startedAt.toISOString(),
      notes,
    }
    return resultOf(base, mix, normal, reloads, result, first, options)
  } finally {
    load.kill()
  }
}

// ---- What is driven, and where ------------------------------------------------------------------------------------

async function planMix(options: DrillOptions, status: Status, notes: string[]): Promise<MixEntry[]> {
  const targets = options.targets.length > 0 ? options.targets : listenersOf(status)
  if (targets.length === 0) {
    throw new DrillComplaint([
      'The app listens on no fixed port or path: it listens on port 0, where each worker gets another one, or not ' +
        'at all, so there is nothing that clients could reach through a reload. Give it a fixed port (many apps read ' +
        'PORT: "PORT=3000 usr2 drill server.js").',
    ])
  }
  const spoken: (NamedTarget & { readonly spoken: Spoken })[] = []
  const silent: string[] = []
  for (const target of targets) {
    const speaks = await probe(target.target, options.mix.paths[0] ?? '/', options.timeoutMs)
    if (typeof speaks === 'string') silent.push(`${target.label} ${speaks}`)
    else spoken.push({ ...target, spoken: speaks })
  }
  if (spoken.length === 0 || (options.targets.length > 0 && silent.length > 0))
    throw new DrillComplaint(
      silent.map((line) => `No HTTP/1.1 and no HTTP/2 is spoken there, so it cannot be drilled: ${line}.`),
    )
  for (const line of silent) notes.push(`Left out, because it speaks neither HTTP/1.1 nor HTTP/2: ${line}.`)
  const mix = mixOf(spoken, options.mix)
  if (mix.length === 0)
    throw new DrillComplaint(['There is nothing to drill: no kind of client fits the app.'])
  return mix
}

function listenersOf({ listeners }: Status): NamedTarget[] {
  return listeners.flatMap(({ key }) => targetOf(key) ?? [])
}

/** How a client reaches a listener: a wildcard by the loopback address of its family. */
export function targetOf(key: string): NamedTarget | null {
  const unix = /^unix:(.+)$/.exec(key)?.[1]
  if (unix !== undefined) return { label: key, target: { path: unix.replace(/^@/, '\0') } }
  const tcp = /^tcp:(?:\[([^\]]+)\]|([^:]+)):(\d+)(\/ipv6only)?$/.exec(key)
  if (tcp === null) return null
  const [, v6, v4, port, only] = tcp
  const given = v6 ?? v4 ?? ''
  const host = given === '0.0.0.0' ? '127.0.0.1' : given === '::' ? (only ? '::1' : '127.0.0.1') : given
  return { label: describeKey(key), target: { host, port: Number(port) } }
}

/**
 * One request of each kind: gives the statuses seen.
 *
 * @throws {DrillComplaint} each kind that fails without any reload, with what was seen
 */
async function preflight(mix: readonly MixEntry[], { timeoutMs }: DrillOptions): Promise<number[][]> {
  const load = await startLoad({
    target: { port: 0 },
    traffic: mix.map(({ traffic }) => {
      const { perSecond: _, ...rest } = traffic
      return { ...rest, connections: 1, statuses: 'below500' as const }
    }),
    once: true,
    timeoutMs,
    // A download may take its time, as long as there are bytes.
    maxMs: RELOAD_MS,
  })
  try {
    const { traffic, details, answers } = await load.done
    const complaints = new Map<string, string[]>()
    for (const { kind, method, path, target, traffic: own } of mix) {
      const name = own.name ?? ''
      const tally = traffic[name]
      if (tally !== undefined && tally.failed === 0 && tally.ok > 0) continue
      const seen = details.find((detail) => detail.traffic === name)
      const what = seen === undefined ? 'no good answer' : `${seen.failure}, ${seen.text}`
      const complaint = `${method} ${path} of ${target} fails without any reload: ${what}. ${adviceOn(kind)}`
      complaints.set(complaint, [...(complaints.get(complaint) ?? []), kind])
    }
    if (complaints.size > 0)
      throw new DrillComplaint([...complaints].map(([text, kinds]) => `${kinds.join(', ')}: ${text}`))
    return mix.map(({ traffic: { name = '' } }) => Object.keys(answers[name] ?? {}).map(Number))
  } finally {
    load.kill()
  }
}

function adviceOn(kind: string): string {
  if (kind === 'WebSocket') return 'Is --websocket the path where the app takes WebSockets?'
  if (kind === 'HTTP/2') return 'Leave out --http2, or say with --target which listener speaks it.'
  return 'Say with --path, --post, --stream and --header what the app answers, and with --target where.'
}

// ---- The reloads --------------------------------------------------------------------------------------------------

type Reload = Omit<ReloadResult, 'requests' | 'failed' | 'askedAtMs' | 'promotedAtMs' | 'drainedAtMs'> & {
  /** By {@link now}. */
  readonly askedAt: number
  readonly promotedAt: number
  readonly drainedAt: number | null
}

async function drive(
  { reloads: count, steadyMs, pauseMs }: DrillOptions,
  control: string,
  first: number,
  load: RemoteLoad,
  say: Say,
): Promise<Reload[]> {
  await sleep(WARM_UP_MS)
  load.mark('steady', 'steady')
  say(`steady for ${steadyMs / 1000} s`)
  await sleep(steadyMs)
  const reloads: Reload[] = []
  let from = first
  for (let number = 1; number <= count; number++) {
    if (number > 1) await sleep(pauseMs)
    const reload = await Promise.race([reloadOnce(control, number, from, load), lost(load)])
    load.mark(`steady after reload ${number}`, 'steady')
    reloads.push(reload)
    say(`reload ${number} of ${count}: ${reload.text}`)
    // Nothing was replaced: another try would fail the same way.
    if (reload.outcome !== 'promoted') break
    from = reload.to ?? from
  }
  await sleep(steadyMs)
  return reloads
}

/** Rejects when the load client ends before it was stopped. */
async function lost(load: RemoteLoad): Promise<never> {
  await load.done
  throw new Error('the load client stopped before the last reload')
}

async function reloadOnce(control: string, number: number, from: number, load: RemoteLoad): Promise<Reload> {
  const connection = await connectControl(control)
  const late = setTimeout(() => connection.close(), RELOAD_MS)
  try {
    load.mark(`reload ${number}`, 'reload')
    const askedAt = now()
    let promotedAt = askedAt
    const end: RolloutEnd = await askReload(
      connection,
      { drop: [], wait: 'drained' },
      {
        verdict: ({ outcome }) => {
          promotedAt = now()
          if (outcome !== 'promoted') return
          load.epoch()
          load.mark(`drain ${number}`, 'drain')
        },
      },
    )
    const { verdict, drained } = end
    const drainedAt = drained === null ? null : now()
    if (drained !== null) load.onlySince(number)
    return {
      number,
      outcome: verdict.outcome,
      from,
      to: verdict.outcome === 'promoted' ? verdict.current : null,
      promotedMs: promotedAt - askedAt,
      drainedMs: drainedAt === null ? null : drainedAt - askedAt,
      text: drained === null ? verdict.text : `${verdict.text}; ${drained.text}`,
      reasons: verdict.reasons,
      drained,
      askedAt,
      promotedAt,
      drainedAt,
    }
  } finally {
    clearTimeout(late)
  }
}

// ---- What came of it ----------------------------------------------------------------------------------------------

interface Base {
  /** By {@link now}. */
  readonly stoppedAt: number
  readonly status: Status
  readonly private: boolean
  readonly startedAt: string
  readonly notes: readonly string[]
}

function resultOf(
  { status, stoppedAt, private: own, startedAt, notes }: Base,
  mix: readonly MixEntry[],
  normal: readonly (readonly number[])[],
  reloads: readonly Reload[],
  load: LoadResult,
  first: number,
  options: DrillOptions,
): DrillResult {
  const promoted = reloads.filter(({ outcome }) => outcome === 'promoted')
  const bad = reloads.find(({ outcome }) => outcome !== 'promoted')
  const ok = bad === undefined && load.failed === 0 && load.requests > 0
  // One or two are always due at the moment of the stop.
  const more =
    load.unsent > options.mix.perSecond
      ? [
          `${load.unsent} requests were due and not sent when the drill ended, because as many as --connections allows ` +
            'were outstanding: their latency is not in the table. Raise --connections, or lower --rate.',
        ]
      : []
  return {
    ok,
    verdict: verdictOf(load, promoted.length, bad, options.reloads),
    app: { name: status.name, private: own, usr2: status.usr2, node: status.node },
    startedAt,
    tookMs: load.durationMs,
    requests: load.requests,
    good: load.ok,
    retryable: load.retryable,
    failed: load.failed,
    failures: { ...load.failures },
    unsent: load.unsent,
    latency: {
      steady: load.kinds['steady'] ?? null,
      reload: load.kinds['reload'] ?? null,
      drain: load.kinds['drain'] ?? null,
    },
    mix: mix.flatMap(({ traffic, kind, method, path, target }, at) => {
      const tally = load.traffic[traffic.name ?? '']
      return tally === undefined ? [] : [{ kind, method, path, target, normal: normal[at] ?? [], ...tally }]
    }),
    reloads: reloads.map(({ askedAt, promotedAt, drainedAt, ...reload }) => {
      const names = new Set([`reload ${reload.number}`, `drain ${reload.number}`])
      const phases = load.phases.filter(({ name }) => names.has(name))
      return {
        ...reload,
        askedAtMs: askedAt - load.startedAtMs,
        promotedAtMs: promotedAt - load.startedAtMs,
        drainedAtMs: drainedAt === null ? null : drainedAt - load.startedAtMs,
        requests: phases.reduce((sum, { requests }) => sum + requests, 0),
        failed: phases.reduce((sum, { failed }) => sum + failed, 0),
      }
    }),
    ledger: sumOf(reloads.map(({ drained }) => drained?.ledger)),
    webSocketEnds: { ...load.webSocketEnds },
    generations: [first, ...promoted.flatMap(({ to }) => to ?? [])],
    // Of the time in which the last requests end, only what is wrong is worth a picture.
    timeline: load.slices.filter(({ atMs, failed }) => atMs < stoppedAt - load.startedAtMs || failed > 0),
    sliceMs: SLICE_MS,
    details: load.details,
    notes: [...notes, ...more],
  }
}

function verdictOf(load: LoadResult, done: number, bad: Reload | undefined, asked: number): string {
  const over = `over ${done} ${done === 1 ? 'reload' : 'reloads'}`
  const outside = OUTSIDE_REQUESTS.reduce((sum, name) => sum + (load.failures[name] ?? 0), 0)
  const besides = outside === 0 ? '' : `, and ${outside} connections ended as they must not,`
  const failed = `${load.failed - outside} of ${load.requests} requests failed${besides} ${over}`
  if (load.requests === 0) return 'Nothing is proven: not a single request was sent.'
  if (bad !== undefined)
    return `Not proven: reload ${bad.number} of ${asked} was not promoted (${bad.outcome}: ${bad.text}); ${failed}.`
  if (load.failures.local !== undefined)
    return `Not proven: the client itself could not open connections (${load.failures.local} times: files or ports used up); ${failed}.`
  return load.failed === 0 ? `Nothing was lost: ${failed}.` : `LOST: ${failed}.`
}
