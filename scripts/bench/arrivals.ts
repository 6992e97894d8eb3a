/**
 * An open-loop client: a request is due at every tick of an even clock, whatever became of those before, and its
 * latency counts from when it was due. Run as a program of its own by latency.ts:
 *
 *     arrivals.ts PORT PER_SECOND PATH      ends at the end of its stdin, and then prints an {@link Arrivals}
 *
 * The clock ticks in a thread that sleeps to the microsecond: a timer of Node is up to a millisecond late, several times what
 * the server takes to answer.
 */
import { connect, type Socket } from 'node:net'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'

export interface Arrivals {
  /** Of each answered request: when it was due, on the clock of {@link nowMs}, and how long after that its answer was complete. */
  readonly samples: readonly (readonly [dueMs: number, latencyMs: number])[]
  /** Requests whose connection ended without an answer. Nothing is sent twice. */
  readonly failed: number
}

/** CLOCK_MONOTONIC: the same clock in every process of this machine. */
export const nowMs = (): number => Number(process.hrtime.bigint()) / 1e6

/** Enough for every worker to have some; more are opened where all wait for an answer. */
const CONNECTIONS = 32

class Lane {
  readonly #socket: Socket
  #text = ''
  #dueMs: number | null = null

  constructor(
    port: number,
    onAnswer: (lane: Lane, dueMs: number) => void,
    onEnd: (lane: Lane, dueMs: number | null) => void,
  ) {
    this.#socket = connect({ port, host: '127.0.0.1', noDelay: true })
    this.#socket.setEncoding('latin1')
    this.#socket.on('data', (text: string) => {
      this.#text += text
      const bodyAt = this.#text.indexOf('\r\n\r\n') + 4
      const length = /content-length: (\d+)/i.exec(this.#text)?.[1]
      if (this.#dueMs === null || bodyAt < 4 || this.#text.length < bodyAt + Number(length)) return
      const dueMs = this.#dueMs
      this.#dueMs = null
      const mustClose = /^connection: close\r$/im.test(this.#text)
      this.#text = ''
      if (mustClose) this.#socket.end()
      onAnswer(this, dueMs)
      if (mustClose) this.#end(onEnd)
    })
    this.#socket.on('error', () => this.#end(onEnd))
    this.#socket.on('end', () => this.#end(onEnd))
  }

  request(path: string, dueMs: number): void {
    this.#dueMs = dueMs
    this.#socket.write(`GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`)
  }

  #ended = false
  #end(onEnd: (lane: Lane, dueMs: number | null) => void): void {
    if (this.#ended) return
    this.#ended = true
    onEnd(this, this.#dueMs)
  }
}

function serve(port: number, perSecond: number, path: string): void {
  const samples: [number, number][] = []
  let failed = 0
  /** The one that has waited longest comes next: each is used, and none outlives its keep-alive time. */
  const idle: Lane[] = []
  const open = (): Lane =>
    new Lane(
      port,
      (lane, dueMs) => {
        samples.push([dueMs, nowMs() - dueMs])
        idle.push(lane)
      },
      (lane, dueMs) => {
        if (dueMs !== null) failed++
        const at = idle.indexOf(lane)
        if (at !== -1) idle[at] = open()
      },
    )
  for (let count = 0; count < CONNECTIONS; count++) idle.push(open())
  const clock = new Worker(CLOCK, { eval: true, workerData: { periodMs: 1000 / perSecond } })
  clock.on('message', (dueMs: number) => (idle.shift() ?? open()).request(path, dueMs))
  process.stdin.resume().once('end', () => {
    const result: Arrivals = { samples, failed }
    process.stdout.write(JSON.stringify(result), () => process.exit(0))
  })
}

const CLOCK = `
const { parentPort, workerData } = require('node:worker_threads')
const nowMs = () => Number(process.hrtime.bigint()) / 1e6
const never = new Int32Array(new SharedArrayBuffer(4))
for (let dueMs = nowMs() + 100; ; dueMs += workerData.periodMs) {
  const early = dueMs - nowMs()
  if (early > 0) Atomics.wait(never, 0, 0, early)
  parentPort.postMessage(dueMs)
}`

const [, program, port, perSecond, path = '/'] = process.argv
if (program === fileURLToPath(import.meta.url)) serve(Number(port), Number(perSecond), path)
