/** `usr2 drill` as users run it: what it says of an app that loses nothing, and of apps that do. */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { Test } from 'tap'
import type { DrillResult } from '../../src/drill/options.ts'
import { processesWithToken } from '../helpers/processes.ts'
import { type Finished, run, start } from '../helpers/spawn.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { CLI, fixture, startUsr2 } from '../helpers/usr2.ts'
import { until } from '../helpers/wait.ts'
import { isWellFormed } from '../helpers/xml.ts'

/** Short, and few connections: a drain waits for idle ones as long as they were promised. */
const BRIEF = ['--steady', '300ms', '--pause', '200ms', '--rate', '120', '--connections', '4']

interface Drilled extends Finished {
  readonly result: DrillResult
}

const TIMEOUT_MS = 60_000

/** With a TMPDIR of its own, which must be empty afterwards. */
async function drill(
  t: Test,
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
  entry?: string,
): Promise<Finished> {
  const TMPDIR = shortTmp(t)
  const finished = await run(t, process.execPath, {
    name: 'usr2 drill',
    args: [CLI, 'drill', ...args, ...(entry === undefined ? [] : [fixture(entry)])],
    env: { PORT: String(await freePort(t)), TMPDIR, ...env },
    timeoutMs: TIMEOUT_MS,
  })
  t.same(readdirSync(TMPDIR), [], 'no file is left')
  return finished
}

async function drillJson(...given: Parameters<typeof drill>): Promise<Drilled> {
  const [t, args, ...more] = given
  const finished = await drill(t, ['--json', ...BRIEF, ...args], ...more)
  if (finished.stdout === '') throw new Error(`no JSON, status ${finished.code}: ${finished.stderr}`)
  return { ...finished, result: JSON.parse(finished.stdout) as DrillResult }
}

t.test('an app that loses nothing: status 0, the numbers, the picture', async (t) => {
  const report = join(shortTmp(t), 'drill.svg')
  const flags = ['--reloads', '2', '--report', report, '--post', '/echo', '--upload-time', '300ms']
  const paths = ['--path', '/', '--path', '/slow?ms=20', '--stream', '/stream?ms=300']
  // An option of `usr2 run` goes through.
  const { code, stderr, result } = await drillJson(
    t,
    [...flags, ...paths, '--workers', '2'],
    {},
    'http-app.cjs',
  )
  t.equal(code, 0, `${stderr}\n${result.verdict}`)
  t.match(result, {
    ok: true,
    verdict: /^Nothing was lost: 0 of \d+ requests failed over 2 reloads\.$/,
    app: { private: true, node: process.versions.node },
    failed: 0,
    failures: {},
    generations: [1, 2, 3],
    ledger: { cut: 0 },
    details: [],
  })
  t.same(
    result.mix.map(({ kind, path }) => `${kind} ${path}`),
    [
      ...['new connection /', 'keep-alive /', 'pipelined /'],
      ...['new connection /slow?ms=20', 'keep-alive /slow?ms=20', 'pipelined /slow?ms=20'],
      ...['POST /echo', 'slow upload /echo', 'stream /stream?ms=300'],
    ],
  )
  for (const { kind, requests, ok, normal, latency } of result.mix) {
    t.ok(requests > 0 && ok > 0 && latency !== null, `${kind}: ${requests}`)
    t.same(normal, [200])
  }
  t.equal(
    result.requests,
    result.mix.reduce((sum, { requests }) => sum + requests, 0),
    'the parts make the whole',
  )
  for (const kind of [result.latency.steady, result.latency.reload, result.latency.drain])
    t.ok(kind !== null && kind.requests > 0, 'there were requests in every part')
  t.equal(result.reloads.length, 2)
  for (const [at, reload] of result.reloads.entries()) {
    t.match(reload, { number: at + 1, outcome: 'promoted', from: at + 1, to: at + 2, failed: 0 })
    t.match(reload.drained, { generation: at + 1, cut: 0 })
    t.ok(reload.askedAtMs < reload.promotedAtMs && reload.promotedAtMs <= (reload.drainedAtMs ?? 0))
  }
  const epochs = new Set(result.timeline.flatMap((slice) => Object.keys(slice.epochs)))
  t.same([...epochs].sort(), ['0', '1', '2'], 'every generation answered')
  const svg = readFileSync(report, 'utf8')
  t.ok(isWellFormed(svg))
  for (const words of [
    'generation 1<',
    'generation 2<',
    'generation 3<',
    'reload 2: promoted',
    result.verdict,
  ])
    t.match(svg, words)
})

