/**
 * Keeps the path of a unix socket in place while its listener is held. Apps unlink it before `listen` and when they
 * stop; a deploy may replace the directory that it is in. A second hard link to the same socket, in a private
 * directory on the same file system, brings it back: link to a temporary name, rename over the path.
 */
import { linkSync, lstatSync, mkdirSync, renameSync, rmSync, rmdirSync, watch } from 'node:fs'
import type { FSWatcher } from 'node:fs'
import { basename, dirname, join } from 'node:path'

export class KeptUnixPath {
  readonly path: string
  private readonly directory: string
  private readonly spare: string
  private readonly inode: number
  private watcher: FSWatcher | null = null

  /**
   * @param path an absolute path at which our socket was just bound
   * @param onRestored called when the path had to be brought back
   * @throws {NodeJS.ErrnoException} when no second link can be made (another file system, no right to write)
   */
  constructor(path: string, onRestored: () => void) {
    this.path = path
    this.inode = lstatSync(path).ino
    this.directory = join(dirname(path), `.usr2-${process.pid}-${basename(path)}`)
    this.spare = join(this.directory, 's')
    mkdirSync(this.directory, { mode: 0o700, recursive: true })
    try {
      linkSync(path, this.spare)
    } catch (error) {
      rmdirSync(this.directory)
      throw error
    }
    try {
      this.watcher = watch(dirname(path), { persistent: false }, (_, name) => {
        if (name === basename(path) && this.restore()) onRestored()
      })
      this.watcher.on('error', () => this.watcher?.close())
    } catch {
      // No watches left (inotify's limit): the path is still looked after at every step of the master.
    }
  }

  private inodeAt(path: string): number | null {
    return lstatSync(path, { throwIfNoEntry: false })?.ino ?? null
  }

  /** Brings the path back if it is not our socket's any more. Gives whether it had to. */
  restore(): boolean {
    if (this.inodeAt(this.path) === this.inode) return false
    try {
      const temporary = join(dirname(this.path), `.usr2-${process.pid}.tmp`)
      rmSync(temporary, { force: true })
      linkSync(this.spare, temporary)
      renameSync(temporary, this.path)
      return true
    } catch {
      // The directory is gone, or being replaced: tried again at the next step.
      return false
    }
  }

  /** Removes everything, the path too if it is still our socket's. */
  remove(): void {
    this.watcher?.close()
    if (this.inodeAt(this.path) === this.inode) rmSync(this.path, { force: true })
    rmSync(this.spare, { force: true })
    try {
      rmdirSync(this.directory)
    } catch {
      // Not ours any more.
    }
  }
}
