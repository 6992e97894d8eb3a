import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import t from 'tap'

import {
  commandUsage,
  parseArguments,
  RELOAD,
  STATUS as STATUS_COMMAND,
  unknownCommand,
} from '../src/cli/args.ts'
import { renderDrains, renderMasters, renderStatus, renderVerdict } from '../src/cli/status.ts'
import { formatDuration, printable } from '../src/cli/text.ts'
import type { Status, WorkerStatus } from '../src/master/face.ts'
import { ledgerOf, NO_COUNTS } from '../src/master/figures/ledger.ts'
import { fakeMaster as master, scratch, usr2 } from './helpers/client.ts'
import { DRAINED, progress, PROMOTED, ROLLED_BACK, STATUS } from './helpers/fake-face.ts'

const root = fileURLToPath(new URL('..', import.meta.url))

const withCuts = (cut: number) =>
  ledgerOf(
    { ...NO_COUNTS, accepted: 20 + cut, earlier: 20, endings: { ...NO_COUNTS.endings, cut } },
    null,
    'here',
  )

t.test('rendering', async (t) => {
  t.test('durations', async (t) => {
    t.strictSame(
      [0, 800, 2100, 9949, 9950, 42_000, 119_400, 120_000, 7_200_000, 18_720_000, 273_600_000].map(
        formatDuration,
      ),
      [
        '0 ms',
        '800 ms',
        '2.1 s',
        '9.9 s',
        '10 s',
        '42 s',
        '119 s',
        '2 min',
        '2 h 0 min',
        '5 h 12 min',
        '3 d 4 h',
      ],
    )
  })

  t.test('a steady master', async (t) => {
    t.equal(
      renderStatus(STATUS),
      `shop: steady, 2 of 2 slots ready, pid 4242, up 3 h 12 min (usr2 0.1.0, Node 20.20.2)

generation 8, current: version 42, /srv/releases/42/server.js
  SLOT   PID  PHASE  READY     UP  CONNS  ACTIVE  REQUESTS  CUT     RSS  NOTES
     0  4243  ready  -      3 min     12       1      1200    0  96 MiB
     1  4244  ready  -      3 min     12       1      1200    0  96 MiB

listeners:
  tcp:[::]:3000  2 workers accepting
`,
    )
  })

  t.test('--drain: what holds the workers that leave', async (t) => {
    const [current] = STATUS.generations
    const worker = current?.workers[0]
    if (current === undefined || worker === undefined) throw new Error('no worker')
    t.equal(renderDrains(STATUS), 'shop: no worker is leaving\n')
    const draining = (holding: WorkerStatus['holding']): string => {
      const old = { ...worker, phase: 'draining' as const, waitsFor: 'for 2 connections', holding }
      return renderDrains({ ...STATUS, generations: [{ ...current, role: 'old', workers: [old] }] })
    }
    const common = { bytesRead: 80, bytesWritten: 9000, peer: '127.0.0.1:5' }
    const text = draining({
      oldest: [
        { what: 'request', method: 'GET', path: '/export\u001b', ageMs: 12_000, ...common },
        { what: 'websocket', ageMs: 90_000, ...common },
      ],
      kinds: { request: 1, websocket: 1 },
      resources: { TCPSocketWrap: 2 },
      saidMsAgo: 300,
    })
    t.match(text, 'generation 8, slot 0, pid 4243: draining, waits for 2 connections\n  13 connections: ')
    t.match(text, 'held 300 ms ago by 2: 1 request, 1 websocket; the oldest:\n')
    t.match(text, /request +GET \/export\\x1b +12 s +80 +9000 +127\.0\.0\.1:5\n/)
    t.match(text, /websocket +- +90 s /)
    t.match(
      draining({ oldest: [], kinds: {}, resources: { Timeout: 2 }, saidMsAgo: 100 }),
      "no connection holds it; the app's own: 2 Timeout\n",
    )
    t.match(
      draining({ oldest: [], kinds: {}, resources: {}, saidMsAgo: 9000 }),
      'has not said a word for 9.0 s: its event loop is blocked\n',
    )
  })

  t.test('one with all that can be', async (t) => {
    const [current] = STATUS.generations
    if (current === undefined) throw new Error('no generation')
    const worker = current.workers[0]
    if (worker === undefined) throw new Error('no worker')
    const text = renderStatus({
      ...STATUS,
      state: 'rolling-out',
      ready: 1,
      waitsFor: 'for the first generation to serve',
      generations: [
        {
          ...current,
          id: 7,
          role: 'old',
          workers: [
            {
              ...worker,
              phase: 'terminating',
              ledger: withCuts(3),
              waitsFor: "for the app's own shutdown\n\u001b[31m",
            },
          ],
        },
        current,
        { ...current, id: 9, role: 'candidate', workers: [{ ...worker, pid: null, phase: 'booting' }] },
      ],
      listeners: [],
      vacancies: [
        { slot: 1, deaths: 3, retryInMs: 800 },
        { slot: 2, deaths: 1, retryInMs: 0 },
      ],
      lastVerdict: ROLLED_BACK,
    })
    t.match(text, '\nwaits for the first generation to serve\n')
    t.match(
      text,
      /0 +4243 +terminating +- +3 min +12 +1 +1200 +3 +96 MiB\n {8}waits for the app's own shutdown \\x1b\[31m\n/,
    )
    t.match(text, /0 +- +booting/)
    t.match(text, 'listeners: none\n')
    t.match(
      text,
      '  slot 1: 3 deaths in a row, tried again in 800 ms\n  slot 2: 1 death in a row, being filled\n',
    )
    t.match(text, 'last reload: generation 8 rolled back after 0.3 s; generation 7 goes on\n  Worker 0 of')
    t.ok(
      text.split('\n').every((line) => line.length <= 100 || line.includes('Worker 0')),
      'within 100 columns',
    )
    t.notMatch(text, /[^\n -~]/, 'plain ASCII')
  })

  t.test('a verdict, its reasons, and what a terminal would obey', async (t) => {
    t.equal(
      renderVerdict({ ...ROLLED_BACK, reasons: ['a\n  at b\n', '\u001b]0;x\u0007'] }),
      'generation 8 rolled back after 0.3 s; generation 7 goes on\n  a\n      at b\n  \\x1b]0;x\\x07',
    )
    t.equal(
      renderVerdict({
        ...ROLLED_BACK,
        text: 'rolled back: no database',
        reasons: ['no database', 'no disk'],
      }),
      'rolled back: no database\n  no disk',
    )
    t.equal(printable('a\tb\r\u009b'), 'a\tb\\x0d\\x9b')
  })

  t.test('masters', async (t) => {
    const blog: Status = {
      ...STATUS,
      name: 'a-long-name',
      pid: 7,
      state: 'starting',
      ready: 0,
      generations: [],
    }
    t.equal(
      renderMasters([
        { path: '/run/usr2/shop/control.sock', status: STATUS },
        { path: '/run/user/0/usr2/a-long-name.sock', status: blog },
      ]),
      [
        'NAME          PID  STATE     READY  GENERATION  VERSION  CONTROL',
        'shop         4242  steady      2/2           8  42       /run/usr2/shop/control.sock',
        'a-long-name     7  starting    0/2           -  -        /run/user/0/usr2/a-long-name.sock',
        '',
      ].join('\n'),
    )
  })
})

