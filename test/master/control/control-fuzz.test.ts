/**
 * The control protocol against whatever may come, at both ends: bytes, JSON, and real conversations with a piece of them
 * changed. A few seconds; `FUZZ_RUNS=100000` for longer, `FUZZ_SEED=` for the same again.
 */
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { once } from 'node:events'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { renderDrains, renderStatus, renderVerdict } from '../../../src/cli/status.ts'
import { printable } from '../../../src/cli/text.ts'
import {
  askOrder,
  askReload,
  askStatus,
  askStop,
  connectControl,
  ControlError,
} from '../../../src/master/control/control-client.ts'
import { parseReply } from '../../../src/master/control/control-wire.ts'
import type { Asker } from '../../../src/master/face.ts'
import { openControl } from '../../../src/master/control/control.ts'
import {
  DRAINED,
  FakeFace,
  progress,
  PROMOTED,
  ROLLED_BACK,
  ROLLING_OUT,
  STATUS,
} from '../../helpers/fake-face.ts'
import { deadline, until } from '../../helpers/wait.ts'

const numRuns = Number(process.env['FUZZ_RUNS'] ?? 100)
const seed = Number(process.env['FUZZ_SEED'] ?? Date.now() % 2 ** 31)
t.comment(`FUZZ_SEED=${seed} FUZZ_RUNS=${numRuns}`)
/** A run takes some milliseconds; for ever is what it must not take. */
t.setTimeout(60_000 + numRuns * 100)

function scratch(): string {
  const directory = mkdtempSync(join(tmpdir(), 'usr2-'))
  t.teardown(() => rmSync(directory, { recursive: true, force: true }))
  return join(directory, 'c.sock')
}

// ---- What is sent -------------------------------------------------------------------------------------------------

const REQUESTS = [
  '{"cmd":"hello"}',
  '{"cmd":"status"}',
  '{"cmd":"reload"}',
  '{"cmd":"reload","drop":["tcp:0.0.0.0:3000","unix:/run/a.sock"],"wait":"drained"}',
  '{"cmd":"rollback","to":7,"wait":"promoted"}',
  '{"cmd":"upgrade","node":"/usr/bin/node"}',
  '{"cmd":"abort","reason":"--timeout 5s expired"}',
  '{"cmd":"order","what":{"k":"promote","full":true}}',
  '{"cmd":"order","what":{"k":"scale","to":4}}',
  '{"cmd":"order","what":{"k":"scale-by","by":-1}}',
  '{"cmd":"stop","how":"now"}',
] as const

const SCALED = { ...ROLLING_OUT, lastVerdict: ROLLED_BACK }
const REPLIES = [
  { hello: { protocol: 1, name: 'shop', pid: 4242, usr2: '0.1.0' } },
  { status: STATUS },
  { status: SCALED },
  { progress: progress('generation 8: 1 of 2 workers ready') },
  { verdict: PROMOTED },
  { verdict: ROLLED_BACK },
  { drained: DRAINED },
  { stopping: true },
  { stopped: true },
  { done: true },
  { refused: 'No rollout runs.' },
  { error: 'The control socket is full.', busy: true },
].map((reply) => JSON.stringify(reply))
const repliesOf = (...kinds: readonly string[]): readonly string[] =>
  REPLIES.filter((line) => kinds.some((kind) => line.startsWith(`{"${kind}"`)))
const REPLIES_TO = {
  status: repliesOf('status'),
  order: repliesOf('done', 'refused'),
  stop: repliesOf('stopping', 'stopped'),
  reload: repliesOf('progress', 'verdict', 'drained'),
} as const

/** What has ended parsers before. */
const TOKENS = [
  ...[
    '\n',
    '\r\n',
    '\0',
    '"',
    '\\',
    '{',
    '}',
    '[',
    ']',
    ',',
    ':',
    '-',
    '1e999',
    '1e-999',
    'null',
    'true',
    '""',
    '{}',
  ],
  ...[
    '"__proto__":{"cmd":"stop"}',
    '"constructor":1',
    '"cmd":"stop",',
    '\\u0000',
    '\\ud800',
    '\u001b[2J',
    '\u009b1m',
  ],
  ...['9007199254740993', '-0', '0x10', 'NaN', '\ufeff', '\u2028', '[['.repeat(2000), '['.repeat(31_000)],
  'x'.repeat(66_000),
]
const INVALID_UTF8 = [0xff, 0xc0, 0x80, 0xed, 0xa0, 0x80, 0xf8]

