/**
 * `--metrics`: a read-only endpoint for Prometheus and for health checks. Built as a file of its own (dist/metrics.mjs),
 * which only a master with that option loads.
 *
 * Rules of this file:
 * - It only reads. Nothing that is sent here changes anything.
 * - A client costs a bounded amount: {@link LIMITS}. One connection is one request, for at most five seconds.
 * - There is no authorisation. An address that other machines reach is served when it is given (Kubernetes' probes come
 *   from outside of the pod), and the configuration warns of it. A unix socket is open to the master's user and group.
 * - It answers until the master's end: a stop that drains is told by /readyz.
 */
import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import { createRequire } from 'node:module'
import { isIP, type AddressInfo, type Socket } from 'node:net'
import { Crowd } from '../control/crowd.ts'
import { exposition } from './exposition.ts'
import type { Format } from './exposition.ts'
import type { Status } from '../face.ts'
import { ownerOf } from '../listening/port-owner.ts'
import { listenAtPath } from '../control/socket-file.ts'
import type { GenerationTotals, Verdicts } from './totals.ts'
import { plural } from '../words.ts'

export type { GenerationTotals, Verdicts }

// Not `import`: the namespace object of a module of Node's reads every export at once, and one of http's is a getter
// that loads all of undici (WebSocket). Resident memory: 14 MB on Node 22, 20 MB on Node 26, in place of 3 MB.
const { createServer } = createRequire(import.meta.url)('node:http') as typeof import('node:http')

export type MetricsListen = { readonly host: string; readonly port: number } | { readonly path: string }

export interface MetricsOptions {
  readonly listen: MetricsListen
  /** Asked once for each scrape and for each /readyz. */
  readonly status: () => Status
  /** In any order, any number: the last ten keep a label of their own. */
  readonly totals: () => readonly GenerationTotals[]
  readonly verdicts: () => Verdicts
  /** The part of a pino logger that is used here. */
  readonly log: { warn(fields: object, text: string): void }
  readonly limits?: Partial<typeof LIMITS>
}

export interface Metrics {
  /** `127.0.0.1:9464`, `/run/usr2/shop/metrics.sock`. */
  readonly address: string
  /** Ends every connection at once, and removes the socket's file if it still is ours. */
  close(): Promise<void>
}

export const LIMITS = {
  /** At once; one more takes the place of one that has asked nothing yet, or else of the oldest (crowd.ts). */
  connections: 64,
  /** From connecting to the last byte, whatever the client does or does not. */
  connectionMs: 5_000,
  headerBytes: 8 * 1024,
  /** Prometheus may run as another user, in our group. */
  socketMode: 0o660,
}

/** The endpoint could not be opened; a sentence. */
export class MetricsError extends Error {
  override name = 'MetricsError'
}

/** @throws {MetricsError} the address is in use, is not of this machine, cannot be bound */
export async function openMetrics(options: MetricsOptions): Promise<Metrics> {
  const { listen, log } = options
  const limits = { ...LIMITS, ...options.limits }
  const asked = new WeakSet<Socket>()
  const crowd = new Crowd<Socket>(limits.connections, (socket) => (asked.has(socket) ? 2 : 1))
  const server = createServer({ maxHeaderSize: limits.headerBytes }, (request, response) => {
    // Node reads all that is pipelined, and only the first is answered: a hundred scrapes for one packet.
    if (asked.has(request.socket)) return
    asked.add(request.socket)
    answer(request, options)
      .catch((error: unknown): Answer => {
        log.warn({ err: error }, `could not answer ${request.url} of the metrics`)
        return text(500, 'the master could not answer; its log says why')
      })
      .then((answer) => send(response, answer))
  })
  server.on('connection', (socket) => {
    crowd.enter(socket, (spared) => spared.destroy())
    // One deadline for all that a client can do to stay: send nothing, send slowly, read slowly.
    const deadline = setTimeout(() => socket.destroy(), limits.connectionMs).unref()
    socket.once('close', () => {
      clearTimeout(deadline)
      crowd.leave(socket)
    })
  })

  const removeFile =
    'path' in listen ? await bindPath(server, listen.path, limits.socketMode) : await bindPort(server, listen)
  server.on('error', (error) => log.warn({ err: error }, 'the metrics could not take a connection'))

  let closed: Promise<void> | null = null
  return {
    address: 'path' in listen ? listen.path : addressOf(server.address() as AddressInfo),
    close: () =>
      (closed ??= new Promise((resolve) => {
        removeFile()
        server.close(() => resolve())
        server.closeAllConnections()
      })),
  }
}

