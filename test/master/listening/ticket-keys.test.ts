import t from 'tap'
import type { Test } from 'tap'
import { CMD } from '../../../src/protocol.ts'
import { fromWorker } from '../../../src/master/workers/worker-word.ts'
import { type KeyTaker, ROTATE_EVERY_MS, TicketKeys } from '../../../src/master/listening/ticket-keys.ts'

/** A worker that remembers what it was sent: `key fingerprint keys`. */
class Worker implements KeyTaker {
  readonly got: string[] = []
  send({ key, fingerprint, keys }: Parameters<KeyTaker['send']>[0]): void {
    this.got.push(`${key} ${fingerprint} ${Buffer.from(keys, 'base64').toString('latin1', 0, 1)}`)
  }
  get last(): string | undefined {
    return this.got.at(-1)
  }
}

/** Keys are 48 times `first`, then 48 times the next letter, …; rotation comes when it is called for. */
function makeKeys(t: Pick<Test, 'equal'>, { first = 'a', firstMs = ROTATE_EVERY_MS } = {}) {
  let made = first.charCodeAt(0)
  let now = 1000
  let expectedMs = firstMs
  const timers: (() => void)[] = []
  const keys = new TicketKeys({
    random: (bytes) => Buffer.alloc(bytes, String.fromCharCode(made++)),
    now: () => now,
    after(ms, call) {
      t.equal(ms, expectedMs)
      expectedMs = ROTATE_EVERY_MS
      timers.push(call)
      return () => void timers.splice(timers.indexOf(call), 1)
    },
  })
  const pass = (ms: number) => (now += ms)
  return { keys, timers, pass, rotate: () => timers.splice(0).forEach((call) => call()) }
}

t.test('one key for each listener and fingerprint, made when it is asked for', async (t) => {
  const { keys } = makeKeys(t)
  const [one, two, three, four] = [new Worker(), new Worker(), new Worker(), new Worker()] as const
  keys.asked(one, 'tcp:1', 'x')
  keys.asked(two, 'tcp:1', 'x')
  keys.asked(three, 'tcp:1', 'y')
  keys.asked(four, 'tcp:2', 'x')
  t.same(
    [one.got, two.got, three.got, four.got],
    [['tcp:1 x a'], ['tcp:1 x a'], ['tcp:1 y b'], ['tcp:2 x c']],
  )
  keys.asked(one, 'tcp:1', 'x')
  t.equal(one.last, 'tcp:1 x a', 'asked again: the same')
})

t.test('48 bytes in base64', async (t) => {
  const sent: string[] = []
  makeKeys(t).keys.asked({ send: ({ keys }) => void sent.push(keys) }, 'tcp:1', 'x')
  t.equal(Buffer.from(sent[0] ?? '', 'base64').length, 48)
  const real = new TicketKeys()
  real.asked({ send: ({ keys }) => void sent.push(keys) }, 'tcp:1', 'x')
  real.asked({ send: ({ keys }) => void sent.push(keys) }, 'tcp:1', 'y')
  t.equal(Buffer.from(sent[1] ?? '', 'base64').length, 48)
  t.not(sent[1], sent[2], 'random')
  real.close()
})

t.test('a successor gets the keys of the worker that ended', async (t) => {
  const { keys } = makeKeys(t)
  const [one, two] = [new Worker(), new Worker()]
  keys.asked(one, 'tcp:1', 'x')
  keys.forgetTaker(one)
  keys.asked(two, 'tcp:1', 'x')
  t.same(two.got, ['tcp:1 x a'])
})

