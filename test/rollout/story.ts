/**
 * A story is a text of scenes. A scene is what happens, a line each, then `----`, then all that follows from it:
 * every command in words, and where the machine stands.
 *
 *     at 0 started slots=2          `at` sets the clock, in milliseconds or as `1.5s`; without it no time passes
 *     claimed w1 tcp:[::]:3000
 *     wait                          the clock goes to the machine's own deadline, and it ticks
 *     ----
 *     start w1 (generation 1, slot 0)
 *     => steady, generation 1; w1 ready; next at 30000
 *
 * Lines that begin with `#` are for the reader.
 */
import { findingText } from '../../src/rollout/analysis.ts'
import { deadline } from '../../src/rollout/timers.ts'
import { initialState } from '../../src/rollout/state.ts'
import { HOOKS, METRICS, PROBES } from '../../src/rollout/state.ts'
import type {
  Amount,
  Announcement,
  Command,
  Fact,
  Figures,
  Limit,
  Order,
  Planned,
  Policy,
  ProbeKind,
  State,
  Step,
  Verdict,
  Worker,
} from '../../src/rollout/state.ts'
import { step } from '../../src/rollout/step.ts'
import { policy as usual } from './builders.ts'

/** The story told again: the same events, with what follows from them now. */
export function retell(text: string): string {
  let state: State = initialState
  let now = 0
  let given: string[] = []
  let followed: Command[] = []
  const told: string[] = []
  let isInOutcome = false
  for (const line of [...text.trimEnd().split('\n'), '']) {
    if (isInOutcome && line !== '') continue
    if (line === '----') {
      isInOutcome = true
      followed = []
      for (const words of given) {
        const [at, facts] = read(words, state, now)
        now = at
        for (const fact of facts) {
          const next = step(state, { at: now, ...fact })
          state = next.state
          followed.push(...next.commands)
        }
      }
      given = []
      told.push(line, ...inWords(followed), standing(state))
      continue
    }
    isInOutcome = false
    if (line !== '' && !line.startsWith('#')) given.push(line)
    told.push(line)
  }
  if (given.length > 0) throw new Error(`no ---- after ${given.join(', ')}`)
  return told.join('\n')
}

// --- reading --------------------------------------------------------------------------------------------------

function read(line: string, state: State, now: number): [at: number, facts: Fact[]] {
  const words = line.split(' ')
  if (words[0] === 'wait') {
    const at = deadline(state)
    if (at === null) throw new Error('the machine waits for nothing')
    return [at, [{ e: 'ticked' }]]
  }
  const isTimed = words[0] === 'at'
  const at = isTimed ? msOf(words[1] ?? '') : now
  const [verb = '', ...rest] = isTimed ? words.slice(2) : words
  return [at, factsOf(verb, rest)]
}

