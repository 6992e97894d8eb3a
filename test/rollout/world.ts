/**
 * A simulated world for the machine: performs its commands with processes that behave as a plan says, and turns
 * what they do into events. The clock is cranked by hand: to the next thing that happens, or to the machine's own
 * deadline. There is no random number in here: a plan (made by fast-check) decides everything, so that a
 * counterexample shrinks to a short plan and can be replayed.
 *
 * The world keeps its own books of what is true (who lives, who has a copy of a listener, who accepts), apart from
 * what the machine believes. The laws compare the two.
 */
import type {
  AskId,
  Command,
  Event,
  Fact,
  Figures,
  GenerationId,
  ListenerKey,
  Memory,
  Ms,
  Order,
  OrderId,
  Policy,
  ProbeKind,
  State,
  WorkerId,
} from '../../src/rollout/state.ts'
import { initialState } from '../../src/rollout/state.ts'
import { step } from '../../src/rollout/step.ts'
import { deadline } from '../../src/rollout/timers.ts'

const KILL_MS = 3

export type Deed =
  | { readonly k: 'claim'; readonly key: ListenerKey }
  | { readonly k: 'unclaim'; readonly key: ListenerKey }
  | { readonly k: 'listen-privately' }
  | { readonly k: 'say-ready' }
  | { readonly k: 'ask-replacement' }
  | { readonly k: 'ask-leadership' }
  | { readonly k: 'weigh'; readonly rssBytes: number | null; readonly requests: number }
  | { readonly k: 'crash' }
  | { readonly k: 'be-stillborn' }

/** How a question is answered, and when. */
export interface Reply {
  readonly afterMs: Ms | 'never'
  readonly passes: boolean
}

/** What one process does with its life. A deed of a process that is already gone does not happen. */
export interface Behaviour {
  /** Times from its spawn. */
  readonly deeds: readonly { readonly afterMs: Ms; readonly deed: Deed }[]
  /** From the order to open until it accepts and says so. */
  readonly open: Ms | 'never' | 'fails'
  /** From the order to accept no more on a listener until it says that it does not. */
  readonly withdraw: Ms | 'never'
  /** The nth question is answered as the nth of these says; then they begin again. */
  readonly probes: Readonly<Record<ProbeKind, readonly Reply[]>>
  readonly warmUp: Reply
  /** How long a drain may take by what its clients were promised, as it says when it begins to drain. */
  readonly promised: Ms | null
  /** Whether it reports each withdrawal before it reports that it has drained. */
  readonly tellsWithdrawals: boolean
  /** From the order to drain until its last connection has gone. */
  readonly drain: Ms | 'never'
  /** From then until its own shutdown has ended. */
  readonly shutdown: Ms | 'never'
  /** From the order to lead until its functions return by themselves, and from the order to step down. */
  readonly leads: Ms | 'never'
  readonly stepsDown: Ms | 'never'
  /** From SIGTERM. */
  readonly terminate: Ms | 'ignored'
}

export type Operation =
  | { readonly k: 'reload'; readonly times: number; readonly drop: readonly ListenerKey[] }
  | { readonly k: 'take-back'; readonly nth: number }
  | { readonly k: 'replace'; readonly nth: number }
  /** The oldest processes die, by a bug that only the traffic finds. */
  | { readonly k: 'crash'; readonly oldest: number }
  /** One process dies, of whatever generation, at any moment. */
  | { readonly k: 'crash-one'; readonly nth: number }
  /** All processes of the generation that answers: a version that does not live. */
  | { readonly k: 'crash-current' }
  /** So many of the generation that is parked die; then it is gone back to. */
  | { readonly k: 'crash-parked'; readonly workers: number }
  | {
      readonly k: 'weigh'
      readonly nth: number
      readonly rssBytes: number
      readonly requests: number
      readonly memory: Memory | null
    }
  /** One of the orders that make sense at this moment. */
  | { readonly k: 'steer'; readonly nth: number }
  /** `to`: some generation, which may be current, known, forgotten, or none yet; null: the one before. */
  | { readonly k: 'rollback'; readonly to: number | null }
  | { readonly k: 'order'; readonly what: Order }
  /** An answer to what an earlier rollout asked for. */
  | { readonly k: 'stray-reply'; readonly nth: number; readonly fact: ReplyFact }
  /** A fact nobody can explain: of a worker that is unknown or gone, or one that its phase has no use for. */
  | { readonly k: 'stray'; readonly nth: number; readonly fact: StrayFact; readonly key: ListenerKey }
  | { readonly k: 'oversleep'; readonly lagMs: Ms }
  /** A fact with a time before the last one's: `at` never runs backwards. */
  | { readonly k: 'tick-from-the-past' }
  | { readonly k: 'start-again' }

