/**
 * The command line of the commands that talk to a master: their options as a table, argv against it, help from it.
 * Pure. (`usr2 run` is a configuration; its flags are in config.ts.)
 */
import { isListenerKey } from '../address.ts'
import { NAME, NAME_RULE, parseDuration } from '../config.ts'
import { FLAGS } from '../config/schema.ts'
import { MAX_TIME_MS, nearest } from '../config/values.ts'
import { MAX_SLOTS } from '../master/control/control-wire.ts'

/** What a value must be: the rule in words, and whether a text keeps it. */
export interface Rule {
  readonly says: string
  readonly keeps: (text: string) => boolean
}

export interface Option {
  /** With its dashes. */
  readonly flag: string
  /** What stands for its value in the help; without it the option takes none. */
  readonly value?: string
  readonly many?: boolean
  readonly means: string
  /** Where not anything will do. */
  readonly rule?: Rule
}

export interface Command {
  readonly name: string
  readonly summary: string
  /** The one argument that it must have beside its options. */
  readonly positional?: { readonly value: string; readonly means: string; readonly rule: Rule }
  readonly options: readonly Option[]
  /** What follows the options in the help. */
  readonly notes: readonly string[]
}

const CONTROL: Option = {
  flag: '--control',
  value: 'PATH',
  means: "the master's control socket",
}
const NAMED: Option = {
  flag: '--name',
  value: 'NAME',
  means: "the master's name (default: as `usr2 run` here)",
  rule: { says: NAME_RULE, keeps: (text) => NAME.test(text) },
}
const JSON_OUT: Option = { flag: '--json', means: 'JSON on stdout instead of text' }
export const BOUND_TIME: Rule = {
  says: 'a time above 0, such as 500ms, 30s, 5m or 1h',
  keeps: (text: string) => {
    const ms = parseDuration(text)
    return ms !== undefined && ms > 0 && ms <= MAX_TIME_MS
  },
}

const TIMEOUT: Option = {
  flag: '--timeout',
  value: 'TIME',
  means: 'abort the rollout when it takes longer',
  rule: BOUND_TIME,
}
const WAIT: Option = {
  flag: '--wait',
  value: 'WHAT',
  means: 'promoted (default), or drained: until the last old worker has gone',
  rule: { says: 'promoted or drained', keeps: (text) => text === 'promoted' || text === 'drained' },
}
const WATCH: Option = { flag: '--watch', means: 'draw it on the terminal, anew every second' }

const FOLLOWING = [
  'Exit status: 0 promoted; 1 rolled back, refused or overtaken, with the reason; 2 bad usage; 3 no master',
  'answers; 4 the master was lost before the verdict. Ctrl-C leaves the rollout to itself; TERM aborts it.',
]

export const RELOAD: Command = {
  name: 'reload',
  summary: 'start a new generation from the code on disk and wait for the verdict',
  options: [
    CONTROL,
    NAMED,
    TIMEOUT,
    WAIT,
    {
      flag: '--drop',
      value: 'KEY',
      many: true,
      means: 'a listener that may go, such as tcp:0.0.0.0:3000; repeatable',
      rule: {
        says: 'a listener key as `usr2 status` shows it, such as tcp:0.0.0.0:3000 or unix:/run/app.sock',
        keeps: isListenerKey,
      },
    },
    WATCH,
    JSON_OUT,
  ],
  notes: FOLLOWING,
}

export const ROLLBACK: Command = {
  name: 'rollback',
  summary: 'go back to an earlier generation and wait for the verdict',
  options: [
    CONTROL,
    NAMED,
    {
      flag: '--to',
      value: 'N',
      means: 'the generation to go back to (default: the one before the current)',
      rule: { says: 'the number of a generation', keeps: (text) => /^[1-9]\d{0,8}$/.test(text) },
    },
    TIMEOUT,
    WAIT,
    WATCH,
    JSON_OUT,
  ],
  notes: [
    'A parked generation answers again within milliseconds; any other is booted again from its own version.',
    '"usr2 status" lists both.',
    '',
    ...FOLLOWING,
  ],
}

