/** `usr2 run`: wires the parts of a master together, and takes them apart again. Read this file first. */
// Before anything of the master is evaluated.
import { collectSoon } from './v8-flags.ts'
import { accessSync, constants, existsSync, rmSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { StackReader, busyness } from './workers/blocked.ts'
import { defaultControlPath, loadConfig, needsRestart, startDirectory } from '../config.ts'
import type { Config } from '../config.ts'
import { pinGeneration, stopBudgetMs } from './workers/generation.ts'
import type { PinResult } from './workers/generation.ts'
import { Heartbeat } from './systemd/heartbeat.ts'
import { takeBequeathed, takeInherited } from './systemd/inherited.ts'
import type { Inherited } from './systemd/inherited.ts'
import { gidOf, mayRead } from './workers/identity.ts'
import { OLDEST_MAJOR } from './workers/node-binary.ts'
import { LogFile } from './log-file.ts'
import { watchOrphans } from './workers/orphans.ts'
import { Post } from './post.ts'
import { Predecessor } from './upgrade/predecessor.ts'
import type { Beginning } from './upgrade/predecessor.ts'
import { createLogger, ownVersion } from './report.ts'
import { makeRuntimeDirectory, sweepRuntimeDirectories } from './control/runtime-directory.ts'
import { printable, seconds } from './words.ts'
import { takeSignals } from './signals.ts'
import { checkUnitTimes } from './systemd/unit-times.ts'
import { Supervisor } from './supervisor.ts'
import { Survivors } from './workers/survivors.ts'
import { createNotifier } from './systemd/systemd.ts'
import { Upgrader } from './upgrade/upgrade.ts'

export interface RunInput {
  /** What follows `usr2 run`. */
  readonly argv: readonly string[]
  readonly env: NodeJS.ProcessEnv
  readonly cwd: string
}

/** Gives the exit status: 0 stopped as asked, 1 could not start or gave up, 2 bad usage or configuration. */
export async function runMaster({ argv, env, cwd }: RunInput): Promise<number> {
  let predecessor: Predecessor | null = null
  // Who asked for an upgrade wants to know why there is none; our stderr may be a journal.
  const complain = (status: 1 | 2, complaints: readonly string[]): number => {
    predecessor?.failed(complaints)
    for (const complaint of complaints) process.stderr.write(`usr2: ${printable(complaint)}\n`)
    return status
  }
  try {
    predecessor = Predecessor.find(env)
  } catch (error) {
    return complain(1, [error instanceof Error ? error.message : String(error)])
  }
  if (Number.parseInt(process.versions.node, 10) < OLDEST_MAJOR) {
    return complain(2, [`usr2 needs Node.js ${OLDEST_MAJOR} or newer, and this is ${process.versions.node}.`])
  }
  const input = { argv, env: { ...env }, cwd: startDirectory(env, cwd) }
  const loaded = loadConfig(input)
  if (!loaded.ok) return complain(2, loaded.complaints)
  const { config } = loaded
  const first = await pinGeneration(config, env)
  const group = await groupOf(config)
  if (!first.ok || !group.ok) return complain(2, [...reasonsOf(first), ...reasonsOf(group)])
  const found = defaultControlPath(config, env, canWrite)
  if (!found.ok) return complain(1, [found.complaint])
  const control = found.path
  let beginning: Beginning | null = null
  if (predecessor) {
    const { bequest } = predecessor
    if (bequest.name !== config.name || bequest.control !== control) {
      const was = `It was "${bequest.name}" at ${bequest.control} and would be "${config.name}" at ${control}`
      return complain(1, [`${was}: an upgrade changes neither name nor control socket; restart the service.`])
    }
    try {
      beginning = await predecessor.hello(ownVersion(), first.pinned.policy.startTimeoutMs)
    } catch (error) {
      return complain(1, [error instanceof Error ? error.message : String(error)])
    }
  }

  const opened = openLogFile(config)
  if (!opened.ok) return complain(2, opened.reasons)
  const { file } = opened
  const log = await createLogger(config.logLevel, config.name, file)
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
    for (const warning of again.warnings) if (!loaded.warnings.includes(warning)) log.warn({}, warning)
    const pinned = await pinGeneration(again.config, env)
    return pinned.ok ? loadable(pinned) : pinned
  }
  /** A worker loads its guest from the runtime directory, as its own user. */
  const loadable = async (pin: PinResult & { readonly ok: true }): Promise<PinResult> => {
    const { identity } = pin.pinned
    const file = join(preload(), 'preload.cjs')
    if (identity === null || (await mayRead(file, identity))) return pin
    const reason =
      `Workers as ${identity.name} could not load ${file}: that user may not read it, or not enter a directory on the ` +
      'way to it. Let others enter those (chmod o+x), or take another place with --control PATH.'
    return { ok: false, reasons: [reason] }
  }

  let inherited: Inherited
  try {
    inherited = predecessor ? takeBequeathed(predecessor.bequest) : takeInherited(env)
  } catch (error) {
    return complain(1, [error instanceof Error ? error.message : String(error)])
  }
  if (inherited.warning !== null) log.warn({ event: 'not-activated' }, inherited.warning)
  const notifier = createNotifier({
    env: process.env,
    fd: inherited.notifyFd,
    log,
    quiet: predecessor !== null,
  })
  let stacks: StackReader | undefined
  let runtime: string | undefined
  const preload = (): string => (runtime ??= makeRuntimeDirectory(control, config.name))
  const forgetOrphans = process.pid === 1 ? watchOrphans({ log }) : () => {}
  let end: (status: number) => void = () => {}
  const ended = new Promise<number>((resolve) => (end = resolve))
  const { killTimeoutMs } = first.pinned.policy
  const survivors = new Survivors({
    ...{ log, control, name: config.name, killTimeoutMs },
    stopBudgetMs: stopBudgetMs(first.pinned.policy),
    uid: first.pinned.identity?.uid ?? process.geteuid?.() ?? 0,
  })
  const supervisor = new Supervisor({
    config,
    log,
    notifier,
    activated: inherited.sockets,
    get preload() {
      return join(preload(), 'preload.cjs')
    },
    pin,
    onServing: () => {
      if (predecessor) predecessor.ready(supervisor.currentGeneration ?? 0)
      else post.sign()
    },
    onTrouble: (reason) => {
      if (!predecessor?.isTried) return
      predecessor.failed([`${sentence(reason)}.`])
      supervisor.leave()
    },
    onGenerationEnded(generation, text) {
      collectSoon()
      face.drained(generation, text)
    },
    async leaderless() {
      await predecessor?.gone
      await survivors.gone
    },
    makeWay: (address) => survivors.makeWay(address),
    // Whatever a successor that failed has left beside our sockets is swept.
    beforeClose: () => face.settled(),
    // A stop is over when the whole service has stopped.
    async beforeEnd(status) {
      await predecessor?.left()
      if (status === 0) await survivors.gone
    },
    onStopNow: () => survivors.kill(),
    onEnd: (status) => end(status),
    inspectorPort: () => stacks?.port ?? null,
    async lookInto(pid) {
      // First what it does by itself: the look at its stack stops it.
      const doing = await busyness(pid)
      const stack = (await stacks?.look(pid)) ?? null
      return doing === null ? stack : [doing, ...(stack === null ? [] : [stack])].join('\n')
    },
  })
  const sweep = (pid: number): void => {
    supervisor.sweep(pid)
    sweepRuntimeDirectories(control, config.name, pid)
  }
  const face = new Upgrader({
    ...{ supervisor, config, log, notifier, predecessor, control },
    notifyFd: inherited.notifyFd,
    start: { argv, env: input.env, given: input.cwd, cwd },
    get post() {
      return post
    },
    sweep,
  })
  const post: Post = new Post({ config, path: control, gid: group.gid, log, supervisor, face })
  try {
    if (predecessor === null) {
      await post.take()
      survivors.look()
    } else {
      supervisor.inherit(predecessor.bequest.listeners)
    }
    const loading = await loadable(first)
    if (!loading.ok) return complain(1, loading.reasons)
    if (config.stackOfBlocked) {
      stacks = await StackReader.open({ helper: join(preload(), 'blocked.mjs'), log })
    }
    const { policy } = first.pinned
    void checkUnitTimes({ env, policy, log })
    log.info(
      { event: 'starting', usr2: ownVersion(), node: process.versions.node, control },
      `usr2 ${ownVersion()} (pid ${process.pid}): ${config.workers} x ${first.pinned.entry}; ` +
        `a stop takes at most ${seconds(stopBudgetMs(policy))}`,
    )
    if (beginning?.ticketKeys) supervisor.inheritKeys(beginning.ticketKeys)
    if (beginning) supervisor.inheritVersions(beginning.versions, first.pinned)
    void predecessor?.gone.then(() => {
      const { pid } = predecessor.bequest
      if (!predecessor.tookOver) return
      // It may have been killed.
      survivors.look(pid)
      sweep(pid)
    })
    supervisor.start(first.pinned, predecessor?.bequest.heritage)
    takeSignals({ face, log, env, file })
    const startWatchdog = (): void => {
      const heartbeat = new Heartbeat({
        ...{ log, serving: () => supervisor.serving(), remedyMs: () => supervisor.remedyMs() },
        intervalMs: notifier.watchdogIntervalMs ?? Infinity,
      })
      notifier.startWatchdog(() => heartbeat.isBeating())
    }
    if (predecessor === null) startWatchdog()
    predecessor?.attend({
      leave(reason) {
        log.error({ event: 'dismissed', reason }, `leaves: ${reason}`)
        supervisor.giveBack()
      },
      async takeOver(directories) {
        await post.take(directories)
        post.sign()
      },
      tookOver: () => supervisor.own(),
      main() {
        notifier.speak()
        notifier.ready(supervisor.statusLine())
        startWatchdog()
      },
      drained: (generation, text) =>
        log.info({ event: 'predecessor-drained', generation }, `the master before: ${text}`),
      stop: (how) => face.stop(how),
    })
    const status = await ended
    if (status !== 0 && file !== null) complain(1, [`It gave up; ${file.path} has the reasons.`])
    return status
  } catch (error) {
    return complain(1, [error instanceof Error ? error.message : String(error)])
  } finally {
    forgetOrphans()
    await face.settled()
    // Whoever had connected before the path led to the successor gets an answer, too.
    if (face.hasHeir) await post.emptied()
    // Before the control socket, which takes its own empty directory away.
    if (runtime) rmSync(runtime, { recursive: true, force: true })
    await post.close()
    await stacks?.close()
    await notifier.flush()
    notifier.close()
  }
}

const sentence = (text: string): string => `${text[0]?.toUpperCase()}${text.slice(1)}`
type LogFileResult =
  | { readonly ok: true; readonly file: LogFile | null }
  | { readonly ok: false; readonly reasons: readonly string[] }

function openLogFile({ logFile }: Config): LogFileResult {
  try {
    return { ok: true, file: logFile === null ? null : new LogFile(logFile) }
  } catch (error) {
    return { ok: false, reasons: [error instanceof Error ? error.message : String(error)] }
  }
}

type GroupResult =
  | { readonly ok: true; readonly gid: number | null }
  | { readonly ok: false; readonly reasons: readonly string[] }

async function groupOf({ controlGroup }: Config): Promise<GroupResult> {
  try {
    return { ok: true, gid: controlGroup === null ? null : await gidOf(controlGroup, '--control-group') }
  } catch (error) {
    return { ok: false, reasons: [error instanceof Error ? error.message : String(error)] }
  }
}

const reasonsOf = (
  result: { readonly ok: true } | { readonly ok: false; readonly reasons: readonly string[] },
) => (result.ok ? [] : result.reasons)

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
