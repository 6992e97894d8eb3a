/**
 * What the keys of rollouts, probes and limits come to: the short forms that a flag has, turned into what the file
 * has, and the values that follow from others (a strategy's steps). Pure; the shapes are in shapes.ts.
 */
import { isIP } from 'node:net'
import type { ProbeTarget } from '../protocol.ts'
import type { Amount, Analysis, ProbePolicy, Step } from '../rollout/state.ts'

export type Strategy = 'switch' | 'rolling' | 'canary' | 'blueGreen'
export type ProbeSpec = ProbePolicy & { readonly target: ProbeTarget }
export interface HookSpec {
  /** A program and its arguments. */
  readonly command: readonly string[]
}
export interface WarmUp {
  readonly paths: readonly string[]
  /** Requests of each path. */
  readonly count: number
}
export type MetricsAt = { readonly host: string; readonly port: number } | { readonly path: string }

/** A step as it is written: `analyse` alone means the `analysis` of the configuration. */
export type WrittenStep = Exclude<Step, { k: 'analyse' }> | { k: 'analyse'; analysis: Analysis | null }

export const MAX_STEPS = 50

// ---- Short forms --------------------------------------------------------------------------------------------------

const wordsOf = (text: string) => text.split(/[\s,]+/).filter((word) => word !== '')

/** `10% 5m, 30% promote, 60% analyse, 100%`. What is none of these is left for the schema to refuse, as a hold. */
export function stepsFromText(text: string): unknown {
  return wordsOf(text).map((word) =>
    word.endsWith('%') ? { share: word } : word === 'analyse' ? { analyse: true } : { hold: word },
  )
}

/** `errorRate < 1%, p99 < 1.5x`. */
export const analysisFromText = (text: string): unknown => ({
  limits: text.split(',').map((limit) => limit.trim()),
})

/** `/healthz`, `tcp`, `tcp:3000`, `message`, `event-loop`, `none`; other text stays for the schema to refuse. */
export function probeFromText(text: string): unknown {
  const port = /^tcp:(\d+)$/.exec(text)?.[1]
  if (text.startsWith('/')) return { http: { path: text } }
  if (port !== undefined) return { tcp: Number(port) }
  if (text === 'tcp') return { tcp: true }
  if (text === 'message') return { message: true }
  return text === 'event-loop' ? { eventLoop: true } : text
}

/** `50`: of `/`. `/,/search`: ten of each. */
export function warmUpFromText(text: string): unknown {
  if (/^\d+$/.test(text)) return Number(text)
  return text.startsWith('/') ? { paths: text.split(',').map((path) => path.trim()) } : text
}

export function parseAmount(given: string | number): Amount | undefined {
  if (typeof given === 'number') return { k: 'workers', n: given }
  const percent = /^(\d{1,3})%$/.exec(given)?.[1]
  return percent !== undefined && Number(percent) <= 100 ? { k: 'percent', n: Number(percent) } : undefined
}

/** `127.0.0.1:9464`, `[::1]:9464`, `localhost:9464`, `9464` on 127.0.0.1, or the path of a unix socket. */
export function parseMetricsAt(given: string | number): MetricsAt | undefined {
  const text = String(given)
  if (text.includes('/')) return { path: text }
  const match = /^(?:(?:\[([\da-fA-F:.]+)\]|([\w.]+)):)?(\d{1,5})$/.exec(text)
  if (match === null) return undefined
  const [, v6, v4, digits] = match
  const port = Number(digits)
  if (port < 1 || port > 65_535) return undefined
  if (v6 !== undefined) return isIP(v6) === 6 ? { host: v6, port } : undefined
  const host = v4 ?? '127.0.0.1'
  return host === 'localhost' || isIP(host) === 4 ? { host, port } : undefined
}

/** Whether only this machine can connect to it. */
export function isLocal(at: MetricsAt): boolean {
  return 'path' in at || at.host === 'localhost' || at.host === '::1' || at.host.startsWith('127.')
}

