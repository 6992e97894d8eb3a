/**
 * Flags + environment + file + defaults -> one frozen {@link Config}, or every complaint at once.
 *
 * One schema, one set of names: `drainTimeout` in the file is `--drain-timeout` and `USR2_DRAIN_TIMEOUT`. Flags win
 * over the environment, the environment over the file, the file over defaults. Only the value that wins is judged.
 * Nothing is remembered between calls: a reload calls again and gets what the files say by then.
 */
import { statSync } from 'node:fs'
import { basename, dirname, isAbsolute, resolve } from 'node:path'
import { safeParse } from 'valibot'
import type { BaseIssue, InferOutput } from 'valibot'
import { MAX_UNIX_PATH_BYTES } from './address.ts'
import type { Place } from './address.ts'
import * as paths from './config/paths.ts'
import * as rollout from './config/rollout.ts'
import type { HookSpec, MetricsAt, ProbeSpec, Strategy, WarmUp } from './config/rollout.ts'
import {
  FLAGS,
  KEYS,
  ROOF,
  VARIABLES,
  docOf,
  flagOf,
  isKey,
  isProbe,
  schema,
  variableOf,
} from './config/schema.ts'
import type { Key, OuterKey } from './config/schema.ts'
import { isRule, knownKeys } from './config/shapes.ts'
import { doubtsAbout, ourselves } from './config/trust.ts'
import { nearest } from './config/values.ts'
import { PROBES } from './rollout/state.ts'
import type { Amount, Analysis, Hook, ProbeKind, Step } from './rollout/state.ts'

export { limitText, parseLimit } from './config/limit.ts'
export * from './config/paths.ts'
export type { HookSpec, MetricsAt, ProbeSpec, Strategy, WarmUp } from './config/rollout.ts'
export { usage } from './config/schema.ts'
export { parseDuration, parseSize } from './config/values.ts'

export interface Config {
  /** As the user gave it, made absolute; symlinks are followed when a generation is made (by the kernel's rules). */
  readonly entry: string
  readonly args: readonly string[]
  readonly workers: number
  readonly name: string
  /** As the user gave it, made absolute; symlinks as in `entry`. */
  readonly cwd: string
  /** A path, or a bare command name to be looked up in PATH. */
  readonly node: string
  readonly nodeArgs: readonly string[]
  readonly envFile: string | null
  readonly ready: 'listen' | 'message'
  readonly startTimeoutMs: number
  readonly drainTimeoutMs: number
  readonly shutdownTimeoutMs: number
  readonly killTimeoutMs: number
  /** What the app's `keepAliveTimeout` is raised to; null: it stays as it is. */
  readonly keepAliveTimeoutMs: number | null
  readonly websocketDrain: 'close' | 'wait' | 'ignore'
  /** Whether workers count and time their requests. */
  readonly statistics: boolean
  /** Whether Node's inspector may be opened for an instant in a worker whose event loop is blocked. */
  readonly stackOfBlocked: boolean
  readonly minUptimeMs: number
  readonly maxRestarts: number
  readonly maxDraining: number
  readonly strategy: Strategy
  /** The strategy's, or the user's own; the last share is 100%. */
  readonly steps: readonly Step[]
  readonly maxSurge: Amount
  readonly maxUnavailable: Amount
  /** What becomes of workers whose place is taken before the promotion; follows from the strategy. */
  readonly replaced: 'parked' | 'drained'
  readonly minReadyMs: number
  readonly progressDeadlineMs: number
  readonly parkForMs: number
  readonly analysis: Analysis | null
  readonly onFailure: 'rollback' | 'pause'
  /** Those that are asked: the liveness probe has a default, which `none` turns off. */
  readonly probes: Readonly<Partial<Record<ProbeKind, ProbeSpec>>>
  readonly warmUp: WarmUp | null
  readonly maxMemoryBytes: number | null
  readonly maxRequests: number | null
  readonly maxAgeMs: number | null
  readonly hooks: Readonly<Partial<Record<Hook, HookSpec>>>
  readonly hookTimeoutMs: number
  /** A graceful stop: how long everything serves on while /readyz fails. */
  readonly stopDelayMs: number
  /** A name or a number: as whom a root master's workers run; null: as the master. */
  readonly user: string | null
  readonly group: string | null
  /** Where workers may listen, unix paths absolute; null: nobody said. */
  readonly listen: readonly Place[] | null
  readonly metrics: MetricsAt | null
  /** What the user said; see `defaultControlPath` for null. */
  readonly control: string | null
  /** Permission bits of the control socket, and whose the second digit is; null: the master's group. */
  readonly controlMode: number
  readonly controlGroup: string | null
  readonly pidFile: string | null
  /** The master's own log; null: stderr. */
  readonly logFile: string | null
  readonly logLevel: 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'fatal' | 'silent'
  readonly sources: {
    /** The config file that was read: `--config`'s, or the package.json that has a `"usr2"` key. */
    readonly file: string | null
  }
}

