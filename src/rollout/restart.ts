/** How soon a vacancy is filled again, and when to give up. Pure. */
import type { Ms, Policy, Slot } from './state.ts'

export const BACKOFF_FIRST_MS = 100
/** Past half a minute a longer wait only makes the repair look broken too. */
export const BACKOFF_LAST_MS = 30_000

/** Deaths in a row after one more; a worker that was ready for `minUptimeMs` died of something new. */
export function countDeath(deaths: number, readyForMs: Ms | null, policy: Policy): number {
  return readyForMs !== null && readyForMs >= policy.minUptimeMs ? 1 : deaths + 1
}

/** 100 ms, 200, 400 … 25.6 s, 30 s. */
export function backoffMs(deaths: number): Ms {
  return Math.min(BACKOFF_FIRST_MS * 2 ** Math.max(0, deaths - 1), BACKOFF_LAST_MS)
}

/** True when every slot has failed too often. While any worker serves there is something left to protect. */
export function hopeless(slots: readonly Slot[], policy: Policy): boolean {
  return slots.every((slot) => slot.deaths > policy.maxRestarts)
}
