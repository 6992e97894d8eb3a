/**
 * The loop: queue facts, step the machine, perform its commands, re-arm the one timer.
 *
 * Everything that happens in the world becomes a fact for src/rollout/; everything that is done is a command from
 * there. This file decides nothing: where it seems to choose, it looks up who holds what.
 */
import type { Config } from '../config.ts'
import type { Address } from '../address.ts'
import { MAX_DRAIN_MS } from '../protocol.ts'
import type { FromWorker, KnownListener, Statistics } from '../protocol.ts'
import { MAX_HISTORY } from '../rollout/rollout.ts'
import { currentOf, holder, isGoing, parkedOf, serves, stateOf } from '../rollout/questions.ts'
import { initialState } from '../rollout/state.ts'
import type {
  Announcement,
  AskId,
  Command,
  Event,
  Fact,
  GenerationId,
  Heritage,
  Judgement,
  Memory,
  Order,
  OrderId,
  ProbeKind,
  State,
  Verdict as Decision,
  WorkerId,
} from '../rollout/state.ts'
import { step } from '../rollout/step.ts'
import { deadline } from '../rollout/timers.ts'
import { Announcer } from './announcer.ts'
import { Bans } from './workers/bans.ts'
import { BootPriority } from './workers/boot-priority.ts'
import { Books } from './figures/books.ts'
import type { Asker, Drained, Face, RollbackRequest, Status, Verdict, Wait } from './face.ts'
import { hasChanged, pinAgain } from './workers/generation.ts'
import type { Pinned, PinResult } from './workers/generation.ts'
import { Hooks, hookEnvironment } from './workers/hooks.ts'
import { LeftoverEnder } from './workers/leftovers.ts'
import { ledgerText, sumOf } from './figures/ledger.ts'
import type { Ledger } from './figures/ledger.ts'
import type { ActivatedSocket } from './systemd/inherited.ts'
import { Listeners } from './listening/listeners.ts'
import { reportCuts, reportDeathInDrain, reportForce } from './workers/losses.ts'
import { freeBytes, rssBytes, typicalBytes, workerBytes } from './workers/memory.ts'
import { verdictText } from './report.ts'
import type { Logger } from './report.ts'
import { statusOf } from './status.ts'
import type { Notifier } from './systemd/systemd.ts'
import type { GenerationTotals, Verdicts } from './figures/totals.ts'
import { TicketKeys } from './listening/ticket-keys.ts'
import { Turns } from './listening/turns.ts'
import type { Place } from './listening/turns.ts'
import type { BequeathedKeys, BequeathedListener, BequeathedVersion } from './upgrade/upgrade-wire.ts'
import { WorkerHandle } from './workers/worker-handle.ts'
import type { WorkerExit } from './workers/worker-handle.ts'
import { Withdrawals } from './workers/withdrawals.ts'
import { seconds } from './words.ts'

/** A timer that fires this late means that the machine slept: a paused VM, a stopped process. */
const OVERSLEPT_MS = 2_000
/** What setTimeout can hold. */
const MAX_TIMER_MS = 2 ** 31 - 1
/** How often the memory of the workers is looked at: a leak takes minutes, a look 50 µs. */
const WEIGH_EVERY_MS = 5_000
/** A worker that no liveness probe looks after may be silent for as long as the default probe would let it. */
const WITHOUT_PROBE_MS = 70_000
/** A stop or a slow start that progresses asks the service manager for so much more time at once. */
const EXTENSION_MS = 10_000
/** For a worker with so many listeners that it takes longer than this to open them all. */
const OPENED_WITHIN_MS = 100

export interface SupervisorParts {
  readonly config: Config
  readonly log: Logger
  readonly notifier: Notifier
  /** The guest's file. */
  readonly preload: string
  /** What the service manager passed. */
  readonly activated: readonly ActivatedSocket[]
  /** Reads configuration, code path and Node binary anew. */
  pin(): Promise<PinResult>
  /** The first generation serves. */
  onServing(): void
  /** A worker has died and its slot is tried again, or the master gives up. */
  onTrouble?(reason: string): void
  /** Its last worker has gone. */
  onGenerationEnded?(generation: GenerationId, text: string): void
  /** When no worker of another master can lead any more. */
  readonly leaderless?: () => Promise<void>
  /** A worker of a killed master may have an address that is in use: whether it is worth another try. */
  makeWay?(address: Address): Promise<boolean>
  /** What waits when no worker is left: before the listeners are closed, and before the end. */
  beforeClose?(): Promise<void>
  beforeEnd?(status: 0 | 1): Promise<void>
  /** A stop is to take no more time. */
  onStopNow?(): void
  /** No worker is left and every listener is closed. */
  onEnd(status: 0 | 1): void
  /** Where the inspector of a blocked worker would listen; null: it never does. */
  inspectorPort(): number | null
  /** What a process whose event loop does not answer is at, in a few lines; null: nobody can tell. */
  lookInto(pid: number): Promise<string | null>
}

/** The listeners that a fact is about; null: it may be about any. */
function keysOf(fact: Fact): readonly string[] | null {
  if (fact.e !== 'together') return 'key' in fact ? [fact.key] : null
  const keys = fact.facts.map(keysOf)
  return keys.every((some) => some !== null) ? keys.flat() : null
}