export interface ConfigInput {
  /** What follows `usr2 run`. */
  readonly argv: readonly string[]
  readonly env: NodeJS.ProcessEnv
  /** `process.cwd()` at the start; for a reload, what `startDirectory` gave at the start. */
  readonly cwd: string
}

export type ConfigResult =
  | { readonly ok: true; readonly config: Config; readonly warnings: readonly string[] }
  | { readonly ok: false; readonly complaints: readonly string[] }

// ---- The three places that values come from -----------------------------------------------------------------------

/** One value, with what a complaint about it has to say. */
interface Given {
  /** `--workers`, `USR2_WORKERS`, `"workers" in /x/usr2.json`. */
  readonly where: string
  /** As it was written. */
  readonly raw: unknown
  /** As the schema wants it. */
  readonly value: unknown
  /** Relative paths are seen from here. */
  readonly base: string
  /** In a file: names a place within the value, such as `"steps[1].hold" in /x/usr2.json`. */
  readonly inner?: (path: string) => string
}
type Givens = Partial<Record<OuterKey, Given>>

/** Ours towards workers (a usr2 inside a usr2's worker inherits them): no configuration, no warning. */
const NOT_CONFIG: ReadonlySet<string> = new Set(['USR2_GUEST', 'USR2_SLOT', 'USR2_GENERATION', 'USR2_CHECK'])

/** A flag or a variable. Blank text stays text: a variable that expands to nothing is refused, also for a list. */
function givenAsText(key: OuterKey, raw: string, where: string, base: string): Given {
  return { where, raw, value: raw.trim() === '' ? raw : (docOf(key).fromText?.(raw) ?? raw), base }
}

const mustBe = (key: OuterKey) => `it must be ${docOf(key).right}.`

function didYouMean(word: string, known: Iterable<OuterKey>, spell: (key: OuterKey) => string): string {
  const guess = nearest(word, known)
  return guess === undefined ? '.' : `; did you mean ${spell(guess)}?`
}

interface CommandLine {
  readonly givens: Givens
  readonly complaints: readonly string[]
  readonly help: boolean
  /** An unknown flag took the argument after it: its value, or was that the entry? */
  readonly tookUnknown: boolean
}

/** Our flags end at the first argument that is none; that is the entry, and all after it is the app's, untouched. */
function readCommandLine(argv: readonly string[], base: string): CommandLine {
  const givens: Givens = {}
  const complaints: string[] = []
  let help = false
  let tookUnknown = false
  let at = 0
  for (; at < argv.length; at++) {
    const argument = argv[at] ?? ''
    if (!argument.startsWith('-') || argument === '-') break
    if (argument === '--') {
      at++
      break
    }
    if (argument === '--help' || argument === '-h') {
      help = true
      continue
    }
    const [flag = '', ...inline] = argument.split(/=(.*)/s)
    const key = FLAGS.get(flag)
    const next = argv[at + 1]
    // `--node-args --inspect` is meant so, `--name --workers 2` is not; `--workers -1` deserves its own complaint.
    const nextIsFlag =
      next?.startsWith('--') === true &&
      (key !== 'nodeArgs' || next === '--' || FLAGS.has(next.split('=')[0] ?? ''))
    let raw = inline[0]
    if (raw === undefined && next !== undefined && !nextIsFlag) {
      raw = next
      tookUnknown ||= key === undefined
      at++
    }
    if (key === undefined) {
      const positional = flag === '--entry' || flag === '--args'
      const hint = positional ? '; both come last, without a flag.' : didYouMean(flag, FLAGS.values(), flagOf)
      complaints.push(`${flag} is no option of "usr2 run [options] <entry> [args…]"${hint}`)
    } else if (raw === undefined) {
      complaints.push(`${flag} was given without a value; ${mustBe(key)}`)
    } else if (givens[key] !== undefined && docOf(key).many) {
      givens[key] = givenAsText(key, `${String(givens[key].raw)},${raw}`, flag, base)
    } else if (givens[key] !== undefined) {
      complaints.push(`${flag} was given twice (${show(givens[key].raw)} and ${show(raw)}); give it once.`)
    } else {
      givens[key] = givenAsText(key, raw, flag, base)
    }
  }
  const [entry, ...args] = argv.slice(at)
  if (entry !== undefined) givens.entry = { where: '<entry>', raw: entry, value: entry, base }
  if (args.length > 0) givens.args = { where: '[args…]', raw: args, value: args, base }
  return { givens, complaints, help, tookUnknown }
}

