/** UDP: one socket, held by the master, that the generations read in turn (docs/udp.md). */
import dgram from 'node:dgram'
import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import type { Test } from 'tap'
import { start, type TestProcess } from '../helpers/spawn.ts'
import type { TestLike } from '../helpers/scope.ts'
import { freePort } from '../helpers/tmp.ts'
import { fixture, startUsr2, type Usr2, type Usr2Options } from '../helpers/usr2.ts'
import { deadline, until } from '../helpers/wait.ts'

const WAIT_MS = 15_000

/** A client that numbers what it sends, and keeps what comes back. */
class Client {
  readonly answers: { readonly text: string; readonly from: string }[] = []
  sent = 0
  readonly #socket: dgram.Socket
  readonly #to: { readonly host: string; readonly port: number }

  constructor(t: TestLike, host: string, port: number) {
    this.#to = { host, port }
    this.#socket = dgram.createSocket(host.includes(':') ? 'udp6' : 'udp4')
    this.#socket.on('message', (data, from) =>
      this.answers.push({ text: String(data), from: `${from.address} ${from.port}` }),
    )
    t.teardown(() => this.#socket.close())
  }

  send(text = String(this.sent++)): Promise<void> {
    const { port, host } = this.#to
    return new Promise((resolve, reject) =>
      this.#socket.send(text, port, host, (error) => (error ? reject(error) : resolve())),
    )
  }

  /** Every number sent was answered. */
  async allAnswered(logs: () => string): Promise<void> {
    const missing = (): string[] => {
      const got = new Set(this.answers.map(({ text }) => text.split(' ', 1)[0]))
      return Array.from({ length: this.sent }, (_, n) => String(n)).filter((n) => !got.has(n))
    }
    await until(() => missing().length === 0, {
      timeoutMs: WAIT_MS,
      what: `an answer to each of ${this.sent} datagrams`,
      logs: () => `missing: ${missing().slice(0, 50).join(' ')}\n${logs()}`,
    })
  }
}

async function startEcho(
  t: Test,
  { host = '127.0.0.1', env = {}, flags = [] }: { host?: string } & Pick<Usr2Options, 'env' | 'flags'> = {},
): Promise<{ usr2: Usr2; port: number; client: Client }> {
  const port = await freePort(t)
  const usr2 = startUsr2(t, {
    fixture: 'udp-echo.cjs',
    flags,
    env: { PORT: String(port), HOST: host, ...env },
  })
  await usr2.ready()
  return { usr2, port, client: new Client(t, host, port) }
}

/** What the kernel threw away because the receive buffer of the socket was full: the last column (proc_net_udp(5)). */
function dropsOf(port: number): number {
  const hex = port.toString(16).toUpperCase().padStart(4, '0')
  const rows = ['udp', 'udp6'].flatMap((name) => readFileSync(`/proc/net/${name}`, 'utf8').split('\n'))
  const row = rows.map((row) => row.trim().split(/\s+/)).find((columns) => columns[1]?.endsWith(`:${hex}`))
  if (!row) throw new Error(`nothing is bound to UDP port ${port}`)
  return Number(row.at(-1))
}

// ---- The contract with Node ------------------------------------------------------------------------------------------

const PORTS = 60
const hasIPv6 = readFileSync('/proc/net/if_inet6', 'utf8').includes('00000000000000000000000000000001')

interface Seen {
  readonly table: readonly string[]
  readonly clients: readonly string[]
}

async function linesOf(from: TestProcess, n: number, last: RegExp): Promise<string[]> {
  const pids = (): string[] => [...new Set(from.stdout.flatMap((line) => /^(\d+) /.exec(line)?.[1] ?? []))]
  const own = (): string[] => {
    const pid = pids()[n]
    return from.stdout.flatMap((line) => (line.startsWith(`${pid} `) ? [line.slice(`${pid} `.length)] : []))
  }
  await from.line(() => own().some((line) => last.test(line)), {
    timeoutMs: 30_000,
    what: `${last} of process ${n + 1}`,
  })
  return own()
}

