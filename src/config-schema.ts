/**
 * The one schema of the configuration, and what is generated from it: names of flags and variables, the help text
 * (and in config-jsonschema.ts the JSON Schema). A key is added here and nowhere else, and to `Config`, where it
 * gets its unit.
 *
 * valibot, because it is in the master for life: 18 kB of the bundle, where zod was 760 kB and 7 MB of resident
 * memory.
 */
import { availableParallelism } from 'node:os'
import * as v from 'valibot'
import { NAME, NAME_RULE } from './config-paths.ts'
import { DURATION, MAX_TIME_MS, parseDuration } from './config-values.ts'

interface Doc {
  /** One phrase for the help text and the editor. */
  readonly means: string
  /** What would be right: completes "it must be …". */
  readonly right: string
  /** Stands for the value in the help text; none: it is no flag. */
  readonly value?: string
  /** How a flag or variable, which is always text, becomes what the file would have. */
  readonly fromText?: (text: string) => unknown
  /** What holds when it is not given, where that is no constant. */
  readonly otherwise?: string | undefined
}
const docs = new WeakMap<v.GenericSchema, Doc>()
function documented<Schema extends v.GenericSchema>(schema: Schema, doc: Doc): Schema {
  docs.set(schema, doc)
  return schema
}

const MAX_WORKERS = 1024 // far above any machine; stops `--workers 30000` from being a fork bomb
const LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const

// No NUL bytes anywhere: spawn(2) would throw on them much later. One schema object per key: docs hang on it.
const text = () => v.pipe(v.string(), v.regex(/^[^\u0000]*[^\s\u0000][^\u0000]*$/))
const list = () => v.optional(v.array(v.pipe(v.string(), v.regex(/^[^\u0000]*$/))), [])
const whole = (min: number, max = Number.MAX_SAFE_INTEGER) =>
  v.pipe(v.number(), v.integer(), v.minValue(min), v.maxValue(max))
const number = (text: string) => (/^-?\d+$/.test(text) ? Number(text) : text)
const words = (text: string) => text.split(/\s+/).filter((word) => word !== '')

const path = (value: string, means: string, right = 'the path of a file', otherwise?: string) =>
  documented(v.optional(text()), { means, right, value, otherwise })

const rightTime = (minMs: number) =>
  `a time such as 500ms, 30s, 5m or 1h, ${minMs > 0 ? 'more than 0, ' : ''}at most 596h`
const timeGiven = (minMs: number) =>
  v.union([v.pipe(v.string(), v.regex(DURATION)), whole(minMs, MAX_TIME_MS)])
const toMs = (given: string | number) => (typeof given === 'number' ? given : (parseDuration(given) ?? NaN))

const time = (standard: string, means: string, minMs = 0) => {
  const schema = v.optional(v.pipe(timeGiven(minMs), v.transform(toMs), whole(minMs, MAX_TIME_MS)), standard)
  return documented(schema, { means, right: rightTime(minMs), value: 'TIME' })
}

const raisedTime = (means: string) => {
  const schema = v.optional(v.pipe(timeGiven(1), v.transform(toMs), whole(1, MAX_TIME_MS)))
  return documented(schema, { means, right: rightTime(1), value: 'TIME', otherwise: "the app's own" })
}

const count = (standard: number, min: number, means: string) => {
  const right = `a whole number of at least ${min}`
  return documented(v.optional(whole(min), standard), { means, right, value: 'N', fromText: number })
}

