/** Text for people that the commands share: quantities, columns, and what is safe to print. Pure. */
import { printable } from '../master/words.ts'

/** `800 ms`, `2.1 s`, `42 s`, `37 min`, `5 h 12 min`, `3 d 4 h`. */
export function formatDuration(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`
  if (ms < 9950) return `${(ms / 1000).toFixed(1)} s`
  const s = Math.round(ms / 1000)
  if (s < 120) return `${s} s`
  const min = Math.floor(s / 60)
  if (min < 120) return `${min} min`
  const h = Math.floor(min / 60)
  return h < 48 ? `${h} h ${min % 60} min` : `${Math.floor(h / 24)} d ${h % 24} h`
}

const MIB = 1024 * 1024

/** `96 MiB`, `1.5 GiB`. */
export function formatBytes(bytes: number): string {
  const mib = bytes / MIB
  return mib < 1023.5 ? `${Math.round(mib)} MiB` : `${(mib / 1024).toFixed(1)} GiB`
}

export { printable }

export const inOneLine = (text: string): string => printable(text).replace(/\s+/g, ' ')

/** JSON in which, as in {@link printable} text, there is nothing that a terminal would obey. */
export const asJson = (value: unknown): string =>
  JSON.stringify(value).replace(/[\u007f-\u009f]/g, (char) => `\\u00${char.charCodeAt(0).toString(16)}`)

export const plural = (count: number, noun: string): string => (count === 1 ? noun : `${noun}s`)

export type Align = 'left' | 'right'

/** Columns two spaces apart; the last one is not padded. */
export function table(
  columns: readonly (readonly [string, Align])[],
  rows: readonly (readonly string[])[],
): string[] {
  const lines = [columns.map(([title]) => title), ...rows]
  const widths = columns.map((_, i) => Math.max(...lines.map((line) => line[i]?.length ?? 0)))
  return lines.map((line) =>
    columns
      .map(([, align], i) => {
        const cell = line[i] ?? ''
        const width = widths[i] ?? 0
        return align === 'right' ? cell.padStart(width) : cell.padEnd(width)
      })
      .join('  ')
      .trimEnd(),
  )
}