function factsOf(verb: string, words: readonly string[]): Fact[] {
  const [first = '', second = ''] = words
  const worker = Number(first.replace(/^w/, ''))
  const after = (count: number): string => words.slice(count).join(' ')
  switch (verb) {
    case 'started':
      return [{ e: verb, policy: policyOf(words) }]
    case 'reload-asked': {
      const [from = '', to = from] = first.split('..')
      const drop = words.flatMap((word) =>
        word.startsWith('drop=') ? word.slice('drop='.length).split(',') : [],
      )
      const asks = Array.from({ length: askOf(to) - askOf(from) + 1 }, (_, i) => askOf(from) + i)
      return asks.map((ask) => ({ e: verb, ask, drop }))
    }
    case 'ask-gone':
      return [{ e: verb, ask: askOf(first), reason: after(1) }]
    case 'pinned':
      return [{ e: verb, reload: first, policy: policyOf(words.slice(1)), memory: memoryOf(words) }]
    case 'rollback-asked':
      return [{ e: verb, ask: askOf(first), to: second === '' ? null : Number(second) }]
    case 'ordered':
      return [{ e: verb, order: Number(first.replace(/^o/, '')), what: orderOf(words.slice(1)) }]
    case 'hook-ended': {
      const hook = HOOKS.find((name) => name === second)
      if (!hook) throw new Error(`no hook: ${second}`)
      return [{ e: verb, reload: first, hook, failure: after(2) || null }]
    }
    case 'measured': {
      const [candidate = '', current = ''] = after(1).split(' | ')
      return [{ e: verb, reload: first, candidate: figuresOf(candidate), current: figuresOf(current) }]
    }
    case 'probed': {
      const probe = PROBES.find((name) => name === second)
      if (!probe) throw new Error(`no probe: ${second}`)
      return [{ e: verb, worker, probe, nth: Number(words[2]), failure: after(3) || null }]
    }
    case 'warmed':
      return [{ e: verb, worker, failure: after(1) || null }]
    case 'weighed':
      return [
        { e: verb, worker, rssBytes: msOf(second), requests: Number(words[2] ?? 0), memory: memoryOf(words) },
      ]
    case 'pin-failed':
      return [{ e: verb, reload: first, reasons: [after(1)] }]
    case 'stop-asked':
      return [{ e: verb, how: first === 'now' ? 'now' : 'graceful' }]
    case 'claimed':
    case 'unclaimed':
    case 'opened':
    case 'withdrawn':
      return [{ e: verb, worker, key: second }]
    case 'open-failed':
      return [{ e: verb, worker, key: second, reason: after(2) }]
    case 'drain-began':
      return [{ e: verb, worker, timeoutMs: msOf(second) }]
    case 'listened-privately':
    case 'said-ready':
    case 'worker-drained':
    case 'replace-asked':
    case 'leadership-asked':
    case 'leadership-ended':
      return [{ e: verb, worker }]
    case 'worker-exited': {
      const stillborn = second === 'stillborn'
      return [{ e: verb, worker, stillborn, reason: after(stillborn ? 2 : 1) }]
    }
    case 'overslept':
      return [{ e: verb, lagMs: msOf(first) }]
    case 'ticked':
      return [{ e: verb }]
    default:
      throw new Error(`a story knows no "${verb}"`)
  }
}

const askOf = (word: string): number => Number(word.replace(/^a/, ''))

function msOf(word: string): number {
  const ms = word.endsWith('s') ? Number(word.slice(0, -1)) * 1_000 : Number(word)
  if (word === '' || !Number.isFinite(ms)) throw new Error(`no time: ${word}`)
  return ms
}

/** `slots=4 steps=10%,hold:5s,analyse,100% maxSurge=25% probes=readiness,liveness maxMemory=100 free=9 worker=1`. */
function policyOf(words: readonly string[]): Policy {
  return words.reduce<Policy>((policy, word) => {
    const [name = '', value = ''] = word.split(/=(.*)/)
    switch (name) {
      case 'steps':
        return { ...policy, steps: value.split(',').map(stepOf) }
      case 'maxSurge':
      case 'maxUnavailable':
        return { ...policy, [name]: amountOf(value) }
      case 'probes': {
        const kinds = value.split(',') as ProbeKind[]
        const [periodMs, timeoutMs, initialDelayMs] = [1_000, 500, 0]
        const probe = { periodMs, timeoutMs, initialDelayMs, successThreshold: 1, failureThreshold: 3 }
        return { ...policy, probes: Object.fromEntries(kinds.map((kind) => [kind, probe])) }
      }
      case 'hooks':
        return { ...policy, hooks: HOOKS.filter((hook) => value.split(',').includes(hook)) }
      case 'warmUp':
        return { ...policy, warmUp: value === 'yes' }
      case 'maxMemory':
        return { ...policy, replaceAt: { ...policy.replaceAt, memoryBytes: Number(value) } }
      case 'maxRequests':
        return { ...policy, replaceAt: { ...policy.replaceAt, requests: Number(value) } }
      case 'maxAge':
        return { ...policy, replaceAt: { ...policy.replaceAt, ageMs: msOf(value) } }
      case 'free':
      case 'worker':
        return policy
      case 'ready':
      case 'replaced':
      case 'onFailure':
        return { ...policy, [name]: value }
      default:
        if (!(name in usual)) throw new Error(`no setting: ${name}`)
        return { ...policy, [name]: msOf(value) }
    }
  }, usual)
}

const amountOf = (word: string): Amount =>
  word.endsWith('%') ? { k: 'percent', n: Number(word.slice(0, -1)) } : { k: 'workers', n: Number(word) }

/** What an analysis in a story asks for. */
const LIMITS: readonly Limit[] = [
  { metric: 'errorRate', op: '<', value: 0.01, relative: false },
  { metric: 'p99', op: '<', value: 1.5, relative: true },
]

