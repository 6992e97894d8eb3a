/**
 * `usr2 upgrade`: the master itself replaced, with every listener open throughout. This is the old master's side; the
 * wire and its order are in upgrade-wire.ts.
 *
 * Rules of this file:
 * - One operation at a time: an upgrade is refused while a rollout runs, and a rollout while an upgrade does. A stop wins.
 * - Until the successor says that it took over, the attempt can fail at any point and this master goes on as if nothing
 *   had happened: it gives nothing up before. After that there is no way back.
 * - Never two masters that both answer at the control socket's path, nor one that neither does.
 */
import { accessSync, constants } from 'node:fs'
import type { Config } from '../../config.ts'
import type { Asker, Face, Status, UpgradeRequest, Verdict } from '../face.ts'
import { stopBudgetMs, policyOf } from '../workers/generation.ts'
import { nodePath, programPath } from './on-disk.ts'
import type { Post } from '../post.ts'
import type { Predecessor } from './predecessor.ts'
import { ownVersion } from '../report.ts'
import type { Logger } from '../report.ts'
import { SHELL, Successor, UpgradeError, askVersion, type Program } from './successor.ts'
import type { Supervisor } from '../supervisor.ts'
import type { Notifier } from '../systemd/systemd.ts'
import { UPGRADE_VERSION, bequestEnv, type Bequest, type StopHow } from './upgrade-wire.ts'
import { seconds } from '../words.ts'

/** For the new Node to start, load usr2 and read the configuration: 0.2 s, on a loaded machine some more. */
const HELLO_TIMEOUT_MS = 30_000
/** Beyond the start timeout of its workers. */
const READY_MARGIN_MS = 10_000
/** Binding a control socket and writing a pid file. */
const TAKE_OVER_TIMEOUT_MS = 10_000
/** How long a successor that failed may take to leave before it is killed. */
const LEAVE_MS = 3_000

/** After stdin, stdout and stderr. */
const FIRST_FD = 3
/** What was meant for this master alone: descriptors that are passed otherwise, and a pid that is not its successor's. */
const NOT_PASSED_ON = ['LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES', 'LISTEN_PIDFDID', 'WATCHDOG_PID']

export interface UpgraderParts {
  readonly supervisor: Supervisor
  readonly config: Config
  readonly log: Logger
  readonly notifier: Notifier
  /** The master before this one, which may still drain. */
  readonly predecessor: Predecessor | null
  /** The service manager's (inherited.ts). */
  readonly notifyFd: number | null
  /** How this master was started. `given`: its cwd as the user gave it; `cwd`: as the kernel had it. */
  readonly start: {
    readonly argv: readonly string[]
    readonly env: NodeJS.ProcessEnv
    readonly given: string
    readonly cwd: string
  }
  readonly control: string
  readonly post: Pick<Post, 'directories' | 'giveUp' | 'takeBack'>
  /** A successor with that pid was killed: what it could not remove. */
  sweep(pid: number): void
}

/** Who has taken over. */
interface After {
  readonly pid: number
  readonly usr2: string
  readonly node: string
  readonly generation: number
}

type Handle = ReturnType<Face['upgrade']>

interface Attempt {
  readonly aborting: AbortController
  asker: Asker | null
  successor: Successor | null
  /** Settles when it is over, and its successor has taken over or gone. Never rejects. */
  over: Promise<void>
}

/** The face of a master that can be replaced: what may not be asked for meanwhile is refused here. */
export class Upgrader implements Face {
  private readonly parts: UpgraderParts
  private attempt: Attempt | null = null
  /** It has taken over. */
  private heir: Successor | null = null
  private isStopping = false
  private isHurried = false

  constructor(parts: UpgraderParts) {
    this.parts = parts
  }

