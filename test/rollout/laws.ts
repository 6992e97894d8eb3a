/** The laws of the machine. Each is asked after every step of a world, and throws a sentence where it is broken. */
import { isDeepStrictEqual } from 'node:util'
import {
  candidateOf,
  currentOf,
  isUnready,
  listensOn,
  parkedOf,
  roleOf,
  serves,
} from '../../src/rollout/questions.ts'
import type {
  Amount,
  Analysis,
  Command,
  Generation,
  GenerationId,
  Hook,
  ListenerKey,
  Ms,
  Policy,
  ReloadId,
  State,
  Tally,
  Worker,
  WorkerId,
} from '../../src/rollout/state.ts'
import { step } from '../../src/rollout/step.ts'
import { deadline } from '../../src/rollout/timers.ts'
import type { Plan, Quality, Seen } from './world.ts'
import { figuresOf } from './world.ts'

export type Law = (seen: Seen) => void

const isUp = (worker: Worker): boolean => worker.phase.k === 'booting' || worker.phase.k === 'ready'
const isStopping = (state: State): boolean => state.top.k === 'stopping' || state.top.k === 'ended'
const slotsOf = (generation: Generation | undefined): number => generation?.slots.length ?? 0
const whyOf = (worker: Worker | undefined): string =>
  worker !== undefined && 'why' in worker.phase ? worker.phase.why : 'it does not leave'
const accepts = (worker: Worker, key: ListenerKey): boolean =>
  worker.phase.k === 'ready' && worker.claims.get(key)?.k === 'open'

/** Whether the rollout lets a worker of this place accept. */
function isIn({ top }: State, worker: Worker): boolean {
  if (worker.generation === currentOf(top)) return top.k !== 'rolling-out' || worker.slot >= top.rollout.out
  return top.k === 'rolling-out' && worker.generation === candidateOf(top) && worker.slot < top.rollout.open
}

/** Slots of a hundred, and for neither a surge nor an unavailability one unavailable (Kubernetes, ResolveFenceposts). */
const surgeOf = ({ k, n }: Amount, slots: number): number =>
  k === 'workers' ? n : Math.ceil((n * slots) / 100)
function unavailableOf({ maxSurge, maxUnavailable: { k, n } }: Policy, slots: number): number {
  const unavailable = k === 'workers' ? n : Math.floor((n * slots) / 100)
  return unavailable === 0 && surgeOf(maxSurge, slots) === 0 ? 1 : unavailable
}

const policyOf = (state: State, worker: Worker | undefined): Policy | undefined =>
  state.generations.get(worker?.generation ?? -1)?.policy

/** The rollout that runs, and the two generations, once there is a candidate. */
function rolling(state: State) {
  const { top, generations } = state
  const candidate = generations.get(candidateOf(top) ?? -1)
  const current = generations.get(currentOf(top) ?? -1)
  if (top.k !== 'rolling-out' || !candidate || !current) return null
  return { rollout: top.rollout, candidate, current, isUnpark: top.rollout.of === candidate.id }
}

/** The share that it is at, or was at last. */
function shareOf({ plan, at, doing }: Extract<State['top'], { k: 'rolling-out' }>['rollout']): number {
  const isOver = doing.k === 'holding' || doing.k === 'analysing' || doing.k === 'paused'
  return Math.max(
    0,
    ...plan.slice(0, isOver ? at : at + 1).map((step) => (step.k === 'share' ? step.percent : 0)),
  )
}

const mayLead = (state: State, worker: Worker): boolean =>
  worker.phase.k === 'ready' && worker.generation === currentOf(state.top)

/** What a measurement says of limits that `bad` breaks and `good` keeps, all of them (plans.ts). */
function expected(analysis: Analysis, candidate: Quality, current: Quality): 'pass' | 'fail' | 'unclear' {
  const said = analysis.limits.map(({ metric, relative }) => {
    const ofTraffic = ['errorRate', 'p50', 'p90', 'p99'].includes(metric)
    const isTold = (quality: Quality): boolean => quality !== 'unknown' && !(ofTraffic && quality === 'few')
    if (!isTold(candidate) || (relative && !isTold(current))) return 'unclear'
    return candidate === 'bad' ? 'fail' : 'pass'
  })
  return said.includes('fail') ? 'fail' : said.includes('unclear') ? 'unclear' : 'pass'
}

function qualityOf(figures: unknown): Quality {
  const qualities = ['good', 'bad', 'few', 'unknown'] as const
  const found = qualities.find((quality) => isDeepStrictEqual(figuresOf(quality), figures))
  if (found === undefined) throw new Error('figures of nobody')
  return found
}

function madeLeader(commands: readonly Command[]): WorkerId[] {
  return commands.flatMap((command) => (command.c === 'lead' ? [command.worker] : []))
}

function ended({
  commands,
}: Seen): (Extract<Command, { c: 'announce' }>['what'] & { a: 'rollout-ended' }) | undefined {
  for (const command of commands) {
    if (command.c === 'announce' && command.what.a === 'rollout-ended') return command.what
  }
  return undefined
}

function must(holds: boolean, otherwise: string): void {
  if (!holds) throw new Error(otherwise)
}

const longestPromiseOf = (plan: Plan): Ms => Math.max(...plan.behaviours.map(({ promised }) => promised ?? 0))

function released(commands: readonly Command[]): ListenerKey[] {
  return commands.flatMap((command) => (command.c === 'release' ? [command.key] : []))
}

const BEGINNINGS: readonly Command['c'][] = [
  'spawn',
  'pin',
  'open',
  'withdraw',
  'probe',
  'warm-up',
  'measure',
  'lead',
]
const FOR_ITS_OWN_SAKE = ['signal', 'limit', 'liveness', 'scaled-down']

/** Whether it has its slot to itself: neither a replacement that is not there yet, nor a worker of a slot that is no more. */
function isHolder(state: State, worker: Worker): boolean {
  const slot = state.generations.get(worker.generation)?.slots[worker.slot]
  return slot !== undefined && 'by' in slot.state && slot.state.by === worker.id
}