export type StrayFact = Extract<Fact, { worker: WorkerId }>['e']
export type ReplyFact = 'pinned' | 'pin-failed' | 'hook-ended' | 'measured'

export interface Pin {
  readonly afterMs: Ms
  readonly result: Policy | 'fails' | 'never'
  readonly memory: Memory | null
}

/** `bad` is past every limit that a plan asks for, `few` had no traffic to speak of, `unknown` tells nothing. */
export type Quality = 'good' | 'bad' | 'few' | 'unknown'
export interface Measurement {
  readonly afterMs: Ms | 'never'
  readonly candidate: Quality
  readonly current: Exclude<Quality, 'bad'>
}

export interface Plan {
  readonly policy: Policy
  /** The nth process spawned behaves as the nth of these; then they begin again. */
  readonly behaviours: readonly Behaviour[]
  /** The nth rollout is pinned as the nth of these says; then they begin again. */
  readonly pins: readonly Pin[]
  /** The nth hook and the nth measurement, likewise. */
  readonly hooks: readonly Reply[]
  readonly measurements: readonly Measurement[]
  readonly operations: readonly { readonly afterMs: Ms; readonly operation: Operation }[]
  /** How late the shell's timer fires. */
  readonly lateMs: Ms
  /** Whether the stop comes only when everything asked for has had its time. */
  readonly rests: boolean
  readonly stops: readonly { readonly afterMs: Ms; readonly how: 'graceful' | 'now' }[]
}

/** What became of the questions of one kind to one process. */
export interface Questions {
  /** The one that has no answer yet, and until when an answer counts for sure. */
  open: { readonly nth: number; readonly until: Ms } | null
  /** Passed in a row, at most and at least: an answer past its timeout counts while nobody has noticed that. */
  atMost: number
  atLeast: number
  /** Whether it has passed often enough once: perhaps, and for sure. */
  mayHavePassed: boolean
  hasPassed: boolean
}

export interface Process {
  readonly id: WorkerId
  readonly behaviour: Behaviour
  /** Listeners it has claimed and neither closed nor withdrawn: the master cannot release these. */
  readonly copies: Set<ListenerKey>
  readonly accepting: Set<ListenerKey>
  isLeaving: boolean
  isShuttingDown: boolean
  leadership: 'none' | 'asked' | 'leads' | 'steps-down'
  /** How often it was made the leader. */
  terms: number
  readonly questions: Map<ProbeKind, Questions>
  warmth: 'cold' | 'warming' | 'warm'
}

/** One step, between the decision and its effects: the world's books are as they were when it was decided. */
export interface Seen {
  readonly world: World
  readonly before: State
  readonly event: Event
  readonly after: State
  readonly commands: readonly Command[]
}

interface Happening {
  readonly at: Ms
  readonly order: number
  /** What the machine is told, or null when it does not happen after all. */
  readonly happen: () => Fact | null
}

