/** socket.io, unmodified: its clients see a close frame with 1001, and come back to the next generation. */
import { io } from 'socket.io-client'
import t from 'tap'
import { freePort } from '../helpers/tmp.ts'
import { startUsr2 } from '../helpers/usr2.ts'
import { deadline, until } from '../helpers/wait.ts'

const WAIT_MS = 20_000

t.test('websocket transport: 1001, and the client reconnects by itself', async (t) => {
  const port = await freePort(t)
  const flags = ['--drain-timeout', '2s']
  const usr2 = startUsr2(t, { fixture: 'guests/socket.io.mjs', flags, env: { PORT: String(port) } })
  await usr2.ready()
  const ends: unknown[] = []
  const errors: string[] = []
  const sockets = Array.from({ length: 5 }, () => {
    const socket = io(`http://127.0.0.1:${port}`, {
      transports: ['websocket'],
      forceNew: true,
      reconnectionDelay: 50,
    })
    t.teardown(() => socket.disconnect())
    socket.on('connect_error', ({ message }) => errors.push(message))
    socket.on('disconnect', (reason, details) => {
      // Of the WebSocket's own close event.
      const context = (details as { readonly context?: { readonly code?: number } } | undefined)?.context
      ends.push([reason, context?.code])
    })
    return socket
  })
  const generations = (): Promise<unknown[]> =>
    Promise.all(sockets.map((socket) => deadline(socket.emitWithAck('echo'), WAIT_MS, 'an answer')))
  t.same(new Set(await generations()), new Set(['1']))
  const from = usr2.process.lines.length
  usr2.signal('SIGUSR2')
  await usr2.event('promoted', { from, timeoutMs: WAIT_MS })
  await until(() => ends.length === sockets.length, { timeoutMs: WAIT_MS, what: 'every socket to be closed' })
  t.same(new Set(await generations()), new Set(['2']), 'back, all at the next generation')
  t.same(
    ends,
    sockets.map(() => ['transport close', 1001]),
  )
  t.same(errors, [], 'and no attempt to connect failed')
  const { ledger } = await usr2.event('drained', { timeoutMs: WAIT_MS })
  t.match(ledger, { connections: { websocket: 5, cut: 0 } })
  for (const socket of sockets) socket.disconnect()
  await usr2.stop()
})

interface TransportError {
  readonly message: string
  /** The request that failed. */
  readonly context?: { readonly status: number; readonly responseText: string }
}

t.test(
  'long polling: the session is gone with its process, and the client begins another by itself',
  async (t) => {
    const port = await freePort(t)
    // One worker: the requests of a session must reach one process. The drain is longer than the ping interval, as the
    // defaults are (30 s, 25 s): so every open poll is answered before the deadline, by a ping if by nothing else.
    const usr2 = startUsr2(t, {
      fixture: 'guests/socket.io.mjs',
      flags: ['--drain-timeout', '10s'],
      env: { PORT: String(port), PING_MS: '500' },
    })
    await usr2.ready()
    const ends: unknown[] = []
    const errors: unknown[] = []
    const told = ({ message, context }: TransportError): unknown => [
      context?.status,
      context?.responseText.includes('Session ID unknown') ? 'Session ID unknown' : message,
    ]
    const sockets = Array.from({ length: 5 }, () => {
      const socket = io(`http://127.0.0.1:${port}`, {
        transports: ['polling'],
        forceNew: true,
        reconnectionDelay: 50,
      })
      t.teardown(() => socket.disconnect())
      socket.on('connect_error', (error) => errors.push(told(error as TransportError)))
      socket.on('disconnect', (reason, details) => {
        if (reason !== 'io client disconnect') ends.push([reason, told(details as unknown as TransportError)])
      })
      return socket
    })
    const generations = (): Promise<unknown[]> =>
      Promise.all(sockets.map((socket) => deadline(socket.emitWithAck('echo'), WAIT_MS, 'an answer')))
    t.same(new Set(await generations()), new Set(['1']))
    const from = usr2.process.lines.length
    usr2.signal('SIGUSR2')
    await usr2.event('promoted', { from, timeoutMs: WAIT_MS })
    const { ledger } = await usr2.event('drained', { from, timeoutMs: WAIT_MS })
    t.match(ledger, { connections: { cut: 0 }, requests: { cut: 0 } }, 'no poll was cut')
    await until(() => ends.length === sockets.length, { timeoutMs: WAIT_MS, what: 'every session to end' })
    t.same(new Set(await generations()), new Set(['2']), 'back, all at the next generation')
    t.same(
      ends,
      sockets.map(() => ['transport error', [400, 'Session ID unknown']]),
      'each was told so, once, and saw no other error',
    )
    t.same(errors, [], 'and no attempt to connect failed')
    for (const socket of sockets) socket.disconnect()
    await usr2.stop()
  },
)