t.test('arguments', async (t) => {
  const good = parseArguments(RELOAD, [
    '--drop',
    'tcp:[::]:80',
    '--drop=unix:/a.sock',
    '--wait=drained',
    '--json',
  ])
  t.strictSame(good.complaints, [])
  t.strictSame(good.many('--drop'), ['tcp:[::]:80', 'unix:/a.sock'])
  t.equal(good.one('--wait'), 'drained')
  t.ok(good.has('--json'))
  t.notOk(good.has('--name'))

  const bad = parseArguments(RELOAD, [
    '--timout',
    '3s',
    '--timeout',
    '0',
    '--wait',
    '--json=yes',
    '--drop',
    '3000',
    '--name',
    'a',
    '--name',
    'b',
    '--control=',
    'now',
    '--',
  ])
  t.match(bad.complaints, [
    /--timout is no option of "usr2 reload"; did you mean --timeout\?/,
    /--timeout is "0"; it must be a time above 0, such as/,
    /--wait was given without a value; it must be promoted or drained/,
    /--json takes no value/,
    /--drop is "3000"; it must be a listener key/,
    /--name was given twice/,
    /--control is empty; it must be a PATH/,
    /takes no argument "now"/,
    /-- is no option/,
  ])
  t.match(parseArguments(RELOAD, ['--timeout', '30']).complaints, [/"30"; it must be a time/])
  t.match(parseArguments(RELOAD, ['--timeout', '999h']).complaints, [/"999h"; it must be a time/])
  t.match(parseArguments(STATUS_COMMAND, ['--drop', 'x']).complaints, [/"usr2 help status" lists them/])
  t.match(unknownCommand('relaod'), /did you mean "usr2 reload"/)
  t.match(unknownCommand('./server.mjs'), /did you mean "usr2 run \.\/server\.mjs"/)
  t.match(unknownCommand('frobnicate'), /commands are run, reload, rollback, promote, pause/)
  for (const line of commandUsage(RELOAD).split('\n')) t.ok(line.length <= 110)
})

