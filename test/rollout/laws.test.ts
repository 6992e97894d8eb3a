/**
 * The laws of the machine, checked after every step of many random worlds. `SEED=… npx tap run …/laws.test.ts` runs the
 * same worlds again, `STEPS=500000` more of them.
 */
import fc from 'fast-check'
import t from 'tap'
import { live } from './live.ts'
import { plan } from './plans.ts'

const STEPS = Number(process.env.STEPS ?? 100_000)
const SHRINK_MS = Number(process.env.SHRINK_MS ?? 40_000)

/** Worlds in which nothing goes wrong, or all does, prove nothing: each of these happens. */
const RARE = [
  'promoted, rolled-back, refused, overtaken, vacancy, replacement-failed, crowded-out, kill, lead, step-down, cut',
  'terminate, release, withdraw, warm-up, warm-up-failed, look-into, pin an earlier one, rollback promoted',
  'rollback refused, rollback overtaken, rollback rolled-back, obeyed, refused an order, paused, resumed, scaled',
  'fell-back, share-reached, holding, analysed pass, analysed fail, analysed unclear, unready, unready stays',
  'ready-again, parked, tired memory, tired memory urgently, tired liveness urgently, tired requests, tired age',
  // That it crashed, or its last worker ended, is too rare to be relied on: there are stories.
  'unparked: a rollout begins, unparked: its time is over',
  'beforeSpawn, beforePromote, afterPromote, afterRollback, no-room leaves, no-room stays',
].flatMap((line) => line.split(', '))

t.test('the laws hold after every step of every world', async (t) => {
  const seed = Number(process.env.SEED ?? Date.now() % 0x7fffffff)
  let steps = 0
  let worlds = 0
  const census = new Map<string, number>()
  for (let round = 0; steps < STEPS; round++) {
    const property = fc.property(plan, (plan) => {
      steps += live(plan, census)
      worlds++
    })
    try {
      // A failure is shown when it has been shrunk for so long: before tap's own timeout, which would show nothing.
      fc.assert(property, { seed: seed + round, numRuns: 100, interruptAfterTimeLimit: SHRINK_MS })
    } catch (error) {
      t.comment(`SEED=${seed + round}`)
      throw error
    }
  }
  t.comment(`${steps} steps in ${worlds} worlds, SEED=${seed}`)
  t.comment([...census].map(([what, times]) => `${what} ${times}`).join(', '))
  t.ok(steps >= STEPS)
  for (const what of RARE) t.ok((census.get(what) ?? 0) > 0, `${what} happened`)
})
