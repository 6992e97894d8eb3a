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
import { deadline } from '../../src/rollout/timers.ts'
import { initialState } from '../../src/rollout/state.ts'
import type { Announcement, Command, Fact, Policy, State, Verdict, Worker } from '../../src/rollout/state.ts'
import { step } from '../../src/rollout/step.ts'

const usual: Policy = {
  slots: 1,
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
      return [{ e: verb, reload: first, policy: policyOf(words.slice(1)) }]
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

function policyOf(words: readonly string[]): Policy {
  const given = words.map((word) => {
    const [name = '', value = ''] = word.split('=')
    if (!(name in usual)) throw new Error(`no setting: ${name}`)
    return [name, name === 'ready' ? value : msOf(value)]
  })
  return { ...usual, ...(Object.fromEntries(given) as Partial<Policy>) }
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
    told.push(command.c === 'answer' ? `answer a${command.ask}: ${text}` : text)
  }
  return told
}

function wordsOf(command: Exclude<Command, { c: 'answer' }>): string {
  switch (command.c) {
    case 'pin':
      return `pin generation ${command.generation} for ${command.reload}`
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
    case 'crowded-out':
      return `generation ${what.generation} is crowded out`
    case 'generation-ended':
      return `generation ${what.generation} has ended`
    case 'stopping':
      return ['stopping', ...what.why].join(': ')
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