function stepOf(word: string): Step {
  if (word.endsWith('%')) return { k: 'share', percent: Number(word.slice(0, -1)) }
  if (word.startsWith('hold:')) {
    const time = word.slice('hold:'.length)
    return { k: 'hold', forMs: time === 'promote' ? time : msOf(time) }
  }
  if (word !== 'analyse') throw new Error(`no step: ${word}`)
  const analysis = { intervalMs: 10_000, count: 2, failureLimit: 0, minRequests: 20, limits: LIMITS }
  return { k: 'analyse', analysis: { ...analysis, inconclusive: 'pause' } }
}

function memoryOf(words: readonly string[]): { freeBytes: number; workerBytes: number } | null {
  const bytes = (name: string): number =>
    Number(words.find((word) => word.startsWith(`${name}=`))?.slice(name.length + 1)) * 1024 * 1024
  return Number.isNaN(bytes('free')) ? null : { freeBytes: bytes('free'), workerBytes: bytes('worker') }
}

function orderOf([verb = '', arg = '']: readonly string[]): Order {
  switch (verb) {
    case 'promote':
      return { k: verb, full: arg === 'full' }
    case 'pause':
    case 'resume':
    case 'abort':
      return { k: verb }
    case 'scale':
      return /^[+-]/.test(arg) ? { k: 'scale-by', by: Number(arg) } : { k: 'scale', to: Number(arg) }
    default:
      throw new Error(`no order: ${verb}`)
  }
}

/** `requests=100 errorRate=0.1 p99=20`; what is not given is not known. */
function figuresOf(text: string): Figures {
  const given = new Map(text.split(' ').map((word) => word.split('=') as [string, string]))
  const figure = (name: string): number | null => (given.has(name) ? Number(given.get(name)) : null)
  const figures = Object.fromEntries(METRICS.map((name) => [name, figure(name)])) as Omit<Figures, 'requests'>
  return { ...figures, requests: figure('requests') ?? 0 } as Figures
}

// --- telling --------------------------------------------------------------------------------------------------

const seconds = (ms: number): string => `${ms / 1_000} s`

function inWords(commands: readonly Command[]): string[] {
  const told: string[] = []
  // Two hundred who asked get one line.
  let asks: { first: number; last: number; text: string } | null = null
  for (const command of commands) {
    const text = command.c === 'answer' ? inWord(command.verdict) : wordsOf(command)
    if (command.c === 'answer' && asks !== null && asks.text === text && command.ask === asks.last + 1) {
      asks.last = command.ask
      told[told.length - 1] = `answer a${asks.first}..a${asks.last}: ${text}`
      continue
    }
    asks = command.c === 'answer' ? { first: command.ask, last: command.ask, text } : null
    if (text !== '  ()') told.push(command.c === 'answer' ? `answer a${command.ask}: ${text}` : text)
  }
  return told
}

function wordsOf(command: Exclude<Command, { c: 'answer' }>): string {
  switch (command.c) {
    case 'pin': {
      const of = command.of === null ? '' : `, the version of generation ${command.of}`
      return `pin generation ${command.generation} for ${command.reload}${of}`
    }
    case 'withdraw':
      return `let w${command.worker} accept on ${command.key} no more`
    case 'probe':
      return `probe w${command.worker}: ${command.probe} ${command.nth}`
    case 'warm-up':
      return `warm w${command.worker} up`
    case 'look-into':
      return `look into w${command.worker}`
    case 'run-hook':
      return `run ${command.hook}`
    case 'measure':
      return `measure generations ${command.candidate} and ${command.current} over ${seconds(command.overMs)}`
    case 'reply':
      return `reply to o${command.order}: ${command.problem ?? 'done'}`
    case 'spawn':
      return `start w${command.worker} (generation ${command.generation}, slot ${command.slot})`
    case 'open':
      return `let w${command.worker} accept on ${command.key}`
    case 'drain':
      return `tell w${command.worker} to drain`
    case 'cut':
      return `cut off what w${command.worker} still has in flight`
    case 'terminate':
      return `send SIGTERM to w${command.worker}`
    case 'kill':
      return `send SIGKILL to w${command.worker}`
    case 'lead':
      return `let w${command.worker} lead`
    case 'step-down':
      return `tell w${command.worker} to lead no more`
    case 'release':
      return `release ${command.key}`
    case 'unpin':
      return `unpin generation ${command.generation}`
    case 'exit':
      return [`exit ${command.status}`, ...command.why].join(': ')
    case 'announce':
      return `  (${announced(command.what)})`
  }
}