export class World {
  state: State = initialState
  now: Ms = 0
  /** When the machine next cares. */
  wakes: Ms | null = null
  steps = 0
  readonly processes = new Map<WorkerId, Process>()
  /** How often each reload asked for was answered. */
  readonly answers = new Map<AskId, number>()
  /** How often each order was replied to. */
  readonly replies = new Map<OrderId, number>()
  /** Generations that were made and not let go yet. */
  readonly pins = new Set<GenerationId>()
  readonly bound = new Set<ListenerKey>()
  /** Every event and what followed, in words: printed with a broken law. */
  readonly diary: string[] = []
  /** Time that an oversleep gave to every deadline. */
  givenMs = 0
  private readonly plan: Plan
  private readonly look: (seen: Seen) => void
  private queue: Happening[] = []
  private sequence = 0
  private spawned = 0
  private pinned = 0
  private asked = 0
  private hooked = 0
  private measured = 0

  constructor(plan: Plan, look: (seen: Seen) => void) {
    this.plan = plan
    this.look = look
  }

  get hasEnded(): boolean {
    return this.state.top.k === 'ended'
  }
  get lateMs(): Ms {
    return this.plan.lateMs
  }
  get unanswered(): AskId[] {
    return [...this.answers].filter(([, times]) => times === 0).map(([ask]) => ask)
  }

  start(): void {
    this.tell({ e: 'started', policy: this.plan.policy })
    let at = this.now
    for (const { afterMs, operation } of this.plan.operations) {
      at += afterMs
      for (const happen of this.happeningsOf(operation)) this.at(at, happen)
    }
  }

  /** Lets everything happen until `until`, or until nothing happens any more. */
  run(until: Ms): void {
    for (;;) {
      const next = this.queue[0]
      const wakesAt = this.wakes === null ? Infinity : Math.max(this.now, this.wakes + this.plan.lateMs)
      if (Math.min(next?.at ?? Infinity, wakesAt) > until) break
      if (next !== undefined && next.at <= wakesAt) {
        this.queue.shift()
        this.now = Math.max(this.now, next.at)
        const fact = next.happen()
        if (fact !== null) this.tell(fact)
      } else if (wakesAt === Infinity) {
        break
      } else {
        this.now = wakesAt
        this.tell({ e: 'ticked' })
      }
    }
    if (Number.isFinite(until)) this.now = Math.max(this.now, until)
  }

  /** The last thing planned by the operator, apart from the stop. */
  get operationsEndAt(): Ms {
    return this.plan.operations.reduce((sum, { afterMs }) => sum + afterMs, 0)
  }

  tell(fact: Fact, at = this.now): void {
    this.steps++
    const before = this.state
    const event: Event = { at, ...fact }
    const { state: after, commands } = step(before, event)
    this.state = after
    for (const id of after.generations.keys()) if (!before.generations.has(id)) this.pins.add(id)
    // One may come and go in the same step.
    for (const command of commands)
      if (command.c === 'announce' && command.what.a === 'candidate-spawned')
        this.pins.add(command.what.generation)
    this.wakes = deadline(after)
    this.diary.push(`${this.now} ${JSON.stringify(fact)} -> ${after.top.k}`)
    for (const command of commands)
      if (command.c !== 'announce') this.diary.push(`      ${JSON.stringify(command)}`)
    this.look({ world: this, before, event, after, commands })
    for (const command of commands) this.perform(command)
  }

  ask(drop: readonly ListenerKey[]): Fact {
    const ask = ++this.asked
    this.answers.set(ask, 0)
    return { e: 'reload-asked', ask, drop }
  }

  operate(what: Order): Fact {
    const order = this.replies.size + 1
    this.replies.set(order, 0)
    return { e: 'ordered', order, what }
  }

  private askRollback(to: number | null): Fact {
    const ask = ++this.asked
    this.answers.set(ask, 0)
    return { e: 'rollback-asked', ask, to: to === null ? null : to % (this.state.nextGeneration + 1) }
  }

  private at(at: Ms, happen: () => Fact | null): void {
    const happening = { at, order: this.sequence++, happen }
    const later = this.queue.findIndex((other) => other.at > at)
    this.queue.splice(later === -1 ? this.queue.length : later, 0, happening)
  }

  private soon(afterMs: Ms | 'never' | 'ignored', happen: () => Fact | null): void {
    if (typeof afterMs === 'number') this.at(this.now + afterMs, happen)
  }