interface Ask {
  readonly asker: Asker
  readonly wait: Wait
}

export class Supervisor implements Omit<Face, 'upgrade'> {
  private state: State = initialState
  private readonly facts: Event[] = []
  private stepping = false
  private timer: NodeJS.Timeout | undefined
  private armedFor: number | null = null
  private readonly parts: SupervisorParts
  private readonly log: Logger
  private readonly listeners: Listeners
  private readonly ticketKeys = new TicketKeys()
  private readonly handles = new Map<WorkerId, WorkerHandle>()
  private readonly pinned = new Map<GenerationId, Pinned>()
  private readonly asks = new Map<AskId, Ask>()
  private readonly waitingForDrain = new Map<GenerationId, { asker: Asker; since: number }[]>()
  /** What the ended workers of a generation had done. */
  private readonly ended = new Map<GenerationId, Ledger>()
  private readonly stopped: (() => void)[] = []
  private readonly hooks = new Hooks()
  private readonly books = new Books()
  private readonly bans = new Bans()
  private readonly announcer: Announcer
  private readonly leftovers: LeftoverEnder
  private readonly bootPriority: BootPriority
  private readonly withdrawals = new Withdrawals({ handles: this.handles, state: () => this.state })
  private readonly turns = new Turns({ turn: ({ worker, key }) => this.listeners.turn(worker, key) })
  private readonly orders = new Map<OrderId, (problem: string | null) => void>()
  private lastAsk = 0
  private lastOrder = 0
  private lastVerdict: Verdict | null = null
  private lastJudgement: Judgement | null = null
  private stopBy: number | null = null
  private readonly startedAt = performance.now()

  constructor(parts: SupervisorParts) {
    this.parts = parts
    this.log = parts.log
    const { log, activated } = parts
    this.leftovers = new LeftoverEnder(log)
    this.bootPriority = new BootPriority(log)
    this.listeners = new Listeners({
      ...{ log, activated, onHeld: (known) => this.tellHeld(known) },
      makeWay: async (address) => (await parts.makeWay?.(address)) ?? false,
      onUnclaimed: (key) => this.forget(key),
    })
    this.announcer = new Announcer({
      ...{ log: parts.log, notifier: parts.notifier, handles: this.handles, pinned: this.pinned },
      state: () => this.state,
      statusLine: () => this.statusLine(),
      listeners: () => this.keys(),
      verdict: (decision) => this.verdict(decision),
      progress: (progress) => {
        const { top } = this.state
        if (top.k !== 'rolling-out') return
        for (const id of top.rollout.asks) this.asks.get(id)?.asker.progress(progress)
      },
    })
  }

  /** @param heritage of the master that this one is to replace, whose listeners were {@link inherit}ed */
  start(pinned: Pinned, heritage?: Heritage): void {
    this.pinned.set(heritage?.nextGeneration ?? this.state.nextGeneration, pinned)
    this.dispatch({ e: 'started', policy: pinned.policy, ...(heritage ? { heritage } : {}) })
    this.scales = setInterval(() => this.weighAll(), WEIGH_EVERY_MS)
  }
  private scales: NodeJS.Timeout | undefined

  // --- the loop -------------------------------------------------------------------------------------------------

  private dispatch(fact: Fact): void {
    if (this.gathered) return void this.gathered.push(fact)
    const at = performance.now()
    const lagMs = this.armedFor === null ? 0 : at - this.armedFor
    if (lagMs > OVERSLEPT_MS) {
      // Told before anything else: what ran out meanwhile did not have its time.
      this.armedFor = null
      this.log.warn(
        { event: 'overslept', lagMs },
        `woke ${seconds(lagMs)} late; every deadline is moved by as much`,
      )
      this.facts.push({ at, e: 'overslept', lagMs })
    }
    this.facts.push({ at, ...this.withLate(fact) })
    if (this.stepping) return
    this.stepping = true
    try {
      for (let event = this.facts.shift(); event; event = this.facts.shift()) {
        const { state, commands } = step(this.state, event)
        this.state = state
        for (const command of commands) this.perform(command)
      }
    } finally {
      this.stepping = false
    }
    this.listeners.restorePaths(keysOf(fact))
    this.turns.among(this.places())
    this.arm()
  }

  /** What `call` dispatches is one fact. */
  private together(call: () => void): void {
    const facts = (this.gathered = [] as Fact[])
    try {
      call()
    } finally {
      this.gathered = null
    }
    if (facts.length > 0) this.dispatch({ e: 'together', facts })
  }
  private gathered: Fact[] | null = null

  /**
   * A worker that is granted 600 listeners takes them one after the other, and says so of each. A step looks at every claim
   * of every worker: with a step for each of 300, in 4 workers, the master needed 6.4 s of processor time for a start, and
   * now 0.8. So that it accepts there is told together with the others that are on their way to the same worker, but not
   * much later. (No client waits for that: it accepts already.)
   */
  private opened(worker: WorkerId, key: string): void {
    this.late.push({ e: 'opened', worker, key })
    if (!this.granting.has(worker)) return this.tellLate()
    this.lateTimer ??= setTimeout(() => this.tellLate(), OPENED_WITHIN_MS)
  }
  private readonly late: Fact[] = []
  private lateTimer: NodeJS.Timeout | undefined
  /** Grants on their way, by worker. */
  private readonly granting = new Map<WorkerId, number>()