export const UPGRADE: Command = {
  name: 'upgrade',
  summary: 'replace the master itself by the usr2 and the Node.js on disk, with no lost connection',
  options: [
    CONTROL,
    NAMED,
    {
      flag: '--node',
      value: 'PATH',
      means: 'the Node.js that runs the new master (default: the one that a restart would run)',
    },
    { ...TIMEOUT, means: 'abort the upgrade when it takes longer' },
    JSON_OUT,
  ],
  notes: [
    'The new master starts a generation from the code on disk; when that serves, the old master drains and ends.',
    '',
    'Exit status: 0 the new master has taken over; 1 it has not, with the reason, and the old one serves on;',
    '2 bad usage; 3 no master answers; 4 the master was lost before the verdict.',
  ],
}

const ORDERED = [
  'Exit status: 0 done; 1 refused, with the reason; 2 bad usage; 3 no master answers; 4 the master was lost',
  'before it answered. The outcome of the rollout goes to whoever asked for it; "usr2 status --watch" shows it.',
]

export const PROMOTE: Command = {
  name: 'promote',
  summary: 'end the hold, the analysis or the pause that a rollout is in',
  options: [
    CONTROL,
    NAMED,
    { flag: '--full', means: 'every hold and analysis that is to come, too' },
    JSON_OUT,
  ],
  notes: ORDERED,
}

export const PAUSE: Command = {
  name: 'pause',
  summary: 'stop a rollout where it is, once it has reached this share',
  options: [CONTROL, NAMED, JSON_OUT],
  notes: ORDERED,
}

export const RESUME: Command = {
  name: 'resume',
  summary: 'let a paused rollout go on',
  options: [CONTROL, NAMED, JSON_OUT],
  notes: ORDERED,
}

export const ABORT: Command = {
  name: 'abort',
  summary: 'end a rollout as if it had not begun',
  options: [CONTROL, NAMED, JSON_OUT],
  notes: ORDERED,
}

export const SCALE: Command = {
  name: 'scale',
  summary: 'run more workers, or fewer',
  positional: {
    value: 'N|+N|-N',
    means: 'so many workers, or so many more or fewer',
    rule: {
      says: `a number of workers from 1 to ${MAX_SLOTS}, or a change such as +1 or -2`,
      keeps: (text) => /^[+-]?\d{1,4}$/.test(text) && between(1, Math.abs(Number(text)), MAX_SLOTS),
    },
  },
  options: [CONTROL, NAMED, JSON_OUT],
  notes: [
    'Workers that are too many drain. It holds until the next change of "workers" in the configuration.',
    '',
    'Exit status: 0 done; 1 refused, with the reason; 2 bad usage; 3 no master answers; 4 the master was lost',
    'before it answered.',
  ],
}

export const STATUS: Command = {
  name: 'status',
  summary: 'show generations, workers and listeners of a master',
  options: [
    CONTROL,
    NAMED,
    { flag: '--drain', means: 'what old workers did with their connections, and what still holds them' },
    WATCH,
    JSON_OUT,
  ],
  notes: [
    'With --json --watch: a line of JSON every second, also where there is no terminal.',
    '',
    'Exit status: 0 every slot is ready; 1 degraded; 2 bad usage; 3 no master answers.',
  ],
}

export const STOP: Command = {
  name: 'stop',
  summary: 'stop a master gracefully and wait until it has',
  options: [
    CONTROL,
    NAMED,
    { flag: '--now', means: 'do not drain' },
    { flag: '--timeout', value: 'TIME', means: 'wait no longer; the stop goes on', rule: BOUND_TIME },
    JSON_OUT,
  ],
  notes: [
    'Exit status: 0 stopped; 1 not within --timeout; 2 bad usage; 3 no master answers; 4 the master was lost',
    'before it had stopped.',
  ],
}

export const LS: Command = {
  name: 'ls',
  summary: 'list the masters that answer this user',
  options: [JSON_OUT],
  notes: [],
}

