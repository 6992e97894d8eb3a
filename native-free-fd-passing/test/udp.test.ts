import dgram from 'node:dgram'
import { once } from 'node:events'
import fs from 'node:fs'
import net from 'node:net'
import os from 'node:os'
import t from 'tap'
import { bind, bindFrom, BindError, Facade, support, UdpFacade } from '../src/index.ts'
import { SOON, start, within } from './helpers.ts'

const LOOPBACK = { kind: 'udp', host: '127.0.0.1', port: 0 } as const
const hasIPv6 = Object.values(os.networkInterfaces())
  .flat()
  .some((one) => one?.address === '::1')

class Client {
  readonly socket: dgram.Socket
  readonly got: string[] = []
  #wake = (): void => {}

  private constructor(socket: dgram.Socket) {
    this.socket = socket
    socket.on('message', (data, from) => {
      this.got.push(`${data} from ${from.port}`)
      this.#wake()
    })
  }

  static async open(t: import('tap').Test, host = '127.0.0.1'): Promise<Client> {
    const socket = dgram.createSocket(net.isIPv6(host) ? 'udp6' : 'udp4').bind(0, host)
    await once(socket, 'listening')
    t.teardown(() => socket.close())
    return new Client(socket)
  }

  get port(): number {
    return this.socket.address().port
  }

  /** The next one that came. */
  async next(): Promise<string> {
    const come = async (): Promise<string> => {
      for (;;) {
        const text = this.got.shift()
        if (text !== undefined) return text
        await new Promise<void>((resolve) => (this.#wake = resolve))
      }
    }
    return within(come(), 'a datagram')
  }
}

t.test('this Node can hold UDP sockets', (t) => {
  t.same(support('udp'), { hold: true })
  t.end()
})

for (const [type, host] of [
  ['udp4', '127.0.0.1'],
  ['udp6', '::1'],
] as const) {
  t.test(
    `one ${type} socket, two children, and nobody for a while`,
    { skip: host === '::1' && !hasIPv6 },
    async (t) => {
      const held = bind({ ...LOOPBACK, host })
      t.teardown(() => held.close())
      t.match(held.bound, { address: host, family: type === 'udp4' ? 'IPv4' : 'IPv6' })
      t.ok(fs.fstatSync(held.fd).isSocket())
      const { port } = held.bound!
      const client = await Client.open(t, host)
      const send = (text: string): void => client.socket.send(text, port, host)

      send('early')
      const [a, b] = [start(t, 'udp', [type]), start(t, 'udp', [type])]
      await Promise.all([a.fact('ready'), b.fact('ready')])
      await held.sendTo(a.child, {}, SOON)
      const facts = { opened: 0, address: held.bound, bound: held.bound, reading: true, listen: -95 }
      t.match(await a.fact('opened'), facts)
      t.equal(await client.next(), `early ${a.child.pid} from ${port}`, 'it was in the queue')

      a.command('withdraw')
      t.same(await a.fact('withdrawn'), { withdrawn: true, reading: false, sent: false })
      for (let n = 0; n < 20; n++) send(`queued ${n}`)
      a.command(`send ${client.port}`)
      t.equal(await client.next(), `sent ${a.child.pid} from ${port}`, 'it sends, but reads no more')
      a.command('sent')
      t.same(await a.fact('sent'), { sent: true })

      await held.sendTo(b.child, { keep: true }, SOON)
      t.match(await b.fact('opened'), { opened: 'kept', address: held.bound, reading: false })
      b.command('open')
      t.match(await b.fact('opened'), { opened: 0, reading: true })
      for (let n = 0; n < 20; n++) t.equal(await client.next(), `queued ${n} ${b.child.pid} from ${port}`)

      b.command('close')
      t.same(await b.fact('closed'), { closed: true })
      t.same(await b.fact('serverClosed'), { serverClosed: true, after: -125 })
      send('later')
      a.command('open')
      await a.fact('opened')
      t.equal(await client.next(), `later ${a.child.pid} from ${port}`, 'and is read again')
    },
  )
}

t.test('connect() of one child is its own business', async (t) => {
  using held = bind(LOOPBACK)
  const { port } = held.bound!
  const [peer, stranger] = await Promise.all([Client.open(t), Client.open(t)])
  const [a, b] = [start(t, 'udp', ['udp4']), start(t, 'udp', ['udp4'])]
  await Promise.all([a.fact('ready'), b.fact('ready')])
  await held.sendTo(a.child, {}, SOON)
  await a.fact('opened')
  a.command(`connect ${peer.port}`)
  await a.fact('connected')
  a.command('write')
  t.equal(await peer.next(), `written ${a.child.pid} from ${port}`)
  stranger.socket.send('dropped', port, '127.0.0.1')
  peer.socket.send('taken', port, '127.0.0.1')
  t.equal(await peer.next(), `taken ${a.child.pid} from ${port}`)
  t.same(await a.fact('got'), { got: 'taken' })

  a.command('withdraw')
  await a.fact('withdrawn')
  await held.sendTo(b.child, {}, SOON)
  await b.fact('opened')
  stranger.socket.send('heard', port, '127.0.0.1')
  t.equal(await stranger.next(), `heard ${b.child.pid} from ${port}`, 'another child hears everybody')
})

t.test('an address in use', async (t) => {
  using held = bind(LOOPBACK)
  const address = { ...LOOPBACK, port: held.bound!.port }
  t.throws(() => bind(address), { name: 'BindError', code: 'EADDRINUSE', syscall: 'bind', address })
  t.throws(() => bind({ ...LOOPBACK, host: 'localhost' }), TypeError)
  t.throws(() => bind({ ...LOOPBACK, host: '192.0.2.1' }), BindError)
  using first = bind({ ...LOOPBACK, reuseAddr: true })
  using second = bind({ ...LOOPBACK, port: first.bound!.port, reuseAddr: true })
  t.same(second.bound, first.bound, 'which all agree to share')
})

t.test(
  'bindFrom: an errno is worded by Node, null lets Node bind, a throw of bind comes through',
  async (t) => {
    const failing = dgram.createSocket('udp4')
    bindFrom(
      failing,
      () => failing.bind(4242, '127.0.0.1'),
      ({ ip }, done) => done(ip === '127.0.0.1' ? -98 : -22),
    )
    const [error] = (await once(failing, 'error')) as [Error]
    t.match(error, {
      message: 'bind EADDRINUSE 127.0.0.1:4242',
      code: 'EADDRINUSE',
      address: '127.0.0.1',
      port: 4242,
    })

    const wanted: object[] = []
    const again = (): void =>
      bindFrom(
        failing,
        () => failing.bind(0),
        (what, done) => {
          wanted.push(what)
          done(null)
        },
      )
    again()
    t.throws(again, { code: 'ERR_SOCKET_ALREADY_BOUND' })
    await once(failing, 'listening')
    t.ok(failing.address().port > 0)
    t.same(wanted, [{ ip: '0.0.0.0', ipv6Only: false, reuseAddr: false, reusePort: false }])
    failing.close()
    t.throws(again, { code: 'ERR_SOCKET_DGRAM_NOT_RUNNING' })
  },
)

t.test('what is no UDP socket of this package is refused', async (t) => {
  t.throws(() => new UdpFacade({} as never), TypeError)
  t.throws(() => new Facade({ kind: 'tcp', bound: null }).open({ kind: 'udp' } as never), TypeError)
})
