import fs from 'node:fs'
import net from 'node:net'
import path from 'node:path'
import t from 'tap'
import { bind, BindError, errnoInfo, support, type Address } from '../src/index.ts'
import { LOOPBACK, shortDir, start } from './helpers.ts'

function bindFails(address: Address): BindError {
  try {
    bind(address).close()
  } catch (error) {
    if (error instanceof BindError) return error
    throw error
  }
  throw new Error(`${JSON.stringify(address)} was bound`)
}

async function listening(host: string): Promise<{ server: net.Server; port: number }> {
  const server = net.createServer().listen(0, host)
  await new Promise((resolve) => server.once('listening', resolve))
  return { server, port: (server.address() as net.AddressInfo).port }
}

const hasIPv6 =
  typeof (() => {
    try {
      using held = bind({ kind: 'tcp', host: '::1', port: 0 })
      return held.fd
    } catch {
      return undefined
    }
  })() === 'number'

t.test('this Node can hold sockets', (t) => {
  t.same(support(), { hold: true })
  t.end()
})

t.test('a bound socket knows its address and its descriptor', (t) => {
  const held = bind(LOOPBACK)
  t.match(held.bound, { address: '127.0.0.1', family: 'IPv4' })
  t.ok(held.bound && held.bound.port > 0, 'port 0 became a real one')
  t.same(held.asked, LOOPBACK)
  t.ok(fs.fstatSync(held.fd).isSocket())
  t.notOk(held.closed)
  held.close()
  held.close()
  t.ok(held.closed)
  t.equal(held.fd, -1)
  t.end()
})

t.test('an address in use is seen at bind', async (t) => {
  const { server, port } = await listening('127.0.0.1')
  t.teardown(() => server.close())
  const address: Address = { kind: 'tcp', host: '127.0.0.1', port }
  const error = bindFails(address)
  t.match(error, { name: 'BindError', code: 'EADDRINUSE', errno: -98, syscall: 'bind', address })
  t.equal(
    error.message,
    `Cannot bind 127.0.0.1:${port}: address already in use (EADDRINUSE). ` +
      'Another socket holds it: stop its owner, or choose another port.',
  )
})

t.test(
  'the fallback to IPv4 is not for an address in use',
  { skip: !hasIPv6 && 'no IPv6 here' },
  async (t) => {
    const { server, port } = await listening('::')
    t.teardown(() => server.close())
    t.equal(bindFails({ kind: 'tcp', host: '::', port, anyFamily: true }).code, 'EADDRINUSE')
  },
)

t.test('IPv6', { skip: !hasIPv6 && 'no IPv6 here' }, (t) => {
  using any = bind({ kind: 'tcp', host: '::', port: 0, anyFamily: true })
  t.match(any.bound, { address: '::', family: 'IPv6' })
  using six = bind({ kind: 'tcp', host: '::', port: 0, ipv6Only: true })
  const port = six.bound?.port ?? 0
  using four = bind({ kind: 'tcp', host: '127.0.0.1', port })
  t.equal(four.bound?.port, port, 'ipv6Only leaves IPv4 to others')
  t.equal(bindFails({ kind: 'tcp', host: '2001:db8::1', port: 0 }).code, 'EADDRNOTAVAIL')
  t.end()
})

t.test('other errors', (t) => {
  t.match(bindFails({ kind: 'tcp', host: '192.0.2.1', port: 0 }), {
    code: 'EADDRNOTAVAIL',
    message: /No interface/,
  })
  t.throws(() => bind({ kind: 'tcp', host: 'localhost', port: 0 }), /not an IP address/)
  t.throws(() => bind({ kind: 'tcp', host: '127.0.0.1', port: 65536 }), /Cannot bind port 65536/)
  t.throws(() => bind({ kind: 'tcp', host: '127.0.0.1', port: 1.5 }), TypeError)
  t.throws(() => bind({ kind: 'unix', path: '' }), /empty/)
  t.same(errnoInfo(-98), { code: 'EADDRINUSE', message: 'address already in use' })
  t.same(errnoInfo(-9999), { code: 'UNKNOWN', message: 'unknown system error -9999' })
  t.end()
})

t.test('unix paths', (t) => {
  const dir = shortDir(t)
  const name = path.join(dir, 'a.sock')
  const held = bind({ kind: 'unix', path: name, readableAll: true, writableAll: true })
  t.equal(held.bound, null)
  t.equal(fs.statSync(name).mode & 0o666, 0o666)
  t.match(bindFails({ kind: 'unix', path: name }), { code: 'EADDRINUSE', message: /The file exists/ })
  held.close()
  t.notOk(fs.existsSync(name), 'the binder unlinks its path')
  t.match(bindFails({ kind: 'unix', path: path.join(dir, 'missing/a.sock') }), {
    code: 'EACCES',
    message: /directory/,
  })
  const long = path.join(dir, 'x'.repeat(107 - dir.length))
  t.match(bindFails({ kind: 'unix', path: long }), { code: 'ENAMETOOLONG', message: /107 bytes/ })
  t.same(fs.readdirSync(dir), [])
  t.end()
})

t.test('a held socket does not keep its process alive', async (t) => {
  const { fact, ended } = start(t, 'holds')
  const { port } = await fact('port')
  t.type(port, 'number')
  t.same(await ended, { code: 0, signal: null })
})
