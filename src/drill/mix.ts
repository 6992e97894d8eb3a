/** From what listeners speak and what the user said to the traffic that is driven at them. */
import type { MixOptions, NamedTarget } from './options.ts'
import type { Mode, Traffic } from './plan.ts'
import type { Spoken } from './probe.ts'

/** A traffic with what its row of the report says. */
export interface MixEntry {
  readonly kind: string
  readonly method: 'GET' | 'POST'
  readonly path: string
  readonly target: string
  readonly traffic: Traffic
}

/**
 * Shares of the rate. Kept-alive connections carry most of what a service behind a balancer gets; new ones are what a
 * listener that closes for a moment loses.
 */
const WEIGHTS: Partial<Record<Mode, number>> = { new: 2, keepalive: 4, pipelined: 2, post: 2, http2: 3 }

const PIPELINE_DEPTH = 4
const HTTP2_SESSIONS = 4
const UPLOADS_PER_SECOND = 2
/** A download that has ended begins anew: how long one takes is the app's, so a rate could not be kept. */
const STREAMS = 4
const PING_MS = 500

const KINDS: Partial<Record<Mode, string>> = {
  new: 'new connection',
  keepalive: 'keep-alive',
  pipelined: 'pipelined',
  post: 'POST',
  upload: 'slow upload',
  stream: 'stream',
  http2: 'HTTP/2',
  websocket: 'WebSocket',
}

export function mixOf(
  targets: readonly (NamedTarget & { readonly spoken: Spoken })[],
  options: MixOptions,
): MixEntry[] {
  const { paths, streams, post, webSocket, headers, connections } = options
  const entries: MixEntry[] = []
  const add = (
    label: string,
    target: Traffic['target'],
    mode: Mode,
    path: string,
    more: Partial<Traffic>,
  ) => {
    const kind = KINDS[mode] ?? mode
    const method = mode === 'post' || mode === 'upload' ? 'POST' : 'GET'
    const traffic = {
      mode,
      connections,
      target,
      path,
      headers,
      name: `${kind} ${method} ${path} ${label}`,
      ...more,
    }
    entries.push({ kind, method, path, target: label, traffic })
  }
  for (const { label, target, spoken } of targets) {
    const to = { ...target, tls: spoken.tls }
    if (spoken.http1) {
      for (const path of paths) {
        add(label, to, 'new', path, {})
        add(label, to, 'keepalive', path, {})
        add(label, to, 'pipelined', path, { depth: PIPELINE_DEPTH })
      }
      const body = options.body === null ? {} : { bodyBase64: options.body.toString('base64') }
      if (post !== null) {
        add(label, to, 'post', post, body)
        const { uploadMs } = options
        add(label, to, 'upload', post, { ...body, uploadMs, perSecond: UPLOADS_PER_SECOND, untimed: true })
      }
      for (const path of streams) add(label, to, 'stream', path, { connections: STREAMS, untimed: true })
      if (webSocket !== null)
        add(label, to, 'websocket', webSocket, { connections: options.webSockets, pingMs: PING_MS })
    }
    if (spoken.http2 || options.http2) {
      const depth = Math.max(1, Math.floor(connections / HTTP2_SESSIONS))
      for (const path of paths) add(label, to, 'http2', path, { connections: HTTP2_SESSIONS, depth })
    }
  }
  const weightOf = ({ traffic }: MixEntry) => WEIGHTS[traffic.mode] ?? 0
  const all = entries.reduce((sum, entry) => sum + weightOf(entry), 0)
  return entries.map((entry) => {
    const weight = weightOf(entry)
    if (weight === 0) return entry
    return { ...entry, traffic: { ...entry.traffic, perSecond: (options.perSecond * weight) / all } }
  })
}
