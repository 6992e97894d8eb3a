/** `usr2 check`: would this version start? */
import { join } from 'node:path'
import net from 'node:net'
import t, { type Test } from 'tap'
import type { CheckReport } from '../../src/master/workers/check.ts'
import { expectNothingLeft, start } from '../helpers/spawn.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { CLI, fixture, startUsr2, usr2 } from '../helpers/usr2.ts'
import { deadline } from '../helpers/wait.ts'
import { writeFileSync } from 'node:fs'

interface Checked {
  readonly code: number | null
  readonly report: CheckReport
  readonly stderr: string
}

async function check(t: Test, app: string, flags: readonly string[] = []): Promise<Checked> {
  const cwd = shortTmp(t)
  writeFileSync(join(cwd, 'app.cjs'), app)
  const { code, stdout, stderr } = await usr2(
    t,
    ['check', '--json', '--control', join(cwd, 'c.sock'), ...flags, 'app.cjs'],
    { cwd },
  )
  return { code, stderr, report: JSON.parse(stdout) as CheckReport }
}

const refused = (port: number): Promise<unknown> =>
  deadline(
    new Promise((resolve) => net.connect(port, '127.0.0.1').once('error', resolve)),
    10_000,
    'a refused connection',
  )

t.test('a version that starts: what it listens on, how long it takes, how much it needs', async (t) => {
  const [port, udp] = [await freePort(t), await freePort(t)]
  const path = join(shortTmp(t), 'a.sock')
  const { code, report, stderr } = await check(
    t,
    `const server = require('node:http').createServer((req, res) => res.end())
    server.listen(${port}, '127.0.0.1', () => {
      console.log('listens on', server.address().port, 'check', process.env.USR2_CHECK)
      const socket = require('node:net').connect(${port}, '127.0.0.1')
      socket.on('error', ({ code }) => console.error('reachable:', code))
    })
    require('node:net').createServer().listen(${JSON.stringify(path)})
    require('node:dgram').createSocket('udp4').bind(${udp}, '127.0.0.1')
    process.on('SIGTERM', () => { console.error('leaves'); process.exit(0) })`,
  )
  t.equal(code, 0)
  t.match(stderr, new RegExp(`listens on ${port} check 1`))
  t.match(stderr, 'reachable: ECONNREFUSED', 'nobody can reach it')
  t.match(stderr, 'leaves', 'its own shutdown is tried, too')
  t.match(report, { ok: true, reasons: [], warnings: [], node: process.versions.node })
  t.same([...report.listeners].sort(), [`tcp:127.0.0.1:${port}`, `udp:127.0.0.1:${udp}`, `unix:${path}`])
  t.ok((report.bootMs ?? 0) > 0 && (report.shutdownMs ?? -1) >= 0 && (report.rssBytes ?? 0) > 10e6)
  await refused(port)
})

