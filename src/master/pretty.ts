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
  return pretty({ destination, ignore: 'name,master,event', translateTime: 'SYS:HH:MM:ss.l' })
}
