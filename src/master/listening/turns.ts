/**
 * Lets workers that share a listening socket take turns at the head of the kernel's queue, while shares of traffic matter:
 * that is, while workers of two generations accept.
 *
 * A connection wakes every worker that waits for one (epoll(7), without EPOLLEXCLUSIVE, which libuv does not use), in the
 * order of their places in the socket's wait queue; one of them is the first to call accept(2). On a machine that is not
 * busy the place decides, and it never changes by itself: of 5 workers at 500 connections a second the newest, which is
 * the candidate of a canary, got 40 to 53 % instead of 20, another one 2 %. Who registers anew has the newest place. So
 * each turn the next worker gets a fresh copy of the socket, accepts on that and closes its own: nothing is lost, what
 * waits is in the queue of the socket that all copies share (figures: docs/traffic-share.md).
 */
import type { ListenerKey } from '../../address.ts'
import type { WorkerHandle } from '../workers/worker-handle.ts'

/**
 * On average. Every worker has been at each place after as many turns as there are workers: a second for 10, well below the interval
 * of an analysis.
 */
const TURN_MS = 100

/** A worker, and one of the listeners on which it accepts. */
export interface Place {
  readonly worker: WorkerHandle
  readonly key: ListenerKey
}

export interface TurnsParts {
  /** Settles when the worker has its fresh copy; rejects when it has not got it. */
  turn(place: Place): Promise<void>
  readonly everyMs?: number
}

export class Turns {
  private readonly parts: TurnsParts
  private places: readonly Place[] = []
  private next = 0
  private timer: NodeJS.Timeout | null = null
  /** They have not taken their last copy yet: a blocked event loop must not hold up the others. */
  private readonly busy = new Set<WorkerHandle>()

  constructor(parts: TurnsParts) {
    this.parts = parts
  }

  /** Who takes turns from now on, in place of those before; nobody: there are none. UDP has no queue of connections. */
  among(places: readonly Place[]): void {
    this.places = places.filter(({ key }) => !key.startsWith('udp:'))
    if (this.places.length === 0) this.end()
    else if (this.timer === null) this.arm()
  }

  end(): void {
    this.places = []
    if (this.timer) clearTimeout(this.timer)
    this.timer = null
  }

  private arm(): void {
    // Between a half and one and a half: with an even clock, clients that come every second would meet the same worker at
    // the head each time, and all of their connections would go to one generation.
    const waitMs = (this.parts.everyMs ?? TURN_MS) * (0.5 + Math.random())
    this.timer = setTimeout(() => {
      this.arm()
      void this.turn()
    }, waitMs)
  }

  private async turn(): Promise<void> {
    const place = this.places[this.next++ % this.places.length]
    if (!place || this.busy.has(place.worker)) return
    this.busy.add(place.worker)
    // Not taken: it ends just now, or answers nobody. It keeps its place, and accepts as before.
    await this.parts.turn(place).catch(() => {})
    this.busy.delete(place.worker)
  }
}