  private tellLate(): void {
    const [first, ...others] = this.late.splice(0)
    if (first) this.dispatch(others.length === 0 ? first : { e: 'together', facts: [first, ...others] })
  }

  /** In their order: of what is told late, nothing comes after what happened later. */
  private withLate(fact: Fact): Fact {
    clearTimeout(this.lateTimer)
    this.lateTimer = undefined
    return this.late.length === 0 ? fact : { e: 'together', facts: [...this.late.splice(0), fact] }
  }

  /** Every open grant while two generations share the connections; else none: nobody asks who gets them. */
  private places(): Place[] {
    const { top, workers } = this.state
    if (top.k !== 'rolling-out' || top.rollout.open === 0) return []
    const places = [...workers.values()].flatMap(({ id, claims }) => {
      const worker = this.handles.get(id)
      return [...claims].flatMap(([key, { k }]) => (worker && k === 'open' ? [{ worker, key }] : []))
    })
    const generations = new Set(places.map(({ worker }) => worker.generation))
    return generations.size > 1 ? places : []
  }

  private arm(): void {
    clearTimeout(this.timer)
    this.armedFor = deadline(this.state)
    if (this.armedFor === null) return
    const delayMs = Math.min(Math.max(0, Math.ceil(this.armedFor - performance.now())), MAX_TIMER_MS)
    this.timer = setTimeout(() => this.dispatch({ e: 'ticked' }), delayMs)
  }

  private perform(command: Command): void {
    switch (command.c) {
      case 'pin':
        return void this.pin(command.reload, command.of)
      case 'spawn':
        return this.spawn(command.worker, command.generation, command.slot)
      case 'open':
        return void this.open(command.worker, command.key, command.withinMs)
      case 'withdraw':
        return this.handles.get(command.worker)?.send({ t: 'withdraw', key: command.key })
      case 'probe':
        return this.probe(command.worker, command.probe, command.nth, command.timeoutMs)
      case 'warm-up':
        return this.warmUp(command.worker)
      case 'look-into':
        return void this.lookInto(command.worker)
      case 'run-hook':
        return void this.runHook(command)
      case 'measure': {
        const { reload, candidate, current, overMs } = command
        const figures = (of: GenerationId) => this.books.figuresOver(of, overMs, performance.now())
        return this.dispatch({
          ...{ e: 'measured', reload, candidate: figures(candidate), current: figures(current) },
        })
      }
      case 'reply':
        this.orders.get(command.order)?.(command.problem)
        this.orders.delete(command.order)
        return
      case 'drain': {
        const handle = this.handles.get(command.worker)
        const policy = this.pinned.get(handle?.generation ?? -1)?.policy
        if (!handle || !policy) return
        const { drainTimeoutMs, shutdownTimeoutMs } = policy
        return handle.send({ t: 'drain', times: { drainTimeoutMs, shutdownTimeoutMs } })
      }
      case 'cut':
        return this.handles.get(command.worker)?.send({ t: 'cut' })
      case 'terminate': {
        // By both ways: the guest hides SIGTERM from the app while it serves, and a worker that has not loaded its
        // guest knows only the signal.
        const handle = this.handles.get(command.worker)
        if (handle) reportForce(this.log, handle, 'terminated')
        handle?.send({ t: 'exit' })
        return handle?.signal('SIGTERM')
      }
      case 'kill': {
        const handle = this.handles.get(command.worker)
        if (handle) reportForce(this.log, handle, 'killed')
        return handle?.signal('SIGKILL')
      }
      case 'lead':
        return void this.lead(command.worker)
      case 'step-down':
        return this.handles.get(command.worker)?.send({ t: 'step-down' })
      case 'release':
        void this.listeners.release(command.key)
        // In a stop an app's own `unlink` of its socket on SIGTERM still finds nothing to complain about.
        if (this.state.top.k === 'stopping') return this.ticketKeys.forgetListener(command.key)
        return this.forget(command.key)
      case 'unpin':
        this.pinned.delete(command.generation)
        return
      case 'answer':
        return this.answer(command.ask, command.verdict)
      case 'announce':
        return this.announce(command.what)
      case 'exit':
        return void this.end(command.status, command.why)
    }
  }

  // --- hands ----------------------------------------------------------------------------------------------------

  /** @param of the generation whose version it is to be again; null: what is on disk */
  private async pin(reload: string, of: GenerationId | null): Promise<void> {
    const earlier = of === null ? undefined : this.pinned.get(of)
    const pinning = of === null ? this.parts.pin() : Promise.resolve(pinAgain(of, earlier))
    const result = await pinning.catch((error: unknown): PinResult => {
      return { ok: false, reasons: [`reading the new version failed: ${String(error)}`] }
    })
    if (!result.ok) return this.dispatch({ e: 'pin-failed', reload, reasons: result.reasons })
    await this.bootPriority.prepare()
    const { top } = this.state
    if (top.k !== 'rolling-out' || top.rollout.id !== reload || top.rollout.doing.k !== 'pinning') return
    this.pinned.set(this.state.nextGeneration, result.pinned)
    const known = of === null ? this.bans.of(result.pinned) : null
    if (known !== null) this.log.warn({ event: 'rolled-back-before', reload }, known)
    this.dispatch({ e: 'pinned', reload, policy: result.pinned.policy, memory: this.memory() })
  }

