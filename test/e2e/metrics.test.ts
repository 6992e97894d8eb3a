/** `--metrics` of a real master: counters live in the master, and so survive generations. */
import http from 'node:http'
import { join } from 'node:path'
import t from 'tap'
import { clientsOf, deploysIn, expectNoneLost } from '../helpers/deploys.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { startUsr2 } from '../helpers/usr2.ts'
import { until } from '../helpers/wait.ts'

interface Answer {
  readonly status: number | undefined
  readonly body: string
}

const ask = (socketPath: string, path: string): Promise<Answer> =>
  new Promise((resolve, reject) => {
    http
      .get({ socketPath, path, agent: false }, (response) => {
        let body = ''
        response.setEncoding('utf8').on('data', (text: string) => (body += text))
        response.on('end', () => resolve({ status: response.statusCode, body }))
      })
      .on('error', reject)
  })

/** The sum of a metric over the label sets that have all of `labels`. */
function valueOf(body: string, name: string, ...labels: string[]): number {
  const lines = body.split('\n').filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `))
  return lines
    .filter((line) => labels.every((label) => line.includes(label)))
    .reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0)
}

t.test('what clients did is counted by generation, and no counter falls', async (t) => {
  const port = await freePort(t)
  const deploys = deploysIn(t)
  deploys.to('healthy', '1.0.0')
  const socket = join(shortTmp(t), 'm.sock')
  const usr2 = startUsr2(t, {
    entry: deploys.entry,
    cwd: deploys.root,
    flags: ['--workers', '2', '--metrics', socket, '--readiness', '/healthz', '--drain-timeout', '5s'],
    env: { PORT: String(port) },
  })
  await usr2.ready()
  t.equal((await ask(socket, '/livez')).status, 200)
  t.equal((await ask(socket, '/readyz')).status, 200)
  const clients = await clientsOf(t, { port })
  await clients.answered('1.0.0', 100)
  deploys.to('fails-a-tenth', '2.0.0')
  t.equal((await usr2.reload()).code, 0)
  await clients.answered('2.0.0', 200)
  const result = await clients.stop()
  expectNoneLost(t, result)
  const scrape = async () => (await ask(socket, '/metrics')).body
  const answered = async () => valueOf(await scrape(), 'usr2_requests_total')
  await until(async () => (await answered()) >= result.requests, {
    what: `${result.requests} requests counted`,
    timeoutMs: 20_000,
  })
  const body = await scrape()
  t.equal(
    valueOf(body, 'usr2_requests_total'),
    result.requests,
    'what the clients counted, probes not among them',
  )
  const { ok = 0, errors = 0 } = result.byVersion['2.0.0'] ?? {}
  t.equal(valueOf(body, 'usr2_requests_total', 'generation="2"', 'version="2.0.0"'), ok + errors)
  t.equal(valueOf(body, 'usr2_request_errors_total', 'generation="2"'), errors)
  t.equal(valueOf(body, 'usr2_reloads_total', 'outcome="promoted"'), 1)
  await until(async () => (await usr2.status()).generations.length === 1, {
    what: 'the first generation has ended',
    timeoutMs: 20_000,
  })
  t.equal(
    valueOf(await scrape(), 'usr2_requests_total'),
    result.requests,
    'also without the workers that did it',
  )
  // Something that holds the drain, so that there is a stop to be seen.
  const held = http.get({ port, host: '127.0.0.1', path: '/?slow', agent: false })
  held.on('error', () => {})
  const stopping = usr2.stop()
  await until(async () => (await ask(socket, '/readyz').catch(() => ({ status: 503 }))).status === 503, {
    what: 'a stop is no readiness',
    timeoutMs: 10_000,
  })
  await stopping
})

t.test('an address that is in use is said, and nothing is started', async (t) => {
  const port = await freePort(t)
  const taken = http.createServer()
  await new Promise<void>((resolve) => taken.listen(port, '127.0.0.1', resolve))
  t.teardown(() => taken.close())
  const usr2 = startUsr2(t, { fixture: 'http-app.cjs', flags: ['--metrics', `127.0.0.1:${port}`] })
  const { code } = await usr2.process.ended(20_000)
  t.equal(code, 1)
  t.match(usr2.logs(), new RegExp(`127.0.0.1:${port}`))
})
