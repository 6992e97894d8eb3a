/**
 * Does the rollout fit into memory? Asked before it begins, with what one worker takes now and what can still be had:
 * a candidate that the kernel kills, or that makes it kill a current worker, is what nobody may find out by trying. Pure.
 */
import { peakOf, surgeOf, unavailableOf } from './plan.ts'
import type { Planned, Memory, Policy } from './state.ts'

export type Fit =
  | { readonly k: 'fits' }
  /** Slot by slot it does: what to do instead, and why. */
  | { readonly k: 'falls-back'; readonly policy: Policy; readonly why: string }
  | { readonly k: 'refused'; readonly why: string }

export function fit(
  policy: Policy,
  plan: readonly Planned[],
  isPlain: boolean,
  { freeBytes, workerBytes }: Memory,
): Fit {
  const room = Math.floor(freeBytes / workerBytes)
  const surge = surgeOf(policy.maxSurge, policy.slots)
  const needed = policy.replaced === 'parked' ? peakOf(plan) : Math.min(surge, policy.slots)
  if (needed <= room) return { k: 'fits' }
  const figures =
    `${needed} more ${needed === 1 ? 'worker' : 'workers'} of ${mib(workerBytes)} would be started ` +
    `beside the current ones, and ${mib(freeBytes)} can be had`
  const oneByOne = (workers: number, unavailable: Policy['maxUnavailable']): Policy => ({
    ...policy,
    steps: [{ k: 'share', percent: 100 }],
    replaced: 'drained',
    maxSurge: { k: 'workers', n: workers },
    maxUnavailable: unavailable,
  })
  // Holds and analyses are about a second generation beside the first: without room for it they cannot be had.
  if (isPlain && room >= 1) {
    const why = `${figures}: rolling instead, ${room} at a time`
    return { k: 'falls-back', policy: oneByOne(room, policy.maxUnavailable), why }
  }
  if (isPlain && unavailableOf(policy.maxUnavailable, policy.slots) >= 1) {
    const why = `${figures}: rolling instead, each after the one that it replaces`
    return { k: 'falls-back', policy: oneByOne(0, policy.maxUnavailable), why }
  }
  const advice = isPlain
    ? 'free some memory, use fewer workers, or allow maxUnavailable 1'
    : 'free some memory, use fewer workers, or --strategy rolling'
  return { k: 'refused', why: `${figures}; ${advice}` }
}

const mib = (bytes: number): string => `${Math.round(bytes / 1024 / 1024)} MiB`