  /** What can be had, and what a worker takes; null where this system does not tell. */
  private memory(): Memory | null {
    const pidsOf = (of: GenerationId | null): number[] =>
      [...this.handles.values()].flatMap(({ generation, pid }) =>
        generation === of && pid !== null ? pid : [],
      )
    const free = freeBytes()
    const taken = typicalBytes(pidsOf(currentOf(this.state.top)))
    if (free === null || taken === null) return null
    // Who is parked leaves when the candidate comes.
    const parked = pidsOf(parkedOf(this.state.top))
    return { freeBytes: free + parked.length * (typicalBytes(parked) ?? 0), workerBytes: taken }
  }

  private probe(id: WorkerId, kind: ProbeKind, nth: number, timeoutMs: number): void {
    const handle = this.handles.get(id)
    const target = this.pinned.get(handle?.generation ?? -1)?.config.probes[kind]?.target
    if (!handle || !target) return
    if (handle.awaitsProbe(kind)) this.countProbe(handle, false)
    handle.send({ t: 'probe', id: handle.expectProbe(kind, nth), kind, target, timeoutMs })
  }

  /** In time: after it the machine has counted a failure already. */
  private isAsking(
    worker: WorkerId,
    { kind, nth }: { readonly kind: ProbeKind; readonly nth: number },
  ): boolean {
    const probing = this.state.workers.get(worker)?.probes[kind]
    return probing?.doing.k === 'asking' && probing.nth === nth
  }

  /**
   * Its loop was blocked by loading the app: no client waited for it. (An app that takes 2.5 s to load, also in the
   * current version, failed `loopDelay < 300ms`.)
   */
  private asServing(worker: WorkerId, statistics: Statistics): Statistics {
    const { phase, claims: all } = this.state.workers.get(worker) ?? {}
    const claims = [...(all?.values() ?? [])]
    // An app without listeners has none; but one that boots for 3 s without a turn has none yet when it tells of that.
    const serves = phase?.k !== 'booting' && (claims.length === 0 || claims.some(({ k }) => k === 'open'))
    return serves ? statistics : { ...statistics, loopDelayMs: 0 }
  }

  /** For an analysis. That a worker which boots is not ready yet says nothing against its version. */
  private countProbe({ id, generation }: WorkerHandle, passed: boolean): void {
    if (this.state.workers.get(id)?.phase.k === 'ready')
      this.books.probed(generation, passed, performance.now())
  }

  private warmUp(id: WorkerId): void {
    const handle = this.handles.get(id)
    const pinned = this.pinned.get(handle?.generation ?? -1)
    const warmUp = pinned?.config.warmUp
    if (!handle || !warmUp) return
    const { paths, count } = warmUp
    handle.send({ t: 'warm-up', paths, count: count * paths.length, timeoutMs: pinned.policy.startTimeoutMs })
  }

  /** What blocks an event loop, in the log: the worker will not be there for long to be asked. */
  private async lookInto(id: WorkerId): Promise<void> {
    const handle = this.handles.get(id)
    if (!handle || handle.pid === null) return
    const found = await this.parts.lookInto(handle.pid)
    if (found === null) return
    const text = `slot ${handle.slot} (pid ${handle.pid}): ${found}`
    this.log.warn({ ...handle.facts, event: 'blocked', stack: found }, text)
  }

  private async runHook(command: Extract<Command, { c: 'run-hook' }>): Promise<void> {
    const { hook, reload, current, candidate } = command
    // Before a candidate there is its pin all the same.
    const about = candidate ?? (hook === 'beforeSpawn' ? this.state.nextGeneration : current)
    const pinned = this.pinned.get(about ?? -1)
    const spec = pinned?.config.hooks[hook]
    if (!pinned || !spec || about === null) {
      this.dispatch({ e: 'hook-ended', reload, hook, failure: null })
      return
    }
    const facts = (generation: GenerationId | null) => {
      const pin = this.pinned.get(generation ?? -1)
      return generation === null || !pin ? null : { generation, version: pin.version, entry: pin.entry }
    }
    const verdict = hook === 'afterPromote' || hook === 'afterRollback' ? this.lastVerdict : null
    const ended = verdict && { outcome: verdict.outcome, reason: verdict.reasons.join('; ') }
    const other = this.previousOf(about, current)
    const failure = await this.hooks.run({
      hook,
      command: spec.command,
      cwd: pinned.cwd,
      identity: pinned.identity,
      env: hookEnvironment(pinned.env, {
        ...{ hook, name: this.parts.config.name, reload: Number(reload.replace(/^r/, '')) },
        ...{ about: facts(about), previous: facts(other), ...ended },
      }),
      timeoutMs: pinned.policy.hookTimeoutMs,
      killTimeoutMs: pinned.policy.killTimeoutMs,
      log: this.log,
    })
    if (failure !== null) this.announcer.announce({ a: 'hook-failed', hook, why: failure })
    this.dispatch({ e: 'hook-ended', reload, hook, failure })
  }

