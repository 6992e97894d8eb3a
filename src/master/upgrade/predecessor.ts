/** The master that this one was started to replace, seen from here. The wire is upgrade-wire.ts, the other end upgrade.ts. */
import { seconds } from '../words.ts'
import {
  UPGRADE_VERSION,
  parseBequest,
  parseToSuccessor,
  takeBequest,
  type Bequest,
  type FromSuccessor,
  type StopHow,
  type ToSuccessor,
} from './upgrade-wire.ts'

/** Between its `hello` and its answer it has nothing to do but to read it. */
const BEGIN_TIMEOUT_MS = 10_000

export type Beginning = Extract<ToSuccessor, { readonly t: 'begin' }>

export interface Hands {
  /** It does not want us any more: nothing of ours may stay. */
  leave(reason: string): void
  /** Of its place: control socket, pid file, paths. @throws what prevented it, and then nothing was taken */
  takeOver(directories: readonly string[]): Promise<void>
  /** It has, and the other one gives nothing of it up or back any more. */
  tookOver(): void
  /** systemd knows us for the main process. */
  main(): void
  /** A generation of its has ended. */
  drained(generation: number, text: string): void
  stop(how: StopHow): void
}

export class Predecessor {
  readonly bequest: Bequest
  /** It has left, or died. */
  readonly gone: Promise<void>
  private hands: Hands | null = null
  /** The point of no return has been passed. */
  tookOver = false
  /** Came before there was anybody to do it. */
  private readonly early: ToSuccessor[] = []
  /** It has said why it failed. */
  private saidFailed = false
  private isMain = false
  private isDismissed = false
  private letGo: () => void = () => {}
  private readonly dismissal = new Promise<void>((resolve) => (this.letGo = resolve))
  private onBegin: (beginning: Beginning) => void = () => {}
  private onDismissed: (error: Error) => void = () => {}

  /**
   * Takes the bequest out of `env`, in which neither our configuration nor a worker may find it.
   *
   * @returns null: this master replaces nobody
   * @throws {Error} a sentence: it is none that this version can read
   */
  static find(env: NodeJS.ProcessEnv): Predecessor | null {
    const json = takeBequest(env)
    if (json === undefined) return null
    const bequest = parseBequest(json)
    if (bequest === null || process.send === undefined) {
      const why =
        process.send === undefined ? 'has no channel to it' : 'speaks another version of the upgrade'
      const text = `This usr2 was started to replace another master, but ${why}.`
      if (process.connected) process.send?.({ t: 'failed', reasons: [text] })
      throw new Error(text)
    }
    return new Predecessor(bequest)
  }

  private constructor(bequest: Bequest) {
    this.bequest = bequest
    this.gone = new Promise((resolve) => process.once('disconnect', resolve))
    process.on('message', (raw) => {
      const message = parseToSuccessor(raw)
      if (message !== null) this.receive(message)
    })
    void this.gone.then(() => {
      if (!this.tookOver) return this.dismissed('the master that it was to replace has gone')
      // Killed before it could say so: nobody else is the main process now.
      if (!this.isMain) this.hands?.main()
    })
  }

  /**
   * Settles when it agrees that we begin.
   *
   * @throws {Error} a sentence: it does not want us, has gone, or says nothing
   */
  async hello(usr2: string, startTimeoutMs: number): Promise<Beginning> {
    const { pid, versions } = process
    let timer: NodeJS.Timeout | undefined
    const beginning = new Promise<Beginning>((resolve, reject) => {
      this.onBegin = resolve
      this.onDismissed = reject
      const late = `The master that this one was to replace has not answered within ${seconds(BEGIN_TIMEOUT_MS)}.`
      timer = setTimeout(() => reject(new Error(late)), BEGIN_TIMEOUT_MS)
    })
    this.send({ t: 'hello', protocol: UPGRADE_VERSION, usr2, node: versions.node, pid, startTimeoutMs })
    if (!process.connected) this.dismissed('the master that it was to replace has gone')
    return beginning.finally(() => clearTimeout(timer))
  }

  private dismissed(reason: string): void {
    this.isDismissed = true
    this.letGo()
    // Too late for it: what we took we leave to it again.
    this.tookOver = false
    this.onDismissed(new Error(`This usr2 does not replace the other master: ${reason}`))
    this.hands?.leave(reason)
  }

  /** Whole sentences. Once we have taken over it is not its business any more. */
  failed(reasons: readonly string[]): void {
    if (this.tookOver || this.saidFailed) return
    this.saidFailed = true
    this.send({ t: 'failed', reasons })
  }

  /** We have not taken over yet, and are to end at the first thing that goes wrong. */
  get isTried(): boolean {
    return !this.tookOver && !this.saidFailed
  }

  ready(generation: number): void {
    this.send({ t: 'ready', generation })
  }

  stop(how: StopHow): void {
    if (this.tookOver) this.send({ t: 'stop', how })
  }

  /** From now on what it asks for is done. */
  attend(hands: Hands): void {
    this.hands = hands
    for (const message of this.early.splice(0)) this.receive(message)
    if (!process.connected) hands.leave('the master that it was to replace has gone')
  }

  /** Settles when it has left, within its stop budget: who ends before it would have systemd kill it (KillMode=mixed). */
  async left(): Promise<void> {
    if (!this.tookOver) return
    let timer: NodeJS.Timeout | undefined
    const late = new Promise((resolve) => (timer = setTimeout(resolve, this.bequest.stopBudgetMs)))
    await Promise.race([this.gone, this.dismissal, late])
    clearTimeout(timer)
  }

  private receive(message: ToSuccessor): void {
    if (message.t === 'begin') return this.onBegin(message)
    const { hands } = this
    if (hands === null) {
      this.early.push(message)
      if (message.t === 'leave') this.dismissed(message.reason)
      return
    }
    switch (message.t) {
      case 'leave':
        return this.dismissed(message.reason)
      case 'take-over':
        return void this.takeOver(hands, message.directories)
      case 'main':
        this.isMain = true
        return hands.main()
      case 'drained':
        return hands.drained(message.generation, message.text)
      case 'stop':
        return hands.stop(message.how)
    }
  }

  private async takeOver(hands: Hands, directories: readonly string[]): Promise<void> {
    try {
      await hands.takeOver(directories)
      if (this.isDismissed) return
      this.tookOver = true
      hands.tookOver()
      this.send({ t: 'took-over' })
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error)
      this.failed([why])
      hands.leave(why)
    }
  }

  private send(message: FromSuccessor): void {
    // The callback takes the error of a master that has gone; `gone` tells.
    if (process.connected) process.send?.(message, undefined, undefined, () => {})
  }
}
