/**
 * `--pid-file`: written when the master is ready, so that who waits for the file may signal at once.
 *
 * The file may be shared: a second master started by mistake, or the successor at an upgrade, writes its own pid
 * into it. So it is removed only while it holds ours.
 */
import {
  closeSync,
  constants,
  lstatSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs'

const MAX_PID_BYTES = 64

export class PidFileError extends Error {
  override name = 'PidFileError'
}

/**
 * Writes `pid` and a line end to `path`, whole or not at all (a temporary file beside it, renamed).
 *
 * @throws {PidFileError} a sentence
 */
export function writePidFile(path: string, pid: number = process.pid): void {
  const temporary = `${path}.${process.pid}`
  try {
    // What a killed master with our pid left (in a container every master is pid 1), or a link that somebody
    // planted: `wx` follows none.
    rmSync(temporary, { force: true })
    writeFileSync(temporary, `${pid}\n`, { mode: 0o644, flag: 'wx' })
    renameSync(temporary, path)
  } catch (error) {
    try {
      unlinkSync(temporary)
    } catch {
      // It was never made.
    }
    throw new PidFileError(
      `Could not write the pid file ${path}: ${reason(error)}. ` +
        'Give a path in a directory that exists and that this user may write to, with --pid-file.',
    )
  }
}

/**
 * Removes the file if it holds `pid`. A file that is gone, or another's, is left as it is.
 *
 * @returns whether it was removed
 * @throws {PidFileError} a sentence: it holds our pid and cannot be removed
 */
export function removePidFile(path: string, pid: number = process.pid): boolean {
  let held: string
  try {
    // Whoever may write there may have put a pipe or a link in its place: a stop waits for nobody, and follows none.
    const stat = lstatSync(path)
    if (!stat.isFile() || stat.size > MAX_PID_BYTES) return false
    const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = constants
    const fd = openSync(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
    try {
      held = readFileSync(fd, 'utf8')
    } finally {
      closeSync(fd)
    }
  } catch {
    return false
  }
  if (held.trim() !== String(pid)) return false
  try {
    unlinkSync(path)
    return true
  } catch (error) {
    throw new PidFileError(`Could not remove the pid file ${path}: ${reason(error)}. Remove it by hand.`)
  }
}

function reason(error: unknown): string {
  const code = error instanceof Error && 'code' in error ? error.code : null
  if (code === 'ENOENT') return 'its directory does not exist'
  if (code === 'EACCES' || code === 'EPERM' || code === 'EROFS')
    return `this user may not write there (${code})`
  if (code === 'EISDIR' || code === 'ENOTEMPTY') return 'it is a directory'
  if (code === 'ENOSPC') return 'the file system is full'
  return error instanceof Error ? error.message : String(error)
}
