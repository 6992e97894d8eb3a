/**
 * The clients that are not of src/drill, in a process of their own, until stdin ends; then one line of JSON with what
 * each kind counted.
 *
 *     node --import tsx scripts/bench/clients/main.ts '{"http":8000,"tcp":8001,"udp":8002}'
 */
import { sendDatagrams } from './datagrams.ts'
import { echo } from './echo.ts'
import { takeEvents } from './events.ts'
import { Kind } from './kind.ts'

const EVENT_STREAMS = 10
const TCP_CONNECTIONS = 4
const UDP_SOCKETS = 2

const ports = JSON.parse(process.argv[2] ?? '') as Record<'http' | 'tcp' | 'udp', number>
const stop = new AbortController()
process.stdin.on('end', () => stop.abort()).resume()

const streams = new Kind('event streams')
const events = new Kind('events')
const tcp = new Kind('raw TCP')
const udp = new Kind('UDP')
const times = <T>(count: number, of: () => T): T[] => Array.from({ length: count }, of)
await Promise.all([
  ...times(EVENT_STREAMS, () => takeEvents(ports.http, { streams, events }, stop.signal)),
  ...times(TCP_CONNECTIONS, () => echo(ports.tcp, tcp, stop.signal)),
  ...times(UDP_SOCKETS, () => sendDatagrams(ports.udp, udp, stop.signal)),
])
const kinds = [streams, events, tcp, udp]
console.log(JSON.stringify(Object.fromEntries(kinds.map((kind) => [kind.name, kind.count()]))))
process.exit()