  /** The generation that answers beside the one that a hook is about, or did before it. */
  private previousOf(about: GenerationId, current: GenerationId | null): GenerationId | null {
    if (current !== null && current !== about) return current
    return this.lastReplaced
  }
  private lastReplaced: GenerationId | null = null

  private weighAll(): void {
    for (const handle of this.handles.values()) this.weigh(handle)
  }

  private weigh(handle: WorkerHandle): void {
    const { replaceAt } = this.state.generations.get(handle.generation)?.policy ?? {}
    if (!replaceAt || (replaceAt.memoryBytes === null && replaceAt.requests === null)) return
    const isReady = this.state.workers.get(handle.id)?.phase.k === 'ready'
    if (isReady && handle.pid !== null) handle.freshBytes ??= workerBytes(handle.pid)
    const { memoryBytes } = replaceAt
    const rss = handle.pid === null || memoryBytes === null ? null : rssBytes(handle.pid)
    const { requests } = handle.counts
    // Looked at only where it may matter: many files are read for it.
    const memory =
      rss === null || memoryBytes === null || rss <= memoryBytes ? null : this.memoryBeside(handle)
    this.dispatch({ e: 'weighed', worker: handle.id, rssBytes: rss, requests, memory })
  }

  /** What another one like it would find, and take: as much as this one took before it grew. */
  private memoryBeside({ freshBytes }: WorkerHandle): Memory | null {
    const free = freeBytes()
    return free === null || freshBytes === null ? null : { freeBytes: free, workerBytes: freshBytes }
  }

  private spawn(id: WorkerId, generation: GenerationId, slot: number): void {
    const pinned = this.pinned.get(generation)
    if (!pinned) throw new Error(`generation ${generation} was not pinned`)
    const handle = new WorkerHandle({
      id,
      generation,
      slot,
      name: this.parts.config.name,
      pinned,
      preload: this.parts.preload,
      inspectorPort: this.parts.inspectorPort(),
      known: this.listeners.known({ listen: pinned.config.listen, identity: pinned.identity }),
      onMessage: (worker, message) => this.onMessage(worker, message),
      onBroken: (worker, reason) => this.onBroken(worker, reason),
      onExit: (worker, exit) => this.onExit(worker, exit),
    })
    this.handles.set(id, handle)
    this.bootPriority.begin(handle, [...this.state.workers.values()].some(serves))
    if (hasChanged(pinned)) {
      const text =
        `slot ${slot} boots code that was changed in place since generation ${generation} was made: ${pinned.entry}; ` +
        'its workers may differ from each other until the next reload'
      this.log.warn({ ...handle.facts, event: 'code-changed' }, text)
    }
    this.log.debug(
      { ...handle.facts, ...this.announcer.rolloutFacts(generation), event: 'spawned' },
      `started slot ${slot}`,
    )
  }

  private async lead(id: WorkerId): Promise<void> {
    // Two leaders at a time is what an app uses us to avoid.
    await this.parts.leaderless?.()
    const handle = this.handles.get(id)
    if (handle === undefined || this.state.workers.get(id)?.leadership !== 'leads') return
    if (handle.mayBeQuoted(this.log))
      this.log.info({ ...handle.facts, event: 'leads' }, `slot ${handle.slot} leads`)
    handle.send({ t: 'lead' })
  }

  private async open(id: WorkerId, key: string, withinMs: number): Promise<void> {
    const handle = this.handles.get(id)
    if (!handle) return
    this.bootPriority.end(id)
    this.granting.set(id, (this.granting.get(id) ?? 0) + 1)
    try {
      await this.listeners.grant(handle, key, withinMs).finally(() => this.granted(id))
    } catch (error) {
      // It ends just now: its exit says why, in its own words. (Should it not end, the grant has its deadline.)
      if (!handle.alive || !handle.child.connected) return
      const reason = error instanceof Error ? error.message : String(error)
      this.dispatch({ e: 'open-failed', worker: id, key, reason })
    }
  }

  private granted(id: WorkerId): void {
    const left = (this.granting.get(id) ?? 1) - 1
    if (left > 0) return void this.granting.set(id, left)
    this.granting.delete(id)
    // It says so right behind the acknowledgement, which is told later, as promises are.
    this.tellLate()
  }

  private onBroken(handle: WorkerHandle, reason: string): void {
    const text = `slot ${handle.slot} (pid ${handle.pid}) ${reason}`
    this.log.error({ ...handle.facts, event: 'worker-broke', reason }, text)
    this.dispatch({ e: 'worker-broke', worker: handle.id, reason })
  }