  private happeningsOf(operation: Operation): (() => Fact | null)[] {
    const nthLive = (nth: number): Process | undefined =>
      [...this.processes.values()][nth % this.processes.size || 0]
    switch (operation.k) {
      case 'reload':
        return Array.from({ length: operation.times }, () => () => this.ask(operation.drop))
      case 'take-back':
        return [
          () => ({ e: 'ask-gone', ask: operation.nth % (this.asked + 2), reason: 'the client timed out' }),
        ]
      case 'replace':
        return [
          () => {
            const process = nthLive(operation.nth)
            return process === undefined ? null : { e: 'replace-asked', worker: process.id }
          },
        ]
      case 'crash':
        return Array.from({ length: operation.oldest }, () => () => {
          const [process] = this.processes.values()
          return process === undefined ? null : this.exit(process, 'TypeError: x is not a function', false)
        })
      case 'crash-one':
        return [
          () => {
            const process = nthLive(operation.nth)
            return process === undefined ? null : this.exit(process, 'killed by SIGSEGV', false)
          },
        ]
      case 'weigh':
        return [
          () => {
            const process = nthLive(operation.nth)
            const { rssBytes, requests, memory } = operation
            return process === undefined
              ? null
              : { e: 'weighed', worker: process.id, rssBytes, requests, memory }
          },
        ]
      case 'crash-current':
        return Array.from({ length: 6 }, () => () => {
          const { top, workers } = this.state
          const current = 'current' in top ? top.current : null
          const worker = [...workers.values()].find(({ generation }) => generation === current)
          const process = this.processes.get(worker?.id ?? -1)
          return process === undefined ? null : this.exit(process, 'out of memory', false)
        })
      case 'crash-parked': {
        const parked = (): GenerationId | null =>
          this.state.top.k === 'steady' ? (this.state.top.parked?.generation ?? null) : null
        const crash = (): Fact | null => {
          const worker = [...this.state.workers.values()].find(({ generation }) => generation === parked())
          const process = this.processes.get(worker?.id ?? -1)
          return process === undefined ? null : this.exit(process, 'killed by SIGKILL', false)
        }
        const back = (): Fact | null => (parked() === null ? null : this.askRollback(null))
        return [...Array.from({ length: operation.workers }, () => crash), back]
      }
      case 'steer':
        return [
          () => {
            const { top } = this.state
            const k = top.k === 'rolling-out' ? top.rollout.doing.k : 'steady'
            const full = operation.nth % 3 === 0
            const orders: readonly Order[] =
              k === 'paused'
                ? [{ k: 'resume' }, { k: 'resume' }, { k: 'promote', full }]
                : k === 'holding' || k === 'analysing'
                  ? [{ k: 'pause' }, { k: 'promote', full }]
                  : [{ k: 'pause' }]
            const what = orders[operation.nth % orders.length]
            return what === undefined ? null : this.operate(what)
          },
        ]
      case 'rollback':
        return [() => this.askRollback(operation.to)]
      case 'order':
        return [() => this.operate(operation.what)]
      case 'stray-reply':
        return [() => this.strayReply(operation.fact, operation.nth)]
      case 'stray':
        return [() => this.strayFact(operation.fact, operation.nth, operation.key)]
      case 'oversleep':
        return [
          () => {
            this.now += operation.lagMs
            this.givenMs += operation.lagMs
            return { e: 'overslept', lagMs: operation.lagMs }
          },
        ]
      case 'tick-from-the-past':
        return [() => (this.tell({ e: 'ticked' }, this.now - 5_000), null)]
      case 'start-again':
        return [() => ({ e: 'started', policy: this.plan.policy })]
    }
  }

  private strayReply(e: ReplyFact, nth: number): Fact | null {
    const { top } = this.state
    const reload = `r${nth}`
    if (top.k === 'rolling-out' && top.rollout.id === reload) return null
    switch (e) {
      case 'pinned':
        return { e, reload, policy: this.plan.policy, memory: null }
      case 'pin-failed':
        return { e, reload, reasons: ['too late'] }
      case 'hook-ended':
        return { e, reload, hook: nth % 2 === 0 ? 'beforeSpawn' : 'beforePromote', failure: null }
      case 'measured':
        return { e, reload, candidate: figuresOf('bad'), current: figuresOf('good') }
    }
  }

