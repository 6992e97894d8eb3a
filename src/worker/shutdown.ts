/**
 * The app's own shutdown, last of all: first what it registered by `onShutdown`, newest first, then its SIGTERM
 * listeners (or, if it has none, its SIGINT listeners, as PM2 apps do). Once a listener is called the app owns its
 * exit. An app with nothing to say exits 0.
 */

export interface Closer {
  readonly name: string
  readonly close: () => unknown
  /** After so long the next one begins; undefined: whatever is left for all of them. */
  readonly timeoutMs: number | undefined
}

export interface ShutdownParts {
  readonly closers: readonly Closer[]
  /** For all closers and listeners together. */
  readonly timeoutMs: number
  /** Lets go of everything of ours that would keep the process alive. */
  release(): void
  warn(text: string): void
}

export async function shutDownApp({ closers, timeoutMs, release, warn }: ShutdownParts): Promise<void> {
  // It must not keep an app alive that has finished.
  const deadline = setTimeout(() => {
    warn(`the app's own shutdown took longer than ${timeoutMs / 1000} s; exiting`)
    process.exit(1)
  }, timeoutMs)
  const left = [...closers].reverse()
  // By that deadline, by the master's (the same, seen from there), or by a `process.exit` in a closer.
  const tellLeft = (): void => {
    warn(`the process ends before it has shut down ${left.map(({ name }) => name).join(', ')}`)
  }
  if (left.length > 0) process.once('exit', tellLeft)
  // What follows an `await whileLeader(…)` of the app has its turn before the process may end.
  await new Promise((resolve) => setImmediate(resolve))
  for (let closer = left[0]; closer; left.shift(), closer = left[0]) {
    // With no less than all have together, it is the deadline above that ends it.
    await closeInTime(closer, (closer.timeoutMs ?? timeoutMs) < timeoutMs, warn)
  }
  process.off('exit', tellLeft)
  release()
  deadline.unref()
  const signal = (['SIGTERM', 'SIGINT'] as const).find((name) => process.listenerCount(name) > 0)
  if (!signal) process.exit(0)
  const number = signal === 'SIGTERM' ? 15 : 2
  ;(process.emit as (event: string, ...args: unknown[]) => boolean).call(process, signal, signal, number)
}

/** A closer that hangs must not keep those after it from their turn: the database is to be closed all the same. */
async function closeInTime(
  { name, close, timeoutMs = 0 }: Closer,
  hasTimeout: boolean,
  warn: (text: string) => void,
): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  const timedOut = new Promise<void>((resolve) => {
    if (!hasTimeout) return
    timer = setTimeout(() => {
      warn(`shutting down ${name} took longer than its ${timeoutMs / 1000} s; going on with the next`)
      resolve()
    }, timeoutMs)
  })
  try {
    await Promise.race([close(), timedOut])
  } catch (error) {
    warn(`shutting down ${name} failed: ${error instanceof Error ? error.message : String(error)}`)
  } finally {
    clearTimeout(timer)
  }
}
