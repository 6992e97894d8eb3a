/**
 * The app's own shutdown, last of all: first what it registered by `onShutdown`, newest first, then its SIGTERM
 * listeners (or, if it has none, its SIGINT listeners, as PM2 apps do). Once a listener is called the app owns its
 * exit. An app with nothing to say exits 0.
 */

export interface Closer {
  readonly name: string
  readonly close: () => unknown
}

export interface ShutdownParts {
  readonly closers: readonly Closer[]
  readonly timeoutMs: number
  /** Lets go of everything of ours that would keep the process alive. */
  release(): void
  warn(text: string): void
}

export async function shutDownApp({ closers, timeoutMs, release, warn }: ShutdownParts): Promise<void> {
  // One deadline for all closers and listeners together. It must not keep an app alive that has finished.
  const deadline = setTimeout(() => {
    warn(`the app's own shutdown took longer than ${timeoutMs / 1000} s; exiting`)
    process.exit(1)
  }, timeoutMs)
  for (const { name, close } of [...closers].reverse()) {
    try {
      await close()
    } catch (error) {
      warn(`shutting down ${name} failed: ${error instanceof Error ? error.message : String(error)}`)
    }
  }
  release()
  deadline.unref()
  const signal = (['SIGTERM', 'SIGINT'] as const).find((name) => process.listenerCount(name) > 0)
  if (!signal) process.exit(0)
  const number = signal === 'SIGTERM' ? 15 : 2
  ;(process.emit as (event: string, ...args: unknown[]) => boolean).call(process, signal, signal, number)
}
