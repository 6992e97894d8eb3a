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
  COMMAND_NAMES,
  commandUsage,
  LS,
  mainUsage,
  parseArguments,
  RELOAD,
  STATUS,
  STOP,
  unknownCommand,
  type Arguments,
  type Command,
} from './cli-args.ts'
import {
  formatDuration,
  printable,
  renderDrains,
  renderMasters,
  renderStatus,
  renderVerdict,
} from './cli-status.ts'
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
  askReload,
  askStatus,
  askStop,
  ControlError,
  findMaster,
  listMasters,
  MasterLostError,
  NoMasterError,
  type ControlConnection,
} from './master/control-client.ts'
import type { Status, Verdict } from './master/face.ts'

const OK = 0
const FAILED = 1
const BAD_USAGE = 2
const NO_MASTER = 3
const MASTER_LOST = 4
/** 128 + SIGINT, as shells have it. */
const INTERRUPTED = 130

/** How long an aborted rollout may take to say so. It ends at once, unless others asked for it too. */
const ABORT_GRACE_MS = 10_000

interface Client {
  readonly args: Arguments
  readonly json: boolean
}

const CLIENTS: ReadonlyMap<string, readonly [Command, (client: Client) => Promise<number>]> = new Map([
  ['reload', [RELOAD, reload]],
  ['status', [STATUS, status]],
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

/** A bundle of its own, loaded only here: a master never holds it in memory. */
async function drill(argv: readonly string[]): Promise<number> {
  const { runDrill } = await import('./cli-drill.ts')
  // What an interrupted drill still waits for is of no interest any more.
  process.exit(await runDrill(argv))
}

async function reload({ args, json }: Client): Promise<number> {
  const connection = await find(args)
  const timeout = args.one('--timeout')
  const wait = args.one('--wait') === 'drained' ? 'drained' : 'promoted'
  let verdict: Verdict | null = null
  let detached = false

  /** Set once the rollout is to end, or the wait for its drain: why, as the end of a sentence. */
  let gaveUp: string | null = null
  let grace: NodeJS.Timeout | null = null
  const giveUp = (why: string) => {
    if (gaveUp !== null) return
    gaveUp = why
    if (verdict !== null) {
      connection.close() // Promoted already: only the drain was waited for, and that goes on.
    } else {
      connection.send({ cmd: 'abort', reason: why })
      grace = setTimeout(() => connection.close(), ABORT_GRACE_MS)
    }
  }
  const timer =
    timeout === undefined
      ? null
      : setTimeout(() => giveUp(`--timeout ${timeout} expired`), parseDuration(timeout))
  const onTerm = () => giveUp('the client that asked for it got SIGTERM')
  const onInt = () => {
    detached = true
    connection.close()
  }
  process.on('SIGTERM', onTerm).on('SIGINT', onInt)

  try {
    const end = await askReload(
      connection,
      { drop: args.many('--drop'), wait },
      {
        progress: (progress) => say(json ? JSON.stringify({ progress }) : printable(progress.text)),
        verdict: (its) => {
          verdict = its
          if (grace !== null) clearTimeout(grace)
          if (json) say(JSON.stringify({ verdict: its }))
          else if (its.outcome === 'promoted') say(renderVerdict(its))
          else complain(`usr2: ${renderVerdict(its)}`)
          // The abort came too late for the rollout; the drain is what is not waited for then.
          if (gaveUp !== null && its.outcome === 'promoted') connection.close()
        },
      },
    )
    if (end.drained !== null) {
      say(json ? JSON.stringify({ drained: end.drained }) : printable(end.drained.text))
    }
    if (end.verdict.outcome === 'promoted') return OK
    if (gaveUp !== null && !end.verdict.text.includes(gaveUp))
      fail(`The rollout was aborted: ${gaveUp}.`, json)
    return FAILED
  } catch (error) {
    if (!(error instanceof MasterLostError)) throw error
    const follow = `usr2 status --control ${connection.path}`
    if (detached) {
      fail(`Detached; nothing is aborted, the rollout goes on. To follow it: ${follow}`, json)
      return INTERRUPTED
    }
    const promoted = verdict !== null
    if (gaveUp !== null) {
      const then = promoted
        ? 'The new generation is promoted, but the old one has not drained yet and goes on'
        : 'The rollout was to be aborted, but the master gave no verdict'
      fail(`${then}: ${gaveUp}. To follow it: ${follow}`, json)
      return FAILED
    }
    const { name, pid } = connection.hello
    const when = promoted ? 'before the old generation had drained' : 'before the verdict'
    fail(`The master "${name}" (pid ${pid}) was lost ${when}: ${error.message}. Its log says why.`, json)
    return MASTER_LOST
  } finally {
    process.off('SIGTERM', onTerm).off('SIGINT', onInt)
    if (timer !== null) clearTimeout(timer)
    if (grace !== null) clearTimeout(grace)
  }
}

async function status({ args, json }: Client): Promise<number> {
  const connection = await find(args)
  let answer: Status
  try {
    answer = await askStatus(connection)
  } catch (error) {
    if (error instanceof MasterLostError) throw new NoMasterError(`${connection.path}: ${error.message}.`)
    throw error
  }
  if (json) say(JSON.stringify(answer))
  else process.stdout.write(args.has('--drain') ? renderDrains(answer) : renderStatus(answer))
  return answer.state !== 'stopping' && answer.ready >= answer.slots ? OK : FAILED
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
      say(json ? JSON.stringify({ stopping: true }) : `stopping ${who}`)
    })
    say(
      json
        ? JSON.stringify({ stopped: true })
        : `stopped ${who} in ${formatDuration(performance.now() - startedAt)}`,
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
  if (json) say(JSON.stringify(masters.map(({ path, status }) => ({ control: path, ...status }))))
  else if (masters.length > 0) process.stdout.write(renderMasters(masters))
  else complain(`usr2: No master answers in ${directories.join(' or ')}.`)
  return OK
}

async function help([word, ...more]: readonly string[]): Promise<number> {
  if (more.length > 0) return refuse([`"usr2 help" takes one command, not ${more.length + 1}.`])
  const client = word === undefined ? undefined : CLIENTS.get(word)
  if (client !== undefined) process.stdout.write(commandUsage(client[0]))
  else if (word === 'run') process.stdout.write(usage('run'))
  else if (word === 'drill') process.stdout.write((await import('./cli-drill.ts')).drillUsage())
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

function say(line: string): void {
  process.stdout.write(`${line}\n`)
}

function complain(line: string): void {
  process.stderr.write(`${line}\n`)
}

/** With `--json` an error is a line like the others: who reads JSON reads stdout. */
function fail(sentence: string, json: boolean): void {
  if (json) say(JSON.stringify({ error: sentence }))
  else complain(`usr2: ${printable(sentence)}`)
}

function refuse(complaints: readonly string[]): number {
  for (const complaint of complaints) complain(`usr2: ${printable(complaint)}`)
  return BAD_USAGE
}

process.exitCode = await main(process.argv.slice(2))