/** A law that has to remember something from step to step. One per world. */
export function laws(plan: Plan): Record<string, Law> {
  let exits = 0
  let currentBefore: {
    readonly current: GenerationId
    readonly slots: number
    readonly history: readonly GenerationId[]
    readonly workers: readonly Worker[]
  } | null = null
  let stopsBy: Ms | null = null
  let pinsSinceAsk = 0
  const leftByItself = new Set<WorkerId>()
  const wasCurrent = new Set<ListenerKey>()
  const wasReady = new Set<WorkerId>()
  /** Workers of the current generation that this rollout has taken out. */
  const taken = new Set<WorkerId>()
  const parkedOnce = new Set<GenerationId>()
  const wentBackTo = new Set<GenerationId>()
  const failed = new Set<GenerationId>()
  const hooksRun = new Map<ReloadId, Hook[]>()
  const hooksPassed = new Map<ReloadId, Hook[]>()
  let tally: (Tally & { readonly reload: ReloadId; readonly at: number }) | null = null
  /** Slots of the candidate that were open when the last share began. */
  let openBefore = 0

  return {
    'the last worker that accepts is not taken away'({ world, before, after, commands }) {
      if (isStopping(after)) return
      for (const command of commands) {
        if (
          command.c !== 'drain' &&
          command.c !== 'terminate' &&
          command.c !== 'kill' &&
          command.c !== 'cut' &&
          command.c !== 'withdraw'
        )
          continue
        const process = world.processes.get(command.worker)
        const why = whyOf(after.workers.get(command.worker))
        if (why === 'failed') continue
        for (const key of process?.accepting ?? []) {
          if (command.c === 'withdraw' && command.key !== key) continue
          const wasDropped =
            after.dropping.has(key) ||
            released(commands).includes(key) ||
            (before.top.k === 'rolling-out' && before.top.rollout.drop.has(key))
          // The app of the current generation has closed it for good.
          const isClosed = (after.generations.get(currentOf(after.top) ?? -1)?.slots ?? []).every(
            (slot) => !listensOn(slot, after.workers).includes(key),
          )
          // A candidate that has closed a listener boots again, and accepts on the others meanwhile.
          const isServed = [...after.workers.values()].some(
            (worker) => isUp(worker) && worker.claims.get(key)?.k === 'open',
          )
          must(
            wasDropped || isClosed || isServed,
            `${command.c} of worker ${command.worker} leaves no one to accept on ${key}`,
          )
        }
      }
    },

    'at most two workers live for each slot'({ after }) {
      if (after.top.k === 'idle' || isStopping(after)) return
      const current = after.generations.get(currentOf(after.top) ?? -1)
      const candidate = [...after.generations.values()].find(
        ({ id }) => roleOf(after.top, id) === 'candidate',
      )
      // A parked generation has its own time, and a rollout never begins beside one.
      const live = [...after.workers.values()].filter(
        (worker) => isUp(worker) && ['current', 'candidate'].includes(roleOf(after.top, worker.generation)),
      )
      // Neither has a place, and stays while it alone accepts on something: a replacement that was on its way when the
      // rollout began, and a worker of a slot that is no more.
      const extra = live.filter(
        (worker) =>
          (candidate !== undefined || worker.slot >= slotsOf(current)) &&
          !isHolder(after, worker) &&
          [...worker.claims.values()].some(({ k }) => k !== 'held'),
      )
      const most = slotsOf(current) + (candidate ? slotsOf(candidate) : slotsOf(current)) + extra.length
      must(live.length <= most, `${live.length} workers live, for ${most} places`)
    },

    'at most one candidate: what is neither current nor candidate leaves'({ after }) {
      for (const worker of after.workers.values()) {
        if (!isUp(worker) || roleOf(after.top, worker.generation) !== 'old') continue
        must(worker.phase.k === 'ready', `worker ${worker.id} boots for nothing`)
        const isNeeded = [...worker.claims.keys()].some(
          (key) =>
            accepts(worker, key) &&
            ![...after.workers.values()].some(
              (other) => accepts(other, key) && roleOf(after.top, other.generation) === 'current',
            ),
        )
        must(isNeeded, `worker ${worker.id} of generation ${worker.generation} stays for nothing`)
      }
    },

    'no worker is forgotten'({ world, after, commands }) {
      const known = [...after.workers.keys()].sort()
      const spawned = commands.flatMap((command) => (command.c === 'spawn' ? [command.worker] : []))
      const live = [...world.processes.keys(), ...spawned].sort()
      must(isDeepStrictEqual(known, live), `known are ${known.join()}, alive are ${live.join()}`)
      for (const worker of after.workers.values()) {
        must(after.generations.has(worker.generation), `worker ${worker.id} has lost its generation`)
      }
    },

    'promoted only whole: every slot ready, open, and listening on all that is wanted'(seen) {
      const verdict = ended(seen)?.verdict
      if (verdict?.outcome !== 'promoted') return
      const before = seen.before.generations.get(verdict.current ?? -1)
      must(slotsOf(before) > 0, 'promoted a generation without slots')
      // Of a parked one those come back that live; a slot whose worker has died there is filled afterwards.
      const isUnpark = rolling(seen.before)?.isUnpark === true
      let whole = 0
      for (const [index, slot] of (before?.slots ?? []).entries()) {
        const worker = [...seen.after.workers.values()].find(
          ({ generation, slot, phase }) =>
            generation === verdict.current && slot === index && phase.k === 'ready',
        )
        must(worker === undefined || !isUnready(worker), `promoted with slot ${index} not ready any more`)
        if (worker === undefined && isUnpark) continue
        if (worker === undefined) throw new Error(`promoted without a ready worker in slot ${index}`)
        whole++
        for (const [key, grant] of worker.claims) must(grant.k === 'open', `promoted before ${key} was open`)
        for (const key of slot.wants ?? []) must(worker.claims.has(key), `promoted without ${key}`)
      }
      must(whole > 0, 'promoted with nobody')
    },

    'a rollback from the park waits for no boot'({ after, commands }) {
      const now = rolling(after)
      if (now?.isUnpark !== true) return
      for (const command of commands)
        must(
          command.c !== 'spawn' || command.generation !== now.candidate.id,
          `slot ${'slot' in command ? command.slot : ''} is filled before the promotion`,
        )
      // Told to go by a signal on its way back, a worker serves on all the same, and is replaced after the promotion.
      for (const [index, { state }] of now.candidate.slots.entries())
        must(
          state.k === 'filled' || state.k === 'leaving' || state.k === 'empty',
          `slot ${index} is ${state.k}, and waited for`,
        )
      const back = now.candidate.slots.flatMap(({ state }) =>
        'by' in state ? [after.workers.get(state.by)] : [],
      )
      must(
        back.some((worker) => worker === undefined || !serves(worker) || isUnready(worker)),
        'everyone who came back serves, and something is waited for still',
      )
    },

    'every listener of the current generation is kept through a promotion'(seen) {
      const verdict = ended(seen)?.verdict
      if (verdict?.outcome !== 'promoted' || seen.before.top.k !== 'rolling-out') return
      for (const worker of seen.before.workers.values()) {
        if (worker.generation !== verdict.other || worker.phase.k !== 'ready') continue
        for (const key of worker.claims.keys()) {
          // Where the worker that had it has died in the park, one of the bad version stays until its slot is filled.
          const isUnpark = seen.before.top.rollout.of === verdict.current
          const isKept = [...seen.after.workers.values()].some(
            (other) => (other.generation === verdict.current || isUnpark) && accepts(other, key),
          )
          must(isKept || seen.before.top.rollout.drop.has(key), `promotion lost ${key}`)
        }
      }
    },

    'every ask is answered at most once, and the others wait'({ world, after, commands }) {
      for (const command of commands) {
        if (command.c !== 'answer') continue
        must(world.answers.get(command.ask) === 0, `ask ${command.ask} is answered twice, or was never asked`)
      }
      const answered = new Set(commands.flatMap((command) => (command.c === 'answer' ? [command.ask] : [])))
      const waiting =
        after.top.k === 'rolling-out'
          ? [...after.top.rollout.asks, ...after.top.next.map(({ ask }) => ask)]
          : after.top.k === 'starting'
            ? after.top.next.map(({ ask }) => ask)
            : []
      const open = world.unanswered.filter((ask) => !answered.has(ask))
      must(
        isDeepStrictEqual(waiting.toSorted(), open.toSorted()),
        `${open.join()} wait, ${waiting.join()} are known to`,
      )
    },

    'all that was asked so far is at most one rollout more'({ event, commands, before }) {
      if (event.e === 'reload-asked' || event.e === 'rollback-asked') pinsSinceAsk = 0
      pinsSinceAsk += commands.filter(({ c }) => c === 'pin').length
      must(pinsSinceAsk <= 1, 'the asks that waited were not taken together')
      if (isStopping(before))
        must(pinsSinceAsk === 0 || commands.every(({ c }) => c !== 'pin'), 'pinned in a stop')
    },

    'exit once, last, and only when no worker is left'({ after, commands }) {
      const index = commands.findIndex(({ c }) => c === 'exit')
      if (index === -1) return
      must(++exits === 1, 'a second exit')
      must(after.workers.size === 0, 'exit before the last worker')
      must(index === commands.length - 1, `exit before ${commands.at(-1)?.c}`)
      must(after.generations.size === 0, 'exit with a generation still pinned')
    },

    'nothing begins once a stop was asked for'({ after, commands }) {
      if (!isStopping(after)) return
      for (const { c } of commands) must(!BEGINNINGS.includes(c), `${c} in a stop`)
    },

    'the deadline lies ahead: no busy loop'({ world, after }) {
      const next = world.wakes
      must(next === null || next > after.at, `at ${after.at} it still cares for ${next}`)
      if (after.top.k === 'ended') must(next === null, 'a timer outlives the end')
    },

    'what is remembered of a part of the state is still so: nothing in it was changed in place'({
      world,
      after,
    }) {
      if (world.steps % 5 !== 0) return
      // Nothing is remembered of a copy.
      const walked = deadline(structuredClone(after))
      must(world.wakes === walked, `${world.wakes} remembered, ${walked} in it`)
    },

    'same input, same output'({ world, before, event, after, commands }) {
      // Half of the time of all laws together; what is not pure shows in a fifth of the steps too.
      if (world.steps % 5 !== 0) return
      const again = step(before, event)
      must(
        isDeepStrictEqual(again.state, after) && isDeepStrictEqual(again.commands, commands),
        'it came out otherwise',
      )
    },

    'it gives up only when no worker serves'({ before, event, after, commands }) {
      if (before.top.k !== 'steady' || after.top.k === 'steady' || event.e === 'stop-asked') return
      if (!commands.some((command) => command.c === 'announce' && command.what.a === 'stopping')) return
      for (const worker of before.workers.values()) {
        const isLost = 'worker' in event && event.worker === worker.id
        const hasFailed = whyOf(after.workers.get(worker.id)) === 'failed'
        must(isLost || hasFailed || !serves(worker), `worker ${worker.id} served on`)
      }
    },

    'what was waited for while the machine slept gets its time'({ before, event, after, commands }) {
      if (event.e !== 'overslept') return
      const next = deadline(before)
      if (next === null || next + event.lagMs <= after.at) return
      must(
        deadline(after) === next + event.lagMs && commands.length === 0,
        `${next} became ${deadline(after)}`,
      )
    },

    'time never runs backwards'({ before, after }) {
      must(after.at >= before.at, `${before.at} -> ${after.at}`)
    },

    'a stop ends within the policy’s times'({ world, before, after, commands }) {
      if (!isStopping(before) && isStopping(after)) {
        const longest = (of: (policy: Policy) => Ms): Ms =>
          Math.max(0, ...[...before.generations.values()].map(({ policy }) => of(policy)))
        const stages = 3
        const killMs = 10
        stopsBy =
          world.now +
          longest(
            ({ drainTimeoutMs, shutdownTimeoutMs, killTimeoutMs }) =>
              Math.max(drainTimeoutMs, longestPromiseOf(plan)) + shutdownTimeoutMs + killTimeoutMs,
          ) +
          stages * world.lateMs +
          killMs -
          world.givenMs
      }
      if (isStopping(after) && after.top.k !== 'ended' && stopsBy !== null) {
        must(
          world.now <= stopsBy + world.givenMs,
          `still stopping at ${world.now}, the times allow ${stopsBy}`,
        )
      }
      for (const { c } of commands)
        if (before.top.k === 'ended') must(c === 'answer' || c === 'reply', `${c} after the end`)
    },

    'a rollout that fails leaves the current generation as it was'(seen) {
      const { before, after, event, commands } = seen
      if (event.e === 'worker-exited' || event.e === 'replace-asked' || event.e === 'unclaimed') {
        leftByItself.add(event.worker)
      }
      if (!isStopping(after)) {
        for (const command of commands) {
          if (command.c !== 'drain') continue
          const worker = after.workers.get(command.worker)
          if (worker?.generation !== currentOf(after.top)) continue
          // A replacement that the candidate makes needless. Or the rollout goes slot by slot, in which workers of the
          // current generation leave before the promotion: that is what it is for, and is undone by starting them again.
          const isReplacement = before.workers.has(worker.id) && !isHolder(before, worker)
          const { policy } = (rolling(before) ?? rolling(after))?.candidate ?? {}
          const isBatch = policy?.replaced === 'drained' && !isHolder(after, worker)
          const why = whyOf(worker)
          must(
            why === 'replaced' ? isReplacement || isBatch : FOR_ITS_OWN_SAKE.includes(why),
            `a worker of the current generation drains: ${command.worker}`,
          )
          leftByItself.add(worker.id)
        }
      }
      const verdict = ended(seen)?.verdict
      if (verdict !== undefined && verdict.outcome !== 'promoted' && currentBefore !== null) {
        const { current, slots, history } = currentBefore
        must(verdict.current === current, `generation ${verdict.current} answers, before it ${current} did`)
        if (!isStopping(after)) {
          must(
            isDeepStrictEqual(after.history, history),
            `history ${history.join()} -> ${after.history.join()}`,
          )
          const generation = after.generations.get(current)
          must(slotsOf(generation) === slots, `${slots} slots became ${slotsOf(generation)}`)
          for (const [index, { state }] of (generation?.slots ?? []).entries())
            must(state.k !== 'empty', `slot ${index} stays empty`)
        }
        for (const was of currentBefore.workers) {
          if (leftByItself.has(was.id)) continue
          const now = seen.before.workers.get(was.id)
          // It did not accept in time, or did not stop to: decided for its own sake.
          if (whyOf(now) === 'failed') continue
          must(now !== undefined && isUp(now), `worker ${was.id} of the current generation was touched`)
          if (isStopping(after)) continue
          const then = after.workers.get(was.id)
          if (then === undefined || whyOf(then) === 'failed' || isUnready(then)) continue
          // What was parked for a share of the candidate is granted again with the same breath.
          for (const [key, grant] of was.claims) {
            if (grant.k === 'open')
              must(then.claims.get(key)?.k !== 'held', `worker ${was.id} lost its grant of ${key}`)
          }
        }
      }
      const began = commands.some((command) => command.c === 'announce' && command.what.a === 'rollout-began')
      if (began && after.top.k === 'rolling-out') {
        const { current } = after.top
        leftByItself.clear()
        currentBefore = {
          current,
          slots: slotsOf(after.generations.get(current)),
          history: after.history,
          workers: [...after.workers.values()].filter(
            (worker) => worker.generation === current && isUp(worker),
          ),
        }
      }
    },

    'a released listener has no copy left in a worker'({ world, commands }) {
      for (const key of released(commands)) {
        for (const process of world.processes.values()) {
          must(!process.copies.has(key), `${key} is released, worker ${process.id} still has it`)
        }
      }
    },

    'a listener that the current generation listens on is not released'({ after, commands }) {
      for (const key of released(commands)) {
        for (const worker of after.workers.values()) {
          if (worker.generation !== currentOf(after.top)) continue
          must(!worker.claims.has(key), `${key} is released, worker ${worker.id} listens on it`)
        }
      }
    },

    'no listener stays bound for a candidate that was rolled back, or for what was dropped'(seen) {
      const { world, before, after, commands } = seen
      const { top } = after
      if (ended(seen)?.verdict.outcome === 'promoted' && before.top.k === 'rolling-out') {
        for (const key of before.top.rollout.claimed) wasCurrent.add(key)
        for (const key of before.top.rollout.drop) wasCurrent.delete(key)
      }
      const slots = after.generations.get(currentOf(top) ?? -1)?.slots ?? []
      for (const worker of after.workers.values()) {
        if (worker.generation !== currentOf(top)) continue
        for (const key of worker.claims.keys())
          if (worker.slot < slots.length) wasCurrent.add(key)
          else if (!slots.some(({ wants }) => wants?.has(key))) wasCurrent.delete(key)
      }
      if (top.k !== 'steady') return
      for (const key of world.bound) {
        if (wasCurrent.has(key) || after.dropping.has(key) || released(commands).includes(key)) continue
        const isClaimed = [...after.workers.values()].some(({ claims }) => claims.has(key))
        must(isClaimed, `${key} is bound for no one`)
      }
    },

    'never two leaders at the same time'({ world, commands }) {
      for (const id of madeLeader(commands)) {
        const other = [...world.processes.values()].find(
          ({ leadership }) => leadership === 'leads' || leadership === 'steps-down',
        )
        must(other === undefined, `worker ${id} is to lead while worker ${other?.id} does`)
      }
      must(madeLeader(commands).length <= 1, 'two are to lead')
    },

    'only a ready worker of the current generation that asked is made the leader'({
      world,
      after,
      commands,
    }) {
      for (const id of madeLeader(commands)) {
        const worker = after.workers.get(id)
        must(worker !== undefined && mayLead(after, worker), `worker ${id} is to lead`)
        must(world.processes.get(id)?.leadership === 'asked', `worker ${id} did not ask to lead`)
      }
    },

    'whenever someone can lead, someone does'({ world, after, commands }) {
      const leads = [...world.processes.values()].some(
        ({ leadership }) => leadership === 'leads' || leadership === 'steps-down',
      )
      if (leads || madeLeader(commands).length > 0) return
      for (const worker of after.workers.values()) {
        if (!mayLead(after, worker)) continue
        must(
          world.processes.get(worker.id)?.leadership !== 'asked',
          `worker ${worker.id} waits, and nobody leads`,
        )
      }
    },

    'a leader that may lead no more is told so, once'({ world, after, commands }) {
      const told = commands.flatMap((command) => (command.c === 'step-down' ? [command.worker] : []))
      for (const { id, leadership } of world.processes.values()) {
        const worker = after.workers.get(id)
        if (leadership === 'leads' && worker !== undefined) {
          must(told.includes(id) !== mayLead(after, worker), `worker ${id} leads on, or is told for nothing`)
        } else {
          must(!told.includes(id), `worker ${id} does not lead, and is told to lead no more`)
        }
      }
    },

    'at most maxDraining old generations drain'({ after }) {
      const current = after.generations.get(currentOf(after.top) ?? -1)
      if (current === undefined) return
      const draining = [...after.generations.keys()].filter(
        (id) =>
          roleOf(after.top, id) === 'old' &&
          [...after.workers.values()].some(
            (worker) => worker.generation === id && worker.phase.k === 'draining',
          ),
      )
      must(draining.length <= current.policy.maxDraining, `${draining.join()} drain`)
    },

    // --- rollouts -----------------------------------------------------------------------------------------------

    'every order is replied to at once, exactly once'({ world, event, commands }) {
      const replied = commands.flatMap((command) => (command.c === 'reply' ? [command.order] : []))
      const asked = event.e === 'ordered' ? [event.order] : []
      must(isDeepStrictEqual(replied, asked), `asked ${asked.join()}, replied to ${replied.join()}`)
      for (const order of asked) must(world.replies.get(order) === 0, `order ${order} is replied to twice`)
    },

    'an order that is refused changes nothing'({ before, event, after, commands }) {
      if (event.e !== 'ordered') return
      const isRefused = commands.some((command) => command.c === 'reply' && command.problem !== null)
      if (!isRefused || deadline(before) === null || (deadline(before) ?? 0) <= after.at) return
      must(isDeepStrictEqual({ ...before, at: after.at }, after), 'refused, and yet something changed')
    },

    'a worker without a place stays only where it alone accepts'({ after }) {
      const current = after.generations.get(currentOf(after.top) ?? -1)
      for (const worker of after.workers.values()) {
        if (worker.generation !== current?.id || !isUp(worker) || isHolder(after, worker)) continue
        const state = current.slots[worker.slot]?.state
        if (state?.k === 'replacing' && state.with === worker.id) continue
        const isLast = [...worker.claims.keys()].some(
          (key) =>
            worker.claims.get(key)?.k === 'open' &&
            ![...after.workers.values()].some(
              (other) =>
                other.id !== worker.id &&
                other.claims.get(key)?.k === 'open' &&
                // One of a version that is to go accepts only until others do.
                roleOf(after.top, other.generation) !== 'old',
            ),
        )
        must(isLast, `worker ${worker.id} has no place`)
      }
    },

    'abort ends in the state before the rollout'({ before, event, after, commands }) {
      if (event.e !== 'ordered' || event.what.k !== 'abort') return
      const isDone = commands.some((command) => command.c === 'reply' && command.problem === null)
      if (before.top.k !== 'rolling-out') return must(!isDone, 'aborted what does not run')
      must(isDone, 'an abort was refused')
      // What was asked for meanwhile begins.
      const isOver =
        after.top.k === 'steady' ||
        (after.top.k === 'rolling-out' && after.top.rollout.id !== before.top.rollout.id)
      must(isOver && currentOf(after.top) === before.top.current, `after an abort: ${after.top.k}`)
      const candidate = candidateOf(before.top)
      must(
        candidate === null || roleOf(after.top, candidate) === 'old',
        'the candidate is not on its way out',
      )
      for (const slot of after.generations.get(before.top.current)?.slots ?? [])
        must(slot.state.k !== 'empty', 'a slot stays empty')
      for (const worker of after.workers.values()) {
        if (worker.generation === before.top.current) must(isIn(after, worker), `worker ${worker.id} is out`)
      }
    },

    'who is to accept is let accept at once'({ after }) {
      if (isStopping(after)) return
      for (const worker of after.workers.values()) {
        if (worker.phase.k !== 'ready' || !isIn(after, worker) || isUnready(worker)) continue
        for (const [key, grant] of worker.claims)
          must(grant.k !== 'held', `worker ${worker.id} waits to accept on ${key}`)
      }
    },

    'who is out of rotation or not ready accepts only where nobody else would'({ after }) {
      if (isStopping(after)) return
      for (const worker of after.workers.values()) {
        if (isIn(after, worker) && !isUnready(worker)) continue
        if (roleOf(after.top, worker.generation) === 'old') continue
        for (const [key, grant] of worker.claims) {
          if (worker.phase.k !== 'ready' || grant.k !== 'open') continue
          const other = [...after.workers.values()].find(
            (other) =>
              other.id !== worker.id && accepts(other, key) && isIn(after, other) && !isUnready(other),
          )
          must(other === undefined, `worker ${worker.id} accepts on ${key}, and so does worker ${other?.id}`)
        }
      }
    },

    'where a worker of the current generation can accept, somebody does'({ after }) {
      if (isStopping(after)) return
      for (const worker of after.workers.values()) {
        if (worker.phase.k !== 'ready' || worker.generation !== currentOf(after.top)) continue
        for (const [key, grant] of worker.claims) {
          if (grant.k !== 'held') continue
          const someone = [...after.workers.values()].some((other) => {
            const k = isUp(other) ? other.claims.get(key)?.k : undefined
            return k === 'open' || k === 'opening'
          })
          must(someone, `nobody accepts on ${key}, and worker ${worker.id} could`)
        }
      }
    },

    'only who is in rotation is granted, or who accepted before where nobody else does'({
      before,
      after,
      commands,
    }) {
      for (const command of commands) {
        if (command.c !== 'open') continue
        const worker = after.workers.get(command.worker)
        // It may be told to leave by what follows in the same step.
        if (worker === undefined || !isUp(worker)) continue
        // Or to be parked: its withdrawal ends, so it is granted again, and so the last share is reached.
        if (worker.generation === parkedOf(after.top) && worker.generation === currentOf(before.top)) continue
        // One of the current generation that has made room is better than nobody.
        const isLastResort =
          worker.generation === currentOf(after.top) &&
          ![...after.workers.values()].some(
            (other) => other.id !== worker.id && accepts(other, command.key) && isIn(after, other),
          )
        const mayBe = isIn(after, worker) || isLastResort
        must(worker.phase.k === 'ready' && mayBe, `worker ${command.worker} is granted`)
      }
    },

    'a worker that has not passed its probes and its warm-up is never granted'({ world, after, commands }) {
      for (const command of commands) {
        if (command.c !== 'open') continue
        const process = world.processes.get(command.worker)
        const policy = policyOf(after, after.workers.get(command.worker))
        for (const kind of ['startup', 'readiness'] as const) {
          const hasPassed =
            policy?.probes[kind] === undefined || process?.questions.get(kind)?.mayHavePassed === true
          must(hasPassed, `worker ${command.worker} is granted before its ${kind} probe`)
        }
        must(!policy?.warmUp || process?.warmth === 'warm', `worker ${command.worker} is granted cold`)
      }
    },

    'a probe asks a worker that is up, one question of a kind at a time'({ world, before, after, commands }) {
      const asked: string[] = []
      for (const command of commands)
        if (command.c === 'announce' && command.what.a === 'worker-ready') wasReady.add(command.what.worker)
      for (const command of commands) {
        if (command.c !== 'probe') continue
        const { worker: id, probe: kind, nth } = command
        const worker = after.workers.get(id)
        // It may be told to leave by what follows in the same step.
        const was = before.workers.get(id)
        must(was !== undefined && isUp(was), `worker ${id} is not up`)
        must(!asked.includes(`${id} ${kind}`), `worker ${id} is asked twice`)
        asked.push(`${id} ${kind}`)
        const process = world.processes.get(id)
        const open = process?.questions.get(kind)?.open ?? undefined
        must(open === undefined || open.until <= world.now, `worker ${id} is asked again before it answers`)
        must(open === undefined || open.nth < nth, `question ${nth} of worker ${id} comes twice`)
        const isStarted =
          kind === 'startup' ||
          policyOf(after, worker)?.probes.startup === undefined ||
          process?.questions.get('startup')?.mayHavePassed === true
        must(isStarted, `worker ${id} is asked for its ${kind} before it has started`)
        must(
          kind !== 'startup' || process?.questions.get(kind)?.hasPassed !== true,
          `worker ${id} has started long ago`,
        )
        // It may have closed a listener since, as a candidate, and boot again.
        must(kind !== 'liveness' || wasReady.has(id), `worker ${id} is not ready yet`)
      }
    },

    'a warm-up is asked for once'({ world, commands }) {
      for (const command of commands) {
        if (command.c !== 'warm-up') continue
        must(world.processes.get(command.worker)?.warmth === 'cold', `worker ${command.worker} is warm`)
      }
    },

    'a candidate that failed gets no traffic, and has none once the current generation accepts'(seen) {
      const { after, commands } = seen
      const verdict = ended(seen)?.verdict
      const candidate = candidateOf(seen.before.top)
      if (verdict !== undefined && verdict.outcome !== 'promoted' && candidate !== null) failed.add(candidate)
      if (isStopping(after)) return
      for (const command of commands) {
        if (command.c !== 'open') continue
        const { generation = -1 } = after.workers.get(command.worker) ?? {}
        must(!failed.has(generation), `worker ${command.worker} of a failed generation is granted`)
      }
      for (const worker of after.workers.values()) {
        if (!failed.has(worker.generation) || !isUp(worker)) continue
        const isLast = [...worker.claims.keys()].some(
          (key) =>
            accepts(worker, key) &&
            ![...after.workers.values()].some(
              (other) => other.generation === currentOf(after.top) && accepts(other, key),
            ),
        )
        must(isLast, `worker ${worker.id} of a failed generation serves on`)
      }
    },

    'an analysis comes to what its measurements say'(seen) {
      const { before, event, after } = seen
      const now = rolling(before)
      const step = now?.rollout.plan[now.rollout.at]
      if (event.e === 'measured' && now?.rollout.doing.k === 'analysing' && step?.k === 'analyse') {
        const { id, at } = now.rollout
        if (event.reload !== id) return
        const { analysis } = step
        const before = tally?.reload === id && tally.at === at ? tally : { taken: 0, failed: 0, unclear: 0 }
        const said = expected(analysis, qualityOf(event.candidate), qualityOf(event.current))
        const taken = before.taken + 1
        const failures = before.failed + (said === 'fail' ? 1 : 0)
        const unclear = before.unclear + (said === 'unclear' ? 1 : 0)
        tally = { reload: id, at, taken, failed: failures, unclear }
        const isOver = taken >= analysis.count
        const isFailed =
          failures > analysis.failureLimit || (isOver && unclear > 0 && analysis.inconclusive === 'fail')
        const isUnclear = !isFailed && isOver && unclear > 0 && analysis.inconclusive === 'pause'
        const then = after.top.k === 'rolling-out' && after.top.rollout.id === id ? after.top.rollout : null
        // It may have failed for another reason at the same moment.
        const end = ended(seen)?.verdict.outcome
        if (end !== undefined && end !== 'promoted') return
        const text = `${failures} failed and ${unclear} unclear of ${taken}: ${then?.doing.k ?? after.top.k}`
        must(!isFailed || now.candidate.policy.onFailure !== 'rollback', text)
        if (isFailed || isUnclear) must(then?.doing.k === 'paused' && then.at === at, text)
        else if (isOver) must(then === null || then.at > at, text)
        else must(then?.doing.k === 'analysing' && then.at === at, text)
      }
      const then = rolling(after)
      if (then?.rollout.doing.k === 'paused' && then.rollout.at === tally?.at) {
        const { taken, failed, unclear } = then.rollout.doing.tally ?? { taken: 0, failed: 0, unclear: 0 }
        must(taken === tally.taken, `${tally.taken} were taken before the pause, now it is ${taken}`)
        must(failed === tally.failed && unclear === tally.unclear, 'a pause forgets what failed')
      }
      if (then?.rollout.doing.k !== 'analysing' || then.rollout.at !== tally?.at) tally = null
    },

    'a parked generation is granted only by a rollback'({ before, after, event, commands }) {
      const parked = before.top.k === 'steady' ? before.top.parked?.generation : undefined
      if (parked !== undefined) parkedOnce.add(parked)
      if (after.top.k === 'rolling-out' && after.top.rollout.kind === 'rollback') {
        const { of, id } = after.top.rollout
        if (of !== null) wentBackTo.add(of)
        const isNew = before.top.k !== 'rolling-out' || before.top.rollout.id !== id
        const someServe = [...after.workers.values()].some(
          (worker) => worker.generation === currentOf(after.top) && serves(worker),
        )
        must(
          !isNew || event.e === 'rollback-asked' || !someServe,
          'a rollback that nobody asked for, while the current generation serves',
        )
      }
      for (const command of commands) {
        if (command.c !== 'open') continue
        const { generation = -1 } = after.workers.get(command.worker) ?? {}
        must(
          !parkedOnce.has(generation) || wentBackTo.has(generation),
          `worker ${command.worker} of the parked generation ${generation} is granted`,
        )
      }
    },

    'no more is taken from the current generation than the candidate and maxUnavailable make up for'({
      before,
      after,
      commands,
    }) {
      const now = rolling(after)
      if (after.top.k !== 'rolling-out' || isStopping(after)) return taken.clear()
      if (before.top.k === 'rolling-out' && before.top.rollout.id !== after.top.rollout.id) taken.clear()
      for (const command of commands) {
        if (command.c === 'open') taken.delete(command.worker)
        if (command.c !== 'withdraw' && command.c !== 'drain') continue
        const worker = after.workers.get(command.worker)
        if (worker?.generation !== after.top.current) continue
        const slot = after.generations.get(worker.generation)?.slots[worker.slot]
        const isOut =
          command.c === 'withdraw'
            ? !isUnready(worker) && isHolder(after, worker)
            : whyOf(worker) === 'replaced' && slot?.state.k === 'empty' && isHolder(before, worker)
        if (!isOut) continue
        taken.add(worker.id)
      }
      // When it is decided: what alone accepts leaves later, and a candidate that served may be unready by then.
      const was = before.top.k === 'rolling-out' && before.top.rollout.id === after.top.rollout.id
      const outBefore = was ? before.top.rollout.out : 0
      if (now === null || now.rollout.out <= outBefore) return
      const { current, candidate } = now
      const serving = [...after.workers.values()].filter(
        (worker) =>
          worker.generation === candidate.id &&
          isUp(worker) &&
          // One that listens on nothing that we hold serves as well as it ever will.
          (worker.claims.size === 0 || [...worker.claims.values()].some(({ k }) => k === 'open')) &&
          // That it is not ready any more may turn out in the very step that takes the other out.
          (!isUnready(worker) || !isUnready(before.workers.get(worker.id) ?? worker)),
      ).length
      const wanted = Math.min(slotsOf(current), slotsOf(candidate))
      const unavailable =
        candidate.policy.replaced === 'drained' ? unavailableOf(candidate.policy, slotsOf(current)) : 0
      const left = slotsOf(current) - now.rollout.out + serving
      must(
        left >= wanted - unavailable,
        `${now.rollout.out} of ${slotsOf(current)} are taken out, ${serving} of the candidate serve`,
      )
    },

    'never more live than the slots and the surge, where what is replaced is drained'({ after }) {
      const now = rolling(after)
      if (now === null || now.isUnpark || now.candidate.policy.replaced !== 'drained') return
      const { current, candidate, rollout } = now
      const live = [...after.workers.values()].filter(
        (worker) => isUp(worker) && [current.id, candidate.id].includes(worker.generation),
      )
      // It alone accepts on something: it stays until somebody else does. Or it has replaced one that did.
      const exempt = live.filter(
        (worker) =>
          worker.generation === current.id && (worker.slot < rollout.out || worker.slot >= slotsOf(current)),
      )
      const replacements = current.slots.filter(({ state }) => state.k === 'replacing').length
      const most =
        Math.max(slotsOf(current), slotsOf(candidate)) +
        surgeOf(candidate.policy.maxSurge, slotsOf(current)) +
        exempt.length +
        replacements
      must(live.length <= most, `${live.length} live, ${most} may`)
    },

    'a batch opens together, when all of it is ready'({ before, after }) {
      const now = rolling(after)
      if (now === null || now.isUnpark) return
      const was =
        before.top.k === 'rolling-out' && before.top.rollout.id === now.rollout.id
          ? before.top.rollout.open
          : 0
      if (now.rollout.open <= was) return
      for (const worker of after.workers.values()) {
        if (worker.generation !== now.candidate.id || worker.slot < was || worker.slot >= now.rollout.open)
          continue
        must(worker.phase.k === 'ready', `slot ${worker.slot} is not ready, and the others open`)
      }
    },

    'a share is never exceeded by a worker'({ after, commands }) {
      const now = rolling(after)
      // What the current generation loses by itself is no decision of ours: its places count.
      if (
        now === null ||
        now.isUnpark ||
        !commands.some(({ c }) => c === 'open' || c === 'withdraw' || c === 'drain')
      )
        return
      const { rollout, current, candidate } = now
      const open = [...after.workers.values()].filter(
        (worker) =>
          worker.generation === candidate.id &&
          [...worker.claims.values()].some(({ k }) => k === 'open' || k === 'opening'),
      ).length
      const all = open + slotsOf(current) - taken.size
      const percent = shareOf(rollout)
      must(
        percent === 100 || open - 1 < (percent * all) / 100,
        `${open} of ${all} accept for a share of ${percent} %`,
      )
    },

    'hooks run once, before what they are to come before'({ before, event, after, commands }) {
      if (before.top.k === 'rolling-out' && event.e === 'hook-ended') {
        const { id, doing } = before.top.rollout
        const isTold =
          event.reload === id &&
          ((event.hook === 'beforeSpawn' && doing.k === 'before-spawn') ||
            (event.hook === 'beforePromote' && doing.k === 'before-promote'))
        if (isTold && event.failure === null)
          hooksPassed.set(id, [...(hooksPassed.get(id) ?? []), event.hook])
      }
      for (const command of commands) {
        if (command.c !== 'run-hook') continue
        const run = hooksRun.get(command.reload) ?? []
        must(!run.includes(command.hook), `${command.hook} runs twice in ${command.reload}`)
        hooksRun.set(command.reload, [...run, command.hook])
      }
      for (const id of hooksPassed.keys())
        if (before.top.k !== 'rolling-out' || before.top.rollout.id !== id) hooksPassed.delete(id)
      const now = rolling(after)
      const reload = now?.rollout ?? (before.top.k === 'rolling-out' ? before.top.rollout : null)
      const { policy } = now?.candidate ?? rolling(before)?.candidate ?? {}
      if (reload === null || policy === undefined || reload.kind === 'rollback') return
      const lacks = (hook: Hook): boolean =>
        policy.hooks.includes(hook) && !hooksPassed.get(reload.id)?.includes(hook)
      for (const command of commands) {
        if (command.c === 'spawn' && command.generation === now?.candidate.id)
          must(!lacks('beforeSpawn'), 'a worker is started before beforeSpawn has passed')
        if (command.c === 'announce' && command.what.a === 'rollout-ended')
          must(
            command.what.verdict.outcome !== 'promoted' || !lacks('beforePromote'),
            'promoted before beforePromote has passed',
          )
      }
      if (now === null) return
      const { rollout } = now
      const isLast = rollout.plan[rollout.at]?.k === 'share' && shareOf(rollout) === 100
      if (!isLast) openBefore = rollout.open
      else if (rollout.open > openBefore)
        must(!lacks('beforePromote'), 'the last share opens before beforePromote has passed')
    },

    'what is alive or can be gone back to stays pinned'({ world, after, commands }) {
      for (const command of commands) {
        if (command.c === 'unpin') {
          const { generation } = command
          must(world.pins.has(generation), `generation ${generation} is let go twice`)
          must(!after.generations.has(generation), `generation ${generation} is let go, and lives`)
          must(!after.history.includes(generation), `generation ${generation} is let go, and remembered`)
        }
        if (command.c === 'pin' && command.of !== null)
          must(world.pins.has(command.of), `generation ${command.of} is not pinned any more`)
      }
      const gone = commands.flatMap((command) => (command.c === 'unpin' ? [command.generation] : []))
      for (const id of world.pins)
        must(
          after.generations.has(id) || after.history.includes(id) || gone.includes(id),
          `generation ${id} stays pinned for nothing`,
        )
      if (after.top.k === 'ended') must(world.pins.size === gone.length, 'a pin outlives the end')
    },

    'a worker that has no room beside it goes first, and only where enough others serve'({
      before,
      after,
      commands,
    }) {
      const lacksRoom = (worker: Worker | undefined): boolean => {
        const memory = worker?.tired?.memory ?? null
        return memory !== null && memory.workerBytes > memory.freeBytes
      }
      for (const generation of after.generations.values()) {
        for (const [index, { state }] of generation.slots.entries()) {
          if (state.k === 'replacing' && state.why === 'limit') {
            const isNew = commands.some(
              ({ c, ...command }) => c === 'spawn' && 'worker' in command && command.worker === state.with,
            )
            must(!isNew || !lacksRoom(after.workers.get(state.by)), `slot ${index} has two, and room for one`)
          }
          if (state.k !== 'clearing') continue
          must(after.workers.has(state.of), `slot ${index} waits for nobody`)
          const was = before.generations.get(generation.id)?.slots[index]?.state
          if (was?.k === 'clearing' || after.top.k !== 'steady') continue
          const slots = generation.slots.length
          const others = [...after.workers.values()].filter(
            (worker) => worker.generation === generation.id && serves(worker) && !isUnready(worker),
          ).length
          const least = slots - unavailableOf(generation.policy, slots)
          must(others >= least, `slot ${index} is cleared, and ${others} of ${slots} serve`)
        }
      }
    },

    'at most one worker is replaced at a time, and none during a rollout'({ before, after, commands }) {
      const replacingIn = ({ generations }: State): WorkerId[] =>
        [...generations.values()].flatMap(({ slots }) =>
          slots.flatMap(({ state }) =>
            state.k === 'replacing' && state.why !== 'signal' ? [state.with] : [],
          ),
        )
      const clearedIn = ({ generations }: State): number =>
        [...generations.values()].flatMap(({ slots }) => slots.filter(({ state }) => state.k === 'clearing'))
          .length
      const replacing = replacingIn(after)
      // One that had to leave during a rollout that was refused is not the fault of the one that was being replaced before it.
      const asBefore = replacingIn(before).length + clearedIn(before)
      if (after.top.k === 'steady')
        must(
          replacing.length + clearedIn(after) <= Math.max(1, asBefore),
          `${clearedIn(after)} are cleared at the same time`,
        )
      must(replacing.length <= 1, `${replacing.length} are replaced at the same time`)
      if (after.top.k === 'steady') return
      for (const command of commands)
        if (command.c === 'spawn') must(!replacing.includes(command.worker), 'replaced during a rollout')
    },
  }
}
