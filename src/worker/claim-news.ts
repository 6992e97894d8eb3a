/**
 * When the master hears where this app listens: not while a `listen` of its waits for an answer.
 *
 * A worker that listens wherever its slot is known to listen is ready. Scenario: a release listens on the two ports of
 * the one before it and on a third, which somebody else has. The first two are known and answered at once; for the third
 * the master looks for the owner, 0.4 s on a busy machine. Told of the two meanwhile, it would let clients in, and they
 * would meet a version that dies of the third. So it hears of all three, or of none.
 */
import type { FromWorker } from '../protocol.ts'
import type { Link } from './link.ts'

/**
 * A name that nobody resolves takes 10 s (resolv.conf(5): two attempts of 5 s), and an app may serve without that
 * listener. Well below the time after which the master releases what nobody says to listen on (40 s).
 */
export const MAX_WITHHELD_MS = 10_000

export interface ClaimNews {
  /** A `listen` waits, for its name or for the master. Call what this gives when it waits no more. */
  waits(): () => void
  /** What makes a worker ready, or takes that back, in its order. */
  tell(message: FromWorker): void
  /** Everything now: it drains, and will not become ready. */
  flush(): void
}

/** @param link where it goes */
export function withholdClaims({ send }: Pick<Link, 'send'>): ClaimNews {
  const withheld: FromWorker[] = []
  let waiting = 0
  let immediate: NodeJS.Immediate | undefined
  let deadline: NodeJS.Timeout | undefined

  const flush = (): void => {
    clearImmediate(immediate)
    clearTimeout(deadline)
    immediate = deadline = undefined
    for (const message of withheld.splice(0)) send(message)
  }
  // Not in the same turn: the callback of one `listen` may call the next, and a `listen` that fails may be the end.
  const flushSoon = (): void => {
    if (withheld.length === 0) return
    deadline ??= setTimeout(flush, MAX_WITHHELD_MS).unref()
    immediate ??= setImmediate(() => {
      immediate = undefined
      if (waiting === 0) flush()
    })
  }

  return {
    waits() {
      waiting++
      let isOver = false
      return () => {
        if (isOver) return
        isOver = true
        waiting--
        flushSoon()
      }
    },
    tell(message) {
      withheld.push(message)
      flushSoon()
    },
    flush,
  }
}