  private strayFact(e: StrayFact, nth: number, key: ListenerKey): Fact {
    const gone = {
      worker: 1_000_000 + nth,
      key,
      reason: 'nobody knows',
      stillborn: nth % 2 === 0,
      timeoutMs: 1_000,
      probe: 'readiness',
      nth: 1_000 + nth,
      failure: nth % 2 === 0 ? null : 'too late',
      rssBytes: null,
      requests: 0,
      memory: null,
    }
    const live = [...this.processes.values()][nth % (this.processes.size + 1)]
    // A lie of a live process that would make its books wrong is not the machine's to see through.
    const isHarmless =
      live !== undefined &&
      ((e === 'opened' && !live.copies.has(key)) ||
        (e === 'open-failed' && !live.copies.has(key)) ||
        (e === 'withdrawn' && !live.copies.has(key)) ||
        e === 'probed' ||
        e === 'weighed' ||
        (e === 'warmed' && live.warmth !== 'warming') ||
        (e === 'leadership-ended' && live.leadership === 'asked') ||
        (e === 'leadership-asked' && live.leadership !== 'none') ||
        ((e === 'worker-drained' || e === 'drain-began') && !live.isLeaving))
    return { e, ...gone, ...(isHarmless ? { worker: live.id } : {}) } as Fact
  }

  private perform(command: Command): void {
    switch (command.c) {
      case 'pin': {
        const pin = this.plan.pins[this.pinned++ % this.plan.pins.length]
        const reload = command.reload
        if (pin === undefined || pin.result === 'never') return
        const { result } = pin
        const fact: Fact =
          result === 'fails'
            ? { e: 'pin-failed', reload, reasons: ['no such entry'] }
            : { e: 'pinned', reload, policy: result, memory: pin.memory }
        return this.soon(pin.afterMs, () => fact)
      }
      case 'spawn':
        return this.spawn(command.worker)
      case 'open':
        return this.open(command.worker, command.key)
      case 'withdraw':
        return this.withdraw(command.worker, command.key)
      case 'probe':
        return this.probe(command)
      case 'warm-up':
        return this.warmUp(command.worker)
      case 'run-hook': {
        const { hook, reload } = command
        const reply = this.plan.hooks[this.hooked++ % this.plan.hooks.length]
        const failure = reply?.passes ? null : './migrate exited with status 3'
        return this.soon(reply?.afterMs ?? 'never', () => ({ e: 'hook-ended', reload, hook, failure }))
      }
      case 'measure': {
        const { reload } = command
        const measurement = this.plan.measurements[this.measured++ % this.plan.measurements.length]
        if (measurement === undefined) return
        const [candidate, current] = [figuresOf(measurement.candidate), figuresOf(measurement.current)]
        return this.soon(measurement.afterMs, () => ({ e: 'measured', reload, candidate, current }))
      }
      case 'reply':
        this.replies.set(command.order, (this.replies.get(command.order) ?? 0) + 1)
        return
      case 'unpin':
        this.pins.delete(command.generation)
        return
      case 'drain':
        return this.drain(command.worker)
      case 'cut':
        return this.whileAlive(command.worker, 1, (process) => this.drained(process))
      case 'terminate':
        return this.signal(command.worker, (process) => process.behaviour.terminate, 'terminated')
      case 'kill':
        return this.signal(command.worker, () => KILL_MS, 'killed')
      case 'lead':
        return this.lead(command.worker)
      case 'step-down': {
        const process = this.processes.get(command.worker)
        if (process === undefined) return
        process.leadership = 'steps-down'
        return this.endTerm(process, process.behaviour.stepsDown)
      }
      case 'release':
        this.bound.delete(command.key)
        return
      case 'answer':
        this.answers.set(command.ask, (this.answers.get(command.ask) ?? 0) + 1)
        return
      case 'look-into':
      case 'announce':
      case 'exit':
        return
    }
  }

