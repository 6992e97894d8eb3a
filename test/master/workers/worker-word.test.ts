/** The bounds of what a worker may say, each from both sides. Anything else: worker-fuzz.test.ts. */
import t from 'tap'
import { NO_COUNTS } from '../../../src/master/figures/ledger.ts'
import { fromWorker } from '../../../src/master/workers/worker-word.ts'
import { CMD } from '../../../src/protocol.ts'

const said = (message: object): unknown => fromWorker({ cmd: CMD, ...message })
const held = {
  ...{ what: 'request', method: 'GET', path: '/', ageMs: 1, bytesRead: 1, bytesWritten: 1 },
  peer: '::1',
}
const died = (lost: unknown): object => ({ t: 'died', counts: NO_COUNTS, lost })
const holding = (kinds: unknown, oldest: unknown = []): object => ({
  ...{ t: 'holding', holding: { oldest, kinds, resources: {} } },
})
const statistics = (...latency: unknown[]): object => ({
  ...{ t: 'statistics', statistics: { requests: 1, errors: 0, totalMs: 1, latency, loopDelayMs: 0 } },
})
const claim = (address: object): object => ({ t: 'claim', id: 1, address, backlog: 1 })
const unix = (path: string, more = {}): object => claim({ kind: 'unix', path, ...more })
const tcp = (host: string, port: number): object => claim({ kind: 'tcp', host, port })
const names = (count: number): object =>
  Object.fromEntries(Array.from({ length: count }, (_, i) => [`name${i}`, i]))
const times = <T>(count: number, what: T): T[] => Array.from({ length: count }, () => what)

t.test('taken as it is', async (t) => {
  for (const message of [
    { t: 'draining', timeoutMs: -0 },
    { t: 'draining', timeoutMs: Number.MAX_SAFE_INTEGER },
    { t: 'opened', key: 'k', error: { code: '', errno: -4096, syscall: 'listen' } },
    died([]),
    died(times(1000, held)),
    holding(names(64), times(10, held)),
    // Names that are somebody else's in a prototype.
    holding(JSON.parse('{"__proto__":5,"constructor":1,"toString":2}')),
    statistics(...times(72, [71, 1])),
    unix(`/${'x'.repeat(511)}`, { umask: 0o777, readableAll: true, writableAll: false }),
    unix('\0abstract'),
    tcp('x'.repeat(64), 1),
    tcp('fe80::1%eth0', 65_535),
    { t: 'warning', text: 'x'.repeat(2048) },
    { t: 'withdrawn', key: 'x'.repeat(256) },
    { t: 'signalled', signal: 'x'.repeat(16) },
  ])
    t.strictSame(said(message), message, JSON.stringify(message).slice(0, 100))
})

t.test('taken without what is not known', async (t) => {
  t.strictSame(said({ t: 'ready', key: 'x' }), { t: 'ready' })
  t.strictSame(said(statistics([1, 2, 3])), statistics([1, 2]))
  t.strictSame(said(died([{ ...held, junk: 1 }])), died([held]))
  t.strictSame(said(unix('/a', { host: 'x', port: 'x' })), unix('/a'))
  const counts = { ...NO_COUNTS, endings: { ...NO_COUNTS.endings, accepted: 'x' } }
  t.strictSame(said({ t: 'counts', counts }), { t: 'counts', counts: NO_COUNTS })
})

t.test('not taken', async (t) => {
  for (const timeoutMs of [-1, NaN, Infinity, 2 ** 53, '1', null, undefined, [1]])
    t.equal(said({ t: 'draining', timeoutMs }), undefined, String(timeoutMs))
  for (const message of [
    { t: 'toString' },
    { t: '__proto__' },
    { t: ['ready'] },
    { t: 'claimed', key: 'k' },
    { t: 'claimed', key: 'k', error: { code: 'E', errno: -1, syscall: 'x' } },
    { t: 'opened', key: 'k', error: { code: 'E', errno: -4097, syscall: 'x' } },
    { t: 'opened', key: 'k', error: { code: 'E-', errno: -1, syscall: 'x' } },
    // A hole is no entry.
    died(new Array(1)),
    died(times(1001, held)),
    died({ length: 0 }),
    died([{ ...held, what: 'nothing' }]),
    died([{ ...held, path: 'x'.repeat(4097) }]),
    { t: 'died', counts: [], lost: [] },
    { t: 'died', counts: { ...NO_COUNTS, outcomes: {} }, lost: [] },
    holding(names(65)),
    holding({ ['x'.repeat(65)]: 1 }),
    holding({ name: -1 }),
    holding(null),
    holding({}, times(11, held)),
    statistics(...times(73, [71, 1])),
    statistics([72, 1]),
    statistics([0.5, 1]),
    statistics([-1, 1]),
    statistics([1]),
    unix('relative'),
    unix('/a\nSTOPPING=1'),
    unix('/a\u007f'),
    unix(`/${'x'.repeat(512)}`),
    unix('/a', { umask: 0o1000 }),
    unix('/a', { umask: null }),
    claim({ kind: 'other', path: '/a', host: 'x', port: 1 }),
    tcp('x'.repeat(65), 1),
    tcp('a b', 1),
    tcp('', 1),
    tcp('x', 0),
    tcp('x', 65_536),
    tcp('x', 1.5),
    { t: 'warning', text: 'x'.repeat(2049) },
    { t: 'withdrawn', key: 'x'.repeat(257) },
    { t: 'signalled', signal: 'x'.repeat(17) },
    { t: 'signalled', signal: 'SIG TERM' },
  ])
    t.equal(said(message), undefined, JSON.stringify(message).slice(0, 100))
  for (const none of [null, undefined, 1, 'ready', [], { t: 'ready' }, { cmd: 'NODE_', t: 'ready' }])
    t.equal(fromWorker(none), undefined)
})