/** The first answer, or the error that ICMP brings to a connected socket. */
async function ask(host: string, port: number): Promise<string> {
  const socket = dgram.createSocket(host.includes(':') ? 'udp6' : 'udp4')
  try {
    const message = once(socket, 'message') // rejects with the 'error'
    socket.connect(port, host, () => socket.send('hello'))
    const [data] = (await deadline(message, 5_000, `an answer from ${host}:${port}`)) as [Buffer]
    return String(data)
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error)
  } finally {
    socket.close()
  }
}

async function see(from: TestProcess, n: number): Promise<Seen> {
  const lines = await linesOf(from, n, /^table done$/)
  const clients: string[] = []
  for (const line of lines) {
    const [, port, name] = /^serves (\d+) (.*)/.exec(line) ?? []
    if (port === undefined) continue
    for (const host of ['127.0.0.1', ...(hasIPv6 ? ['::1'] : [])])
      clients.push(`${name}, client at ${host}: ${await ask(host, Number(port))}`)
  }
  return { table: lines, clients }
}

async function end(from: TestProcess, n: number, port: number): Promise<string[]> {
  const socket = dgram.createSocket('udp4')
  socket.send('end', port, '127.0.0.1', () => socket.close())
  const lines = await linesOf(from, n, /^exit \d+$/)
  return lines.slice(lines.indexOf('table done') + 1)
}

t.test('whatever an app does with bind, it sees what it sees under bare Node', async (t) => {
  const ports: number[] = []
  while (ports.length < PORTS) ports.push(await freePort(t))
  const stranger = dgram.createSocket('udp4').bind(await freePort(t))
  await once(stranger, 'listening')
  t.teardown(() => stranger.close())
  const env = { TABLE: JSON.stringify({ ports, taken: stranger.address().port, v6: hasIPv6 }) }
  const entry = fixture('udp-table.cjs')
  const [first = 0] = ports

  const node = start(t, process.execPath, { args: [entry], env, name: 'bare node' })
  const bare = await see(node, 0)
  t.ok(
    bare.clients.some((line) => line.includes('"context":"made"')),
    'clients are answered',
  )
  const bareEnd = await end(node, 0, first)
  t.equal((await node.ended()).code, 0)

  const usr2 = startUsr2(t, { entry, env, flags: ['--ready', 'message'] })
  await usr2.ready({ timeoutMs: 30_000 })
  const one = await see(usr2.process, 0)
  const reload = await usr2.reload()
  t.equal(reload.code, 0, reload.stderr)
  const later = await see(usr2.process, 1)
  t.same(one, bare, 'in a first generation')
  t.same(later, bare, 'in a later one, whose addresses are held already')
  t.match(usr2.logs(), `the address is in use by pid ${process.pid} (`, 'the log says whose port it is')
  t.same(await end(usr2.process, 1, first), bareEnd, 'and it ends as a bare app does')
  await usr2.stop()
})

const ENDINGS: Readonly<Record<string, string>> = {
  'unref’d at once': 'socket.bind(port).unref()',
  'unref’d later': 'socket.bind(port, () => socket.unref())',
  closed: 'socket.bind(port, () => socket.close())',
  'closed at once': 'socket.bind(port); socket.close()',
  'closed between': 'socket.bind(port); setImmediate(() => socket.close())',
  'an exception': 'socket.bind(port, () => { throw new Error("on purpose") })',
  'nobody handles the error': 'socket.bind(port, "192.0.2.1")',
}

t.test('an app ends when, and as, it does without us', async (t) => {
  const ends = await Promise.all(
    Object.entries(ENDINGS).map(async ([name, code]) => {
      const entry = 'app.cjs'
      const app = `
        const port = ${await freePort(t)}
        const socket = require('node:dgram').createSocket('udp4')
        process.on('exit', (status) => console.log('exit', status))
        ${code}`
      const usr2 = startUsr2(t, { entry, files: { [entry]: app }, flags: ['--ready', 'message'] })
      const bare = start(t, process.execPath, { args: [join(usr2.cwd, entry)], name: 'bare node' })
      const [inBare, inUsr2] = await Promise.all([bare.ended(20_000), usr2.process.ended(20_000)])
      return { name, bare, usr2, inBare, inUsr2 }
    }),
  )
  for (const { name, bare, usr2, inBare, inUsr2 } of ends) {
    t.same(usr2.process.stdout, bare.stdout, name)
    t.equal(inUsr2.code, 1, 'the first generation failed')
    t.match(usr2.process.stderr.join('\n'), `exited with status ${inBare.code}`)
  }
})

