/** `usr2 systemd install|print`: what this machine is like, put into the units of src/cli/systemd-unit.ts, and written. */
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { delimiter, dirname, isAbsolute, join, relative } from 'node:path'
import { commandUsage, parseArguments, splitOptions, type Arguments, type Command } from './args.ts'
import { BAD_USAGE, complain, refuse, say } from './say.ts'
import { printable } from './text.ts'
import { joinAsGiven, loadConfig, startDirectory, usage, type Config } from '../config.ts'
import { policyOf, stopBudgetMs } from '../master/workers/generation.ts'
import type { Policy } from '../rollout/state.ts'
import {
  commandLine,
  parseListen,
  serviceName,
  serviceText,
  socketName,
  socketText,
  UNIT_NAME,
  type UnitSpec,
  type UnitTimes,
} from './systemd-unit.ts'

const OK = 0
const FAILED = 1
const UNIT_DIRECTORY = '/etc/systemd/system'

/** The oldest whose every key in the unit is known to it (ProtectProc=, 247). */
const OLDEST_SYSTEMD = 247

const USER_RULE = {
  says: 'the name or number of a user or group, such as shop',
  // What a directory service has, too: ACME\\shop, shop@acme.
  keeps: (text: string) => /^[\w.][\w.@\\-]{0,255}\$?$/.test(text),
}
const PLACE: Command['options'] = [
  {
    flag: '--name',
    value: 'NAME',
    means: "the app's name; the unit is usr2@NAME.service (as `usr2 run` here)",
  },
  {
    flag: '--cwd',
    value: 'DIR',
    means: 'do as if this were typed there; a link, such as current, stays one',
  },
  {
    flag: '--user',
    value: 'USER',
    means: 'the user of the service (one made for it: DynamicUser)',
    rule: USER_RULE,
  },
  { flag: '--group', value: 'GROUP', means: "its group (the user's)", rule: USER_RULE },
  {
    flag: '--listen',
    value: 'ADDRESS',
    many: true,
    means: 'a socket that systemd is to hold: 80, 127.0.0.1:3000, [::1]:3000, /run/shop.sock, udp:53',
    rule: {
      says: 'a port, an IP address and port, the path of a socket, or udp: and a port, such as 3000 or [::1]:3000',
      keeps: (text) => parseListen(text) !== undefined,
    },
  },
  {
    flag: '--systemd-version',
    value: 'N',
    means: `write for that version (the one here), ${OLDEST_SYSTEMD} or newer`,
    rule: {
      says: `the number of a version of systemd, ${OLDEST_SYSTEMD} or newer`,
      keeps: (text) => /^[1-9]\d{2}$/.test(text) && Number(text) >= OLDEST_SYSTEMD,
    },
  },
]

const NOTES = [
  'Before the entry also every option of "usr2 run"; they go into the unit as they are. With --listen there is a .socket',
  'beside the .service: a port below 1024 needs no capability then, and connections wait while the master restarts.',
]

export const PRINT: Command = {
  name: 'systemd print',
  summary: 'the unit of an app, on stdout: usr2 systemd print server.js',
  options: PLACE,
  notes: [...NOTES, '', 'Exit status: 0 done; 2 bad usage or configuration.'],
}
export const INSTALL: Command = {
  name: 'systemd install',
  summary: `write the unit of an app into ${UNIT_DIRECTORY}: usr2 systemd install server.js`,
  options: [
    ...PLACE,
    {
      flag: '--root',
      value: 'DIR',
      means: `write into DIR${UNIT_DIRECTORY}, for the image of another machine`,
    },
    { flag: '--dry-run', means: 'say what would be written, and write nothing' },
    { flag: '--force', means: 'also over a file that was edited, or that is not of usr2' },
  ],
  notes: [
    ...NOTES,
    'A file that was edited since is left as it is, and nothing is written. systemd is not told: the commands for that are',
    'said at the end. "usr2 systemd print" takes the same arguments and writes to stdout.',
    '',
    'Exit status: 0 done; 1 not written, with the reason; 2 bad usage or configuration.',
  ],
}

export const systemdUsage = (command = INSTALL): string => `${commandUsage(command)}\n${usage(command.name)}`

