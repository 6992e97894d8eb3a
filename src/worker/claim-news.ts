/**
 * When the master hears where this app listens: not while a `listen` of its waits for an answer.
 *
 * A worker that listens wherever its slot is known to listen is ready. Scenario: a release listens on the two ports of
 * the one before it and on a third, which somebody else has. The first two are known and answered at once; for the third
 * the master looks for the owner, 0.4 s on a busy machine. Told of the two meanwhile, it would let clients in, and they
 * would meet a version that dies of the third. So it hears of all three, or of none.
 */
import { MAX_NEWS } from '../protocol.ts'
import type { News } from '../protocol.ts'
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
  tell(message: News): void
  /** Everything now: it drains, and will not become ready. */
  flush(): void
}

/** In as few messages as can be: with 300 listeners each message of its own kept the master for 8 ms. */
export function sendTogether(news: readonly News[], send: Link['send']): void {
  const [only, ...others] = news
  if (only && others.length === 0) return send(only)
  for (let from = 0; from < news.length; from += MAX_NEWS)
    send({ t: 'several', news: news.slice(from, from + MAX_NEWS) })
}

/** @param link where it goes */
export function withholdClaims({ send }: Pick<Link, 'send'>): ClaimNews {
  const withheld: News[] = []
  let waiting = 0
  let immediate: NodeJS.Immediate | undefined
  let deadline: NodeJS.Timeout | undefined

  const flush = (): void => {
    clearImmediate(immediate)
    clearTimeout(deadline)
    immediate = deadline = undefined
    sendTogether(withheld.splice(0), send)
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
