/**
 * A unix socket of the master's own for a server that others connect to by its path: the metrics, and the control socket,
 * which has more to say about its place (control.ts).
 *
 * Rules: what is no socket is never touched; a socket that somebody answers at is never replaced; the file never exists
 * with wider permissions than asked for; only our own is removed.
 */
import { chmodSync, existsSync, lchownSync, renameSync, unlinkSync, type Stats } from 'node:fs'
import type { Server } from 'node:net'
import { dirname } from 'node:path'
import { MAX_UNIX_PATH_BYTES } from '../../address.ts'
import { probe } from './control-client.ts'
import { isSameFile, lstat } from '../look.ts'

const PROBE_MS = 1000

/**
 * Binds `server` to `path` with the permission bits `mode`; what a killed master left there is replaced. Gives what
 * removes the file: to be called while the server is still bound.
 *
 * @throws {Error} a phrase why not: `a process answers there`
 */
export async function listenAtPath(server: Server, path: string, mode: number): Promise<() => void> {
  // Bound under another name first: libuv unlinks the name that it bound, and so never the path that a successor has
  // taken (FACTS M8); and a client finds a socket that answers, or none.
  const temporary = `${path}.${process.pid}`
  const over = Buffer.byteLength(temporary) - MAX_UNIX_PATH_BYTES
  if (over > 0) throw new Error(`the path is ${over} ${over === 1 ? 'byte' : 'bytes'} too long for a socket`)
  // Looked for here: libuv says EACCES in place of bind's ENOENT.
  if (!existsSync(dirname(path))) throw new Error(`there is no directory ${dirname(path)}`)
  const stale = await findStale(path)

  try {
    await bindAndRename(server, { path, temporary, mode, gid: null, stale })
  } catch (error) {
    throw new Error(reason(error, path), { cause: error })
  }
  const own = lstat(path)
  return () => {
    // The kernel gives our inode to no other file while the server is bound.
    if (isSameFile(own, lstat(path))) unlinkSync(path)
  }
}

export interface Place {
  readonly path: string
  /** Beside it: what is bound, and then renamed. */
  readonly temporary: string
  readonly mode: number
  /** Its group, where that is not the process's own. */
  readonly gid: number | null
  /** What was found at the path, and answers nobody. */
  readonly stale: Stats | null
}

/** Somebody has put a file at the path since it was looked at. */
export class PathTakenError extends Error {
  override name = 'PathTakenError'
}

/**
 * To the rename nothing is awaited: two masters that start at once have no time to pass each other. Closes the server
 * where it throws.
 *
 * @throws {PathTakenError} or what bind(2), chown(2) and rename(2) say
 */
export async function bindAndRename(server: Server, place: Place): Promise<void> {
  const { path, temporary, mode, gid, stale } = place
  try {
    // What a killed master with our pid left: in a container every master is pid 1.
    if (lstat(temporary)?.isSocket()) unlinkSync(temporary)
    const bound = new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      server.once('listening', () => {
        server.off('error', reject)
        resolve()
      })
    })
    bound.catch(() => {})
    // bind(2) makes the file with 0777 & ~umask, so it is right from its first instant, where a chmod after it
    // would leave a moment in which anybody may connect. Node binds within the call.
    // Another group's is for nobody else until it is that group's.
    const umask = process.umask(0o777 & ~(gid === null ? mode : mode & 0o700))
    try {
      server.listen(temporary)
    } finally {
      process.umask(umask)
    }
    if (server.listening) {
      if (gid !== null) {
        lchownSync(temporary, process.geteuid?.() ?? 0, gid)
        // chmod(2) would follow a link, but only we can put one here.
        chmodSync(temporary, mode)
      }
      const now = lstat(path)
      if (now !== null && !isSameFile(stale, now)) throw new PathTakenError('a process has just taken it')
      renameSync(temporary, path)
    }
    await bound
  } catch (error) {
    server.close()
    throw error
  }
}

/** What stands where a socket should: `a symbolic link`. */
export function kindOf(found: Stats): string {
  return found.isSymbolicLink() ? 'a symbolic link' : found.isDirectory() ? 'a directory' : 'not a socket'
}

/** The socket file of a process that is no more, null where the path is free. */
async function findStale(path: string): Promise<Stats | null> {
  const found = lstat(path)
  if (found === null) return null
  if (!found.isSocket()) {
    throw new Error(`it is ${kindOf(found)}, which usr2 does not replace`)
  }
  const answer = await probe(path, PROBE_MS).catch((error: unknown) => {
    throw new Error(reason(error, path), { cause: error })
  })
  if (answer === 'accepted') throw new Error('another process answers there')
  return answer === 'refused' ? found : null
}

function reason(error: unknown, path: string): string {
  const { code, message } = error as NodeJS.ErrnoException
  switch (code) {
    case 'EACCES':
    case 'EPERM':
    case 'EROFS':
      return `the user that runs usr2 (uid ${process.getuid?.() ?? '?'}) may not write to ${dirname(path)} (${code})`
    default:
      return message
  }
}
