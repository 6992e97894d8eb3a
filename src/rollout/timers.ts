/** Every timer in a state, by one walk over it. Pure. */
import type { Ms, State, Timer } from './state.ts'

const isTimer = (x: object): x is Timer => 'timerAt' in x

function* timersIn(x: unknown): Generator<Timer> {
  if (typeof x !== 'object' || x === null) return
  if (isTimer(x)) yield x
  else for (const inner of x instanceof Map ? x.values() : Object.values(x)) yield* timersIn(inner)
}

/** When the machine next cares, or null: the one timer that the shell has to keep. */
export function deadline(state: State): Ms | null {
  let first: Ms | null = null
  for (const { timerAt } of timersIn(state)) if (first === null || timerAt < first) first = timerAt
  return first
}

/** The same state with every timer `byMs` later. */
export function postpone<T>(x: T, byMs: Ms): T {
  if (typeof x !== 'object' || x === null || x instanceof Set) return x
  if (isTimer(x)) return { timerAt: x.timerAt + byMs } as T
  if (x instanceof Map) return new Map([...x].map(([key, inner]) => [key, postpone(inner, byMs)])) as T
  if (Array.isArray(x)) return x.map((inner) => postpone(inner, byMs)) as T
  return Object.fromEntries(Object.entries(x).map(([key, inner]) => [key, postpone(inner, byMs)])) as T
}
