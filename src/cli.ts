#!/usr/bin/env node
/**
 * `usr2`: argv in, exit status out; one command per small function.
 *
 * Exit statuses (DESIGN section 4): 0 done; 1 not done, with the reason; 2 bad usage, every complaint at once;
 * 3 no master answers; 4 the master was lost before the verdict.
 */
// First of all: a signal that comes while the rest is loaded must find a handler, not end the process.
import './master/early-signals.ts'

import { readFileSync } from 'node:fs'

import {
  ABORT,
  COMMAND_NAMES,
  commandUsage,
  LS,
  mainUsage,
  parseArguments,
  PAUSE,
  PROMOTE,
  RELOAD,
  RESUME,
  ROLLBACK,
  SCALE,
  STATUS,
  STOP,
  unknownCommand,
  UPGRADE,
  type Arguments,
  type Command,
} from './cli/args.ts'
import { followRollout, type Following } from './cli/follow.ts'
import { marksFor } from './cli/rollout-text.ts'
import { BAD_USAGE, complain, fail, refuse, say } from './cli/say.ts'
import { isTerminal, Screen } from './cli/screen.ts'
import { readySlots, renderDrains, renderMasters, renderStatus } from './cli/status.ts'
import { asJson, formatDuration, printable } from './cli/text.ts'
import { watchStatus } from './cli/watch.ts'
import {
  controlCandidates,
  controlDirectories,
  defaultName,
  joinAsGiven,
  loadConfig,
  parseDuration,
  startDirectory,
  usage,
  wantsHelp,
} from './config.ts'
import {
  askOrder,
  askReload,
  askRollback,
  askStatus,
  askStop,
  askUpgrade,
  ControlError,
  findMaster,
  listMasters,
  MasterLostError,
  NoMasterError,
  type ControlConnection,
} from './master/control/control-client.ts'
import type { Status, Wait } from './master/face.ts'
import type { Order } from './rollout/state.ts'

const OK = 0
const FAILED = 1
const NO_MASTER = 3
const MASTER_LOST = 4

interface Client {
  readonly args: Arguments
  readonly json: boolean
}

const CLIENTS: ReadonlyMap<string, readonly [Command, (client: Client) => Promise<number>]> = new Map([
  ['reload', [RELOAD, reload]],
  ['rollback', [ROLLBACK, rollback]],
  ['promote', [PROMOTE, promote]],
  ['pause', [PAUSE, pause]],
  ['resume', [RESUME, resume]],
  ['abort', [ABORT, abort]],
  ['scale', [SCALE, scale]],
  ['status', [STATUS, status]],
  ['upgrade', [UPGRADE, upgrade]],
  ['stop', [STOP, stop]],
  ['ls', [LS, ls]],
])

async function main(argv: readonly string[]): Promise<number> {
  const [word, ...rest] = argv
  if (word === undefined) {
    process.stderr.write(mainUsage())
    return BAD_USAGE
  }
  if (word === 'run') return run(rest)
  if (word === 'drill') return drill(rest)
  if (word === 'check') return check(rest)
  if (word === 'systemd') return systemd(rest)
  const client = CLIENTS.get(word)
  if (client !== undefined) {
    const [command, perform] = client
    return talk(command, perform, rest)
  }
  if (word === 'help' || word === '--help' || word === '-h') return help(rest)
  if (word === 'version' || word === '--version' || word === '-v') return version()
  return refuse([unknownCommand(word)])
}

// ---- The commands -------------------------------------------------------------------------------------------------

async function run(argv: readonly string[]): Promise<number> {
  if (wantsHelp(argv)) return help(['run'])
  // Loaded only here: a client needs none of it.
  const { runMaster } = await import('./master/run.ts')
  let status: number
  try {
    status = await runMaster({ argv, env: process.env, cwd: process.cwd() })
  } catch (error) {
    // What the master foresees it says itself. This is a fault of ours, and its stack belongs into the report.
    const what = error instanceof Error ? (error.stack ?? error.message) : String(error)
    complain(`usr2: The master failed: ${what}`)
    status = FAILED
  }
  // A master that has stopped is gone, whatever timer or socket may have been forgotten.
  process.exit(status)
}

async function check(argv: readonly string[]): Promise<number> {
  const { runCheck } = await import('./cli/check.ts')
  process.exit(await runCheck(argv))
}

async function systemd(argv: readonly string[]): Promise<number> {
  const { runSystemd } = await import('./cli/systemd.ts')
  return runSystemd(argv)
}

