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
import { askStatus, connectControl } from '../../src/master/control-client.ts'
import type { Status } from '../../src/master/face.ts'
import { withoutControls } from '../../src/master/pretty.ts'
import { ROLLING_OUT, STATUS } from '../helpers/fake-face.ts'
import { get, getJson } from '../helpers/http.ts'
import { expectNoneFailed, loadUnder } from '../helpers/load.ts'
import { run, start, type TestProcess } from '../helpers/spawn.ts'
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

t.test('a master under attack', async (t) => {
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
    const status = await askStatus(await connectControl(path))
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
      CONNECTIONS: '20',
      SAYS: 'x'.repeat(100_000),
      EVERY_MS: '1',
    })
    const slow = await crowd(t, { WHERE: path, CONNECTIONS: '20', SAYS: ' ', EVERY_MS: '50' })
    const unread = await crowd(t, {
      ...{ WHERE: path, CONNECTIONS: '5', UNREAD: '1' },
      SAYS: '{"cmd":"status"}\n'.repeat(5_000),
    })
    const half = net.connect({ path, allowHalfOpen: true })
    half.on('error', () => {}).resume()
    half.end('{"cmd":')
    for (let i = 0; i < 50; i++) await honest()
    for (const attackers of [endless, slow, unread]) await disperse(attackers)
    await once(half, 'close')
    await asBefore(t)
  })

  for (const [what, count, says] of [
    ['who say nothing', 1000, {}],
    ['who keep asking', 200, { SAYS: '{"cmd":"hello"}\n', EVERY_MS: '200' }],
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
      const answer = await get({ port: metrics }, '/livez', 5_000)
      if (answer.status !== 200) t.fail(`/livez: ${answer.status}`)
    }
    for (const [what, env] of [
      ['no byte', { CONNECTIONS: '500' }],
      ['slow headers', { CONNECTIONS: '200', SAYS: 'GET /metrics HTTP/1.1\r\nX: ', EVERY_MS: '50' }],
      ['huge headers', { CONNECTIONS: '50', SAYS: `GET / HTTP/1.1\r\nX: ${'y'.repeat(100_000)}` }],
      [
        'pipelined scrapes that nobody reads',
        { CONNECTIONS: '50', UNREAD: '1', SAYS: 'GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n'.repeat(100) },
      ],
    ] as const) {
      const attackers = await crowd(t, { WHERE: String(metrics), ...env })
      for (let i = 0; i < 20; i++) await livez()
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
    // Each of them had the client's own deadline, 5 s for the connection and 5 s for the answer.
    t.ok(latenciesMs.length > 60)
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