function readEnvironment(env: NodeJS.ProcessEnv, base: string): { givens: Givens; warnings: string[] } {
  const givens: Givens = {}
  const warnings: string[] = []
  for (const [variable, raw] of Object.entries(env)) {
    if (!variable.startsWith('USR2_') || NOT_CONFIG.has(variable) || raw === undefined) continue
    const key = VARIABLES.get(variable)
    const hint = didYouMean(variable.slice('USR2_'.length), VARIABLES.values(), variableOf)
    if (key !== undefined) givens[key] = givenAsText(key, raw, variable, base)
    else warnings.push(`${variable} is no variable of usr2 and changes nothing${hint}`)
  }
  return { givens, warnings }
}

interface ConfigFile {
  readonly path: string | null
  readonly givens: Givens
  readonly complaints: readonly string[]
  /** Nothing could be had from it, so nobody knows what it says. */
  readonly broken: boolean
}

/** `--config`'s file, which must exist, or the `"usr2"` key of the nearest package.json, which need not. */
function readFile(asked: string | undefined, cwd: string): ConfigFile {
  const path = asked ?? paths.nearestPackageJson(cwd)
  const failed = (complaint: string): ConfigFile => ({
    path,
    givens: {},
    complaints: [complaint],
    broken: true,
  })
  const none: ConfigFile = { path: null, givens: {}, complaints: [], broken: false }
  if (path === null) return none
  const file = paths.readJsonObject(path)
  if (!file.ok) return failed(file.complaint)
  const inPackage = basename(path) === 'package.json'
  const place = inPackage ? `"usr2" of ${path}` : path
  const content = inPackage ? file.value['usr2'] : file.value
  if (content === undefined) {
    return asked === undefined ? none : failed(`${path} has no "usr2" key; put the configuration under it.`)
  }
  if (asked === undefined) {
    const stranger = strangerTo(path, cwd)
    if (stranger !== null) return failed(stranger)
  }
  if (!paths.isObject(content)) return failed(`${place} must be an object, in braces.`)
  const givens: Givens = {}
  const complaints: string[] = []
  const take = (key: Key, name: string, raw: unknown): void => {
    const inner = (path: string) => `"${name}${path}" in ${place}`
    const { fromText, textInFile } = docOf(key)
    const value = textInFile && typeof raw === 'string' ? (fromText?.(raw) ?? raw) : raw
    if (givens[key] === undefined) givens[key] = { where: inner(''), raw, value, base: dirname(path), inner }
    else complaints.push(`${inner('')} is given twice, here and as ${givens[key].where}; give it once.`)
  }
  const refuse = (name: string, known: readonly Key[], roof = ''): void => {
    const hint = didYouMean(name, known, (key) => `"${roof}${key}"`)
    complaints.push(`"${roof}${name}" in ${place} is no key of usr2${hint}`)
  }
  for (const [key, value] of Object.entries(content)) {
    if (isKey(key)) take(key, key, value)
    else if (key === ROOF && paths.isObject(value)) {
      for (const [kind, probe] of Object.entries(value)) {
        if (isProbe(kind)) take(kind, `${ROOF}.${kind}`, probe)
        else refuse(kind, PROBES, `${ROOF}.`)
      }
    } else if (key === ROOF) {
      complaints.push(
        `"${ROOF}" in ${place} is ${show(value)}; it must be an object with ${PROBES.join(', ')}.`,
      )
    } else if (key !== '$schema') refuse(key, KEYS)
  }
  return { path, givens, complaints, broken: false }
}

