/**
 * What a generation pins: the code on disk, the Node binary, the environment and the configuration as they are at
 * one moment. Vacancies of this generation are filled from the same pin, whatever is deployed meanwhile.
 */
import { closeSync, existsSync, openSync, readFileSync, readSync, realpathSync, statSync } from 'node:fs'
import { basename, dirname, extname, join } from 'node:path'
import { readEnvFile } from '../../config.ts'
import type { Config } from '../../config.ts'
import { planOf } from '../../rollout/plan.ts'
import { HOOKS, PROBES } from '../../rollout/state.ts'
import type { Policy, ProbeKind, ProbePolicy } from '../../rollout/state.ts'
import { stat } from '../look.ts'
import { identityOf, mayRead } from './identity.ts'
import type { Identity } from './identity.ts'
import { inspectNode } from './node-binary.ts'
import { NOTIFY_ENV_KEYS } from '../systemd/systemd.ts'

/** What is run; with which settings is another matter. */
export interface Version {
  /** Real paths: what `current` led to. */
  readonly entry: string
  readonly cwd: string
  /** The working directory as the user gave it: `$PWD` of the workers. */
  readonly pwd: string
  readonly node: string
  readonly nodeVersion: string
  readonly nodeArgs: readonly string[]
  readonly args: readonly string[]
  readonly env: Readonly<Record<string, string>>
  /** Where its NODE_OPTIONS are from, for who has to mend them: `the env file /srv/.env`. */
  readonly nodeOptionsOf: string
  /** The package's version, or an empty string. */
  readonly version: string
  /** Changes when the code was changed in place. */
  readonly fingerprint: string
}

export interface Pinned extends Version {
  readonly config: Config
  /** As whom workers and hooks run; null: as the master. */
  readonly identity: Identity | null
  readonly policy: Policy
}

export type PinResult =
  { readonly ok: true; readonly pinned: Pinned } | { readonly ok: false; readonly reasons: readonly string[] }

/** How long a worker may take from the grant of a listener to accepting on it. */
const GRANT_TIMEOUT_MS = 10_000
/** What a drain needs beyond the longest promise (src/worker/drain.ts). */
const PROMISE_MARGIN_MS = 2_000

/** With its name and the byte that ends it (execve(2), MAX_ARG_STRLEN: 32 pages of 4 KiB). */
const MAX_VARIABLE_BYTES = 128 * 1024

/**
 * @param env the master's environment; its own variables and systemd's do not reach a worker
 * @returns the pin, or every reason against it as a sentence
 */
export async function pinGeneration(config: Config, env: NodeJS.ProcessEnv): Promise<PinResult> {
  const reasons: string[] = []
  const attempt = <T>(look: () => T): T | undefined => {
    try {
      return look()
    } catch (error) {
      reasons.push(error instanceof Error ? error.message : String(error))
      return undefined
    }
  }
  const cwd = attempt(() => realDirectory(config.cwd))
  const entry = attempt(() => realEntry(config))
  const node = await inspectNode(config.node, config.nodeArgs, env).catch((error: Error) => {
    reasons.push(error.message)
    return undefined
  })
  const identity = await identityOf(config).catch((error: Error) => {
    reasons.push(error.message)
    return null
  })
  if (identity !== null && entry !== undefined && !(await mayRead(entry, identity))) {
    reasons.push(
      `Workers as ${identity.name} could not load the entry ${entry}: that user may not read it, or not enter a ` +
        'directory on the way to it.',
    )
  }
  const envFile = config.envFile === null ? { ok: true as const, env: {} } : readEnvFile(config.envFile)
  if (!envFile.ok) reasons.push(envFile.complaint)
  if (entry !== undefined && node && isTypeScript(entry) && !node.stripsTypes) {
    reasons.push(
      `${entry} is TypeScript, and Node.js ${node.version} does not run that by itself: build it to JavaScript, ` +
        'or use Node.js 22.18 or newer (22.6 with --node-args --experimental-strip-types).',
    )
  }
  const ownEnv = { ...inherited(env), ...identity?.env, ...(envFile.ok ? withoutNodes(envFile.env) : {}) }
  for (const [name, value] of Object.entries(ownEnv)) {
    const bytes = Buffer.byteLength(`${name}=${value}`)
    if (bytes < MAX_VARIABLE_BYTES) continue
    reasons.push(
      `The environment variable ${name} has ${bytes} bytes, and no process can be started with more than ` +
        `${MAX_VARIABLE_BYTES - 1} in one (E2BIG): give the app a file instead.`,
    )
  }
  const policy = policyOf(config)
  reasons.push(...planOf(policy, policy.slots).problems.map((problem) => `${sentence(problem)}.`))
  if (reasons.length > 0 || cwd === undefined || entry === undefined || !node || !envFile.ok) {
    return { ok: false, reasons }
  }
  const manifest = packageOf(entry)
  return {
    ok: true,
    pinned: {
      config,
      entry,
      cwd,
      pwd: config.cwd,
      node: node.path,
      nodeVersion: node.version,
      nodeArgs: config.nodeArgs,
      args: config.args,
      env: ownEnv,
      nodeOptionsOf:
        envFile.env['NODE_OPTIONS'] === undefined
          ? 'the environment of usr2'
          : `the env file ${config.envFile}`,
      identity,
      version: manifest?.version ?? '',
      fingerprint: fingerprint(entry),
      policy,
    },
  }
}

