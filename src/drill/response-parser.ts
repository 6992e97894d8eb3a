/**
 * HTTP/1.1 responses from bytes, strictly: a load client that forgives cannot fail, and one that cannot fail proves
 * nothing. What RFC 9112 calls an error is a complaint here, and so is a body that ends with the connection (section
 * 6.3, rule 8: legal, but a cut one looks whole).
 *
 * Built for a tight loop: no string is made of a body, and a head that was seen before is not parsed again (the heads
 * of one server differ only by their `Date`, so about one a second is new).
 */

export interface ResponseHead {
  readonly status: number
  /** This is the last response of its connection. */
  readonly close: boolean
  /** `Keep-Alive: timeout=N`, in milliseconds. */
  readonly keepAliveMs: number | null
  readonly body: number | 'chunked'
}

export interface ResponseSink {
  /** Asked before the first byte of a response: a byte that no request asked for is a complaint. */
  expects(): boolean
  /** Bytes `[start, end)` belong to the body. Valid during the call only. */
  body(bytes: Buffer, start: number, end: number): void
  complete(head: ResponseHead): void
}

/** A sentence about what is wrong with the bytes; `stray` when no request had asked for them. */
export interface Complaint {
  readonly stray: boolean
  readonly text: string
}

const MAX_HEAD_BYTES = 64 * 1024
const MAX_LINE_BYTES = 1024
const HEAD_END = Buffer.from('\r\n\r\n')
const LINE_END = Buffer.from('\r\n')

type State = 'head' | 'body' | 'chunk-size' | 'chunk-data' | 'chunk-end' | 'trailer'

export class ResponseParser {
  readonly #sink: ResponseSink
  #state: State = 'head'
  #head: ResponseHead | null = null
  #remaining = 0
  /** The beginning of something whose end has not come yet: a head, a line. */
  #carry: Buffer | null = null
  #interim = false

  constructor(sink: ResponseSink) {
    this.#sink = sink
  }

  /** Whether a response has begun and not ended. */
  get begun(): boolean {
    return this.#state !== 'head' || this.#carry !== null || this.#interim
  }

