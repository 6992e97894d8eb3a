import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import net from 'node:net'
import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import fc from 'fast-check'
import t from 'tap'

import {
  askOrder,
  askReload,
  askRollback,
  askStatus,
  askStop,
  connectControl,
  findMaster,
  listMasters,
  MasterLostError,
  NoMasterError,
  RequestRefusedError,
} from '../../../src/master/control/control-client.ts'
import {
  Lines,
  MAX_REQUEST_BYTES,
  parseReply,
  parseRequest,
} from '../../../src/master/control/control-wire.ts'
import {
  ControlError,
  ControlInUseError,
  openControl,
  type ControlLimits,
} from '../../../src/master/control/control.ts'
import { PidFileError, removePidFile, writePidFile } from '../../../src/master/pid-file.ts'
import type { Progress, Verdict } from '../../../src/master/face.ts'
import type { Order } from '../../../src/rollout/state.ts'
import {
  DRAINED,
  FakeFace,
  progress,
  PROMOTED,
  ROLLED_BACK,
  ROLLING_OUT,
  ROLLOUT,
  STATUS,
} from '../../helpers/fake-face.ts'

/** Short, for the 107 bytes of a unix path (`t.testdir()` lies too deep), and removed at the end. */
function scratch(t: Tap): string {
  const directory = mkdtempSync(join(tmpdir(), 'usr2-'))
  t.teardown(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}
type Tap = Pick<typeof t, 'teardown' | 'equal'>

async function serve(t: Tap, limits: Partial<ControlLimits> = {}, path = join(scratch(t), 'c.sock')) {
  const face = new FakeFace()
  const warnings: string[] = []
  let drop = () => {}
  const dropped = new Promise<void>((resolve) => (drop = resolve))
  const log = {
    debug: (_: object, text: string) => {
      if (text.includes('does not read')) drop()
    },
    warn: (_: object, text: string) => warnings.push(text),
  }
  const control = await openControl({ path, face, log, limits })
  t.teardown(() => control.close())
  return { face, control, path, warnings, dropped }
}

const quiet = { debug: () => {}, warn: () => {} }

/** A client without manners: what it gets is kept as lines. */
async function raw(t: Tap, path: string) {
  const socket = net.connect(path)
  t.teardown(() => socket.destroy())
  let text = ''
  const errors: string[] = []
  socket.on('data', (chunk) => {
    text += chunk.toString()
    socket.emit('more')
  })
  socket.on('error', (error: NodeJS.ErrnoException) => errors.push(error.code ?? error.message))
  const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()))
  void closed.then(() => socket.emit('more'))
  await once(socket, 'connect')
  const lines = () => text.split('\n').slice(0, -1)
  return {
    socket,
    closed,
    lines,
    replies: () => lines().map((line) => JSON.parse(line) as Record<string, unknown>),
    /** Until `count` lines have come, or no more can come. */
    async got(count: number): Promise<string[]> {
      while (lines().length < count && !socket.closed) await once(socket, 'more')
      return lines()
    },
  }
}

/** The server is well: it answers somebody else. */
async function alive(t: Pick<Tap, 'equal'>, path: string): Promise<void> {
  t.equal((await askStatus(await connectControl(path))).name, 'shop')
}