  upgrade(request: UpgradeRequest, asker: Asker): Handle {
    const problem = this.problem()
    if (problem !== null) {
      asker.verdict(this.verdict('refused', [problem], 0, `the upgrade was refused: ${problem}`))
      return { abort: () => {}, detach: () => {} }
    }
    const attempt: Attempt = {
      aborting: new AbortController(),
      asker,
      successor: null,
      over: Promise.resolve(),
    }
    this.attempt = attempt
    attempt.over = this.run(attempt, request).finally(() => (this.attempt = null))
    return {
      abort: (reason) => attempt.aborting.abort(`${reason}.`),
      detach: () => (attempt.asker = null),
    }
  }

  /** Why there can be no upgrade now, as a sentence. */
  private problem(): string | null {
    const other = this.busy()
    if (other !== null) return other
    if (process.pid === 1) {
      return (
        'As PID 1 this master cannot be replaced: with it everything in the container ends. Restart the container, or ' +
        'run usr2 under an init (docker run --init).'
      )
    }
    try {
      accessSync(SHELL, constants.X_OK)
    } catch {
      return `There is no ${SHELL}, by which the new master would be started apart from this one.`
    }
    const { state } = this.parts.supervisor.status()
    if (state === 'steady') return null
    const what = {
      starting: 'is starting',
      stopping: 'is stopping',
      'rolling-out': 'has a rollout under way',
    }
    return `The master ${what[state]}; ask again when it has come to an end.`
  }

  /** Why nothing else can be asked for now, as a sentence. */
  private busy(): string | null {
    if (this.heir !== null) return `This master has been replaced by pid ${this.heir.pid}; ask that one.`
    if (this.attempt !== null) return 'The master is being upgraded; ask again when that is over.'
    return null
  }

  private async run(attempt: Attempt, { node }: UpgradeRequest): Promise<void> {
    const { supervisor, log, config } = this.parts
    const startedAt = performance.now()
    const took = (): number => performance.now() - startedAt
    const before = supervisor.status()
    try {
      const after = await this.bringUp(attempt, node)
      const current = before.generations.find(({ role }) => role === 'current')?.id
      const text =
        `master ${process.pid} -> ${after.pid} in ${seconds(took())} (usr2 ${before.usr2} -> ${after.usr2}, ` +
        `Node.js ${before.node} -> ${after.node}): generation ${current} -> ${after.generation}`
      log.info({ event: 'upgraded', ...after }, text)
      const verdict = this.verdict('promoted', [], took(), text, after.generation)
      const handedOver = supervisor.handOver()
      // It ends after this master, unless it dies: the next one must be able to bind while this one drains.
      void this.heir?.gone.then(() => supervisor.closeHandedOver())
      await handedOver
      attempt.asker?.verdict(verdict)
    } catch (error) {
      const { successor } = attempt
      const failure =
        error instanceof UpgradeError ? error : new UpgradeError('rolled-back', [`${String(error)}.`])
      // In a stop as long as it may take: as the main process ends, systemd kills whoever still drains.
      const graceMs = this.isStopping && !this.isHurried ? stopBudgetMs(policyOf(config)) : LEAVE_MS
      await successor?.dismiss(failure.reasons.join(' '), graceMs)
      if (successor?.pid) this.parts.sweep(successor.pid)
      const why = failure.reasons.join(' ')
      const how = {
        refused: 'refused',
        'rolled-back': `rolled back after ${seconds(took())}`,
        overtaken: `ended after ${seconds(took())}`,
      }[failure.outcome]
      const text = `the upgrade was ${how}, the master (usr2 ${before.usr2}, pid ${process.pid}) goes on: ${why}`
      const verdict = this.verdict(failure.outcome, failure.reasons, took(), text)
      log.error({ event: 'upgrade-failed', outcome: verdict.outcome, reasons: verdict.reasons }, verdict.text)
      attempt.asker?.verdict(verdict)
    }
  }