t.test('the text says what the JSON says', async (t) => {
  const said = await drill(t, [...BRIEF, '--reloads', '1', '--path', '/gone'], {}, 'drill-app.cjs')
  t.equal(said.code, 0, said.stderr)
  t.match(said.stdout, /^usr2 drill: .* under a master of its own, 1 reload in /)
  t.match(said.stdout, /^KIND +REQUEST +TARGET +REQUESTS +RETRYABLE +FAILED +P50 +P99 +MAX$/m)
  t.match(said.stdout, /^keep-alive +GET \/gone +127\.0\.0\.1:\d+ +\d+ +0 +0 +[\d.]+ ms/m)
  t.match(said.stdout, /^reload: signal to promotion +\d+ +0 +/m)
  t.match(said.stdout, /^reload 1: generation 1 -> 2 in .*; \d+ requests? meanwhile, 0 failed$/m)
  t.match(said.stdout, /^ledger of all drains: accepted \d+, .*cut 0/m)
  t.match(said.stdout, /^note: GET \/gone of .* answers 404: taken as its normal answer\.$/m)
  t.match(said.stdout, /\nNothing was lost: 0 of \d+ requests failed over 1 reload\.$/)
})

for (const [mode, classes] of [
  ['destroys', ['reset', 'keepaliveReset', 'brokenPromise']],
  ['exits', ['reset', 'keepaliveReset', 'brokenPromise']],
] as const) {
  t.test(`an app that ${mode} its connections when it drains: status 1, by class`, async (t) => {
    const { code, result } = await drillJson(
      t,
      ['--reloads', '1', '--path', '/slow'],
      { MODE: mode },
      'drill-app.cjs',
    )
    t.equal(code, 1)
    t.match(result, { ok: false, verdict: /^LOST: [1-9]\d* of \d+ requests failed/ })
    t.ok(
      classes.some((name) => (result.failures[name] ?? 0) > 0),
      JSON.stringify(result.failures),
    )
    t.equal(
      result.failed,
      Object.values(result.failures).reduce((sum, count) => sum + count, 0),
    )
    t.ok(result.details.length > 0)
    t.equal(result.latency.steady?.failed, 0, 'none before')
    t.ok((result.reloads[0]?.failed ?? 0) > 0, 'it is told by which reload')
  })
}

t.test('an answer that changes while the app drains is a loss', async (t) => {
  const { code, result } = await drillJson(t, ['--reloads', '1', '--path', '/flaky'], {}, 'drill-app.cjs')
  t.equal(code, 1)
  t.ok((result.failures['status'] ?? 0) > 0, JSON.stringify(result.failures))
  t.match(result.details[0]?.text, 'status 503')
})

