/** Small parts of a state, for tests that look at one question. */
import type {
  Generation,
  Grant,
  ListenerKey,
  Policy,
  Rollout,
  Slot,
  Worker,
  WorkerPhase,
} from '../../src/rollout/state.ts'

export const policy: Policy = {
  slots: 1,
  steps: [{ k: 'share', percent: 100 }],
  maxSurge: { k: 'percent', n: 100 },
  maxUnavailable: { k: 'workers', n: 0 },
  replaced: 'parked',
  minReadyMs: 0,
  progressDeadlineMs: 600_000,
  parkForMs: 0,
  onFailure: 'rollback',
  probes: {},
  warmUp: false,
  hooks: [],
  hookTimeoutMs: 60_000,
  stopDelayMs: 0,
  replaceAt: { memoryBytes: null, requests: null, ageMs: null },
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
export const ready: WorkerPhase = { k: 'ready', since: 100, ages: null }
export const held: Grant = { k: 'held' }
export const opening: Grant = { k: 'opening', by: { timerAt: 500 }, withinMs: 500 }
export const open: Grant = { k: 'open' }

export function worker(id: number, phase: WorkerPhase, claims: Record<ListenerKey, Grant> = {}): Worker {
  const grants = new Map(Object.entries(claims))
  return {
    id,
    generation: 1,
    slot: id - 1,
    phase,
    claims: grants,
    wasOpened: [...grants.values()].some(({ k }) => k !== 'held'),
    listensPrivately: false,
    saidReady: false,
    leadership: 'none',
    probes: {},
    warmth: 'cold',
    tired: null,
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

/** A rollout of one step, at its beginning. */
export const rollout: Omit<Rollout, 'doing'> = {
  id: 'r1',
  kind: 'reload',
  of: null,
  asks: [],
  drop: new Set(),
  claimed: new Set(),
  since: 0,
  plan: [{ k: 'share', percent: 100, realPercent: 100, raise: 1, open: 1, out: 1 }],
  at: 0,
  raised: 1,
  open: 0,
  out: 0,
  pause: 'none',
  hooked: 'not-yet',
  why: null,
}