/** A bundle of its own, loaded only here: a master never holds it in memory. */
async function drill(argv: readonly string[]): Promise<number> {
  const { runDrill } = await import('./cli/drill.ts')
  // What an interrupted drill still waits for is of no interest any more.
  process.exit(await runDrill(argv))
}

async function reload(client: Client): Promise<number> {
  const { args } = client
  return follow(client, (connection, wait) => {
    const request = { drop: args.many('--drop'), wait }
    return (watcher) => askReload(connection, request, watcher)
  })
}

async function rollback(client: Client): Promise<number> {
  const to = client.args.one('--to')
  return follow(client, (connection, wait) => {
    const request = { to: to === undefined ? null : Number(to), wait }
    return (watcher) => askRollback(connection, request, watcher)
  })
}

async function follow(
  { args, json }: Client,
  ask: (connection: ControlConnection, wait: Wait) => Following['ask'],
): Promise<number> {
  const connection = await find(args)
  const drawn = args.has('--watch') && !json && isTerminal(process.stdout, process.env)
  return followRollout({
    connection,
    json,
    timeout: args.one('--timeout'),
    picture: drawn ? marksFor(process.env) : null,
    ask: ask(connection, args.one('--wait') === 'drained' ? 'drained' : 'promoted'),
  })
}

async function upgrade({ args, json }: Client): Promise<number> {
  const node = args.one('--node')
  const connection = await find(args)
  const request = {
    node: node === undefined ? null : joinAsGiven(startDirectory(process.env, process.cwd()), node),
  }
  return followRollout({
    ...{ connection, json, timeout: args.one('--timeout'), picture: null, what: 'upgrade' },
    ask: (watcher) => askUpgrade(connection, request, watcher),
  })
}

async function promote(client: Client): Promise<number> {
  const full = client.args.has('--full')
  const done = full
    ? 'promoted in full: no hold and no analysis that is to come is waited for'
    : 'promoted: the rollout goes on'
  return order(client, { k: 'promote', full }, done)
}

async function pause(client: Client): Promise<number> {
  return order(client, { k: 'pause' }, 'paused, or will be when this share is reached; usr2 resume goes on')
}

async function resume(client: Client): Promise<number> {
  return order(client, { k: 'resume' }, 'resumed: the rollout goes on')
}

async function abort(client: Client): Promise<number> {
  return order(client, { k: 'abort' }, 'aborted: the generation before takes all connections')
}

async function scale(client: Client): Promise<number> {
  const { positional } = client.args
  const n = Number(positional)
  if (/^[+-]/.test(positional)) return order(client, { k: 'scale-by', by: n }, `scaling by ${positional}`)
  return order(client, { k: 'scale', to: n }, `scaling to ${n}`)
}

async function order({ args, json }: Client, what: Order, done: string): Promise<number> {
  const problem = await askOrder(await find(args), what)
  if (json) say(asJson(problem === null ? { done: true } : { refused: problem }))
  else if (problem === null) say(done)
  else complain(`usr2: ${printable(problem)}`)
  return problem === null ? OK : FAILED
}

async function status({ args, json }: Client): Promise<number> {
  const watch = args.has('--watch')
  if (watch && !json && !isTerminal(process.stdout, process.env)) {
    return refuse(['--watch draws on a terminal, and stdout is none; with --json it prints a line a second.'])
  }
  const marks = marksFor(process.env)
  const render = (answer: Status): string =>
    printable(args.has('--drain') ? renderDrains(answer) : renderStatus(answer, marks))
  const connection = await find(args)
  try {
    if (watch) {
      connection.close()
      const screen = new Screen(process.stdout)
      const stop = new AbortController()
      process.stdout.once('error', () => stop.abort())
      const show = (answer: Status) =>
        json ? say(asJson(answer)) : screen.draw(render(answer).trimEnd().split('\n'))
      await watchStatus(connection.path, show, { signal: stop.signal })
      return OK
    }
    const answer = await askStatus(connection)
    if (json) say(asJson(answer))
    else process.stdout.write(render(answer))
    return answer.state !== 'stopping' && readySlots(answer) >= answer.slots ? OK : FAILED
  } catch (error) {
    if (error instanceof MasterLostError) throw new NoMasterError(`${connection.path}: ${error.message}.`)
    throw error
  }
}