  private onMessage(handle: WorkerHandle, message: FromWorker): void {
    const worker = handle.id
    switch (message.t) {
      case 'claim':
        return this.listeners.claim(handle, message.id, message.address)
      case 'verified':
        return this.listeners.proved(handle, message.key, message.error)
      case 'claimed':
        this.extendWhileStarting()
        if (!this.listeners.isFor(message.key, handle.permission)) {
          // Never let into the machine: it would want it of every successor, and none could ever be ready.
          if (!handle.mayBeQuoted(this.log)) return
          const text = `slot ${handle.slot} says that it listens on ${message.key}, which it may not, or this master does not hold`
          return this.log.warn({ ...handle.facts, event: 'claim-refused', listener: message.key }, text)
        }
        this.listeners.claimed(message.key)
        return this.dispatch({ e: 'claimed', worker, key: message.key })
      case 'unclaimed':
        return this.dispatch({ e: 'unclaimed', worker, key: message.key })
      case 'private':
        return this.dispatch({ e: 'listened-privately', worker })
      case 'opened': {
        const { key, error } = message
        if (error)
          return this.dispatch({ e: 'open-failed', worker, key, reason: `${error.syscall} ${error.code}` })
        return this.opened(worker, key)
      }
      case 'withdrawn':
        this.dispatch({ e: 'withdrawn', worker, key: message.key })
        // Else it is asked when all of them are taken in.
        if (this.gathered === null) this.withdrawals.withdrew(worker)
        return
      case 'several':
        this.together(() => {
          for (const each of message.news) this.onMessage(handle, each)
        })
        if (message.news.some(({ t }) => t === 'withdrawn')) this.withdrawals.withdrew(worker)
        return
      case 'ready':
        return this.dispatch({ e: 'said-ready', worker })
      case 'draining':
        // It says so after it has withdrawn every listener.
        this.withdrawals.withdrawn(worker)
        // No word of a worker's puts a stop off for ever.
        return this.dispatch({
          e: 'drain-began',
          worker,
          timeoutMs: Math.min(message.timeoutMs, MAX_DRAIN_MS),
        })
      case 'drained':
        if (message.counts.endings.cut > 0) reportCuts(this.log, handle, message)
        return this.dispatch({ e: 'worker-drained', worker })
      case 'counts':
        this.weigh(handle)
        return this.extendWhileStopping()
      case 'holding':
        return this.extendWhileStopping()
      case 'statistics':
        return this.books.told(handle, this.asServing(worker, message.statistics), performance.now())
      case 'probed': {
        const asked = handle.takeProbe(message.id)
        if (!asked) return
        const { failure } = message
        this.countProbe(handle, failure === null && this.isAsking(worker, asked))
        return this.dispatch({ e: 'probed', worker, probe: asked.kind, nth: asked.nth, failure })
      }
      case 'warmed':
        return this.dispatch({ e: 'warmed', worker, failure: message.failure })
      case 'signalled':
        if (handle.mayBeQuoted(this.log)) {
          const text = `slot ${handle.slot} got ${message.signal}`
          this.log.info({ ...handle.facts, event: 'worker-signalled' }, text)
        }
        return this.dispatch({ e: 'replace-asked', worker })
      case 'leadership-asked':
      case 'leadership-ended':
        return this.dispatch({ e: message.t, worker })
      case 'warning':
        if (!handle.mayBeQuoted(this.log)) return
        return this.log.warn({ ...handle.facts, event: 'worker-warning' }, message.text)
      case 'ticket-keys-asked':
        if (this.listeners.has(message.key)) this.ticketKeys.asked(handle, message.key, message.fingerprint)
        return
      case 'hello':
        return this.extendWhileStarting()
      case 'failed':
      case 'stderr':
      case 'died':
        // Kept by the handle for the reason of its exit.
        return
    }
  }

  private onExit(handle: WorkerHandle, { reason, stillborn }: WorkerExit): void {
    this.handles.delete(handle.id)
    this.bootPriority.exited(handle.id)
    this.listeners.forget(handle)
    this.ticketKeys.forgetTaker(handle)
    this.withdrawals.withdrawn(handle.id)
    if (this.state.workers.get(handle.id)?.phase.k === 'draining')
      reportDeathInDrain(this.log, handle, reason)
    this.ended.set(handle.generation, sumOf([this.ended.get(handle.generation), handle.ledger]))
    const phase = this.state.workers.get(handle.id)?.phase.k
    this.books.exited(handle, phase === 'booting' || phase === 'ready', performance.now())
    this.log.debug({ ...handle.facts, event: 'worker-exited' }, reason)
    this.leftovers.end(handle, this.pinned.get(handle.generation)?.policy.killTimeoutMs ?? 0)
    this.extendWhileStopping()
    this.dispatch({ e: 'worker-exited', worker: handle.id, reason, stillborn })
  }

  private tellHeld(listener: KnownListener): void {
    for (const handle of this.handles.values()) {
      if (this.listeners.isFor(listener.key, handle.permission)) handle.send({ t: 'known', listener })
    }
  }

  private forget(key: string): void {
    this.ticketKeys.forgetListener(key)
    for (const handle of this.handles.values()) handle.send({ t: 'forget', key })
  }

  private generationEnded(generation: GenerationId): void {
    const ledger = sumOf([this.ended.get(generation)])
    this.ended.delete(generation)
    this.books.ended(generation)
    const text = `generation ${generation} has ended: ${ledgerText(ledger)}`
    this.log.info({ event: 'drained', generation, ledger }, text)
    this.parts.onGenerationEnded?.(generation, text)
    for (const { asker, since } of this.waitingForDrain.get(generation) ?? []) {
      const drained: Drained = { generation, ledger, tookMs: performance.now() - since, text }
      asker.drained(drained)
    }
    this.waitingForDrain.delete(generation)
  }