t.test('the socket file', async (t) => {
  t.test('is 0600 whatever the umask, alone in its directory, and gone afterwards', async (t) => {
    const directory = scratch(t)
    const path = join(directory, 'c.sock')
    const umask = process.umask(0)
    t.teardown(() => process.umask(umask))
    const control = await openControl({ path, face: new FakeFace(), log: quiet })
    t.equal(lstatSync(path).mode & 0o777, 0o600)
    t.equal(process.umask(), 0, 'the umask is as it was')
    t.strictSame(readdirSync(directory), ['c.sock'], 'no temporary name is left')
    t.equal(control.path, path)
    await control.close()
    await control.close()
    t.strictSame(readdirSync(directory), [])
  })

  t.test('has the mode that was asked for', async (t) => {
    const path = join(scratch(t), 'c.sock')
    const control = await openControl({ path, mode: 0o660, face: new FakeFace(), log: quiet })
    t.teardown(() => control.close())
    t.equal(lstatSync(path).mode & 0o777, 0o660)
  })

  t.test('of a killed master is replaced', async (t) => {
    const path = join(scratch(t), 'c.sock')
    leaveStaleSocket(path)
    const stale = lstatSync(path).ino
    const { face } = await serve(t, {}, path)
    t.not(lstatSync(path).ino, stale)
    t.equal(face.calls.length, 0)
    await alive(t, path)
  })

  t.test('of a live master is not, and who it is is said', async (t) => {
    const { path } = await serve(t)
    const error = await rejection(openControl({ path, face: new FakeFace(), log: quiet }))
    t.ok(error instanceof ControlInUseError)
    t.match(error.message, /"shop" \(pid 4242\) answers there/)
    await alive(t, path)
  })

  t.test('of something else that accepts is not', async (t) => {
    const path = join(scratch(t), 'c.sock')
    const other = net.createServer((socket) => socket.on('error', () => {}).end('220 smtp\r\n'))
    other.listen(path)
    await once(other, 'listening')
    t.teardown(() => other.close())
    const error = await rejection(openControl({ path, face: new FakeFace(), log: quiet }))
    t.ok(error instanceof ControlInUseError)
    t.match(error.message, /another process answers there/)
  })

  t.test('of one of two masters that start at once', async (t) => {
    const path = join(scratch(t), 'c.sock')
    leaveStaleSocket(path)
    const both = await Promise.allSettled(
      [1, 2].map(() => openControl({ path, face: new FakeFace(), log: quiet })),
    )
    const won = both.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []))
    t.equal(won.length, 1)
    await won[0]?.close()
    t.notOk(existsSync(path))
  })

  t.test('that a successor has put at the path is left to it', async (t) => {
    const { path, control } = await serve(t)
    const successor = await serve(t, {}, `${path}2`)
    renameSync(`${path}2`, path)
    await control.close()
    t.ok(existsSync(path))
    await alive(t, path)
    renameSync(path, `${path}2`)
    await successor.control.close()
  })

  t.test('is never put in the place of anything else', async (t) => {
    const directory = scratch(t)
    const file = join(directory, 'file')
    const link = join(directory, 'link')
    const folder = join(directory, 'folder')
    writeFileSync(file, 'mine')
    symlinkSync(file, link)
    mkdirSync(folder)
    for (const [path, what] of [
      [file, /not a socket/],
      [link, /a symbolic link/],
      [folder, /a directory/],
    ] as const) {
      const error = await rejection(openControl({ path, face: new FakeFace(), log: quiet }))
      t.ok(error instanceof ControlError)
      t.match(error.message, what)
    }
    t.equal(readFileSync(file, 'utf8'), 'mine')
    t.strictSame(readdirSync(directory).sort(), ['file', 'folder', 'link'])
  })

  t.test('has its own directories, 0700, made and taken away', async (t) => {
    const directory = scratch(t)
    const path = join(directory, 'usr2', 'shop', 'control.sock')
    const control = await openControl({ path, face: new FakeFace(), log: quiet })
    t.equal(lstatSync(join(directory, 'usr2')).mode & 0o777, 0o700)
    t.equal(lstatSync(join(directory, 'usr2', 'shop')).mode & 0o777, 0o700)
    writeFileSync(join(directory, 'usr2', 'other'), '')
    await control.close()
    t.strictSame(readdirSync(join(directory, 'usr2')), ['other'], 'what others use stays')
    const deep = await rejection(
      openControl({ path: join(directory, 'a', 'b', 'c', 'd.sock'), face: new FakeFace(), log: quiet }),
    )
    t.match(deep.message, /there is no directory .*\/a\. Give another/)
    t.notOk(existsSync(join(directory, 'a')), 'a third level is not ours to make')
    const inFile = await rejection(
      openControl({ path: join(directory, 'usr2', 'other', 'd.sock'), face: new FakeFace(), log: quiet }),
    )
    t.match(inFile.message, /is not a directory/)
  })

  t.test(
    'in a directory that cannot be written',
    { skip: process.getuid?.() === 0 && 'root may' },
    async (t) => {
      const directory = scratch(t)
      chmodSync(directory, 0o500)
      const error = await rejection(
        openControl({ path: join(directory, 'c.sock'), face: new FakeFace(), log: quiet }),
      )
      t.match(error.message, /may not write to/)
    },
  )

  t.test('has a path of at most 107 bytes', async (t) => {
    const directory = scratch(t)
    const name = (bytes: number) => join(directory, 'x'.repeat(bytes - directory.length - 1))
    const { path } = await serve(t, {}, name(107))
    t.equal(Buffer.byteLength(path), 107)
    await alive(t, path)
    const error = await rejection(openControl({ path: name(108), face: new FakeFace(), log: quiet }))
    t.match(error.message, /has 108 bytes and may have 107: .*xxx/)
    t.strictSame(readdirSync(directory).length, 1)
  })
})

/** The file of a master that got SIGKILL: another process binds it and dies, so that nothing unlinks it. */
function leaveStaleSocket(path: string): void {
  const script = `require('net').createServer().listen(process.argv[1], () => process.kill(process.pid, 'SIGKILL'))`
  spawnSync(process.execPath, ['-e', script, path], { env: {}, timeout: 20_000 })
}

async function rejection(promise: Promise<unknown>): Promise<Error> {
  try {
    await promise
  } catch (error) {
    if (error instanceof Error) return error
  }
  throw new Error('This should have been refused.')
}

