/**
 * Signals that hit every process of a unit (`pkill -USR2 -f app`, `systemctl kill`, Ctrl-C, a lost terminal) are
 * meant for the master. Without a listener most of them kill a Node process at once, and USR1 starts the inspector;
 * an app's own listener would shut it down behind the master's back. So the guest listens, and hides them from the
 * app's listeners until the app's own shutdown.
 */
const KEPT = ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2'] as const
type Kept = (typeof KEPT)[number]

export interface Signals {
  /** The app's listeners are its own again. */
  release(): void
}

/**
 * @param isUsr1Nodes Node's handler of SIGUSR1 stays, which a listener would replace for good: the master needs it to look
 * into a blocked worker, and sees to it that no stray one starts the inspector (src/master/workers/blocked.ts). It is hidden
 * from the app all the same.
 */
export function keepSignals(isUsr1Nodes: boolean, onSignal: (signal: Kept) => void): Signals {
  let keeping = true
  let usr1IsNodes = isUsr1Nodes
  // A listener only so that the signal does its default harm no more: what it means is decided in `emit` below.
  const keeper = (): void => {}
  const keep = (): void => {
    for (const signal of KEPT) {
      if (signal === 'SIGUSR1' && usr1IsNodes) continue
      if (!process.listeners(signal).includes(keeper)) process.on(signal, keeper)
    }
  }

  const emit = process.emit as (...args: unknown[]) => boolean
  process.emit = function (this: NodeJS.Process, ...args: unknown[]): boolean {
    const signal = KEPT.find((name) => name === args[0])
    if (!keeping || signal === undefined) return emit.apply(this, args)
    onSignal(signal)
    return true
  } as typeof process.emit
  const events: NodeJS.EventEmitter = process
  if (isUsr1Nodes) {
    // A listener of the app has taken the place of Node's handler for good: without ours, too, a SIGUSR1 after the app
    // took its own away again would end the process.
    events.on('newListener', (name) => {
      if (name !== 'SIGUSR1' || !keeping || !usr1IsNodes) return
      usr1IsNodes = false
      keep()
    })
  }

  // Only now: Node binds the `emit` of that moment to a signal when its first listener is added.
  keep()

  // Node starts to watch a signal by a 'newListener' listener of its own. `process.removeAllListeners()` takes that
  // away, too: listeners that are added afterwards hear nothing, and SIGUSR2 ends the process.
  const watchers = (['newListener', 'removeListener'] as const).map(
    (name) => [name, events.rawListeners(name)] as const,
  )
  const rewatch = (): void => {
    for (const [name, listeners] of watchers) {
      const present = events.rawListeners(name)
      for (const listener of listeners) {
        if (!present.includes(listener)) events.on(name, listener as (...args: unknown[]) => void)
      }
    }
  }
  const removeAllListeners = process.removeAllListeners
  process.removeAllListeners = function (this: NodeJS.Process, ...args: [event?: string | symbol]) {
    // Without an event Node calls this once for each: the watchers are back before the signals are cleared.
    removeAllListeners.apply(this, args)
    if (keeping) {
      rewatch()
      keep()
    }
    return this
  } as typeof process.removeAllListeners

  return {
    release() {
      keeping = false
      for (const signal of KEPT) process.off(signal, keeper)
    },
  }
}
