/** `usr2 reload` and `usr2 rollback`: a rollout, followed from the request to its verdict. */
import { renderRollout, type Marks } from './rollout-text.ts'
import { complain, fail, say } from './say.ts'
import { Screen } from './screen.ts'
import { renderVerdict } from './status.ts'
import { asJson, printable } from './text.ts'
import { watchStatus } from './watch.ts'
import { parseDuration } from '../config.ts'
import {
  MasterLostError,
  type ControlConnection,
  type RolloutEnd,
  type RolloutWatcher,
} from '../master/control/control-client.ts'
import type { Verdict } from '../master/face.ts'

const OK = 0
const FAILED = 1
const MASTER_LOST = 4
/** 128 + SIGINT, as shells have it. */
const INTERRUPTED = 130
/**
 * 128 + SIGTERM. systemd sends it to `ExecReload=` where the service is stopped during a reload; the unit's
 * SuccessExitStatus= tells this status from a failure, which would leave a clean stop `failed`.
 */
const TERMINATED = 143
/**
 * systemd sends SIGTERM to the master first, and its verdict, that it was told to stop, can be here before ours: on a busy
 * machine by some 20 ms.
 */
const TERM_GRACE_MS = 200

/** How long an aborted rollout may take to say so. It ends at once, unless others asked for it too. */
const ABORT_GRACE_MS = 10_000

export interface Following {
  readonly connection: ControlConnection
  readonly json: boolean
  /** As it was given: `30s`. */
  readonly timeout: string | undefined
  /** Draw the rollout on stdout with these; null: its progress is told in lines. */
  readonly picture: Marks | null
  /** What it is called; default: a rollout. */
  readonly what?: string
  /** Asks on {@link connection}. */
  readonly ask: (watcher: RolloutWatcher) => Promise<RolloutEnd>
}

/** @returns the exit status. `--timeout` and SIGTERM abort the rollout, SIGINT leaves it to itself. */
export async function followRollout(following: Following): Promise<number> {
  const { connection, json, timeout, picture, ask, what = 'rollout' } = following
  let verdict: Verdict | null = null
  let detached = false
  let failed = FAILED
  let wake = () => {}

  /** Set once the rollout is to end, or the wait for its drain: why, as the end of a sentence. */
  let gaveUp: string | null = null
  let grace: NodeJS.Timeout | null = null
  const giveUp = (why: string) => {
    if (gaveUp !== null) return
    gaveUp = why
    if (verdict !== null) {
      connection.close() // Promoted already: only the drain was waited for, and that goes on.
    } else {
      connection.send({ cmd: 'abort', reason: why })
      grace = setTimeout(() => connection.close(), ABORT_GRACE_MS)
    }
  }
  const timer =
    timeout === undefined
      ? null
      : setTimeout(() => giveUp(`--timeout ${timeout} expired`), parseDuration(timeout))
  const onTerm = () => {
    failed = TERMINATED
    wake()
    giveUp('the client that asked for it got SIGTERM')
  }
  const onInt = () => {
    detached = true
    connection.close()
  }
  process.on('SIGTERM', onTerm).on('SIGINT', onInt)
  const drawing = picture === null ? null : draw(connection.path, picture)

  try {
    const end = await ask({
      progress: (progress) => {
        if (json) say(asJson({ progress }))
        else if (drawing !== null) drawing.screen.print(printable(progress.text))
        else say(printable(progress.text))
      },
      verdict: (its) => {
        verdict = its
        drawing?.end()
        if (grace !== null) clearTimeout(grace)
        if (json) say(asJson({ verdict: its }))
        else if (its.outcome === 'promoted') say(renderVerdict(its))
        else complain(`usr2: ${renderVerdict(its)}`)
        // The abort came too late for the rollout; the drain is what is not waited for then.
        if (gaveUp !== null && its.outcome === 'promoted') connection.close()
      },
    })
    if (end.drained !== null) {
      say(json ? asJson({ drained: end.drained }) : printable(end.drained.text))
    }
    if (end.verdict.outcome === 'promoted') return OK
    if (gaveUp !== null && !end.verdict.text.includes(gaveUp))
      fail(`The ${what} was aborted: ${gaveUp}.`, json)
    if (end.verdict.outcome === 'overtaken' && gaveUp === null) {
      await new Promise<void>((resolve) => {
        wake = resolve
        setTimeout(resolve, TERM_GRACE_MS)
      })
    }
    return failed
  } catch (error) {
    if (!(error instanceof MasterLostError)) throw error
    drawing?.end()
    const follow = `usr2 status --control ${connection.path}`
    if (detached) {
      fail(`Detached; nothing is aborted, the ${what} goes on. To follow it: ${follow}`, json)
      return INTERRUPTED
    }
    const promoted = verdict !== null
    if (gaveUp !== null) {
      const then = promoted
        ? 'The new generation is promoted, but the old one has not drained yet and goes on'
        : `The ${what} was to be aborted, but the master gave no verdict`
      fail(`${then}: ${gaveUp}. To follow it: ${follow}`, json)
      return failed
    }
    const { name, pid } = connection.hello
    const when = promoted ? 'before the old generation had drained' : 'before the verdict'
    fail(`The master "${name}" (pid ${pid}) was lost ${when}: ${error.message}. Its log says why.`, json)
    return MASTER_LOST
  } finally {
    drawing?.end()
    process.off('SIGTERM', onTerm).off('SIGINT', onInt)
    if (timer !== null) clearTimeout(timer)
    if (grace !== null) clearTimeout(grace)
  }
}

/** Asks on connections of its own: the one of the rollout is busy until the verdict. */
function draw(path: string, marks: Marks): { readonly screen: Screen; end(): void } {
  const screen = new Screen(process.stdout)
  const stop = new AbortController()
  const show = ({ rollout }: { readonly rollout: Parameters<typeof renderRollout>[0] | null }) =>
    screen.draw(rollout === null ? [] : renderRollout(rollout, marks))
  // Whether the master is lost is told by the connection that waits for the verdict.
  void watchStatus(path, show, { signal: stop.signal, lost: () => {} })
  return {
    screen,
    end: () => {
      stop.abort()
      screen.clear()
    },
  }
}
