/** Questions over a state. Each answers from facts alone and changes nothing. */
import type {
  Generation,
  GenerationId,
  ListenerKey,
  Policy,
  ProbeKind,
  Slot,
  State,
  Top,
  Worker,
  WorkerId,
} from './state.ts'

/** What a question about the whole is asked of: a state, or one under construction. */
type Whole = Pick<State, 'top' | 'generations' | 'workers'>
type Workers = ReadonlyMap<WorkerId, Worker>

export function workersOf(workers: Workers, generation: GenerationId): Worker[] {
  return [...workers.values()].filter((worker) => worker.generation === generation)
}

export function currentOf(top: Top): GenerationId | null {
  return 'current' in top ? top.current : null
}

export function candidateOf(top: Top): GenerationId | null {
  return top.k === 'rolling-out' && 'candidate' in top.rollout.doing ? top.rollout.doing.candidate : null
}

/** A stop was asked for, or it gives up. */
export const isGoing = (top: Top): boolean => top.k === 'leaving' || top.k === 'stopping' || top.k === 'ended'

export const parkedOf = (top: Top): GenerationId | null =>
  top.k === 'steady' || top.k === 'rolling-out' ? (top.parked?.generation ?? null) : null

/** Whether this is a candidate that was parked: alive, and nothing of it is booted before it is current. */
export const comesBack = (top: Top, generation: GenerationId): boolean =>
  top.k === 'rolling-out' && top.rollout.of === generation

/** `parked`: alive and accepting nothing, for an instant rollback. */
export type Role = 'current' | 'candidate' | 'parked' | 'old'

export function roleOf(top: Top, generation: GenerationId): Role {
  if (currentOf(top) === generation) return 'current'
  if (candidateOf(top) === generation) return 'candidate'
  return parkedOf(top) === generation ? 'parked' : 'old'
}

/**
 * The gate, and its reverse: whether a worker of this slot is to accept as far as the rollout is concerned. The
 * candidate's first slots are opened, the current generation's first ones are taken out, share by share.
 */
export function inRotation(top: Top, { generation, slot }: Worker): boolean {
  switch (roleOf(top, generation)) {
    case 'current':
      return top.k !== 'rolling-out' || slot >= top.rollout.out
    case 'candidate':
      return top.k === 'rolling-out' && slot < top.rollout.open
    default:
      return false
  }
}

/** Its readiness probe fails, after it had been ready. */
export const isUnready = (worker: Worker): boolean => worker.probes.readiness?.standing === 'failing'

/** Whether a probe that the policy asks for passes; one that it does not ask for does not stand in the way. */
export function hasPassed(policy: Policy, worker: Worker, kind: ProbeKind): boolean {
  return policy.probes[kind] === undefined || worker.probes[kind]?.standing === 'passing'
}

export function holder(slot: Slot): WorkerId | null {
  return 'by' in slot.state ? slot.state.by : null
}

/** Listeners that a worker of this slot must listen on and does not yet. */
export function missing(slot: Slot, worker: Worker): ListenerKey[] {
  return [...(slot.wants ?? [])].filter((key) => !worker.claims.has(key))
}

/**
 * Whether a booting worker has become ready. All that its slot is known to listen on, no less: a release that
 * forgets its second port would otherwise be promoted, and the old port would accept no one.
 */
export function meetsReadiness(generation: Generation, worker: Worker): boolean {
  const slot = generation.slots[worker.slot]
  if (worker.phase.k !== 'booting' || slot === undefined || missing(slot, worker).length > 0) return false
  if (generation.policy.ready === 'message') return worker.saidReady
  return worker.claims.size > 0 || worker.phase.settle === 'settled'
}

/** Ready, and accepting on everything it listens on. */
export function serves(worker: Worker | undefined): boolean {
  return worker?.phase.k === 'ready' && [...worker.claims.values()].every((grant) => grant.k === 'open')
}

export function accepts(worker: Worker, key: ListenerKey): boolean {
  return worker.claims.get(key)?.k === 'open'
}

/** Whether somebody else who is to accept there does: of the current generation, or of a candidate that was granted. */
export function othersAccept({ top, workers }: Whole, worker: Worker, key: ListenerKey): boolean {
  return [...workers.values()].some(
    (other) => other.id !== worker.id && accepts(other, key) && inRotation(top, other) && !isUnready(other),
  )
}

/**
 * Whether a worker can be told to leave and every listener of the current generation still has a worker accepting on
 * it that stays. Scenario: a rollout fails while its first worker accepts already and the current generation has just
 * crashed; the candidate's worker stays until the vacancy is filled.
 */
export function isSpare(whole: Whole, worker: Worker): boolean {
  const { top, generations, workers } = whole
  const current = generations.get(currentOf(top) ?? -1)
  if (current === undefined) return true
  const kept = new Set(current.slots.flatMap((slot) => listensOn(slot, workers)))
  const others = [...workers.values()].filter((other) => {
    const role = roleOf(top, other.generation)
    return other.id !== worker.id && (role === 'current' || role === 'candidate')
  })
  return [...worker.claims.keys()].every(
    (key) => !accepts(worker, key) || !kept.has(key) || others.some((other) => accepts(other, key)),
  )
}

/** Whether the worker can take the place of any other in this slot. */
export function fills(slot: Slot, worker: Worker | undefined): boolean {
  return worker !== undefined && serves(worker) && missing(slot, worker).length === 0
}

/** What a slot listens on, or did before its worker died. (An app may have closed a listener for good.) */
export function listensOn(slot: Slot, workers: Workers): ListenerKey[] {
  const worker = workers.get(holder(slot) ?? -1)
  return [...(worker?.phase.k === 'ready' ? worker.claims.keys() : (slot.wants ?? []))]
}

/**
 * What a slot that did not exist before must listen on: what all present slots have in common (slot 0 may have an admin
 * port). One alone has nothing in common with another: where it listens on PORT + slot, a second worker would be waited
 * for in vain. Whatever that listens on first makes it ready, as it did the first one.
 */
export function inCommon(known: readonly (readonly ListenerKey[])[]): ReadonlySet<ListenerKey> {
  const [first = []] = known
  return new Set(known.length === 1 ? [] : first.filter((key) => known.every((keys) => keys.includes(key))))
}

/**
 * What each slot of a new generation must listen on: what the same slot of the current one listens on. What only a slot
 * listens on that is no more is wanted of the last one: 3 slots, an admin port in slot 2, a reload to 1 slot would
 * otherwise be promoted with nobody at that port.
 */
export function wantsOf(
  current: Generation,
  workers: Workers,
  slots: number,
  drop: ReadonlySet<ListenerKey>,
): ReadonlySet<ListenerKey>[] {
  const known = current.slots.map((slot) => listensOn(slot, workers).filter((key) => !drop.has(key)))
  const kept = known.slice(0, slots).map((keys) => new Set(keys))
  for (const key of known.slice(slots).flat()) if (!kept.some((keys) => keys.has(key))) kept.at(-1)?.add(key)
  const fresh = Array.from({ length: slots - kept.length }, () => inCommon(known))
  return [...kept, ...fresh]
}

/** For those outside a master that leaves is one that stops: nobody is to come to it any more. */
export function stateOf(state: State): 'starting' | 'steady' | 'rolling-out' | 'stopping' {
  const { k } = state.top
  return k === 'idle' ? 'starting' : k === 'leaving' || k === 'ended' ? 'stopping' : k
}