/**
 * A package.json that was only found, in a directory above, may be anybody's: /tmp/package.json for who works in /tmp/x.
 * (As git asks for a `safe.directory`.) In the directory itself it is the app's, whoever has put it there, unless everybody
 * can: `WORKDIR /app` makes a directory of root's, and `COPY --chown=node . .` files that are not. Gives a complaint, or null.
 */
function strangerTo(path: string, cwd: string): string | null {
  const [file, here] = [statSync(path), statSync(cwd, { throwIfNoEntry: false })]
  if ([0, ourselves().uid, here?.uid].includes(file.uid)) return null
  if (here !== undefined && dirname(path) === resolve(cwd) && (here.mode & 0o002) === 0) return null
  return (
    `The "usr2" of ${path} is not obeyed: that file was only found on the way up from ${cwd}, and belongs to uid ` +
    `${file.uid}. Say that it is meant: --config ${path}.`
  )
}

/**
 * Node looks for `--env-file` in all of its command line, also behind the script (20 to 26, measured), and has applied the
 * file's NODE_OPTIONS to the master before we are loaded: with a `--require` of the app's in it, to a root master.
 */
function readByNode(given: Given | undefined, path: string | undefined): readonly string[] {
  if (given?.where !== flagOf('envFile') || path === undefined) return []
  const file = paths.readEnvFile(path)
  if (!file.ok || !file.env['NODE_OPTIONS']) return []
  return [
    `--env-file ${path} has NODE_OPTIONS, which are for the workers; but Node.js itself obeys an --env-file of its command ` +
      `line, in the master. Give the file as "envFile" in the config file, or as ${variableOf('envFile')}.`,
  ]
}

/**
 * What others could do by the files that are obeyed. Refused is what lets everybody become root; for the rest a warning:
 * on a laptop, a mounted disk or in a container such rights are often nobody's choice.
 */
function trustOf(
  file: string | null,
  envFile: string | undefined,
  user: string | undefined,
  env: NodeJS.ProcessEnv,
): { readonly complaints: readonly string[]; readonly warnings: readonly string[] } {
  const own = ourselves()
  const us = own.uid === 0 ? 'root' : `uid ${own.uid}`
  const workers = user === undefined ? us : `${user}, the workers' user`
  const complaints: string[] = []
  const warnings: string[] = []
  for (const [path, who] of [
    [file, us],
    [envFile ?? null, workers],
  ] as const) {
    for (const { isOpen, text, remedy } of path === null ? [] : doubtsAbout(path, own)) {
      if (isOpen && who === 'root' && !paths.isContainer(env)) {
        complaints.push(
          `${path} is not obeyed: ${text}, and could so run code as root. Take that right away: ${remedy}`,
        )
      } else {
        warnings.push(
          `${text}: so ${path} can be changed, and with it what ${who} runs. To set it right: ${remedy}`,
        )
      }
    }
  }
  return { complaints, warnings }
}

// ---- Putting it together ------------------------------------------------------------------------------------------

/**
 * The configuration of `usr2 run`, read now: from `argv` (what follows `run`), the `USR2_*` of `env`, and the config
 * file that they name, else the `"usr2"` key of the nearest package.json from the cwd upwards.
 *
 * Never throws for what users do: every complaint is a whole sentence with the key, where it stands, what was given
 * and what would be right. Whether the entry exists is not asked here.
 */