t.test('what is closed before the master has answered gives its place up', async (t) => {
  const entry = 'app.cjs'
  const app = `
    const { createSocket } = require('node:dgram')
    const bind = (done) => createSocket('udp4').bind(${await freePort(t)}, '127.0.0.1', done)
    const first = bind(() => console.log('too late'))
    setImmediate(() => {
      first.close()
      const retry = setInterval(() => {
        bind(() => console.log('bound')).on('error', () => console.log('in use'))
        clearInterval(retry)
      }, 200)
    })`
  const usr2 = startUsr2(t, { entry, files: { [entry]: app } })
  await usr2.process.line('bound')
  await usr2.ready()
  t.same(usr2.process.stdout, ['bound'])
  t.equal((await usr2.reload()).code, 0)
  await usr2.stop()
})

// ---- Nothing is lost -------------------------------------------------------------------------------------------------

for (const host of ['127.0.0.1', ...(hasIPv6 ? ['::1'] : [])]) {
  t.test(`a stream of datagrams to ${host} through 10 reloads: each is answered once`, async (t) => {
    const { usr2, port, client } = await startEcho(t, { host, flags: ['--workers', '2'] })
    let reloading = true
    const flow = (async () => {
      // At most 64 unanswered: far less than the receive buffer (212,992 bytes by default, some 250 datagrams), so that
      // what is missing was lost by us and not by the kernel.
      while (reloading) {
        for (let burst = 0; burst < 4; burst++) void client.send()
        await until(() => client.sent - client.answers.length < 64, {
          timeoutMs: WAIT_MS,
          what: 'the answers to catch up',
          logs: () => usr2.logs(),
        })
        await sleep(1)
      }
    })()
    for (let n = 0; n < 10; n++) t.equal((await usr2.reload()).code, 0)
    reloading = false
    await flow
    await client.allAnswered(() => usr2.logs())
    t.equal(client.answers.length, client.sent, `each of ${client.sent} once`)
    t.equal(dropsOf(port), 0, 'the kernel dropped none')
    t.same(
      [...new Set(client.answers.map(({ from }) => from))],
      [`${host} ${port}`],
      'all from the same address',
    )
    const generations = new Set(client.answers.map(({ text }) => text.split(' ')[1]))
    t.equal(generations.size, 11, 'every generation has answered some')
    await usr2.stop()
  })
}

t.test('what comes while no worker reads is answered by the successor', async (t) => {
  const { usr2, client } = await startEcho(t)
  const from = usr2.process.lines.length
  await client.send('die')
  await usr2.event('worker-died', { from })
  for (let n = 0; n < 50; n++) await client.send()
  await client.allAnswered(() => usr2.logs())
  t.equal(client.answers.length, 50)
  await usr2.stop()
})

t.test('answers that are still being made leave from the address that was asked', async (t) => {
  const { usr2, port, client } = await startEcho(t, { env: { DELAY_MS: '600', GOODBYE: '1' } })
  for (let n = 0; n < 5; n++) await client.send()
  // They are read before the drain order: the reload takes a boot.
  const reload = usr2.reload({ flags: ['--wait', 'drained'] })
  await client.allAnswered(() => usr2.logs())
  t.equal((await reload).code, 0)
  await until(() => client.answers.length > 5, { timeoutMs: WAIT_MS, what: 'the goodbye of generation 1' })
  t.same(
    client.answers.map(({ text }) => text),
    ['0 1 0', '1 1 0', '2 1 0', '3 1 0', '4 1 0', 'goodbye 1'],
    'its SIGTERM listener may send, too',
  )
  t.same([...new Set(client.answers.map((answer) => answer.from))], [`127.0.0.1 ${port}`])
  await client.send()
  await until(() => client.answers.length > 6, { timeoutMs: WAIT_MS, what: 'an answer of generation 2' })
  t.equal(client.answers.at(-1)?.text, '5 2 0')
  await usr2.stop()
})