t.test('a reload that is not promoted proves nothing', async (t) => {
  const { code, result } = await drillJson(t, ['--reloads', '3'], { MODE: 'refuses' }, 'drill-app.cjs')
  t.equal(code, 1)
  t.match(result, {
    ok: false,
    failed: 0,
    verdict: /^Not proven: reload 1 of 3 was not promoted \(rolled-back: .*no second generation/,
  })
  t.equal(result.reloads.length, 1, 'it is not tried again')
})

t.test('WebSockets, HTTP/2 over TLS, HTTP/2 with prior knowledge', async (t) => {
  const sockets = await drillJson(
    t,
    ['--reloads', '1', '--websocket', '/', '--websockets', '5', '--drain-timeout', '2s'],
    {},
    'websocket-app.cjs',
  )
  t.equal(sockets.code, 0, sockets.stdout)
  t.ok((sockets.result.webSocketEnds['1001'] ?? 0) >= 5, JSON.stringify(sockets.result.webSocketEnds))
  t.equal(sockets.result.webSocketEnds['bare'], undefined)
  for (const [entry, env, args, kinds] of [
    ['guests/http2-with-http1.cjs', {}, [], ['new connection', 'keep-alive', 'pipelined', 'HTTP/2']],
    ['http2-app.cjs', { TLS: '1' }, ['--path', '/5'], ['HTTP/2']],
    ['http2-app.cjs', {}, ['--path', '/5'], ['HTTP/2']],
  ] as const) {
    const { code, stdout, result } = await drillJson(t, ['--reloads', '1', ...args], env, entry)
    t.equal(code, 0, stdout)
    t.same(
      result.mix.map(({ kind }) => kind),
      kinds,
    )
  }
})

t.test('a running master, which goes on running', async (t) => {
  const PORT = String(await freePort(t))
  const usr2 = startUsr2(t, { fixture: 'http-app.cjs', env: { PORT } })
  await usr2.ready()
  const { code, stderr, result } = await drillJson(t, ['--reloads', '1', '--control', usr2.control])
  t.equal(code, 0, stderr)
  t.match(result, { app: { name: 't', private: false }, generations: [1, 2] })
  const status = await usr2.status()
  t.equal(status.pid, usr2.pid)
  t.equal(status.ready, 1)
  const other = await drill(t, ['--control', usr2.control, '--name', 'another'])
  t.equal(other.code, 3, 'the master there is another one')
  t.match(other.stderr, /not "another"/)
  await usr2.stop()
})

t.test('what the user has to set right: status 2, all of it at once', async (t) => {
  const usage = await drill(t, [
    '--relods',
    '3',
    '--rate',
    '0',
    '--body',
    '/none',
    '--workers',
    '0',
    '--path',
    'x',
    '--report',
    '/no/where.svg',
  ])
  t.equal(usage.code, 2)
  t.equal(usage.stdout, '')
  for (const complaint of [
    '--relods is no option of "usr2 drill"; did you mean --reloads?',
    '--rate is "0"; it must be a whole number from 1 to 100000.',
    '--body is /none, which cannot be read: ',
    '--body is of no use without --post PATH: nothing is posted.',
    '--report is /no/where.svg, which cannot be written: ',
    '--path is "x"; it must be the path of a request, such as /health.',
    '--workers is "0"; it must be ',
    'No entry was given; say which file to run, as in "usr2 drill server.js"',
  ])
    t.match(usage.stderr, complaint)
  const both = await drill(t, ['--control', '/none.sock'], {}, 'http-app.cjs')
  t.equal(both.code, 2)
  t.match(both.stderr, '--control means a running master')
  t.equal((await drill(t, ['--control', '/none.sock'])).code, 3)
})

t.test('an app that cannot be drilled so: status 2, with what was seen', async (t) => {
  const anywhere = await drill(t, [], { PORT: '0' }, 'drill-app.cjs')
  t.equal(anywhere.code, 2)
  t.match(anywhere.stderr, 'The app listens on no fixed port or path: it listens on port 0')

  const wrong = ['--path', '/broken', '--websocket', '/ws', '--http2']
  const preflight = await drill(t, wrong, {}, 'drill-app.cjs')
  t.equal(preflight.code, 2)
  t.match(
    preflight.stderr,
    /new connection, keep-alive, pipelined: GET \/broken of .* fails without any reload: status, status 500\./,
  )
  t.match(preflight.stderr, /WebSocket: GET \/ws of .* fails without any reload: status, status 200\./)
  t.match(preflight.stderr, /HTTP\/2: GET \/broken of .* fails without any reload: /)

  const raw = await drill(t, [], {}, 'echo-net.cjs')
  t.equal(raw.code, 2)
  t.match(raw.stderr, /No HTTP\/1\.1 and no HTTP\/2 is spoken there/)

  const dead = await drill(t, [], {}, 'no-such-app.cjs')
  t.equal(dead.code, 2)
  t.match(
    dead.stderr,
    /The app did not start: usr2 run ended with status 2\. The end of its output:\n.*no such file/,
  )
})

for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
  t.test(`a drill that is ended by ${signal} leaves no process`, async (t) => {
    const TMPDIR = shortTmp(t)
    const env = { PORT: String(await freePort(t)), TMPDIR }
    const drilling = start(t, process.execPath, {
      args: [CLI, 'drill', '--steady', '60s', fixture('http-app.cjs')],
      env,
    })
    await drilling.line('steady for 60 s', { timeoutMs: 30_000 })
    t.ok(processesWithToken(drilling.token).length > 2, 'the drill, the master and the worker')
    drilling.kill(signal)
    const exit = await drilling.ended(30_000)
    if (signal === 'SIGTERM') {
      t.equal(exit.code, 143)
      t.match(drilling.stderr.at(-1), 'The drill was ended by SIGTERM; what it had started is stopped.')
      t.same(readdirSync(TMPDIR), [])
    }
    await until(() => processesWithToken(drilling.token).length === 0, {
      timeoutMs: 30_000,
      what: 'the master and its worker to end',
    })
  })
}

t.test('help, and what a master must not load', async (t) => {
  const help = await drill(t, ['--help'])
  t.equal(help.code, 0)
  t.match(help.stdout, /^Usage: usr2 drill \[options\] <entry>/)
  t.match(help.stdout, '--websocket PATH')
  t.ok(existsSync(join(CLI, '../drill.mjs')))
  t.notMatch(readFileSync(CLI, 'utf8'), 'sec-websocket-accept', "the drill's code is not in the CLI's bundle")
})