type Mutation = (bytes: Uint8Array) => Buffer
const place = fc.double({ min: 0, max: 1, noNaN: true })
const at = (bytes: Uint8Array, share: number): number => Math.floor(share * bytes.length)
const mutation: fc.Arbitrary<Mutation> = fc.oneof(
  fc.tuple(place, fc.nat({ max: 255 })).map(([share, byte]): Mutation => (bytes) => {
    const changed = Buffer.from(bytes)
    if (changed.length > 0) changed[Math.min(at(bytes, share), changed.length - 1)] = byte
    return changed
  }),
  fc.tuple(place, fc.nat({ max: 30 })).map(
    ([share, length]): Mutation =>
      (bytes) =>
        Buffer.concat([bytes.subarray(0, at(bytes, share)), bytes.subarray(at(bytes, share) + length)]),
  ),
  fc.tuple(place, fc.nat({ max: 60 })).map(([share, length]): Mutation => (bytes) => {
    const from = at(bytes, share)
    return Buffer.concat([bytes.subarray(0, from + length), bytes.subarray(from)])
  }),
  fc
    .tuple(
      place,
      fc.oneof(
        fc.constantFrom(...TOKENS).map((text) => Buffer.from(text)),
        fc.constant(Buffer.from(INVALID_UTF8)),
      ),
    )
    .map(([share, token]): Mutation => (bytes) => {
      const from = at(bytes, share)
      return Buffer.concat([bytes.subarray(0, from), token, bytes.subarray(from)])
    }),
  fc.constant<Mutation>((bytes) => Buffer.from(bytes)),
)

/** Of real lines, some of them changed. */
const conversation = (lines: readonly string[], maxLength = 6): fc.Arbitrary<Uint8Array> =>
  fc
    .tuple(
      fc.array(fc.constantFrom(...lines), { minLength: 1, maxLength }),
      fc.array(mutation, { maxLength: 4 }),
    )
    .map(([said, mutations]) => {
      let whole: Uint8Array = Buffer.from(said.map((line) => `${line}\n`).join(''))
      for (const mutate of mutations) whole = mutate(whole)
      return whole
    })

const bytes = (lines: readonly string[]): fc.Arbitrary<Uint8Array> =>
  fc.oneof(
    { weight: 4, arbitrary: conversation(lines) },
    { weight: 1, arbitrary: fc.uint8Array({ maxLength: 200 }) },
    { weight: 1, arbitrary: fc.json().map((text) => Buffer.from(`${text}\n`)) },
  )

/** The same bytes in pieces. */
function* inPieces(whole: Uint8Array, sizes: readonly number[]): Generator<Uint8Array> {
  let from = 0
  for (const size of sizes) {
    if (from >= whole.length) return
    yield whole.subarray(from, from + size)
    from += size
  }
  yield whole.subarray(from)
}

const client = fc.record({
  said: bytes(REQUESTS),
  sizes: fc.array(fc.integer({ min: 1, max: 300 }), { maxLength: 8 }),
  leaves: fc.constantFrom('end', 'destroy', 'stay', 'unread'),
})

// ---- The master's end ---------------------------------------------------------------------------------------------

t.test('the master: answers or closes, leaks nothing, serves who comes next', async (t) => {
  const path = scratch()
  const face = new FakeFace()
  const warnings: string[] = []
  const log = { debug: () => {}, warn: (_: object, text: string) => void warnings.push(text) }
  const limits = { connections: 8, waiting: 4, requestTimeoutMs: 40, farewellMs: 20, unreadBytes: 100_000 }
  const control = await openControl({ path, face, log, limits })
  t.teardown(() => control.close())
  // Answers at once, in a moment, twice, and after its client has gone.
  let turn = 0
  const answering = (first: () => void, second: () => void): void => {
    turn++
    if (turn % 3 !== 0) first()
    setImmediate(() => {
      first()
      second()
    })
  }
  const asked = ({ asker }: { readonly asker: Asker }): void => {
    asker.progress(progress('on its way'))
    answering(
      () => asker.verdict(turn % 2 === 0 ? PROMOTED : ROLLED_BACK),
      () => asker.drained(DRAINED),
    )
  }
  face.onReload = asked
  face.onRollback = asked
  face.onUpgrade = asked
  face.onAbort = ({ asker }) => asker.verdict(ROLLED_BACK)
  face.onOrder = (_, done) =>
    answering(
      () => done(null),
      () => done('twice'),
    )
  face.onStop = (done) => answering(done, () => {})

  const descriptors = (): number => readdirSync('/proc/self/fd').length
  const before = descriptors()
  let clients = 0
  await fc.assert(
    fc.asyncProperty(fc.array(client, { minLength: 1, maxLength: 12 }), async (all) => {
      clients += all.length
      const replies = await deadline(
        Promise.all(all.map((one) => converse(path, one))),
        20_000,
        'the end of all clients',
      )
      for (const line of replies.flat()) {
        const reply = parseReply(line)
        if ('error' in reply) throw new Error(`not a reply: ${line.slice(0, 300)}`)
        if (/[\u0000-\u001f\u007f]/.test(line))
          throw new Error(`a control character: ${JSON.stringify(line)}`)
      }
      await until(() => isServed(path), { timeoutMs: 20_000, what: 'an honest client to be served' })
      face.calls.length = 0
    }),
    { numRuns, seed },
  )
  t.same(warnings, [], 'the face has never been called in a way that it throws')
  await until(() => descriptors() <= before, { timeoutMs: 5_000, what: `${before} descriptors again` })
  t.pass(`${clients} clients`)
  for (const order of face.orders) {
    const whole = order.k === 'scale' ? order.to : order.k === 'scale-by' ? order.by : 1
    if (!Number.isSafeInteger(whole) || whole === 0 || Math.abs(whole) > 1024) t.fail(JSON.stringify(order))
  }
  for (const { request } of face.rollbacks) {
    if (request.to !== null && !(Number.isSafeInteger(request.to) && request.to > 0))
      t.fail(JSON.stringify(request))
  }
  for (const { request } of face.upgrades) {
    if (request.node !== null && !request.node.startsWith('/')) t.fail(JSON.stringify(request))
  }
})

