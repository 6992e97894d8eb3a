/**
 * Keeps the path of a unix socket in place while its listener is held. Apps unlink it before `listen` and when they
 * stop; a deploy may replace the directory that it is in, or turn a symlink on the way to it over to another release.
 * A second hard link to the same socket, in a private directory on the same file system, brings it back: link to a
 * temporary name, rename over the path.
 */
import {
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmSync,
  rmdirSync,
  watch,
} from 'node:fs'
import type { FSWatcher } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { isAlive } from '../workers/leftovers.ts'
import { isOurDirectory } from '../control/runtime-directory.ts'

export class KeptUnixPath {
  readonly path: string
  private readonly inode: number
  private readonly onRestored: () => void
  /** The directory of the path with its symlinks resolved: `current/app.sock` was made in `releases/41`. */
  private home: string
  private watchers: FSWatcher[] = []

  /**
   * @param path an absolute path at which our socket was just bound
   * @param onRestored called when the path had to be brought back
   * @throws {NodeJS.ErrnoException} when no second link can be made (another file system, no right to write)
   */
  constructor(path: string, onRestored: () => void) {
    this.path = path
    this.onRestored = onRestored
    this.inode = lstatSync(path).ino
    this.home = realpathSync(dirname(path))
    sweep(this.home, basename(path))
    this.makeSpare(this.home, path)
    this.watch()
  }

  private get directory(): string {
    return directoryIn(this.home, this.path)
  }

  private get spare(): string {
    return join(this.directory, 's')
  }

  private makeSpare(home: string, from: string): void {
    const directory = directoryIn(home, this.path)
    // In a container every master is pid 1: a killed one has left its spare under our name. Anything else of that name was
    // planted, and is not entered: mkdir(2) follows no link.
    if (isOurDirectory(lstatSync(directory, { throwIfNoEntry: false }))) removeSpares(directory)
    mkdirSync(directory, { mode: 0o700 })
    try {
      linkSync(from, join(directory, 's'))
    } catch (error) {
      rmdirSync(directory)
      throw error
    }
  }

  /** The directory of the path, and that of each symlink on the way to it. */
  private watch(): void {
    for (const watcher of this.watchers.splice(0)) watcher.close()
    const links = ancestors(this.path).filter((at) =>
      lstatSync(at, { throwIfNoEntry: false })?.isSymbolicLink(),
    )
    for (const at of [this.path, ...links]) {
      try {
        const watcher = watch(dirname(at), { persistent: false }, (_, name) => {
          if (name === basename(at) && this.restore()) this.onRestored()
        })
        this.watchers.push(watcher.on('error', () => watcher.close()))
      } catch {
        // No watches left (inotify's limit): the path is still looked after at every step of the master.
      }
    }
  }

  private inodeAt(path: string): number | null {
    return lstatSync(path, { throwIfNoEntry: false })?.ino ?? null
  }

  /** Brings the path back if it is not our socket's any more. Gives whether it had to. */
  restore(): boolean {
    try {
      if (this.inodeAt(this.path) === this.inode) return false
      const temporary = join(dirname(this.path), `.usr2-${process.pid}.tmp`)
      rmSync(temporary, { force: true })
      linkSync(this.spare, temporary)
      renameSync(temporary, this.path)
      this.moveHome()
      return true
    } catch {
      // The directory is gone, or being replaced: tried again at the next step.
      return false
    }
  }

  /** After a symlink has moved: the old release may be deleted, and with it what is in its directory. */
  private moveHome(): void {
    const home = realpathSync(dirname(this.path))
    if (home === this.home) return
    this.makeSpare(home, this.path)
    this.removeFrom(this.home)
    this.home = home
    this.watch()
  }

  private removeFrom(home: string): void {
    const path = join(home, basename(this.path))
    if (this.inodeAt(path) === this.inode) rmSync(path, { force: true })
    removeSpares(directoryIn(home, this.path))
  }

  /** Leaves the path to another master that holds the same socket; takes only our spare link away. */
  abandon(): void {
    for (const watcher of this.watchers.splice(0)) watcher.close()
    rmSync(this.directory, { recursive: true, force: true })
  }

  /** The spare link of another master for the same path: it was killed. */
  sweep(pid: number): void {
    rmSync(directoryIn(this.home, this.path, pid), { recursive: true, force: true })
  }

  /** Removes everything, the path too if it is still our socket's. */
  remove(): void {
    for (const watcher of this.watchers.splice(0)) watcher.close()
    try {
      if (this.inodeAt(this.path) === this.inode) rmSync(this.path, { force: true })
      this.removeFrom(this.home)
    } catch {
      // Not ours any more.
    }
  }
}

const PREFIX = '.usr2-'

const directoryIn = (home: string, path: string, pid = process.pid): string =>
  join(home, `${PREFIX}${pid}-${basename(path)}`)

const removeSpares = (directory: string): void => rmSync(directory, { recursive: true, force: true })

/** Spare links that killed masters left for the same name. */
function sweep(home: string, name: string): void {
  for (const entry of readdirSync(home)) {
    if (!entry.startsWith(PREFIX) || !entry.endsWith(`-${name}`)) continue
    const pid = Number(entry.slice(PREFIX.length, -name.length - 1))
    if (!Number.isInteger(pid) || isAlive(pid)) continue
    const directory = join(home, entry)
    if (isOurDirectory(lstatSync(directory, { throwIfNoEntry: false }))) removeSpares(directory)
  }
}

function ancestors(path: string): string[] {
  const parent = dirname(path)
  return parent === path ? [] : [parent, ...ancestors(parent)]
}