t.test('usr2 status', async (t) => {
  const { path, face } = await master(t)
  const ready = await usr2(t, ['status', '--control', path]).ended
  t.match(ready, { code: 0, stdout: renderStatus(STATUS), stderr: '' })

  face.current = { ...STATUS, ready: 1 }
  const degraded = await usr2(t, ['status', '--json', `--control=${path}`]).ended
  t.match(degraded, { code: 1, stderr: '' })
  t.strictSame(JSON.parse(degraded.stdout), face.current)

  const none = await usr2(t, ['status', '--control', `${path}2`]).ended
  t.match(none, { code: 3, stdout: '' })
  t.match(none.stderr, `usr2: No usr2 master answers at:\n  ${path}2: no such file\n`)
})

t.test('finding the master', async (t) => {
  const run = join(scratch(t), 'run')
  const app = scratch(t)
  mkdirSync(join(run, 'usr2'), { recursive: true })
  writeFileSync(join(app, 'package.json'), '{"name":"@acme/shop"}')
  const { path } = await master(t, join(run, 'usr2', 'shop.sock'))
  const env = { XDG_RUNTIME_DIR: run }

  t.match(await usr2(t, ['status'], { cwd: app, env }).ended, { code: 0 }, "by the package's name")
  t.match(await usr2(t, ['status', '--name', 'shop'], { env }).ended, { code: 0 }, 'by --name')
  t.match(await usr2(t, ['status'], { env: { USR2_CONTROL: path } }).ended, { code: 0 }, 'by USR2_CONTROL')
  writeFileSync(join(app, 'package.json'), JSON.stringify({ name: 'x', usr2: { control: path, wrong: 1 } }))
  const beside = { cwd: app, env: { USR2_NAME: 'shop', ...env } }
  t.match(await usr2(t, ['status'], beside).ended, { code: 0 }, 'whatever is wrong with the config')

  const other = await usr2(t, ['reload', '--name', 'blog'], { env: { USR2_CONTROL: path, ...env } }).ended
  t.equal(other.code, 3)
  t.match(other.stderr, `${path}: the master there is "shop" (pid 4242), not "blog"`)
  t.match(other.stderr, `${run}/usr2/blog.sock: no such file`)

  const list = await usr2(t, ['ls'], { env }).ended
  t.equal(list.code, 0)
  t.match(list.stdout, /^NAME +PID .*\n(.*\n)*shop +4242 +steady +2\/2 +8 +42 +\/.*shop\.sock\n/)
  const json = JSON.parse((await usr2(t, ['ls', '--json'], { env }).ended).stdout) as { control: string }[]
  t.ok(json.some(({ control }) => control === path))
})

