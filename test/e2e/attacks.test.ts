/**
 * The attack table of docs/security.md, the half that comes from outside of a worker: each row a test. The socket's
 * permissions and what is planted in the runtime directory: privileges.test.ts. Single lines in their hundreds:
 * control.test.ts and control-fuzz.test.ts.
 */
import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  existsSync,
  lchownSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { once } from 'node:events'
import net from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import { askStatus, connectControl } from '../../src/master/control/control-client.ts'
import type { Status } from '../../src/master/face.ts'
import { withoutControls } from '../../src/master/pretty.ts'
import { ROLLING_OUT, STATUS } from '../helpers/fake-face.ts'
import { get, getJson } from '../helpers/http.ts'
import { expectNoneFailed, loadUnder } from '../helpers/load.ts'
import { start, type TestProcess } from '../helpers/spawn.ts'
import type { TestLike } from '../helpers/scope.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { CLI, fixture, startUsr2, usr2 as runUsr2 } from '../helpers/usr2.ts'
import { deadline, until } from '../helpers/wait.ts'

const isRoot = process.getuid?.() === 0
const onlyRoot = isRoot ? false : 'only root may become somebody else'
const NOBODY = 65534
/** What a terminal obeys; line ends and tabs are no harm. */
const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/
const EVIL = '\u001b]0;owned\u0007\u001b[2J\u009b31m'

/** Not what is promised, but what a machine may take that is busy with other tests as well. */
const PATIENT = { timeoutMs: 30_000 }

/** A client without manners. Gives what came when the connection has ended. */
async function says(path: string, ...pieces: readonly (string | Buffer)[]): Promise<string> {
  const socket = net.connect(path)
  let text = ''
  socket.on('data', (chunk) => (text += chunk.toString()))
  socket.on('error', () => {})
  const closed = once(socket, 'close')
  for (const piece of pieces) socket.write(piece)
  socket.end()
  await deadline(closed, 20_000, 'the end of a connection')
  return text
}

// ---- The control socket and the metrics, while the app serves -------------------------------------------------------