export async function runSystemd([word, ...argv]: readonly string[]): Promise<number> {
  const command = word === 'install' ? INSTALL : word === 'print' ? PRINT : undefined
  if (command === undefined) {
    if (word !== undefined && word !== '--help' && word !== '-h') {
      return refuse([`"usr2 systemd" is install or print, not ${JSON.stringify(word)}.`])
    }
    ;(word === undefined ? process.stderr : process.stdout).write(systemdUsage())
    return word === undefined ? BAD_USAGE : OK
  }
  // `usr2 systemd print | head` closes our stdout; that is no reason for a stack trace.
  process.stdout.on('error', () => {})
  const { ours, theirs, complaints } = splitOptions(command, argv)
  const args = parseArguments(command, ours)
  if (args.help) {
    process.stdout.write(systemdUsage(command))
    return OK
  }
  const made = await unitsOf(args, theirs, [...complaints, ...args.complaints])
  if (!made.ok) return refuse(made.complaints)
  for (const warning of made.warnings) complain(`usr2: ${printable(warning)}`)
  if (word === 'print') {
    process.stdout.write(made.units.map(({ text }) => text).join('\n'))
    return OK
  }
  return install(made.units, args)
}

// ---- What is to be written ----------------------------------------------------------------------------------------

interface Unit {
  readonly name: string
  readonly text: string
}
type Made =
  | { readonly ok: true; readonly units: readonly Unit[]; readonly warnings: readonly string[] }
  | { readonly ok: false; readonly complaints: readonly string[] }

async function unitsOf(
  args: Arguments,
  theirs: readonly string[],
  complaints: readonly string[],
): Promise<Made> {
  const here = startDirectory(process.env, process.cwd())
  const cwd = joinAsGiven(here, args.one('--cwd') ?? '.')
  const warnings: string[] = []
  if (!args.has('--cwd') && process.env['PWD'] === undefined) {
    warnings.push(
      `There is no PWD in the environment (sudo takes it away), so the unit is for ${cwd}, with every link followed; where a ` +
        'link such as current is to be followed anew at each reload, give it by --cwd.',
    )
  }
  const env: NodeJS.ProcessEnv = { PWD: cwd }
  for (const [key, value] of Object.entries(process.env)) {
    if (!key.startsWith('USR2_')) env[key] ??= value
    else
      warnings.push(
        `${key} of this shell does not go into the unit; give it as an option, or in the config file.`,
      )
  }
  const asked = args.one('--name')
  const named = asked === undefined ? [] : ['--name', asked]
  const loaded = loadConfig({ argv: [...named, ...theirs], env, cwd })
  const wrong = [...complaints, ...(loaded.ok ? [] : loaded.complaints)]
  if (!isDirectory(cwd)) wrong.push(`${cwd} is no directory; the app is looked for from there.`)
  const script = ownScript(here)
  if (!script.ok) wrong.push(script.complaint)
  if (loaded.ok && !UNIT_NAME.test(loaded.config.name)) {
    wrong.push(
      `The name ${JSON.stringify(loaded.config.name)} cannot be part of a unit's name; give --name with letters, digits, ` +
        '"_", "-" and ".".',
    )
  }
  if (args.has('--group') && !args.has('--user')) {
    wrong.push('--group is given without --user; a user that is made for the service has a group of its own.')
  }
  if (!loaded.ok || !script.ok || wrong.length > 0) return { ok: false, complaints: wrong }

  const { config } = loaded
  const version = args.one('--systemd-version')
  const systemd = version === undefined ? await systemdVersion() : Number(version)
  if (systemd === null) {
    warnings.push(
      'There is no systemctl here; this is written so that every systemd takes it (see --systemd-version).',
    )
  }
  const node = ownNode()
  const { name, control } = config
  const times = timesOf(policyOf(config))
  const listen = args.many('--listen').flatMap((text) => parseListen(text) ?? [])
  const user = args.one('--user') ?? null
  const reads = [node, script.path, cwd, config.cwd, config.entry, config.sources.file, config.envFile]
  const places = [...new Set(reads.filter((path) => path !== null))]
  warnings.push(
    ...(user === null ? closedPlaces(places) : []),
    ...unseenPlaces(places),
    ...readOnlyPlaces(config),
  )
  if (!existsSync(config.entry)) warnings.push(`${config.entry}, the entry, does not exist yet.`)
  const command = [script.path]
  const reload = [
    ...['reload', ...(control === null ? ['--name', name] : ['--control', control])],
    ...(times.reloadSec === null ? [] : ['--timeout', `${times.reloadSec}s`]),
  ]
  const spec: UnitSpec = {
    name,
    header: headerOf(serviceName(name), name, systemd),
    execStart: commandLine(node, [...command, 'run', '--name', name, ...theirs]),
    execReload: commandLine(node, [...command, ...reload]),
    cwd,
    user,
    group: args.one('--group') ?? null,
    times,
    readsHome: places.some((path) => isUnder(path, ['/home', '/root', '/run/user'])),
    systemd,
    listen,
  }
  const socket = { name, header: headerOf(socketName(name), name, systemd), listen }
  const units = [
    { name: serviceName(name), text: signed(serviceText(spec)) },
    ...(listen.length > 0 ? [{ name: socketName(name), text: signed(socketText(socket)) }] : []),
  ]
  return { ok: true, units, warnings }
}

