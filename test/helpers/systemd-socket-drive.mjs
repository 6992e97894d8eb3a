/**
 * Runs inside systemd-sandbox: an app behind a `.socket` unit with TCP4, TCP6, a unix path and UDP. The first client, a
 * reload, a killed master and a restart, under traffic on every socket; and what cannot be served.
 */
import assert from 'node:assert/strict'
import dgram from 'node:dgram'
import { once } from 'node:events'
import * as fs from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { App, end, get, installUsr2, row, run, succeeds, systemctl, unit, until } from './systemd-box.mjs'

const PATH = '/run/box.sock'
const PLACES = [{ host: '127.0.0.1', port: 8080 }, { host: '::1', port: 8080 }, { socketPath: PATH }]
const UDP = `
const udp = require('node:dgram').createSocket('udp4')
udp.on('message', (data, from) => udp.send(data, from.port, from.address))
udp.bind(8053, '127.0.0.1')
`

await installUsr2()
const box = new App('box', { places: PLACES })
box.release('1', { prologue: UDP })
unit(
  'usr2@box.socket',
  `[Socket]
ListenStream=127.0.0.1:8080
ListenStream=[::1]:8080
ListenStream=${PATH}
ListenDatagram=127.0.0.1:8053
FileDescriptorName=web
`,
)
// Not the service's only socket, and of no use to the app.
unit('spare.socket', `[Socket]\nListenStream=127.0.0.1:9999\nService=${box.unit}\n`)
await systemctl('daemon-reload')
const SOCKETS = ['usr2@box.socket', 'spare.socket']

async function echo(text) {
  const client = dgram.createSocket('udp4')
  client.send(text, 8053, '127.0.0.1')
  const [data] = await Promise.race([once(client, 'message'), sleep(10_000, ['nothing'], { ref: false })])
  client.close()
  return String(data)
}

/** What listen(2) was told, as the kernel keeps it. */
async function backlogs() {
  const { text } = await run('ss', '-Hltn', 'sport = :8080')
  return text.split('\n').map((line) => Number(line.trim().split(/\s+/)[2]))
}

/** Until every place is served by another generation, or another master, than `before`. */
const servedAnew = (before) =>
  Promise.all(
    PLACES.map((where) =>
      box.answers(
        `by another than ${JSON.stringify(before)}`,
        ({ master, generation }) =>
          master !== undefined && (master !== before.master || generation !== before.generation),
        where,
      ),
    ),
  )

const traffic = () => box.traffic({ slow: 4 })
let before

await row('the first clients start the service, and wait for it', async (say) => {
  assert.equal(
    (await run('systemd-analyze', 'verify', 'usr2@box.socket')).text,
    '',
    'nothing to say against it',
  )
  await succeeds(systemctl('start', ...SOCKETS))
  before = await backlogs()
  say(`systemd listens with ${before.join(', ')}`)
  assert.ok(before.every((backlog) => backlog > 511))
  assert.equal(await box.property('ActiveState'), 'inactive')
  const first = await Promise.all(PLACES.map((where) => get(where)))
  assert.deepEqual(
    first.map(({ generation }) => generation),
    [1, 1, 1],
    'on TCP4, TCP6 and a path',
  )
  assert.equal(await echo('hello'), 'hello', 'and UDP')
  assert.deepEqual(first[0].seen, [], 'the app sees nothing that systemd says to the master')
  assert.deepEqual(await backlogs(), before, 'and the queues are as long as before')
  const isUnclaimed = ({ event }) => event === 'unclaimed'
  const unclaimed = await until('the spare socket to be named', async () =>
    (await box.log()).find(isUnclaimed),
  )
  assert.match(unclaimed.msg, /tcp:127\.0\.0\.1:9999, which the service manager passed as "spare\.socket"/)
})

await row('a reload', async (say) => {
  const clients = traffic()
  await clients.flows()
  const first = await box.get('/')
  await succeeds(box.systemctl('reload'))
  await servedAnew(first)
  await clients.lostNone(say)
  assert.deepEqual(await backlogs(), before, 'the queues are as long as before')
})

await row(
  'SIGKILL to the master: lost is what was in flight in the workers when systemd killed them',
  async (say) => {
    const first = await box.get('/')
    const clients = await box.losesWhatIsInFlight(say, (master) => process.kill(master, 'SIGKILL'))
    await servedAnew(first)
    assert.deepEqual(clients.refused, {}, '0 refused')
  },
)

await row('systemctl restart', async (say) => {
  const clients = traffic()
  await clients.flows()
  const first = await box.get('/')
  await succeeds(box.systemctl('restart'))
  await servedAnew(first)
  await clients.lostNone(say)
})

await row(
  'a stop: the sockets are still those of systemd, and the next client starts the service anew',
  async () => {
    await box.stopsClean()
    assert.ok(fs.existsSync(PATH), 'the path is not ours to remove')
    assert.equal((await get(PLACES[2])).generation, 1)
    await box.stopsClean(...SOCKETS)
  },
)

for (const [kind, line, why] of [
  ['unix datagram', 'ListenDatagram=/run/bad.sock', /\(oddity\), which is a unix datagram socket/],
  ['seqpacket', 'ListenSequentialPacket=/run/bad.sock', /\(oddity\), which is a unix seqpacket socket/],
  ['FIFO', 'ListenFIFO=/run/bad.fifo', /\(oddity\), which is a FIFO or pipe/],
  ['netlink', 'ListenNetlink=kobject-uevent', /oddity/],
]) {
  await row(`a ${kind} is refused by name`, async () => {
    const name = `bad-${kind.replace(' ', '-')}`
    const app = new App(name, { service: ['Restart=no'] })
    const socket = `usr2@${name}.socket`
    unit(socket, `[Socket]\n${line}\nFileDescriptorName=oddity\n`)
    await systemctl('daemon-reload')
    await succeeds(systemctl('start', socket))
    const { status } = await app.start()
    assert.deepEqual([status, await app.property('ExecMainStatus')], [1, '1'])
    const said = (await run('journalctl', '-u', app.unit, '-o', 'cat')).text.split('\n')
    assert.match(said.filter((text) => text.startsWith('usr2: ')).at(-1), why)
    await systemctl('stop', socket, app.unit)
  })
}
end()