t.test('a master under attack', { timeout: 280_000 }, async (t) => {
  const [port, metrics] = [await freePort(t), await freePort(t)]
  const usr2 = startUsr2(t, {
    fixture: 'http-app.cjs',
    flags: ['--workers', '2', '--metrics', String(metrics)],
    env: { PORT: String(port) },
  })
  await usr2.ready()
  const path = usr2.control
  const load = await loadUnder(t, {
    target: { host: '127.0.0.1', port },
    traffic: [
      { mode: 'new', connections: 2, thinkMs: [10, 30] },
      { mode: 'keepalive', connections: 8, thinkMs: [10, 30] },
    ],
  })
  const proc = (file: string): string => `/proc/${usr2.pid}/${file}`
  const descriptors = (): number => readdirSync(proc('fd')).length
  const residentMb = (): number =>
    Number(/VmRSS:\s+(\d+)/.exec(readFileSync(proc('status'), 'utf8'))?.[1]) / 1024
  await askStatus(await connectControl(path))
  const [descriptorsBefore, residentBefore] = [descriptors(), residentMb()]
  const latenciesMs: number[] = []
  const honest = async (): Promise<Status> => {
    const from = performance.now()
    const status = await askStatus(await connectControl(path, PATIENT), PATIENT)
    latenciesMs.push(performance.now() - from)
    return status
  }
  const crowd = async (t: TestLike, env: Record<string, string>): Promise<TestProcess> => {
    const process = start(t, globalThis.process.execPath, {
      name: 'crowd',
      args: [fixture('crowd.mjs')],
      env,
    })
    await process.line('crowded', { timeoutMs: 60_000 })
    return process
  }
  const disperse = async (crowd: TestProcess): Promise<number> => {
    crowd.child.stdin?.end()
    const { text } = await crowd.line(/^opened \d+$/)
    await crowd.ended()
    return Number(text.split(' ')[1])
  }
  const asBefore = async (t: typeof import('tap').t | TestLike): Promise<void> => {
    await until(() => descriptors() <= descriptorsBefore, {
      timeoutMs: 20_000,
      what: `${descriptorsBefore} descriptors`,
      logs: () => `${descriptors()}: ${spawnSync('ls', ['-l', proc('fd')], { encoding: 'utf8' }).stdout}`,
    })
    t.equal((await honest()).ready, 2, 'all workers serve')
  }

  t.test('lines that are no request', async (t) => {
    const deep = `${'['.repeat(30_000)}${']'.repeat(30_000)}`
    const rows: readonly (readonly [string, string | Buffer, RegExp])[] = [
      ['oversized', `{"cmd":"${'x'.repeat(70_000)}"}\n`, /longer than 65536 bytes/],
      ['no line end', 'x'.repeat(70_000), /longer than 65536 bytes/],
      ['no JSON', '{"cmd":\n', /not a line of JSON/],
      ['HTTP', 'GET / HTTP/1.1\r\nHost: x\r\n\r\n', /not a line of JSON/],
      ['deep', `${deep}\n`, /not a JSON object/],
      ['a deep command', `{"cmd":${deep}}\n`, /Unknown command a list/],
      ['a deep option', `{"cmd":"stop","how":${deep}}\n`, /"how" must be .* not a list/],
      ['a huge number', '{"cmd":"rollback","to":1e400}\n', /"to" must be the number of a generation/],
      [
        'a number of 60,000 digits',
        `{"cmd":"order","what":{"k":"scale","to":${'9'.repeat(60_000)}}}\n`,
        /whole number/,
      ],
      ['__proto__', '{"__proto__":{"cmd":"stop"},"cmd":"hello"}\n', /has no option "__proto__"/],
      ['a command of a prototype', '{"cmd":"toString"}\n', /Unknown command "toString"/],
      ['keys that come twice: the last counts', '{"cmd":"stop","cmd":"hello"}\n', /"hello":\{"protocol":1/],
      ['NUL', '{"cmd":"hello\0"}\n', /not a line of JSON/],
      ['an escaped NUL', '{"cmd":"upgrade","node":"/bin/node\\u0000"}\n', /must be an absolute path/],
      [
        'invalid UTF-8',
        Buffer.from('7b22636d64223a22ff22 7d0a'.replace(' ', ''), 'hex'),
        /Unknown command "\ufffd"/,
      ],
      ['an unknown key', '{"cmd":"reload","force":true}\n', /has no option "force"/],
      ['an unknown order', '{"cmd":"order","what":{"k":"exec"}}\n', /Unknown order "exec"/],
      ['abort without a reload', '{"cmd":"abort"}\n', /nothing to abort/],
      ['an escape sequence', `${JSON.stringify({ cmd: EVIL })}\n`, /Unknown command/],
    ]
    for (const [what, line, right] of rows) {
      const said = (await says(path, line)).replaceAll('\\"', '"')
      t.match(said, right, what)
      t.notMatch(said, /[\u0000-\u0009\u000b-\u001f]/)
      t.equal((await honest()).state, 'steady', what)
    }
    t.match(await says(path, '{"cmd":"hello"}\n'.repeat(1000)), /"hello"/, 'a thousand at once')
    await asBefore(t)
  })

  t.test('gone in the midst of each command', async (t) => {
    // Not stop, scale and upgrade, which would do what they say.
    const lines = ['hello', 'status', 'reload', 'rollback', 'abort'].map((cmd) => `{"cmd":"${cmd}"}\n`)
    for (const line of [...lines, '{"cmd":"order","what":{"k":"pause"}}\n']) {
      for (const part of [line.slice(0, 8), line, `${line}${line}`]) {
        const socket = net.connect(path)
        socket.on('error', () => {})
        await once(socket, 'connect')
        await new Promise<void>((resolve) => socket.write(part, () => resolve()))
        socket.destroy()
      }
    }
    // Those reloads run, without those who asked: one, and one more for all who came after its first grant.
    await until(async () => (await honest()).state === 'steady', {
      timeoutMs: 60_000,
      what: 'the reloads to end',
      logs: () => usr2.logs(),
    })
    await until(async () => (await honest()).generations.length === 1, {
      timeoutMs: 60_000,
      what: 'the drains to end',
    })
    await asBefore(t)
  })

  t.test('an endless line, bytes one by one, half-closed, never reading', async (t) => {
    const endless = await crowd(t, {
      WHERE: path,
      CONNECTIONS: '5',
      SAYS: 'x'.repeat(100_000),
      EVERY_MS: '1',
    })
    const slow = await crowd(t, { WHERE: path, CONNECTIONS: '20', SAYS: ' ', EVERY_MS: '50' })
    const unread = await crowd(t, {
      ...{ WHERE: path, CONNECTIONS: '2', UNREAD: '1' },
      SAYS: '{"cmd":"status"}\n'.repeat(5_000),
    })
    const half = net.connect({ path, allowHalfOpen: true })
    half.on('error', () => {}).resume()
    const closed = once(half, 'close')
    half.end('{"cmd":')
    for (let i = 0; i < 20; i++) await honest()
    for (const attackers of [endless, slow, unread]) await disperse(attackers)
    await deadline(closed, 20_000, 'the end of a half-closed connection')
    await asBefore(t)
  })

  for (const [what, count, says] of [
    ['who say nothing', 1000, {}],
    ['who keep asking', 100, { SAYS: '{"cmd":"hello"}\n', EVERY_MS: '500' }],
  ] as const) {
    t.test(`${count} ${what}, opened anew as they are closed: the operator gets through`, async (t) => {
      const attackers = await crowd(t, { WHERE: path, CONNECTIONS: String(count), ...says })
      let tries = 0
      const answered = async (): Promise<boolean> => {
        tries++
        const { code, stdout, stderr } = await usr2.cli('status')
        // On a machine that is busy with other things as well it may take more than the 5 s of one try.
        if (code !== 0) t.match(stderr, /^usr2: \S/, 'a sentence, and no hang')
        return code === 0 && /2 of 2 slots ready/.test(stdout)
      }
      for (let i = 0; i < 2; i++) await until(answered, { timeoutMs: 60_000, what: 'a status' })
      const opened = await disperse(attackers)
      t.ok(opened > count / 2, `${opened} connections, ${tries} tries for 2 answers`)
      await asBefore(t)
    })
  }

  t.test('the metrics: /livez answers', async (t) => {
    const livez = async (): Promise<void> => {
      const answer = await get({ port: metrics }, '/livez')
      if (answer.status !== 200) t.fail(`/livez: ${answer.status}`)
    }
    for (const [what, env] of [
      ['no byte', { CONNECTIONS: '300' }],
      ['slow headers', { CONNECTIONS: '100', SAYS: 'GET /metrics HTTP/1.1\r\nX: ', EVERY_MS: '200' }],
      ['huge headers', { CONNECTIONS: '50', SAYS: `GET / HTTP/1.1\r\nX: ${'y'.repeat(100_000)}` }],
      [
        'pipelined scrapes that nobody reads',
        { CONNECTIONS: '50', UNREAD: '1', SAYS: 'GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n'.repeat(100) },
      ],
    ] as const) {
      const attackers = await crowd(t, { WHERE: String(metrics), ...env })
      for (let i = 0; i < 10; i++) await livez()
      await disperse(attackers)
      t.pass(what)
    }
    const answers = async (text: string): Promise<string> => {
      const socket = net.connect(metrics, '127.0.0.1')
      let said = ''
      socket.on('data', (chunk) => (said += chunk.toString()))
      socket.on('error', () => {})
      socket.end(text)
      await once(socket, 'close')
      return said.split('\r\n')[0] ?? ''
    }
    t.match(await answers('GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n'), / 404 /)
    t.match(await answers('GET /%2e%2e/livez HTTP/1.1\r\nHost: x\r\n\r\n'), / 404 /)
    t.match(await answers('GET //livez HTTP/1.1\r\nHost: x\r\n\r\n'), / 404 /)
    t.match(await answers('GET http://evil/livez HTTP/1.1\r\nHost: x\r\n\r\n'), / 404 /)
    t.match(await answers('POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nstop'), / 405 /)
    t.match(await answers('DELETE /metrics HTTP/1.1\r\nHost: x\r\n\r\n'), / 405 /)
    t.match(await answers('GET /livez HTTP/1.0\r\n\r\n'), / 200 /)
    t.match(
      await answers(
        'GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n',
      ),
      / 400 /,
    )
    await livez()
    await asBefore(t)
  })

  t.test('nothing was lost, nothing was kept', async (t) => {
    expectNoneFailed(t, await load.stop())
    latenciesMs.sort((a, b) => a - b)
    const p99 = latenciesMs[Math.floor(latenciesMs.length * 0.99)] ?? 0
    t.comment(
      `control under attack: ${latenciesMs.length} answers, p50 ${latenciesMs[latenciesMs.length >> 1]?.toFixed(1)} ms, p99 ${p99.toFixed(1)} ms`,
    )
    // Each of them was answered. How fast is the machine's business.
    t.ok(latenciesMs.length > 30)
    t.comment(`resident ${residentBefore.toFixed(0)} MB, then ${residentMb().toFixed(0)} MB`)
    t.ok(residentMb() < residentBefore + 100, 'memory is bounded')
    t.same(
      usr2.events().filter(({ level }) => level >= 50),
      [],
      'no error in its log',
    )
    await usr2.stop()
  })
})

// ---- A hostile server at the client's side --------------------------------------------------------------------------

/** What answers there is no master: it says `greeting` to a hello, `answer` to what follows, each time, and stays. */
async function pretend(t: TestLike, greeting: string | null, answer: string | null): Promise<string> {
  const path = join(shortTmp(t), 'c.sock')
  const sockets = new Set<net.Socket>()
  const server = net.createServer((socket) => {
    sockets.add(socket)
    socket.on('error', () => {})
    let greeted = false
    socket.on('data', () => {
      const say = greeted ? answer : greeting
      greeted = true
      if (say !== null) socket.write(say)
    })
  })
  server.listen(path)
  await once(server, 'listening')
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return path
}

/** Every text in it, also deep inside. */
function poisoned<T>(value: T, text: string): T {
  if (typeof value === 'string') return `${value}${text}` as T
  if (Array.isArray(value)) return value.map((item: unknown) => poisoned(item, text)) as T
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, poisoned(inner, text)])) as T
}
/** Where the wire has words of its own, they stay. */
const evilStatus = (): Status => ({
  ...poisoned(STATUS, EVIL),
  state: STATUS.state,
  generations: STATUS.generations.map((generation) => ({
    ...poisoned(generation, EVIL),
    role: generation.role,
    workers: generation.workers.map((worker) => ({ ...worker, tired: EVIL, waitsFor: EVIL, open: [EVIL] })),
  })),
  waitsFor: EVIL,
  rollout: ROLLING_OUT.rollout && { ...ROLLING_OUT.rollout, reload: EVIL, waitsFor: EVIL, paused: EVIL },
})

