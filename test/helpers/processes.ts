/** Processes found by a token in their environment, which children inherit: never by name, never by count. */
import { readdirSync, readFileSync } from 'node:fs'
import { until } from './wait.ts'

export interface FoundProcess {
  readonly pid: number
  readonly command: string
}

/**
 * Every living process whose environment holds `token`, or one made from it (`token.2`), as the value of a variable.
 * A zombie has no environment any more and is not found. Source: proc(5), /proc/pid/environ; empty without /proc.
 */
export function processesWithToken(token: string): FoundProcess[] {
  return pidsNow().flatMap((pid) => {
    if (!hasToken(pid, token)) return []
    const command = readProc(pid, 'cmdline').split('\0').join(' ').trim()
    return [{ pid, command }]
  })
}

export function hasToken(pid: number, token: string): boolean {
  return `${readProc(pid, 'environ')}\0`
    .split(`=${token}`)
    .slice(1)
    .some((rest) => /^[.\0]/.test(rest))
}

/** Kills them until none is left (one may fork while we read), and tells whom. Gives up after 5 s. */
export async function killToken(token: string): Promise<FoundProcess[]> {
  const killed = new Map<number, FoundProcess>()
  const noneLeft = () => {
    const found = processesWithToken(token)
    for (const process of found) {
      killed.set(process.pid, process)
      kill(process.pid)
    }
    return found.length === 0
  }
  await until(noneLeft, { timeoutMs: 5000, what: `the processes with the token ${token} to be dead` })
  return [...killed.values()]
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It ended by itself meanwhile.
  }
}

function pidsNow(): number[] {
  try {
    return readdirSync('/proc').map(Number).filter(Number.isInteger)
  } catch {
    return []
  }
}

function readProc(pid: number, file: string): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'latin1')
  } catch {
    // It has ended, or is somebody else's.
    return ''
  }
}