t.test(
  'a candidate reads nothing before its gate opens, and a failed one leaves nothing behind',
  async (t) => {
    const port = await freePort(t)
    const entry = 'app.cjs'
    const app = (more: string): string => `
    const socket = require('node:dgram').createSocket('udp4')
    const { USR2_GENERATION } = process.env
    socket.on('message', (data, from) => socket.send(data + ' ' + USR2_GENERATION, from.port, from.address))
    socket.bind(${port}, '127.0.0.1', () => { ${more} })`
    const usr2 = startUsr2(t, {
      entry,
      files: { [entry]: app(`process.send('ready')`) },
      flags: ['--ready', 'message', '--start-timeout', '60s'],
    })
    await usr2.ready()
    const client = new Client(t, '127.0.0.1', port)
    writeFileSync(
      join(usr2.cwd, entry),
      app(`console.log('waits'); process.stdin.resume(); setInterval(() => {
    if (require('node:fs').existsSync('${join(usr2.cwd, 'go')}')) throw new Error('on purpose')
  }, 10)`),
    )
    const reload = usr2.reload()
    await usr2.process.line('waits')
    for (let n = 0; n < 20; n++) await client.send()
    await client.allAnswered(() => usr2.logs())
    writeFileSync(join(usr2.cwd, 'go'), '')
    t.equal((await reload).code, 1, 'rolled back')
    for (let n = 0; n < 20; n++) await client.send()
    await client.allAnswered(() => usr2.logs())
    t.same([...new Set(client.answers.map(({ text }) => text.split(' ')[1]))], ['1'])
    await usr2.stop()
  },
)

t.test('--drop of a UDP listener; status lists it; stop leaves nothing', async (t) => {
  const port = await freePort(t)
  const other = await freePort(t)
  const entry = 'app.cjs'
  const bind = (port: number): string =>
    `require('node:dgram').createSocket('udp4').bind(${port}, '127.0.0.1');\n`
  const usr2 = startUsr2(t, { entry, files: { [entry]: bind(port) + bind(other) } })
  await usr2.ready()
  const listeners = async (): Promise<object[]> => [...(await usr2.status()).listeners]
  await until(async () => (await listeners()).length === 2, { timeoutMs: WAIT_MS, what: 'two listeners' })
  writeFileSync(join(usr2.cwd, entry), bind(port))
  const refused = await usr2.reload({ flags: ['--timeout', '3s'] })
  t.equal(refused.code, 1, 'the release forgot a listener')
  const { code, stderr } = await usr2.reload({
    flags: ['--drop', `udp:127.0.0.1:${other}`, '--wait', 'drained'],
  })
  t.equal(code, 0, stderr)
  t.same(await listeners(), [{ key: `udp:127.0.0.1:${port}`, accepting: 1 }])
  t.throws(() => dropsOf(other), 'it is closed')
  await usr2.stop()
  t.throws(() => dropsOf(port), 'nothing is left')
})