/** Also where a busy machine has taken longer than the 40 ms that a request may: then it asks again. */
async function isServed(path: string): Promise<boolean> {
  try {
    return (await askStatus(await connectControl(path))).pid === STATUS.pid
  } catch (error) {
    if (error instanceof ControlError) return false
    throw error
  }
}

/** Gives all whole lines that came, when the connection has ended. */
async function converse(
  path: string,
  { said, sizes, leaves }: typeof client extends fc.Arbitrary<infer C> ? C : never,
) {
  const socket = net.connect(path)
  let text = ''
  // Sent away in a crowd, while it spoke.
  socket.on('error', () => {})
  if (leaves === 'unread') socket.pause()
  else socket.on('data', (chunk) => (text += chunk.toString('utf8')))
  const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()))
  for (const piece of inPieces(said, sizes)) {
    if (socket.destroyed) break
    socket.write(piece)
    if (sizes.length > 0) await new Promise((resolve) => setImmediate(resolve))
  }
  if (leaves === 'end') socket.end()
  if (leaves === 'destroy') socket.destroy()
  if (leaves === 'unread') {
    // Seen by its end alone.
    await new Promise((resolve) => setTimeout(resolve, 5))
    socket.resume()
  }
  await closed
  return text.split('\n').slice(0, -1)
}

// ---- The client's end ---------------------------------------------------------------------------------------------

t.test('the client: an answer that it can show, or a sentence; never later than its deadline', async (t) => {
  const path = scratch()
  let script: {
    readonly said: Uint8Array
    readonly sizes: readonly number[]
    readonly then: string
    readonly greets: boolean
  }
  const sockets = new Set<net.Socket>()
  const server = net.createServer((socket) => {
    sockets.add(socket)
    socket.on('error', () => {})
    socket.once('close', () => sockets.delete(socket))
    let greeted = !script.greets
    socket.on('data', () => {
      if (!greeted) {
        greeted = true
        return void socket.write(`${REPLIES[0]}\n`)
      }
      for (const piece of inPieces(script.said, script.sizes)) if (!socket.destroyed) socket.write(piece)
      if (script.then === 'end') socket.end()
      if (script.then === 'destroy') socket.destroy()
    })
  })
  server.listen(path)
  await once(server, 'listening')
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })

  const timeoutMs = 60
  const commands = {
    status: async () => {
      const status = await askStatus(await connectControl(path, { timeoutMs }), { timeoutMs })
      return printable(renderStatus(status) + renderDrains(status))
    },
    order: async () =>
      printable(
        String(await askOrder(await connectControl(path, { timeoutMs }), { k: 'pause' }, { timeoutMs })),
      ),
    stop: async () => {
      const connection = await connectControl(path, { timeoutMs })
      // How long a stop takes is its master's business: --timeout hangs up.
      setTimeout(() => connection.close(), timeoutMs)
      await askStop(connection, 'now', () => {}, { timeoutMs })
      return ''
    },
    reload: async () => {
      const connection = await connectControl(path, { timeoutMs })
      setTimeout(() => connection.close(), timeoutMs)
      return renderVerdict((await askReload(connection, { drop: [], wait: 'drained' })).verdict)
    },
  }
  const served = fc.constantFrom(...(['status', 'order', 'stop', 'reload'] as const)).chain((command) =>
    fc.record({
      command: fc.constant(command),
      said: fc.oneof(
        fc.constant<Uint8Array>(Buffer.from(REPLIES_TO[command].map((line) => `${line}\n`).join(''))),
        bytes(REPLIES_TO[command]),
        bytes(REPLIES),
      ),
      sizes: fc.array(fc.integer({ min: 1, max: 3000 }), { maxLength: 8 }),
      then: fc.constantFrom('end', 'destroy', 'stay'),
      greets: fc.oneof(
        { weight: 4, arbitrary: fc.constant(true) },
        { weight: 1, arbitrary: fc.constant(false) },
      ),
    }),
  )
  const ends = { answers: 0, sentences: 0 }
  await fc.assert(
    fc.asyncProperty(served, async (its) => {
      script = its
      const { command } = its
      let shown: string
      try {
        shown = await deadline(commands[command](), 20_000, `the end of ${command}`)
        ends.answers++
      } catch (error) {
        if (!(error instanceof ControlError)) throw error
        shown = printable(error.message)
        if (!/\w/.test(shown)) throw new Error('a sentence without a word')
        ends.sentences++
      }
      if (/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/.test(shown))
        throw new Error(`a control character: ${JSON.stringify(shown)}`)
    }),
    { numRuns: numRuns, seed },
  )
  t.comment(JSON.stringify(ends))
  t.ok(ends.answers > 0 && ends.sentences > 0, 'both happened')
})
