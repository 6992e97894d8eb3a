/** `--keep-alive-timeout`: who closes an idle connection first, the app or the proxy in front of it. */
import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { Test } from 'tap'
import { get } from '../helpers/http.ts'
import { openRaw, type RawClient } from '../helpers/raw-client.ts'
import { start } from '../helpers/spawn.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { startUsr2, type Usr2, type Usr2Options } from '../helpers/usr2.ts'
import { until } from '../helpers/wait.ts'

interface App {
  readonly usr2: Usr2
  readonly port: number
  /** The next connection that the app sees end: `FIN` of the client first, or `ended` by the server. */
  nextEnd(): Promise<string>
}

async function startApp(t: Test, options: Pick<Usr2Options, 'env' | 'flags' | 'files'>): Promise<App> {
  const port = await freePort(t)
  const env = { PORT: String(port), ...options.env }
  const usr2 = startUsr2(t, { ...options, fixture: 'keep-alive.cjs', env })
  await usr2.ready()
  return {
    usr2,
    port,
    async nextEnd() {
      const from = usr2.process.lines.length
      return (await usr2.process.line(/^(FIN|ended)$/, { from })).text
    },
  }
}

interface Told {
  /** Of the response: what the client was promised. */
  readonly promise: string | undefined
  readonly keepAliveTimeout: number
  readonly headersTimeout: number
}

async function ask(client: RawClient, ...headers: string[]): Promise<Told> {
  const { headers: answered, body } = await client.get('/', ...headers).response()
  return { promise: answered['keep-alive'], ...(JSON.parse(body) as Omit<Told, 'promise'>) }
}

const proxyWarnings = (usr2: Usr2) =>
  usr2.events().filter(({ msg }) => /a proxy in front of this app/.test(msg))

t.test('raises what the app has, whenever it sets it, and never lowers it', async (t) => {
  const table: readonly (readonly [what: string, env: Record<string, string>, expected: Partial<Told>])[] = [
    ['Node’s own 5 s', {}, { promise: 'timeout=65', keepAliveTimeout: 65_000, headersTimeout: 66_000 }],
    ['set before listen', { SET: 'before', KEEP_ALIVE_MS: '1000' }, { promise: 'timeout=65' }],
    ['set after listen', { SET: 'after', KEEP_ALIVE_MS: '1000' }, { promise: 'timeout=65' }],
    ['set at a request', { SET: 'later', KEEP_ALIVE_MS: '1000' }, { promise: 'timeout=65' }],
    ['https', { TLS: '1', SET: 'after', KEEP_ALIVE_MS: '1000' }, { promise: 'timeout=65' }],
    ['more', { SET: 'before', KEEP_ALIVE_MS: '99000' }, { promise: 'timeout=99', keepAliveTimeout: 99_000 }],
    ['for ever', { SET: 'after', KEEP_ALIVE_MS: '0' }, { promise: undefined, keepAliveTimeout: 0 }],
    ['more for headers', { HEADERS_MS: '70000' }, { headersTimeout: 70_000 }],
  ]
  for (const [what, env, expected] of table) {
    const app = await startApp(t, { env, flags: ['--keep-alive-timeout', '65s'] })
    const client = await openRaw(t, { port: app.port, tls: env['TLS'] === '1' })
    await ask(client)
    t.match(await ask(client), expected, what)
    client.socket.end()
    await app.usr2.stop()
  }
})

t.test('without the flag everything is the app’s own', async (t) => {
  const app = await startApp(t, { env: { SET: 'after', KEEP_ALIVE_MS: '7000' } })
  const client = await openRaw(t, { port: app.port })
  t.same(await ask(client), { promise: 'timeout=7', keepAliveTimeout: 7_000, headersTimeout: 60_000 })
  client.socket.end()
  await app.usr2.stop()
})

t.test('a connection opened in advance is kept as long: no 408 from headersTimeout', async (t) => {
  const env = { HEADERS_MS: '300' }
  const bare = await startApp(t, { env })
  const refused = await openRaw(t, { port: bare.port })
  t.equal((await refused.response()).status, 408, 'Node answers what nobody asked')
  const app = await startApp(t, { env, flags: ['--keep-alive-timeout', '65s'] })
  const early = await openRaw(t, { port: app.port })
  // That nothing comes within this time is what is tested; it is checked every 100 ms.
  await new Promise((resolve) => setTimeout(resolve, 800))
  t.equal((await early.get('/').response()).status, 200, 'with the flag its first request is answered')
  early.socket.end()
  await Promise.all([bare.usr2.stop(), app.usr2.stop()])
})

t.test('a reload applies a changed value to the new generation; the drain knows it', async (t) => {
  const config = (keepAliveTimeout: string) => JSON.stringify({ keepAliveTimeout, drainTimeout: '10s' })
  const app = await startApp(t, {
    files: { 'usr2.json': config('7s') },
    flags: ['--config', 'usr2.json'],
  })
  const before = await openRaw(t, { port: app.port })
  t.match(await ask(before), { promise: 'timeout=7' })
  writeFileSync(join(app.usr2.cwd, 'usr2.json'), config('65s'))
  t.equal((await app.usr2.reload()).code, 0)
  const after = await openRaw(t, { port: app.port })
  t.match(await ask(after), { promise: 'timeout=65' })
  t.equal((await app.usr2.reload()).code, 0)
  const { stdout } = await app.usr2.cli('status', ['--drain'])
  t.match(stdout, /generation 2, .* draining, waits for 1 connection, .* \(at most 6\d\.\d s more\)/)
  for (const { socket } of [before, after]) socket.end()
  await app.usr2.stop()
})