t.test('a server that is no master, or a hostile one', async (t) => {
  const hello = (name = 'shop'): string =>
    `${JSON.stringify({ hello: { protocol: 1, name, pid: 1, usr2: `1${EVIL}` } })}\n`
  const said = async (command: readonly string[], control: string) => {
    const args = [...command.slice(0, 1), '--control', control, ...command.slice(1)]
    const { code, stdout, stderr } = await runUsr2(t, args, { timeoutMs: 60_000 })
    t.notMatch(stdout + stderr, CONTROLS, `nothing that a terminal obeys: ${args.join(' ')}`)
    return { code, text: stdout + stderr }
  }
  const lines = (count: number): string => `${'x'.repeat(1000)}\n`.repeat(count)
  const greets = async (what: string, greeting: string | null, right: RegExp) => {
    const { code, text } = await said(['status'], await pretend(t, greeting, null))
    t.equal(code, 3, what)
    t.match(text, right, what)
  }
  const answers = async (
    command: readonly string[],
    answer: string | null,
    status: number,
    right: RegExp,
  ) => {
    const { code, text } = await said(command, await pretend(t, hello(`shop${EVIL}`), answer))
    t.equal(code, status, `${command.join(' ')}: ${text}`)
    t.match(text, right, command.join(' '))
  }
  // These wait for an answer as long as they do: all at once.
  await Promise.all([
    greets('nothing', null, /no answer within 5 s/),
    answers(['status'], null, 3, /no answer within 5 s/),
    answers(['stop'], null, 4, /was lost before it said that it had stopped: no answer within 5 s/),
    answers(['pause'], null, 4, /no answer within 5 s/),
    answers(
      ['reload', '--timeout', '1s'],
      `${JSON.stringify({ progress: { reload: 'r', generation: 1, text: EVIL } })}\n`,
      1,
      /to be aborted, but the master gave no verdict/,
    ),
  ])
  for (const [what, greeting, right] of [
    ['garbage', lines(100), /a reply cannot be read: it is not a line of JSON/],
    ['an endless line', 'x'.repeat(5 * 1024 ** 2), /a reply is longer than 4194304 bytes/],
    [
      'another protocol',
      `{"hello":{"protocol":9,"name":${JSON.stringify(EVIL)},"pid":1,"usr2":"9"}}\n`,
      /control protocol 9/,
    ],
    ['an error', `${JSON.stringify({ error: EVIL })}\n`, /No usr2 master answers/],
  ] as const)
    await greets(what, greeting, right)
  for (const [command, answer, status, right] of [
    [['pause'], `${JSON.stringify({ refused: EVIL })}\n`, 1, /usr2: /],
    [['stop', '--json'], `${JSON.stringify({ error: EVIL })}\n`, 1, /refused the request/],
    [['status'], `${JSON.stringify({ status: evilStatus() })}\n`, 0, /2 of 2 slots ready/],
    [['status', '--drain'], `${JSON.stringify({ status: evilStatus() })}\n`, 0, /no worker is leaving/],
    [['status', '--json'], `${JSON.stringify({ status: evilStatus() })}\n`, 0, /"slots":2/],
  ] as const)
    await answers(command, answer, status, right)
})

