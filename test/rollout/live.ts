/** One world from its start to its end, with every law asked after every step. */
import type { Command, State } from '../../src/rollout/state.ts'
import { laws } from './laws.ts'
import type { Plan } from './world.ts'
import { World } from './world.ts'

const MAX_STEPS_OF_A_WORLD = 20_000

/** Throws when the value is changed: Maps and Sets too, which Object.freeze leaves open. */
const frozen = new WeakSet<object>()
function freeze(x: unknown): void {
  if (typeof x !== 'object' || x === null || frozen.has(x)) return
  frozen.add(x)
  if (x instanceof Map || x instanceof Set) {
    const refuse = (): never => {
      throw new Error('a state was changed in place')
    }
    for (const change of ['set', 'add', 'delete', 'clear'])
      Object.defineProperty(x, change, { value: refuse })
    for (const inner of x.values()) freeze(inner)
  } else {
    for (const inner of Object.values(x)) freeze(inner)
  }
  Object.freeze(x)
}

/** By then everything asked for has its verdict, where nobody is waited for. */
const REST_MS = 240_000
const REST_SLICE_MS = 3_000

/** Whether a rollout goes on only when an operator says so, or when somebody measures at last. */
function waitsForSomebody({ top }: State): boolean {
  if (top.k !== 'rolling-out') return false
  const { doing } = top.rollout
  return (
    doing.k === 'paused' || doing.k === 'analysing' || (doing.k === 'holding' && doing.until === 'promote')
  )
}

function rest(world: World): void {
  const until = world.now + REST_MS
  for (let slice = 0; world.unanswered.length > 0 && world.now < until; slice++) {
    world.run(world.now + REST_SLICE_MS)
    if (slice % 5 === 4 && waitsForSomebody(world.state))
      world.tell(world.operate(slice < 40 ? { k: 'promote', full: true } : { k: 'abort' }))
  }
  const { unanswered } = world
  if (unanswered.length > 0) throw new Error(`asks ${unanswered.join()} have no verdict`)
}

/** What is counted of a command: in worlds in which nothing goes wrong, or all does, a law proves nothing. */
function named(command: Command): string {
  if (command.c === 'reply') return command.problem === null ? 'obeyed' : 'refused an order'
  if (command.c === 'answer')
    return command.verdict.kind === 'rollback' ? `rollback ${command.verdict.outcome}` : command.c
  if (command.c === 'pin') return command.of === null ? 'pin' : 'pin an earlier one'
  if (command.c === 'run-hook') return command.hook
  if (command.c !== 'announce') return command.c
  const { what } = command
  switch (what.a) {
    case 'rollout-ended':
      return what.verdict.outcome
    case 'analysed':
      return `analysed ${what.judgement.verdict}`
    case 'tired':
      return `tired ${what.tired.why}${what.tired.urgent ? ' urgently' : ''}`
    case 'unready':
      return what.stays ? 'unready stays' : 'unready'
    case 'unparked':
      return `unparked: ${['a rollout begins', 'its time is over', 'its last worker has ended'].includes(what.why) ? what.why : 'crashed'}`
    case 'no-room':
      return what.leaves ? 'no-room leaves' : 'no-room stays'
    default:
      return what.a
  }
}

export function live(plan: Plan, census: Map<string, number>): number {
  const checks = Object.entries(laws(plan))
  const world = new World(plan, (seen) => {
    freeze(seen.before)
    freeze(seen.after)
    freeze(seen.event)
    for (const command of seen.commands) {
      const what = named(command)
      census.set(what, (census.get(what) ?? 0) + 1)
    }
    for (const [law, holds] of checks) {
      try {
        holds(seen)
      } catch (error) {
        const diary = world.diary.slice(-60).join('\n')
        throw new Error(`broken law: ${law}: ${error instanceof Error ? error.message : error}\n${diary}`)
      }
    }
    if (world.steps > MAX_STEPS_OF_A_WORLD) throw new Error('this world does not come to rest')
  })
  world.start()
  world.run(world.operationsEndAt)
  try {
    if (plan.rests) rest(world)
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    throw why.startsWith('broken law') ? error : new Error(`${why}\n${world.diary.slice(-60).join('\n')}`)
  }
  for (const { afterMs, how } of [...plan.stops, { afterMs: 0, how: 'graceful' as const }]) {
    world.run(world.now + afterMs)
    world.tell({ e: 'stop-asked', how })
  }
  world.run(Infinity)
  const left = [...world.processes.keys()]
  if (!world.hasEnded || left.length > 0 || world.unanswered.length > 0) {
    throw new Error(
      `after a stop: ${world.state.top.k}, workers ${left.join()}, asks ${world.unanswered.join()}\n` +
        world.diary.slice(-60).join('\n'),
    )
  }
  return world.steps
}
