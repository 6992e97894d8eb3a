/** Sockets of the service manager's, as they are held and handed on. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { setImmediate } from 'node:timers/promises'
import { bind } from 'native-free-fd-passing'
import t from 'tap'
import type { Test } from 'tap'
import { listenerKey } from '../../../src/address.ts'
import { Listeners } from '../../../src/master/listening/listeners.ts'
import type { WorkerHandle } from '../../../src/master/workers/worker-handle.ts'
import { withoutTap } from '../../helpers/spawn.ts'
import { freePort } from '../../helpers/tmp.ts'

async function holding(t: Test) {
  const port = await freePort(t)
  const address = { kind: 'tcp', host: '0.0.0.0', port } as const
  const socket = bind(address)
  t.teardown(() => socket.close())
  const warnings: string[] = []
  const listeners = new Listeners({
    activated: [{ name: 'web', socket, address, key: listenerKey(address) }],
    log: { info: () => {}, warn: (facts) => void warnings.push((facts as { event: string }).event) },
    onHeld: () => {},
  })
  return { listeners, warnings, address, fd: socket.fd }
}

t.test('one that is lent under another key is handed on once, and lent by its successor', async (t) => {
  const { listeners, address, fd } = await holding(t)
  const answers: unknown[] = []
  const worker = {
    ...{ facts: {}, mayBeQuoted: () => true, permission: { listen: null, identity: null } },
    send: (message: unknown) => answers.push(message),
  } as unknown as WorkerHandle
  const asked = { kind: 'tcp', host: '::', port: address.port } as const
  listeners.claim(worker, 1, asked)
  t.match(answers, [{ t: 'answer', ok: { key: listenerKey(asked) } }])
  t.same(listeners.bequeath(), { listeners: [], activated: [{ fd, name: 'web', address }] })
})

t.test('who has handed over says no more that nobody listens', async (t) => {
  const timers = catchTimers(t)
  const reported = async (then: (listeners: Listeners) => void) => {
    const { listeners, warnings } = await holding(t)
    listeners.serving()
    then(listeners)
    timers.fire()
    return warnings
  }
  t.same(await reported(() => {}), ['unclaimed'])
  t.same(await reported((listeners) => listeners.handOver()), [])
})

t.test('what a worker that was cut off has asked for is not bound any more', async (t) => {
  // It never says that it takes sockets: the first claim is being proved, and the others of that address wait.
  const child = withoutTap(() => spawn('sleep', ['60'], { stdio: ['ignore', 'ignore', 'ignore', 'ipc'] }))
  const ended = once(child, 'exit')
  t.teardown(async () => {
    child.kill('SIGKILL')
    await ended
  })
  const log = { info: () => {}, warn: () => {} }
  const listeners = new Listeners({ activated: [], log, onHeld: () => {} })
  t.teardown(() => listeners.closeAll())
  const answers: unknown[] = []
  const reasons: string[] = []
  const worker = {
    ...{ facts: {}, mayBeQuoted: () => true, permission: { listen: null, identity: null } },
    ...{ alive: true, child, explain: (text: string) => reasons.push(text) },
    send: (message: unknown) => answers.push(message),
  } as unknown as WorkerHandle
  const address = { kind: 'tcp', host: '127.0.0.1', port: await freePort(t) } as const
  for (let id = 1; id <= 5; id++) listeners.claim(worker, id, address)
  await setImmediate()
  child.disconnect()
  await once(child, 'disconnect')
  // The outcome of one bind leads to the next in promises alone.
  await setImmediate()
  t.match(answers, [{ id: 1, error: { code: 'ECANCELED' } }])
  t.equal(answers.length, 1, 'one was bound, and no other')
  t.same(reasons, [], 'that is no reason for its end')
})

/** Timers fire when they are told to. */
function catchTimers(t: Test): { fire(): void } {
  const real = { setTimeout, clearTimeout }
  t.teardown(() => Object.assign(globalThis, real))
  const timers = new Map<object, () => void>()
  const fire = () => {
    Object.assign(globalThis, real)
    for (const call of timers.values()) call()
    timers.clear()
    Object.assign(globalThis, caught)
  }
  const caught = {
    setTimeout(call: () => void) {
      const timer = { unref: () => timer, ref: () => timer }
      timers.set(timer, call)
      return timer
    },
    clearTimeout: (timer: object) => void timers.delete(timer),
  }
  Object.assign(globalThis, caught)
  return { fire }
}
