import { chmodSync, closeSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { createNotifier, NOTIFY_ENV_KEYS, STATUS_BYTES } from '../../../src/master/systemd/systemd.ts'
import type { Notice, NotifierOptions } from '../../../src/master/systemd/systemd.ts'

const PID = 4711

/** A notifier whose runs of the program end when the test says so; `told` is what each run would have told. */
function setUp(options: Partial<NotifierOptions> = {}) {
  const told: string[] = []
  const warnings: string[] = []
  const running: { resolve: () => void; reject: (why: unknown) => void }[] = []
  let mostAtOnce = 0
  const notifier = createNotifier({
    env: { NOTIFY_SOCKET: '/run/systemd/notify', WATCHDOG_USEC: '20000000', WATCHDOG_PID: String(PID) },
    log: { warn: (_facts, text) => warnings.push(text) },
    run: (notice) => {
      told.push(asText(notice))
      return new Promise<void>((resolve, reject) => {
        running.push({ resolve, reject })
        mostAtOnce = Math.max(mostAtOnce, running.length)
      })
    },
    pid: PID,
    now: () => 123_456n,
    ...options,
  })
  const turn = () => new Promise<void>((resolve) => setImmediate(resolve))
  /** Ends the run in progress, and lets the next begin. */
  const end = async (why?: unknown) => {
    const run = running.shift()
    if (why === undefined) run?.resolve()
    else run?.reject(why)
    await turn()
  }
  const endAll = async () => {
    while (running.length > 0) await end()
  }
  return { notifier, told, warnings, end, endAll, mostAtOnce: () => mostAtOnce }
}

function asText(notice: Notice): string {
  if (notice.via === 'program') return notice.assignments.join(' ')
  return `${notice.ready ? 'READY=1 ' : ''}STATUS=${notice.status}`
}

t.test('a life: one run at a time, in order', async (t) => {
  const { notifier, told, endAll, mostAtOnce } = setUp()
  notifier.status('generation 1: starting')
  notifier.ready('generation 1 serves')
  notifier.reloading()
  notifier.ready('generation 2 serves')
  notifier.stopping('stopping')
  t.same(told, ['STATUS=generation 1: starting'], 'the second waits for the end of the first')
  await endAll()
  t.same(told, [
    'STATUS=generation 1: starting',
    'READY=1 STATUS=generation 1 serves',
    'RELOADING=1 MONOTONIC_USEC=123456',
    'READY=1 STATUS=generation 2 serves',
    'STOPPING=1 STATUS=stopping',
  ])
  t.equal(mostAtOnce(), 1)
})

t.test('of waiting texts, beats and extensions only the newest is sent', async (t) => {
  const { notifier, told, endAll } = setUp()
  notifier.status('being sent')
  for (let i = 1; i <= 100; i++) {
    notifier.status(`step ${i}`)
    notifier.watchdog()
    notifier.extendTimeout(i * 1000)
  }
  await endAll()
  t.same(told, ['STATUS=being sent', 'WATCHDOG=1', 'STATUS=step 100', 'EXTEND_TIMEOUT_USEC=100000000'])
})

t.test('a text that waits never overwrites the one of a later READY or STOPPING', async (t) => {
  const { notifier, told, endAll } = setUp()
  notifier.watchdog()
  notifier.status('2 of 4 ready')
  notifier.ready('serves')
  notifier.status('stopping soon')
  notifier.stopping('stops')
  await endAll()
  t.same(told, ['WATCHDOG=1', 'READY=1 STATUS=serves', 'STOPPING=1 STATUS=stops'])
})

t.test('RELOADING is sent once until READY closes it', async (t) => {
  const { notifier, told, endAll } = setUp()
  notifier.reloading()
  notifier.reloading()
  notifier.ready('a')
  notifier.reloading()
  notifier.ready('b')
  await endAll()
  t.same(
    told.map((line) => line.split('=')[0]),
    ['RELOADING', 'READY', 'RELOADING', 'READY'],
  )
})

t.test('after STOPPING: texts, beats and extensions, but no READY and no RELOADING', async (t) => {
  const { notifier, told, endAll } = setUp()
  notifier.reloading()
  notifier.stopping('stops')
  notifier.ready('too late')
  notifier.reloading()
  notifier.stopping('again')
  notifier.status('3 connections left')
  notifier.extendTimeout(1.5)
  await endAll()
  t.same(told, [
    'RELOADING=1 MONOTONIC_USEC=123456',
    'STOPPING=1 STATUS=stops',
    'STATUS=3 connections left',
    'EXTEND_TIMEOUT_USEC=1500',
  ])
})

t.test('a text cannot become an assignment, nor make a message that systemd drops', async (t) => {
  const { notifier, told, endAll } = setUp()
  notifier.ready('Error: no\n\0MAINPID=1\r\u2028FDSTORE=1')
  notifier.reloading()
  notifier.status('é😀'.repeat(5000))
  await endAll()
  t.equal(told[0], 'READY=1 STATUS=Error: no MAINPID=1 FDSTORE=1')
  const long = told[2]?.slice('STATUS='.length) ?? ''
  t.ok(Buffer.byteLength(long) <= STATUS_BYTES && Buffer.byteLength(long) > STATUS_BYTES - 10)
  t.match(long, /^(é😀)+é?…$/u, 'cut between characters')
})

t.test('failures: one warning for the whole life, READY is tried again, the queue goes on', async (t) => {
  const { notifier, told, warnings, end, endAll } = setUp()
  notifier.ready('serves')
  notifier.status('first')
  await end(new Error('Failed to notify init system: Connection refused'))
  await end('a string, as the package rejects')
  t.same(warnings, [], 'the third attempt may still succeed')
  await end(new Error('third'))
  t.equal(warnings.length, 1)
  t.match(warnings[0], /"ready".*third/)
  await end(new Error('fourth'))
  notifier.status('second')
  await endAll()
  t.same(told.slice(3), ['STATUS=first', 'STATUS=second'])
  t.equal(warnings.length, 1)
})

t.test(
  'flush waits for what was said, also for what is said while it waits; close takes nothing more',
  async (t) => {
    const { notifier, told, end } = setUp()
    notifier.stopping('stops')
    let flushed = false
    const done = notifier.flush().then(() => (flushed = true))
    notifier.status('nearly')
    notifier.close()
    notifier.status('after close')
    await end()
    t.notOk(flushed)
    await end()
    await done
    t.same(told, ['STOPPING=1 STATUS=stops', 'STATUS=nearly'])
    await notifier.flush()
  },
)

t.test('what is said in the very turn in which the queue ends is sent too', async (t) => {
  for (let turns = 0; turns <= 20; turns++) {
    const told: string[] = []
    const { notifier } = setUp({ run: async (notice) => void told.push(asText(notice)) })
    notifier.status('first')
    for (let i = 0; i < turns; i++) await Promise.resolve()
    notifier.status('last')
    await notifier.flush()
    t.equal(told.at(-1), 'STATUS=last', `${turns} turns later`)
  }
})

t.test('the watchdog', async (t) => {
  const intervalOf = (env: NotifierOptions['env']) =>
    setUp({ env: { NOTIFY_SOCKET: '@x', ...env } }).notifier.watchdogIntervalMs
  t.equal(intervalOf({ WATCHDOG_USEC: '20000000', WATCHDOG_PID: String(PID) }), 10_000)
  t.equal(intervalOf({ WATCHDOG_USEC: '3000' }), 1.5, 'no WATCHDOG_PID: any process')
  t.equal(intervalOf({ WATCHDOG_USEC: '3000', WATCHDOG_PID: '1' }), null, 'meant for another process')
  for (const usec of [undefined, '', '0', '-1', 'abc', '1.5'])
    t.equal(intervalOf({ WATCHDOG_USEC: usec }), null)
  t.equal(intervalOf({ NOTIFY_SOCKET: '', WATCHDOG_USEC: '3000' }), null, 'nobody to beat to')

  let healthy = true
  const told: string[] = []
  let onBeat = () => {}
  const { notifier } = setUp({
    env: { NOTIFY_SOCKET: '@x', WATCHDOG_USEC: '10000' },
    run: async (notice) => {
      told.push(asText(notice))
      onBeat()
    },
  })
  // The interval holds no process alive; something of ours must, meanwhile.
  const alive = setInterval(() => {}, 1000)
  t.teardown(() => clearInterval(alive))
  const beats = (count: number) =>
    new Promise<void>((resolve) => {
      onBeat = () => (--count === 0 ? resolve() : undefined)
    })
  const three = beats(3)
  notifier.startWatchdog(() => healthy)
  notifier.startWatchdog(() => true)
  await three
  healthy = false
  await notifier.flush()
  const before = told.length
  let asked = 0
  await new Promise<void>((resolve) => {
    const { notifier: other } = setUp({ env: { NOTIFY_SOCKET: '@x', WATCHDOG_USEC: '10000' } })
    other.startWatchdog(() => {
      if (++asked === 5) resolve()
      return false
    })
    t.teardown(() => other.close())
  })
  t.equal(told.length, before, 'an unhealthy master does not beat')
  notifier.close()
})

t.test('nobody listens, or nothing to say it with', async (t) => {
  const warnings: string[] = []
  const log = { warn: (_facts: object, text: string) => warnings.push(text) }
  const sayAll = async (env: NotifierOptions['env']) => {
    const notifier = createNotifier({ env, log })
    notifier.ready('a')
    notifier.reloading()
    notifier.status('b')
    notifier.watchdog()
    notifier.startWatchdog(() => t.fail('nobody expects a beat'))
    notifier.extendTimeout(1)
    notifier.stopping('c')
    await notifier.flush()
    notifier.close()
    return notifier
  }
  const alone = await sayAll({ PATH: process.env['PATH'], WATCHDOG_USEC: '1000' })
  t.match(alone, { enabled: false, watchdogIntervalMs: null })
  t.same(warnings, [], 'not under systemd: silence')

  const empty = t.testdir({
    'systemd-notify': { 'is a directory': '' },
    other: { 'systemd-notify': 'not executable' },
  })
  const without = await sayAll({
    NOTIFY_SOCKET: '@x',
    PATH: `${empty}:${join(empty, 'other')}`,
    WATCHDOG_USEC: '1000',
  })
  t.match(without, { enabled: false, watchdogIntervalMs: null })
  t.equal(warnings.length, 1)
  t.match(warnings[0], /no program systemd-notify in PATH/)
})

t.test('the program is called as it wants to be', async (t) => {
  // The package finds program and environment in process.env, so these are set there; each file has its own process.
  const directory = t.testdir({
    'systemd-notify':
      '#!/bin/sh\necho "$NOTIFY_SOCKET ${CANARY-unset} $*" >> "$0.log"\n[ ! -e "$0.fails" ] || { echo no >&2; exit 1; }\n',
  })
  chmodSync(join(directory, 'systemd-notify'), 0o755)
  const saved = { ...process.env }
  t.teardown(() => Object.assign(process.env, { PATH: saved['PATH'] }))
  Object.assign(process.env, { NOTIFY_SOCKET: '@x', CANARY: 'seen', PATH: `${directory}:${saved['PATH']}` })
  t.teardown(() => {
    delete process.env['NOTIFY_SOCKET']
    delete process.env['CANARY']
  })
  const warnings: string[] = []
  const log = { warn: (_facts: object, text: string) => warnings.push(text) }
  const notifier = createNotifier({ env: process.env, log, pid: PID, now: () => 5n })
  t.ok(notifier.enabled)
  notifier.ready('serves on')
  notifier.reloading()
  notifier.stopping('bye now')
  notifier.status('last words')
  await notifier.flush()
  t.same(readFileSync(join(directory, 'systemd-notify.log'), 'utf8').trim().split('\n'), [
    `@x seen --ready --pid=${PID} --status=serves on`,
    '@x unset RELOADING=1 MONOTONIC_USEC=5',
    '@x unset STOPPING=1 STATUS=bye now',
    `@x seen --pid=${PID} --status=last words`,
  ])
  t.same(warnings, [])
  mkdirSync(join(directory, 'systemd-notify.fails'))
  writeFileSync(join(directory, 'systemd-notify.log'), '')
  notifier.extendTimeout(1)
  notifier.status('x')
  await notifier.flush()
  t.match(warnings, [/"extend" by systemd-notify failed: no;/])
  t.equal(warnings.length, 1)
})

t.test('what must not reach a worker', async (t) => {
  for (const key of [
    'NOTIFY_SOCKET',
    'WATCHDOG_USEC',
    'WATCHDOG_PID',
    'LISTEN_FDS',
    'LISTEN_PID',
    'LISTEN_FDNAMES',
  ])
    t.ok(NOTIFY_ENV_KEYS.includes(key), key)
})

t.test('with a descriptor of systemd: each message is one write, and no program is looked for', async (t) => {
  const file = join(t.testdir(), 'messages')
  const fd = openSync(file, 'a')
  t.teardown(() => closeSync(fd))
  const warnings: string[] = []
  const notifier = createNotifier({
    // Without NOTIFY_SOCKET, too: the descriptor is enough.
    env: { PATH: '/nowhere', WATCHDOG_USEC: '20000000' },
    log: { warn: (_facts, text) => warnings.push(text) },
    ...{ fd, pid: PID, now: () => 123_456n },
  })
  t.equal(notifier.enabled, true)
  t.equal(notifier.watchdogIntervalMs, 10_000)
  notifier.ready('serves')
  notifier.reloading()
  notifier.watchdog()
  notifier.stopping('stops')
  await notifier.flush()
  t.equal(
    readFileSync(file, 'utf8'),
    'READY=1\nSTATUS=serves' +
      'RELOADING=1\nMONOTONIC_USEC=123456' +
      'WATCHDOG=1' +
      'STOPPING=1\nSTATUS=stops',
  )
  t.same(warnings, [])
})

t.test('a descriptor that does not take messages is one warning', async (t) => {
  const fd = openSync('/dev/full', 'w')
  t.teardown(() => closeSync(fd))
  const warnings: string[] = []
  const notifier = createNotifier({ env: {}, log: { warn: (_facts, text) => warnings.push(text) }, fd })
  notifier.status('one')
  await notifier.flush()
  notifier.status('two')
  await notifier.flush()
  t.match(warnings, [/^telling systemd "status" by its own descriptor failed: ENOSPC.*OpenFile=/])
})
