/** Readable log lines. Built as a file of its own (dist/pretty.mjs), which only a master on a terminal loads. */
import { writeSync } from 'node:fs'
import { Writable } from 'node:stream'
import pretty from 'pino-pretty'

/** Readable lines on stderr. */
export function prettyStderr(): Pick<ReturnType<typeof pretty>, 'write' | 'on'> {
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
  const write = stream.write.bind(stream)
  return Object.assign(stream, { write: (line: string) => write(withoutControls(line)) })
}

const SHORT: Readonly<Record<string, string>> = { b: '08', f: '0c', r: '0d' }

/**
 * A line of JSON whose texts have no control characters but line ends and tabs: what a worker said last, or a client
 * gave as its reason, must not repaint the operator's terminal. Here, since pino-pretty's own hooks see messages and not
 * the stack of an error.
 */
export function withoutControls(line: string): string {
  return line
    .replace(/\\(?:u00(0[0-8b-f]|1[0-9a-f]|7f|[89][0-9a-f])|.)/gi, (escape, code: string | undefined) => {
      const hex = code ?? SHORT[escape[1] ?? '']
      return hex === undefined ? escape : `\\\\x${hex.toLowerCase()}`
    })
    .replace(/[\u007f-\u009f]/g, (char) => `\\\\x${char.charCodeAt(0).toString(16)}`)
}
