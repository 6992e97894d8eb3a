/** What a listener speaks, found out as gently as possible: one connection for plain text, two where it is TLS. */
import { TLSSocket } from 'node:tls'
import { connectTo, type Target } from './plan.ts'

export interface Spoken {
  readonly tls: boolean
  readonly http1: boolean
  readonly http2: boolean
}

const MAX_BYTES = 1024 * 1024

/**
 * Sends one GET for `path`. An HTTP/1.1 server answers it; an HTTP/2 server without TLS sends its SETTINGS whatever it
 * was sent (RFC 9113, 3.4); what does neither is asked for TLS, and there by ALPN for both.
 *
 * @returns what was seen instead, as the end of a sentence, where it speaks none of these
 */
export async function probe(target: Target, path: string, timeoutMs: number): Promise<Spoken | string> {
  if (target.tls !== true) {
    const plain = await exchange(target, path, ['http/1.1'], timeoutMs)
    if (isHttp1(plain)) return { tls: false, http1: true, http2: false }
    if (isHttp2(plain)) return { tls: false, http1: false, http2: true }
    if (plain.error === 'ECONNREFUSED' || plain.error === 'ENOENT')
      return `refused the connection (${plain.error})`
    const overTls = await probe({ ...target, tls: true }, path, timeoutMs)
    return typeof overTls === 'string' ? `answered ${said(plain)}, and ${overTls}` : overTls
  }
  const both = await exchange(target, null, ['h2', 'http/1.1'], timeoutMs)
  if (both.alpn === null) return `made no TLS connection (${both.error ?? 'no answer'})`
  const http2 = both.alpn === 'h2'
  const http1 = await exchange(target, path, ['http/1.1'], timeoutMs)
  if (http2 || isHttp1(http1)) return { tls: true, http1: isHttp1(http1), http2 }
  return `answered ${said(http1)} over TLS`
}

interface Exchange {
  readonly bytes: Buffer
  /** What was agreed on; null without a connection. */
  readonly alpn: string | null
  readonly error: string | null
}

/** A GET, or with `path` null only a connection. Ends with the connection, or when `timeoutMs` has passed. */
function exchange(
  target: Target,
  path: string | null,
  alpn: readonly string[],
  timeoutMs: number,
): Promise<Exchange> {
  return new Promise((resolve) => {
    const { socket, stands } = connectTo(target, { alpn })
    const chunks: Buffer[] = []
    let size = 0
    let agreed: string | null = null
    const settle = (error: string | null) => {
      clearTimeout(timer)
      socket.destroy()
      resolve({ bytes: Buffer.concat(chunks), alpn: agreed, error })
    }
    const timer = setTimeout(() => settle(`no end within ${timeoutMs / 1000} s`), timeoutMs)
    socket.once(stands, () => {
      agreed = (socket instanceof TLSSocket && socket.alpnProtocol) || 'none'
      if (path === null) settle(null)
      else socket.write(`GET ${path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n`)
    })
    socket.on('data', (chunk: Buffer) => {
      chunks.push(chunk)
      size += chunk.length
      // An HTTP/1.1 answer is read to its end, or the app would see a client that breaks off.
      if (size > MAX_BYTES || isHttp2({ bytes: Buffer.concat(chunks) })) settle(null)
    })
    socket.once('end', () => settle(null))
    socket.on('error', (error: NodeJS.ErrnoException) => settle(error.code ?? error.message))
  })
}

/** HTTP/1.0 is what Node's HTTP/2 server says to who does not speak it. */
const isHttp1 = ({ bytes }: Pick<Exchange, 'bytes'>) => bytes.toString('latin1', 0, 9) === 'HTTP/1.1 '

/** A SETTINGS frame on stream 0, which is the first that a server sends. */
const isHttp2 = ({ bytes }: Pick<Exchange, 'bytes'>) =>
  bytes.length >= 9 && bytes[0] === 0 && bytes[3] === 4 && bytes.readUInt32BE(5) === 0

function said({ bytes, error }: Exchange): string {
  if (bytes.length === 0) return `nothing (${error ?? 'it closed the connection'})`
  return `${JSON.stringify(bytes.toString('latin1', 0, 40))}, which is not HTTP/1.1`
}
