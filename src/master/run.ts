/** `usr2 run`: wires the parts of a master together, and takes them apart again. Read this file first. */
// Before anything of the master is evaluated.
import './v8-flags.ts'
import { accessSync, constants, copyFileSync, existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { StackReader, busyness } from './blocked.ts'
import { defaultControlPath, loadConfig, needsRestart, startDirectory } from '../config.ts'
import type { Config } from '../config.ts'
import type { MetricsAt } from '../config.ts'
import { openControl } from './control.ts'
import type { Control } from './control.ts'
import { hasTerminal, letGoOfTerminal, listenToSignals } from './early-signals.ts'
import { pinGeneration, stopBudgetMs } from './generation.ts'
import type { PinResult } from './generation.ts'
import { isAlive } from './leftovers.ts'
import { OLDEST_MAJOR } from './node-binary.ts'
import type { Metrics } from './metrics.ts'
import { removePidFile, writePidFile } from './pid-file.ts'
import { createLogger, ownVersion } from './report.ts'
import { seconds } from './words.ts'
import { checkUnitTimes } from './unit-times.ts'
import { Supervisor } from './supervisor.ts'
import { createNotifier } from './systemd.ts'

export interface RunInput {
  /** What follows `usr2 run`. */
  readonly argv: readonly string[]
  readonly env: NodeJS.ProcessEnv
  readonly cwd: string
}

/** Gives the exit status: 0 stopped as asked, 1 could not start or gave up, 2 bad usage or configuration. */
export async function runMaster({ argv, env, cwd }: RunInput): Promise<number> {
  if (Number.parseInt(process.versions.node, 10) < OLDEST_MAJOR) {
    return complain(2, [`usr2 needs Node.js ${OLDEST_MAJOR} or newer, and this is ${process.versions.node}.`])
  }
  const input = { argv, env: { ...env }, cwd: startDirectory(env, cwd) }
  const loaded = loadConfig(input)
  if (!loaded.ok) return complain(2, loaded.complaints)
  const { config } = loaded
  const first = await pinGeneration(config, env)
  if (!first.ok) return complain(2, first.reasons)
  const place = defaultControlPath(config, env, canWrite)
  if (!place.ok) return complain(1, [place.complaint])

  const log = await createLogger(config.logLevel, config.name)
  for (const warning of loaded.warnings) log.warn({}, warning)
  // Nothing of ours may pin a release's directory; the workers get theirs with each spawn.
  process.chdir('/')

  const pin = async (): Promise<PinResult> => {
    const again = loadConfig(input)
    if (!again.ok) return { ok: false, reasons: again.complaints }
    const fixed = needsRestart(config, again.config)
    if (fixed.length > 0) {
      log.warn({ keys: fixed }, `changed, but only a restart can change it: ${fixed.join(', ')}`)
    }
    return pinGeneration(again.config, env)
  }

  const notifier = createNotifier({ env: process.env, log })
  let control: Control | undefined
  let metrics: Metrics | undefined
  let stacks: StackReader | undefined
  let runtime: string | undefined
  let end: (status: number) => void = () => {}
  const ended = new Promise<number>((resolve) => (end = resolve))
  try {
    const preload = (): string => (runtime ??= makeRuntimeDirectory(place.path, config.name))
    const face = new Supervisor({
      config,
      log,
      notifier,
      get preload() {
        return join(preload(), 'preload.cjs')
      },
      pin,
      onServing: () => writePid(config, log),
      onEnd: (status) => end(status),
      inspectorPort: () => stacks?.port ?? null,
      async lookInto(pid) {
        // First what it does by itself: the look at its stack stops it.
        const doing = await busyness(pid)
        const stack = (await stacks?.look(pid)) ?? null
        return doing === null ? stack : [doing, ...(stack === null ? [] : [stack])].join('\n')
      },
    })
    // The socket is what tells a second master of the same name, so it comes before anything is started.
    control = await openControl({ path: place.path, face, log })
    preload()
    if (config.stackOfBlocked) {
      stacks = await StackReader.open({ helper: join(preload(), 'blocked.mjs'), log })
    }
    if (config.metrics !== null) metrics = await openMetricsOf(face, config.metrics, log)
    const { policy } = first.pinned
    void checkUnitTimes({ env, policy, log })
    log.info(
      { event: 'starting', usr2: ownVersion(), node: process.versions.node, control: place.path },
      `usr2 ${ownVersion()} (pid ${process.pid}): ${config.workers} x ${first.pinned.entry}; ` +
        `a stop takes at most ${seconds(stopBudgetMs(policy))}`,
    )
    face.start(first.pinned)
    takeSignals(face, log, env)
    notifier.startWatchdog(() => true)
    return await ended
  } catch (error) {
    return complain(1, [error instanceof Error ? error.message : String(error)])
  } finally {
    // Before the control socket, which takes its own empty directory away.
    if (runtime) rmSync(runtime, { recursive: true, force: true })
    await control?.close()
    await metrics?.close()
    await stacks?.close()
    removePid(config, log)
    await notifier.flush()
    notifier.close()
  }
}

function complain(status: 1 | 2, complaints: readonly string[]): number {
  for (const complaint of complaints) process.stderr.write(`usr2: ${complaint}\n`)
  return status
}

/** prom-client is loaded only by a master that is asked for it: 1 to 3 MB of its memory. */
async function openMetricsOf(face: Supervisor, listen: MetricsAt, log: Log): Promise<Metrics> {
  const { openMetrics } = await import('./metrics.ts')
  const metrics = await openMetrics({
    ...{ listen, log, status: () => face.status() },
    ...{ totals: () => face.totals(), verdicts: () => face.verdicts() },
  })
  log.info({ event: 'metrics', address: metrics.address }, `metrics on ${metrics.address}`)
  return metrics
}

type Log = Awaited<ReturnType<typeof createLogger>>

function writePid({ pidFile }: Config, log: Log): void {
  if (pidFile === null) return
  try {
    writePidFile(pidFile)
  } catch (error) {
    log.error({}, error instanceof Error ? error.message : String(error))
  }
}

function removePid({ pidFile }: Config, log: Log): void {
  if (pidFile === null) return
  try {
    removePidFile(pidFile)
  } catch (error) {
    log.error({}, error instanceof Error ? error.message : String(error))
  }
}

/** What each signal means. Handlers only tell: the supervisor is asked, and decides by the machine. */
function takeSignals(supervisor: Supervisor, log: Log, env: NodeJS.ProcessEnv): void {
  const hadTerminal = hasTerminal()
  if (env['npm_lifecycle_event'] !== undefined || env['npm_command'] !== undefined) {
    log.warn(
      {},
      `started through npm, which passes no USR2 or HUP on: send signals to pid ${process.pid} itself`,
    )
  }
  listenToSignals((signal) => {
    // "The terminal is gone" comes by the same signal as "reload". Before the first word to it.
    const isHangup = signal === 'SIGHUP' && hadTerminal && !hasTerminal()
    if (isHangup) letGoOfTerminal()
    log.info({ event: 'signal', signal }, `got ${signal}`)
    switch (signal) {
      case 'SIGUSR2':
        return supervisor.reloadUnattended()
      case 'SIGHUP':
        return isHangup ? supervisor.stop('graceful') : supervisor.reloadUnattended()
      case 'SIGTERM':
      case 'SIGINT':
        return supervisor.stop(supervisor.stopping ? 'now' : 'graceful')
      case 'SIGQUIT':
        return supervisor.stop('graceful')
      case 'SIGTTIN':
      case 'SIGTTOU':
        return supervisor.order({ k: 'scale-by', by: signal === 'SIGTTIN' ? 1 : -1 }, (problem) => {
          if (problem !== null) log.warn({ event: 'refused', signal }, problem)
        })
      case 'SIGUSR1':
        // Reopening logs comes with a later version; never fatal.
        return
    }
  })
}

function canWrite(directory: string): boolean {
  for (let at = directory, levels = 0; levels < 3; at = dirname(at), levels++) {
    if (!existsSync(at)) continue
    try {
      accessSync(at, constants.W_OK | constants.X_OK)
      return true
    } catch {
      return false
    }
  }
  return false
}

/**
 * A directory of this master's own beside its control socket, with a copy of the guest and of the helper that looks into blocked workers: an `npm ci` or an upgrade
 * on disk never mixes versions. What a killed master of the same name left is swept.
 */
function makeRuntimeDirectory(control: string, name: string): string {
  const parent = dirname(control)
  const prefix = `.usr2-${name}-`
  for (const entry of readdirSync(parent)) {
    const pid = entry.startsWith(prefix) ? Number(entry.slice(prefix.length)) : NaN
    if (Number.isInteger(pid) && !isAlive(pid)) rmSync(join(parent, entry), { recursive: true, force: true })
  }
  const directory = join(parent, `${prefix}${process.pid}`)
  rmSync(directory, { recursive: true, force: true })
  mkdirSync(directory, { mode: 0o755 })
  try {
    for (const name of ['preload.cjs', 'blocked.mjs']) copyFileSync(builtFile(name), join(directory, name))
  } catch (error) {
    rmSync(directory, { recursive: true, force: true })
    throw error
  }
  return directory
}

/** Beside the built CLI. */
function builtFile(name: string): string {
  return join(dirname(fileURLToPath(import.meta.url)), name)
}
