import { once } from 'node:events'
import net from 'node:net'
import path from 'node:path'
import t from 'tap'
import { bind, SendError } from '../src/index.ts'
import { ask, LOOPBACK, shortDir, SOON, start, within } from './helpers.ts'

async function rejection(promise: Promise<void>): Promise<SendError> {
  const error = await within(
    promise.then(
      () => undefined,
      (error: unknown) => error,
    ),
    'a rejection',
  )
  if (error instanceof SendError) return error
  throw error ?? new Error('it resolved')
}

async function refused(port: number): Promise<boolean> {
  const socket = net.connect(port, '127.0.0.1')
  const [event] = await Promise.race([
    once(socket, 'error').then(() => ['error']),
    once(socket, 'connect').then(() => ['connect']),
  ])
  socket.destroy()
  return event === 'error'
}

t.test('one socket, two children, and nobody for a while', async (t) => {
  const held = bind(LOOPBACK)
  t.teardown(() => held.close())
  const port = held.bound!.port
  t.ok(await refused(port), 'the owner does not listen')

  const [a, b] = [start(t, 'server', ['tcp']), start(t, 'server', ['tcp'])]
  await Promise.all([a.fact('ready'), b.fact('ready')])
  await held.sendTo(a.child, { hello: 'a' }, SOON)
  t.match(await a.fact('opened'), {
    opened: 0,
    message: { hello: 'a' },
    bound: held.bound,
    address: held.bound,
    accepting: true,
  })
  t.equal(await ask(port), `pid ${a.child.pid}`)

  a.command('withdraw')
  t.match(await a.fact('withdrawn'), { accepting: false, listening: true, receivedClosed: true })
  const waiting = Array.from({ length: 20 }, () => ask(port))
  // Each has connected, though nobody accepts: the kernel queues them.
  await once(net.connect(port, '127.0.0.1'), 'connect')

  await held.sendTo(b.child, {}, SOON)
  t.same(new Set(await Promise.all(waiting)), new Set([`pid ${b.child.pid}`]))

  await held.sendTo(a.child, {}, SOON)
  t.match(await a.fact('opened'), { opened: 0, accepting: true })
  b.command('withdraw')
  await b.fact('withdrawn')
  t.equal(await ask(port), `pid ${a.child.pid}`, 'opened again')

  a.command('close')
  t.match(await a.fact('closed'), { closed: true }, 'server.close() closes the real socket')
  t.match(await a.fact('serverClosed'), { listening: false })
  const orphan = ask(port)
  await held.sendTo(b.child, {}, SOON)
  t.equal(await orphan, `pid ${b.child.pid}`)
})

t.test('withdrawing and opening under new connections loses none', async (t) => {
  const held = bind(LOOPBACK)
  t.teardown(() => held.close())
  const [a, b] = [start(t, 'server', ['tcp']), start(t, 'server', ['tcp'])]
  await Promise.all([a.fact('ready'), b.fact('ready')])
  await Promise.all([a, b].map((one) => held.sendTo(one.child, {}, SOON)))
  await Promise.all([a.fact('opened'), b.fact('opened')])

  let running = true
  const served = new Map<string, number>()
  const clients = Array.from({ length: 8 }, async () => {
    while (running) {
      const said = await ask(held.bound!.port)
      served.set(said, (served.get(said) ?? 0) + 1)
    }
  })
  for (let cycle = 0; cycle < 50; cycle++) {
    // In every other cycle both are out for a moment.
    const out = cycle % 2 ? [a, b] : [cycle % 4 ? a : b]
    for (const one of out) one.command('withdraw')
    await Promise.all(out.map((one) => one.fact('withdrawn')))
    await Promise.all(out.map((one) => held.sendTo(one.child, {}, SOON)))
    const opened = await Promise.all(out.map((one) => one.fact('opened')))
    if (opened.some((fact) => fact.opened !== 0)) t.fail(`cycle ${cycle}: ${JSON.stringify(opened)}`)
  }
  running = false
  await Promise.all(clients) // rejects on a reset or refused connection
  t.same(
    [...served.keys()].sort(),
    [`pid ${a.child.pid}`, `pid ${b.child.pid}`].sort(),
    'both served, nothing was empty',
  )
})

t.test('a unix socket', async (t) => {
  const name = path.join(shortDir(t), 'a.sock')
  const held = bind({ kind: 'unix', path: name })
  t.teardown(() => held.close())
  const [a, b] = [start(t, 'server', ['unix', name]), start(t, 'server', ['unix', name])]
  await Promise.all([a.fact('ready'), b.fact('ready')])
  await held.sendTo(a.child, {}, SOON)
  t.match(await a.fact('opened'), { opened: 0, bound: null, address: name })
  t.equal(await ask(name), `pid ${a.child.pid}`)
  a.command('close')
  await a.fact('serverClosed')
  const waiting = ask(name)
  await held.sendTo(b.child, {}, SOON)
  t.equal(await waiting, `pid ${b.child.pid}`, 'the child left the path alone')
})