  /** Gives the successor once it has taken over. @throws {UpgradeError} */
  private async bringUp(attempt: Attempt, node: string | null): Promise<After> {
    const { supervisor, notifier } = this.parts
    const { signal } = attempt.aborting
    const file = this.file()
    const { heritage, ...passed } = supervisor.bequeath()
    const keys = supervisor.keys()
    const { program, fds } = this.program(node, file, { heritage, ...passed })
    const version = await askVersion(program, process.execArgv, file, signal)
    this.tell(attempt, `starting usr2 ${version} (this is ${ownVersion()}): ${file}`)
    const successor = begun(program, fds)
    attempt.successor = successor
    // It may have our control socket before we hear of it, and be told there.
    successor.onStop = (how) => this.stop(how)
    const hello = await successor.next('hello', HELLO_TIMEOUT_MS, signal)
    if (hello.protocol !== UPGRADE_VERSION) {
      const text = `usr2 ${hello.usr2} speaks version ${hello.protocol} of the upgrade, and this one ${UPGRADE_VERSION}.`
      throw new UpgradeError('rolled-back', [`${text} Restart the service instead.`])
    }
    const versions = supervisor.bequeathVersions(heritage.history.map(({ id }) => id))
    successor.begin({ ticketKeys: supervisor.bequeathKeys(), versions })
    const who = `usr2 ${hello.usr2} on Node.js ${hello.node} (pid ${hello.pid})`
    this.tell(attempt, `${who} starts generation ${heritage.nextGeneration}`)
    const { generation } = await successor.next('ready', hello.startTimeoutMs + READY_MARGIN_MS, signal)
    this.tell(attempt, `generation ${generation} serves; handing over to pid ${hello.pid}`)
    const late = supervisor.keys().find((key) => !keys.includes(key))
    if (late !== undefined) {
      const text = `Meanwhile a worker has begun to listen on ${late}, which the new master does not know of.`
      throw new UpgradeError('rolled-back', [`${text} Ask again.`])
    }
    await this.parts.post.giveUp()
    try {
      successor.send({ t: 'take-over', directories: this.parts.post.directories })
      await successor.next('took-over', TAKE_OVER_TIMEOUT_MS, signal)
    } catch (error) {
      // Whatever it has of ours it gives back by ending.
      await successor.dismiss('it could not take over', LEAVE_MS)
      await this.parts.post.takeBack().catch((why: unknown) => {
        this.parts.log.error({}, `after an upgrade that failed: ${String(why)}`)
      })
      throw error
    }
    this.heir = successor
    successor.onStop = (how) => {
      if (how === 'now') supervisor.stop('now')
    }
    notifier.mainPid(hello.pid)
    await notifier.flush()
    notifier.close()
    successor.send({ t: 'main' })
    return { pid: hello.pid, usr2: hello.usr2, node: hello.node, generation }
  }

  private file(): string {
    const { cwd, given } = this.parts.start
    return programPath(process.argv[1] ?? '', cwd, given)
  }

  private program(
    node: string | null,
    file: string,
    { listeners, activated, heritage }: ReturnType<Supervisor['bequeath']>,
  ): { readonly program: Program; readonly fds: readonly number[] } {
    const { start, config, control, notifyFd } = this.parts
    const fds: number[] = []
    const passOn = (fd: number): number => FIRST_FD + fds.push(fd) - 1
    const bequest: Bequest = {
      ...{ protocol: UPGRADE_VERSION, pid: process.pid, name: config.name, control, heritage },
      listeners: listeners.map((listener) => ({ ...listener, fd: passOn(listener.fd) })),
      activated: activated.map((socket) => ({ ...socket, fd: passOn(socket.fd) })),
      notifyFd: notifyFd === null ? null : passOn(notifyFd),
      stopBudgetMs: stopBudgetMs(policyOf(config)),
    }
    const env: NodeJS.ProcessEnv = { ...start.env, PWD: start.given, ...bequestEnv(bequest) }
    for (const name of NOT_PASSED_ON) delete env[name]
    const args = [...process.execArgv, file, 'run', ...start.argv]
    return { program: { node: node ?? nodePath(process.argv0, start.env), args, cwd: start.given, env }, fds }
  }

