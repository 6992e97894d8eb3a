/**
 * The very first import of the CLI. Without a handler SIGUSR2 and SIGHUP kill a Node process, and a deploy script
 * may send one 20 ms after the start, while the rest of the program is still being evaluated. So for `usr2 run`
 * handlers are installed before anything else is loaded; what comes is kept until someone listens.
 */
import { closeSync, openSync } from 'node:fs'

/** Every signal that means something to the master; see signals.ts for what. */
const SIGNALS = [
  'SIGUSR2',
  'SIGHUP',
  'SIGTERM',
  'SIGINT',
  'SIGQUIT',
  'SIGUSR1',
  'SIGTTIN',
  'SIGTTOU',
] as const
export type MasterSignal = (typeof SIGNALS)[number]

const early: MasterSignal[] = []
let listener: ((signal: MasterSignal) => void) | null = null

if (process.argv[2] === 'run') {
  for (const signal of SIGNALS) {
    process.on(signal, () => {
      if (listener) listener(signal)
      else early.push(signal)
    })
  }
}

/** Calls `onSignal` for each signal from now on, and at once for those that came before. Signal handlers only tell. */
export function listenToSignals(onSignal: (signal: MasterSignal) => void): void {
  listener = onSignal
  for (const signal of early.splice(0)) onSignal(signal)
}

/** Whether this process has a controlling terminal now: SIGHUP means "reload", unless it says that this was lost. */
export function hasTerminal(): boolean {
  try {
    closeSync(openSync('/dev/tty', 'r'))
    return true
  } catch {
    return false
  }
}

/**
 * Puts /dev/null where a terminal that is gone was. Node gives the terminal its settings back when it ends, and where
 * that fails with EIO it aborts (src/node.cc, ResetStdio): a stop that went well would end with SIGABRT and a core file.
 */
export function letGoOfTerminal(): void {
  for (const fd of [0, 1, 2]) {
    try {
      closeSync(fd)
      // The lowest free descriptor: the one just closed.
      openSync('/dev/null', 'r+')
    } catch {
      // It was closed before.
    }
  }
}
