/** Text for people that the commands share: quantities, columns, and what is safe to print. Pure. */

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

/**
 * Text of others (an app's error, a path) made safe to print: an escape sequence in a crashed worker's message must
 * not repaint the operator's terminal. Line ends and tabs stay.
 */
export function printable(text: string): string {
  return text.replace(
    /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g,
    (char) => `\\x${char.charCodeAt(0).toString(16).padStart(2, '0')}`,
  )
}

export const inOneLine = (text: string): string => printable(text).replace(/\s+/g, ' ')

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