export interface Arguments {
  /** The one value of an option, or undefined. */
  one(flag: string): string | undefined
  many(flag: string): readonly string[]
  has(flag: string): boolean
  /** Of a command that has one; empty where it is missing, which is a complaint. */
  readonly positional: string
  readonly help: boolean
  /** Whole sentences, one for each thing that is wrong. */
  readonly complaints: readonly string[]
}

/** Reads what follows the command's name. Never throws: see `complaints`. */
export function parseArguments(command: Command, argv: readonly string[]): Arguments {
  const values = new Map<string, string[]>()
  const complaints: string[] = []
  const { positional } = command
  let help = false
  let given: string | null = null
  for (let at = 0; at < argv.length; at++) {
    const argument = argv[at] ?? ''
    if (argument === '--help' || argument === '-h') {
      help = true
      continue
    }
    // `usr2 scale -1`: a number below zero is no option.
    if (positional !== undefined && (!argument.startsWith('-') || /^-\d/.test(argument))) {
      if (given !== null) {
        complaints.push(
          `"usr2 ${command.name}" takes one ${positional.value}, not also ${JSON.stringify(argument)}.`,
        )
      } else if (!positional.rule.keeps(argument)) {
        complaints.push(`${JSON.stringify(argument)} must be ${positional.rule.says}.`)
      }
      given ??= argument
      continue
    }
    if (!argument.startsWith('-') || argument === '-') {
      complaints.push(`"usr2 ${command.name}" takes no argument ${JSON.stringify(argument)}.`)
      continue
    }
    const [flag = '', ...inline] = argument.split(/=(.*)/s)
    const option = command.options.find((known) => known.flag === flag)
    if (option === undefined) {
      complaints.push(unknownFlag(command, flag))
      // What follows an unknown flag is probably its value: one mistake, one complaint.
      if (inline.length === 0 && argv[at + 1]?.startsWith('-') === false) at++
      continue
    }
    const before = values.get(flag)
    if (option.value === undefined) {
      if (inline.length > 0) complaints.push(`${flag} takes no value.`)
      values.set(flag, [])
      continue
    }
    let value = inline[0]
    if (value === undefined && argv[at + 1]?.startsWith('--') === false) value = argv[++at]
    const complaint = wrongValue(option, value)
    if (complaint !== null) complaints.push(complaint)
    else if (before !== undefined && !option.many) complaints.push(`${flag} was given twice; give it once.`)
    else values.set(flag, [...(before ?? []), value ?? ''])
  }
  if (positional !== undefined && given === null) {
    complaints.push(`"usr2 ${command.name}" needs ${positional.rule.says}.`)
  }
  return {
    one: (flag) => values.get(flag)?.[0],
    many: (flag) => values.get(flag) ?? [],
    has: (flag) => values.has(flag),
    positional: given ?? '',
    help,
    complaints,
  }
}

function between(min: number, value: number, max: number): boolean {
  return value >= min && value <= max
}

function wrongValue({ flag, value: placeholder, rule }: Option, value: string | undefined): string | null {
  const right = rule === undefined ? `a ${placeholder}` : rule.says
  if (value === undefined) return `${flag} was given without a value; it must be ${right}.`
  if (value.trim() === '') return `${flag} is empty; it must be ${right}.`
  if (rule !== undefined && !rule.keeps(value))
    return `${flag} is ${JSON.stringify(value)}; it must be ${right}.`
  return null
}

function unknownFlag(command: Command, flag: string): string {
  const guess = nearest(
    flag,
    command.options.map((option) => option.flag),
  )
  const hint = guess === undefined ? `; "usr2 help ${command.name}" lists them.` : `; did you mean ${guess}?`
  return `${flag} is no option of "usr2 ${command.name}"${hint}`
}

/** The help text of one command. */
export function commandUsage({ name, summary, positional, options, notes }: Command): string {
  const rows = options.map(({ flag, value, means }) => [value ? `${flag} ${value}` : flag, means] as const)
  if (positional !== undefined) rows.unshift([positional.value, positional.means])
  const width = Math.max(...rows.map(([left]) => left.length))
  return [
    `Usage: usr2 ${name}${positional === undefined ? '' : ` <${positional.value}>`} [options]`,
    '',
    `${summary[0]?.toUpperCase()}${summary.slice(1)}.`,
    '',
    ...rows.map(([left, right]) => `  ${left.padEnd(width)}  ${right}`),
    ...(notes.length > 0 ? ['', ...notes] : []),
    '',
  ].join('\n')
}