// ---- Steps --------------------------------------------------------------------------------------------------------

/** What `steps` must be and is not, as the end of "it must be …"; undefined when it is all right. */
export function wrongSteps(steps: readonly WrittenStep[]): string | undefined {
  if (steps[0]?.k !== 'share') return 'a list that begins with a share'
  const shares = steps.filter((step) => step.k === 'share').map(({ percent }) => percent)
  const notRising = shares.findIndex((share, at) => at > 0 && share <= (shares[at - 1] ?? 0))
  if (notRising !== -1) {
    return `a list of shares that rise, and ${shares[notRising]}% comes after ${shares[notRising - 1]}%`
  }
  if (steps.length + (shares.at(-1) === 100 ? 0 : 1) > MAX_STEPS)
    return `a list of at most ${MAX_STEPS} steps`
  return undefined
}

const share = (percent: number): Step => ({ k: 'share', percent })
const hold = (forMs: number | 'promote'): Step => ({ k: 'hold', forMs })
const minutes = (count: number) => count * 60_000

const NAMED: Readonly<Record<Strategy, readonly Step[]>> = {
  switch: [share(100)],
  rolling: [share(100)],
  canary: [...[10, 30, 60].flatMap((percent) => [share(percent), hold(minutes(5))]), share(100)],
  blueGreen: [share(0), hold('promote'), share(100)],
}

/**
 * The steps of a strategy. The timed holds of a canary that is judged become measurements for as long. Of so many a
 * tenth may fail, also where `failureLimit` says 0: with 30 of them under `p99 < 1.5x` the same code beside itself was
 * rolled back on a busy machine, for one measurement of 58 ms against 18.8.
 */
export function stepsOf(strategy: Strategy, analysis: Analysis | null): readonly Step[] {
  const steps = NAMED[strategy]
  if (strategy !== 'canary' || analysis === null) return steps
  return steps.map((step) => {
    if (step.k !== 'hold' || step.forMs === 'promote') return step
    const count = Math.max(1, Math.floor(step.forMs / analysis.intervalMs))
    const failureLimit = Math.max(analysis.failureLimit, Math.floor(count / 10))
    return { k: 'analyse', analysis: { ...analysis, count, failureLimit } }
  })
}

/** Own steps, to 100%; undefined when one wants the `analysis` that is not there. */
export function ownSteps(
  written: readonly WrittenStep[],
  analysis: Analysis | null,
): readonly Step[] | undefined {
  const steps: Step[] = []
  for (const step of written) {
    if (step.k !== 'analyse') steps.push(step)
    else {
      const its = step.analysis ?? analysis
      if (its === null) return undefined
      steps.push({ k: 'analyse', analysis: its })
    }
  }
  const last = steps.findLast((step) => step.k === 'share')
  return last?.percent === 100 ? steps : [...steps, share(100)]
}

const percent = (n: number): Amount => ({ k: 'percent', n })

/** Kubernetes' defaults for `rolling`; all others bring up the whole candidate beside the current generation. */
export const surgeOf = (strategy: Strategy): Amount => percent(strategy === 'rolling' ? 25 : 100)
export const unavailableOf = (strategy: Strategy): Amount =>
  strategy === 'rolling' ? percent(25) : { k: 'workers', n: 0 }

/** A blue-green deployment is one that can be taken back. */
export const parkForMsOf = (strategy: Strategy): number => (strategy === 'blueGreen' ? minutes(10) : 0)

// ---- Probes -------------------------------------------------------------------------------------------------------

/** A loop that has been blocked for a minute. Garbage collections and long calculations are no reason to kill. */
export const DEFAULT_LIVENESS: ProbeSpec = {
  target: { k: 'event-loop' },
  initialDelayMs: 0,
  periodMs: 10_000,
  timeoutMs: 10_000,
  successThreshold: 1,
  failureThreshold: 6,
}
