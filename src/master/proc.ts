/**
 * Linux's /proc, see proc(5). What is not there reads as nothing: processes end while one looks, hide from other users, and
 * other systems have no /proc.
 */
import { readFileSync, readdirSync, readlinkSync } from 'node:fs'

const MAX_COMMAND_CHARS = 80

export type ReadFile = (path: string) => string

export const read: ReadFile = (path) => {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}

export function entries(directory: string): string[] {
  try {
    return readdirSync(directory)
  } catch {
    return []
  }
}

export function link(path: string): string {
  try {
    return readlinkSync(path)
  } catch {
    return ''
  }
}

export const pids = (): number[] => entries('/proc').map(Number).filter(Number.isInteger)

export interface Stat {
  /** As the kernel has it: of at most 15 bytes. */
  readonly name: string
  /** `R`, `S`, `D`, `T`, `Z` … */
  readonly state: string
  readonly parent: number
  readonly group: number
  /** Processor time in ticks, of the user and the kernel. */
  readonly ticks: number
  /** When it was started, in ticks since the boot: another process of that pid has another one. */
  readonly since: string
}

/** Of a process, or with `/proc/PID/task/TID/stat` of a thread; null: there is none. */
export function statOf(path: string, from: ReadFile = read): Stat | null {
  const text = from(path)
  // The name is in parentheses and may hold some itself. The state is the 3rd field.
  const [state = '', parent, group, ...more] = text.slice(text.lastIndexOf(')') + 2).split(' ')
  if (state === '') return null
  const since = more[16] ?? ''
  return {
    ...{ name: text.slice(text.indexOf('(') + 1, text.lastIndexOf(')')), state, since },
    ...{ parent: Number(parent), group: Number(group), ticks: Number(more[8]) + Number(more[9]) },
  }
}

/** Its command line, of at most 80 characters; nothing: it has none, as a zombie. */
export function commandOf(pid: number | string, from: ReadFile = read): string {
  const command = from(`/proc/${pid}/cmdline`).replace(/\0/g, ' ').trim()
  return command.length > MAX_COMMAND_CHARS ? `${command.slice(0, MAX_COMMAND_CHARS - 1)}…` : command
}
