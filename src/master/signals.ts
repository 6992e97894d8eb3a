/** What each signal to the master means. Handlers only tell: the face is asked, and decides by the machine. */
import { hasTerminal, letGoOfTerminal, listenToSignals } from './early-signals.ts'
import type { LogFile } from './log-file.ts'
import type { Logger } from './report.ts'
import type { Upgrader } from './upgrade/upgrade.ts'
import { printable } from './words.ts'

export interface SignalsParts {
  readonly face: Upgrader
  readonly log: Logger
  readonly env: NodeJS.ProcessEnv
  /** What SIGUSR1 opens anew. */
  readonly file: LogFile | null
}

export function takeSignals({ face, log, env, file }: SignalsParts): void {
  const hadTerminal = hasTerminal()
  if (env['npm_lifecycle_event'] !== undefined || env['npm_command'] !== undefined) {
    log.warn(
      {},
      `started through npm, which passes no USR2 or HUP on: send signals to pid ${process.pid} itself`,
    )
  }
  listenToSignals((signal) => {
    // "The terminal is gone" comes by the same signal as "reload". Before the first word to it.
    const isHangup = signal === 'SIGHUP' && hadTerminal && !hasTerminal()
    if (isHangup) letGoOfTerminal()
    log.info({ event: 'signal', signal }, `got ${signal}`)
    switch (signal) {
      case 'SIGUSR2':
        return face.reloadUnattended()
      case 'SIGHUP':
        return isHangup ? face.stop('graceful') : face.reloadUnattended()
      case 'SIGTERM':
      case 'SIGINT':
        return face.stop(face.stopping ? 'now' : 'graceful')
      case 'SIGQUIT':
        return face.stop('graceful')
      case 'SIGTTIN':
      case 'SIGTTOU':
        return face.order({ k: 'scale-by', by: signal === 'SIGTTIN' ? 1 : -1 }, (problem) => {
          if (problem !== null) log.warn({ event: 'refused', signal }, problem)
        })
      case 'SIGUSR1':
        return reopen(file, log)
    }
  })
}

function reopen(file: LogFile | null, log: Logger): void {
  if (file === null) return
  try {
    file.reopen()
    log.info({ event: 'log-reopened', path: file.path }, `the log goes on in ${file.path}`)
  } catch (error) {
    const text = `${error instanceof Error ? error.message : String(error)} The file that was open goes on.`
    log.warn({ event: 'log-not-reopened', path: file.path }, text)
    process.stderr.write(`usr2: ${printable(text)}\n`)
  }
}