  private tell({ asker }: Attempt, text: string): void {
    this.parts.log.info({ event: 'upgrade' }, text)
    asker?.progress({ reload: 'upgrade', generation: null, text })
  }

  private verdict(
    outcome: Verdict['outcome'],
    reasons: readonly string[],
    tookMs: number,
    text: string,
    current = this.parts.supervisor.currentGeneration,
  ): Verdict {
    return { kind: 'upgrade', reload: 'upgrade', outcome, reasons, tookMs, text, current }
  }

  /** A generation of ours has ended: the successor's log goes on after ours. */
  drained(generation: number, text: string): void {
    this.heir?.send({ t: 'drained', generation, text })
  }

  /** Settles when no attempt is under way any more. */
  async settled(): Promise<void> {
    await this.attempt?.over
  }

  get hasHeir(): boolean {
    return this.heir !== null
  }

  // --- the face ---------------------------------------------------------------------------------------------------

  status(): Status {
    return this.parts.supervisor.status()
  }

  reload(request: Parameters<Face['reload']>[0], asker: Asker): Handle {
    return this.refused('reload', asker) ?? this.parts.supervisor.reload(request, asker)
  }

  rollback(request: Parameters<Face['rollback']>[0], asker: Asker): Handle {
    return this.refused('rollback', asker) ?? this.parts.supervisor.rollback(request, asker)
  }

  private refused(kind: 'reload' | 'rollback', asker: Asker): Handle | null {
    const problem = this.busy()
    if (problem === null) return null
    const text = `the ${kind} was refused: ${problem}`
    const current = this.parts.supervisor.currentGeneration
    asker.verdict({
      ...{ kind, outcome: 'refused', reload: 'r0', current, reasons: [problem], tookMs: 0, text },
    })
    return { abort: () => {}, detach: () => {} }
  }

  reloadUnattended(): void {
    const problem = this.busy()
    if (problem === null) return this.parts.supervisor.reloadUnattended()
    this.parts.log.warn({ event: 'refused' }, `the reload was refused: ${problem}`)
  }

  order(what: Parameters<Face['order']>[0], done: (problem: string | null) => void): void {
    const problem = this.busy()
    if (problem === null) return this.parts.supervisor.order(what, done)
    done(problem)
  }

  /** Wins over an upgrade: before it has taken over a successor is ended, after that it is asked to stop, too. */
  stop(how: StopHow, done: () => void = () => {}): void {
    const { supervisor, predecessor } = this.parts
    if (this.heir !== null) {
      this.isStopping = true
      this.heir.send({ t: 'stop', how })
      void this.heir.gone.then(done)
      return
    }
    this.isStopping = true
    this.attempt?.aborting.abort('The master was told to stop.')
    if (how === 'now') this.hurry()
    predecessor?.stop(how)
    if (predecessor?.tookOver === false && how === 'graceful') return supervisor.leave()
    supervisor.stop(how, done)
  }

  /** Whoever is being tried or dismissed goes with us. */
  private hurry(): void {
    this.isHurried = true
    const successor = this.attempt?.successor
    successor?.send({ t: 'stop', how: 'now' })
    void successor?.dismiss('the master was told to stop now', LEAVE_MS)
  }

  get stopping(): boolean {
    // Handed over, this master drains by itself: that is no stop that a second signal would hurry.
    return this.isStopping || (this.heir === null && this.parts.supervisor.stopping)
  }
}

/** @throws {UpgradeError} the kernel does not take as much for an environment, some 2 MB in all (execve(2)) */
function begun(program: Program, fds: readonly number[]): Successor {
  try {
    return new Successor(program, fds)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'E2BIG') throw error
    const text = `What a new master has to be told of ${fds.length} listeners is more than an environment holds (E2BIG).`
    throw new UpgradeError('refused', [`${text} Restart the service instead.`])
  }
}
