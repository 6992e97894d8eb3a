/** The guard at the master's end of a worker's channel, with children that are no guests. */
import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:net'
import t from 'tap'
import type { Test } from 'tap'
import { Allowance } from '../../../src/master/workers/allowance.ts'
import { MAX_MESSAGE_BYTES, MAX_UNREAD, WorkerChannel } from '../../../src/master/workers/worker-channel.ts'
import { withoutTap } from '../../helpers/spawn.ts'
import { deadline } from '../../helpers/wait.ts'

/** A child with a channel; gives why it was cut off. */
function guarded(
  t: Test,
  command: string,
  args: readonly string[],
): { child: ChildProcess; channel: WorkerChannel; broken: () => Promise<string> } {
  const env = { PATH: process.env['PATH'] }
  const child = withoutTap(() => spawn(command, args, { env, stdio: ['ignore', 'ignore', 'ignore', 'ipc'] }))
  const ended = new Promise((resolve) => child.once('exit', resolve))
  t.teardown(async () => {
    child.kill('SIGKILL')
    await ended
  })
  let channel: WorkerChannel | undefined
  const broken = new Promise<string>((resolve) => (channel = new WorkerChannel(child, resolve)))
  if (!channel) throw new Error('the constructor of a promise runs at once')
  return { child, channel, broken: () => deadline(broken, 20_000, 'the end of the channel') }
}
const program = (code: string): readonly string[] => [
  '-e',
  `const raw = (text) => {
    for (let rest = Buffer.from(text); rest.length > 0; ) {
      try { rest = rest.subarray(require('fs').writeSync(process.channel.fd ?? 3, rest)) } catch (e) { if (e.code !== 'EAGAIN') throw e }
    }
  };
  process.on('message', () => {});
  ${code}`,
]

t.test('this Node has what the guard needs', async (t) => {
  t.ok(guarded(t, 'sleep', ['60']).channel.isWhole)
})

t.test('one that reads nothing', async (t) => {
  const { child, channel, broken } = guarded(t, 'sleep', ['60'])
  for (let i = 0; i < 20 * MAX_UNREAD && child.connected; i++)
    channel.send({ cmd: 'NODE_USR2', i, text: 'x'.repeat(200) })
  t.equal(await broken(), `has not read ${MAX_UNREAD} messages of the master`)
  t.notOk(child.connected)
})

t.test('one that reads is told any number', async (t) => {
  const { child, channel } = guarded(t, process.execPath, program(''))
  for (let i = 0; i < 3 * MAX_UNREAD; i++) {
    channel.send({ i })
    if (i % 500 === 499) await new Promise<void>((resolve) => child.send({ last: true }, () => resolve()))
  }
  t.ok(child.connected)
})

t.test('a message that is too long, and bytes that are none', async (t) => {
  const long = guarded(t, process.execPath, program(`raw('"' + 'x'.repeat(${MAX_MESSAGE_BYTES}) + '"\\n')`))
  t.equal(await long.broken(), 'sent a message of more than 8 MB')
  const none = guarded(t, process.execPath, program(`raw('{"a":\\n')`))
  t.equal(await none.broken(), 'sent what is no message')
  const half = guarded(t, process.execPath, program(`raw('{"a":'); process.exit()`))
  const exit = await deadline(new Promise((resolve) => half.child.once('exit', resolve)), 10_000, 'its exit')
  t.equal(exit, 0, 'half a message is no offence')
})

t.test('one that takes a handle and does not acknowledge it is cut off all the same', async (t) => {
  const server = createServer().listen(0, '127.0.0.1')
  t.teardown(() => server.close())
  await once(server, 'listening')
  const sendHandle = async ({ child }: { readonly child: ChildProcess }): Promise<void> => {
    await new Promise<void>((resolve) => child.send({ handle: 1 }, server, () => resolve()))
    // Waits behind the handle, in Node.
    child.send({ behind: 1 }, () => {})
  }
  const disconnected = (child: ChildProcess): Promise<unknown> =>
    deadline(once(child, 'disconnect'), 10_000, 'the end of the channel')

  const silent = guarded(t, 'sleep', ['60'])
  await sendHandle(silent)
  const cut = disconnected(silent.child)
  for (let i = 0; i <= MAX_UNREAD; i++) silent.channel.send({ i })
  t.match(await silent.broken(), /has not read/)
  await cut
  t.notOk(silent.child.channel, 'its descriptor is closed')

  const gone = guarded(t, 'sleep', ['60'])
  await sendHandle(gone)
  const ended = disconnected(gone.child)
  gone.child.kill('SIGKILL')
  await ended
  t.notOk(gone.child.channel)
})

t.test('what others say passes', async (t) => {
  const { child } = guarded(
    t,
    process.execPath,
    program(`process.send('ready'); process.send({ cmd: 'NODE_USR2', t: 'ready' })`),
  )
  const heard: unknown[] = []
  const both = new Promise<void>((resolve) => {
    for (const name of ['message', 'internalMessage'])
      (child as NodeJS.EventEmitter).on(name, (message: unknown) => heard.push(message) === 2 && resolve())
  })
  await deadline(both, 10_000, 'two messages')
  t.same(heard, ['ready', { cmd: 'NODE_USR2', t: 'ready' }])
})

t.test('an allowance', async (t) => {
  const allowance = new Allowance({ atOnce: 10, perSecond: 2 }, 0)
  t.ok(allowance.take(10, 0))
  t.notOk(allowance.take(1, 400))
  t.ok(allowance.take(1, 500))
  t.ok(allowance.take(10, 60_000), 'never more than at once')
  t.notOk(allowance.take(1, 60_000))
  allowance.give(15)
  t.ok(allowance.take(12, 120_000), 'what was given is kept beside that')
  t.ok(allowance.take(3, 120_000))
  t.notOk(allowance.take(8, 120_000))
  t.ok(allowance.take(8, 124_000))
})
