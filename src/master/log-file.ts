/**
 * `--log-file`: the master's own lines in a file, and SIGUSR1 to open it anew after logrotate(8) has renamed it. What
 * workers print goes where the master's stdout and stderr go: to journald, a container's runtime, the shell.
 */
import { statSync } from 'node:fs'
import pino from 'pino'

/** Lines that cannot be written are kept so far, for a disk that has room again. */
export const MAX_UNWRITTEN_BYTES = 1024 * 1024

type Destination = ReturnType<typeof pino.destination>

export class LogFile {
  readonly path: string
  private current: Destination

  /** @throws {Error} a sentence: it cannot be opened */
  constructor(path: string) {
    this.path = path
    this.current = this.open()
  }

  write(line: string): void {
    this.current.write(line)
  }

  /**
   * What lies at the path now gets the lines from now on; made anew where nothing does.
   *
   * @throws {Error} a sentence: it cannot be opened, and the file that was open before goes on
   */
  reopen(): void {
    const before = this.current
    this.current = this.open()
    before.end()
  }

  private open(): Destination {
    const { path } = this
    try {
      const stat = statSync(path, { throwIfNoEntry: false })
      // To open a pipe waits for its reader: nobody would be looked after meanwhile.
      if (stat?.isFIFO() || stat?.isSocket()) throw new Error('it is a pipe or a socket, not a file')
      const destination = pino.destination({ dest: path, sync: true, maxLength: MAX_UNWRITTEN_BYTES })
      // A full disk must not end the master.
      return destination.on('error', () => {})
    } catch (error) {
      throw new Error(
        `The log file ${path} cannot be opened: ${reason(error)}. Give another with --log-file.`,
      )
    }
  }
}

function reason(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException
  const known: Readonly<Record<string, string>> = {
    ENOENT: 'there is no such directory',
    ENOTDIR: 'a part of the path is not a directory',
    EACCES: 'this user may not write there',
    EPERM: 'this user may not write there',
    EROFS: 'the file system is read-only',
    EISDIR: 'it is a directory',
    ENOSPC: 'the file system is full',
  }
  return known[code ?? ''] ?? message
}