  private answer(id: AskId, decision: Decision): void {
    const ask = this.asks.get(id)
    this.asks.delete(id)
    if (!ask) return
    if (decision.outcome === 'promoted' && ask.wait === 'drained' && decision.other !== null) {
      const waiting = this.waitingForDrain.get(decision.other) ?? []
      this.waitingForDrain.set(decision.other, [...waiting, { asker: ask.asker, since: performance.now() }])
    }
    const verdict = this.verdict(decision)
    this.withdrawals.when(decision.outcome === 'promoted' ? decision.other : null, () =>
      ask.asker.verdict(verdict),
    )
  }

  private verdict(decision: Decision): Verdict {
    const { outcome, kind, reload, current, reasons, tookMs } = decision
    return { outcome, kind, reload, current, reasons, tookMs, text: verdictText(decision, this.pinned) }
  }

  private async end(status: 0 | 1, why: readonly string[]): Promise<void> {
    clearTimeout(this.timer)
    clearTimeout(this.lateTimer)
    clearInterval(this.scales)
    this.turns.end()
    await this.hooks.stop()
    this.leftovers.killAll()
    this.ticketKeys.close()
    await this.parts.beforeClose?.()
    await this.listeners.closeAll()
    await this.parts.beforeEnd?.(status)
    await this.bootPriority.close()
    const text = status === 0 ? 'stopped' : `gave up: ${why.join('; ')}`
    if (this.handedOver) this.log.info({ event: 'left' }, 'the last worker of this master has left')
    else this.log[status === 0 ? 'info' : 'error']({ event: 'stopped', status, reasons: why }, text)
    for (const done of this.stopped) done()
    this.parts.onEnd(status)
  }

  // --- telling --------------------------------------------------------------------------------------------------

  private announce(what: Announcement): void {
    switch (what.a) {
      case 'worker-ready':
        this.bootPriority.end(what.worker)
        break
      case 'analysed':
        this.lastJudgement = what.judgement
        break
      case 'rollout-ended':
        this.lastVerdict = this.verdict(what.verdict)
        this.lastJudgement = null
        // Aborted or stopped in the midst of one: it must not go on beside that of the next rollout.
        this.hooks.end(['beforeSpawn', 'beforePromote'], 'the rollout is over')
        if (what.verdict.outcome === 'promoted') this.lastReplaced = what.verdict.other
        this.books.judged(what.verdict)
        this.bans.judged(what.verdict, this.pinned, new Date())
        break
      case 'generation-ended':
        return this.generationEnded(what.generation)
      case 'vacancy':
        this.parts.onTrouble?.(what.reason)
        break
      case 'leaving':
      case 'stopping':
        if (this.handedOver) return
        if (what.a === 'stopping' && what.status === 1) this.parts.onTrouble?.(what.why.join('; '))
        this.stopBy ??= performance.now() + this.announcer.stopBudgetMs()
        break
      default:
    }
    this.announcer.announce(what)
    if (what.a === 'serving') {
      this.listeners.serving()
      this.parts.onServing()
    }
    // A delay without traffic has nothing to tell in between.
    if (what.a === 'leaving') this.parts.notifier.extendTimeout(what.inMs + EXTENSION_MS)
    if (what.a === 'stopping') this.extendWhileStopping()
  }

  get currentGeneration(): GenerationId | null {
    return currentOf(this.state.top)
  }

  /** On which workers listen, or have listened. */
  keys(): string[] {
    return this.listeners.keys()
  }

  statusLine(): string {
    const current = currentOf(this.state.top)
    const generation = this.state.generations.get(current ?? -1)
    if (!generation) return stateOf(this.state)
    const ready = generation.slots.filter((slot) => serves(this.state.workers.get(holder(slot) ?? -1))).length
    const version = this.pinned.get(generation.id)?.version
    const named = version ? ` (${version})` : ''
    return `generation ${generation.id}${named}: ${ready}/${generation.slots.length} workers on ${this.keys().join(', ') || 'no listener'}`
  }

  /** The workers whose pulse the watchdog feels. */
  serving(): WorkerHandle[] {
    const current = currentOf(this.state.top)
    return [...this.handles.values()].filter(
      ({ id, generation }) => generation === current && serves(this.state.workers.get(id)),
    )
  }

  /** How long it takes at most until a blocked worker of the current generation has been found and replaced. */
  remedyMs(): number {
    const policy = this.pinned.get(currentOf(this.state.top) ?? -1)?.policy
    const probe = policy?.probes.liveness
    const found = probe && probe.initialDelayMs + probe.periodMs * probe.failureThreshold + probe.timeoutMs
    return (found ?? WITHOUT_PROBE_MS) + (policy?.startTimeoutMs ?? 0)
  }

  private extendWhileStarting(): void {
    if (this.state.top.k === 'starting') this.parts.notifier.extendTimeout(EXTENSION_MS)
  }

  /** Never past the stop budget: a stop that hangs must be ended by the service manager. */
  private extendWhileStopping(): void {
    if (this.stopBy === null || this.state.top.k !== 'stopping') return
    const leftMs = this.stopBy - performance.now()
    if (leftMs > 0) this.parts.notifier.extendTimeout(Math.min(leftMs, EXTENSION_MS))
  }