t.test('requests', async (t) => {
  t.test('hello and status, many on one connection', async (t) => {
    const { path } = await serve(t)
    const client = await raw(t, path)
    client.socket.write('{"cmd":"hello"}\n{"cmd":"status"}\r\n{"cmd":"hello"}\n')
    await client.got(3)
    t.match(client.replies(), [
      { hello: { protocol: 1, name: 'shop', pid: 4242, usr2: '0.1.0' } },
      { status: STATUS },
      { hello: {} },
    ])
  })

  t.test('what is wrong is said; only what is no JSON costs the connection', async (t) => {
    const { path, face } = await serve(t)
    const client = await raw(t, path)
    const wrong: readonly (readonly [string, RegExp])[] = [
      ['{"cmd":"launch"}', /Unknown command "launch"; known: hello, status, reload/],
      ['{"cmd":"constructor"}', /Unknown command/],
      ['{}', /Unknown command/],
      ['[]', /not a JSON object/],
      ['null', /not a JSON object/],
      ['{"cmd":"reload","dorp":["tcp:0.0.0.0:1"]}', /has no option "dorp"; known: drop, wait/],
      ['{"cmd":"status","x":1}', /it takes none/],
      ['{"cmd":"reload","drop":"tcp:0.0.0.0:1"}', /"drop" must be a list/],
      ['{"cmd":"reload","drop":["3000"]}', /"3000" in "drop" is not a listener key/],
      ['{"cmd":"reload","wait":"ever"}', /"wait" must be "promoted" or "drained"/],
      ['{"cmd":"stop","how":"fast"}', /"how" must be "graceful" or "now"/],
      ['{"cmd":"abort","reason":1}', /"reason" must be a string/],
      ['{"cmd":"abort"}', /nothing to abort/],
      ['{"cmd":"rollback","too":7}', /has no option "too"; known: to, wait/],
      ['{"cmd":"rollback","to":"7"}', /"to" must be the number of a generation, or null .* not "7"/],
      ['{"cmd":"rollback","to":0}', /"to" must be the number/],
      ['{"cmd":"rollback","to":1.5}', /"to" must be the number/],
      ['{"cmd":"rollback","to":1e999}', /"to" must be the number/],
      ['{"cmd":"rollback","wait":null,"to":7,"drop":[]}', /has no option "drop"/],
      ['{"cmd":"rollback","wait":"ever"}', /"wait" must be "promoted" or "drained"/],
      ['{"cmd":"order"}', /"what" must be an order, such as/],
      ['{"cmd":"order","what":["pause"]}', /"what" must be an order/],
      ['{"cmd":"order","k":"pause"}', /has no option "k"; known: what/],
      ['{"cmd":"order","what":{"k":"faster"}}', /Unknown order "faster"; known: promote, pause/],
      ['{"cmd":"order","what":{"k":"toString"}}', /Unknown order/],
      [
        '{"cmd":"order","what":{"k":"pause","for":1}}',
        /The order "pause" has no option "for"; it takes none/,
      ],
      ['{"cmd":"order","what":{"k":"promote","full":1}}', /"full" must be true or false, not 1/],
      ['{"cmd":"order","what":{"k":"scale"}}', /"to" must be a whole number from 1 to 1024/],
      ['{"cmd":"order","what":{"k":"scale","to":0}}', /"to" must be a whole number from 1 to 1024, not 0/],
      ['{"cmd":"order","what":{"k":"scale","to":1025}}', /not 1025/],
      ['{"cmd":"order","what":{"k":"scale","by":1}}', /The order "scale" has no option "by"; known: to/],
      ['{"cmd":"order","what":{"k":"scale-by","by":0}}', /"by" must be a whole number .* it is 0/],
      ['{"cmd":"order","what":{"k":"scale-by","by":0.5}}', /it is 0.5/],
      ['not json', /not a line of JSON/],
    ]
    client.socket.write(wrong.map(([line]) => `${line}\n`).join(''))
    await client.closed
    const replies = client.replies()
    t.equal(replies.length, wrong.length)
    for (const [i, [line, sentence]] of wrong.entries()) {
      t.match(replies[i], { error: sentence }, line)
    }
    t.strictSame(face.calls, [], 'and nothing was done')
    await alive(t, path)
  })

  t.test('a reload: progress, verdict, then the next request', async (t) => {
    const { path, face } = await serve(t)
    const client = await raw(t, path)
    client.socket.write('{"cmd":"reload","drop":["tcp:0.0.0.0:3000"]}\n')
    await face.called('reload')
    t.strictSame(face.reloads[0]?.request, { drop: ['tcp:0.0.0.0:3000'], wait: 'promoted' })
    client.socket.write('{"cmd":"status"}\n')
    t.match(JSON.parse((await client.got(1))[0] ?? ''), { error: /already waits for an answer/ })
    face.reloads[0]?.asker.progress(progress('generation 8: 1 of 2 workers ready'))
    face.reloads[0]?.asker.verdict(PROMOTED)
    face.reloads[0]?.asker.verdict(ROLLED_BACK)
    face.reloads[0]?.asker.drained(DRAINED)
    client.socket.write('{"cmd":"hello"}\n')
    await client.got(4)
    t.match(client.replies().slice(1), [
      { progress: { text: 'generation 8: 1 of 2 workers ready' } },
      { verdict: PROMOTED },
      { hello: {} },
    ])
    client.socket.destroy()
    await client.closed
    t.strictSame(face.calls, ['reload'], 'an answered reload is not detached')
  })

  t.test('a verdict that comes before the handle does', async (t) => {
    const { path, face } = await serve(t)
    face.onReload = ({ asker }) => asker.verdict({ ...ROLLED_BACK, outcome: 'refused' })
    const end = await askReload(await connectControl(path), { drop: [], wait: 'drained' })
    t.equal(end.verdict.outcome, 'refused')
    t.strictSame(face.calls, ['reload'])
  })

  t.test('wait for the drain', async (t) => {
    const { path, face } = await serve(t)
    face.onReload = ({ asker }) => {
      asker.progress(progress('a'))
      asker.verdict(PROMOTED)
    }
    const told: string[] = []
    const end = askReload(
      await connectControl(path),
      { drop: [], wait: 'drained' },
      {
        progress: ({ text }) => told.push(text),
        verdict: ({ outcome }) => {
          told.push(outcome)
          face.reloads[0]?.asker.drained(DRAINED)
        },
      },
    )
    t.strictSame(await end, { verdict: PROMOTED, drained: DRAINED })
    t.strictSame(told, ['a', 'promoted'])
  })

  t.test('a client that vanishes detaches, and only that', async (t) => {
    const { path, face } = await serve(t)
    for (const leave of ['destroy', 'end'] as const) {
      face.calls.length = 0
      const client = await raw(t, path)
      client.socket.write('{"cmd":"reload","wait":"drained"}\n')
      await face.called('reload')
      client.socket[leave]()
      await face.called('detach')
      face.reloads.at(-1)?.asker.verdict(PROMOTED)
      face.reloads.at(-1)?.asker.drained(DRAINED)
      await client.closed
      t.strictSame(face.calls, ['reload', 'detach'])
    }
    await alive(t, path)
  })

  t.test('an abort aborts, and its verdict is told', async (t) => {
    const { path, face } = await serve(t)
    face.onAbort = ({ asker }, reason) =>
      asker.verdict({ ...ROLLED_BACK, outcome: 'overtaken', reasons: [reason] })
    const connection = await connectControl(path)
    const end = askReload(connection, { drop: [], wait: 'promoted' })
    await face.called('reload')
    connection.send({ cmd: 'abort', reason: 'enough' })
    t.match((await end).verdict, { outcome: 'overtaken', reasons: ['enough'] })
    t.strictSame(face.calls, ['reload', 'abort enough'])
  })

  t.test('an abort that crosses the verdict changes nothing', async (t) => {
    const { path, face } = await serve(t)
    face.onReload = ({ asker }) => asker.verdict(PROMOTED)
    const connection = await connectControl(path)
    const end = askReload(connection, { drop: [], wait: 'drained' })
    connection.send({ cmd: 'abort', reason: 'late' })
    // The error that answers the abort is on its way when the drain ends.
    await alive(t, path)
    face.reloads[0]?.asker.drained(DRAINED)
    t.strictSame(await end, { verdict: PROMOTED, drained: DRAINED })
    t.strictSame(face.calls, ['reload'])
  })

  t.test('a rollback: as a reload, with where it goes', async (t) => {
    const { path, face } = await serve(t)
    const back: Verdict = { ...PROMOTED, kind: 'rollback', current: 7 }
    face.onRollback = ({ asker }) => {
      asker.progress(progress('generation 7 answers again'))
      asker.verdict(back)
    }
    const told: string[] = []
    const watcher = { progress: ({ text }: Progress) => told.push(text) }
    const end = askRollback(await connectControl(path), { to: 7, wait: 'drained' }, watcher)
    await face.called('rollback')
    face.rollbacks[0]?.asker.drained(DRAINED)
    t.strictSame(await end, { verdict: back, drained: DRAINED })
    t.strictSame(told, ['generation 7 answers again'])

    await askRollback(await connectControl(path), { to: null, wait: 'promoted' })
    t.strictSame(
      face.rollbacks.map(({ request }) => request),
      [
        { to: 7, wait: 'drained' },
        { to: null, wait: 'promoted' },
      ],
    )
    const client = await raw(t, path)
    client.socket.write('{"cmd":"rollback"}\n')
    await client.got(2)
    t.strictSame(face.rollbacks[2]?.request, { to: null, wait: 'promoted' }, 'what is not said')
  })

  t.test('a rollback that is aborted, and one whose client vanishes', async (t) => {
    const { path, face } = await serve(t)
    face.onAbort = ({ asker }, reason) =>
      asker.verdict({ ...ROLLED_BACK, kind: 'rollback', outcome: 'overtaken', reasons: [reason] })
    const connection = await connectControl(path)
    const end = askRollback(connection, { to: null, wait: 'promoted' })
    await face.called('rollback')
    connection.send({ cmd: 'abort', reason: 'enough' })
    t.match((await end).verdict, { outcome: 'overtaken', reasons: ['enough'] })
    const client = await raw(t, path)
    client.socket.write('{"cmd":"rollback"}\n')
    await face.called('rollback', 2)
    client.socket.destroy()
    await face.called('detach')
    t.strictSame(face.calls, ['rollback', 'abort enough', 'rollback', 'detach'])
  })

  t.test('an upgrade to another Node: not for a group', async (t) => {
    for (const [mode, calls] of [
      [0o600, ['upgrade', 'upgrade']],
      [0o660, ['upgrade']],
    ] as const) {
      const path = join(scratch(t), 'c.sock')
      const face = new FakeFace()
      face.onUpgrade = ({ asker }) => asker.verdict({ ...PROMOTED, kind: 'upgrade' })
      const control = await openControl({ path, mode, face, log: quiet })
      t.teardown(() => control.close())
      const client = await raw(t, path)
      client.socket.write('{"cmd":"upgrade"}\n{"cmd":"upgrade","node":"/tmp/evil"}\n')
      await client.got(2)
      t.strictSame(face.calls, calls)
      if (mode === 0o660)
        t.match(client.replies()[1], { error: /may not choose a program .* without --node/ })
    }
  })

  t.test('orders: done, or refused with the reason, many on one connection', async (t) => {
    const { path, face } = await serve(t)
    const orders: readonly Order[] = [
      { k: 'promote', full: false },
      { k: 'promote', full: true },
      { k: 'pause' },
      { k: 'resume' },
      { k: 'abort' },
      { k: 'scale', to: 1024 },
      { k: 'scale-by', by: -1 },
    ]
    for (const what of orders) t.equal(await askOrder(await connectControl(path), what), null, what.k)
    t.strictSame(face.orders, orders)

    face.onOrder = (_, done) => {
      done('No rollout runs.')
      done(null)
    }
    t.equal(await askOrder(await connectControl(path), { k: 'pause' }), 'No rollout runs.')
    const client = await raw(t, path)
    client.socket.write('{"cmd":"order","what":{"k":"promote"}}\n{"cmd":"hello"}\n')
    await client.got(2)
    t.match(client.replies(), [{ refused: 'No rollout runs.' }, { hello: {} }], 'answered once')
    t.strictSame(face.orders.at(-1), { k: 'promote', full: false })
  })

  t.test('an order that is answered later, or never to a client that has gone', async (t) => {
    const { path, face } = await serve(t)
    const answers: ((problem: string | null) => void)[] = []
    face.onOrder = (_, done) => answers.push(done)
    const order = askOrder(await connectControl(path), { k: 'resume' })
    const gone = await raw(t, path)
    gone.socket.write('{"cmd":"order","what":{"k":"pause"}}\n{"cmd":"status"}\n')
    await face.called('order pause')
    t.match(JSON.parse((await gone.got(1))[0] ?? ''), { error: /already waits for an answer/ })
    gone.socket.destroy()
    await gone.closed
    await alive(t, path)
    for (const answer of answers) answer(null)
    t.equal(await order, null)
    await alive(t, path)
  })

  t.test('stop', async (t) => {
    const { path, face } = await serve(t)
    let begun = 0
    const stopped = askStop(await connectControl(path), 'now', () => begun++)
    await face.called('stop now')
    t.equal(face.stops.length, 1)
    face.stops[0]?.()
    await stopped
    t.equal(begun, 1)
  })

  t.test('a face that throws costs one client', async (t) => {
    const { path, face, warnings } = await serve(t)
    const { status } = face
    face.status = () => {
      throw new Error('oops')
    }
    const client = await raw(t, path)
    client.socket.write('{"cmd":"status"}\n')
    await client.closed
    t.match(client.replies(), [{ error: /could not answer "status": oops/ }])
    t.match(warnings, [/"status" failed/])
    face.status = status
    await alive(t, path)
  })
})

