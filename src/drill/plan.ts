/** What a load consists of: the kinds of traffic, and each one made ready to be sent. */
import { connect as connectTcp, type Socket, type TcpSocketConnectOpts } from 'node:net'
import { connect as connectTls } from 'node:tls'

/**
 * - `new`: a connection for each request, which asks for `Connection: close`
 * - `keepalive`: one connection, a time to think between requests
 * - `hot`: one connection, the next request as soon as the answer is there
 * - `post`: as `keepalive`, POST with a body of 64 KiB
 * - `upload`: as `post`, with the body sent in pieces over `uploadMs`
 * - `slow`: as `hot`, to a path that takes 2 s
 * - `stream`: as `hot`, to a path that sends chunks for 3 s
 * - `pipelined`: as `hot`, 8 requests in one write, the next 8 when all are answered
 * - `preconnect`: connects, says nothing for up to 3 s as browsers do, then one request
 * - `websocket`: one WebSocket, kept open, that is pinged and must end by a close frame
 * - `http2`: one session with up to `depth` streams at once; new streams on a new session after a GOAWAY
 */
export type Mode =
  | 'new'
  | 'keepalive'
  | 'hot'
  | 'post'
  | 'upload'
  | 'slow'
  | 'stream'
  | 'pipelined'
  | 'preconnect'
  | 'websocket'
  | 'http2'

export interface Traffic {
  readonly mode: Mode
  readonly connections: number
  /** What the result calls it; the mode, unless there is more than one of that mode. */
  readonly name?: string
  /** Default: the load's. */
  readonly target?: Target
  readonly path?: string
  /** Whole lines, such as `Authorization: Basic …`; one of the same name takes the place of ours. */
  readonly headers?: readonly string[]
  /** Between an answer and the next request (`preconnect`: between connect and request), evenly spread. */
  readonly thinkMs?: readonly [min: number, max: number]
  /**
   * Open loop: that many requests become due each second, whatever became of those before, and latency counts from
   * when a request was due. `connections` (for `http2` times `depth`) bounds how many are outstanding; what is due
   * beyond waits, and its wait is in its latency. Without it a connection's next request waits for its last answer,
   * and a server that stalls is asked less: the stall is counted once instead of by everybody whom it would have hit.
   */
  readonly perSecond?: number
  /** Of a `post` and an `upload`. */
  readonly bodyBytes?: number
  readonly bodyBase64?: string
  /** Of a `post`: the answer must be the body that was sent; anything else is `malformed`. */
  readonly echo?: boolean
  /** Of an `upload`: from its first byte to its last. Default 1 s. */
  readonly uploadMs?: number
  /** Of `pipelined`: requests in one write. Of `http2`: streams at once. Default 8. */
  readonly depth?: number
  /** Of `websocket`: from one ping to the next. Default 1 s. */
  readonly pingMs?: number
  /** How long it takes says nothing about the server (uploads, long downloads): counted, but not in summed latencies. */
  readonly untimed?: boolean
  /** Which answers are good: 2xx, those listed, or (`below500`) any but a 5xx. */
  readonly statuses?: readonly number[] | 'below500'
}

/** `tls`: TLS to it; whose certificate it is does not matter, losses are what is counted. */
export type Target = ({ readonly host?: string; readonly port: number } | { readonly path: string }) & {
  readonly tls?: boolean
}

/** A {@link Traffic}, ready to be sent. */
export interface Plan {
  readonly index: number
  readonly name: string
  readonly mode: Mode
  readonly target: Target
  readonly path: string
  readonly headers: readonly string[]
  readonly connections: number
  readonly thinkMs: readonly [number, number]
  readonly perSecond: number | null
  /** How many requests `bytes` holds. */
  readonly batch: number
  /** Of `http2`: streams at once. */
  readonly depth: number
  readonly bytes: Buffer
  /** Of an `upload`: how long `bytes` is to take. */
  readonly uploadMs: number
  readonly pingMs: number
  /** What the body of each response must be. */
  readonly echo: Buffer | null
  /** The request asks for `Connection: close`, so that the answer saying it is no news. */
  readonly asksClose: boolean
  /** The connection is not used again. */
  readonly once: boolean
  readonly untimed: boolean
  good(status: number): boolean
}

