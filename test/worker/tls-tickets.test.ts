import { readFileSync } from 'node:fs'
import https from 'node:https'
import tls from 'node:tls'
import t from 'tap'
import type { FromWorker } from '../../src/protocol.ts'
import { shareTlsTickets } from '../../src/worker/tls-tickets.ts'
import { fixture } from '../helpers/usr2.ts'

const KEY = 'tcp:127.0.0.1:1'
const pem = (name: string): Buffer => readFileSync(fixture(`tls/${name}.pem`))
const made = { cert: pem('cert'), key: pem('key') }

const sent: FromWorker[] = []
const tickets = shareTlsTickets({ send: (message) => void sent.push(message) })

/** The fingerprint with which keys were asked for, or null. */
function share(server: tls.Server): string | null {
  sent.length = 0
  tickets.share(server, KEY)
  const [asked] = sent
  return asked?.t === 'ticket-keys-asked' ? asked.fingerprint : null
}
const give = (fingerprint: string, byte: string): void =>
  tickets.take({ t: 'ticket-keys', key: KEY, fingerprint, keys: keysOf(byte).toString('base64') })
const keysOf = (byte: string): Buffer => Buffer.alloc(48, byte)

t.test('the same of everything has the same fingerprint, any other one has another', async (t) => {
  const fingerprint = (
    options: https.ServerOptions,
    change = (_: https.Server): void => {},
  ): string | null => {
    const server = https.createServer({ ...made, ...options })
    change(server)
    return share(server)
  }
  const plain = fingerprint({})
  t.match(plain, /^[0-9a-f]{64}$/)
  t.equal(fingerprint({}), plain)
  t.equal(share(tls.createServer(made)), plain, 'whatever it speaks')
  t.equal(fingerprint({ requestCert: true }), null)
  t.equal(fingerprint({ ticketKeys: keysOf('x') }), null)
  const others = {
    cert: fingerprint({ cert: pem('other-cert'), key: pem('other-key') }),
    chain: fingerprint({ cert: `${pem('cert')}${pem('other-cert')}` }),
    list: fingerprint({ cert: [pem('cert')] }),
    ca: fingerprint({ ca: pem('cert') }),
    otherCa: fingerprint({ ca: [pem('cert'), pem('other-cert')] }),
    minVersion: fingerprint({ minVersion: 'TLSv1.3' }),
    maxVersion: fingerprint({ maxVersion: 'TLSv1.2' }),
    ciphers: fingerprint({ ciphers: 'HIGH' }),
    order: fingerprint({ honorCipherOrder: false }),
    sigalgs: fingerprint({ sigalgs: 'ecdsa_secp256r1_sha256' }),
    curve: fingerprint({ ecdhCurve: 'P-256' }),
    sessionTimeout: fingerprint({ sessionTimeout: 10 }),
    id: fingerprint({ sessionIdContext: 'mine' }),
    context: fingerprint({}, (server) => server.addContext('a.test', made)),
    otherContext: fingerprint({}, (server) =>
      server.addContext('a.test', { cert: pem('other-cert'), key: pem('other-key') }),
    ),
    otherName: fingerprint({}, (server) => server.addContext('b.test', made)),
  }
  const all = [plain, ...Object.values(others)]
  t.notOk(all.includes(null))
  t.equal(new Set(all).size, all.length, 'all differ')
})

t.test('keys are taken, and new ones at a rotation, until the app sets its own', async (t) => {
  const server = https.createServer(made)
  const fingerprint = share(server) ?? ''
  give('0'.repeat(64), 'x')
  t.notOk(server.getTicketKeys().equals(keysOf('x')), 'not those of another fingerprint')
  for (const byte of ['a', 'b']) {
    give(fingerprint, byte)
    t.same(server.getTicketKeys(), keysOf(byte))
  }
  server.setTicketKeys(keysOf('z'))
  give(fingerprint, 'c')
  t.same(server.getTicketKeys(), keysOf('z'))
})

t.test('not taken once client certificates are asked for', async (t) => {
  const server = https.createServer(made)
  const fingerprint = share(server) ?? ''
  const before = server.getTicketKeys()
  Object.assign(server, { requestCert: true })
  give(fingerprint, 'a')
  t.same(server.getTicketKeys(), before)
})

t.test('a server that is not TLS is left alone', async (t) => {
  const { createServer } = await import('node:http')
  sent.length = 0
  tickets.share(createServer(), KEY)
  t.same(sent, [])
})