t.test('a blocked child: deadline, queue, and close', async (t) => {
  const held = bind(LOOPBACK)
  const { child, fact, command } = start(t, 'server', ['tcp'])
  child.on('error', (error) => t.fail(`an 'error' event: ${error}`))
  await fact('ready')
  const toBlocked = start(t, 'server', ['tcp'])
  await toBlocked.fact('ready')
  await held.sendTo(child, { keep: 0 }, SOON)
  await fact('opened')
  command('block 1500')
  toBlocked.command('block 1500')
  await Promise.all([fact('blocking'), toBlocked.fact('blocking')])
  const unsent = rejection(held.sendTo(toBlocked.child, {}, { timeoutMs: 300 }))
  const first = rejection(held.sendTo(child, { keep: 1 }, { timeoutMs: 300 }))
  const other = bind(LOOPBACK)
  const second = rejection(other.sendTo(child, { keep: 2 }, { timeoutMs: 300 }))
  const third = held.sendTo(child, { keep: 3 }, { timeoutMs: 20_000 })
  t.throws(
    () => held.close(),
    /Cannot close the socket of 127\.0\.0\.1:\d+ while 3 sends of it are open: await/,
  )
  const error = await first
  t.match(error, { code: 'timeout', mayArrive: true })
  t.equal(
    error.message,
    `Child ${child.pid} did not acknowledge the socket of 127.0.0.1:${held.bound!.port} within 300 ms: ` +
      'it is blocked, or out of file descriptors. The socket may still reach it.',
  )
  t.match(await unsent, { code: 'timeout', mayArrive: false, message: /not called onReceive/ })
  // The first had left Node's hands, so the second went into Node's queue; the third waits in ours.
  t.match(await second, { code: 'timeout', mayArrive: true })
  other.close() // while Node still has its handle to write: neither an 'error' nor a lost one
  await fact('unblocked')
  await within(third, 'the third send')
  t.match(await fact('opened'), { message: { keep: 1 } }, 'what was given up on may still arrive')
  t.match(await fact('opened'), { message: { keep: 2 }, bound: other.bound })
  held.close()
  t.equal(child.listenerCount('internalMessage'), 1, "only Node's own listener is left on the child")
})

t.test('a socket that is sent before the child listens waits for it', async (t) => {
  using held = bind(LOOPBACK)
  const { child, fact } = start(t, 'server', ['tcp'])
  await held.sendTo(child, {}, SOON)
  t.match(await fact('opened'), { opened: 0 })
})

t.test('sends wait for each other and are all acknowledged', async (t) => {
  const sockets = Array.from({ length: 8 }, () => bind(LOOPBACK))
  const { child, fact } = start(t, 'server', ['tcp'])
  await fact('ready')
  await Promise.all(sockets.map((held, i) => held.sendTo(child, { keep: i }, SOON)))
  for (const [i, held] of sockets.entries()) {
    t.match(await fact('opened'), { message: { keep: i }, bound: held.bound })
    held.close()
  }
})

t.test('a child that is killed, has gone, or has no channel', async (t) => {
  using held = bind(LOOPBACK)
  const { child, fact, command, ended } = start(t, 'server', ['tcp'])
  await fact('ready')
  command('block 60000')
  await fact('blocking')
  const [first, second] = [held.sendTo(child, {}, SOON), held.sendTo(child, {}, SOON)].map(rejection)
  child.kill('SIGKILL')
  for (const error of [await first!, await second!]) {
    t.match(error.code, /^(exited|disconnected)$/)
    t.match(error.message, new RegExp(`127\\.0\\.0\\.1:${held.bound!.port} was not .*: child ${child.pid} `))
  }
  await ended
  t.match(await rejection(held.sendTo(child, {}, SOON)), {
    code: 'disconnected',
    message: /killed by SIGKILL/,
  })

  const { spawn } = await import('node:child_process')
  const plain = spawn(process.execPath, ['-e', ''], { env: {}, stdio: 'ignore' })
  t.match(await rejection(held.sendTo(plain, {}, SOON)), { message: /has no IPC channel/ })
  await once(plain, 'exit')
  const never = spawn('/nonexistent', [], { env: {}, stdio: 'ignore' })
  never.on('error', () => {})
  t.match(await rejection(held.sendTo(never, {}, SOON)), { message: /the child was never started/ })
})

t.test('abort, and what cannot be sent', async (t) => {
  using held = bind(LOOPBACK)
  const { child, fact } = start(t, 'deaf')
  await fact('ready')
  const asked = new AbortController()
  const sending = rejection(held.sendTo(child, {}, { ...SOON, signal: asked.signal }))
  asked.abort(new Error('changed my mind'))
  t.match(await sending, { code: 'aborted', mayArrive: false, cause: { message: 'changed my mind' } })
  const late = rejection(held.sendTo(child, {}, { ...SOON, signal: asked.signal }))
  t.match(await late, { code: 'aborted', mayArrive: false })
  t.match(
    await rejection(held.sendTo(child, {}, { timeoutMs: 200 })),
    { code: 'timeout' },
    'nobody called onReceive',
  )
  const { child: receiver } = start(t, 'server', ['tcp'])
  const cycle: { self?: object } = {}
  cycle.self = cycle
  t.match(await rejection(held.sendTo(receiver, cycle, SOON)), { code: 'failed', message: /circular/ })
  await t.rejects(held.sendTo(child, {}, { timeoutMs: 0 }), RangeError)
  await t.rejects(held.sendTo(child, {}, { timeoutMs: Infinity }), RangeError)
  const closed = bind(LOOPBACK)
  closed.close()
  t.match(await rejection(closed.sendTo(child, {}, SOON)), { code: 'failed', message: /it is closed/ })
})

t.test('a receiver that has stopped refuses', async (t) => {
  using held = bind(LOOPBACK)
  const { child, fact } = start(t, 'disposes')
  await fact('ready')
  await held.sendTo(child, {}, SOON)
  t.match(await rejection(held.sendTo(child, {}, SOON)), {
    code: 'refused',
    mayArrive: false,
    message: /refused the socket/,
  })
})