const sentence = (text: string): string => `${text[0]?.toUpperCase()}${text.slice(1)}`

/**
 * The same version once more, for a rollback that boots it.
 *
 * @param pinned of generation `id`, if it is kept
 * @returns the pin; or why what would boot is not what served then: a deploy in place leaves nothing to go back to
 */
export function pinAgain(id: number, pinned: Pinned | undefined): PinResult {
  if (pinned === undefined) return { ok: false, reasons: [`Nothing is kept of generation ${id}.`] }
  const { entry, cwd } = pinned
  const gone = [cwd, entry].find((path) => !existsSync(path))
  if (gone !== undefined) {
    const reason = `Generation ${id} cannot be booted again: ${gone} is gone.`
    return { ok: false, reasons: [reason] }
  }
  if (hasChanged(pinned)) {
    const reason =
      `Generation ${id} cannot be booted again: ${entry}, its package.json or its lock file has been changed in place since. ` +
      'Deploy each version into a directory of its own, or keep the previous generation alive with --park-for.'
    return { ok: false, reasons: [reason] }
  }
  return { ok: true, pinned }
}

/** Whether the code on disk is not what was pinned any more: deployed in place, or gone. */
export function hasChanged({ entry, fingerprint: pinned }: Pinned): boolean {
  return fingerprint(entry) !== pinned
}

export function policyOf(config: Config): Policy {
  const { ready, startTimeoutMs, shutdownTimeoutMs, killTimeoutMs, keepAliveTimeoutMs } = config
  const { minUptimeMs, maxRestarts, maxDraining, workers } = config
  const { steps, maxSurge, maxUnavailable, replaced, onFailure, hooks, hookTimeoutMs } = config
  const { minReadyMs, progressDeadlineMs, parkForMs } = config
  // What we make the app promise has to fit in.
  const promisedMs = keepAliveTimeoutMs === null ? 0 : keepAliveTimeoutMs + PROMISE_MARGIN_MS
  const drainTimeoutMs = Math.max(config.drainTimeoutMs, promisedMs)
  const times = { startTimeoutMs, drainTimeoutMs, shutdownTimeoutMs, killTimeoutMs, minUptimeMs }
  const probes: Partial<Record<ProbeKind, ProbePolicy>> = {}
  for (const kind of PROBES) {
    const spec = config.probes[kind]
    if (spec === undefined) continue
    const { target: _, ...policy } = spec
    probes[kind] = policy
  }
  return {
    slots: workers,
    ...{ steps, maxSurge, maxUnavailable, replaced, minReadyMs, progressDeadlineMs, parkForMs, onFailure },
    probes,
    warmUp: config.warmUp !== null,
    hooks: HOOKS.filter((hook) => hooks[hook] !== undefined),
    hookTimeoutMs,
    stopDelayMs: config.stopDelayMs,
    replaceAt: {
      memoryBytes: config.maxMemoryBytes,
      requests: config.maxRequests,
      ageMs: config.maxAgeMs,
    },
    ready,
    ...times,
    maxRestarts,
    maxDraining,
    grantTimeoutMs: GRANT_TIMEOUT_MS,
  }
}

