/**
 * The worker's answers to the master's probes. One answer to each, within its time, whatever the app does; several may be
 * under way. An `event-loop` probe is answered by the fact that it is read.
 *
 * http: as a kubelet does it (pkg/probe/http): a GET, not kept alive, whose answer must come whole within the time, but of a
 * long one only the beginning is read.
 */
import http from 'node:http'
import type { IncomingMessage } from 'node:http'
import type { Server } from 'node:net'
import type { Duplex } from 'node:stream'
import type { FromWorker, ProbeTarget, ToWorker } from '../protocol.ts'
import { httpServerOf, listeningOf, openPrivate, portOf, portsOf } from './private-channel.ts'

export type ProbeKind = 'startup' | 'readiness' | 'liveness'
/** The app's own: `false`, or what it throws, is a failure. */
export type OnProbe = (probe: ProbeKind) => unknown

type ProbeOrder = Extract<ToWorker, { t: 'probe' }>
type HttpTarget = Extract<ProbeTarget, { k: 'http' }>

const MAX_BODY_BYTES = 10 * 1024
const MAX_EXCERPT = 200
/** The master's guard takes no more. */
const MAX_FAILURE = 1000
const USER_AGENT = 'usr2-probe/1'

// As it is before the app: what traces or replaces `http.request` is about the app's own requests.
const { request: httpRequest } = http

export interface ProbesParts {
  readonly servers: ReadonlySet<Server>
  /** What the app gave to `onProbe`. */
  readonly functions: readonly OnProbe[]
  send(message: FromWorker): void
}

export interface Probes {
  /** The app has said that it is ready. */
  heardReady(): void
  answer(order: ProbeOrder): void
}

export function prepareProbes({ servers, functions, send }: ProbesParts): Probes {
  let isReady = false
  hearReady(() => (isReady = true))

  const failureOf = async ({ kind, target, timeoutMs }: ProbeOrder): Promise<string | null> => {
    if (target.k === 'http') {
      const server = httpServerOf(servers, target.port)
      return typeof server === 'string' ? server : get(server, target, kind, timeoutMs)
    }
    if (target.k === 'tcp') return tcpFailure(servers, target.port)
    if (functions.length > 0) return ask(functions, kind, timeoutMs)
    return isReady ? null : 'the app has not said that it is ready, and has no onProbe function'
  }

  return {
    heardReady: () => void (isReady = true),
    answer(order) {
      const answer = (failure: string | null): void =>
        send({ t: 'probed', id: order.id, failure: failure?.slice(0, MAX_FAILURE) ?? null })
      if (order.target.k === 'event-loop') return answer(null)
      // A server that got its address by the same read of the channel emits 'listening' before that.
      setImmediate(() => void failureOf(order).then(answer, (error) => answer(wordsOf(error))))
    },
  }
}

/** An app may say it as PM2 and naught have it, too. The master hears that by itself (worker-handle.ts). */
function hearReady(heard: () => void): void {
  const send = process.send as ((...args: unknown[]) => boolean) | undefined
  if (!send) return
  process.send = function (this: unknown, ...args: unknown[]): boolean {
    if (args[0] === 'ready' || args[0] === 'online') heard()
    return send.apply(this, args)
  }
}

function tcpFailure(servers: ReadonlySet<Server>, port: number | null): string | null {
  const listening = listeningOf(servers)
  if (listening.some((server) => port === null || portOf(server) === port)) return null
  if (listening.length === 0) return 'no server of this worker listens'
  return `no server of this worker listens on port ${port} (it listens on ${portsOf(listening)})`
}

/** All of them, at the same time: each speaks for its part of the app. */
async function ask(
  functions: readonly OnProbe[],
  kind: ProbeKind,
  timeoutMs: number,
): Promise<string | null> {
  const askOne = async (run: OnProbe): Promise<void> => {
    if ((await run(kind)) === false) throw new Error('it answered false')
  }
  let deadline: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    const error = new Error(`no answer within ${timeoutMs / 1000} s`)
    deadline = setTimeout(() => reject(error), timeoutMs).unref()
  })
  try {
    await Promise.race([Promise.all(functions.map(askOne)), late])
    return null
  } catch (error) {
    return `onProbe of the app, asked for its ${kind}: ${wordsOf(error)}`
  } finally {
    clearTimeout(deadline)
  }
}

function get(
  server: http.Server,
  { path, headers, expect }: HttpTarget,
  kind: ProbeKind,
  timeoutMs: number,
): Promise<string | null> {
  const what = `GET ${path}`
  const within = `within ${timeoutMs / 1000} s`
  return new Promise((resolve) => {
    let channel: Duplex | undefined
    let response: IncomingMessage | undefined
    let body = Buffer.alloc(0)

    const end = (failure: string | null): void => {
      clearTimeout(deadline)
      channel?.destroy()
      resolve(failure)
    }
    /** @param unfinished what is wrong with an answer of the right status that did not end */
    const judge = (unfinished: string | null): void => {
      const status = response?.statusCode ?? 0
      const [from, to] = expect
      if (status < from || status > to) end(`${what} answered ${status}${excerptOf(body)}`)
      else end(unfinished === null ? null : `${what} answered ${status}, but ${unfinished}`)
    }
    const onTimeout = (): void =>
      response ? judge(`not to its end ${within}`) : end(`${what} did not answer ${within}`)
    const deadline = setTimeout(onTimeout, timeoutMs).unref()

    try {
      const request = httpRequest({
        host: 'localhost',
        port: portOf(server),
        path,
        headers,
        createConnection: () => (channel = openPrivate(server)),
      })
      if (!request.hasHeader('user-agent')) request.setHeader('user-agent', USER_AGENT)
      request.setHeader('usr2-probe', kind)
      request.setHeader('connection', 'close')
      request.on('error', (error: NodeJS.ErrnoException) => {
        const isEnd = error.code === 'ECONNRESET'
        if (!response)
          end(`${what}: ${isEnd ? 'its connection was closed without an answer' : error.message}`)
      })
      request.on('response', (incoming) => {
        response = incoming
        incoming.on('error', () => judge('broke off'))
        incoming.on('end', () => judge(null))
        incoming.on('data', (chunk: Buffer) => {
          body = Buffer.concat([body, chunk])
          if (body.length >= MAX_BODY_BYTES) judge(null)
        })
      })
      request.end()
    } catch (error) {
      // A path or a header that no request can have, or a 'connection' listener of the app.
      end(`${what} could not be sent: ${wordsOf(error)}`)
    }
  })
}

/** The beginning of a body, as the end of a sentence. */
function excerptOf(body: Buffer): string {
  const text = body.toString('utf8').replace(/[\s\p{Cc}]+/gu, ' ')
  const excerpt = text.trim().slice(0, MAX_EXCERPT)
  return excerpt === '' ? '' : `: ${excerpt}`
}

const wordsOf = (error: unknown): string => (error instanceof Error ? error.message : String(error))