  // --- replaced by another master, or replacing one (upgrade.ts) --------------------------------------------------

  /** @throws {BindError} a descriptor is not what it is said to be */
  inherit(listeners: readonly BequeathedListener[]): void {
    for (const listener of listeners) this.listeners.inherit(listener)
  }

  inheritKeys(keys: BequeathedKeys): void {
    this.ticketKeys.inherit(keys)
  }

  bequeathKeys(): BequeathedKeys | null {
    return this.ticketKeys.bequeath()
  }

  /** The master before has let go of the listeners. */
  own(): void {
    this.listeners.own()
  }

  /** The master before goes on with the listeners: as `leave`, and nothing of them is touched. */
  giveBack(): void {
    this.listeners.disown()
    this.leave()
  }

  bequeath(): ReturnType<Listeners['bequeath']> & { readonly heritage: Heritage } {
    const { nextGeneration, nextReload, scale, top, generations, history, listened } = this.state
    const slots = generations.get(currentOf(top) ?? -1)?.slots ?? []
    const wants = slots.map(({ wants }) => [...(wants ?? [])])
    const earlier = history.map((id) => ({ id, listened: [...(listened.get(id) ?? [])] }))
    const current = currentOf(top)
    const itself = current === null ? [] : [{ id: current, listened: [...new Set(wants.flat())] }]
    const heritage = {
      ...{ nextGeneration, nextReload, scale, wants },
      history: [...earlier, ...itself].slice(-MAX_HISTORY),
    }
    return { ...this.listeners.bequeath(), heritage }
  }

  /** Of those that can be booted again. */
  bequeathVersions(ids: readonly GenerationId[]): BequeathedVersion[] {
    return ids.flatMap((id) => {
      const pinned = this.pinned.get(id)
      if (pinned === undefined) return []
      const { config: _, identity: __, policy: ___, ...version } = pinned
      return [{ id, ...version }]
    })
  }

  /** They are booted with our settings: those of another usr2 may not be ours. */
  inheritVersions(versions: readonly BequeathedVersion[], { config, identity, policy }: Pinned): void {
    for (const { id, ...version } of versions) this.pinned.set(id, { ...version, config, identity, policy })
  }

  /**
   * A successor serves: every worker drains, as in a stop, but what is held stays open in the other master. Settles when
   * none accepts any more.
   */
  handOver(): Promise<void> {
    this.handedOver = true
    this.listeners.handOver()
    const current = this.currentGeneration
    this.leave()
    return new Promise((resolve) => this.withdrawals.when(current, resolve))
  }
  private handedOver = false

  /** The successor has died. */
  closeHandedOver(): void {
    this.listeners.closeHandedOver()
  }

  /** A stop of this master alone: another one serves on, so the hook that takes the host out of service does not run. */
  leave(): void {
    this.dispatch({ e: 'stop-asked', how: 'replaced' })
  }

  /** What a successor that was killed has left beside our sockets. */
  sweep(pid: number): void {
    this.listeners.sweep(pid)
  }

  // --- the face -------------------------------------------------------------------------------------------------

  reload(
    request: { readonly drop: readonly string[]; readonly wait: Wait },
    asker: Asker,
  ): ReturnType<Face['reload']> {
    const id = ++this.lastAsk
    this.asks.set(id, { asker, wait: request.wait })
    this.dispatch({ e: 'reload-asked', ask: id, drop: request.drop })
    return {
      abort: (reason) => this.dispatch({ e: 'ask-gone', ask: id, reason }),
      detach: () => void this.asks.delete(id),
    }
  }

  rollback({ to, wait }: RollbackRequest, asker: Asker): ReturnType<Face['rollback']> {
    const id = ++this.lastAsk
    this.asks.set(id, { asker, wait })
    this.dispatch({ e: 'rollback-asked', ask: id, to })
    return {
      abort: (reason) => this.dispatch({ e: 'ask-gone', ask: id, reason }),
      detach: () => void this.asks.delete(id),
    }
  }

  order(what: Order, done: (problem: string | null) => void = () => {}): void {
    const id = ++this.lastOrder
    this.orders.set(id, done)
    this.dispatch({ e: 'ordered', order: id, what })
  }

  /** A reload that nobody waits for: by signal. */
  reloadUnattended(): void {
    this.dispatch({ e: 'reload-asked', ask: ++this.lastAsk, drop: [] })
  }

  stop(how: 'graceful' | 'now', done: () => void = () => {}): void {
    this.stopped.push(done)
    if (how === 'now') this.parts.onStopNow?.()
    this.dispatch({ e: 'stop-asked', how })
  }

  get stopping(): boolean {
    return isGoing(this.state.top)
  }

  status(): Status {
    const { state, handles, pinned, startedAt, lastVerdict, lastJudgement } = this
    return statusOf({
      ...{ name: this.parts.config.name, state, handles, pinned, startedAt, lastVerdict, lastJudgement },
      listeners: this.keys(),
      now: performance.now(),
    })
  }

  /** Sums since the start of the master, by generation, for metrics. */
  totals(): readonly GenerationTotals[] {
    return this.books.totals(this.handles.values())
  }

  verdicts(): Verdicts {
    return this.books.verdicts
  }
}
