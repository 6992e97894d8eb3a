/**
 * `--log-file`: the master's own lines in a file, and SIGUSR1 to open it anew after logrotate(8) has renamed it. What
 * workers print goes where the master's stdout and stderr go: to journald, a container's runtime, the shell.
 */
import { closeSync, constants, fstatSync, lstatSync, openSync } from 'node:fs'
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
      mustNotBeAnothers(path)
      const { O_WRONLY, O_APPEND, O_CREAT, O_NONBLOCK } = constants
      // Without O_NONBLOCK to open a pipe waits for its reader: nobody would be looked after meanwhile.
      const fd = openSync(path, O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK, 0o666)
      if (fstatSync(fd).isFIFO()) {
        closeSync(fd)
        throw new Error(NO_FILE)
      }
      const destination = pino.destination({ fd, sync: true, maxLength: MAX_UNWRITTEN_BYTES })
      // A full disk must not end the master.
      return destination.on('error', () => {})
    } catch (error) {
      throw new Error(
        `The log file ${path} cannot be opened: ${reason(error)}. Give another with --log-file.`,
      )
    }
  }
}

const NO_FILE = 'it is a pipe or a socket, not a file'

/**
 * Who may write to the directory of a log could make us append to any file, by a link: so a root shell was had by nginx's
 * logs (CVE-2016-1247). A link of root's or of our own is followed, /var/log/x -> /dev/stderr.
 */
function mustNotBeAnothers(path: string): void {
  const stat = lstatSync(path, { throwIfNoEntry: false })
  if (stat?.isSymbolicLink() !== true || stat.uid === 0 || stat.uid === process.geteuid?.()) return
  throw new Error(`it is a link that uid ${stat.uid} has made, who could so have any file written to`)
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
    ENXIO: NO_FILE,
  }
  return known[code ?? ''] ?? message
}