export function loadConfig(input: ConfigInput): ConfigResult {
  const here = paths.startDirectory(input.env, input.cwd)
  const flags = readCommandLine(input.argv, here)
  const variables = readEnvironment(input.env, here)
  const { config: asked, ...outer }: Givens = { ...variables.givens, ...flags.givens }
  const askedPath = pathOf(asked)
  const file = readFile(askedPath, pathOf(outer.cwd) ?? here)
  const complaints = [...flags.complaints, ...file.complaints]
  if (asked !== undefined && askedPath === undefined) {
    complaints.push(`${asked.where} is ${show(asked.raw)}; ${mustBe('config')}`)
  }

  const givens: Partial<Record<Key, Given>> = { ...file.givens, ...outer }
  const values = Object.entries(givens).map(([key, given]) => [key, given.value] as const)
  const parsed = safeParse(schema, Object.fromEntries(values))
  for (const key of KEYS) {
    const wrongs = (parsed.issues ?? []).flatMap(innermost).filter(({ path }) => path[0] === key)
    const given = givens[key]
    if (given !== undefined)
      complaints.push(...new Set(wrongs.map((wrong) => complaintOf(key, given, wrong))))
    else if (wrongs.length > 0 && !flags.tookUnknown && !file.broken) complaints.push(NO_ENTRY)
  }
  const controlPath = pathOf(givens.control) ?? null
  complaints.push(...tooLong(givens.control))
  const socket = isPath(givens.metrics?.value) ? givens.metrics : undefined
  const metricsPath = pathOf(socket)
  complaints.push(...tooLong(socket))

  const cwd = cwdOf(givens, file, here)
  const named =
    givens.name === undefined
      ? paths.defaultName(cwd)
      : { ok: true as const, name: parsed.success ? (parsed.output.name ?? '') : '' }
  // A package.json that is broken was read twice, for its "usr2" and for its name: say it once.
  if (!named.ok && !complaints.includes(named.complaint)) complaints.push(named.complaint)
  const plan = parsed.success ? planOf(parsed.output, givens) : undefined
  if (plan !== undefined) complaints.push(...plan.complaints)
  const envFile = pathOf(givens.envFile)
  const trust = trustOf(file.path, envFile, parsed.success ? parsed.output.user : undefined, input.env)
  complaints.push(...trust.complaints, ...readByNode(givens.envFile, envFile))
  if (complaints.length > 0 || !parsed.success || !named.ok || plan === undefined) {
    return { ok: false, complaints }
  }

  const { output } = parsed
  const node = output.node?.includes('/') ? pathOf(givens.node) : output.node
  const metrics = metricsPath === undefined ? (output.metrics ?? null) : { path: metricsPath }
  const config: Config = {
    entry: paths.joinAsGiven(cwd, output.entry),
    args: output.args,
    workers: output.workers,
    name: named.name,
    cwd,
    node: node ?? process.execPath,
    nodeArgs: output.nodeArgs,
    envFile: envFile ?? null,
    ready: output.ready,
    startTimeoutMs: output.startTimeout,
    drainTimeoutMs: output.drainTimeout,
    shutdownTimeoutMs: output.shutdownTimeout,
    killTimeoutMs: output.killTimeout,
    keepAliveTimeoutMs: output.keepAliveTimeout ?? null,
    websocketDrain: output.websocketDrain,
    statistics: output.statistics,
    stackOfBlocked: output.stackOfBlocked,
    minUptimeMs: output.minUptime,
    maxRestarts: output.maxRestarts,
    maxDraining: output.maxDraining,
    ...plan.rollout,
    minReadyMs: output.minReadySeconds,
    progressDeadlineMs: output.progressDeadline,
    parkForMs: output.parkFor ?? rollout.parkForMsOf(plan.rollout.strategy),
    analysis: output.analysis ?? null,
    onFailure: output.onFailure,
    probes: probesOf({ liveness: rollout.DEFAULT_LIVENESS, ...output }),
    warmUp: output.warmUp ?? null,
    maxMemoryBytes: output.maxMemory ?? null,
    maxRequests: output.maxRequests ?? null,
    maxAgeMs: output.maxAge ?? null,
    hooks: output.hooks,
    hookTimeoutMs: output.hookTimeout,
    stopDelayMs: output.stopDelay,
    user: output.user ?? null,
    group: output.group ?? null,
    listen: output.listen?.map((place) => absolute(place, givens.listen?.base ?? here)) ?? null,
    metrics,
    control: controlPath,
    controlMode: Number.parseInt(
      output.controlMode ?? (output.controlGroup === undefined ? '600' : '660'),
      8,
    ),
    controlGroup: output.controlGroup ?? null,
    pidFile: pathOf(givens.pidFile) ?? null,
    logFile: pathOf(givens.logFile) ?? null,
    logLevel: output.logLevel,
    sources: { file: file.path },
  }
  const warnings = [...variables.warnings, ...plan.warnings, ...trust.warnings]
  if (metrics !== null && givens.metrics !== undefined && !rollout.isLocal(metrics)) {
    warnings.push(
      `${givens.metrics.where} is ${show(givens.metrics.raw)}, no address of this machine alone: who can reach it ` +
        'can read the metrics, which have no password; 127.0.0.1, ::1 or the path of a socket keep them here.',
    )
  }
  return { ok: true, config: freeze(config), warnings }
}