t.test('usr2 reload', async (t) => {
  t.test('promoted', async (t) => {
    const { path, face } = await master(t)
    face.onReload = ({ asker }) => {
      asker.progress(progress('generation 8: 1 of 2 workers ready'))
      asker.verdict(PROMOTED)
    }
    const argv = ['reload', '--control', path, '--drop', 'tcp:0.0.0.0:3000']
    const text = await usr2(t, argv).ended
    t.match(text, {
      code: 0,
      stdout: `generation 8: 1 of 2 workers ready\n${PROMOTED.text}\n`,
      stderr: '',
    })
    t.strictSame(face.reloads[0]?.request, { drop: ['tcp:0.0.0.0:3000'], wait: 'promoted' })
    const json = await usr2(t, [...argv, '--json']).ended
    t.match(
      json.stdout
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line) as unknown),
      [{ progress: { generation: 8 } }, { verdict: PROMOTED }],
    )
    t.strictSame(face.calls, ['reload', 'reload'])
  })

  t.test('drained', async (t) => {
    const { path, face } = await master(t)
    face.onReload = ({ asker }) => {
      asker.verdict(PROMOTED)
    }
    const client = usr2(t, ['reload', '--control', path, '--wait', 'drained'])
    await client.says(PROMOTED.text)
    face.reloads[0]?.asker.drained(DRAINED)
    t.match(await client.ended, { code: 0, stdout: `${PROMOTED.text}\n${DRAINED.text}\n` })
  })

  t.test('rolled back', async (t) => {
    const { path, face } = await master(t)
    face.onReload = ({ asker }) => asker.verdict(ROLLED_BACK)
    const text = await usr2(t, ['reload', '--control', path]).ended
    t.match(text, { code: 1, stdout: '', stderr: `usr2: ${renderVerdict(ROLLED_BACK)}\n` })
  })

  t.test('--timeout aborts', async (t) => {
    const { path, face } = await master(t)
    face.onAbort = ({ asker }, reason) => {
      asker.verdict({ ...ROLLED_BACK, outcome: 'overtaken', reasons: [reason] })
    }
    const { code, stderr } = await usr2(t, ['reload', '--control', path, '--timeout', '50ms']).ended
    t.equal(code, 1)
    t.match(stderr, 'usr2: The rollout was aborted: --timeout 50ms expired.\n')
    t.strictSame(face.calls, ['reload', 'abort --timeout 50ms expired'])
  })

  t.test('--timeout ends the wait for a drain, and says that this goes on', async (t) => {
    const { path, face } = await master(t)
    face.onReload = ({ asker }) => asker.verdict(PROMOTED)
    const argv = ['reload', '--control', path, '--timeout', '50ms', '--wait', 'drained']
    const { code, stdout, stderr } = await usr2(t, argv).ended
    t.match({ code, stdout }, { code: 1, stdout: `${PROMOTED.text}\n` })
    t.match(stderr, /is promoted, but the old one has not drained yet and goes on: --timeout 50ms expired\./)
    t.strictSame(face.calls, ['reload', 'detach'])
  })

  t.test('SIGTERM aborts', async (t) => {
    const { path, face } = await master(t)
    face.onAbort = ({ asker }) => asker.verdict({ ...ROLLED_BACK, outcome: 'overtaken' })
    const client = usr2(t, ['reload', '--control', path])
    await face.called('reload')
    client.child.kill('SIGTERM')
    const { code, stderr } = await client.ended
    t.equal(code, 143)
    t.match(stderr, /aborted: the client that asked for it got SIGTERM/)
  })

  t.test('SIGINT detaches, and says how to follow', async (t) => {
    const { path, face } = await master(t)
    const client = usr2(t, ['reload', '--control', path])
    await face.called('reload')
    client.child.kill('SIGINT')
    const { code, stderr } = await client.ended
    t.equal(code, 130)
    t.match(stderr, `the rollout goes on. To follow it: usr2 status --control ${path}\n`)
    await face.called('detach')
    t.strictSame(face.calls, ['reload', 'detach'])
  })

  t.test('the master is lost', async (t) => {
    const { path, face, control } = await master(t)
    const client = usr2(t, ['reload', '--control', path, '--json'])
    await face.called('reload')
    await control.close()
    const { code, stdout } = await client.ended
    t.equal(code, 4)
    t.match(JSON.parse(stdout), { error: /The master "shop" \(pid 4242\) was lost before the verdict/ })
    t.equal((await usr2(t, ['reload', '--control', path]).ended).code, 3)
  })
})

