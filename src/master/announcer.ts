/**
 * Tells what was decided: a line in the log, a word to the service manager, progress to whoever follows a rollout.
 * Decides nothing and changes nothing.
 */
import { failuresOf, findingText } from '../rollout/analysis.ts'
import { roleOf } from '../rollout/questions.ts'
import type { Announcement, GenerationId, State, Verdict as Decision, WorkerId } from '../rollout/state.ts'
import type { Progress, Verdict } from './face.ts'
import { stopBudgetMs } from './workers/generation.ts'
import type { Pinned } from './workers/generation.ts'
import type { Logger } from './report.ts'
import { stepText } from './status.ts'
import type { Notifier } from './systemd/systemd.ts'
import type { WorkerHandle } from './workers/worker-handle.ts'
import { mib, plural, seconds } from './words.ts'

export interface AnnouncerParts {
  readonly log: Logger
  readonly notifier: Notifier
  readonly handles: ReadonlyMap<WorkerId, WorkerHandle>
  readonly pinned: ReadonlyMap<GenerationId, Pinned>
  state(): State
  /** One line on how it stands. */
  statusLine(): string
  /** The keys of what the master holds. */
  listeners(): readonly string[]
  verdict(decision: Decision): Verdict
  /** To all who asked for the rollout that runs. */
  progress(progress: Progress): void
}

export class Announcer {
  private readonly parts: AnnouncerParts
  /** Of the rollout that runs. */
  private reload: string | null = null

  constructor(parts: AnnouncerParts) {
    this.parts = parts
  }

  /** What a log line about a candidate's worker carries. */
  rolloutFacts(generation: GenerationId): { reload?: string } {
    const isCandidate = roleOf(this.parts.state().top, generation) === 'candidate'
    return this.reload !== null && isCandidate ? { reload: this.reload } : {}
  }