const headerOf = (unit: string, name: string, systemd: number | null): readonly string[] => [
  `${unit}: the Node.js app ${name} under usr2, written by \`usr2 systemd\` for ${systemd === null ? 'any systemd' : `systemd ${systemd}`}.`,
  `Change it by \`systemctl edit ${unit}\` (a drop-in), not here: a file that was edited is not renewed.`,
]

/** Room above what usr2 itself takes for giving up: whoever has the reason should be the one that ends it. */
const START_MARGIN_MS = 30_000
const RELOAD_MARGIN_MS = 20_000
const CLIENT_MARGIN_MS = 10_000
const STOP_MARGIN_MS = 15_000

const upToSeconds = (ms: number): number => Math.ceil(ms / 1000)

export function timesOf(policy: Policy): UnitTimes {
  const { startTimeoutMs, drainTimeoutMs, shutdownTimeoutMs, killTimeoutMs, hooks, hookTimeoutMs } = policy
  const hooksMs = hooks.length * hookTimeoutMs
  const reloadMs = reloadBudgetMs(policy)
  const reloadSec = reloadMs === null ? null : upToSeconds(reloadMs + RELOAD_MARGIN_MS)
  const startSec = upToSeconds(startTimeoutMs + hooksMs + START_MARGIN_MS)
  const s = (ms: number): string => `${ms / 1000} s`
  const withHooks = hooksMs > 0 ? ` and the hooks' time (${s(hooksMs)})` : ''
  const stopMs = stopBudgetMs(policy)
  const beforeMs = stopMs - drainTimeoutMs - shutdownTimeoutMs - killTimeoutMs
  const before = beforeMs > 0 ? `${s(beforeMs)} before the drain + ` : ''
  const reloadIs = reloadMs === null ? 'A rollout waits for a person' : 'The limit of a reload too'
  return {
    startSec: reloadSec === null ? null : Math.max(startSec, reloadSec + upToSeconds(CLIENT_MARGIN_MS)),
    reloadSec,
    stopSec: upToSeconds(stopMs + STOP_MARGIN_MS),
    startIs: [`Above startTimeout (${s(startTimeoutMs)})${withHooks}. ${reloadIs}.`],
    stopIs: [
      `Above the stop budget: ${before}drainTimeout ${s(drainTimeoutMs)} + shutdownTimeout ${s(shutdownTimeoutMs)} + killTimeout ${s(killTimeoutMs)}.`,
      'Raise it with them; a keep-alive of the app that is longer than the drain raises the drain to it + 2 s.',
    ],
  }
}

/**
 * How long a reload may take that goes as configured: its boots, one after another where workers are replaced so, and all
 * that it waits for. Null: for a person.
 */
function reloadBudgetMs(policy: Policy): number | null {
  const { steps, slots, replaced, maxSurge, maxUnavailable, startTimeoutMs, minReadyMs } = policy
  const amount = ({ k, n }: Policy['maxSurge']): number => (k === 'workers' ? n : (n * slots) / 100)
  const atOnce = Math.max(1, Math.floor(amount(maxSurge) + amount(maxUnavailable)))
  const shares = Math.max(1, steps.filter(({ k }) => k === 'share').length)
  const boots = replaced === 'drained' ? Math.max(shares, Math.ceil(slots / atOnce)) : shares
  // What is replaced one by one may have to leave before the next is started.
  const leaveMs = replaced === 'drained' ? boots * (minReadyMs + stopBudgetMs(policy)) : minReadyMs
  let ms = boots * startTimeoutMs + leaveMs
  ms += policy.hooks.length * policy.hookTimeoutMs
  for (const step of steps) {
    if (step.k === 'analyse') ms += step.analysis.intervalMs * step.analysis.count
    else if (step.k === 'hold' && step.forMs === 'promote') return null
    else if (step.k === 'hold') ms += Number(step.forMs)
  }
  return ms
}

