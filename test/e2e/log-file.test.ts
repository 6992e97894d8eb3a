/** `--log-file`: the master's own log in a file, through rotations. */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, renameSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { getJson } from '../helpers/http.ts'
import { expectNothingLeft } from '../helpers/spawn.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { startUsr2, type LogEvent } from '../helpers/usr2.ts'
import { until } from '../helpers/wait.ts'

const eventsIn = (file: string): LogEvent[] =>
  existsSync(file)
    ? readFileSync(file, 'utf8')
        .split('\n')
        .filter((line) => line !== '')
        .map((line) => JSON.parse(line) as LogEvent)
    : []

const untilIn = (file: string, event: string): Promise<true> =>
  until(() => eventsIn(file).some((line) => line.event === event), {
    what: `${event} in ${file}`,
    timeoutMs: 20_000,
    logs: () => (existsSync(file) ? readFileSync(file, 'utf8') : 'there is no such file'),
  })

t.test('logrotate: rename, SIGUSR1', async (t) => {
  const [port, directory] = [await freePort(t), shortTmp(t)]
  const [file, rotated] = [join(directory, 'usr2.log'), join(directory, 'usr2.log.1')]
  writeFileSync(file, '{"event":"of an earlier run"}\n')
  const usr2 = startUsr2(t, {
    fixture: 'http-app.cjs',
    flags: ['--log-file', file],
    env: { PORT: String(port) },
  })
  await untilIn(file, 'ready')
  t.equal(eventsIn(file)[0]?.event, 'of an earlier run', 'it is appended to')
  t.same(usr2.process.stderr, [], 'nothing on stderr')
  t.same(usr2.process.stdout, [`listening ${port}`], 'what workers print stays where it was')
  const { pid } = await getJson<{ pid: number }>({ port })

  renameSync(file, rotated)
  usr2.signal('SIGUSR1')
  await untilIn(file, 'log-reopened')
  const before = readFileSync(rotated, 'utf8')
  t.equal((await usr2.reload()).code, 0)
  t.ok(eventsIn(file).some(({ event }) => event === 'promoted'))
  t.equal(readFileSync(rotated, 'utf8'), before, 'the old file gets nothing more')
  t.not((await getJson<{ pid: number }>({ port })).pid, pid)

  // Something that cannot be opened is in the way.
  const again = join(directory, 'usr2.log.2')
  renameSync(file, again)
  mkdirSync(file)
  usr2.signal('SIGUSR1')
  await usr2.process.line(
    `usr2: The log file ${file} cannot be opened: it is a directory. Give another with --log-file. The file that was open goes on.`,
  )
  await untilIn(again, 'log-not-reopened')
  rmdirSync(file)
  usr2.signal('SIGUSR1')
  await untilIn(file, 'log-reopened')

  usr2.signal('SIGTERM')
  t.equal((await usr2.process.ended(20_000)).code, 0)
  await expectNothingLeft(t, usr2.process)
  t.equal(eventsIn(file).at(-1)?.event, 'stopped', 'to the last line')
})

t.test('a file that cannot be opened is said, and nothing is started', async (t) => {
  const directory = shortTmp(t)
  const pipe = join(directory, 'pipe')
  spawnSync('mkfifo', [pipe])
  const cases: readonly (readonly [string, RegExp])[] = [
    [
      join(directory, 'no', 'usr2.log'),
      /cannot be opened: there is no such directory\. Give another with --log-file\./,
    ],
    [directory, /cannot be opened: it is a directory\./],
    [pipe, /cannot be opened: it is a pipe or a socket, not a file\./],
  ]
  for (const [file, sentence] of cases) {
    const usr2 = startUsr2(t, { fixture: 'http-app.cjs', flags: ['--log-file', file], env: { PORT: '1' } })
    t.equal((await usr2.process.ended(20_000)).code, 2)
    t.match(usr2.process.stderr.join('\n'), sentence)
    t.equal(usr2.process.stderr.length, 1)
  }
})

t.test('whoever started it learns where the reasons are', async (t) => {
  const file = join(shortTmp(t), 'usr2.log')
  const usr2 = startUsr2(t, {
    entry: 'app.cjs',
    files: { 'app.cjs': 'throw new Error("no database")' },
    flags: ['--log-file', file],
  })
  t.equal((await usr2.process.ended(20_000)).code, 1)
  t.match(usr2.process.stderr.at(-1), `usr2: It gave up; ${file} has the reasons.`)
  t.match(eventsIn(file).at(-1)?.msg, /no database/)
})

t.test('without a log file SIGUSR1 is harmless', async (t) => {
  const usr2 = startUsr2(t, { fixture: 'http-app.cjs', env: { PORT: String(await freePort(t)) } })
  await usr2.ready()
  usr2.signal('SIGUSR1')
  await usr2.event('signal')
  await usr2.stop()
})
