/**
 * The one schema of the configuration, and what is generated from it: names of flags and variables, the help text
 * (and in jsonschema.ts the JSON Schema). A key is added here and nowhere else, and to `Config`, where it
 * gets its unit; one that is a structure has its shape in shapes.ts.
 *
 * valibot, because it is in the master for life: 18 kB of the bundle, where zod was 760 kB and 7 MB of resident
 * memory.
 */
import * as v from 'valibot'
import { NAME, NAME_RULE } from './paths.ts'
import { analysisFromText, probeFromText, stepsFromText, warmUpFromText } from './rollout.ts'
import * as shapes from './shapes.ts'
import { PLACES, rightTime, secondsOf, text, timeOf, whole } from './shapes.ts'
import { autoWorkers } from '../master/workers/memory.ts'
import { PROBES } from '../rollout/state.ts'
import type { ProbeKind } from '../rollout/state.ts'

interface Doc {
  /** One phrase for the help text and the editor. */
  readonly means: string
  /** What would be right: completes "it must be …". */
  readonly right: string
  /** Stands for the value in the help text; none: it is no flag. */
  readonly value?: string
  /** How a flag or variable, which is always text, becomes what the file would have. */
  readonly fromText?: (text: string) => unknown
  /** As a flag it may be given again and again: as if the texts were one, with commas between. */
  readonly many?: true
  /** The file may have that text, too, besides its structure. */
  readonly textInFile?: true
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

const list = () => v.optional(v.array(shapes.word()), [])
const number = (text: string) => (/^-?\d+$/.test(text) ? Number(text) : text)
const byCommas = (text: string) => text.split(',').map((part) => part.trim() || text)
const words = (text: string) => text.split(/\s+/).filter((word) => word !== '')

const path = (value: string, means: string, right = 'the path of a file', otherwise?: string) =>
  documented(v.optional(text()), { means, right, value, otherwise })

const time = (standard: string, means: string, minMs = 0) => {
  return documented(v.optional(timeOf(minMs), standard), { means, right: rightTime(minMs), value: 'TIME' })
}

const maybeTime = (means: string, otherwise: string | undefined, minMs = 1) =>
  documented(v.optional(timeOf(minMs)), { means, right: rightTime(minMs), value: 'TIME', otherwise })

const count = (standard: number, min: number, means: string) => {
  const right = `a whole number of at least ${min}`
  return documented(v.optional(whole(min), standard), { means, right, value: 'N', fromText: number })
}

const amount = (means: string, otherwise: string) =>
  documented(v.optional(shapes.amount()), {
    means,
    right: 'a whole number of workers from 0 to 1024, or a percentage of them such as 25%',
    value: 'N|P%',
    fromText: number,
    otherwise,
  })

const probe = (kind: ProbeKind, means: string, otherwise?: string) =>
  documented(v.optional(shapes.probe(kind)), {
    means,
    right: `/path, tcp, tcp:PORT, message, event-loop or none (in a file also an object with http, tcp, message or eventLoop)`,
    value: 'PROBE',
    fromText: probeFromText,
    textInFile: true,
    otherwise,
  })

/** POSIX names as shadow-utils takes them, a number, or what a directory service has (`ACME\\shop`, `shop@acme`). */
const accountName = () => v.pipe(v.string(), v.regex(/^[\w.][\w.@\\-]{0,255}\$?$/))
const MAX_ID = 2 ** 32 - 2 // the last one means "none" to chown(2)
const account = (value: string, means: string, kind: 'user' | 'group', otherwise: string) =>
  documented(v.optional(v.pipe(v.union([accountName(), whole(0, MAX_ID)]), v.transform(String))), {
    means,
    right: `the name or number of a ${kind}`,
    value,
    otherwise,
  })

const MIN_MEMORY_BYTES = 16 * 1024 ** 2 // less than an empty Node takes: it would be replaced for ever
const STRATEGIES = ['switch', 'rolling', 'canary', 'blueGreen', 'blue-green'] as const

export const schema = v.strictObject({
  entry: documented(text(), { means: 'the file to run, seen from cwd', right: 'the path of a file' }),
  args: documented(list(), { means: 'arguments of the app', right: 'a list of strings', fromText: words }),
  workers: documented(
    v.optional(
      v.pipe(
        v.union([v.literal('auto'), whole(1, MAX_WORKERS)]),
        v.transform((given) => (given === 'auto' ? autoWorkers() : given)),
      ),
      1,
    ),
    {
      means: 'worker processes; auto: one per core that the cgroup allows',
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
  keepAliveTimeout: maybeTime(
    "idle connections live so long at least: above the proxy's time",
    "the app's own",
  ),
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
  stackOfBlocked: documented(
    v.optional(
      v.pipe(
        v.picklist(['on', 'off']),
        v.transform((given) => given === 'on'),
      ),
      'on',
    ),
    {
      means: 'the stack of a worker that does not answer goes to the log: on or off',
      right: 'on or off',
      value: 'on|off',
    },
  ),
  minUptime: time('30s', 'a worker ready for this long has its deaths forgotten'),
  maxRestarts: count(8, 0, 'deaths in a row, of every slot, before usr2 gives up'),
  maxDraining: count(2, 1, 'old generations that may drain at once'),
  strategy: documented(
    v.optional(
      v.pipe(
        v.picklist(STRATEGIES),
        v.transform((given) => (given === 'blue-green' ? 'blueGreen' : given)),
      ),
    ),
    {
      means: 'how a reload replaces the workers: switch, rolling, canary, blue-green',
      right: 'switch, rolling, canary or blue-green',
      value: 'NAME',
      otherwise: 'switch',
    },
  ),
  steps: documented(v.optional(shapes.steps()), {
    means: 'instead of a strategy, such as "10% 5m, 50% promote, 90% analyse"',
    right: 'steps such as "10% 5m, 30% promote, 60% analyse, 100%" (in a file also a list)',
    value: '"STEPS"',
    fromText: stepsFromText,
    textInFile: true,
  }),
  maxSurge: amount('workers beyond the configured ones during a rollout', '100%; rolling: 25%'),
  maxUnavailable: amount('workers short of them during a rollout', '0; rolling: 25%'),
  minReadySeconds: documented(v.optional(secondsOf(), 0), {
    means: 'new workers serve for so long before the old are let go',
    right: 'a whole number of seconds, or a time such as 10s',
    value: 'N',
    fromText: number,
  }),
  progressDeadline: time('10m', 'a rollout that gets no further within this has failed', 1),
  parkFor: maybeTime('the old version is kept for an instant rollback', '0; blue-green: 10m', 0),
  analysis: documented(v.optional(shapes.analysis()), {
    means: 'judges the new version, such as "errorRate < 1%, p99 < 1.5x"',
    right: 'limits such as "errorRate < 1%, p99 < 1.5x" (in a file also an object with limits)',
    value: '"LIMITS"',
    fromText: analysisFromText,
    textInFile: true,
  }),
  onFailure: documented(v.optional(v.picklist(['rollback', 'pause']), 'rollback'), {
    means: 'when the analysis fails: rollback or pause',
    right: 'rollback or pause',
    value: 'WHAT',
  }),
  startup: probe('startup', 'until it passes, no other probe is asked'),
  readiness: probe('readiness', 'a worker gets traffic while it passes'),
  liveness: probe('liveness', 'a worker that fails it is replaced', 'event-loop, a minute'),
  warmUp: documented(v.optional(shapes.warmUp()), {
    means: 'requests to a worker before it gets traffic: so many of /, or 10 of each path',
    right: 'a whole number up to 10000, or paths such as /,/search (in a file also an object)',
    value: 'N|PATHS',
    fromText: warmUpFromText,
    textInFile: true,
  }),
  maxMemory: documented(v.optional(shapes.sizeOf(MIN_MEMORY_BYTES)), {
    means: 'a worker that takes more is replaced, such as 512M or 2G',
    right: 'a size such as 512M or 2G, at least 16M',
    value: 'SIZE',
  }),
  maxRequests: documented(v.optional(whole(1)), {
    means: 'a worker that has answered so many is replaced',
    right: 'a whole number of at least 1',
    value: 'N',
    fromText: number,
  }),
  maxAge: maybeTime('a worker that is older is replaced', undefined),
  hooks: documented(v.optional(shapes.hooks(), {}), {
    means: 'commands that are run at a moment of a rollout',
    right: 'an object, in the config file, with a command for beforeSpawn, beforePromote, …',
  }),
  hookTimeout: time('60s', 'a hook that runs for longer is killed', 1),
  user: account('USER', "the workers' user, by name or number, where usr2 is root", 'user', 'that of usr2'),
  group: account('GROUP', 'their group; they have no others', 'group', "the user's"),
  listen: documented(v.optional(shapes.places()), {
    means: 'workers listen there only: 3000, [::1]:80, udp:53, /a.sock; repeatable',
    right: PLACES,
    value: 'ADDRESS',
    fromText: byCommas,
    textInFile: true,
    many: true,
    otherwise: 'anywhere',
  }),
  stopDelay: time('0', 'a stop: /readyz fails, and so long everything serves on'),
  metrics: documented(v.optional(shapes.metricsAt()), {
    means: 'Prometheus metrics, /livez and /readyz: HOST:PORT or the path of a socket',
    right: 'IP:PORT such as 127.0.0.1:9464, a port of 127.0.0.1, or the path of a unix socket',
    value: 'WHERE',
    fromText: number,
  }),
  control: path(
    'PATH',
    'the control socket',
    'the path of a unix socket',
    'control.sock in /run/usr2/NAME, or as the README says',
  ),
  controlMode: documented(v.optional(v.pipe(v.string(), v.regex(/^0?6[0246]{2}$/))), {
    means: 'who may connect to it: its permission bits',
    right: 'permission bits such as 0600 or 0660, in quotes in a file',
    value: 'MODE',
    otherwise: '0600; 0660 with a group',
  }),
  controlGroup: account('GROUP', 'the group of that socket', 'group', 'that of usr2'),
  pidFile: path('FILE', "gets the master's pid once the app is ready"),
  logFile: path('FILE', "the master's own log; SIGUSR1 opens it anew", 'the path of a file', 'stderr'),
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

/** In the config file `"probes": {"readiness": …}` is `"readiness"`; nothing else is in it. */
export const ROOF = 'probes'
export const isProbe = (name: string): name is ProbeKind => PROBES.some((kind) => kind === name)

export const flagOf = (key: string) => `--${key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`
export const variableOf = (key: string) => `USR2_${key.replace(/[A-Z]/g, '_$&').toUpperCase()}`

const outerKeys: readonly OuterKey[] = [...KEYS, 'config']
const flagKeys = outerKeys.filter((key) => docOf(key).value !== undefined)
export const FLAGS: ReadonlyMap<string, OuterKey> = new Map(flagKeys.map((key) => [flagOf(key), key]))
export const VARIABLES: ReadonlyMap<string, OuterKey> = new Map(
  outerKeys.map((key) => [variableOf(key), key]),
)

/** Lines of the help text before the flag of that key. */
const HEADINGS: Readonly<Partial<Record<OuterKey, string>>> = {
  workers: 'The app',
  ready: 'A worker, from its start to its end',
  strategy: 'Rollouts',
  startup: 'Probes, limits and hooks',
  user: 'The master',
}

/** The help text of `usr2 <command>`, which takes the options of `run`. */
export function usage(command: string): string {
  const rows = flagKeys.map((key) => {
    const { value, means, otherwise } = docOf(key)
    const standard = key === 'config' ? undefined : v.getDefault(schema.entries[key])
    const known = typeof standard === 'string' || typeof standard === 'number' ? standard : otherwise
    const right = known === undefined ? means : `${means} (${known})`
    return { left: `${flagOf(key)} ${value}`, right, heading: HEADINGS[key] }
  })
  const width = Math.max(...rows.map(({ left }) => left.length))
  return [
    `Usage: usr2 ${command} [options] <entry> [args…]`,
    ...rows.flatMap(({ left, right, heading }) => [
      ...(heading === undefined ? [] : ['', `${heading}:`]),
      `  ${left.padEnd(width)}  ${right}`,
    ]),
    '',
    'In parentheses: what holds when an option is not given. --drain-timeout is also "drainTimeout" in the config',
    'file and USR2_DRAIN_TIMEOUT in the environment. A TIME is 500ms, 30s, 5m or 1h. A PROBE is',
    '/path, tcp, tcp:PORT, message, event-loop or none.',
    '',
  ].join('\n')
}
