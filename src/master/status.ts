/**
 * What a master says of itself: a {@link Status} from the state, the worker handles and the pins. Reads, and changes
 * nothing.
 */
import { figureText } from '../rollout/analysis.ts'
import {
  accepts,
  candidateOf,
  currentOf,
  holder,
  isUnready,
  parkedOf,
  roleOf,
  serves,
  stateOf,
} from '../rollout/questions.ts'
import { PROBES } from '../rollout/state.ts'
import type { GenerationId, Judgement, Planned, State, WorkerId } from '../rollout/state.ts'
import type {
  AnalysisStatus,
  GenerationStatus,
  RolloutStatus,
  Status,
  Verdict,
  WorkerStatus,
} from './face.ts'
import type { Pinned } from './workers/generation.ts'
import { sumOf } from './figures/ledger.ts'
import { limitText } from '../config.ts'
import { rssBytes } from './workers/memory.ts'
import { ownVersion } from './report.ts'
import { versionOnDisk } from './upgrade/on-disk.ts'
import type { WorkerHandle } from './workers/worker-handle.ts'
import { plural, seconds } from './words.ts'

export interface StatusParts {
  readonly name: string
  readonly state: State
  readonly handles: ReadonlyMap<WorkerId, WorkerHandle>
  readonly pinned: ReadonlyMap<GenerationId, Pinned>
  readonly listeners: readonly string[]
  readonly startedAt: number
  readonly lastVerdict: Verdict | null
  /** The last measurement of the analysis that runs. */
  readonly lastJudgement: Judgement | null
  readonly now: number
}

export function statusOf(parts: StatusParts): Status {
  const { name, state, listeners, startedAt, lastVerdict, now } = parts
  const current = state.generations.get(currentOf(state.top) ?? -1)
  const serving = (current?.slots ?? []).filter((slot) => serves(state.workers.get(holder(slot) ?? -1)))
  const workers = [...state.workers.values()]
  const { top } = state
  const parked = top.k === 'steady' || top.k === 'rolling-out' ? top.parked : null
  return {
    name,
    pid: process.pid,
    usr2: ownVersion(),
    usr2OnDisk: versionOnDisk(),
    node: process.versions.node,
    uptimeMs: now - startedAt,
    state: stateOf(state),
    slots: current?.slots.length ?? 0,
    ready: serving.length,
    listeners: listeners.map((key) => ({ key, accepting: workers.filter((w) => accepts(w, key)).length })),
    generations: [...state.generations.keys()].map((id) => generationStatus(parts, id)),
    vacancies: (current?.slots ?? []).flatMap(({ state, deaths }, slot) =>
      state.k === 'vacant' ? [{ slot, deaths, retryInMs: Math.max(0, state.retry.timerAt - now) }] : [],
    ),
    waitsFor: waitsFor(parts),
    lastVerdict,
    rollout: rolloutStatus(parts),
    parked: parked && {
      generation: parked.generation,
      leftMs: Math.max(0, parked.until.timerAt - now),
    },
    bootable: state.history.filter((id) => id !== parkedOf(top)).toReversed(),
  }
}

function generationStatus(parts: StatusParts, id: GenerationId): GenerationStatus {
  const pinned = parts.pinned.get(id)
  return {
    id,
    role: roleOf(parts.state.top, id),
    version: pinned?.version ?? '',
    entry: pinned?.entry ?? '',
    cwd: pinned?.cwd ?? '',
    node: pinned?.nodeVersion ?? '',
    workers: [...parts.state.workers.values()]
      .filter((worker) => worker.generation === id)
      .map((worker) => workerStatus(parts, worker.id)),
  }
}

function workerStatus({ state, handles, now }: StatusParts, id: WorkerId): WorkerStatus {
  const worker = state.workers.get(id)
  const handle = handles.get(id)
  const ledger = handle?.ledger ?? sumOf([])
  const { open } = ledger.connections
  const { begun, active } = ledger.requests
  const holding = handle?.holding
  const { phase } = worker ?? { phase: { k: 'killed' as const } }
  const opens = [...(worker?.claims ?? [])].flatMap(([key, grant]) => (grant.k === 'open' ? [key] : []))
  const leftMs = 'by' in phase ? Math.max(0, phase.by.timerAt - now) : 0
  const stillLeads = worker?.leadership === 'steps-down' ? ', its whileLeader functions' : ''
  const unready = worker !== undefined && isUnready(worker)
  const waits: Record<typeof phase.k, string | null> = {
    booting: `to become ready (at most ${seconds(leftMs)} more)`,
    ready: unready ? 'to pass its readiness probe again' : null,
    draining: `for ${plural(open, 'connection')}, ${plural(active, 'request')} in flight${stillLeads} (at most ${seconds(leftMs)} more)`,
    terminating: `for the app's own shutdown (at most ${seconds(leftMs)} more)`,
    dying: `for its end after SIGTERM (at most ${seconds(leftMs)} more)`,
    killed: 'for its end after SIGKILL',
  }
  return {
    slot: worker?.slot ?? 0,
    generation: worker?.generation ?? 0,
    pid: handle?.pid ?? null,
    phase: phase.k === 'dying' ? 'killed' : phase.k,
    uptimeMs: handle ? now - handle.startedAt : 0,
    open: opens,
    connections: open,
    requests: begun,
    active,
    ledger,
    holding: holding ? { ...holding.said, saidMsAgo: Math.round(now - holding.at) } : null,
    rssBytes: handle?.pid ? rssBytes(handle.pid) : null,
    probes: PROBES.flatMap((probe) => {
      const probing = worker?.probes[probe]
      return probing ? [{ probe, standing: probing.standing, why: probing.why }] : []
    }),
    tired: worker?.tired?.detail ?? null,
    waitsFor: waits[phase.k],
  }
}

