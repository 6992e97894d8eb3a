/**
 * Whether systemd is told that the service is alive (WATCHDOG=1): while at least half of the workers that serve answer
 * (one of two that hangs and cannot be replaced must not take the other one along). That the master's own event loop turns
 * is told by the fact that it asks.
 *
 * Its own remedy comes first: a worker that is blocked fails its liveness probe and is replaced, and the other workers
 * serve on, while systemd's remedy ends them all. So a worker counts as silent only when it has said nothing for as long
 * as that may take (by default 70 s until it is found, and the 60 s of a start): the replacing has failed. And only workers
 * that serve count: those that boot have their start timeout, and where none serves the master is starting some.
 */

/** A worker, as far as its pulse goes. */
export interface Pulse {
  /** When its last message of any kind came, by `performance.now()`. */
  readonly heardAt: number
  /** Asks for an answer that only a turning event loop gives. */
  ask(): void
}

export interface HeartbeatParts {
  /** The workers of the current generation that serve. */
  serving(): readonly Pulse[]
  /** How long it may take until a blocked worker has been found and replaced. */
  remedyMs(): number
  /** Between two calls of `isBeating`. */
  readonly intervalMs: number
  readonly log: { error(facts: object, text: string): void; info(facts: object, text: string): void }
}

interface Question {
  readonly askedAt: number
  /** How many beats long it has been without an answer: by beats, not by the clock, which runs on while a VM is paused. */
  readonly unansweredFor: number
}

export class Heartbeat {
  private readonly questions = new WeakMap<Pulse, Question>()
  private readonly parts: HeartbeatParts
  private wasBeating = true

  constructor(parts: HeartbeatParts) {
    this.parts = parts
  }

  /** To be asked at each beat: counts, and asks the workers again. */
  isBeating(): boolean {
    const { serving, remedyMs, intervalMs, log } = this.parts
    const workers = serving()
    const patience = Math.ceil(remedyMs() / intervalMs)
    const answering = workers.filter((worker) => this.beatsWithoutAnswer(worker) <= patience).length
    const beating = workers.length === 0 || answering * 2 >= workers.length
    if (beating !== this.wasBeating) {
      const facts = {
        event: beating ? 'heartbeat-back' : 'heartbeat-lost',
        answering,
        serving: workers.length,
      }
      const text = `${answering} of ${workers.length} workers answer`
      if (beating) log.info(facts, `${text}: systemd is told so again`)
      else log.error(facts, `${text}: systemd's watchdog is not fed any more, and will end the service`)
    }
    this.wasBeating = beating
    return beating
  }

  private beatsWithoutAnswer(worker: Pulse): number {
    const last = this.questions.get(worker)
    const isOpen = last !== undefined && worker.heardAt < last.askedAt
    const unansweredFor = isOpen ? last.unansweredFor + 1 : 0
    // One question at a time: a blocked worker must not find its channel full of them.
    this.questions.set(worker, { askedAt: isOpen ? last.askedAt : performance.now(), unansweredFor })
    if (!isOpen) worker.ask()
    return unansweredFor
  }
}