t.test("a worker's last words do not reach the terminal as they are", async (t) => {
  const evil = JSON.stringify(`no database ${EVIL}`)
  const dies = `throw new Error(${evil})`
  const port = await freePort(t)
  const usr2 = startUsr2(t, {
    entry: 'app.cjs',
    files: { 'app.cjs': readFileSync(fixture('http-app.cjs'), 'utf8'), 'bad.cjs': dies },
    flags: ['--max-restarts', '0'],
    env: { PORT: String(port) },
  })
  await usr2.ready()
  renameSync(join(usr2.cwd, 'bad.cjs'), join(usr2.cwd, 'app.cjs'))
  for (const { stdout, stderr } of [
    await usr2.reload(),
    await usr2.reload({ flags: ['--json'] }),
    await usr2.cli('status'),
    await usr2.cli('status', ['--json']),
  ]) {
    t.match(stdout + stderr, /no database/)
    t.notMatch(stdout + stderr, CONTROLS)
  }
  await usr2.stop()

  const drill = await runUsr2(t, ['drill', '--steady', '100ms', join(usr2.cwd, 'app.cjs')], {
    timeoutMs: 60_000,
  })
  t.match(drill.stderr, /no database/)
  // What workers print passes through: it is the app's own. Its line is the one with the stack.
  t.notMatch(
    drill.stderr
      .split('\n')
      .filter((line) => line.startsWith('usr2:'))
      .join('\n'),
    CONTROLS,
  )

  const line = JSON.stringify({
    msg: `a\\u001b ${EVIL}`,
    err: { stack: `x\b\f\r\n\t${EVIL}` },
    café: '\u007f',
  })
  const clean = withoutControls(line)
  t.notMatch(clean, CONTROLS)
  t.same(JSON.parse(clean), {
    msg: 'a\\u001b \\x1b]0;owned\\x07\\x1b[2J\\x9b31m',
    err: { stack: 'x\\x08\\x0c\\x0d\n\t\\x1b]0;owned\\x07\\x1b[2J\\x9b31m' },
    café: '\\x7f',
  })
})