t.test('versions that do not', async (t) => {
  const table: readonly (readonly [string, string, readonly string[], RegExp])[] = [
    ['crash', 'throw new Error("no database")', [], /does not stay up: .* Error: no database \(at /],
    [
      'crash right after it listens',
      'require("node:net").createServer().listen(9, () => setTimeout(() => { throw new Error("later") }, 100))',
      [],
      /does not stay up: .*Error: later/,
    ],
    ['end', '', [], /does not stay up: .* exited with status 0/],
    [
      'hang',
      'setInterval(() => {}, 1000)',
      ['--start-timeout', '500ms'],
      /did not listen on anything within .* 500 ms/,
    ],
    [
      'say nothing',
      'require("node:net").createServer().listen(9)',
      ['--ready', 'message', '--start-timeout', '500ms'],
      /did not say that it is ready within/,
    ],
  ]
  for (const [name, app, flags, reason] of table) {
    const { code, report } = await check(t, app, flags)
    t.equal(code, 1, name)
    t.equal(report.ok, false)
    t.match(report.reasons, [reason])
  }
})

t.test('what is no reason, and should be known', async (t) => {
  const { code, report } = await check(
    t,
    `require('node:child_process').spawn('sleep', ['60'], { stdio: 'ignore' })
    process.on('SIGTERM', () => {})
    setInterval(() => {}, 1000)
    require('node:net').createServer().listen(9)`,
    ['--shutdown-timeout', '300ms', '--kill-timeout', '300ms'],
  )
  t.equal(code, 0)
  t.match(report.warnings, [/shutdown took longer than 0.3 s/, /left running: \d+ \(sleep 60\)/])
})

t.test('beside a running master: it is not touched, and its listeners are wanted', async (t) => {
  const port = await freePort(t)
  const running = startUsr2(t, { fixture: 'http-app.cjs', env: { PORT: String(port) } })
  await running.ready()
  const env = { PORT: String(port) }
  const same = await usr2(t, ['check', '--control', running.control, fixture('http-app.cjs')], { env })
  t.equal(same.code, 0, same.stderr)
  t.match(same.stdout, /^It would start: .*http-app\.cjs/)
  t.match(same.stdout, /ready after .* MiB resident; listens on tcp:/)
  const other = await usr2(
    t,
    ['check', '--control', running.control, '--start-timeout', '1s', fixture('http-app.cjs')],
    { env: { PORT: String(await freePort(t)) } },
  )
  t.equal(other.code, 1)
  t.match(other.stdout, /It would not start: /)
  t.match(other.stdout, new RegExp(`does not listen on tcp:.*:${port}, as the running one does`))
  const { generations } = await running.status()
  t.same(
    generations.map(({ id }) => id),
    [1],
  )
  await running.stop()
})

t.test('bad input, and Ctrl-C: nothing is left', async (t) => {
  const { code, stderr } = await usr2(t, ['check', '--worker', '3', '--drain-timeout', 'x', 'none.cjs'])
  t.equal(code, 2)
  t.match(stderr, /--worker is no option of "usr2 check"; did you mean --workers\?/)
  t.match(stderr, /--drain-timeout/)
  const cwd = shortTmp(t)
  writeFileSync(
    join(cwd, 'app.cjs'),
    'process.on("SIGTERM", () => { console.log("leaves"); process.exit() }); console.log("booting"); setInterval(() => {}, 1000)',
  )
  const checking = start(t, process.execPath, { name: 'usr2 check', args: [CLI, 'check', 'app.cjs'], cwd })
  await checking.line(/^booting$/)
  checking.kill('SIGINT')
  const exit = await checking.ended()
  t.equal(exit.code, 1)
  t.match(checking.log(), /The check was interrupted/)
  t.match(checking.log(), 'leaves', 'its own shutdown has its turn all the same')
  t.notMatch(checking.log(), 'warning')
  await expectNothingLeft(t, checking)
})

t.test('its probes are asked as a rollout would ask them', async (t) => {
  const port = await freePort(t)
  const app = `let asked = 0
    require('node:http').createServer((req, res) => {
      res.statusCode = req.url === '/startup' && ++asked < 3 ? 503 : req.url === '/ready' ? 500 : 200
      res.end('not yet')
    }).listen(${port}, '127.0.0.1')`
  const config = (readiness: string) => {
    const startup = { http: { path: '/startup' }, period: '100ms' }
    const probes = { startup, readiness: { http: { path: readiness }, period: '50ms', failureThreshold: 2 } }
    const path = join(shortTmp(t), 'usr2.json')
    writeFileSync(path, JSON.stringify({ probes: { ...probes, liveness: { eventLoop: true } } }))
    return path
  }
  const good = await check(t, app, ['--config', config('/')])
  t.match(good, { code: 0, report: { ok: true } })
  t.same(
    good.report.probes.map(({ probe, failure }) => [probe, failure]),
    [
      ['startup', null],
      ['readiness', null],
      ['liveness', null],
    ],
  )
  t.equal(good.report.probes[0]?.asked, 3)
  const bad = await check(t, app, ['--config', config('/ready')])
  t.match(bad, {
    code: 1,
    report: { ok: false, reasons: [/readiness probe .*asked 2 times.*GET \/ready answered 500: not yet/] },
  })
})

t.test('a share that the workers cannot give is refused before anything starts', async (t) => {
  const cwd = shortTmp(t)
  writeFileSync(join(cwd, 'app.cjs'), '')
  for (const command of ['check', 'run']) {
    const flags = ['--workers', '2', '--strategy', 'canary', '--control', join(cwd, 'c.sock')]
    const { code, stderr } = await usr2(t, [command, ...flags, 'app.cjs'], { cwd })
    t.equal(code, 2)
    t.match(stderr, /A share of 10 % cannot be had with 2 workers: the smallest is 33\.3 %, 1 of 3/)
  }
})
