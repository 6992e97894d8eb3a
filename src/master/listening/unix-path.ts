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
  statSync,
  watch,
} from 'node:fs'
import type { FSWatcher } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { lstat } from '../look.ts'
import { isAlive } from '../workers/leftovers.ts'
import { isOurDirectory } from '../control/runtime-directory.ts'

export class KeptUnixPath {
  readonly path: string
  private readonly inode: number
  private readonly onRestored: () => void
  /** The directory of the path with its symlinks resolved: `current/app.sock` was made in `releases/41`. */
  private home: string
  private watches: (() => void)[] = []

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
    if (isOurDirectory(lstat(directory))) removeSpares(directory)
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
    this.unwatch()
    const links = ancestors(this.path).filter((at) => lstat(at)?.isSymbolicLink())
    for (const at of [this.path, ...links]) {
      try {
        this.watches.push(
          watchEntry(at, () => {
            if (this.restore()) this.onRestored()
          }),
        )
      } catch {
        // No watches left (inotify's limit): the path is still looked after at every step of the master.
      }
    }
  }

  private unwatch(): void {
    for (const end of this.watches.splice(0)) end()
  }

  private inodeAt(path: string): number | null {
    return lstat(path)?.ino ?? null
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
    this.unwatch()
    rmSync(this.directory, { recursive: true, force: true })
  }

  /** The spare link of another master for the same path: it was killed. */
  sweep(pid: number): void {
    rmSync(directoryIn(this.home, this.path, pid), { recursive: true, force: true })
  }

  /** Removes everything, the path too if it is still our socket's. */
  remove(): void {
    this.unwatch()
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
  for (const pid of sparesIn(home).get(name) ?? []) {
    if (isAlive(pid)) continue
    const directory = join(home, `${PREFIX}${pid}-${name}`)
    if (isOurDirectory(lstat(directory))) removeSpares(directory)
  }
}

/**
 * An app with 600 sockets binds them within a second or two. To read their directory for each of them, with two entries of
 * ours for each that there is already, took 1.5 s.
 */
const LOOK_AGAIN_MS = 1_000
let looked: { readonly home: string; readonly at: number; readonly spares: Map<string, number[]> } | null =
  null

/** Whose spare links there are, by the name of their socket. */
function sparesIn(home: string): ReadonlyMap<string, readonly number[]> {
  const now = performance.now()
  if (looked?.home === home && now - looked.at < LOOK_AGAIN_MS) return looked.spares
  const spares = new Map<string, number[]>()
  for (const entry of readdirSync(home)) {
    const [, pid, name] = /^\.usr2-(\d+)-(.+)$/s.exec(entry) ?? []
    if (pid === undefined || name === undefined || Number(pid) === process.pid) continue
    spares.set(name, [...(spares.get(name) ?? []), Number(pid)])
  }
  looked = { home, at: now, spares }
  return spares
}

/** A directory in which something is looked after. */
interface Watched {
  readonly watcher: FSWatcher
  readonly looks: Map<string, Set<() => void>>
}
const watched = new Map<string, Watched>()

/**
 * Calls `look` at each change of that entry of its directory, until what this gives is called. All sockets in a directory
 * share one watch: of 600 each told of every change of any, and an app that binds 600 makes some 2,000 changes.
 *
 * @throws {NodeJS.ErrnoException} the directory cannot be watched
 */
function watchEntry(path: string, look: () => void): () => void {
  const directory = dirname(path)
  const name = basename(path)
  // A deploy may have put another directory in the place of the one that is watched under this name.
  const { dev, ino } = statSync(directory)
  const key = `${dev} ${ino} ${directory}`
  const { watcher, looks } = watched.get(key) ?? watchDirectory(key, directory)
  const those = looks.get(name) ?? new Set()
  looks.set(name, those.add(look))
  return () => {
    those.delete(look)
    if (those.size === 0 && looks.get(name) === those) looks.delete(name)
    if (looks.size > 0) return
    watcher.close()
    if (watched.get(key)?.watcher === watcher) watched.delete(key)
  }
}

function watchDirectory(key: string, directory: string): Watched {
  const looks: Watched['looks'] = new Map()
  const watcher = watch(directory, { persistent: false }, (_, name) => {
    // Its own end, after which it tells of nothing: the next directory may have the same number.
    if (name === basename(directory)) watched.delete(key)
    for (const look of [...(looks.get(name ?? '') ?? [])]) look()
  })
  watcher.on('error', () => {
    watcher.close()
    watched.delete(key)
  })
  const entry = { watcher, looks }
  watched.set(key, entry)
  return entry
}

function ancestors(path: string): string[] {
  const parent = dirname(path)
  return parent === path ? [] : [parent, ...ancestors(parent)]
}
