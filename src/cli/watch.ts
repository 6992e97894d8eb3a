/** `--watch`: a master's status, asked for once a second and shown. */
import { setTimeout as delay } from 'node:timers/promises'

import { askStatus, connectControl, ControlError } from '../master/control/control-client.ts'
import type { Status } from '../master/face.ts'

const EVERY_MS = 1000

/**
 * Shows the status of the master at `path` until `signal` aborts. A connection for each question: the master may be
 * another one by then, and one that hangs costs one picture.
 *
 * @param lost told of each time when no answer came; without it the error is thrown
 * @throws {ControlError} no answer came
 */
export async function watchStatus(
  path: string,
  show: (status: Status) => void,
  { signal, everyMs = EVERY_MS, lost }: WatchOptions,
): Promise<void> {
  while (!signal.aborted) {
    try {
      const status = await askStatus(await connectControl(path))
      if (!signal.aborted) show(status)
    } catch (error) {
      if (!(error instanceof ControlError) || lost === undefined) throw error
      lost(error)
    }
    // Aborted is how it ends.
    await delay(everyMs, null, { signal }).catch(() => {})
  }
}

export interface WatchOptions {
  readonly signal: AbortSignal
  readonly everyMs?: number
  readonly lost?: (error: ControlError) => void
}