function announced(what: Announcement): string {
  switch (what.a) {
    case 'serving':
      return `generation ${what.generation} serves after ${seconds(what.tookMs)}`
    case 'rollout-began':
      return `${what.reload} began`
    case 'candidate-spawned':
      return `${what.reload}: generation ${what.generation} is brought up`
    case 'shifting':
      return `${what.reload}: generation ${what.generation} is ready, whole`
    case 'rollout-ended':
      return `${what.verdict.reload} ended: ${inWord(what.verdict)}`
    case 'worker-ready':
      return `w${what.worker} is ready`
    case 'vacancy':
      return `slot ${what.slot} is vacant for ${seconds(what.delayMs)}, death ${what.deaths} in a row: ${what.reason}`
    case 'replacement-failed':
      return `slot ${what.slot} keeps its old worker: ${what.reason}`
    case 'planned': {
      const isPlain = what.plan.length === 1 && what.plan[0]?.k === 'share'
      return isPlain ? '' : `${what.reload}: ${what.plan.map(planned).join('; ')}`
    }
    case 'fell-back':
      return `${what.reload}: ${what.why}`
    case 'share-reached':
      return `${what.reload}: step ${what.at} is reached`
    case 'holding':
      return `${what.reload}: step ${what.at} begins`
    case 'analysed': {
      const { verdict, findings, why } = what.judgement
      const figures = findings.map((finding) => `${findingText(finding)}`).join(', ')
      return `${what.reload}: ${verdict}: ${figures}${why === '' ? '' : `; ${why}`}`
    }
    case 'paused':
      return `${what.reload} is paused: ${what.why}`
    case 'resumed':
      return `${what.reload} goes on`
    case 'hook-failed':
      return `${what.hook} failed: ${what.why}`
    case 'unready':
      return `w${what.worker} is not ready any more${what.stays ? ', but stays' : ''}: ${what.why}`
    case 'ready-again':
      return `w${what.worker} is ready again`
    case 'warm-up-failed':
      return `w${what.worker} was not warmed up: ${what.why}`
    case 'tired':
      return `w${what.worker} is to be replaced: ${what.tired.detail}`
    case 'no-room':
      return `w${what.worker} ${what.leaves ? 'leaves first' : 'serves on'}: there is no room for two`
    case 'parked':
      return `generation ${what.generation} is parked for ${seconds(what.forMs)}`
    case 'unparked':
      return `generation ${what.generation} is parked no more: ${what.why}`
    case 'scaled':
      return `${what.from} -> ${what.to} slots`
    case 'crowded-out':
      return `generation ${what.generation} is crowded out`
    case 'generation-ended':
      return `generation ${what.generation} has ended`
    case 'leaving':
      return `stopping in ${seconds(what.inMs)} at most`
    case 'stopping':
      return ['stopping', ...what.why].join(': ')
  }
}

function planned(step: Planned): string {
  switch (step.k) {
    case 'share':
      return `${step.realPercent} % (${step.percent} %): ${step.open} of ${step.raise} accept, ${step.out} out`
    case 'hold':
      return step.forMs === 'promote' ? 'until promoted' : `hold ${seconds(step.forMs)}`
    case 'analyse':
      return 'analyse'
    case 'watch':
      return `watch ${seconds(step.forMs)}`
  }
}

function inWord({ outcome, current, reasons, tookMs }: Verdict): string {
  const answers = current === null ? 'none answers' : `generation ${current} answers`
  return [`${outcome} after ${seconds(tookMs)}, ${answers}`, ...reasons].join('; ')
}

function standing(state: State): string {
  const { top } = state
  const where =
    top.k === 'rolling-out'
      ? `rolling-out (${top.rollout.doing.k}), generation ${top.current}`
      : 'current' in top
        ? `${top.k}, generation ${top.current}`
        : top.k
  const next = deadline(state)
  const workers = [...state.workers.values()].map(({ id, phase, leadership }: Worker) => {
    const leads = leadership === 'leads' || leadership === 'steps-down' ? ` (${leadership})` : ''
    return `w${id} ${phase.k}${leads}`
  })
  return `=> ${[where, workers.join(', '), next === null ? '' : `next at ${next}`].filter(Boolean).join('; ')}`
}