  /** Takes what was read; `bytes` may be used for the next read as soon as this returns. */
  feed(bytes: Buffer, start: number, end: number): Complaint | null {
    if (this.#carry !== null) {
      bytes = Buffer.concat([this.#carry, bytes.subarray(start, end)])
      start = 0
      end = bytes.length
      this.#carry = null
    }
    let at = start
    while (at < end) {
      const next = this.#step(bytes, at, end)
      if (typeof next !== 'number') return next
      if (next === at) {
        this.#carry = Buffer.from(bytes.subarray(at, end))
        return null
      }
      at = next
    }
    return null
  }

  /** Where to go on, or the same place when more bytes are needed. */
  #step(bytes: Buffer, at: number, end: number): number | Complaint {
    switch (this.#state) {
      case 'head':
        return this.#readHead(bytes, at, end)
      case 'body':
      case 'chunk-data':
        return this.#readData(bytes, at, end)
      case 'chunk-size':
        return this.#readChunkSize(bytes, at, end)
      case 'chunk-end':
        if (end - at < 2) return at
        if (bytes[at] !== 13 || bytes[at + 1] !== 10)
          return malformed('a chunk is longer than its size', bytes, at, end)
        this.#state = 'chunk-size'
        return at + 2
      case 'trailer':
        return this.#readTrailer(bytes, at, end)
    }
  }

  #readHead(bytes: Buffer, at: number, end: number): number | Complaint {
    if (!this.#sink.expects())
      return { ...malformed('no request asked for these bytes', bytes, at, end), stray: true }
    const stop = bytes.indexOf(HEAD_END, at)
    // The buffer is used again and again: behind `end` there are old bytes, and the match may lie there.
    if (stop === -1 || stop + 4 > end) {
      return end - at > MAX_HEAD_BYTES
        ? malformed(`a head longer than ${MAX_HEAD_BYTES} bytes`, bytes, at, end)
        : at
    }
    const head = headOf(bytes.toString('latin1', at, stop))
    if (typeof head === 'string') return malformed(head, bytes, at, end)
    this.#interim = head.status < 200
    if (this.#interim) return stop + 4
    this.#head = head
    if (head.body === 'chunked') {
      this.#state = 'chunk-size'
    } else if (head.body === 0) {
      this.#complete()
    } else {
      this.#state = 'body'
      this.#remaining = head.body
    }
    return stop + 4
  }

  #readData(bytes: Buffer, at: number, end: number): number {
    const stop = Math.min(end, at + this.#remaining)
    this.#sink.body(bytes, at, stop)
    this.#remaining -= stop - at
    if (this.#remaining > 0) return stop
    if (this.#state === 'body') this.#complete()
    else this.#state = 'chunk-end'
    return stop
  }

  #readChunkSize(bytes: Buffer, at: number, end: number): number | Complaint {
    const stop = lineEnd(bytes, at, end)
    if (typeof stop !== 'number') return stop
    if (stop === at) return at
    const size = /^([0-9a-f]{1,8})[ \t]*(;.*)?$/i.exec(bytes.toString('latin1', at, stop - 2))
    if (size?.[1] === undefined) return malformed('not the size of a chunk', bytes, at, end)
    this.#remaining = Number.parseInt(size[1], 16)
    this.#state = this.#remaining === 0 ? 'trailer' : 'chunk-data'
    return stop
  }

  #readTrailer(bytes: Buffer, at: number, end: number): number | Complaint {
    const stop = lineEnd(bytes, at, end)
    if (typeof stop !== 'number' || stop === at) return stop
    if (stop === at + 2) this.#complete()
    else if (!FIELD.test(bytes.toString('latin1', at, stop - 2)))
      return malformed('not a trailer', bytes, at, end)
    return stop
  }

  #complete(): void {
    const head = this.#head
    this.#state = 'head'
    this.#head = null
    if (head !== null) this.#sink.complete(head)
  }
}

/** Behind the CRLF that ends the line at `at`; `at` itself when it has not come yet. */
function lineEnd(bytes: Buffer, at: number, end: number): number | Complaint {
  const stop = bytes.indexOf(LINE_END, at)
  if (stop !== -1 && stop + 2 <= end) return stop + 2
  return end - at > MAX_LINE_BYTES ? malformed('a line without an end', bytes, at, end) : at
}

function malformed(what: string, bytes: Buffer, at: number, end: number): Complaint {
  return {
    stray: false,
    text: `${what}: ${JSON.stringify(bytes.toString('latin1', at, Math.min(end, at + 60)))}`,
  }
}

const STATUS_LINE = /^HTTP\/1\.([01]) ([1-9]\d\d)( [^\r\n]*)?$/
const FIELD = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*$/
const MAX_CACHED_HEADS = 256

const heads = new Map<string, ResponseHead | string>()

/** The head, or what is wrong with it. */
function headOf(text: string): ResponseHead | string {
  const known = heads.get(text)
  if (known !== undefined) return known
  if (heads.size >= MAX_CACHED_HEADS) heads.clear()
  const head = parseHead(text)
  heads.set(text, head)
  return head
}

function parseHead(text: string): ResponseHead | string {
  const [statusLine = '', ...lines] = text.split('\r\n')
  const status = STATUS_LINE.exec(statusLine)
  if (status === null) return 'not a status line'
  const fields = new Map<string, string>()
  for (const line of lines) {
    if (!FIELD.test(line)) return `not a header: ${JSON.stringify(line)}`
    const colon = line.indexOf(':')
    const name = line.slice(0, colon).toLowerCase()
    const value = line.slice(colon + 1).trim()
    const before = fields.get(name)
    if (before !== undefined && name === 'content-length' && before !== value)
      return 'two different Content-Lengths'
    fields.set(name, before === undefined || name === 'content-length' ? value : `${before}, ${value}`)
  }
  const code = Number(status[2])
  const body = bodyOf(code, fields)
  if (typeof body !== 'number' && body !== 'chunked') return body.wrong
  const options = (fields.get('connection') ?? '').toLowerCase().split(/\s*,\s*/)
  const timeout = /(?:^|[,\s])timeout=(\d+)/i.exec(fields.get('keep-alive') ?? '')
  return {
    status: code,
    close: options.includes('close') || (status[1] === '0' && !options.includes('keep-alive')),
    keepAliveMs: timeout === null ? null : Number(timeout[1]) * 1000,
    body,
  }
}

/** RFC 9112 section 6.3. */
function bodyOf(
  status: number,
  fields: ReadonlyMap<string, string>,
): ResponseHead['body'] | { readonly wrong: string } {
  const length = fields.get('content-length')
  const encoding = fields.get('transfer-encoding')
  if (status < 200 || status === 204 || status === 304) return 0
  if (encoding !== undefined) {
    if (length !== undefined) return { wrong: 'both Transfer-Encoding and Content-Length' }
    return encoding.toLowerCase() === 'chunked' ? 'chunked' : { wrong: `Transfer-Encoding ${encoding}` }
  }
  if (length === undefined) return { wrong: 'no length: whether the body is whole cannot be told' }
  return /^\d{1,15}$/.test(length) ? Number(length) : { wrong: `Content-Length ${JSON.stringify(length)}` }
}
