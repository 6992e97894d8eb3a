/**
 * The master's own directory beside its control socket, with copies of what it loads later and of what workers load: an
 * `npm ci` or an upgrade on disk never mixes versions.
 *
 * Whoever can change it runs code in every worker. So:
 * - its parent belongs to root or to us, and nobody else can rename what is in it;
 * - its name is made up by mkdtemp(3): nothing that lies there already is ever taken for it, and no link is followed;
 * - what a killed master left is removed only where it is a directory of ours.
 */
import {
  chmodSync,
  copyFileSync,
  lstatSync,
  mkdtempSync,
  readdirSync,
  realpathSync,
  rmSync,
  statSync,
} from 'node:fs'
import type { Stats } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { isAlive } from '../workers/leftovers.ts'
import { lstat } from '../look.ts'

const FILES = ['preload.cjs', 'blocked.mjs']

/**
 * Gives its path, without symlinks. Others may read it: workers may run as another user.
 *
 * @throws {Error} a sentence: somebody else could change what is in it; the system's words otherwise
 */
export function makeRuntimeDirectory(control: string, name: string): string {
  mustBeTrusted(dirname(control))
  const parent = realpathSync(dirname(control))
  // Ours with our own pid is a dead one's, too: in a container every master is pid 1.
  removeOf(parent, name, (pid) => pid === process.pid || !isAlive(pid))
  const directory = mkdtempSync(join(parent, `.usr2-${name}-${process.pid}-`))
  try {
    chmodSync(directory, 0o755)
    for (const file of FILES) {
      copyFileSync(builtFile(file), join(directory, file))
      // The umask of whoever installed usr2 counts no longer.
      chmodSync(join(directory, file), 0o644)
    }
  } catch (error) {
    rmSync(directory, { recursive: true, force: true })
    throw error
  }
  return directory
}

/**
 * For a place in which the master makes files that it, or a worker, relies on later.
 *
 * @throws {Error} a sentence: somebody else could put others in their place
 */
export function mustBeTrusted(directory: string): void {
  const link = lstatSync(directory)
  const { uid, mode } = statSync(directory)
  const isOpen = (mode & 0o002) !== 0 && (mode & 0o1000) === 0
  const owner = [link.uid, uid].find((owner) => owner !== 0 && owner !== ownUid())
  if (owner === undefined && !isOpen) return
  const why = owner === undefined ? 'everybody may write to it' : `it belongs to uid ${owner}`
  throw new Error(
    `The control socket cannot be in ${directory}: ${why}, who could put other code under the workers. Take one that ` +
      `belongs to root or to uid ${ownUid()} and that others may not write to, with --control PATH.`,
  )
}

/** Of a directory that nobody else can have put there for us to find. */
export const isOurDirectory = (stat: Stats | null): boolean =>
  stat !== null && stat.isDirectory() && stat.uid === ownUid()

const ownUid = (): number => process.geteuid?.() ?? 0

/** Beside the built CLI. */
const builtFile = (name: string): string => join(dirname(fileURLToPath(import.meta.url)), name)

/** Of a master that was killed: `isAlive` may still say otherwise of one that nobody has reaped yet. */
export function sweepRuntimeDirectories(control: string, name: string, pid: number): void {
  removeOf(realpathSync(dirname(control)), name, (other) => other === pid)
}

/** Whose runtime directory that is, by its pid: of a master of that name beside that control socket, else null. */
export function masterOf(directory: string, control: string, name: string): number | null {
  try {
    if (dirname(directory) !== realpathSync(dirname(control))) return null
  } catch {
    // Somebody has removed it.
    return null
  }
  return pidIn(basename(directory), name)
}

function pidIn(entry: string, name: string): number | null {
  const prefix = `.usr2-${name}-`
  const pid = entry.startsWith(prefix) ? /^(\d+)(-\w{6})?$/.exec(entry.slice(prefix.length))?.[1] : undefined
  return pid === undefined ? null : Number(pid)
}

function removeOf(parent: string, name: string, isGone: (pid: number) => boolean): void {
  for (const entry of readdirSync(parent)) {
    const pid = pidIn(entry, name)
    if (pid === null || !isGone(pid)) continue
    if (isOurDirectory(lstat(join(parent, entry))))
      rmSync(join(parent, entry), { recursive: true, force: true })
  }
}