async function bindPath(server: Server, path: string, mode: number): Promise<() => void> {
  try {
    return await listenAtPath(server, path, mode)
  } catch (error) {
    throw failure(path, error instanceof Error ? error.message : String(error))
  }
}

async function bindPort(server: Server, { host, port }: { host: string; port: number }) {
  const address = addressOf({ address: host, port })
  await new Promise<void>((resolve, reject) => {
    const fail = (error: NodeJS.ErrnoException): void => {
      const inUse = error.code === 'EADDRINUSE'
      const owner = inUse ? ownerOf({ kind: 'tcp', host, port }) : null
      reject(failure(address, inUse ? `${owner ?? 'another process'} listens there` : error.message))
    }
    server.once('error', fail)
    server.listen({ host, port }, () => {
      server.off('error', fail)
      resolve()
    })
  })
  return () => {}
}

const failure = (where: string, why: string): MetricsError =>
  new MetricsError(`Could not serve the metrics at ${where}: ${why}. Give another place with --metrics.`)

const addressOf = ({ address, port }: Pick<AddressInfo, 'address' | 'port'>): string =>
  isIP(address) === 6 ? `[${address}]:${port}` : `${address}:${port}`

interface Answer {
  readonly status: number
  readonly contentType: string
  readonly text: string
}

const text = (status: number, line: string): Answer => ({
  status,
  contentType: 'text/plain; charset=utf-8',
  text: `${line}\n`,
})

async function answer({ method, url, headers }: IncomingMessage, options: MetricsOptions): Promise<Answer> {
  const path = url?.split('?')[0]
  if (path !== '/metrics' && path !== '/livez' && path !== '/readyz') {
    return text(404, 'there is /metrics, /livez and /readyz')
  }
  if (method !== 'GET') return text(405, 'only GET is answered here')
  switch (path) {
    case '/livez':
      return text(200, 'ok')
    case '/readyz':
      return readiness(options.status())
    case '/metrics': {
      const lagMs = await loopLag()
      const { status, totals, verdicts } = options
      const snapshot = { status: status(), totals: totals(), verdicts: verdicts(), lagMs }
      return { status: 200, ...(await exposition(snapshot, formatFor(headers.accept))) }
    }
  }
}

function send(response: ServerResponse, { status, contentType, text }: Answer): void {
  response.writeHead(status, {
    'Content-Type': contentType,
    'Content-Length': Buffer.byteLength(text),
    'Cache-Control': 'no-store',
    // A scrape every 15 s would hold a connection all the time, of the few that there are.
    Connection: 'close',
    ...(status === 405 ? { Allow: 'GET' } : {}),
  })
  response.end(text)
}

/** 200 while a worker of the current generation serves and no stop has begun. */
export function readiness({ state, ready, slots, generations, waitsFor }: Status): Answer {
  if (state === 'stopping') {
    const left = generations.reduce((sum, { workers }) => sum + workers.length, 0)
    return text(503, `stopping: ${plural(left, 'worker')} left`)
  }
  const serve = `${ready} of ${plural(slots, 'worker')} ${ready === 1 ? 'serves' : 'serve'}`
  if (ready > 0) return text(200, `ok: ${serve}`)
  return text(
    503,
    `${state === 'starting' ? 'starting' : 'not ready'}: ${serve}${waitsFor ? `; the master waits ${waitsFor}` : ''}`,
  )
}

/** How late a callback comes that was due at once. */
const loopLag = (): Promise<number> =>
  new Promise((resolve) => {
    const from = performance.now()
    setImmediate(() => resolve(performance.now() - from))
  })

/**
 * OpenMetrics 1.0.0 where the client asks for it no less than for the older format (RFC 9110, 12.5.1), as Prometheus does
 * by default; else the older, which everything reads.
 */
export function formatFor(accept = ''): Format {
  const quality = { openmetrics: 0, text: 0 }
  for (const range of accept.toLowerCase().split(',')) {
    const [type, ...parameters] = range.split(';').map((part) => part.trim())
    const value = (name: string) => parameters.find((p) => p.startsWith(`${name}=`))?.slice(name.length + 1)
    const q = Number(value('q') ?? 1)
    if (type === 'application/openmetrics-text' && (value('version') ?? '1.0.0') === '1.0.0') {
      quality.openmetrics = Math.max(quality.openmetrics, q)
    }
    if (type === 'text/plain') quality.text = Math.max(quality.text, q)
  }
  return quality.openmetrics > 0 && quality.openmetrics >= quality.text ? 'openmetrics' : 'text'
}
