/** What Linux tells of the memory of a process. */
import { readFileSync } from 'node:fs'

/** Resident memory in bytes (proc(5), VmRSS), or null when the process is gone. */
export function rssBytes(pid: number): number | null {
  try {
    const kib = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
    return kib === undefined ? null : Number(kib) * 1024
  } catch {
    return null
  }
}