t.test('hostile clients', async (t) => {
  t.test('an oversized request', async (t) => {
    const { path } = await serve(t)
    for (const end of ['', '\n']) {
      const client = await raw(t, path)
      client.socket.write(`"${'x'.repeat(MAX_REQUEST_BYTES)}"${end}`)
      await client.closed
      t.match(client.replies(), [{ error: /longer than 65536 bytes/ }])
    }
    const client = await raw(t, path)
    client.socket.write(`${JSON.stringify('x'.repeat(MAX_REQUEST_BYTES - 2))}\n`)
    t.match((await client.got(1))[0], /not a JSON object/, 'the limit itself is within it')
    await alive(t, path)
  })

  t.test('an endless one', async (t) => {
    const { path } = await serve(t, { farewellMs: 100 })
    const client = await raw(t, path)
    const chunk = Buffer.alloc(64 * 1024, 'x')
    const pour = () => {
      while (!client.socket.destroyed && client.socket.write(chunk));
    }
    client.socket.on('drain', pour)
    pour()
    await client.closed
    t.ok(client.socket.bytesWritten < 1e10)
    await alive(t, path)
  })

  t.test('a slow one', async (t) => {
    const { path } = await serve(t, { requestTimeoutMs: 100 })
    const [silent, dripping, idle] = await Promise.all([raw(t, path), raw(t, path), raw(t, path)])
    dripping.socket.write('{"cmd"')
    idle.socket.write('{"cmd":"hello"}\n')
    await Promise.all([silent.closed, dripping.closed, idle.closed])
    t.match(silent.replies(), [{ error: /No whole request came within 0.1 s/ }])
    t.match(dripping.replies(), [{ error: /No whole request/ }])
    t.match(idle.replies(), [{ hello: {} }, { error: /No whole request/ }])
  })

  t.test('a reload has no such deadline', async (t) => {
    const { path, face } = await serve(t, { requestTimeoutMs: 50 })
    const end = askReload(await connectControl(path), { drop: [], wait: 'drained' })
    const other = await raw(t, path)
    await face.called('reload')
    await other.closed // which is a deadline later
    face.reloads[0]?.asker.verdict(PROMOTED)
    const another = await raw(t, path)
    await another.closed
    face.reloads[0]?.asker.drained(DRAINED)
    t.strictSame((await end).drained, DRAINED)
  })

  t.test('too many: who says nothing makes way, and whoever waits for nothing', async (t) => {
    const { path, face } = await serve(t, { connections: 3, waiting: 2, graceMs: 0 })
    const waiting = await raw(t, path)
    waiting.socket.write('{"cmd":"reload"}\n')
    await face.called('reload')
    const [asked, silent] = [await raw(t, path), await raw(t, path)]
    asked.socket.write('{"cmd":"hello"}\n')
    await asked.got(1)
    for (let i = 0; i < 10; i++) await alive(t, path)
    await silent.closed
    t.match(silent.replies(), [{ error: /has 3 connections, which is its limit/, busy: true }])
    t.equal(asked.socket.closed, false, 'who said something goes last')
    const others = await Promise.all([raw(t, path), raw(t, path), raw(t, path)])
    await others[0]?.closed
    for (let i = 0; i < 3; i++) {
      const other = await raw(t, path)
      other.socket.write('{"cmd":"hello"}\n')
      await other.got(1)
    }
    await asked.closed
    t.match(asked.replies(), [{ hello: {} }, { error: /its limit/, busy: true }])
    face.reloads[0]?.asker.verdict(PROMOTED)
    t.match(JSON.parse((await waiting.got(1))[0] ?? ''), { verdict: PROMOTED })
  })

  t.test('too many: who has just begun to ask stays until it has its answer', async (t) => {
    const { path } = await serve(t, { connections: 2, graceMs: 60_000 })
    const asking = await Promise.all([raw(t, path), raw(t, path)])
    for (const client of asking) {
      client.socket.write('{"cmd":"hello"}\n')
      await client.got(1)
    }
    const over = await raw(t, path)
    await over.closed
    t.match(over.replies(), [{ error: /its limit/, busy: true }])
    t.match(await rejection(connectControl(path, { timeoutMs: 300 })), { message: /its limit/ })
    for (const client of asking) {
      client.socket.write('{"cmd":"status"}\n')
      t.equal((await client.got(2)).length, 2)
    }
    const later = connectControl(path)
    asking[0]?.socket.end()
    ;(await later).close()
  })

  t.test('too many that wait: a status still gets in', async (t) => {
    const { path, face } = await serve(t, { connections: 4, waiting: 3 })
    const wait = async () => {
      const client = await raw(t, path)
      client.socket.write('{"cmd":"reload","wait":"drained"}\n')
      return client
    }
    for (let i = 0; i < 3; i++) await wait()
    await face.called('reload', 3)
    const over = await wait()
    t.match(JSON.parse((await over.got(1))[0] ?? ''), {
      error: /3 clients wait for a verdict .* Nothing was begun\. SIGUSR2 to the master/,
    })
    t.equal(face.reloads.length, 3)
    await alive(t, path)
    t.equal(await askOrder(await connectControl(path), { k: 'abort' }), null)
    for (const { asker } of face.reloads) asker.verdict(ROLLED_BACK)
    await wait()
    await face.called('reload', 4)
  })

  t.test('one that does not read', async (t) => {
    const { path, face } = await serve(t)
    const client = await raw(t, path)
    client.socket.write('{"cmd":"reload"}\n')
    client.socket.pause()
    await face.called('reload')
    const long = progress('x'.repeat(10_000))
    let sent = 0
    for (; sent < 1000 && !face.calls.includes('detach'); sent++) face.reloads[0]?.asker.progress(long)
    t.ok(face.calls.includes('detach'), `dropped after ${sent} lines of 10 kB`)
    t.ok(sent > 100, 'not before a MiB is waiting')
    client.socket.resume()
    await client.closed
    await alive(t, path)
  })

  t.test('one that pipelines without reading', async (t) => {
    const { path, dropped } = await serve(t, { unreadBytes: 10_000 })
    const client = await raw(t, path)
    client.socket.pause()
    client.socket.write('{"cmd":"status"}\n'.repeat(100_000))
    const other = await raw(t, path)
    other.socket.write('{"cmd":"hello"}\n')
    await other.got(1)
    await dropped
    client.socket.resume()
    await client.closed
    t.ok(client.lines().length < 100_000)
    await alive(t, path)
  })

  t.test('one that hangs up, over and over', async (t) => {
    const { path, warnings } = await serve(t)
    const ends: Promise<void>[] = []
    for (let i = 0; i < 60; i++) {
      const client = await raw(t, path)
      client.socket.write(i % 2 ? '{"cmd":"status"}\n' : '{"cmd":')
      client.socket.destroy()
      ends.push(client.closed)
    }
    await Promise.all(ends)
    await alive(t, path)
    t.strictSame(warnings, [])
  })
})

