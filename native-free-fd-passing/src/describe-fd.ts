/**
 * What a file descriptor is, in words: an inherited number says nothing, and `EINVAL` does not tell a user that he wrote
 * `ListenNetlink=`. Only Linux can tell sockets apart without a native call (proc_net(5)); elsewhere a socket is
 * `unknown` and opening it decides.
 */
import fs from 'node:fs'

/** `sizeof(sun_path)` on Linux (unix(7)). */
const SUN_PATH_BYTES = 108

export interface FdDescription {
  /** `other`: cannot be held. */
  readonly kind: 'tcp' | 'unix' | 'udp' | 'unknown' | 'other'
  /** With its article: `a regular file`. */
  readonly what: string
  /** Of a unix socket that has one; an abstract one begins with NUL. */
  readonly path?: string
}

export function describeFd(fd: number): FdDescription {
  let stat: fs.Stats
  try {
    stat = fs.fstatSync(fd)
  } catch {
    return { kind: 'other', what: 'not open' }
  }
  if (stat.isSocket()) return describeSocket(stat.ino)
  if (stat.isFIFO()) return { kind: 'other', what: 'a FIFO or pipe' }
  if (stat.isFile()) return { kind: 'other', what: 'a regular file' }
  if (stat.isDirectory()) return { kind: 'other', what: 'a directory' }
  if (stat.isCharacterDevice()) return { kind: 'other', what: 'a character device' }
  if (stat.isBlockDevice()) return { kind: 'other', what: 'a block device' }
  return { kind: 'other', what: 'not a socket' }
}

function describeSocket(inode: number): FdDescription {
  return describeUnix(inode) ?? describeDatagram(inode) ?? { kind: 'unknown', what: 'a socket' }
}

function describeUnix(inode: number): FdDescription | undefined {
  // Num RefCount Protocol Flags Type St Inode [Path]
  for (const line of table('unix')) {
    const [, , , , type, state, ino, ...rest] = line.trim().split(' ').filter(Boolean)
    if (ino !== String(inode)) continue
    if (type === '0002') return { kind: 'other', what: 'a unix datagram socket' }
    if (type === '0005') return { kind: 'other', what: 'a unix seqpacket socket' }
    if (state === '03') return { kind: 'other', what: 'a connected unix socket, not a listening one' }
    return { kind: 'unix', what: 'a unix socket', path: pathIn(rest.join(' ')) }
  }
  return undefined
}

/** Each NUL is shown as `@`: the first of an abstract name, and those with which Node 20 fills it up to 108 bytes. */
function pathIn(shown: string): string {
  if (!shown.startsWith('@')) return shown
  const isFilledUp = Buffer.byteLength(shown) === SUN_PATH_BYTES
  return `\0${(isFilledUp ? shown.replace(/@+$/, '') : shown).slice(1)}`
}

function describeDatagram(inode: number): FdDescription | undefined {
  for (const name of ['udp', 'udp6', 'raw', 'raw6']) {
    // sl local rem st tx:rx tr:tm retrnsmt uid timeout inode
    const found = table(name).some((line) => line.trim().split(/\s+/)[9] === String(inode))
    if (!found) continue
    return name.startsWith('udp')
      ? { kind: 'udp', what: 'a UDP socket' }
      : { kind: 'other', what: 'a raw socket' }
  }
  return undefined
}

function table(name: string): string[] {
  try {
    return fs.readFileSync(`/proc/self/net/${name}`, 'utf8').split('\n').slice(1)
  } catch {
    return [] // not Linux, or /proc is not mounted
  }
}
