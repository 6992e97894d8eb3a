/** Small parts of a state, for tests that look at one question. */
import type {
  Generation,
  Grant,
  ListenerKey,
  Policy,
  Slot,
  Worker,
  WorkerPhase,
} from '../../src/rollout/state.ts'

export const policy: Policy = {
  slots: 1,
  ready: 'listen',
  startTimeoutMs: 60_000,
  drainTimeoutMs: 30_000,
  shutdownTimeoutMs: 10_000,
  killTimeoutMs: 5_000,
  grantTimeoutMs: 10_000,
  minUptimeMs: 30_000,
  maxRestarts: 8,
  maxDraining: 2,
}

export const booting: Extract<WorkerPhase, { k: 'booting' }> = {
  k: 'booting',
  by: { timerAt: 60_000 },
  settle: null,
  stillborn: 0,
}
export const ready: WorkerPhase = { k: 'ready', since: 100 }
export const held: Grant = { k: 'held' }
export const opening: Grant = { k: 'opening', by: { timerAt: 500 } }
export const open: Grant = { k: 'open' }

export function worker(id: number, phase: WorkerPhase, claims: Record<ListenerKey, Grant> = {}): Worker {
  const grants = new Map(Object.entries(claims))
  return {
    id,
    generation: 1,
    slot: id - 1,
    phase,
    claims: grants,
    listensPrivately: false,
    saidReady: false,
    leadership: 'none',
  }
}

export function slotOf(by: number, wants: readonly ListenerKey[] | null): Slot {
  return { state: { k: 'filled', by }, deaths: 0, wants: wants && new Set(wants) }
}

export function vacant(wants: readonly ListenerKey[] | null): Slot {
  const retry = { timerAt: 200 }
  return { state: { k: 'vacant', retry, stillborn: 0 }, deaths: 1, wants: wants && new Set(wants) }
}

export function generation(slots: readonly Slot[], changes: Partial<Policy> = {}): Generation {
  return { id: 1, policy: { ...policy, slots: slots.length, ...changes }, slots }
}

export const byId = (...workers: Worker[]): Map<number, Worker> =>
  new Map(workers.map((one) => [one.id, one]))