export const schema = v.strictObject({
  entry: documented(text(), { means: 'the file to run, seen from cwd', right: 'the path of a file' }),
  args: documented(list(), { means: 'arguments of the app', right: 'a list of strings', fromText: words }),
  workers: documented(
    v.optional(
      v.pipe(
        v.union([v.literal('auto'), whole(1, MAX_WORKERS)]),
        v.transform((given) => (given === 'auto' ? availableParallelism() : given)),
      ),
      1,
    ),
    {
      means: 'worker processes; auto: one per available core',
      right: `a whole number from 1 to ${MAX_WORKERS}, or auto`,
      value: 'N|auto',
      fromText: number,
    },
  ),
  name: documented(v.optional(v.pipe(v.string(), v.regex(NAME))), {
    means: 'the name by which commands find this master',
    right: NAME_RULE,
    value: 'NAME',
    otherwise: "the package's, else the directory's",
  }),
  cwd: path(
    'DIR',
    "the app's directory; symlinks are followed anew at each reload",
    'the path of a directory',
    'here',
  ),
  node: path(
    'PATH',
    'the Node binary for the workers',
    'the path of a Node binary, or a command in PATH',
    'the Node that runs usr2',
  ),
  nodeArgs: documented(list(), {
    means: 'options for that Node, separated by spaces',
    right: 'options of Node (in a file a list of strings)',
    value: '"ARGS"',
    fromText: words,
  }),
  envFile: path('FILE', 'KEY=value lines for the workers, read at each reload'),
  ready: documented(v.optional(v.picklist(['listen', 'message']), 'listen'), {
    means: 'what makes a worker ready: that it listens, or that it says so',
    right: 'listen or message',
    value: 'WHEN',
  }),
  startTimeout: time('60s', 'a worker that is not ready by then has failed', 1),
  drainTimeout: time('30s', 'an old worker finishes its requests within this'),
  shutdownTimeout: time('10s', "then the app's own shutdown ends within this"),
  killTimeout: time('5s', 'then SIGKILL follows after this'),
  keepAliveTimeout: raisedTime("idle connections live so long at least: above the proxy's time"),
  websocketDrain: documented(v.optional(v.picklist(['close', 'wait', 'ignore']), 'close'), {
    means: 'WebSockets at a drain: close (1001), wait or ignore',
    right: 'close, wait or ignore',
    value: 'HOW',
  }),
  statistics: documented(
    v.optional(
      v.pipe(
        v.picklist(['on', 'off']),
        v.transform((given) => given === 'on'),
      ),
      'on',
    ),
    { means: 'count and time the requests of each worker: on or off', right: 'on or off', value: 'on|off' },
  ),
  minUptime: time('30s', 'a worker ready for this long has its deaths forgotten'),
  maxRestarts: count(8, 0, 'deaths in a row, of every slot, before usr2 gives up'),
  maxDraining: count(2, 1, 'old generations that may drain at once'),
  control: path(
    'PATH',
    'the control socket',
    'the path of a unix socket',
    'control.sock in /run/usr2/NAME, or as the README says',
  ),
  pidFile: path('FILE', "gets the master's pid once the app is ready"),
  logLevel: documented(v.optional(v.picklist(LEVELS), 'info'), {
    means: LEVELS.join(', '),
    right: `one of ${LEVELS.join(', ')}`,
    value: 'LEVEL',
  }),
})

export type Key = keyof typeof schema.entries
export const KEYS = Object.keys(schema.entries) as readonly Key[]
export const isKey = (name: string): name is Key => Object.hasOwn(schema.entries, name)

/** `config` says where the file is, so it is the one name that a file cannot have. */
export type OuterKey = Key | 'config'
const CONFIG: Doc = {
  means: 'JSON file with these keys ("usr2" in package.json)',
  right: 'the path of a JSON file',
  value: 'FILE',
}
export const docOf = (key: OuterKey): Doc =>
  (key === 'config' ? CONFIG : docs.get(schema.entries[key])) ?? CONFIG

export const flagOf = (key: string) => `--${key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`
export const variableOf = (key: string) => `USR2_${key.replace(/[A-Z]/g, '_$&').toUpperCase()}`

const outerKeys: readonly OuterKey[] = [...KEYS, 'config']
const flagKeys = outerKeys.filter((key) => docOf(key).value !== undefined)
export const FLAGS: ReadonlyMap<string, OuterKey> = new Map(flagKeys.map((key) => [flagOf(key), key]))
export const VARIABLES: ReadonlyMap<string, OuterKey> = new Map(
  outerKeys.map((key) => [variableOf(key), key]),
)

/** The help text of `usr2 <command>`, which takes the options of `run`. */
export function usage(command: string): string {
  const rows = flagKeys.map((key) => {
    const { value, means, otherwise } = docOf(key)
    const standard = key === 'config' ? undefined : v.getDefault(schema.entries[key])
    const known = typeof standard === 'string' || typeof standard === 'number' ? standard : otherwise
    return [`${flagOf(key)} ${value}`, known === undefined ? means : `${means} (${known})`] as const
  })
  const width = Math.max(...rows.map(([left]) => left.length))
  return [
    `Usage: usr2 ${command} [options] <entry> [args…]`,
    '',
    ...rows.map(([left, right]) => `  ${left.padEnd(width)}  ${right}`),
    '',
    'In parentheses: what holds when an option is not given. --drain-timeout is also "drainTimeout" in the config',
    'file and USR2_DRAIN_TIMEOUT in the environment. A TIME is 500ms, 30s, 5m or 1h.',
    '',
  ].join('\n')
}
