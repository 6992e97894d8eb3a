/** More slots, or fewer: `usr2 scale`. */
import type { Draft } from './draft.ts'
import { inCommon, listensOn, workersOf } from './questions.ts'
import type { Generation, Slot } from './state.ts'

/** New slots are filled, workers of those that are gone drain, both by `reconcile`. */
export function resize(draft: Draft, generation: Generation, to: number): void {
  const from = generation.slots.length
  if (to === from) return
  const known = generation.slots.map((slot) => listensOn(slot, draft.workers))
  const fresh = Array.from({ length: Math.max(0, to - from) }, (): Slot => {
    return { state: { k: 'vacant', retry: draft.in(0), stillborn: 0 }, deaths: 0, wants: inCommon(known) }
  })
  // What only a worker listened on that goes now would be an address at which nobody ever accepts.
  const claimed = workersOf(draft.workers, generation.id).flatMap(({ slot, claims }) =>
    slot < to ? [] : [...claims.keys()],
  )
  draft.setDropping([...draft.dropping, ...known.slice(to).flat(), ...claimed])
  const policy = { ...generation.policy, slots: to }
  draft.setGeneration({ ...generation, policy, slots: [...generation.slots.slice(0, to), ...fresh] })
  draft.order({ c: 'announce', what: { a: 'scaled', from, to } })
}