// ---- Files ------------------------------------------------------------------------------------------------------------

const SERVES = `require('node:http').createServer((q, r) => r.end('ok')).listen(Number(process.env.PORT), '127.0.0.1')\n`

/** Whether usr2 serves there, and what it says; ended again. */
async function startIn(
  t: TestLike,
  cwd: string,
  args: readonly string[],
  env: Record<string, string> = {},
  asNobody = false,
) {
  const command = [CLI, 'run', '--control', join(cwd, 'c.sock'), ...args]
  const drop = ['--reuid', String(NOBODY), '--regid', String(NOBODY), '--clear-groups', process.execPath]
  const master = start(t, asNobody ? 'setpriv' : process.execPath, {
    name: 'usr2 run',
    args: [...(asNobody ? drop : []), ...command],
    cwd,
    env: { PORT: String(await freePort(t)), ...env },
  })
  const ready = master.line('"event":"ready"', { timeoutMs: 30_000 }).then(
    () => true,
    () => false,
  )
  const serves = await ready
  if (serves) master.kill()
  const { code } = await master.ended(30_000)
  return { serves, code, said: master.log() }
}

t.test('a config or env file that others can write', { skip: onlyRoot }, async (t) => {
  const cwd = shortTmp(t)
  const at = (name: string): string => join(cwd, name)
  writeFileSync(at('app.cjs'), SERVES)
  writeFileSync(at('c.json'), '{"entry":"./app.cjs"}')
  writeFileSync(at('env'), 'A=1\n')
  const runWith = (args: readonly string[], env?: Record<string, string>) => startIn(t, cwd, args, env)
  const config = ['--config', 'c.json']

  t.notMatch((await runWith(config)).said, /can be changed|not obeyed/, 'ours alone: no word')
  chmodSync(at('c.json'), 0o666)
  const open = await runWith(config)
  t.equal(open.code, 2)
  t.match(
    open.said,
    `usr2: ${at('c.json')} is not obeyed: everybody may write to ${at('c.json')}, and could so run code as root. Take that right away: chmod o-w ${at('c.json')}`,
  )
  const inContainer = await runWith(config, { container: 'podman' })
  t.ok(inContainer.serves, 'in a container, where volumes are often open to all')
  t.match(inContainer.said, `everybody may write to ${at('c.json')}: so`)
  chmodSync(at('c.json'), 0o660)
  t.notMatch((await runWith(config)).said, /can be changed/, "root's group is root")
  chownSync(at('c.json'), 0, 1)
  const group = await runWith(config)
  t.ok(group.serves)
  t.match(
    group.said,
    `the group 1 may write to ${at('c.json')}: so ${at('c.json')} can be changed, and with it what root runs. To set it right: chmod g-w`,
  )
  chownSync(at('c.json'), NOBODY, 0)
  t.match((await runWith(config)).said, `${at('c.json')} belongs to uid ${NOBODY}: so`)
  chownSync(at('c.json'), 0, 0)

  mkdirSync(at('open'))
  chmodSync(at('open'), 0o777)
  renameSync(at('c.json'), at('open/c.json'))
  writeFileSync(at('open/app.cjs'), SERVES)
  symlinkSync(at('open/c.json'), at('link.json'))
  const behind = await runWith(['--config', 'link.json'])
  t.equal(behind.code, 2)
  t.match(behind.said, `everybody may write to ${at('open')}`, 'also where only a link leads there')
  chmodSync(at('open'), 0o1777)
  t.ok((await runWith(['--config', 'link.json'])).serves, 'with the sticky bit nobody else can replace it')
  lchownSync(at('link.json'), NOBODY, NOBODY)
  t.ok(
    (await runWith(['--config', 'link.json'])).serves,
    'whose the link is does not count where he cannot replace it',
  )

  chmodSync(at('env'), 0o666)
  const env = await runWith(['app.cjs'], { USR2_ENV_FILE: 'env' })
  t.equal(env.code, 2)
  t.match(env.said, `${at('env')} is not obeyed: everybody may write to ${at('env')}`)
  chmodSync(cwd, 0o755)
  chmodSync(at('env'), 0o666)
  t.match(
    (await runWith(['--user', 'nobody', 'app.cjs'], { USR2_ENV_FILE: 'env' })).said,
    /so \S+env can be changed, and with it what nobody, the workers' user runs/,
    'workers of another user: a warning',
  )
  chownSync(cwd, NOBODY, NOBODY)
  const asUser = await startIn(t, cwd, ['app.cjs'], { USR2_ENV_FILE: 'env' }, true)
  t.ok(asUser.serves, asUser.said)
  t.match(asUser.said, `everybody may write to ${at('env')}: so`, 'who is not root is warned')
  chownSync(cwd, 0, 0)

  mkdirSync(at('mine'))
  writeFileSync(at('mine/app.cjs'), SERVES)
  writeFileSync(at('package.json'), '{"usr2":{"workers":2}}')
  chownSync(at('package.json'), NOBODY, NOBODY)
  const found = await startIn(t, at('mine'), ['app.cjs'])
  t.equal(found.code, 2)
  t.match(
    found.said,
    /The "usr2" of \S+package\.json is not obeyed: that file was only found .* belongs to uid 65534/,
  )
  const itself = await startIn(t, cwd, ['app.cjs'])
  t.ok(itself.serves, itself.said)
  t.match(
    itself.said,
    `${at('package.json')} belongs to uid ${NOBODY}: so`,
    'in the directory itself: a warning',
  )
  chmodSync(cwd, 0o1777)
  t.match((await startIn(t, cwd, ['app.cjs'])).said, 'is not obeyed: that file was only found', 'as /tmp')
  chmodSync(cwd, 0o755)
})

