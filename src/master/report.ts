/**
 * What was decided, in words: log lines, the status line for the service manager, the verdict's sentence. Pure but
 * for the logger that is made here.
 */
import { createRequire } from 'node:module'
import pino from 'pino'
import type { Logger } from 'pino'
import type { Verdict as Decision } from '../rollout/state.ts'
import type { Pinned } from './workers/generation.ts'
import { MAX_UNWRITTEN_BYTES, type LogFile } from './log-file.ts'
import { seconds } from './words.ts'

export type { Logger }

/**
 * JSON lines on stderr, or in a file, so that the app's stdout stays the app's; readable lines on a terminal. A service has no
 * terminal, and its master is spared 1 MB for them.
 */
export async function createLogger(level: string, name: string, file: LogFile | null): Promise<Logger> {
  return loggerTo(file ?? (await standardError()), level, name)
}

async function standardError(): Promise<pino.DestinationStream> {
  const destination =
    process.stderr.isTTY === true
      ? (await import('./pretty.ts')).prettyStderr()
      : pino.destination({ dest: 2, sync: true, maxLength: MAX_UNWRITTEN_BYTES })
  // A full disk (ENOSPC) or a terminal that is gone (EIO) must not end the master; unheard, an 'error' would.
  return destination.on('error', () => {})
}

function loggerTo(destination: pino.DestinationStream, level: string, name: string): Logger {
  return pino(
    {
      level,
      // `pid` in a line is a worker's.
      base: { name, master: process.pid },
      formatters: { level: (label) => ({ level: label }) },
      timestamp: pino.stdTimeFunctions.isoTime,
    },
    destination,
  )
}

/** `/srv/releases/41 -> /srv/releases/42`, and the versions where they differ. */
function change(from: Pinned | undefined, to: Pinned | undefined): string {
  if (!from || !to) return ''
  const where = from.entry === to.entry ? to.entry : `${from.cwd} -> ${to.cwd}`
  const version = from.version === to.version ? to.version : `${from.version} -> ${to.version}`
  const node = from.nodeVersion === to.nodeVersion ? '' : `, Node ${from.nodeVersion} -> ${to.nodeVersion}`
  return `: ${where}${version ? ` (${version})` : ''}${node}`
}

/** One line: `generation 7 -> 8 in 2.1 s: /srv/releases/41 -> /srv/releases/42 (1.4.0 -> 1.5.0)`. */
export function verdictText(decision: Decision, pinned: ReadonlyMap<number, Pinned>): string {
  const { outcome, kind, current, other, tookMs, reasons } = decision
  const took = seconds(tookMs)
  switch (outcome) {
    case 'promoted':
      // A rollback asked for in the midst of a rollout has ended that, and there is nothing else to go back to.
      if (other === null) return `generation ${current} serves on: ${reasons.join('; ')}`
      return `generation ${other} -> ${current} in ${took}${change(pinned.get(other ?? -1), pinned.get(current ?? -1))}`
    case 'rolled-back':
      if (kind === 'rollback')
        return `the rollback to generation ${other} failed after ${took}, generation ${current} serves on: ${reasons.join('; ')}`
      return `generation ${other} was rolled back after ${took}, generation ${current} serves on: ${reasons.join('; ')}`
    case 'refused':
      return `the ${kind} was refused, generation ${current} serves on: ${reasons.join(' ')}`
    case 'overtaken':
      return `the ${kind} was ended after ${took}: ${reasons.join('; ')}`
  }
}

/** Our own version, as it was when this program was built. */
declare const __USR2_VERSION__: string | undefined
export function ownVersion(): string {
  if (typeof __USR2_VERSION__ === 'string') return __USR2_VERSION__
  const { version } = createRequire(import.meta.url)('../../package.json') as { version: string }
  return version
}