  announce(what: Announcement): void {
    const { log, notifier, pinned, handles } = this.parts
    switch (what.a) {
      case 'serving': {
        const version = pinned.get(what.generation)?.version ?? ''
        const listeners = this.parts.listeners()
        const where = listeners.join(', ') || 'no listener'
        const text = `generation ${what.generation} serves after ${seconds(what.tookMs)}: ${where}`
        log.info({ event: 'ready', generation: what.generation, version, listeners }, text)
        return notifier.ready(this.parts.statusLine())
      }
      case 'rollout-began': {
        this.reload = what.reload
        const { top } = this.parts.state()
        const isBack = top.k === 'rolling-out' && top.rollout.kind === 'rollback'
        const text = isBack
          ? `rollback: to generation ${top.rollout.of}`
          : 'reload: reading configuration and code anew'
        log.info({ event: isBack ? 'rollback' : 'reload', reload: what.reload }, text)
        return notifier.reloading()
      }
      case 'planned': {
        const steps = what.plan.map((step) => stepText(step, this.currentSlots()))
        if (steps.length === 1) return
        return this.follow('planned', { steps }, null, `the plan: ${steps.join('; ')}`)
      }
      case 'fell-back':
        log.warn({ event: 'fell-back', reload: what.reload, why: what.why }, what.why)
        return this.progress(null, what.why)
      case 'candidate-spawned': {
        const candidate = pinned.get(what.generation)
        const slots = this.parts.state().generations.get(what.generation)?.slots.length ?? 0
        const text = `generation ${what.generation}: starting ${plural(slots, 'worker')} of ${candidate?.entry}`
        return this.follow('candidate', { version: candidate?.version }, what.generation, text)
      }
      case 'worker-ready':
        return this.announceReady(what.worker)
      case 'shifting': {
        const { top } = this.parts.state()
        const slots = this.parts.state().generations.get(what.generation)?.slots.length ?? 0
        // Promoted with the same breath there is no rollout any more.
        const open = top.k === 'rolling-out' ? top.rollout.open : slots
        const who = open >= slots ? 'every worker is' : `${open} of ${plural(slots, 'worker')} are`
        const text = `generation ${what.generation}: ${who} ready; handing over the listeners`
        return this.follow('shifting', {}, what.generation, text)
      }
      case 'share-reached':
        return this.follow('share-reached', { step: what.at }, null, `reached: ${this.step(what.at)}`)
      case 'holding':
        return this.follow('holding', { step: what.at }, null, this.step(what.at))
      case 'analysed': {
        const { judgement, tally } = what
        const { verdict, findings, why } = judgement
        const figures = (verdict === 'fail' ? failuresOf(judgement) : findings.map(findingText)).join('; ')
        const text = `measurement ${tally.taken}: ${verdict === 'unclear' ? `unclear: ${why}` : `${verdict}: ${figures}`}`
        return this.follow('analysed', { verdict, findings, tally }, null, text)
      }
      case 'paused':
        log.warn({ event: 'paused', reload: what.reload, why: what.why }, `paused: ${what.why}`)
        return this.progress(null, `paused: ${what.why} (usr2 resume, usr2 promote or usr2 abort)`)
      case 'resumed':
        return this.follow('resumed', {}, null, 'goes on')
      case 'hook-failed':
        return log.error({ event: 'hook-failed', hook: what.hook, why: what.why }, what.why)
      case 'rollout-ended':
        return this.announceVerdict(what.verdict)
      case 'parked': {
        const text = `generation ${what.generation} is parked for ${seconds(what.forMs)}: usr2 rollback lets it in again at once`
        return log.info({ event: 'parked', generation: what.generation, forMs: what.forMs }, text)
      }
      case 'unparked': {
        const text = `generation ${what.generation} is parked no more: ${what.why}`
        return log.info({ event: 'unparked', generation: what.generation, why: what.why }, text)
      }
      case 'unready': {
        const stays = what.stays ? ', and accepts on, since nobody else would' : ' and accepts no more'
        const text = `${this.slotOf(what.worker)} is not ready${stays}: ${what.why}`
        return log.warn({ ...handles.get(what.worker)?.facts, event: 'unready', why: what.why }, text)
      }
      case 'ready-again':
        return log.info(
          { ...handles.get(what.worker)?.facts, event: 'ready-again' },
          `${this.slotOf(what.worker)} is ready again`,
        )
      case 'warm-up-failed': {
        const text = `${this.slotOf(what.worker)} was warmed up, though not as it should: ${what.why}`
        return log.warn({ ...handles.get(what.worker)?.facts, event: 'warm-up-failed', why: what.why }, text)
      }
      case 'tired': {
        const { why, detail } = what.tired
        const text = `${this.slotOf(what.worker)} is to be replaced: ${detail}`
        return log.warn({ ...handles.get(what.worker)?.facts, event: 'replacing', why, detail }, text)
      }
      case 'no-room': {
        const { freeBytes, workerBytes } = what.memory
        const figures = `a new one takes about ${mib(workerBytes)}, and ${mib(freeBytes)} can be had`
        const text = what.leaves
          ? `${this.slotOf(what.worker)} leaves before it is replaced: ${figures}`
          : `${this.slotOf(what.worker)} is not replaced for now: ${figures}, and no worker may be missing until then ` +
            '(maxUnavailable); give it more memory, or allow maxUnavailable 1'
        return log.warn({ ...handles.get(what.worker)?.facts, event: 'no-room', ...what.memory }, text)
      }
      case 'scaled':
        log.info(
          { event: 'scaled', from: what.from, to: what.to },
          `${what.from} -> ${plural(what.to, 'worker')}`,
        )
        return notifier.status(this.parts.statusLine())
      case 'vacancy': {
        const { generation, slot, deaths, delayMs, reason } = what
        const text = `${reason}; slot ${slot} is filled again in ${seconds(delayMs)} (death ${deaths} in a row)`
        log.error({ event: 'worker-died', generation, slot, deaths, delayMs, reason }, text)
        return notifier.status(this.parts.statusLine())
      }
      case 'replacement-failed': {
        const { generation, slot, reason } = what
        const text = `slot ${slot} could not be replaced, its old worker serves on: ${reason}`
        return log.error({ event: 'replacement-failed', generation, slot, reason }, text)
      }
      case 'crowded-out':
        return log.warn(
          { event: 'crowded-out', generation: what.generation },
          `generation ${what.generation} still drains and is cut off: too many old generations (maxDraining)`,
        )
      case 'generation-ended':
        // Told by the supervisor, with the figures.
        return
      case 'leaving': {
        const text = `stopping in ${seconds(what.inMs)} at most; all serve on until then (TERM again: now)`
        log.info({ event: 'leaving', inMs: what.inMs }, text)
        return notifier.stopping(text)
      }
      case 'stopping': {
        const why = what.why.length > 0 ? `: ${what.why.join('; ')}` : ''
        log.info({ event: 'stopping', reasons: what.why }, `stopping${why}`)
        return notifier.stopping(`stopping${why}`)
      }
    }
  }