/** As the guest makes the paths that an app listens on. */
function absolute(place: Place, base: string): Place {
  if (place.kind !== 'unix' || place.path.startsWith('\0')) return place
  return { ...place, path: resolve(base, place.path) }
}

type Output = InferOutput<typeof schema>
type KeyGivens = Readonly<Partial<Record<Key, Given>>>

interface Plan {
  readonly rollout: Pick<Config, 'strategy' | 'steps' | 'maxSurge' | 'maxUnavailable' | 'replaced'>
  readonly complaints: readonly string[]
  readonly warnings: readonly string[]
}

/** How a reload goes: what several keys say together. */
function planOf(output: Output, givens: KeyGivens): Plan {
  const complaints: string[] = []
  const warnings: string[] = []
  const strategy = output.strategy ?? 'switch'
  const analysis = output.analysis ?? null
  if (givens.strategy !== undefined && givens.steps !== undefined) {
    complaints.push(
      `${givens.strategy.where} and ${givens.steps.where} are both given; a strategy is a name for a list of steps, ` +
        'so give one of them.',
    )
  }
  const own = output.steps === undefined ? undefined : rollout.ownSteps(output.steps, analysis)
  if (output.steps !== undefined && own === undefined) {
    complaints.push(
      `${givens.steps?.where} has a step that analyses, and nothing says what; give ${flagOf('analysis')} ` +
        '"errorRate < 1%", or "analysis" in the config file.',
    )
  }
  const steps = own ?? rollout.stepsOf(strategy, analysis)
  if (givens.analysis !== undefined && !steps.some(({ k }) => k === 'analyse')) {
    warnings.push(
      `${givens.analysis.where} changes nothing: no step analyses. --strategy canary does, and steps with analyse.`,
    )
  }
  const { maxSurge = rollout.surgeOf(strategy), maxUnavailable = rollout.unavailableOf(strategy) } = output
  if (maxSurge.n === 0 && maxUnavailable.n === 0) {
    const said = (key: 'maxSurge' | 'maxUnavailable') =>
      givens[key] === undefined ? `${flagOf(key)} is not given, which means 0` : `${givens[key].where} is 0`
    complaints.push(
      `${said('maxSurge')}, and ${said('maxUnavailable')}: no worker could ever be replaced; raise one of them.`,
    )
  }
  const replaced = strategy === 'rolling' ? 'drained' : 'parked'
  return { rollout: { strategy, steps, maxSurge, maxUnavailable, replaced }, complaints, warnings }
}

/** Without those that are turned off. */
function probesOf(
  given: Readonly<Partial<Record<ProbeKind, ProbeSpec | 'none'>>>,
): Partial<Record<ProbeKind, ProbeSpec>> {
  const probes: Partial<Record<ProbeKind, ProbeSpec>> = {}
  for (const kind of PROBES) {
    const probe = given[kind]
    if (probe !== undefined && probe !== 'none') probes[kind] = probe
  }
  return probes
}

/** To the bottom. */
function freeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value)
    Object.values(value).forEach(freeze)
  }
  return value
}

interface Wrong {
  readonly issue: BaseIssue<unknown>
  readonly path: readonly (string | number)[]
}