  private whileAlive(id: WorkerId, afterMs: Ms | 'never', act: (process: Process) => Fact | null): void {
    this.soon(afterMs, () => {
      const process = this.processes.get(id)
      return process === undefined ? null : act(process)
    })
  }

  private spawn(id: WorkerId): void {
    const behaviour = this.plan.behaviours[this.spawned++ % this.plan.behaviours.length]
    if (behaviour === undefined) throw new Error('a plan has at least one behaviour')
    this.processes.set(id, {
      id,
      behaviour,
      copies: new Set(),
      accepting: new Set(),
      isLeaving: false,
      isShuttingDown: false,
      leadership: 'none',
      terms: 0,
      questions: new Map(),
      warmth: 'cold',
    })
    for (const { afterMs, deed } of behaviour.deeds)
      this.whileAlive(id, afterMs, (process) => this.doDeed(process, deed))
  }

  private doDeed(process: Process, deed: Deed): Fact | null {
    const worker = process.id
    switch (deed.k) {
      case 'claim':
        if (process.isShuttingDown) return null
        process.copies.add(deed.key)
        this.bound.add(deed.key)
        return { e: 'claimed', worker, key: deed.key }
      case 'unclaim':
        process.copies.delete(deed.key)
        process.accepting.delete(deed.key)
        return { e: 'unclaimed', worker, key: deed.key }
      case 'listen-privately':
        return { e: 'listened-privately', worker }
      case 'say-ready':
        return { e: 'said-ready', worker }
      case 'ask-leadership':
        if (process.leadership !== 'none') return null
        process.leadership = 'asked'
        return { e: 'leadership-asked', worker }
      case 'weigh':
        return { e: 'weighed', worker, rssBytes: deed.rssBytes, requests: deed.requests, memory: null }
      case 'ask-replacement':
        return { e: 'replace-asked', worker }
      case 'crash':
        return this.exit(process, 'TypeError: x is not a function', false)
      case 'be-stillborn':
        return this.exit(process, 'killed by SIGUSR2', true)
    }
  }

  private exit(process: Process, reason: string, stillborn: boolean): Fact {
    this.processes.delete(process.id)
    return { e: 'worker-exited', worker: process.id, reason, stillborn }
  }

  private end(process: Process, afterMs: Ms | 'never' | 'ignored', reason: string): void {
    this.soon(afterMs, () => (this.processes.has(process.id) ? this.exit(process, reason, false) : null))
  }

  private signal(id: WorkerId, endsAfter: (process: Process) => Ms | 'ignored', reason: string): void {
    const process = this.processes.get(id)
    if (process === undefined) return
    process.isLeaving = true
    process.accepting.clear()
    this.end(process, endsAfter(process), reason)
  }

  private open(id: WorkerId, key: ListenerKey): void {
    const open = this.processes.get(id)?.behaviour.open
    this.whileAlive(id, open === 'fails' ? 2 : (open ?? 'never'), (process) => {
      if (process.isLeaving || !process.copies.has(key)) return null
      if (open === 'fails') return { e: 'open-failed', worker: id, key, reason: 'EMFILE' }
      process.accepting.add(key)
      return { e: 'opened', worker: id, key }
    })
  }

  /** It accepts no more as soon as it is told, and says so later; its app listens on, and knows nothing of it. */
  private withdraw(id: WorkerId, key: ListenerKey): void {
    const process = this.processes.get(id)
    if (process === undefined) return
    process.accepting.delete(key)
    this.whileAlive(id, process.behaviour.withdraw, () => {
      return process.copies.has(key) && !process.isLeaving ? { e: 'withdrawn', worker: id, key } : null
    })
  }