t.test('usr2 stop', async (t) => {
  const { path, face, control } = await master(t)
  face.onStop = (done) => done()
  const graceful = await usr2(t, ['stop', '--control', path]).ended
  t.equal(graceful.code, 0)
  t.match(graceful.stdout, /^stopping "shop" \(pid 4242\)\nstopped "shop" \(pid 4242\) in .*\n$/)
  await usr2(t, ['stop', '--now', '--control', path]).ended
  face.onStop = () => {}
  const slow = await usr2(t, ['stop', '--timeout', '50ms', '--control', path]).ended
  t.equal(slow.code, 1)
  t.match(slow.stderr, /has not stopped within 50ms; it goes on stopping/)
  const client = usr2(t, ['stop', '--control', path])
  await client.says('stopping')
  await control.close()
  t.equal((await client.ended).code, 4)
  t.strictSame(face.calls, ['stop graceful', 'stop now', 'stop graceful', 'stop graceful'])
})

t.test('usage', async (t) => {
  const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string }
  const [bare, help, topic, wrongTopic, flag, shown, unknown, wrong, runHelp] = await Promise.all(
    [
      [],
      ['--help'],
      ['help', 'reload'],
      ['help', 'relaod'],
      ['stop', '-h'],
      ['--version'],
      ['server.js'],
      ['reload', '--wait', 'x', '--timout', '1s'],
      ['run', '--help'],
    ].map((argv) => usr2(t, argv).ended),
  )
  t.match(bare, { code: 2, stdout: '', stderr: /^Usage: usr2 <command>/ })
  t.match(help, { code: 0, stdout: /^Usage: usr2 <command>/, stderr: '' })
  t.match(topic, { code: 0, stdout: commandUsage(RELOAD) })
  t.match(wrongTopic, { code: 2, stderr: 'usr2: "relaod" is no command; did you mean "usr2 reload"?\n' })
  t.match(flag, { code: 0, stdout: /^Usage: usr2 stop \[options\]/ })
  t.match(shown, { code: 0, stdout: `${version}\n` })
  t.match(unknown, { code: 2, stderr: /did you mean "usr2 run server\.js"/ })
  t.match(wrong, { code: 2, stdout: '', stderr: /^usr2: --wait is "x".*\nusr2: --timout is no option.*\n$/ })
  t.match(runHelp, { code: 0, stdout: /^Usage: usr2 run \[options\] <entry>/ })
})

t.test('a reader that hangs up early', async (t) => {
  const { path, face } = await master(t)
  const client = usr2(t, ['reload', '--control', path])
  await face.called('reload')
  client.child.stdout?.destroy()
  for (let i = 0; i < 10; i++) face.reloads[0]?.asker.progress(progress(`line ${i}`))
  face.reloads[0]?.asker.verdict(PROMOTED)
  t.match(await client.ended, { code: 0, stderr: '' })
  t.strictSame(face.calls, ['reload'])
})
