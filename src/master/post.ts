/**
 * What only one master of a name can have: the path of the control socket, the address of the metrics, the pid file. A
 * master takes it as it starts; a successor takes it over, and who is replaced takes it back where the successor fails.
 */
import type { Config, MetricsAt } from '../config.ts'
import { openControl } from './control/control.ts'
import type { Control } from './control/control.ts'
import type { Face } from './face.ts'
import type { Metrics } from './figures/metrics.ts'
import { removePidFile, writePidFile } from './pid-file.ts'
import type { Logger } from './report.ts'
import type { Supervisor } from './supervisor.ts'

/** How long clients of a master that was replaced may stay connected. */
const FAREWELL_MS = 2_000

export interface PostParts {
  readonly config: Config
  /** Of the control socket. */
  readonly path: string
  /** Of `--control-group`. */
  readonly gid: number | null
  readonly log: Logger
  readonly supervisor: Supervisor
  /** Answers at the control socket. */
  readonly face: Face
}

export class Post {
  private readonly parts: PostParts
  private control: Control | null = null
  /** Its path was a successor's for a while; open still for whoever waits on it for the verdict. */
  private lostControl: Control | null = null
  private metrics: Metrics | null = null

  constructor(parts: PostParts) {
    this.parts = parts
  }

  /** Directories that were made for the control socket. */
  get directories(): readonly string[] {
    return this.control?.directories ?? []
  }

  /**
   * The socket is what tells a second master of the same name, so this comes before anything is started. All or nothing. A
   * successor takes the socket's path last: it leads to the master before until nothing can fail any more.
   *
   * @param from the `directories` of a master that is replaced, if there is one
   * @throws {Error} a sentence: another master answers there, the address of the metrics is in use, …
   */
  async take(from: readonly string[] | null = null): Promise<void> {
    try {
      if (from !== null) await this.openMetrics()
      this.control = await this.openControl(from)
      if (from === null) await this.openMetrics()
    } catch (error) {
      await this.control?.close()
      await this.metrics?.close()
      this.control = this.metrics = null
      throw error
    }
  }

  /** Says in the pid file who is to be signalled. What prevents it is only said. */
  sign(): void {
    this.onPidFile(writePidFile)
  }

  /** Before a successor takes over: what it cannot bind beside us. The path of a control socket it can. */
  async giveUp(): Promise<void> {
    await this.metrics?.close()
    this.metrics = null
  }

  /** After {@link giveUp}, when the successor has failed and gone. */
  async takeBack(): Promise<void> {
    if (this.control?.isOurs() === false) {
      this.lostControl = this.control
      this.control = await this.openControl(this.control.directories)
    }
    this.sign()
    await this.openMetrics()
  }

  /** Settles when whoever had connected before the path led to a successor has got an answer. */
  async emptied(): Promise<void> {
    await this.control?.emptied(FAREWELL_MS)
  }

  async close(): Promise<void> {
    await this.lostControl?.close()
    await this.control?.close()
    await this.metrics?.close()
    this.onPidFile(removePidFile)
  }

  private openControl(from: readonly string[] | null): Promise<Control> {
    const { config, path, gid, log, face } = this.parts
    return openControl({
      ...{ path, mode: config.controlMode, gid, shared: isShared(config), face, log },
      ...(from === null ? {} : { replaces: { directories: from } }),
    })
  }

  private async openMetrics(): Promise<void> {
    const { config, supervisor, log } = this.parts
    if (config.metrics !== null) this.metrics = await openMetricsOf(supervisor, config.metrics, log)
  }

  private onPidFile(act: (path: string) => void): void {
    const { config, log } = this.parts
    if (config.pidFile === null) return
    try {
      act(config.pidFile)
    } catch (error) {
      log.error({}, error instanceof Error ? error.message : String(error))
    }
  }
}

/** Others have to find what is beside the control socket: whoever may connect to it, and workers of another user. */
const isShared = ({ user, group, controlMode, controlGroup }: Config): boolean =>
  user !== null || group !== null || controlGroup !== null || controlMode !== 0o600

/** prom-client is loaded only by a master that is asked for it: 1 to 3 MB of its memory. */
async function openMetricsOf(supervisor: Supervisor, listen: MetricsAt, log: Logger): Promise<Metrics> {
  const { openMetrics } = await import('./figures/metrics.ts')
  const metrics = await openMetrics({
    ...{ listen, log, status: () => supervisor.status() },
    ...{ totals: () => supervisor.totals(), verdicts: () => supervisor.verdicts() },
  })
  log.info({ event: 'metrics', address: metrics.address }, `metrics on ${metrics.address}`)
  return metrics
}
