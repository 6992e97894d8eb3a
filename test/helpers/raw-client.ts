/**
 * One connection of which every byte is seen: what was answered, in which order, and how the server ended it. Sends
 * only what it is told to, when it is told to.
 */
import { connect, type Socket } from 'node:net'
import { connect as connectTls } from 'node:tls'
import { scopeOf, type TestLike } from './scope.ts'
import { deadline } from './wait.ts'

export interface RawResponse {
  readonly status: number
  /** As it came, without the empty line at its end. */
  readonly head: string
  /** By names in lower case; what came twice is joined by ", ". */
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
  /** 100 Continue, 103 Early Hints: the heads that came before. */
  readonly before: readonly string[]
}

export interface RawOptions {
  readonly port: number
  readonly tls?: boolean
  /** Goes on sending after the server's FIN; default: answers it with its own, as careful clients do. */
  readonly allowHalfOpen?: boolean
}

export interface ResponseOptions {
  /** Of the request: the answer to a HEAD has no body. */
  readonly method?: string
  readonly timeoutMs?: number
  /** In the error; default: the method. */
  readonly what?: string
}

const DEFAULT_MS = 20_000

export class RawClient {
  readonly socket: Socket
  /** `FIN`, or the code of the error that ended the connection; null while it is open. */
  ending: string | null = null
  /** By `performance.now()`. */
  endedAt = 0
  #chunks: Buffer[] = []
  #length = 0
  /** The next response cannot be whole before there are so many bytes. */
  #needed = 0
  readonly #waiting = new Set<() => void>()

  constructor(socket: Socket) {
    this.socket = socket
    socket.on('data', (chunk: Buffer) => {
      this.#chunks.push(chunk)
      this.#length += chunk.length
      this.#tell()
    })
    socket.on('end', () => this.#end('FIN'))
    socket.on('error', (error: NodeJS.ErrnoException) => this.#end(error.code ?? error.message))
    socket.on('close', () => this.#end('closed'))
  }

  /** Everything that came and was not taken by {@link response}. */
  get rest(): string {
    if (this.#chunks.length > 1) this.#chunks = [Buffer.concat(this.#chunks)]
    return this.#chunks[0]?.toString('latin1') ?? ''
  }

  send(text: string): this {
    this.socket.write(text, 'latin1')
    return this
  }

  get(path: string, ...headers: string[]): this {
    return this.send(request('GET', path, ...headers))
  }

  /** The next whole response. @throws when the connection ends without it; the error says what came. */
  async response(options: ResponseOptions = {}): Promise<RawResponse> {
    const { method = 'GET', timeoutMs = DEFAULT_MS, what = method } = options
    return await this.until(() => this.#take(method), `a response (${what})`, timeoutMs)
  }

  /** The first truthy value of `fact`, asked whenever something came. */
  async until<T>(fact: () => T | null, what: string, timeoutMs = DEFAULT_MS): Promise<T> {
    let look: () => void = () => {}
    const found = new Promise<T>((resolve, reject) => {
      look = () => {
        const value = fact()
        if (value !== null && value !== false) resolve(value)
        else if (this.ending !== null)
          reject(new Error(`ended (${this.ending}) without ${what}: ${this.#seen()}`))
      }
      this.#waiting.add(look)
      look()
    })
    try {
      return await deadline(found, timeoutMs, what, () => `so far: ${this.#seen()}`)
    } finally {
      this.#waiting.delete(look)
    }
  }

  /** How the server ended the connection: `FIN`, `ECONNRESET`, … */
  async ended(timeoutMs = DEFAULT_MS): Promise<string> {
    return await this.until(() => this.ending, 'the end of the connection', timeoutMs)
  }

  #seen(): string {
    return JSON.stringify(this.rest.slice(0, 2_000))
  }

  #end(how: string): void {
    if (this.ending !== null) return
    this.ending = how
    this.endedAt = performance.now()
    this.#tell()
  }

  #tell(): void {
    for (const look of [...this.#waiting]) look()
  }

  #take(method: string): RawResponse | null {
    if (this.#length < this.#needed) return null
    const text = this.rest
    const before: string[] = []
    let at = 0
    for (;;) {
      const end = text.indexOf('\r\n\r\n', at)
      if (end < 0) return null
      const head = text.slice(at, end)
      at = end + 4
      const status = Number(head.split(' ', 2)[1])
      if (status >= 100 && status < 200) {
        before.push(head)
        continue
      }
      const headers = headersOf(head)
      const body = this.#body(text, at, headers, method, status)
      if (body === null) return null
      this.#chunks = [Buffer.from(text.slice(body.end), 'latin1')]
      this.#length = text.length - body.end
      this.#needed = 0
      return { status, head, headers, before, body: body.text }
    }
  }

  #body(
    text: string,
    at: number,
    headers: Readonly<Record<string, string>>,
    method: string,
    status: number,
  ): { readonly text: string; readonly end: number } | null {
    if (method === 'HEAD' || status === 204 || status === 304) return { text: '', end: at }
    const length = headers['content-length']
    if (length !== undefined) {
      const end = at + Number(length)
      this.#needed = end
      return text.length >= end ? { text: text.slice(at, end), end } : null
    }
    if (headers['transfer-encoding'] !== 'chunked') {
      return this.ending === 'FIN' ? { text: text.slice(at), end: text.length } : null
    }
    for (let body = ''; ;) {
      const line = text.indexOf('\r\n', at)
      if (line < 0) return null
      const size = Number.parseInt(text.slice(at, line), 16)
      const end = line + 2 + size + 2
      if (text.length < end) return null
      body += text.slice(line + 2, end - 2)
      at = end
      if (size === 0) return { text: body, end }
    }
  }
}

/** Connected (over TLS: with its handshake done). Destroyed with the test. */
export async function openRaw(
  t: TestLike,
  { port, tls = false, allowHalfOpen = false }: RawOptions,
): Promise<RawClient> {
  const where = { host: '127.0.0.1', port, allowHalfOpen }
  const socket = tls ? connectTls({ ...where, rejectUnauthorized: false }) : connect(where)
  socket.setNoDelay(true)
  scopeOf(t).finally(() => socket.destroy())
  const client = new RawClient(socket)
  await deadline(
    new Promise<void>((resolve, reject) => {
      socket.once(tls ? 'secureConnect' : 'connect', () => resolve())
      socket.once('error', reject)
    }),
    DEFAULT_MS,
    `a connection to port ${port}`,
  )
  return client
}

export function request(method: string, path: string, ...headers: string[]): string {
  return `${[`${method} ${path} HTTP/1.1`, 'Host: localhost', ...headers].join('\r\n')}\r\n\r\n`
}

function headersOf(head: string): Record<string, string> {
  const headers: Record<string, string> = {}
  for (const line of head.split('\r\n').slice(1)) {
    const [name = '', value = ''] = line.split(/:\s*/, 2)
    const key = name.toLowerCase()
    headers[key] = headers[key] === undefined ? value : `${headers[key]}, ${value}`
  }
  return headers
}
