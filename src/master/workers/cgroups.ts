/**
 * Where our cgroups are mounted, of both versions (cgroups(7); Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/).
 * With "hybrid" setups a process is in one of each.
 */
import { posix } from 'node:path'

/** @throws when there is no such file */
export type Read = (path: string) => string

export function attempt(read: Read, path: string): string | null {
  try {
    return read(path)
  } catch {
    return null
  }
}

export interface Cgroup {
  readonly version: 1 | 2
  /** Of memory and cpu those that it has; of version 2 the cgroup itself tells (`cgroup.controllers`). */
  readonly controllers: readonly string[]
  readonly directory: string
}

/** Our own and all above, as far as they are mounted here, of every hierarchy: with "hybrid" setups both versions. */
export function cgroups(read: Read): Cgroup[] {
  const mounts = mountsOf(attempt(read, '/proc/self/mountinfo') ?? '')
  // cgroups(7): `hierarchy-ID:controllers:path`; of version 2 `0::path`.
  const lines = (attempt(read, '/proc/self/cgroup') ?? '').split('\n')
  return lines.flatMap((line) => {
    const [, id, controllers = '', path = '/'] = /^(\d+):([^:]*):(.*)$/.exec(line) ?? []
    if (id === undefined) return []
    const version = id === '0' && controllers === '' ? 2 : 1
    const wanted = controllers.split(',').filter((name) => name === 'memory' || name === 'cpu')
    if (version === 1 && wanted.length === 0) return []
    const own = mounts.filter(
      (mount) =>
        mount.version === version && (version === 2 || wanted.some((name) => mount.options.includes(name))),
    )
    const directories = own.flatMap((mount) => directoriesOf(mount, path))
    return [...new Set(directories)].map(
      (directory) => ({ version, controllers: wanted, directory }) as const,
    )
  })
}

interface Mount {
  readonly version: 1 | 2
  /** The cgroup that is mounted. */
  readonly root: string
  readonly at: string
  readonly options: readonly string[]
}

/** proc(5): `36 35 98:0 /root /mounted/at rw,noatime master:1 - cgroup source rw,memory`. */
function mountsOf(text: string): Mount[] {
  return text.split('\n').flatMap((line) => {
    const [before = '', after = ''] = line.split(' - ')
    const [, , , root = '/', at = ''] = before.split(' ').map(unescape)
    const [kind, , options = ''] = after.split(' ')
    if (kind !== 'cgroup' && kind !== 'cgroup2') return []
    return [{ version: kind === 'cgroup2' ? 2 : 1, root, at, options: options.split(',') } as const]
  })
}

/** Blanks in paths are written in octal. */
const unescape = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))

/**
 * From our cgroup up to the one that is mounted. A container without a cgroup namespace sees the host's path
 * (`/docker/abc`) and has that very cgroup mounted (root `/docker/abc`): the path counts from there. One that is not
 * beneath what is mounted, or unknown from here (`/..` in a namespace, cgroup_namespaces(7)), leaves the mount itself.
 */
function directoriesOf({ root, at }: Mount, path: string): string[] {
  const below = posix.relative(root, path)
  const isBelow = !root.startsWith('/..') && !path.startsWith('/..') && !/^\.\.(\/|$)/.test(below)
  const found: string[] = []
  for (let to = isBelow ? below : ''; to !== '' && to !== '.'; to = posix.dirname(to))
    found.push(posix.join(at, to))
  return [...found, at]
}