const KIB = 1024

const DEFAULT_PATH: Partial<Record<Mode, string>> = {
  post: '/echo',
  upload: '/echo',
  slow: '/slow?ms=2000',
  stream: '/stream?ms=3000',
}

const DEFAULT_THINK_MS: Partial<Record<Mode, readonly [number, number]>> = {
  keepalive: [10, 30],
  post: [10, 30],
  http2: [10, 30],
  preconnect: [0, 3000],
}

export function planOf(traffic: Traffic, index: number, otherwise: Target): Plan {
  const { mode, perSecond = null, statuses } = traffic
  const path = traffic.path ?? DEFAULT_PATH[mode] ?? '/'
  const sends = mode === 'post' || mode === 'upload'
  const given = traffic.bodyBase64 === undefined ? null : Buffer.from(traffic.bodyBase64, 'base64')
  const body = sends ? (given ?? textOf(traffic.bodyBytes ?? 64 * KIB)) : Buffer.alloc(0)
  const ours = ['Host: localhost']
  if (sends) ours.push('Content-Type: application/octet-stream', `Content-Length: ${body.length}`)
  if (mode === 'new') ours.push('Connection: close')
  const headers = withOverrides(ours, traffic.headers ?? [])
  const head = [`${sends ? 'POST' : 'GET'} ${path} HTTP/1.1`, ...headers].join('\r\n')
  const request = Buffer.concat([Buffer.from(`${head}\r\n\r\n`, 'latin1'), body])
  const depth = traffic.depth ?? 8
  const batch = mode === 'pipelined' ? depth : 1
  return {
    index,
    name: traffic.name ?? mode,
    mode,
    target: traffic.target ?? otherwise,
    path,
    headers,
    connections: traffic.connections,
    // Open loop: when the next one is sent is the schedule's to say.
    thinkMs: perSecond === null ? (traffic.thinkMs ?? DEFAULT_THINK_MS[mode] ?? [0, 0]) : [0, 0],
    // A WebSocket is pinged every `pingMs`.
    perSecond: mode === 'websocket' ? null : perSecond,
    batch,
    depth,
    bytes: Buffer.concat(Array.from({ length: batch }, () => request)),
    uploadMs: mode === 'upload' ? (traffic.uploadMs ?? 1000) : 0,
    pingMs: traffic.pingMs ?? 1000,
    echo: sends && traffic.echo === true ? body : null,
    asksClose: mode === 'new',
    once: mode === 'new' || mode === 'preconnect',
    untimed: traffic.untimed === true,
    good: (status) =>
      statuses === undefined
        ? status >= 200 && status <= 299
        : status < 500 && (statuses === 'below500' || statuses.includes(status)),
  }
}

const nameOf = (line: string) => line.slice(0, line.indexOf(':')).trim().toLowerCase()

function withOverrides(ours: readonly string[], theirs: readonly string[]): string[] {
  const taken = new Set(theirs.map(nameOf))
  return [...ours.filter((line) => !taken.has(nameOf(line))), ...theirs]
}

/** Every position differs from its neighbours in another way (the period is a prime), so that lost or doubled bytes show. */
function textOf(bytes: number): Buffer {
  const body = Buffer.alloc(bytes)
  for (let at = 0; at < bytes; at++) body[at] = 32 + ((at * 7) % 89)
  return body
}

/** Connects as the target asks for, and names the event that tells that the connection stands. */
export function connectTo(
  target: Target,
  {
    onread,
    alpn = ['http/1.1'],
  }: { readonly onread?: TcpSocketConnectOpts['onread']; readonly alpn?: readonly string[] } = {},
): { readonly socket: Socket; readonly stands: 'connect' | 'secureConnect' } {
  const { tls = false, ...where } = target
  const place = 'path' in where ? where : { host: '127.0.0.1', ...where }
  const options = { ...place, ...(onread === undefined ? {} : { onread }) }
  if (!tls) return { socket: connectTcp({ ...options, noDelay: true }), stands: 'connect' }
  const socket = connectTls({
    ...options,
    ALPNProtocols: [...alpn],
    servername: 'localhost',
    rejectUnauthorized: false,
  })
  socket.setNoDelay(true)
  return { socket, stands: 'secureConnect' }
}
