/**
 * Who else could change a file that we obey. Whoever can write the configuration, or put another file or link in its
 * place, runs code as us: `node`, `hooks`, `nodeArgs`; with the env file (NODE_OPTIONS) as the workers.
 *
 * Rules, as sshd's StrictModes and sudo have them: only root and our own user may be able to, on the whole way from the
 * root directory. In a directory with the sticky bit (/tmp) only an entry's owner can replace it. A group is no stranger
 * where it is root's or our own first one: many systems give each user a group of that name and a umask of 002. What lies
 * on a read-only file system nobody changes: a Kubernetes ConfigMap is 0777.
 */
import { accessSync, constants, lstatSync, readlinkSync, type Stats } from 'node:fs'
import { dirname, join } from 'node:path'

/** Why a file may say what somebody else wants. */
export interface Doubt {
  /** Everybody can. */
  readonly isOpen: boolean
  /** What is wrong: `everybody may write to /srv`. */
  readonly text: string
  /** What sets it right: `chmod o-w /srv`. */
  readonly remedy: string
}

export interface Owner {
  readonly uid: number
  readonly gid: number
}

/** As linux/namei.c; more is a loop, which whoever opens the file complains of. */
const MAX_LINKS = 40

export const ourselves = (): Owner => ({ uid: process.geteuid?.() ?? 0, gid: process.getegid?.() ?? 0 })

/** All doubts about `path`, which is absolute; what open to all first. None about what is not there. */
export function doubtsAbout(path: string, own: Owner = ourselves()): readonly Doubt[] {
  const doubts = new Map<string, Doubt>()
  const take = (at: string, found: readonly Doubt[]): void => {
    for (const doubt of found) doubts.set(`${at} ${doubt.text}`, doubt)
  }
  try {
    for (const { at, stat, parent } of wayTo(path)) take(at, doubtsOf(at, stat, parent, own))
  } catch {
    // It is not there, or we may not look: whoever opens it says so.
  }
  return [...doubts.values()].sort((a, b) => Number(b.isOpen) - Number(a.isOpen))
}

interface Step {
  /** Without a link in it. */
  readonly at: string
  readonly stat: Stats
  readonly parent: Stats | null
}

/** Each directory, link and at last the file that the kernel looks at, in its order (path_resolution(7)). */
function* wayTo(path: string): Generator<Step> {
  let names = path.split('/')
  let at = '/'
  let parent = lstatSync(at)
  yield { at, stat: parent, parent: null }
  for (let links = 0; names.length > 0 && links <= MAX_LINKS;) {
    const [name = '', ...rest] = names
    names = rest
    if (name === '' || name === '.') continue
    if (name === '..') {
      at = dirname(at)
      parent = lstatSync(at)
      continue
    }
    const next = join(at, name)
    const stat = lstatSync(next)
    yield { at: next, stat, parent }
    if (stat.isSymbolicLink()) {
      links++
      const target = readlinkSync(next)
      if (target.startsWith('/')) {
        at = '/'
        parent = lstatSync(at)
      }
      names = [...target.split('/'), ...names]
    } else {
      at = next
      parent = stat
    }
  }
}

function doubtsOf(at: string, stat: Stats, parent: Stats | null, own: Owner): readonly Doubt[] {
  const doubts: Doubt[] = []
  const isTrusted = stat.uid === 0 || stat.uid === own.uid
  // A link says nothing but where it leads to, and its own mode is always 0777.
  const isLink = stat.isSymbolicLink()
  const canBeReplacedByOwner = parent !== null && isSticky(parent) && (parent.mode & 0o022) !== 0
  if (!isTrusted && (!isLink || canBeReplacedByOwner)) {
    const remedy = `chown ${isLink ? '-h ' : ''}${own.uid} ${at}`
    doubts.push({ isOpen: false, text: `${at} belongs to uid ${stat.uid}`, remedy })
  }
  if (isLink || isSticky(stat) || isReadOnly(at)) return doubts
  if ((stat.mode & 0o002) !== 0) {
    doubts.push({ isOpen: true, text: `everybody may write to ${at}`, remedy: `chmod o-w ${at}` })
  } else if ((stat.mode & 0o020) !== 0 && stat.gid !== 0 && stat.gid !== own.gid) {
    doubts.push({
      isOpen: false,
      text: `the group ${stat.gid} may write to ${at}`,
      remedy: `chmod g-w ${at}`,
    })
  }
  return doubts
}

const isSticky = (stat: Stats): boolean => stat.isDirectory() && (stat.mode & 0o1000) !== 0

function isReadOnly(path: string): boolean {
  try {
    accessSync(path, constants.W_OK)
    return false
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EROFS'
  }
}