  /** The longest that the stop may take, in milliseconds, by the newest generation. */
  stopBudgetMs(): number {
    const policy = this.parts.pinned.get(Math.max(...this.parts.pinned.keys()))?.policy
    return policy ? stopBudgetMs(policy) : 0
  }

  private slotOf(worker: WorkerId): string {
    const handle = this.parts.handles.get(worker)
    return handle ? `slot ${handle.slot} (generation ${handle.generation}, pid ${handle.pid})` : 'a worker'
  }

  private currentSlots(): number {
    const { top, generations } = this.parts.state()
    return 'current' in top ? (generations.get(top.current)?.slots.length ?? 0) : 0
  }

  private step(at: number): string {
    const { top } = this.parts.state()
    const step = top.k === 'rolling-out' ? top.rollout.plan[at] : undefined
    return step ? stepText(step, this.currentSlots()) : ''
  }

  /** A log line of the rollout, and the same to those who follow it. */
  private follow(event: string, facts: object, generation: GenerationId | null, text: string): void {
    const about = generation === null ? {} : { generation }
    this.parts.log.info(
      { event, ...(this.reload === null ? {} : { reload: this.reload }), ...about, ...facts },
      text,
    )
    this.progress(generation, text)
  }

  private progress(generation: GenerationId | null, text: string): void {
    if (this.reload === null) return
    this.parts.progress({ reload: this.reload, generation, text })
    this.parts.notifier.status(text)
  }

  private announceReady(id: WorkerId): void {
    const { log, notifier, handles } = this.parts
    const state = this.parts.state()
    const worker = state.workers.get(id)
    const handle = handles.get(id)
    if (!worker || !handle) return
    const bootMs = performance.now() - handle.startedAt
    const ready = [...state.workers.values()].filter(
      (other) => other.generation === worker.generation && other.phase.k === 'ready',
    ).length
    const slots = state.generations.get(worker.generation)?.slots.length ?? 0
    const { state: slot } = state.generations.get(worker.generation)?.slots[worker.slot] ?? {}
    const text =
      slot?.k === 'replacing'
        ? `generation ${worker.generation}: the replacement for slot ${worker.slot} is ready`
        : `generation ${worker.generation}: ${ready} of ${plural(slots, 'worker')} ready`
    const facts = { ...handle.facts, ...this.rolloutFacts(worker.generation), bootMs: Math.round(bootMs) }
    log.info({ event: 'worker-ready', ...facts }, text)
    if (roleOf(state.top, worker.generation) === 'candidate') this.progress(worker.generation, text)
    else notifier.status(this.parts.statusLine())
  }

  private announceVerdict(decision: Decision): void {
    const { log, notifier, pinned } = this.parts
    const verdict = this.parts.verdict(decision)
    this.reload = null
    const { outcome, kind, reload, reasons, tookMs } = verdict
    const generation = outcome === 'promoted' ? decision.current : decision.other
    const version = pinned.get(generation ?? -1)?.version
    const facts = { event: outcome, kind, reload, generation, version, reasons, tookMs: Math.round(tookMs) }
    log[outcome === 'promoted' ? 'info' : 'error'](facts, verdict.text)
    // Always closed, also after a failure: a unit left `reloading` blocks every later reload.
    const line = this.parts.statusLine()
    notifier.ready(outcome === 'promoted' ? line : `${line}; ${verdict.text}`)
  }
}
