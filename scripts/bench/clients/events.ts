/**
 * Server-sent events, as a browser's EventSource takes them (HTML Living Standard, 9.2): when its stream ends it
 * connects again and says the id of the last event that it has. A stream that the server ends must end as a response
 * does, between two events; and no event may be lost or come twice, whichever generation sends it.
 */
import http from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { connectFailure } from '../../../src/drill/load.ts'
import { Failure, type Kind } from './kind.ts'

const SILENCE_MS = 10_000
const RECONNECT_MS = [50, 250] as const
const AFTER_FAILURE_MS = 100

export async function takeEvents(
  port: number,
  kinds: { readonly streams: Kind; readonly events: Kind },
  stop: AbortSignal,
): Promise<void> {
  // As a browser does, it uses its connection again if the server lets it.
  const agent = new http.Agent({ keepAlive: true })
  let last = 0
  const seen = (id: number): void => {
    if (id === last + 1) kinds.events.ok()
    else kinds.events.fail(new Failure('gap', `event ${id} after event ${last}`))
    last = id
  }
  while (!stop.aborted) {
    try {
      await takeStream(port, agent, last, seen, stop)
      kinds.streams.ok()
      const [min, max] = RECONNECT_MS
      await sleep(min + Math.random() * (max - min))
    } catch (error) {
      kinds.streams.fail(error)
      await sleep(AFTER_FAILURE_MS)
    }
  }
  agent.destroy()
}

/** Resolves when the stream has ended well, or at the stop. @throws Failure */
function takeStream(
  port: number,
  agent: http.Agent,
  last: number,
  seen: (id: number) => void,
  stop: AbortSignal,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const headers = { Accept: 'text/event-stream', 'Last-Event-ID': String(last) }
    const request = http.get({ host: '127.0.0.1', port, path: '/events', agent, headers })
    const leave = (): void => void request.destroy()
    stop.addEventListener('abort', leave)
    const end = (failure: Failure | null): void => {
      stop.removeEventListener('abort', leave)
      if (failure === null || stop.aborted) resolve()
      else reject(failure)
    }
    request.setTimeout(SILENCE_MS, () => {
      end(new Failure('hang', `no byte for ${SILENCE_MS} ms`))
      request.destroy()
    })
    request.on('error', (error: NodeJS.ErrnoException) => {
      const { code = error.message } = error
      const isConnect = error.syscall === 'connect'
      const unanswered = request.reusedSocket ? 'keepaliveReset' : 'reset'
      end(new Failure(isConnect ? connectFailure(code) : unanswered, `${code} before the head`))
    })
    request.once('response', (response) => {
      let held = ''
      response.setEncoding('utf8').on('data', (text: string) => {
        const events = (held + text).split('\n\n')
        held = events.pop() ?? ''
        for (const event of events) seen(Number(/^id: (\d+)$/m.exec(event)?.[1]))
      })
      // What is wrong is told by 'close'.
      response.on('error', () => {})
      response.once('close', () => {
        if (response.statusCode !== 200) end(new Failure('status', `status ${response.statusCode}`))
        else if (!response.complete) end(new Failure('truncated', 'the connection ended within the response'))
        else if (held !== '') end(new Failure('truncated', `ended within an event: ${JSON.stringify(held)}`))
        else end(null)
      })
    })
  })
}
