/**
 * What an app may say to usr2. Everything is optional, and a no-op when the app runs without a supervisor.
 *
 * A stub without imports: it finds the guest that the master put into this process, so that any version or copy of
 * this package, CommonJS or ESM, talks to the same one.
 */

interface Guest {
  readonly generation: number
  readonly slot: number
  ready(): void
  onDrain(listener: (deadlineMs: number) => unknown): void
  onShutdown(name: string, close: () => unknown): void
}

const guest = (globalThis as { [key: symbol]: unknown })[Symbol.for('usr2.guest.v1')] as Guest | undefined

/** Whether this process is a worker of usr2. */
export const supervised: boolean = guest !== undefined

/** The number of this worker's generation, from 1; null without a supervisor. */
export const generation: number | null = guest?.generation ?? null

/** The number of this worker's slot, from 0; null without a supervisor. */
export const slot: number | null = guest?.slot ?? null

/**
 * Says that this worker is ready for traffic. Needed with `--ready message` only, where a worker that says nothing
 * within the start timeout has failed.
 */
export function ready(): void {
  guest?.ready()
}

/**
 * Calls `listener` when this worker stops accepting connections because it is being replaced or stopped, while
 * requests in flight are still being answered. It gets the time that is left for them, in milliseconds.
 */
export function onDrain(listener: (deadlineMs: number) => unknown): void {
  guest?.onDrain(listener)
}

/**
 * Registers something to close when the last connection has gone. Closers run one after another, the newest first,
 * each awaited; then the app's SIGTERM listeners are called. All together have the shutdown timeout.
 */
export function onShutdown(name: string, close: () => unknown): void {
  guest?.onShutdown(name, close)
}