t.test('the wire', async (t) => {
  t.test('lines are the same however they are cut', async (t) => {
    fc.assert(
      fc.property(
        fc.array(fc.string({ unit: 'grapheme', maxLength: 30 })),
        fc.array(fc.nat({ max: 20 })),
        (texts, cuts) => {
          const lines = texts.map((text) => text.replaceAll('\n', ' '))
          const bytes = Buffer.from(lines.map((line) => `${line}\n`).join(''))
          const splitter = new Lines(1000)
          const taken: string[] = []
          let at = 0
          for (const length of [...cuts, bytes.length]) {
            splitter.push(bytes.subarray(at, at + length))
            at += length
            for (let next = splitter.take(); next !== null; next = splitter.take()) {
              if (next === 'too-long') throw new Error('too long')
              taken.push(next.line)
            }
          }
          t.strictSame(taken, lines)
        },
      ),
      { numRuns: 50 },
    )
  })

  t.test('no text makes the guards throw', async () => {
    fc.assert(
      fc.property(fc.oneof(fc.string(), fc.json()), (text) => {
        parseRequest(text)
        parseReply(text)
      }),
      { numRuns: 500 },
    )
  })

  t.test('what is nested deeper than JSON.stringify goes is not quoted', async (t) => {
    const depth = MAX_REQUEST_BYTES / 2 - 20
    for (const [open, close, what] of [
      ['[', ']', /Unknown command a list/],
      ['{"a":', '1}', /not a JSON object|Unknown command an object|not a line of JSON/],
    ] as const) {
      const line = `{"cmd":${open.repeat(depth)}${close.repeat(depth)}}`
      const parsed = parseRequest(line)
      t.match('error' in parsed ? parsed.error : '', what)
    }
    const deep = '['.repeat(30_000) + ']'.repeat(30_000)
    for (const wrong of [
      `{"cmd":"abort","reason":${deep}}`,
      `{"cmd":"stop","how":${deep}}`,
      `{"cmd":"rollback","to":${deep}}`,
      `{"cmd":"order","what":{"k":${deep}}}`,
      `{"cmd":"order","what":{"k":"scale","to":${deep}}}`,
    ])
      t.match(parseRequest(wrong), { error: /a list/ })
  })

  t.test('a long unknown command is quoted short', async (t) => {
    const parsed = parseRequest(JSON.stringify({ cmd: '\u001b[2J'.repeat(1000) }))
    t.ok('error' in parsed && parsed.error.length < 200 && !parsed.error.includes('\u001b'))
  })

  t.test('a status with all that a rollout has comes through as it was', async (t) => {
    const reply = { status: { ...ROLLING_OUT, lastVerdict: { ...ROLLED_BACK, kind: 'rollback' as const } } }
    t.strictSame(parseReply(JSON.stringify(reply)), { ok: reply })
    for (const [key, wrong] of [
      ['rollout', { ...ROLLOUT, steps: [{ text: 'hold', state: 'soon' }] }],
      ['rollout', { ...ROLLOUT, accepting: { current: 4 } }],
      ['parked', { generation: 6, leftMs: null }],
      ['bootable', ['6']],
    ] as const) {
      t.match(parseReply(JSON.stringify({ status: { ...ROLLING_OUT, [key]: wrong } })), {
        error: /does not know it/,
      })
    }
  })

  t.test("a newer master's additions are no obstacle", async (t) => {
    t.match(parseReply(JSON.stringify({ status: { ...STATUS, mood: 'fine' } })), { ok: { status: STATUS } })
    t.match(parseReply('{"mood":"fine"}'), { error: /does not know it/ })
  })
})