/** The longest that a stop may take: what a unit's TimeoutStopSec must exceed. */
export function stopBudgetMs(policy: Policy): number {
  const hookMs = policy.hooks.includes('beforeStop') ? policy.hookTimeoutMs : 0
  const { stopDelayMs, drainTimeoutMs, shutdownTimeoutMs, killTimeoutMs } = policy
  return hookMs + stopDelayMs + drainTimeoutMs + shutdownTimeoutMs + killTimeoutMs
}

/** Node's own, between a parent and a child: another number for its channel, and a worker would be mute. */
const NODES = new Set(['NODE_CHANNEL_FD', 'NODE_CHANNEL_SERIALIZATION_MODE', 'NODE_UNIQUE_ID'])

const withoutNodes = (env: Readonly<Record<string, string>>): Record<string, string> =>
  Object.fromEntries(Object.entries(env).filter(([name]) => !NODES.has(name)))

function inherited(env: NodeJS.ProcessEnv): Record<string, string> {
  const own = (name: string): boolean => name.startsWith('USR2_') || NOTIFY_ENV_KEYS.includes(name)
  const kept = Object.entries(env).filter(([name, value]) => value !== undefined && !own(name))
  return withoutNodes(Object.fromEntries(kept) as Record<string, string>)
}

function realDirectory(path: string): string {
  const real = follow(path, 'the working directory')
  if (!statSync(real).isDirectory()) throw new Error(`${path}, the working directory, is not a directory.`)
  return real
}

function follow(path: string, what: string): string {
  try {
    return realpathSync.native(path)
  } catch (error) {
    throw new Error(`Could not find ${what} ${path}: ${why(error)}.`)
  }
}

const why = (error: unknown): string => {
  const code = error instanceof Error && 'code' in error ? String(error.code) : ''
  const known: Record<string, string> = {
    ENOENT: 'there is no such file',
    EACCES: 'this user may not read it',
    ELOOP: 'its symlinks go round in a circle',
    ENOTDIR: 'a part of the path is not a directory',
  }
  return known[code] ?? (error instanceof Error ? error.message : String(error))
}

/** Programs that only start another Node: workers of theirs would be out of our sight. By the name of their package. */
const LAUNCHERS = new Set([
  ...['npm', 'npx', 'yarn', 'pnpm', 'tsx', 'ts-node', 'nodemon', 'pm2', 'forever', 'cross-env', 'dotenv-cli'],
  ...['concurrently', 'env-cmd', 'corepack'],
])

function realEntry(config: Config): string {
  const given = config.entry
  const real = resolveEntry(config)
  const launcher = packageOf(real)?.name
  if (launcher !== undefined && LAUNCHERS.has(launcher)) throw new Error(launches(given, launcher, config))
  try {
    closeSync(openSync(real, 'r'))
  } catch (error) {
    throw new Error(`Could not read the entry ${given}: ${why(error)}.`)
  }
  if (['.js', '.cjs', '.mjs', '.ts', '.cts', '.mts'].includes(extname(real))) return real
  const head = firstBytes(real)
  if (head.startsWith('#!') && !/\bnode\b/.test(head)) {
    throw new Error(
      `The entry ${given} is a script for ${head.slice(2).trim()}, which would start Node out of usr2's sight: ` +
        'pass the JavaScript file that it runs.',
    )
  }
  if (head.startsWith('\x7fELF') || ['.json', '.node', '.wasm', '.sh'].includes(extname(real))) {
    throw new Error(`The entry ${given} is not a JavaScript file: pass the file that starts the app.`)
  }
  return real
}

/**
 * As `node <entry>` finds it: the file itself, with an extension added, or the main file of a directory. Not by
 * Node's own resolver: it remembers real paths for the life of the process, so that a `current` link which moved
 * would lead to the old release for ever.
 */
