import dgram from 'node:dgram'
import { once } from 'node:events'
import fs from 'node:fs'
import net from 'node:net'
import path from 'node:path'
import t from 'tap'
import { adopt, bind } from '../src/index.ts'
import { argvOf, ask, LOOPBACK, shortDir, startCommand } from './helpers.ts'

const LAUNCH = 'LISTEN_PID=$$; export LISTEN_PID; exec "$@"'

function launch(
  t: import('tap').Test,
  env: string[],
  args: string[],
  fds: readonly (number | net.Socket)[],
): ReturnType<typeof startCommand> {
  const command = [...env, 'sh', '-c', LAUNCH, 'sh', process.execPath, ...argvOf('activated', ...args)]
  return startCommand(t, 'env', command, ['pipe', 'pipe', 'pipe', ...fds])
}

t.test('LISTEN_FDS', async (t) => {
  using tcp = bind(LOOPBACK)
  using tcp2 = bind(LOOPBACK)
  const name = path.join(shortDir(t), 'a.sock')
  using unix = bind({ kind: 'unix', path: name })
  using udp = bind({ kind: 'udp', host: '127.0.0.1', port: 0 })
  const file = fs.openSync('/dev/null', 'r')
  t.teardown(() => fs.closeSync(file))

  const env = ['LISTEN_FDS=5', 'LISTEN_FDNAMES=web:admin:notify:web:dns']
  const { child, fact } = launch(t, env, ['notify'], [tcp.fd, unix.fd, file, tcp2.fd, udp.fd])
  const { port, address } = tcp.bound!
  t.same(await fact('names'), {
    elsewhere: 0,
    names: [
      [
        'web',
        [
          { asked: { kind: 'tcp', host: address, port }, bound: tcp.bound, fd: 3 },
          { asked: { kind: 'tcp', host: address, port: tcp2.bound!.port }, bound: tcp2.bound, fd: 6 },
        ],
      ],
      ['admin', [{ asked: { kind: 'unix', path: name }, bound: null, fd: 4 }]],
      ['dns', [{ asked: { kind: 'udp', host: address, port: udp.bound!.port }, bound: udp.bound, fd: 7 }]],
    ],
  })
  await fact('opened')
  t.match(await ask(port), /^pid \d+$/, 'an adopted socket is handed on like a bound one')
  child.stdin!.end()

  const wrong = launch(t, ['LISTEN_FDS=2', 'LISTEN_FDNAMES=web:log'], [], [tcp.fd, file])
  t.match(await wrong.fact('error'), { error: /file descriptor 4 \(log\), which is a character device/ })
  const few = launch(t, ['LISTEN_FDS=2', 'LISTEN_FDNAMES=web'], [], [tcp.fd, file])
  t.match(await few.fact('error'), { error: /LISTEN_FDNAMES has 1 names for LISTEN_FDS=2/ })
  const junk = launch(t, ['LISTEN_FDS=2x'], [], [tcp.fd])
  t.match(await junk.fact('error'), { error: /LISTEN_FDS is not a number/ })

  const server = net.createServer((socket) => socket.resume()).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const client = net.connect((server.address() as net.AddressInfo).port, '127.0.0.1')
  await once(client, 'connect')
  const connected = launch(t, ['LISTEN_FDS=1'], [], [client])
  t.match(await connected.fact('error'), { error: /descriptor 3 .*it is a connected TCP socket/ })
  client.destroy()
  server.close()
})

t.test('adopt names what it cannot take', async (t) => {
  const refuses = (fd: number, what: RegExp, expect?: 'tcp' | 'unix' | 'udp'): void =>
    void t.throws(() => adopt(fd, expect), {
      name: 'BindError',
      syscall: 'open',
      address: null,
      message: what,
    })

  refuses(9999, /Cannot adopt file descriptor 9999 as a TCP, unix or UDP socket to hold: it is not open\./)
  const dir = shortDir(t)
  const file = fs.openSync(path.join(dir, 'file'), 'w')
  refuses(file, /a regular file/)
  fs.closeSync(file)
  const folder = fs.openSync(dir, 'r')
  refuses(folder, /a directory/)
  fs.closeSync(folder)

  const udp = dgram.createSocket('udp4').bind(0, '127.0.0.1')
  await once(udp, 'listening')
  const udpFd = fs
    .readdirSync('/proc/self/fd')
    .map(Number)
    .find((fd) => isUdp(fd, udp.address().port))
  if (udpFd !== undefined) refuses(udpFd, /as a TCP socket to hold: it is a UDP socket/, 'tcp')
  else t.fail('no descriptor of the UDP socket')
  udp.close()

  using unix = bind({ kind: 'unix', path: path.join(dir, 'a.sock') })
  refuses(unix.fd, /as a TCP socket to hold: it is a unix socket/, 'tcp')
  refuses(unix.fd, /as a UDP socket to hold: it is a unix socket/, 'udp')
})

function isUdp(fd: number, port: number): boolean {
  try {
    const { ino } = fs.fstatSync(fd)
    const hex = port.toString(16).toUpperCase().padStart(4, '0')
    const line = fs
      .readFileSync('/proc/self/net/udp', 'utf8')
      .split('\n')
      .find((line) => line.includes(`:${hex} `))
    return line?.trim().split(/\s+/)[9] === String(ino)
  } catch {
    return false
  }
}