t.test('a multicast group and a connected peer do not outlive their generation', async (t) => {
  const port = await freePort(t)
  const entry = 'app.cjs'
  const app = `
    const socket = require('node:dgram').createSocket('udp4')
    socket.bind(${port}, '127.0.0.1', () => {
      socket.addMembership('224.0.0.251', '127.0.0.1')
      socket.addSourceSpecificMembership('127.0.0.1', '232.1.1.1', '127.0.0.1')
      socket.connect(9, '127.0.0.1', () => socket.disconnect())
    })
    socket.on('connect', () => process.send('ready'))
    socket.on('message', (data, from) => socket.send(data, from.port, from.address))
    process.on('SIGTERM', () => {
      socket.dropMembership('224.0.0.251', '127.0.0.1')
      socket.dropSourceSpecificMembership('127.0.0.1', '232.1.1.1', '127.0.0.1')
      socket.close()
    })`
  const usr2 = startUsr2(t, {
    entry,
    files: { [entry]: app },
    flags: ['--ready', 'message', '--workers', '2'],
  })
  await usr2.ready()
  const client = new Client(t, '127.0.0.1', port)
  for (let n = 0; n < 2; n++) {
    const { code, stderr } = await usr2.reload({ flags: ['--wait', 'drained'] })
    t.equal(code, 0, stderr)
    await client.send()
    await client.allAnswered(() => usr2.logs())
  }
  // 224.0.0.251 as /proc has it, in the byte order of the machine.
  t.match(
    readFileSync('/proc/net/igmp', 'utf8'),
    /FB0000E0/,
    'the old generation left the group for itself only',
  )
  await usr2.stop()
})

t.test('a draining app may bind anew: it hears that it is bound, and takes nothing', async (t) => {
  const port = await freePort(t)
  const entry = 'app.cjs'
  const app = `
    const { createSocket } = require('node:dgram')
    const { onDrain } = globalThis[Symbol.for('usr2.guest.v1')]
    const { USR2_GENERATION } = process.env
    const bind = (done) => {
      const socket = createSocket('udp4').bind(${port}, '127.0.0.1', done)
      socket.on('message', (data, from) => socket.send(data + ' ' + USR2_GENERATION, from.port, from.address))
      return socket
    }
    const socket = bind()
    onDrain(() => setTimeout(() => socket.close(() => bind(() => console.log('bound again'))), 50))`
  const usr2 = startUsr2(t, { entry, files: { [entry]: app } })
  await usr2.ready()
  const client = new Client(t, '127.0.0.1', port)
  t.equal((await usr2.reload()).code, 0)
  await usr2.process.line('bound again')
  for (let n = 0; n < 20; n++) await client.send()
  await client.allAnswered(() => usr2.logs())
  t.same([...new Set(client.answers.map(({ text }) => text.split(' ')[1]))], ['2'])
  await usr2.stop()
})

const hasBindSync = 'bindSync' in dgram.Socket.prototype
t.test('bindSync is warned of', { skip: !hasBindSync && 'this Node has no bindSync' }, async (t) => {
  const entry = 'app.cjs'
  const port = await freePort(t)
  const app = `
    const { createSocket } = require('node:dgram')
    createSocket('udp4').bindSync({ address: '127.0.0.1' })
    console.log(createSocket('udp4').bindSync({ port: ${port}, address: '127.0.0.1' }).port)
    require('node:net').createServer().listen(${await freePort(t)})`
  const usr2 = startUsr2(t, { entry, files: { [entry]: app } })
  await usr2.ready()
  t.same(usr2.process.stdout, [String(port)])
  const { msg } = await usr2.event('worker-warning')
  t.match(msg, `the app binds UDP port ${port} by bindSync, which usr2 cannot share between generations`)
  t.equal(usr2.events().filter(({ event }) => event === 'worker-warning').length, 1)
  const { code, stderr } = await usr2.reload()
  t.equal(code, 1)
  t.match(stderr, 'EADDRINUSE')
  await usr2.stop()
})

t.test('an app that blocks for long right after its listen and its bind', async (t) => {
  const [port, udpPort] = [await freePort(t), await freePort(t)]
  // More than the 10 s in which a worker that serves has to take a handle.
  const app = `
    require('node:http').createServer((req, res) => res.end()).listen(${port}, '127.0.0.1', () => console.log('listens'))
    require('node:dgram').createSocket('udp4').bind(${udpPort}, '127.0.0.1', () => console.log('bound'))
    setImmediate(() => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 11_000))`
  const usr2 = startUsr2(t, { entry: 'app.cjs', files: { 'app.cjs': app } })
  await usr2.ready({ timeoutMs: 40_000 })
  t.same(usr2.process.stdout.toSorted(), ['bound', 'listens'])
  await usr2.stop()
})
