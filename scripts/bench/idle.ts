/**
 * Thousands of connections that do nothing, across a reload. Half of the keep-alive clients ask once more while the old
 * worker drains, at a random moment of the time that they were promised; the other half never do. Nobody may be reset,
 * no request may be lost, nobody may be closed before the promise is over, every WebSocket ends by a close frame.
 *
 *     node --import tsx scripts/bench/idle.ts [--idle 10000] [--websockets 1000] [--node PATH] [--json]
 */
import { connect, type Socket } from 'node:net'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { bench, DEFAULT_CLI, nodeVersion, progress, reloadUsr2, serveUsr2, sleep, until } from './bench.ts'
import { childrenOf, cpuMs, rssMb } from './proc.ts'

const { values: flags } = parseArgs({
  options: {
    idle: { type: 'string', default: '10000' },
    websockets: { type: 'string', default: '1000' },
    node: { type: 'string', default: process.execPath },
    cli: { type: 'string', default: DEFAULT_CLI },
    json: { type: 'boolean', default: false },
  },
})

const KEEP_ALIVE_MS = 12_000
const DRAIN = '16s'
/** Clients that ask again do so within this: well before their promise ends. */
const ASK_WITHIN_MS = 8_000
/** A promise begins when the server has written; its clock and ours tick apart. */
const TOLERANCE_MS = 100
/**
 * Nobody asks so shortly before the end: the server's clock began earlier than ours, on a busy machine by seconds, and a
 * request that arrives after the promise has ended is the client's own mistake.
 */
const SAFELY_BEFORE_MS = 3_000
/** At a time, so that no connect waits for its retry. */
const OPENING = 200
const ENDED_MS = 60_000

/** How a connection ended, as its client saw it. */
type End = 'answered' | 'idle' | 'closed early' | 'reset' | 'lost' | '1001' | 'bare'

class Client {
  readonly socket: Socket
  readonly kind: 'idle' | 'websocket'
  text = ''
  asked = false
  promisedAt = 0
  end: End | null = null

  constructor(kind: Client['kind'], port: number, onEnd: () => void) {
    this.kind = kind
    this.socket = connect({ port, host: '127.0.0.1', noDelay: true })
    this.socket.setEncoding('latin1')
    const ended = (end: End): void => {
      if (this.end !== null) return
      this.end = end
      this.socket.end()
      onEnd()
    }
    this.socket.on('data', (text: string) => {
      this.text += text
      // A close frame with status 1001: answered by our own, masked with zeros (RFC 6455, 5.5.1).
      if (kind === 'websocket' && this.text.endsWith('\x88\x02\x03\xe9')) {
        this.socket.write(Buffer.from([0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9]))
        ended('1001')
      } else if (this.asked && /\r\n\r\n\d+$/.test(this.text)) {
        ended(/^connection: close\r$/im.test(this.text) ? 'answered' : 'lost')
      }
    })
    this.socket.on('error', () => ended('reset'))
    this.socket.on('end', () => {
      if (kind === 'websocket') ended('bare')
      else if (this.asked) ended('lost')
      else ended(performance.now() >= this.promisedAt - TOLERANCE_MS ? 'idle' : 'closed early')
    })
  }

  async open(): Promise<void> {
    const upgrade =
      'Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n'
    this.socket.write(`GET / HTTP/1.1\r\nHost: x\r\n${this.kind === 'websocket' ? upgrade : ''}\r\n`)
    await until(() => this.text.includes('\r\n\r\n') || this.end !== null, 'an answer')
    this.promisedAt = performance.now() + KEEP_ALIVE_MS
    this.text = ''
  }

  ask(): void {
    if (this.end !== null || performance.now() > this.promisedAt - SAFELY_BEFORE_MS) return
    this.asked = true
    this.socket.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n')
  }
}

await bench(async (bench) => {
  const served = await serveUsr2(bench, {
    node: flags.node,
    cli: flags.cli,
    app: fileURLToPath(new URL('idle-app.cjs', import.meta.url)),
    env: { KEEP_ALIVE_MS: `${KEEP_ALIVE_MS}` },
    flags: ['--drain-timeout', DRAIN],
  })
  const { child, port } = served
  const [worker] = childrenOf(child.pid)
  if (worker === undefined) throw new Error('usr2 has no worker')
  const before = { master: rssMb(child.pid), worker: rssMb(worker) }
  const clients: Client[] = []
  let ended = 0
  const open = async (kind: Client['kind'], count: number): Promise<void> => {
    for (let left = count; left > 0; left -= OPENING) {
      const some = Array.from(
        { length: Math.min(left, OPENING) },
        () => new Client(kind, port, () => ended++),
      )
      clients.push(...some)
      await Promise.all(some.map((client) => client.open()))
    }
  }
  // The promise of an idle connection begins with its answer: the WebSockets come first.
  await open('websocket', Number(flags.websockets))
  await open('idle', Number(flags.idle))
  const held = { master: rssMb(child.pid), worker: rssMb(worker) }
  progress(`${clients.length} connections are open`)
  const cpu = cpuMs(worker)
  const from = child.lines.length
  const at = performance.now()
  await reloadUsr2(served)
  const promotedMs = performance.now() - at
  const asks = clients.filter(({ kind }) => kind === 'idle').filter((_, i) => i % 2 === 0)
  const asking = asks.map(async (client) => {
    await sleep(Math.random() * ASK_WITHIN_MS)
    client.ask()
  })
  let workerCpuMs = 0
  let masterPeak = rssMb(child.pid)
  const sampling = setInterval(() => {
    masterPeak = Math.max(masterPeak, rssMb(child.pid))
    try {
      workerCpuMs = cpuMs(worker) - cpu
    } catch {
      // It has left.
    }
  }, 100)
  await Promise.all(asking)
  await until(() => ended === clients.length, 'the end of every connection', ENDED_MS)
  const endedMs = performance.now() - at
  const drained = await child.event(['drained'], from, ENDED_MS)
  clearInterval(sampling)
  const ends: Partial<Record<End, number>> = {}
  for (const { end } of clients) if (end !== null) ends[end] = (ends[end] ?? 0) + 1
  const lost = (['closed early', 'reset', 'lost', 'bare'] as const).reduce(
    (sum, end) => sum + (ends[end] ?? 0),
    0,
  )
  const result = {
    node: nodeVersion(flags.node),
    connections: clients.length,
    ends,
    lost,
    promotedMs: Math.round(promotedMs),
    endedMs: Math.round(endedMs),
    workerCpuMsPer1000: Number(((workerCpuMs / clients.length) * 1000).toFixed(1)),
    workerKbPerConnection: Number((((held.worker - before.worker) * 1024) / clients.length).toFixed(1)),
    masterMb: { before: before.master, held: held.master, peak: masterPeak },
    ledger: drained['ledger'],
  }
  if (flags.json) console.log(JSON.stringify(result, null, 2))
  else {
    console.log(`${result.node}: ${clients.length} connections, ${lost} lost: ${JSON.stringify(ends)}`)
    console.log(
      `promoted after ${result.promotedMs} ms, the last connection ended after ${result.endedMs} ms`,
    )
    console.log(
      `worker: ${result.workerKbPerConnection} kB a connection, ${result.workerCpuMsPer1000} ms of processor time per 1,000 in the drain`,
    )
    const { before, held, peak } = result.masterMb
    console.log(
      `master: ${before.toFixed(1)} MB before, ${held.toFixed(1)} MB with them, ${peak.toFixed(1)} MB at most`,
    )
    console.log(drained.msg)
  }
  await child.stop()
  return lost === 0 ? 0 : 1
})
