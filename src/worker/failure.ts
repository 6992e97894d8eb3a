/** Why a worker fails, in its own words: the exception that ends it, and what it last wrote to stderr. */
import { MAX_FAILURE_BYTES } from '../protocol.ts'
import type { Link } from './link.ts'

const LAST_STDERR_BYTES = 4 * 1024

export interface FailureReporter {
  /** The worker is ready: its stderr is its own business from now on. */
  stopListening(): void
}

export function reportFailures(link: Link): FailureReporter {
  const clip = (text: string): string => text.slice(0, MAX_FAILURE_BYTES / 4)
  // Sees syntax errors and missing imports of CommonJS and ES modules alike, and changes nothing of what follows.
  process.on('uncaughtExceptionMonitor', (error: unknown) => {
    const { name, message, stack } =
      error instanceof Error ? error : { name: 'thrown', message: String(error), stack: '' }
    link.send({
      t: 'failed',
      failure: { name: clip(String(name)).slice(0, 256), message: clip(message), stack: clip(stack ?? '') },
    })
  })

  let last = ''
  let listening = true
  // `process.stderr` is made on first use; asking for it here would cost every boot.
  const descriptor = Object.getOwnPropertyDescriptor(process, 'stderr')
  const get = descriptor?.get
  if (descriptor && get) {
    Object.defineProperty(process, 'stderr', {
      ...descriptor,
      get(): NodeJS.WriteStream {
        Object.defineProperty(process, 'stderr', descriptor)
        const stream = get.call(process) as NodeJS.WriteStream
        if (listening) listenTo(stream)
        return stream
      },
    })
  }
  const listenTo = (stream: NodeJS.WriteStream): void => {
    const write = stream.write
    stream.write = function (this: NodeJS.WriteStream, ...args: Parameters<typeof write>): boolean {
      if (listening) last = (last + String(args[0])).slice(-LAST_STDERR_BYTES)
      return write.apply(this, args)
    } as typeof write
  }

  process.on('exit', (status) => {
    if (listening && status !== 0 && last !== '') link.send({ t: 'stderr', text: last })
  })
  return {
    stopListening() {
      listening = false
      last = ''
    },
  }
}