  private probe({ worker, probe, nth, timeoutMs }: Extract<Command, { c: 'probe' }>): void {
    const process = this.processes.get(worker)
    if (process === undefined) return
    const asked = process.questions.get(probe) ?? {
      ...{ open: null, atMost: 0, atLeast: 0, mayHavePassed: false, hasPassed: false },
    }
    process.questions.set(probe, asked)
    if (asked.open !== null) asked.atMost = asked.atLeast = 0
    asked.open = { nth, until: this.now + timeoutMs }
    const replies = process.behaviour.probes[probe]
    const reply = replies[(nth - 1) % replies.length]
    if (reply === undefined) return
    const { generation } = this.state.workers.get(worker) ?? {}
    const threshold =
      this.state.generations.get(generation ?? -1)?.policy.probes[probe]?.successThreshold ?? 1
    this.whileAlive(worker, reply.afterMs, () => {
      const isInTime = asked.open?.nth === nth && this.now < asked.open.until
      if (asked.open?.nth === nth) {
        asked.open = null
        asked.atMost = reply.passes ? asked.atMost + 1 : isInTime ? 0 : asked.atMost
      }
      asked.atLeast = reply.passes && isInTime ? asked.atLeast + 1 : 0
      asked.mayHavePassed ||= asked.atMost >= threshold
      asked.hasPassed ||= asked.atLeast >= threshold
      return { e: 'probed', worker, probe, nth, failure: reply.passes ? null : 'answered 503' }
    })
  }

  private warmUp(id: WorkerId): void {
    const process = this.processes.get(id)
    if (process === undefined) return
    process.warmth = 'warming'
    const { afterMs, passes } = process.behaviour.warmUp
    this.whileAlive(id, afterMs, () => {
      process.warmth = 'warm'
      return { e: 'warmed', worker: id, failure: passes ? null : 'GET / answered 500' }
    })
  }

  private lead(id: WorkerId): void {
    const process = this.processes.get(id)
    if (process === undefined) return
    process.leadership = 'leads'
    process.terms++
    this.endTerm(process, process.behaviour.leads)
  }

  private endTerm(process: Process, afterMs: Ms | 'never'): void {
    const { terms } = process
    this.whileAlive(process.id, afterMs, () => {
      if (process.terms !== terms || process.leadership === 'none' || process.leadership === 'asked')
        return null
      process.leadership = 'none'
      return { e: 'leadership-ended', worker: process.id }
    })
  }

  private drain(id: WorkerId): void {
    const process = this.processes.get(id)
    if (process === undefined) return
    process.isLeaving = true
    process.accepting.clear()
    const { promised } = process.behaviour
    if (promised !== null) {
      this.whileAlive(id, 1, () => ({ e: 'drain-began', worker: id, timeoutMs: promised }))
    }
    if (process.behaviour.tellsWithdrawals) {
      for (const key of process.copies) {
        this.whileAlive(id, 1, () =>
          process.copies.delete(key) ? { e: 'withdrawn', worker: id, key } : null,
        )
      }
    }
    this.whileAlive(id, process.behaviour.drain, () => this.drained(process))
  }

  private drained(process: Process): Fact | null {
    if (process.isShuttingDown) return null
    process.isShuttingDown = true
    process.copies.clear()
    this.end(process, process.behaviour.shutdown, 'exited 0')
    return { e: 'worker-drained', worker: process.id }
  }
}

export function figuresOf(quality: Quality): Figures {
  const good = { errorRate: 0, p50: 10, p90: 10, p99: 10, probeSuccess: 1, loopDelay: 1, crashes: 0 }
  const requests = 1_000
  switch (quality) {
    case 'good':
      return { ...good, requests }
    case 'bad':
      return {
        ...{ errorRate: 0.5, p50: 5_000, p90: 5_000, p99: 5_000, probeSuccess: 0.1, loopDelay: 900 },
        ...{ crashes: 9, requests },
      }
    case 'few':
      return { ...good, errorRate: 1, p99: 5_000, requests: 1 }
    case 'unknown':
      return {
        ...{ errorRate: null, p50: null, p90: null, p99: null, probeSuccess: null, loopDelay: null },
        ...{ crashes: null, requests: 0 },
      }
  }
}