/** What an issue is really about: of a union's alternatives the one that the value came nearest to. */
function innermost(issue: BaseIssue<unknown>): readonly Wrong[] {
  const path = (issue.path ?? []).map(({ key }) => key as string | number)
  const alternatives = (issue.issues ?? []).flatMap(innermost)
  const inside = alternatives.filter((wrong) => wrong.path.length > 0)
  const best = inside.length > 0 ? inside : alternatives.filter((wrong) => isRule(wrong.issue))
  if (best.length === 0) return [{ issue, path }]
  return best.map((wrong) => ({ issue: wrong.issue, path: [...path, ...wrong.path] }))
}

/** Where, what was given there, and what would be right. */
function complaintOf(key: Key, given: Given, { issue, path: full }: Wrong): string {
  const path = full.slice(1).map((name) => (typeof name === 'number' ? `[${name}]` : `.${name}`))
  const right = path.length > 0 || isRule(issue) ? `it must be ${issue.message}.` : mustBe(key)
  if (given.inner === undefined || typeof given.raw === 'string') {
    const whole = `${given.where} is ${show(given.raw)}`
    const isPart = path.length > 0 && (typeof issue.input === 'string' || typeof issue.input === 'number')
    return isPart && String(issue.input) !== given.raw
      ? `${whole}, with ${show(issue.input)} in it; there ${right}`
      : `${whole}; ${right}`
  }
  const where = given.inner(path.join(''))
  const known = knownKeys(issue)
  if (known === undefined) {
    const into = (outer: unknown, name: string | number): unknown =>
      (outer as Readonly<Record<string | number, unknown>> | null | undefined)?.[name]
    const raw = full.slice(1).reduce(into, given.raw)
    return `${where} is ${raw === undefined ? 'not given' : show(raw)}; ${right}`
  }
  const guess = nearest(String(full.at(-1)), known)
  const hint = guess === undefined ? `known there are ${known.join(', ')}.` : `did you mean "${guess}"?`
  return `${where} is no key of usr2; ${hint}`
}

function tooLong(given: Given | undefined): readonly string[] {
  const path = pathOf(given)
  if (given === undefined || path === undefined || paths.fitsUnixPath(path)) return []
  const bytes = Buffer.byteLength(path)
  return [
    `${given.where} is ${path}, ${bytes} bytes; the path of a unix socket has room for ${MAX_UNIX_PATH_BYTES}.`,
  ]
}

/**
 * The user's directory where nothing says otherwise; but a relative entry in a file means the same wherever its
 * user stands. (An absolute one says nothing about cwd: /etc/usr2/shop.json under systemd's WorkingDirectory.)
 */
function cwdOf(givens: Givens, file: ConfigFile, here: string): string {
  const { cwd, entry } = givens
  const fileSaysWhere =
    entry !== undefined &&
    entry === file.givens.entry &&
    typeof entry.value === 'string' &&
    !isAbsolute(entry.value)
  return pathOf(cwd) ?? (fileSaysWhere ? entry.base : here)
}

const NO_ENTRY =
  'No entry was given; say which file to run, as in "usr2 run server.js", or set "entry" in the config file.'

/** The path that was given, absolute; undefined when none was, or no path (which the schema complains about). */
function pathOf(given: Given | undefined): string | undefined {
  if (given === undefined || typeof given.value !== 'string' || given.value.trim() === '') return undefined
  return paths.joinAsGiven(given.base, given.value)
}

const isPath = (value: unknown): boolean => typeof value === 'string' && value.includes('/')

function show(raw: unknown): string {
  if (typeof raw === 'string' && raw.trim() === '') return 'empty'
  const json = JSON.stringify(raw) ?? String(raw)
  return json.length > 80 ? `${json.slice(0, 79)}…` : json
}

/** The keys that differ and that a running master cannot change: only a restart can. */
export function needsRestart(running: Config, wanted: Config): string[] {
  const fixed = [
    'name',
    'control',
    'controlMode',
    'controlGroup',
    'pidFile',
    'logFile',
    'logLevel',
    'metrics',
  ] as const
  return fixed.filter((key) => JSON.stringify(running[key]) !== JSON.stringify(wanted[key]))
}

/** Whether `argv` (what follows `usr2 run`) asks us, not the app, for help. */
export function wantsHelp(argv: readonly string[]): boolean {
  return readCommandLine(argv, '/').help
}