async function stop({ args, json }: Client): Promise<number> {
  const connection = await find(args)
  const { name, pid } = connection.hello
  const who = `"${printable(name)}" (pid ${pid})`
  const timeout = args.one('--timeout')
  let expired = false
  const timer =
    timeout === undefined
      ? null
      : setTimeout(() => {
          expired = true
          connection.close()
        }, parseDuration(timeout))
  const startedAt = performance.now()
  try {
    await askStop(connection, args.has('--now') ? 'now' : 'graceful', () => {
      say(json ? asJson({ stopping: true }) : `stopping ${who}`)
    })
    say(
      json ? asJson({ stopped: true }) : `stopped ${who} in ${formatDuration(performance.now() - startedAt)}`,
    )
    return OK
  } catch (error) {
    if (!(error instanceof MasterLostError)) throw error
    if (expired) {
      fail(`The master ${who} has not stopped within ${timeout}; it goes on stopping.`, json)
      return FAILED
    }
    fail(`The master ${who} was lost before it said that it had stopped: ${error.message}.`, json)
    return MASTER_LOST
  } finally {
    if (timer !== null) clearTimeout(timer)
  }
}

async function ls({ json }: Client): Promise<number> {
  const directories = controlDirectories(process.env).map(({ directory }) => directory)
  const masters = await listMasters(directories)
  if (json) say(asJson(masters.map(({ path, status }) => ({ control: path, ...status }))))
  else if (masters.length > 0) process.stdout.write(printable(renderMasters(masters)))
  else complain(`usr2: No master answers in ${directories.join(' or ')}.`)
  return OK
}

async function help([word, ...more]: readonly string[]): Promise<number> {
  if (more.length > 0) return refuse([`"usr2 help" takes one command, not ${more.length + 1}.`])
  const client = word === undefined ? undefined : CLIENTS.get(word)
  if (client !== undefined) process.stdout.write(commandUsage(client[0]))
  else if (word === 'run') process.stdout.write(usage('run'))
  else if (word === 'check') process.stdout.write((await import('./cli/check.ts')).checkUsage())
  else if (word === 'drill') process.stdout.write((await import('./cli/drill.ts')).drillUsage())
  else if (word === 'systemd') process.stdout.write((await import('./cli/systemd.ts')).systemdUsage())
  else if (word === undefined || COMMAND_NAMES.includes(word)) process.stdout.write(mainUsage())
  else return refuse([unknownCommand(word)])
  return OK
}

function version(): number {
  // One level up from src/ as from dist/.
  const file = readFileSync(new URL('../package.json', import.meta.url), 'utf8')
  const { version } = JSON.parse(file) as { version: string }
  say(version)
  return OK
}

// ---- What the clients share ---------------------------------------------------------------------------------------

async function talk(
  command: Command,
  perform: (client: Client) => Promise<number>,
  argv: readonly string[],
): Promise<number> {
  // `usr2 status | head -1` closes our stdout; that is no reason for a stack trace, nor to leave a rollout alone.
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {})
  const args = parseArguments(command, argv)
  if (args.help) return help([command.name])
  if (args.complaints.length > 0) return refuse(args.complaints)
  const json = args.has('--json')
  try {
    return await perform({ args, json })
  } catch (error) {
    if (!(error instanceof ControlError)) throw error
    fail(error.message, json)
    return error instanceof NoMasterError
      ? NO_MASTER
      : error instanceof MasterLostError
        ? MASTER_LOST
        : FAILED
  }
}

/**
 * The master that is meant: the one at `--control`, or the one called `--name`, or the one that `usr2 run` started
 * in this directory with this environment would be.
 */
async function find(args: Arguments): Promise<ControlConnection> {
  const control = args.one('--control')
  const name = args.one('--name')
  const here = startDirectory(process.env, process.cwd())
  if (control !== undefined && name === undefined) return findMaster([joinAsGiven(here, control)])
  if (name !== undefined) {
    const paths = control === undefined ? controlCandidates(name, process.env) : [joinAsGiven(here, control)]
    // USR2_CONTROL may lead to another master: never reload that one by mistake.
    return findMaster(paths, { name })
  }
  return findMaster(placesFromHere(here))
}

function placesFromHere(here: string): readonly string[] {
  // The entry is of no interest here, and neither is what is wrong with the rest: the master says that at a reload.
  const loaded = loadConfig({ argv: ['--', 'entry'], env: process.env, cwd: process.cwd() })
  if (loaded.ok) {
    const { control, name } = loaded.config
    return control === null ? controlCandidates(name, process.env) : [control]
  }
  const fallback = defaultName(here)
  const name = process.env['USR2_NAME'] || (fallback.ok ? fallback.name : undefined)
  return controlCandidates(name, process.env)
}

process.exitCode = await main(process.argv.slice(2))