function waitsFor({ state, now }: StatusParts): string | null {
  const { top } = state
  switch (top.k) {
    case 'starting':
      return 'for the first generation to serve'
    case 'rolling-out':
      return `reload ${top.rollout.id}: ${rolloutWaitsFor(state, now)}`
    case 'leaving': {
      const left = `(at most ${seconds(Math.max(0, top.until.timerAt - now))} more)`
      return top.doing === 'delay'
        ? `for load balancers to send nobody any more ${left}`
        : `for the hook beforeStop ${left}`
    }
    case 'stopping':
      return `for ${plural(state.workers.size, 'worker')} to leave`
    default:
      return null
  }
}

/** As the end of "waits ". */
function rolloutWaitsFor({ top }: State, now: number): string {
  if (top.k !== 'rolling-out') return ''
  const { doing, raised } = top.rollout
  const left = (timer: { timerAt: number }): string =>
    `(at most ${seconds(Math.max(0, timer.timerAt - now))} more)`
  switch (doing.k) {
    case 'pinning':
      return 'for configuration and code to be read'
    case 'before-spawn':
      return `for the hook beforeSpawn ${left(doing.by)}`
    case 'before-promote':
      return `for the hook beforePromote ${left(doing.by)}`
    case 'bringing-up':
      return `for ${plural(raised, 'worker')} of generation ${doing.candidate} to become ready ${left(doing.by)}`
    case 'shifting':
      return `for generation ${doing.candidate} to accept ${left(doing.by)}`
    case 'settling':
      return `to see the new workers serve for a while ${left(doing.until)}`
    case 'holding':
      return doing.until === 'promote'
        ? 'for a person: usr2 promote'
        : `for the end of this hold ${left(doing.until)}`
    case 'analysing':
      return `for the next measurement ${left(doing.next)}`
    case 'paused':
      return 'for a person: usr2 resume, usr2 promote or usr2 abort'
  }
}

/** What a step does, for people: `20 % of new connections (1 of 5 workers)`. */
export function stepText(step: Planned, currentSlots: number): string {
  switch (step.k) {
    case 'share': {
      if (step.open === 0) return `${plural(step.raise, 'worker')} up and ready, without traffic`
      const all = step.open + currentSlots - step.out
      const asked = step.realPercent === step.percent ? '' : `, ${step.percent} % asked for`
      return `${step.realPercent} % of new connections (${step.open} of ${plural(all, 'worker')}${asked})`
    }
    case 'hold':
      return step.forMs === 'promote' ? 'hold until promoted' : `hold ${timeText(step.forMs)}`
    case 'analyse': {
      const { limits, count, intervalMs } = step.analysis
      return `analyse ${count} times ${timeText(intervalMs)}: ${limits.map(limitText).join(', ')}`
    }
    case 'watch':
      return `serve alone for ${timeText(step.forMs)}`
  }
}

function timeText(ms: number): string {
  if (ms >= 3_600_000 && ms % 3_600_000 === 0) return `${ms / 3_600_000} h`
  if (ms >= 60_000 && ms % 60_000 === 0) return `${ms / 60_000} min`
  return ms % 1_000 === 0 ? `${ms / 1_000} s` : `${ms} ms`
}

function rolloutStatus(parts: StatusParts): RolloutStatus | null {
  const { state, now } = parts
  const { top } = state
  if (top.k !== 'rolling-out') return null
  const { rollout, current } = top
  const candidate = candidateOf(top)
  const slots = state.generations.get(current)?.slots.length ?? 0
  const { doing, plan, at } = rollout
  const accepting = (generation: GenerationId | null): number =>
    [...state.workers.values()].filter(
      (worker) =>
        worker.generation === generation &&
        worker.phase.k === 'ready' &&
        [...worker.claims.values()].some(({ k }) => k === 'open'),
    ).length
  return {
    reload: rollout.id,
    kind: rollout.kind,
    current,
    candidate,
    sinceMs: now - rollout.since,
    steps: plan.map((step, i) => ({
      text: stepText(step, slots),
      state: i < at ? 'done' : i === at ? 'now' : 'to-come',
    })),
    waitsFor: rolloutWaitsFor(state, now),
    paused: doing.k === 'paused' ? doing.why : null,
    accepting: { current: accepting(current), candidate: accepting(candidate) },
    analysis: analysisStatus(parts),
  }
}

function analysisStatus({ state, lastJudgement }: StatusParts): AnalysisStatus | null {
  const { top } = state
  if (top.k !== 'rolling-out') return null
  const { doing, plan, at } = top.rollout
  const step = plan[at]
  if (step?.k !== 'analyse') return null
  const tally = doing.k === 'analysing' || doing.k === 'paused' ? doing.tally : null
  const { taken, failed } = tally ?? { taken: 0, failed: 0 }
  // The last one may be of an analysis before.
  const findings = taken === 0 ? [] : (lastJudgement?.findings ?? [])
  return {
    taken,
    of: step.analysis.count,
    failed,
    failureLimit: step.analysis.failureLimit,
    findings: findings.map(({ limit, candidate, current, holds }) => ({
      limit: limitText(limit),
      candidate: figureText(limit.metric, candidate),
      current: figureText(limit.metric, current),
      holds,
    })),
  }
}
