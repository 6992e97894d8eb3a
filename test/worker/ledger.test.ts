/** The ledger knows which connections are open, in whatever order they end. */
import { once } from 'node:events'
import net, { type AddressInfo, type Socket } from 'node:net'
import t from 'tap'
import { Ledger } from '../../src/worker/ledger.ts'

t.test('open connections: those that came and have not gone', async (t) => {
  const ledger = new Ledger()
  const accepted: Socket[] = []
  const server = net.createServer((socket) => {
    socket.resume()
    accepted.push(socket)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  t.teardown(() => server.close())

  const connect = async (): Promise<Socket> => {
    const client = net.connect(port, '127.0.0.1')
    await Promise.all([once(client, 'connect'), once(server, 'connection')])
    t.teardown(() => client.destroy())
    return client
  }
  const open = (): Socket[] => ledger.open.list().map(({ socket }) => socket)
  const sameAs = (expected: readonly Socket[], what: string): void => {
    t.equal(ledger.open.size, expected.length, what)
    t.equal(new Set(open()).size, expected.length, `${what}: each once`)
    t.ok(
      expected.every((socket) => open().includes(socket)),
      `${what}: the right ones`,
    )
    t.equal(ledger.counts().open, expected.length)
  }

  for (let count = 0; count < 6; count++) await connect()
  sameAs(accepted, 'six came')
  // The last, the first, one in the middle, then all but one.
  let left = [...accepted]
  for (const gone of [accepted[5], accepted[0], accepted[2], accepted[1], accepted[4]]) {
    if (!gone) throw new Error('six were accepted')
    gone.destroy()
    await once(gone, 'close')
    left = left.filter((socket) => socket !== gone)
    sameAs(left, `${left.length} are left`)
  }
  await connect()
  const [newest] = accepted.slice(-1)
  if (newest) sameAs([...left, newest], 'one more came')
  for (const socket of open()) {
    socket.destroy()
    await once(socket, 'close')
  }
  sameAs([], 'all have gone')
  t.equal(ledger.counts().accepted, 7)
})