t.test('what lies where a file should', async (t) => {
  const cwd = shortTmp(t)
  const at = (name: string): string => join(cwd, name)
  writeFileSync(at('app.cjs'), SERVES)
  writeFileSync(at('victim'), 'keep')
  const fifo = (name: string): string => {
    t.equal(spawnSync('mkfifo', [at(name)]).status, 0)
    return at(name)
  }
  const refused = async (args: readonly string[], right: RegExp, env?: Record<string, string>) => {
    const { code, said } = await startIn(t, cwd, args, env)
    t.equal(code, 2, args.join(' '))
    t.match(said, right)
  }
  await refused(['--config', fifo('config')], /cannot be read: it is a pipe or a device, not a file/)
  await refused(['app.cjs'], /The env file cannot be used: \S+ cannot be read: it is a pipe/, {
    USR2_ENV_FILE: fifo('e'),
  })
  await refused(['--config', '/dev/zero'], /it is a pipe or a device/)
  writeFileSync(at('large'), Buffer.alloc(2 * 1024 ** 2, ' '))
  await refused(['--config', at('large')], /it has over 1048576 bytes/)
  await refused(
    ['--log-file', fifo('log'), 'app.cjs'],
    /The log file \S+ cannot be opened: it is a pipe or a socket/,
  )
  await refused(['--log-file', cwd, 'app.cjs'], /cannot be opened: it is a directory/)
  if (isRoot) {
    symlinkSync(at('victim'), at('log-link'))
    lchownSync(at('log-link'), NOBODY, NOBODY)
    await refused(['--log-file', at('log-link'), 'app.cjs'], /it is a link that uid 65534 has made/)
  }
  symlinkSync(at('victim'), at('pid'))
  t.ok((await startIn(t, cwd, ['--pid-file', at('pid'), 'app.cjs'])).serves)
  t.notOk(existsSync(at('pid')), 'the link was replaced, and ours removed')
  const pipe = fifo('pid2')
  const usr2 = startUsr2(t, {
    entry: 'app.cjs',
    cwd,
    flags: ['--pid-file', pipe],
    env: { PORT: String(await freePort(t)) },
  })
  await usr2.ready()
  await until(() => lstatSync(pipe).isFile(), { timeoutMs: 20_000, what: 'the pid file' })
  rmSync(pipe)
  fifo('pid2')
  await usr2.stop()
  t.ok(lstatSync(pipe).isFIFO(), 'not ours, and a stop does not wait for it')
  t.equal(readFileSync(at('victim'), 'utf8'), 'keep')
})

