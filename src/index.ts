/**
 * What an app may say to usr2. Everything is optional, and a no-op when the app runs without a supervisor (but
 * {@link whileLeader} runs its function: alone, an app is its own leader).
 *
 * A stub without imports: it finds the guest that the master put into this process, so that any version or copy of
 * this package, CommonJS or ESM, talks to the same one. Callbacks run in the async context (AsyncLocalStorage) of
 * the call that registered them. See docs/app-api.md and docs/background-work.md.
 */

interface Guest {
  readonly generation: number
  readonly slot: number
  readonly drainSignal: AbortSignal
  ready(): void
  onDrain(listener: (timeoutMs: number) => unknown): void
  onResume(listener: () => unknown): void
  onShutdown(name: string, close: () => unknown, options?: ShutdownOptions): void
  whileLeader(run: (signal: AbortSignal) => unknown): Promise<void>
  /** None in an older guest. */
  onProbe?(answer: OnProbe): void
}

const guest = (globalThis as { [key: symbol]: unknown })[Symbol.for('usr2.guest.v1')] as Guest | undefined

/** Whether this process is a worker of usr2. */
export const supervised: boolean = guest !== undefined

/** The number of this worker's generation, from 1; null without a supervisor. */
export const generation: number | null = guest?.generation ?? null

/** The number of this worker's slot, from 0; null without a supervisor. Two generations have the same slots. */
export const slot: number | null = guest?.slot ?? null

/**
 * Aborts when this worker begins to drain, right before the listeners of {@link onDrain} are called: for whatever
 * takes a signal (`fetch`, `setTimeout` of `node:timers/promises`, `events.on`). Never aborts without a supervisor.
 */
export const drainSignal: AbortSignal = guest?.drainSignal ?? neverAborted()

/**
 * Says that this worker is ready for traffic. Needed with `--ready message` only, where a worker that says nothing
 * within the start timeout has failed.
 */
export function ready(): void {
  guest?.ready()
}

/**
 * Calls `listener` when this worker stops accepting connections because it is being replaced or stopped, while
 * requests in flight are still being answered: the time to take no new work from elsewhere. It is not waited for. What
 * it throws is a warning in usr2's log.
 *
 * @param listener gets how long the drain may take from now, in milliseconds; called soon if the drain has begun
 * already
 * @throws TypeError when it is no function
 */
export function onDrain(listener: (timeoutMs: number) => unknown): void {
  mustBeFunction(listener, 'onDrain')
  guest?.onDrain(listener)
}

/**
 * Calls `listener` when this worker may accept connections again after they were taken away from it without an end:
 * the opposite of a drain that became none.
 *
 * @throws TypeError when it is no function
 */
export function onResume(listener: () => unknown): void {
  mustBeFunction(listener, 'onResume')
  guest?.onResume(listener)
}

/** Which probe asks: see docs/probes.md. */
export type ProbeKind = 'startup' | 'readiness' | 'liveness'

/** `false`, an error or a rejection is a failure, with the error's message as its reason; all else is none. */
export type OnProbe = (probe: ProbeKind) => boolean | void | Promise<boolean | void>

/**
 * Answers the probes of kind `message` (docs/probes.md), each within the probe's timeout. Without such a function a worker
 * passes them from when it has said that it is {@link ready}. Several functions are asked at the same time, and all must
 * agree: each speaks for its part of the app.
 *
 * @throws TypeError when it is no function
 */
export function onProbe(answer: OnProbe): void {
  mustBeFunction(answer, 'onProbe')
  guest?.onProbe?.(answer)
}

export interface ShutdownOptions {
  /**
   * Milliseconds. Past them the log names this closer and the next one begins; without, it may take all that is left
   * of the shutdown timeout.
   */
  readonly timeoutMs?: number
}

/**
 * Registers something to close when the drain is over: the last connection has gone, and the functions of
 * {@link whileLeader} have returned. Closers run one after another, each awaited, the newest first: so open the
 * database first, then the servers, then the consumers, and each can still use what was opened before it. Then the
 * app's own SIGTERM listeners are called. All together have the shutdown timeout; at its end the process exits.
 *
 * @param name what a warning calls it
 * @throws TypeError when `close` is no function, RangeError when the timeout is not a number above 0
 */
export function onShutdown(name: string, close: () => unknown, options: ShutdownOptions = {}): void {
  mustBeFunction(close, `onShutdown('${name}')`)
  const { timeoutMs } = options
  if (timeoutMs !== undefined && !(typeof timeoutMs === 'number' && timeoutMs > 0)) {
    throw new RangeError(
      `onShutdown('${name}') of usr2 takes a timeoutMs in milliseconds above 0, not ${String(timeoutMs)}`,
    )
  }
  guest?.onShutdown(name, close, options)
}

/**
 * Runs `run` in exactly one worker: a ready one of the generation that answers. For work of which there must be one,
 * such as a cron table or the poller of a queue. It runs until its signal aborts, which is when this worker begins to
 * drain or another generation takes over; then it finishes what it is at, and returns. Only when it has, or when this
 * process has ended, `run` starts in another worker.
 *
 * The time to return is that of the drain; then the app's shutdown begins. A function that never returns keeps every
 * other worker from leading until its process is ended. To throw the signal's own AbortError is to return.
 *
 * A function that returns without having been told to has resigned: the next worker that asked leads, and runs its
 * own. (What is to happen once waits for its signal afterwards.) Several functions run side by side in the same
 * worker, and leadership is given back when all have returned.
 *
 * One host, one master: two hosts have two leaders, and after a crash of the master a new one does not wait for the
 * old one's workers. Work that must never overlap needs a lease with a fencing token where its data is.
 *
 * Without a supervisor `run` simply runs, with a signal that never aborts.
 *
 * @param run called again with a new signal should this worker come to lead again
 * @returns resolves when `run` has resigned, or when this worker leaves, whether or not it ever led; rejects with what
 * `run` throws, which resigns too
 * @throws TypeError (as a rejection) when it is no function
 */
export async function whileLeader(run: (signal: AbortSignal) => unknown): Promise<void> {
  mustBeFunction(run, 'whileLeader')
  if (guest) return guest.whileLeader(run)
  await run(neverAborted())
}

function neverAborted(): AbortSignal {
  const { signal } = new AbortController()
  // Node 20 takes eleven waits on one signal for a leak, and warns. (Older than 20.16, it still does.)
  process.getBuiltinModule?.('node:events').setMaxListeners(0, signal)
  return signal
}

/** Also without a supervisor: a mistake must not wait for production, or for the shutdown. */
function mustBeFunction(given: unknown, what: string): void {
  if (typeof given !== 'function')
    throw new TypeError(`${what} of usr2 takes a function, not ${typeof given}`)
}