export interface Split {
  readonly ours: readonly string[]
  /** What `usr2 run` gets: its options, the entry, and all after it. */
  readonly theirs: readonly string[]
  readonly complaints: readonly string[]
}

/** For a command that has options of its own beside those of `usr2 run`, before the entry: which is whose is told by name. */
export function splitOptions(command: Command, argv: readonly string[]): Split {
  const ours: string[] = []
  const theirs: string[] = []
  const complaints: string[] = []
  const known = new Map(command.options.map((option) => [option.flag, option]))
  let at = 0
  for (; at < argv.length; at++) {
    const argument = argv[at] ?? ''
    if (!argument.startsWith('-') || argument === '-' || argument === '--') break
    const flag = argument.split('=', 1)[0] ?? ''
    const own = known.get(flag)
    const help = argument === '--help' || argument === '-h'
    const to = own !== undefined || help ? ours : theirs
    if (own === undefined && !help && !FLAGS.has(flag)) {
      const guess = nearest(flag, [...known.keys(), ...FLAGS.keys()])
      complaints.push(
        `${flag} is no option of "usr2 ${command.name}"${guess === undefined ? `; "usr2 help ${command.name}" lists them.` : `; did you mean ${guess}?`}`,
      )
      if (argument === flag && argv[at + 1]?.startsWith('-') === false && argv[at + 2] !== undefined) at++
      continue
    }
    to.push(argument)
    const takesValue = help ? false : own === undefined || own.value !== undefined
    const next = argv[at + 1]
    // As in config.ts: the value of --node-args may begin with dashes.
    const nextIsFlag = next?.startsWith('--') === true && flag !== '--node-args'
    if (takesValue && argument === flag && next !== undefined && !nextIsFlag) {
      to.push(next)
      at++
    }
  }
  return { ours, theirs: [...theirs, ...argv.slice(at)], complaints }
}

const SUMMARIES: readonly (readonly [string, string])[] = [
  ['run', 'run an app in the foreground: usr2 run server.js'],
  ...[RELOAD, ROLLBACK, PROMOTE, PAUSE, RESUME, ABORT, SCALE, STATUS, UPGRADE, STOP, LS].map(
    ({ name, summary }) => [name, summary] as const,
  ),
  ['check', 'would this version start? Boots one worker that nobody can reach: usr2 check server.js'],
  ['drill', 'reload an app under load and count what is lost: usr2 drill server.js'],
  ['systemd', 'the unit of an app: usr2 systemd install server.js, or print'],
  ['help', 'this text, or that of one command: usr2 help reload'],
  ['version', 'the version of usr2'],
]

export const COMMAND_NAMES: readonly string[] = SUMMARIES.map(([name]) => name)

/** The help text of `usr2` itself. */
export function mainUsage(): string {
  return [
    'Usage: usr2 <command> [options]',
    '',
    ...SUMMARIES.map(([name, summary]) => `  ${name.padEnd(8)}  ${summary}`),
    '',
    'A reload is also a signal: kill -USR2 PID. "usr2 help COMMAND" has the options.',
    '',
  ].join('\n')
}

/** What to say to `usr2 <word>` where that is no command. */
export function unknownCommand(word: string): string {
  // The mistake of everybody who comes from `node server.js`.
  if (/\.[cm]?[jt]s$|^\.{0,2}\//.test(word)) {
    return `${JSON.stringify(word)} is no command; did you mean "usr2 run ${word}"?`
  }
  const guess = nearest(word.replace(/^-+/, ''), COMMAND_NAMES)
  const what = `${JSON.stringify(word)} is no ${word.startsWith('-') ? 'option of usr2' : 'command'}`
  if (guess !== undefined) return `${what}; did you mean "usr2 ${guess}"?`
  return `${what}; commands are ${COMMAND_NAMES.join(', ')}.`
}
