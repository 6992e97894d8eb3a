/** UDP: datagrams with numbers, each of which must come back once. On loopback only a full buffer loses any. */
import dgram from 'node:dgram'
import { setTimeout as sleep } from 'node:timers/promises'
import { Failure, type Kind } from './kind.ts'

const THINK_MS = [5, 15] as const
const ANSWER_MS = 5_000

export async function sendDatagrams(port: number, kind: Kind, stop: AbortSignal): Promise<void> {
  const socket = dgram.createSocket('udp4')
  /** When each was sent that is not answered, the oldest first. */
  const waiting = new Map<number, number>()
  socket.on('message', (data) => {
    const number = Number(String(data))
    if (waiting.delete(number)) kind.ok()
    else kind.fail(new Failure('stray', `${JSON.stringify(String(data))} came twice, late, or for nothing`))
  })
  socket.on('error', (error) => kind.fail(new Failure('local', String(error))))
  const giveUp = (olderThanMs: number): void => {
    for (const [number, sentAt] of waiting) {
      if (performance.now() - sentAt < olderThanMs) break
      waiting.delete(number)
      kind.fail(new Failure('lost', `datagram ${number} was not answered in ${ANSWER_MS} ms`))
    }
  }
  for (let number = 1; !stop.aborted; number++) {
    waiting.set(number, performance.now())
    socket.send(String(number), port, '127.0.0.1')
    const [min, max] = THINK_MS
    await sleep(min + Math.random() * (max - min))
    giveUp(ANSWER_MS)
  }
  for (const end = performance.now() + ANSWER_MS; waiting.size > 0 && performance.now() < end;)
    await sleep(20)
  giveUp(0)
  socket.close()
}