// ---- What the machine is like -------------------------------------------------------------------------------------

const SYSTEMCTL_DEADLINE_MS = 5_000

function systemdVersion(): Promise<number | null> {
  return new Promise((resolve) => {
    execFile('systemctl', ['--version'], { timeout: SYSTEMCTL_DEADLINE_MS }, (_error, stdout) => {
      const digits = /^systemd (\d+)/.exec(String(stdout))?.[1]
      resolve(digits === undefined ? null : Number(digits))
    })
  })
}

/** As it is found in PATH: /usr/bin/node outlives an update of what it leads to, process.execPath need not. */
function ownNode(): string {
  const inPath = (process.env['PATH'] ?? '')
    .split(delimiter)
    .filter((directory) => isAbsolute(directory))
    .map((directory) => join(directory, 'node'))
  return inPath.find((path) => realPath(path) === realPath(process.execPath)) ?? process.execPath
}

/** The usr2 that runs, by the path that it was called by: /usr/local/bin/usr2 rather than what it leads to. */
function ownScript(here: string): { ok: true; path: string } | { ok: false; complaint: string } {
  const given = process.argv[1] ?? ''
  const inside = relative(process.cwd(), given)
  // Node resolved a relative one against the release that `current` leads to today.
  const path = inside.startsWith('..') || isAbsolute(inside) ? given : joinAsGiven(here, inside)
  if (/\/_npx\//.test(realPath(path))) {
    return {
      ok: false,
      complaint:
        `usr2 was started by npx, from a directory that npm may empty at any time (${path}); install it first, by ` +
        '"npm install --global usr2" or into the app, and run that one.',
    }
  }
  return { ok: true, path }
}

function realPath(path: string): string {
  try {
    return realpathSync.native(path)
  } catch {
    return path
  }
}

function isDirectory(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() === true
}

/** By its own name or by where it leads to. */
const isUnder = (path: string, directories: readonly string[]): boolean =>
  [path, realPath(path)].some((p) => directories.some((d) => p === d || p.startsWith(`${d}/`)))

/** What a user that is neither root nor owner cannot reach, by the first closed directory: one sentence for each. */
function closedPlaces(paths: readonly string[]): readonly string[] {
  const closed = new Map<string, string>()
  for (const path of paths.map(realPath)) {
    for (let at = path, bit = 0o004; ; at = dirname(at), bit = 0o001) {
      const mode = statSync(at, { throwIfNoEntry: false })?.mode
      // Of a directory that is only on the way, and of the working directory, entering is enough.
      const needed = isDirectory(at) ? 0o001 : bit
      if (mode !== undefined && (mode & needed) === 0) closed.set(at, path)
      if (at === dirname(at)) break
    }
  }
  return [...closed].map(
    ([at, path]) =>
      `${at} is closed to other users, and the service's own user (DynamicUser) has to reach ${path}: open it ` +
      `(chmod o+${at === path && !isDirectory(at) ? 'r' : 'x'} ${at}), or give --user.`,
  )
}

function unseenPlaces(paths: readonly string[]): readonly string[] {
  return paths
    .filter((path) => isUnder(path, ['/tmp', '/var/tmp']))
    .map(
      (path) =>
        `${path} lies in a directory of which the service sees an empty one of its own (PrivateTmp=).`,
    )
}

function readOnlyPlaces({ name, control, pidFile, metrics }: Config): readonly string[] {
  const written = [control, pidFile, metrics !== null && 'path' in metrics ? metrics.path : null]
  return written
    .filter((path) => path !== null)
    .filter((path) => !isUnder(path, [`/run/usr2/${name}`, `/var/lib/usr2/${name}`]))
    .map(
      (path) =>
        `${path} is to be written, and the service may write into /run/usr2/${name} and /var/lib/usr2/${name} only; ` +
        'leave it out, move it there, or add ReadWritePaths= by systemctl edit.',
    )
}

