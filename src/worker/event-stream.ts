/**
 * How a stream of server-sent events (`text/event-stream`) ends in a drain: its response is ended between two events, as
 * if the app had done so, and its client comes back to the new generation by itself (HTML Living Standard, 9.2.3). Cut
 * at the deadline instead, a client behind a proxy sees an error.
 */
import type { ServerResponse } from 'node:http'
import type { ServerHttp2Stream } from 'node:http2'

/** What both bodies have in common, with signatures that can be put over. */
interface Body {
  write(chunk: unknown, ...rest: unknown[]): boolean
  end(...args: unknown[]): unknown
  on(event: 'error', listener: () => void): unknown
}

export interface EventStream {
  /** Ends it: now if the last event is whole, else as soon as it is. */
  finish(): void
}

/** A response of HTTP/1.1, or a stream of HTTP/2. */
export type EventBody = (ServerResponse | ServerHttp2Stream) & { readonly headersSent: true }

const EVENT_STREAM = /^text\/event-stream/i
const CONTENT_TYPE = /^content-type:\s*text\/event-stream/im
/** All up to the last event: an empty line ends one (HTML Living Standard, 9.2.6). */
const WHOLE_EVENTS = /^[^]*(\n\n|\r\r|\r\n\r\n)/
/** Compressed by the app itself, its bytes show no events, but where it has flushed them (zlib, Z_SYNC_FLUSH). */
const FLUSHED = '\x00\x00\xff\xff'
/** Of an event without an end. Only how it goes on matters. */
const MAX_KEPT = 4096
/** An event that nobody continues for so long is not waited for: the deadline would cut it. */
const UNFINISHED_MS = 2_000

type Sent = ServerResponse & { readonly _header?: string | null }

/** Whether its head has gone out and says so. */
export function isEventStream(body: ServerResponse | ServerHttp2Stream | undefined): body is EventBody {
  if (!body?.headersSent) return false
  if ('sentHeaders' in body) return EVENT_STREAM.test(String(body.sentHeaders?.['content-type'] ?? ''))
  // A head that was given to `writeHead` only is found nowhere else. `_header` is there from Node 0.x to 26.
  return CONTENT_TYPE.test((body as Sent)._header ?? '')
}

/**
 * Watches what the app writes from now on, to know where an event ends. What it wrote before is not known: it is taken
 * to be between two events until it writes, since apps write an event at once.
 */
export function watchEvents(eventBody: EventBody): EventStream {
  const body = eventBody as unknown as Body
  const { write, end } = body
  let state: 'open' | 'asked' | 'over' = 'open'
  /** Since the end of the last event. */
  let begun = ''
  let impatience: NodeJS.Timeout | undefined
  const finish = (): void => {
    if (state !== 'asked') return
    state = 'over'
    clearTimeout(impatience)
    // An app that kept a reference to the `write` of before would meet "write after end", as an event.
    body.on('error', () => {})
    end.call(body)
  }
  const finishBetween = (): void => {
    if (state !== 'asked') return
    if (isBetween(begun)) return finish()
    clearTimeout(impatience)
    impatience = setTimeout(finish, UNFINISHED_MS).unref()
  }
  body.write = (chunk, ...rest) => {
    if (state === 'over') {
      // Until it hears 'close' the app writes on, as it does to a client that has just left.
      const callback = rest.at(-1)
      if (typeof callback === 'function') process.nextTick(callback as () => void)
      return true
    }
    begun = (begun + textOf(chunk)).replace(WHOLE_EVENTS, '')
    if (begun.length > MAX_KEPT) begun = `.${begun.slice(-FLUSHED.length)}`
    const result = write.call(body, chunk, ...rest)
    // Not at once: an app that writes several events in a row gets all of them out.
    if (state === 'asked') setImmediate(finishBetween)
    return result
  }
  body.end = (...args) => (state === 'over' ? body : end.apply(body, args))
  return {
    finish() {
      if (state !== 'open') return
      state = 'asked'
      finishBetween()
    },
  }
}

/** Whether what came since the last event is of none: comments, which apps send so that proxies keep the connection. */
function isBetween(begun: string): boolean {
  if (begun.endsWith(FLUSHED)) return true
  const lines = begun.split(/\r\n|\r|\n/)
  return lines.pop() === '' && lines.every((line) => line === '' || line.startsWith(':'))
}

function textOf(chunk: unknown): string {
  if (typeof chunk === 'string') return chunk
  return chunk instanceof Uint8Array ? Buffer.from(chunk).toString('latin1') : ''
}