function resolveEntry(config: Config): string {
  const given = config.entry
  const found = fileAt(given) ?? mainOf(given)
  if (found !== undefined) return found
  const name = basename(given)
  if (!existsSync(given) && LAUNCHERS.has(name)) throw new Error(launches(name, name, config))
  follow(given, 'the entry')
  throw new Error(`The entry ${given} is a directory without a main file.`)
}

function fileAt(path: string): string | undefined {
  return ['', '.js', '.mjs', '.cjs']
    .map((extension) => path + extension)
    .filter(isFile)
    .map((candidate) => realpathSync.native(candidate))[0]
}

/** Whatever else is wrong with a path, such as a file for a directory, {@link follow} says in a sentence. */
function isFile(path: string): boolean {
  try {
    return statSync(path).isFile()
  } catch {
    return false
  }
}

function mainOf(directory: string): string | undefined {
  const main = packageIn(directory)?.main
  const inMain =
    main === undefined ? undefined : (fileAt(join(directory, main)) ?? fileAt(join(directory, main, 'index')))
  return inMain ?? fileAt(join(directory, 'index'))
}

/** The refusal of a launcher, with the file that it leads to where that can be seen. */
function launches(given: string, launcher: string, config: Config): string {
  const manifest = packageIn(config.cwd)
  const start = ['npm', 'yarn', 'pnpm', 'npx'].includes(launcher) ? manifest?.start : undefined
  const target = /(?:^|\s)(?:node|tsx|ts-node|nodemon)\s+(?:-\S+\s+)*(\S+\.[cm]?[jt]s)\b/.exec(
    start ?? '',
  )?.[1]
  const file = target ?? config.args.find((arg) => /\.[cm]?[jt]s$/.test(arg))
  return (
    `The entry ${given} only starts another Node (${launcher}), whose sockets and signals usr2 could not see: ` +
    (file
      ? `pass the file that it leads to, usr2 run ${file}.`
      : 'pass the JavaScript file that it leads to.')
  )
}

const isTypeScript = (path: string): boolean => /\.[cm]?ts$/.test(path)

function firstBytes(path: string): string {
  const fd = openSync(path, 'r')
  try {
    const buffer = Buffer.alloc(128)
    return buffer.toString('latin1', 0, readSync(fd, buffer, 0, buffer.length, 0)).split('\n', 1)[0] ?? ''
  } finally {
    closeSync(fd)
  }
}

interface Manifest {
  readonly path: string
  readonly name: string | undefined
  readonly version: string | undefined
  readonly main: string | undefined
  readonly start: string | undefined
}

/** The package that a file belongs to. One that cannot be read is none: it is the app's, not ours. */
function packageOf(file: string): Manifest | undefined {
  for (let at = dirname(file); ; at = dirname(at)) {
    const manifest = packageIn(at)
    if (manifest) return manifest
    if (dirname(at) === at) return undefined
  }
}

function packageIn(directory: string): Manifest | undefined {
  const path = join(directory, 'package.json')
  const text = (x: unknown): string | undefined => (typeof x === 'string' ? x : undefined)
  try {
    const json: unknown = JSON.parse(readFileSync(path, 'utf8'))
    if (typeof json !== 'object' || json === null) return undefined
    const { name, version, main, scripts } = json as Record<'name' | 'version' | 'main' | 'scripts', unknown>
    // A bare {"type": "module"} marks a folder, not a package.
    if (name === undefined && version === undefined && main === undefined) return undefined
    const start = (scripts as { start?: unknown } | undefined)?.start
    return { path, name: text(name), version: text(version), main: text(main), start: text(start) }
  } catch {
    return undefined
  }
}

/** Two pins with the same fingerprint boot the same code, as far as its entry, package and lock file can tell. */
function fingerprint(entry: string): string {
  const manifest = packageOf(entry)?.path
  const files = [entry, ...(manifest ? [manifest, join(dirname(manifest), 'package-lock.json')] : [])]
  // As text: a hash would load node:crypto, 5 MB of the master's memory on Node 24 and 26.
  return files
    .map((file) => {
      const found = stat(file)
      return `${file} ${found?.ino} ${found?.size} ${found?.mtimeMs}`
    })
    .join('\n')
}