t.test('the client', async (t) => {
  /** A master that says what the test makes it say. */
  async function pretend(t: Tap, answer: (line: string, socket: net.Socket) => void): Promise<string> {
    const path = join(scratch(t), 'c.sock')
    const sockets = new Set<net.Socket>()
    const server = net.createServer((socket) => {
      sockets.add(socket)
      socket.on('error', () => {})
      socket.on('data', (chunk) => {
        for (const line of chunk.toString().split('\n').slice(0, -1)) answer(line, socket)
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
  const hello = (protocol = 1) =>
    `{"hello":{"protocol":${protocol},"name":"shop","pid":4242,"usr2":"9.0.0"}}\n`

  t.test('names every place it tried, and why each was none', async (t) => {
    const directory = scratch(t)
    const stale = join(directory, 'stale.sock')
    leaveStaleSocket(stale)
    const mute = await pretend(t, () => {})
    const smtp = await pretend(t, (_, socket) => socket.write('220 smtp\r\n'))
    const newer = await pretend(t, (_, socket) => socket.write(hello(2)))
    const short = await pretend(t, (_, socket) => socket.end())
    const error = await rejection(
      findMaster([join(directory, 'none'), stale, mute, smtp, newer, short], { timeoutMs: 100 }),
    )
    t.ok(error instanceof NoMasterError)
    t.match(error.message, `${join(directory, 'none')}: no such file`)
    t.match(error.message, `${stale}: nothing listens there`)
    t.match(error.message, `${mute}: no answer within 0.1 s`)
    t.match(error.message, `${smtp}: a reply cannot be read: it is not a line of JSON`)
    t.match(error.message, `${newer}: the master "shop" (pid 4242) is usr2 9.0.0, whose control protocol 2`)
    t.match(error.message, `${short}: the connection ended`)
  })

  t.test('takes the first that answers, and by name only that one', async (t) => {
    const { path } = await serve(t)
    const found = await findMaster(['/nonexistent/c.sock', path], { name: 'shop' })
    t.equal(found.path, path)
    found.close()
    const error = await rejection(findMaster([path], { name: 'blog' }))
    t.match(error.message, /the master there is "shop" \(pid 4242\), not "blog"/)
    t.match((await rejection(findMaster([]))).message, /No usr2 master answers\./)
  })

  t.test('knows a master that is lost from one that refuses', async (t) => {
    const dies = await pretend(t, (line, socket) => {
      if (line.includes('hello')) socket.write(hello())
      else socket.end()
    })
    const lost = await rejection(askReload(await connectControl(dies), { drop: [], wait: 'promoted' }))
    t.ok(lost instanceof MasterLostError)
    const refuses = await pretend(t, (line, socket) => {
      socket.write(line.includes('hello') ? hello() : '{"error":"Not today."}\n')
    })
    const refused = await rejection(askReload(await connectControl(refuses), { drop: [], wait: 'promoted' }))
    t.ok(refused instanceof RequestRefusedError)
    t.match(refused.message, /Not today/)
    const babbles = await pretend(t, (_, socket) => socket.write(hello()))
    t.match((await rejection(askStop(await connectControl(babbles), 'now'))).message, /something else/)
  })

  t.test('who waits for an end knows a master that has long to do from one that hangs', async (t) => {
    const pulse = { everyMs: 10, timeoutMs: 200 }
    /** Says on each connection but the first `answer` to a hello, and ends the stop when that was asked often enough. */
    const busyWithAStop = async (answer: string, looks: number): Promise<void> => {
      let hellos = 0
      let asker: net.Socket | undefined
      const path = await pretend(t, (line, socket) => {
        if (line.includes('stop')) {
          asker = socket
          socket.write('{"stopping":true}\n')
          return
        }
        socket.write(hellos++ === 0 ? hello() : answer)
        if (hellos > looks) asker?.write('{"stopped":true}\n')
      })
      await askStop(await connectControl(path), 'graceful', () => {}, { pulse })
      t.ok(hellos > looks, `${hellos} times asked`)
    }
    await busyWithAStop(hello(), 5)
    // A look takes its 200 ms with some four tries: these are several looks that found no master.
    await busyWithAStop('{"error":"No room.","busy":true}\n', 20)
    await busyWithAStop(hello(2), 5)

    let isHanging = false
    const hangs = await pretend(t, (_, socket) => {
      if (!isHanging) socket.write(hello())
      isHanging = true
    })
    const waiting = askReload(await connectControl(hangs), { drop: [], wait: 'promoted' }, {}, pulse)
    const lost = await rejection(waiting)
    t.ok(lost instanceof MasterLostError)
    t.equal(lost.message, 'it has said nothing for 0.2 s')
  })

  t.test('reads what was said before the end', async (t) => {
    const path = await pretend(t, (line, socket) => {
      if (line.includes('hello')) socket.write(hello())
      else socket.end(`{"stopping":true}\n{"stopped":true}\n`)
    })
    await askStop(await connectControl(path), 'graceful')
    t.pass('a master that exits right after its last word')
  })

  t.test('lists who answers', async (t) => {
    const directory = scratch(t)
    leaveStaleSocket(join(directory, 'dead.sock'))
    writeFileSync(join(directory, 'file.sock'), '')
    mkdirSync(join(directory, 'shop'))
    const { face } = await serve(t, {}, join(directory, 'shop', 'control.sock'))
    face.current = { ...STATUS, name: 'zebra' }
    await serve(t, {}, join(directory, 'blog.sock'))
    const masters = await listMasters([directory, directory, '/nonexistent'])
    t.strictSame(
      masters.map(({ path, status }) => [path.slice(directory.length), status.name]),
      [
        ['/blog.sock', 'shop'],
        ['/shop/control.sock', 'zebra'],
      ],
    )
  })
})

t.test('closing', async (t) => {
  const { face, control, path } = await serve(t, { farewellMs: 200 })
  const reloading = askReload(await connectControl(path), { drop: [], wait: 'promoted' })
  const mute = await raw(t, path)
  mute.socket.pause()
  const stopping = askStop(await connectControl(path), 'graceful')
  await Promise.all([face.called('reload'), face.called('stop')])
  face.stops[0]?.()
  const lost = rejection(reloading)
  await control.close()
  await stopping
  t.ok((await lost) instanceof MasterLostError)
  t.strictSame(face.calls.slice(-1), ['detach'])
  t.match(await rejection(connectControl(path)), { message: /no such file/ })
})

t.test('the pid file', async (t) => {
  const directory = scratch(t)
  const path = join(directory, 'app.pid')
  writeFileSync(`${path}.${process.pid}`, 'left by a killed master with our pid')
  writePidFile(path)
  t.equal(readFileSync(path, 'utf8'), `${process.pid}\n`)
  t.strictSame(readdirSync(directory), ['app.pid'])
  writePidFile(path, 1)
  t.notOk(removePidFile(path), "another's is left alone")
  t.ok(existsSync(path))
  t.ok(removePidFile(path, 1))
  t.notOk(existsSync(path))
  t.notOk(removePidFile(path), 'a file that is gone is no error')
  t.throws(() => writePidFile(join(directory, 'no', 'app.pid')), PidFileError)
  t.throws(() => writePidFile(join(directory, 'no', 'app.pid')), /its directory does not exist/)
  mkdirSync(path)
  t.throws(() => writePidFile(path), /it is a directory/)
  t.strictSame(readdirSync(directory), ['app.pid'], 'no temporary file is left')
})