t.test('warns once of a proxy that keeps connections longer than the app, and of nobody else', async (t) => {
  const app = await startApp(t, { env: { SET: 'before', KEEP_ALIVE_MS: '200' } })
  const useTwice = async (...headers: string[]) => {
    const client = await openRaw(t, { port: app.port })
    for (let i = 0; i < 2; i++) await ask(client, ...headers)
    return client
  }
  const once = await openRaw(t, { port: app.port })
  const [direct, first] = await Promise.all([
    useTwice(),
    useTwice('Via: 1.1 closes-first'),
    ask(once, 'X-Forwarded-For: not-used-again'),
  ])
  const end = app.nextEnd()
  first.socket.end()
  t.equal(await end, 'FIN')
  t.same([await direct.ended(), await once.ended()], ['FIN', 'FIN'], 'closed by the app')

  // It warns once: had it been one of those above, the name of the header would be theirs.
  const proxy = await useTwice('X-Amzn-Trace-Id: Root=1')
  t.equal(await proxy.ended(), 'FIN')
  const { msg, slot } = await app.usr2.event('worker-warning')
  t.match(
    msg,
    /"x-amzn-trace-id".* after 0\.2 s .*502\. Give --keep-alive-timeout .*65s for an AWS ALB or nginx/,
  )
  t.equal(slot, 0)
  const another = await useTwice('Forwarded: for=10.0.0.1')
  t.equal(await another.ended(), 'FIN')
  await app.usr2.stop()
  t.equal(proxyWarnings(app.usr2).length, 1, 'once')
})

t.test('that a drain closes idle connections is no fault of the app', async (t) => {
  const app = await startApp(t, { env: { SET: 'before', KEEP_ALIVE_MS: '4000' } })
  const proxy = await openRaw(t, { port: app.port })
  for (let i = 0; i < 2; i++) await ask(proxy, 'X-Forwarded-For: 10.0.0.1')
  const { stdout } = await app.usr2.reload({ flags: ['--wait', 'drained'] })
  t.match(stdout, /generation 1 has ended: 1 connection: 1 idle .*, 0 cut; 2 requests: /)
  t.equal(await proxy.ended(), 'FIN', 'closed by the timer of the app')
  t.same(proxyWarnings(app.usr2), [])
  await app.usr2.stop()
})

const NGINX = ['/usr/sbin', '/usr/local/sbin', '/usr/local/bin', ...(process.env['PATH'] ?? '').split(':')]
  .map((directory) => join(directory, 'nginx'))
  .find((path) => existsSync(path))

t.test('nginx with upstream keepalive', { skip: !NGINX && 'NOT TESTED, no nginx here' }, async (t) => {
  /** nginx, which keeps idle connections to the app for so long; gives its port. */
  const startNginx = async (t: Test, upstream: number, keepMs: number): Promise<number> => {
    const [port, directory] = [await freePort(t), shortTmp(t)]
    const temp = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
    const config = `
      daemon off; master_process off; worker_processes 1; pid ${directory}/pid; error_log stderr notice;
      events { worker_connections 64; }
      http {
        access_log off;
        ${temp.map((name) => `${name}_temp_path ${directory}/${name};`).join(' ')}
        upstream app { server 127.0.0.1:${upstream}; keepalive 8; keepalive_timeout ${keepMs}ms; }
        server {
          listen 127.0.0.1:${port};
          location / {
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header X-Forwarded-For $remote_addr;
          }
        }
      }`
    writeFileSync(join(directory, 'nginx.conf'), config)
    const args = ['-p', directory, '-c', join(directory, 'nginx.conf'), '-e', 'stderr']
    const nginx = start(t, NGINX ?? '', { name: 'nginx', args })
    await nginx.line(/start worker|using the .* event method/)
    await until(async () => (await get({ port }).catch(() => null)) !== null, {
      timeoutMs: 10_000,
      what: 'an answer of nginx',
      logs: () => nginx.log(),
    })
    return port
  }

  await t.test('that keeps them longer: the app closes first, and the log says what to do', async (t) => {
    const app = await startApp(t, { env: { SET: 'before', KEEP_ALIVE_MS: '300' } })
    const port = await startNginx(t, app.port, 60_000)
    const end = app.nextEnd()
    for (let i = 0; i < 3; i++) t.equal((await get({ port })).status, 200)
    t.equal(await end, 'ended')
    t.match(await app.usr2.event('worker-warning'), { msg: /"x-forwarded-for".* --keep-alive-timeout/ })
    await app.usr2.stop()
  })

  await t.test('with the flag above its time: nginx closes first', async (t) => {
    const app = await startApp(t, {
      env: { SET: 'before', KEEP_ALIVE_MS: '300' },
      flags: ['--keep-alive-timeout', '20s'],
    })
    const port = await startNginx(t, app.port, 2_000)
    const end = app.nextEnd()
    for (let i = 0; i < 2; i++) t.equal((await get({ port })).status, 200)
    t.equal(await end, 'FIN')
    await app.usr2.stop()
    t.same(proxyWarnings(app.usr2), [])
  })
})