t.test('names and paths', async (t) => {
  const cwd = shortTmp(t)
  writeFileSync(join(cwd, 'app.cjs'), SERVES)
  for (const name of ['../x', 'a/b', '.', '..', '', ' ', 'x'.repeat(300), 'a\nb', EVIL, 'a\u0001b']) {
    const { code, stderr } = await runUsr2(t, ['run', '--name', name, 'app.cjs'], { cwd })
    t.equal(code, 2, JSON.stringify(name))
    t.match(stderr, /--name is .*; it must be a name of at most 64 characters without slashes/)
    t.notMatch(stderr, CONTROLS)
  }
  for (const [control, right] of [
    ['', /--control is empty/],
    [`/tmp/${'x'.repeat(200)}`, /has room for 107/],
    ['/proc/1/no/such/place/c.sock', /There is no place for the control socket|there is no directory/],
    [`${cwd}/app.cjs/c.sock`, /There is no place|not a directory/],
    [`${cwd}/app.cjs`, /not a socket, which usr2 does not replace/],
    [`${cwd}/${EVIL}/a/b/c.sock`, /There is no place|there is no directory/],
  ] as const) {
    const { code, stderr } = await runUsr2(t, ['run', '--control', control, 'app.cjs'], {
      cwd,
      env: { PORT: '1' },
    })
    t.ok(code === 1 || code === 2, control)
    t.match(stderr, right)
    t.notMatch(stderr, CONTROLS)
  }
  t.same(readdirSync(cwd), ['app.cjs'], 'nothing is left')
})

// ---- The env file -----------------------------------------------------------------------------------------------------

