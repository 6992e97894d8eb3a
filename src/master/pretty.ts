/** Readable log lines. Built as a file of its own (dist/pretty.mjs), which only a master on a terminal loads. */
import { writeSync } from 'node:fs'
import { Writable } from 'node:stream'
import pretty from 'pino-pretty'

/** Readable lines on stderr. */
export function prettyStderr(): ReturnType<typeof pretty> {
  const destination = new Writable({
    write(text: Buffer, _, done) {
      try {
        writeSync(2, text)
      } catch {
        // EIO: the terminal is gone. Its SIGHUP says so; a log line must not end the master.
      }
      done()
    },
  })
  const stream = pretty({ destination, ignore: 'name,master,event', translateTime: 'SYS:HH:MM:ss.l' })
  const write = stream.write.bind(stream) as (chunk: unknown, ...rest: unknown[]) => boolean
  stream.write = ((chunk: unknown, ...rest: unknown[]) =>
    write(typeof chunk === 'string' ? withoutEscapes(chunk) : chunk, ...rest)) as typeof stream.write
  return stream
}

/**
 * A line of JSON whose texts have no control characters but line ends and tabs: an escape sequence in the error of a crashed
 * worker would repaint the operator's terminal. They stay to be read, as \u001b.
 */
export function withoutEscapes(json: string): string {
  return (
    json
      // What JSON escapes, where the backslash is not one that is itself escaped.
      .replace(/\\(u00[01][0-9a-f]|[bfr]|.)/gi, (all, what: string) =>
        /^(u00|[bfr]$)/i.test(what) ? `\\${all}` : all,
      )
      // What it does not: DEL and C1.
      .replace(/[\u007f-\u009f]/g, (char) => `\\\\u00${char.charCodeAt(0).toString(16)}`)
  )
}
