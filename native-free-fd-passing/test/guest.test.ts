// What an app that the package is a guest of sees: nothing.
import t from 'tap'
import { bind } from '../src/index.ts'
import { ask, LOOPBACK, SOON, start } from './helpers.ts'

t.test("the app's 'message' listeners see nothing, and removing them stops nothing", async (t) => {
  using held = bind(LOOPBACK)
  const { child, fact } = start(t, 'app')
  await fact('ready')
  await held.sendTo(child, { n: 1 }, SOON)
  t.same(await fact('received'), { received: 1, seen: [] })
  child.send('forget')
  t.same(await fact('heard'), { heard: 'forget' })
  await held.sendTo(child, { n: 2 }, SOON)
  t.same(await fact('received'), { received: 2, seen: ['forget'] })
})

t.test('waiting for sockets does not keep a process alive', async (t) => {
  const { fact, ended } = start(t, 'only-receives')
  await fact('ready')
  t.same(await ended, { code: 0, signal: null })
})

t.test('a server listens before it has a socket', async (t) => {
  const { child, fact, ended } = start(t, 'held', ['ref'])
  t.same(await fact('sync'), {
    sync: true,
    listening: true,
    address: { address: '127.0.0.1', family: 'IPv4', port: 4242 },
    backlog: 7,
    accepting: false,
  })
  t.match(await fact('event'), { listening: true })
  // Were it not kept alive it would end now: nothing else is left in its loop.
  const end = await Promise.race([ended, new Promise((resolve) => setTimeout(resolve, 500, 'alive'))])
  t.equal(end, 'alive', 'held by the channel')
  child.disconnect()
  t.match(await ended, { code: 0 }, 'and no longer when its parent has gone')
})

t.test('unref() lets a held process go', async (t) => {
  const { fact, ended } = start(t, 'held', ['unref'])
  await fact('event')
  t.match(await ended, { code: 0 })
})

t.test('onHold takes the place of the channel', async (t) => {
  const { fact, ended } = start(t, 'held', ['hold'])
  t.match(await fact('exit'), { holds: [true, false, true, false], closed: true })
  t.match(await ended, { code: 0 })
})

t.test('what a facade refuses', async (t) => {
  const sockets = [bind(LOOPBACK)]
  const { port } = sockets[0]!.bound!
  sockets.push(bind({ ...LOOPBACK, port }), bind({ ...LOOPBACK, port }))
  t.teardown(() => sockets.forEach((socket) => socket.close()))
  const { child, fact, ended } = start(t, 'facade-rules')
  for (const socket of sockets) await socket.sendTo(child, {}, SOON)
  t.match(await fact('unopened'), { unopened: /nobody would take the connections/ })
  t.match(await fact('wrongKind'), { wrongKind: /TypeError: A facade for unix cannot open a tcp socket/ })
  t.match(await fact('foreign'), { foreign: /TypeError: Facade\.open\(\) takes/ })
  t.same(await fact('early'), { early: 0, accepting: false }, 'opened before the server listens')
  t.same(await fact('listened'), { listened: true })
  t.match(await fact('twice'), { twice: /has an open socket already/ })
  t.same(await fact('late'), { late: -98, closed: true, accepting: false })
  t.match(await fact('event'), {
    message: /^listen EADDRINUSE: address already in use/,
    closed: true,
    socketClosed: true,
  })
  t.match(await fact('afterClose'), { afterClose: -9, closed: true })
  t.same(await ended, { code: 0, signal: null })
})

t.test('an app may pass its server on without crashing', async (t) => {
  const { fact, ended } = start(t, 'sends-server')
  t.type((await fact('sent')).sent, 'string')
  t.type((await fact('sent')).sent, 'string')
  t.same(await ended, { code: 0, signal: null })
})

t.test('connections see the AsyncLocalStorage of who called listen, as in bare Node', async (t) => {
  using held = bind(LOOPBACK)
  const { child, fact } = start(t, 'async-context')
  await held.sendTo(child, {}, SOON)
  await fact('opened')
  await ask(held.bound!.port)
  t.same(await fact('connection'), { connection: 'store' })
})
