/**
 * Requests of ours to this worker before it gets any other, so that the first real one meets compiled code and filled
 * pools. What they are answered is told, and decides nothing here.
 */
import http from 'node:http'
import type { Server } from 'node:net'
import type { FromWorker, ToWorker } from '../protocol.ts'
import { httpServerOf, openPrivate } from './private-channel.ts'

type WarmUpOrder = Extract<ToWorker, { t: 'warm-up' }>

const AT_ONCE = 4
/** The master's guard takes no more. */
const MAX_FAILURE = 1000
const HEADERS = { 'user-agent': 'usr2-warm-up/1', 'usr2-warm-up': '1' }

// As in probe.ts.
const { Agent, request: httpRequest } = http

/** Sends what is ordered, over its paths by turns, on as many kept connections as there are requests at once. */
export async function warmUp(
  { paths, count, timeoutMs }: WarmUpOrder,
  servers: ReadonlySet<Server>,
): Promise<Extract<FromWorker, { t: 'warmed' }>> {
  let sent = 0
  let failure: string | null = null
  const fail = (words: string): void => void (failure ??= words.slice(0, MAX_FAILURE))
  const server = httpServerOf(servers, null)
  if (typeof server === 'string') return { t: 'warmed', sent, failure: server }

  let isOver = false
  const agent = new Agent({ keepAlive: true, maxSockets: AT_ONCE })
  agent.createConnection = () => openPrivate(server)
  const deadline = setTimeout(() => {
    isOver = true
    fail(`only ${sent} of ${count} requests were sent within ${timeoutMs / 1000} s`)
    agent.destroy()
  }, timeoutMs).unref()

  const sendInTurn = async (): Promise<void> => {
    while (!isOver && sent < count) {
      if (!server.listening) return fail('the app closed its server')
      const path = paths[sent++ % paths.length] ?? '/'
      const words = await failureOf(agent, path)
      // Those of the deadline are its own doing.
      if (words !== null && !isOver) fail(`GET ${path} ${words}`)
    }
  }
  await Promise.all(Array.from({ length: Math.min(AT_ONCE, count) }, sendInTurn))
  clearTimeout(deadline)
  agent.destroy()
  return { t: 'warmed', sent, failure }
}

/** One GET, its body read to its end and dropped. */
function failureOf(agent: http.Agent, path: string): Promise<string | null> {
  return new Promise((resolve) => {
    const failed = (error: unknown): void =>
      resolve(`failed: ${error instanceof Error ? error.message : String(error)}`)
    try {
      const request = httpRequest({ agent, host: 'localhost', path, headers: HEADERS }, (response) => {
        const { statusCode = 0 } = response
        response.on('error', failed)
        response.on('end', () => resolve(statusCode >= 500 ? `answered ${statusCode}` : null))
        response.resume()
      })
      request.on('error', failed)
      request.end()
    } catch (error) {
      failed(error)
    }
  })
}
