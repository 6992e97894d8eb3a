/** Quantities and held connections in words, for the log and for the CLI. Pure. */
import type { Held } from '../protocol.ts'

export function seconds(ms: number): string {
  return ms < 1_000 ? `${Math.round(ms)} ms` : `${(ms / 1_000).toFixed(1)} s`
}

export const mib = (bytes: number): string => `${Math.round(bytes / 1024 / 1024)} MiB`

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

export const plural = (count: number, what: string): string => `${count} ${what}${count === 1 ? '' : 's'}`

/** `GET /export, 12.4 s, 127.0.0.1:51234`. */
export function heldText({ what, method, path, ageMs, peer }: Held): string {
  const kind =
    what === 'event-stream' ? 'event stream' : what === 'websocket' ? 'WebSocket' : `${what} connection`
  const name = path === undefined ? kind : `${method} ${path}${what === 'request' ? '' : ` (${kind})`}`
  return `${name}, ${seconds(ageMs)}, ${peer}`
}