t.test('rotation: new keys to all who asked and live; what nobody uses is forgotten', async (t) => {
  const { keys, timers, rotate } = makeKeys(t)
  const [one, two, gone] = [new Worker(), new Worker(), new Worker()] as const
  keys.asked(one, 'tcp:1', 'x')
  keys.asked(two, 'tcp:1', 'x')
  keys.asked(gone, 'tcp:1', 'y')
  t.equal(timers.length, 1, 'one timer for all')
  keys.forgetTaker(gone)
  rotate()
  t.same(
    [one.got, two.got, gone.got],
    [['tcp:1 x a', 'tcp:1 x c'], ['tcp:1 x a', 'tcp:1 x c'], ['tcp:1 y b']],
  )
  const late = new Worker()
  keys.asked(late, 'tcp:1', 'x')
  t.equal(late.last, 'tcp:1 x c', 'the newest')
  keys.asked(late, 'tcp:1', 'y')
  t.equal(late.last, 'tcp:1 y d', 'not what was forgotten')
  rotate()
  t.same([one.last, late.last], ['tcp:1 x e', 'tcp:1 y f'])
})

t.test('a worker with a new certificate is not told the keys of its old one any more', async (t) => {
  const { keys, rotate } = makeKeys(t)
  const [one, two] = [new Worker(), new Worker()] as const
  keys.asked(one, 'tcp:1', 'x')
  keys.asked(two, 'tcp:1', 'x')
  keys.asked(one, 'tcp:1', 'y')
  rotate()
  t.same(one.got, ['tcp:1 x a', 'tcp:1 y b', 'tcp:1 y d'])
  keys.asked(two, 'tcp:1', 'y')
  keys.asked(two, 'tcp:1', 'x')
  t.equal(two.last, 'tcp:1 x e', 'the keys of the old one went with the last that had it')
})

t.test('a released listener is forgotten, and the timer with the last', async (t) => {
  const { keys, timers } = makeKeys(t)
  const worker = new Worker()
  keys.asked(worker, 'tcp:1', 'x')
  keys.asked(worker, 'tcp:2', 'x')
  keys.forgetListener('tcp:1')
  t.equal(timers.length, 1)
  keys.forgetListener('tcp:2')
  t.equal(timers.length, 0)
  keys.asked(worker, 'tcp:1', 'x')
  t.equal(worker.last, 'tcp:1 x c')
  keys.close()
  t.equal(timers.length, 0)
})

t.test('another master goes on with the keys, and with the time that they have left', async (t) => {
  const before = makeKeys(t)
  t.equal(before.keys.bequeath(), null, 'none were made')
  const [one, two, three] = [new Worker(), new Worker(), new Worker()] as const
  before.keys.asked(one, 'tcp:1', 'x')
  before.keys.asked(one, 'tcp:2', 'y')
  before.pass(ROTATE_EVERY_MS - 50)
  const bequest = before.keys.bequeath()
  if (bequest === null) return void t.fail('keys were made')
  t.equal(bequest.rotateInMs, 50)

  const after = makeKeys(t, { first: 'n', firstMs: 50 })
  after.keys.inherit(bequest)
  after.keys.asked(two, 'tcp:1', 'x')
  t.equal(two.last, 'tcp:1 x a')
  after.rotate()
  t.equal(two.last, 'tcp:1 x n')
  after.keys.asked(three, 'tcp:2', 'y')
  t.equal(three.last, 'tcp:2 y o', 'not what nobody had asked for until the rotation')
  after.keys.close()
  t.equal(after.timers.length, 0)
})

t.test('the question is read strictly', async (t) => {
  const good = { cmd: CMD, t: 'ticket-keys-asked', key: 'tcp:1', fingerprint: '0a'.repeat(32) }
  const { cmd: _, ...said } = good
  t.same(fromWorker(good), said)
  for (const wrong of [
    { key: 7 },
    { key: 'x'.repeat(257) },
    { fingerprint: undefined },
    { fingerprint: '0a' },
    { fingerprint: '0A'.repeat(32) },
    { fingerprint: ['0a'.repeat(32)] },
    { fingerprint: `${'0a'.repeat(32)}\n` },
  ]) {
    t.equal(fromWorker({ ...good, ...wrong }), undefined, JSON.stringify(wrong).slice(0, 60))
  }
})
