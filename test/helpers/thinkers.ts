/**
 * Keep-alive clients that think for an exact time between an answer and the next request, and obey RFC 9112: a
 * connection that said `Connection: close` is not used again, and one that the server has closed is gone, which is
 * its right once what it had promised (`Keep-Alive: timeout=N`) is over. Nothing is ever sent again.
 */
import { connect, type Socket } from 'node:net'
import { request } from './raw-client.ts'
import { scopeOf, type TestLike } from './scope.ts'

/** What ended without an answer, by the time since the last byte of the answer before it. */
export interface Loss {
  readonly how: string
  readonly thinkMs: number
  /** When the request was sent or, for a broken promise, when the connection ended. */
  readonly afterAnswerMs: number
  readonly promisedMs: number
}

export interface ThinkersResult {
  readonly answered: number
  /** Idle connections that the server closed after its promise. */
  readonly idleClosed: number
  /** Idle connections that it closed before. */
  readonly broken: readonly Loss[]
  /** When each request was sent that was sent after its promise, lost or not. */
  readonly lateMs: readonly number[]
  /** Requests on a used connection that were never answered. */
  readonly lost: readonly Loss[]
  /** Requests on a fresh connection that were never answered. */
  readonly refused: readonly string[]
}

/** A promise begins when the server has written the answer, which is before we have read it. */
const PROMISE_TOLERANCE_MS = 100

export class Thinkers {
  readonly #port: number
  readonly #result = {
    answered: 0,
    idleClosed: 0,
    broken: [] as Loss[],
    lateMs: [] as number[],
    lost: [] as Loss[],
    refused: [] as string[],
  }
  readonly #sockets = new Set<Socket>()
  readonly #timers = new Set<NodeJS.Timeout>()
  #stopped = false

  /** @param thinkMs one client for each */
  constructor(t: TestLike, port: number, thinkMs: readonly number[]) {
    this.#port = port
    scopeOf(t).finally(() => this.stop())
    for (const [i, ms] of thinkMs.entries()) this.#after((i % 100) * 10, () => this.#connect(ms))
  }

  /** What is in flight at this moment is not counted. */
  stop(): ThinkersResult {
    this.#stopped = true
    this.#timers.forEach(clearTimeout)
    for (const socket of this.#sockets) socket.destroy()
    return this.#result
  }

  #after(ms: number, then: () => void): NodeJS.Timeout {
    const timer = setTimeout(() => {
      this.#timers.delete(timer)
      then()
    }, ms)
    this.#timers.add(timer)
    return timer
  }

  #connect(thinkMs: number): void {
    const socket = connect({ port: this.#port, host: '127.0.0.1', noDelay: true })
    this.#sockets.add(socket)
    const text = request('GET', '/')
    let [received, waiting, answeredAt, sentAt, promisedMs] = ['', false, 0, 0, 0]
    let thinking: NodeJS.Timeout | undefined
    let over = false
    const send = (): void => {
      waiting = true
      sentAt = performance.now()
      const afterAnswerMs = sentAt - answeredAt
      if (answeredAt > 0 && afterAnswerMs > promisedMs) this.#result.lateMs.push(afterAnswerMs)
      socket.write(text)
    }
    const end = (how: string): void => {
      if (over || this.#stopped) return
      over = true
      this.#sockets.delete(socket)
      socket.destroy()
      clearTimeout(thinking)
      if (thinking) this.#timers.delete(thinking)
      const since = (at: number): Loss => ({ how, thinkMs, afterAnswerMs: at - answeredAt, promisedMs })
      if (waiting && answeredAt > 0) this.#result.lost.push(since(sentAt))
      else if (waiting || answeredAt === 0) this.#result.refused.push(how)
      else {
        const loss = since(performance.now())
        if (how === 'FIN' && loss.afterAnswerMs > promisedMs - PROMISE_TOLERANCE_MS) this.#result.idleClosed++
        else this.#result.broken.push(loss)
      }
      this.#connect(thinkMs)
    }
    socket.on('connect', send)
    socket.on('error', (error: NodeJS.ErrnoException) => end(error.code ?? error.message))
    socket.on('end', () => end('FIN'))
    socket.setEncoding('latin1').on('data', (chunk: string) => {
      received += chunk
      const headEnd = received.indexOf('\r\n\r\n')
      const length = Number(/^content-length: (\d+)/im.exec(received)?.[1])
      if (headEnd < 0 || received.length < headEnd + 4 + length) return
      answeredAt = performance.now()
      waiting = false
      this.#result.answered++
      promisedMs = Number(/^keep-alive: timeout=(\d+)/im.exec(received)?.[1] ?? 0) * 1000
      const closes = /^connection: close/im.test(received)
      received = ''
      if (closes) {
        over = true
        this.#sockets.delete(socket)
        socket.end()
        thinking = this.#after(thinkMs, () => this.#connect(thinkMs))
      } else thinking = this.#after(thinkMs, send)
    })
  }
}
