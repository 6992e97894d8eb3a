/**
 * The command line of the commands that talk to a master: their options as a table, argv against it, help from it.
 * Pure. (`usr2 run` is a configuration; its flags are in config.ts.)
 */
import { isListenerKey } from './address.ts'
import { NAME, NAME_RULE, parseDuration } from './config.ts'
import { MAX_TIME_MS, nearest } from './config-values.ts'

export interface Option {
  /** With its dashes. */
  readonly flag: string
  /** What stands for its value in the help; without it the option takes none. */
  readonly value?: string
  readonly many?: boolean
  readonly means: string
  /** What a value must be, where not anything will do: the rule, and whether a text keeps it. */
  readonly rule?: { readonly says: string; readonly keeps: (text: string) => boolean }
}

export interface Command {
  readonly name: string
  readonly summary: string
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
export const BOUND_TIME = {
  says: 'a time above 0, such as 500ms, 30s, 5m or 1h',
  keeps: (text: string) => {
    const ms = parseDuration(text)
    return ms !== undefined && ms > 0 && ms <= MAX_TIME_MS
  },
}

export const RELOAD: Command = {
  name: 'reload',
  summary: 'start a new generation from the code on disk and wait for the verdict',
  options: [
    CONTROL,
    NAMED,
    { flag: '--timeout', value: 'TIME', means: 'abort the rollout when it takes longer', rule: BOUND_TIME },
    {
      flag: '--wait',
      value: 'WHAT',
      means: 'promoted (default), or drained: until the last old worker has gone',
      rule: { says: 'promoted or drained', keeps: (text) => text === 'promoted' || text === 'drained' },
    },
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
    JSON_OUT,
  ],
  notes: [
    'Exit status: 0 promoted; 1 rolled back, refused or overtaken, with the reason; 2 bad usage; 3 no master',
    'answers; 4 the master was lost before the verdict. Ctrl-C leaves the rollout to itself; TERM aborts it.',
  ],
}

export const STATUS: Command = {
  name: 'status',
  summary: 'show generations, workers and listeners of a master',
  options: [
    CONTROL,
    NAMED,
    { flag: '--drain', means: 'what old workers did with their connections, and what still holds them' },
    JSON_OUT,
  ],
  notes: ['Exit status: 0 every slot is ready; 1 degraded; 2 bad usage; 3 no master answers.'],
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
  readonly help: boolean
  /** Whole sentences, one for each thing that is wrong. */
  readonly complaints: readonly string[]
}

/** Reads what follows the command's name. Never throws: see `complaints`. */
export function parseArguments(command: Command, argv: readonly string[]): Arguments {
  const values = new Map<string, string[]>()
  const complaints: string[] = []
  let help = false
  for (let at = 0; at < argv.length; at++) {
    const argument = argv[at] ?? ''
    if (argument === '--help' || argument === '-h') {
      help = true
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
  return {
    one: (flag) => values.get(flag)?.[0],
    many: (flag) => values.get(flag) ?? [],
    has: (flag) => values.has(flag),
    help,
    complaints,
  }
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
export function commandUsage({ name, summary, options, notes }: Command): string {
  const rows = options.map(({ flag, value, means }) => [value ? `${flag} ${value}` : flag, means] as const)
  const width = Math.max(...rows.map(([left]) => left.length))
  return [
    `Usage: usr2 ${name} [options]`,
    '',
    `${summary[0]?.toUpperCase()}${summary.slice(1)}.`,
    '',
    ...rows.map(([left, right]) => `  ${left.padEnd(width)}  ${right}`),
    ...(notes.length > 0 ? ['', ...notes] : []),
    '',
  ].join('\n')
}

const SUMMARIES: readonly (readonly [string, string])[] = [
  ['run', 'run an app in the foreground: usr2 run server.js'],
  ...[RELOAD, STATUS, STOP, LS].map(({ name, summary }) => [name, summary] as const),
  ['drill', 'reload an app under load and count what is lost: usr2 drill server.js'],
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
