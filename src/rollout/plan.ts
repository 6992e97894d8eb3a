/**
 * What a list of steps comes to with the workers that there are. Pure.
 *
 * The share of new connections is the share of the workers that accept. A candidate's workers are added, then take the
 * place of current ones: of 4 workers, 10 % is one of five, so 20 %. What is asked for is reached, and exceeded by less
 * than one worker. A share that would come out as more than twice of what was asked, and more than ten points above, is
 * not what anybody meant by it, and is refused with the smallest that can be had.
 */
import type { Amount, Planned, Policy, Step } from './state.ts'

/** Kubernetes rounds a surge up and an unavailability down, so that of a few workers at least one can be replaced. */
export const surgeOf = (amount: Amount, slots: number): number =>
  amount.k === 'workers' ? amount.n : Math.ceil((amount.n * slots) / 100)
export const unavailableOf = (amount: Amount, slots: number): number =>
  amount.k === 'workers' ? amount.n : Math.floor((amount.n * slots) / 100)

/** Where both come to nothing, no worker could ever be replaced: then one is (Kubernetes, `ResolveFenceposts`). */
export function spareOf({ maxSurge, maxUnavailable }: Policy, slots: number): number {
  const spare = unavailableOf(maxUnavailable, slots)
  return spare === 0 && surgeOf(maxSurge, slots) === 0 ? 1 : spare
}

const TOLERATED_FACTOR = 2
const TOLERATED_POINTS = 10

export interface Plan {
  readonly steps: readonly Planned[]
  /** Sentences; with any of them the rollout does not begin. */
  readonly problems: readonly string[]
}

/** @param slots of the current generation; the candidate has `policy.slots` */
export function planOf(policy: Policy, slots: number): Plan {
  const problems: string[] = []
  const steps: Planned[] = []
  for (const step of policy.steps) {
    if (step.k !== 'share') steps.push(step)
    else {
      const share = shareOf(step.percent, policy, slots)
      const problem = complaint(share, slots, policy)
      if (problem !== null) problems.push(problem)
      steps.push(share)
    }
  }
  const isWhole = steps.some((step) => step.k === 'share' && step.percent === 100)
  if (!isWhole) steps.push(shareOf(100, policy, slots))
  // A batch of those that are replaced one by one has its time after each batch (see `settling`).
  if (policy.minReadyMs > 0 && policy.replaced === 'parked')
    steps.push({ k: 'watch', forMs: policy.minReadyMs })
  return { steps, problems }
}

type Share = Extract<Planned, { k: 'share' }>

function shareOf(percent: number, policy: Policy, slots: number): Share {
  if (percent === 0) return { k: 'share', percent, realPercent: 0, raise: policy.slots, open: 0, out: 0 }
  if (percent === 100) {
    return { k: 'share', percent, realPercent: 100, raise: policy.slots, open: policy.slots, out: slots }
  }
  const places = slots + (surgeOf(policy.maxSurge, slots) > 0 ? 1 : 0)
  const open = Math.min(
    Math.max(1, Math.ceil((percent * places) / 100)),
    policy.slots,
    Math.max(1, places - 1),
  )
  const out = Math.min(slots - 1, Math.max(0, slots - (places - open)))
  const realPercent = Math.round((1000 * open) / (open + slots - out)) / 10
  return { k: 'share', percent, realPercent, raise: open, open, out }
}

function complaint({ percent, realPercent, open, out }: Share, slots: number, policy: Policy): string | null {
  // Its place is not free before the share is reached, and there is no other.
  if (
    policy.replaced === 'drained' &&
    open > out + surgeOf(policy.maxSurge, slots) + Math.max(0, policy.slots - slots)
  ) {
    return (
      `a share of ${percent} % cannot be had with ${slots} ${slots === 1 ? 'worker' : 'workers'} and maxSurge 0; ` +
      'allow maxSurge 1, or use no shares'
    )
  }
  if (realPercent <= percent * TOLERATED_FACTOR || realPercent <= percent + TOLERATED_POINTS) return null
  const { of, workers } = {
    of: Math.round((100 * open) / realPercent),
    workers: slots === 1 ? 'worker' : 'workers',
  }
  return (
    `a share of ${percent} % cannot be had with ${slots} ${workers}: the smallest is ${realPercent} %, ${open} of ${of}; ` +
    'use more workers, or begin with a greater share'
  )
}

/** Whether the whole candidate is to serve at this step or has served before it. */
export const isLastShare = (plan: readonly Planned[], at: number): boolean => {
  const step = plan[at]
  return step?.k === 'share' && step.percent === 100
}

/** The most workers beyond those that serve now that a plan ever has, where what they replace is kept. */
export const peakOf = (plan: readonly Planned[]): number =>
  Math.max(0, ...plan.map((step) => (step.k === 'share' ? step.raise : 0)))

export const isSwitch = (steps: readonly Step[]): boolean =>
  steps.length === 1 && steps[0]?.k === 'share' && steps[0].percent === 100