t.test('the env file reaches the workers and hooks, and nobody else', async (t) => {
  const [bin, port] = [shortTmp(t), await freePort(t)]
  const told = join(bin, 'told')
  writeFileSync(join(bin, 'systemd-notify'), `#!/bin/sh\nexport -p >> ${told}\n`)
  chmodSync(join(bin, 'systemd-notify'), 0o755)
  const app = `
    const { env } = process
    const me = { env, required: globalThis.required, imported: globalThis.imported }
    require('node:http').createServer((q, r) => r.end(JSON.stringify(me))).listen(${port}, '127.0.0.1')`
  const hook = `echo "hook: \${SECRET:-none} \${NOTIFY_SOCKET:-none} \${USR2_CONTROL:-none}"`
  const usr2 = startUsr2(t, {
    entry: 'app.cjs',
    files: {
      'app.cjs': app,
      'required.cjs': 'globalThis.required = true',
      'imported.mjs': 'globalThis.imported = true',
      'c.json': JSON.stringify({ envFile: './.env', hooks: { afterPromote: hook } }),
      '.env': '',
    },
    flags: ['--config', 'c.json', '--start-timeout', '20s', '--max-restarts', '0'],
    env: { PATH: `${bin}:${process.env['PATH']}`, NOTIFY_SOCKET: join(bin, 'nobody') },
  })
  await usr2.ready()
  interface Me {
    readonly env: Readonly<Record<string, string | undefined>>
    readonly required?: boolean
    readonly imported?: boolean
  }
  const withEnv = async (...lines: string[]): Promise<Me> => {
    writeFileSync(join(usr2.cwd, '.env'), lines.join('\n'))
    const { code, stderr } = await usr2.reload({ flags: ['--wait', 'drained'] })
    t.equal(code, 0, stderr)
    return getJson<Me>({ port })
  }
  const all = await withEnv(
    'SECRET=in-the-file',
    'NOTIFY_SOCKET=/tmp/of-the-app',
    'LD_PRELOAD=/nonexistent/of-the-app.so',
    ...['USR2_SLOT=77', 'USR2_NAME=evil', 'USR2_WORKERS=99', 'USR2_GUEST={}', 'USR2_GENERATION=1'],
    ...['NODE_CHANNEL_FD=9', 'NODE_CHANNEL_SERIALIZATION_MODE=advanced', 'NODE_UNIQUE_ID=1'],
    'PATH=/nowhere:/bin:/usr/bin',
  )
  t.match(all.env, {
    SECRET: 'in-the-file',
    NOTIFY_SOCKET: '/tmp/of-the-app',
    PATH: '/nowhere:/bin:/usr/bin',
  })
  t.match(
    all.env,
    { USR2_SLOT: '0', USR2_NAME: 't', USR2_WORKERS: '1', USR2_GENERATION: '2' },
    'what is ours stays',
  )
  t.equal(all.env['USR2_GUEST'], undefined)
  await usr2.process.line('hook: in-the-file none none')
  t.notMatch(readFileSync(`/proc/${usr2.pid}/environ`, 'utf8'), /in-the-file|of-the-app/)
  await until(() => existsSync(told), { timeoutMs: 20_000, what: 'systemd-notify to be run' })
  t.notMatch(readFileSync(told, 'utf8'), /in-the-file|of-the-app/)

  t.same((await withEnv('NODE_OPTIONS=--require ./required.cjs')).required, true)
  t.same((await withEnv('NODE_OPTIONS=--import ./imported.mjs')).imported, true)
  t.same((await withEnv('NODE_OPTIONS=--conditions=own')).env['NODE_OPTIONS'], '--conditions=own')
  t.same((await withEnv('NODE_OPTIONS=')).env['SECRET'], undefined, 'what is gone from the file is gone')
  for (const options of ['--no-such-option', '--require ./missing.cjs', '--require "./half']) {
    writeFileSync(join(usr2.cwd, '.env'), `NODE_OPTIONS=${options}`)
    const { code, stderr } = await usr2.reload()
    t.equal(code, 1)
    t.match(
      stderr,
      `as wrong NODE_OPTIONS of the env file ${join(usr2.cwd, '.env')} (${options}) would have it`,
    )
  }
  await usr2.stop()

  const cwd = shortTmp(t)
  writeFileSync(join(cwd, 'app.cjs'), SERVES)
  writeFileSync(join(cwd, 'env'), 'NODE_OPTIONS=--no-warnings\n')
  const { code, stderr } = await runUsr2(t, ['run', '--env-file', 'env', 'app.cjs'], { cwd })
  t.equal(code, 2)
  t.match(
    stderr,
    /Node\.js itself obeys an --env-file of its command line, in the master\. Give the file as "envFile"/,
  )
})
