/** Whose a port or a unix path is, for the sentence about EADDRINUSE. Linux: read from /proc, see proc(5). */
import { closeSync, openSync, readSync } from 'node:fs'
import type { Address } from '../../address.ts'
import { commandOf, entries, link, pids, read } from '../proc.ts'

/** `pid 4711 (nginx: master process)`, or null when nobody can be seen (another user's process, no /proc). */
export function ownerOf(address: Address): string | null {
  const inodes = inodesOf(address)
  if (inodes.size === 0) return null
  for (const pid of pids()) {
    for (const fd of entries(`/proc/${pid}/fd`)) {
      const inode = /^socket:\[(\d+)\]$/.exec(link(`/proc/${pid}/fd/${fd}`))?.[1]
      if (inode !== undefined && inodes.has(inode)) return `pid ${pid} (${commandOf(pid)})`
    }
  }
  return null
}

/** Whether that process keeps others from binding `address`: it listens there, or has a UDP socket there. */
export function holds(pid: number, address: Address): boolean {
  const inodes = address.kind === 'unix' ? unixInodes(address.path, true) : inodesOf(address)
  const fds = inodes.size === 0 ? [] : entries(`/proc/${pid}/fd`)
  return fds.some((fd) => inodes.has(/^socket:\[(\d+)\]$/.exec(link(`/proc/${pid}/fd/${fd}`))?.[1] ?? ''))
}

function inodesOf(address: Address): Set<string> {
  if (address.kind === 'unix') return unixInodes(address.path)
  return address.kind === 'udp' ? udpInodes(address.port) : tcpInodes(address.port)
}

const LISTEN = '0A'
/** Of /proc/net/unix: __SO_ACCEPTCON (unix(7) has not got it; linux/net.h). */
const ACCEPTS = '00010000'

function tcpInodes(port: number): Set<string> {
  const hex = port.toString(16).toUpperCase().padStart(4, '0')
  const columns = ['/proc/net/tcp', '/proc/net/tcp6'].flatMap(listening)
  return new Set(columns.flatMap((c) => (c[1]?.endsWith(`:${hex}`) && c[9] ? [c[9]] : [])))
}

function udpInodes(port: number): Set<string> {
  const hex = port.toString(16).toUpperCase().padStart(4, '0')
  const rows = ['/proc/net/udp', '/proc/net/udp6'].flatMap((path) => read(path).split('\n').slice(1))
  const columns = rows.map((row) => row.trim().split(/\s+/))
  return new Set(columns.flatMap((c) => (c[1]?.endsWith(`:${hex}`) && c[9] ? [c[9]] : [])))
}

/**
 * The rows of listening sockets, which the kernel puts first: read no further. With 60,000 connections in TIME_WAIT
 * the whole file takes the kernel and us 0.5 to 2 s, in which the master would do nothing else.
 */
export function listening(path: string): string[][] {
  const found: string[][] = []
  try {
    const fd = openSync(path, 'r')
    try {
      const chunk = Buffer.alloc(16 * 1024)
      let rest = ''
      for (let size = readSync(fd, chunk); size > 0; size = readSync(fd, chunk)) {
        const rows = (rest + chunk.toString('latin1', 0, size)).split('\n')
        rest = rows.pop() ?? ''
        for (const row of rows) {
          const columns = row.trim().split(/\s+/)
          if (columns[0] === 'sl') continue
          if (columns[3] !== LISTEN) return found
          found.push(columns)
        }
      }
    } finally {
      closeSync(fd)
    }
  } catch {
    // No /proc.
  }
  return found
}

/** A connection that was accepted there has the path as well. */
function unixInodes(path: string, onlyListening = false): Set<string> {
  const shown = path.replace(/^\0/, '@')
  const rows = read('/proc/net/unix').split('\n').slice(1)
  const columns = rows.map((row) => row.trim().split(/\s+/))
  const found = columns.filter((c) => c[7] === shown && (!onlyListening || c[3] === ACCEPTS))
  return new Set(found.flatMap((c) => (c[6] ? [c[6]] : [])))
}