// ---- Writing ------------------------------------------------------------------------------------------------------

const SIGNATURE = '# Unedited while this is the SHA-256 of all lines above: '

const digest = (text: string): string => createHash('sha256').update(text).digest('hex')

const signed = (text: string): string => `${text}\n${SIGNATURE}${digest(`${text}\n`)}\n`

/** Whether a file is as `usr2 systemd` wrote it, whichever version of it. */
export function isUnedited(content: string): boolean {
  const at = content.lastIndexOf(SIGNATURE)
  return at >= 0 && content.slice(at) === `${SIGNATURE}${digest(content.slice(0, at))}\n`
}

type Verdict = 'new' | 'unchanged' | 'renewed' | 'edited' | 'foreign'

/** A link (a masked unit leads to /dev/null) is somebody's decision, too. */
function verdictOf(path: string, text: string): Verdict {
  const found = lstatSync(path, { throwIfNoEntry: false })
  if (found === undefined) return 'new'
  if (!found.isFile()) return 'foreign'
  const content = readFileSync(path, 'utf8')
  if (content === text) return 'unchanged'
  if (isUnedited(content)) return 'renewed'
  return content.includes(SIGNATURE) ? 'edited' : 'foreign'
}

function install(units: readonly Unit[], args: Arguments): number {
  const root = args.one('--root')
  const directory =
    root === undefined ? UNIT_DIRECTORY : join(joinAsGiven(process.cwd(), root), UNIT_DIRECTORY)
  const dry = args.has('--dry-run')
  try {
    const plan = units.map(({ name, text }) => {
      const path = join(directory, name)
      return { path, text, verdict: verdictOf(path, text) }
    })
    const kept = plan.filter(({ verdict }) => verdict === 'edited' || verdict === 'foreign')
    if (kept.length > 0 && !args.has('--force')) {
      for (const { path, verdict } of kept) {
        const why = verdict === 'edited' ? 'was edited since usr2 wrote it' : 'is not a file of usr2'
        complain(
          `usr2: ${printable(path)} ${why}, so nothing ${dry ? 'would be' : 'was'} written. "usr2 systemd print" with the ` +
            'same arguments shows what it would be; --force replaces it.',
        )
      }
      return FAILED
    }
    for (const { path, text, verdict } of plan) {
      if (verdict !== 'unchanged' && !dry) put(path, text)
      const done = { new: 'written', unchanged: 'is as it should be', renewed: 'renewed' }
      const would = { new: 'would be written', unchanged: 'is as it should be', renewed: 'would be renewed' }
      const replaced = { edited: 'replaced', foreign: 'replaced' }
      const wouldReplace = { edited: 'would be replaced', foreign: 'would be replaced' }
      say(`${printable(path)} ${(dry ? { ...would, ...wouldReplace } : { ...done, ...replaced })[verdict]}`)
    }
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    const hint =
      code === 'EACCES' || code === 'EPERM'
        ? '; run it as root: sudo env PATH="$PATH" usr2 systemd install --cwd "$PWD" …'
        : ''
    complain(`usr2: The units could not be written into ${directory}: ${message}${hint}.`)
    return FAILED
  }
  sayWhatIsLeft(units, directory, root === undefined && !dry)
  return OK
}

/** Whole or not at all, and never through a link that is in its place. */
function put(path: string, text: string): void {
  mkdirSync(dirname(path), { recursive: true })
  const temporary = `${path}.${process.pid}`
  try {
    writeFileSync(temporary, text, { mode: 0o644, flag: 'wx' })
    renameSync(temporary, path)
  } catch (error) {
    rmSync(temporary, { force: true })
    throw error
  }
}

function sayWhatIsLeft(units: readonly Unit[], directory: string, commands: boolean): void {
  const [service] = units
  if (service === undefined) return
  const socket = service.name.replace(/service$/, 'socket')
  if (units.length === 1 && existsSync(join(directory, socket))) {
    say(
      `${socket} is there from before, and no --listen was given: without it, systemctl disable --now ${socket}`,
    )
  }
  if (!commands) return
  say('Next:')
  say('  systemctl daemon-reload')
  say(`  systemctl enable --now ${units.map(({ name }) => name).join(' ')}`)
}
