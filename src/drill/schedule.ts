/**
 * Open-loop arrival: requests become due at an even rate, whatever became of those before.
 *
 * A due time is given once, to whoever waits longest. When nobody is free, due times pass and are given later, in
 * their order, so that whoever measures from them sees the wait: that is what a user would have had.
 */
export interface Waiter {
  due(dueAt: number): void
}

/**
 * Timers fire up to a millisecond late, and later on a busy machine: so much is the client's own delay, and is not
 * held against a server for which nothing was waiting.
 */
const TIMER_GRAIN_MS = 2

export class Schedule {
  readonly #periodMs: number
  readonly #waiting: Waiter[] = []
  #nextDueAt = Infinity
  #timer: NodeJS.Timeout | undefined

  /** @param perSecond how many times a second something is due */
  constructor(perSecond: number) {
    this.#periodMs = 1000 / perSecond
  }

  /** The first is due within the first period, by chance. */
  start(): void {
    const now = performance.now()
    this.#nextDueAt = now + Math.random() * this.#periodMs
    if (this.#waiting.length > 0) this.#arm(now)
  }

  /** Calls `waiter.due` once: now if something is overdue, else when it is this waiter's turn. */
  wait(waiter: Waiter): void {
    const now = performance.now()
    if (this.#waiting.length === 0 && this.#nextDueAt <= now) return waiter.due(this.#take(now))
    this.#waiting.push(waiter)
    this.#arm(now)
  }

  leave(waiter: Waiter): void {
    const at = this.#waiting.indexOf(waiter)
    if (at !== -1) this.#waiting.splice(at, 1)
    if (this.#waiting.length === 0) this.#disarm()
  }

  /** How many are due and were given to nobody. */
  overdue(): number {
    return Math.max(0, Math.ceil((performance.now() - this.#nextDueAt) / this.#periodMs))
  }

  #take(now: number): number {
    const dueAt = this.#nextDueAt
    this.#nextDueAt += this.#periodMs
    return now - dueAt < TIMER_GRAIN_MS ? now : dueAt
  }

  #arm(now: number): void {
    if (this.#nextDueAt === Infinity) return
    this.#timer ??= setTimeout(() => this.#fire(), Math.max(0, this.#nextDueAt - now))
  }

  #disarm(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
  }

  #fire(): void {
    this.#timer = undefined
    for (let now = performance.now(); this.#nextDueAt <= now; now = performance.now()) {
      const waiter = this.#waiting.shift()
      if (waiter === undefined) return
      waiter.due(this.#take(now))
    }
    if (this.#waiting.length > 0) this.#arm(performance.now())
  }
}
