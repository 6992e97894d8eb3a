import t from 'tap'
import {
  describeKey,
  isListenerKey,
  listenerKey,
  overlaps,
  parsePlace,
  placeText,
  takesIn,
} from '../src/address.ts'
import type { Address } from '../src/address.ts'

const tcp = (
  host: string,
  more: { ipv6Only?: boolean; anyFamily?: boolean; port?: number } = {},
): Address => ({
  kind: 'tcp',
  host,
  port: 3000,
  ...more,
})
const udp = (host: string, more: { ipv6Only?: boolean; reuseAddr?: boolean } = {}): Address => ({
  kind: 'udp',
  host,
  port: 3000,
  ...more,
})
const unix = (path: string): Address => ({ kind: 'unix', path })

t.test('the key of an address', async (t) => {
  t.equal(listenerKey(tcp('0.0.0.0')), 'tcp:0.0.0.0:3000')
  t.equal(listenerKey(tcp('::')), 'tcp:[::]:3000')
  t.equal(
    listenerKey(tcp('::', { anyFamily: true })),
    'tcp:[::]:3000',
    'a bare listen(3000) is the same listener',
  )
  t.equal(listenerKey(tcp('::', { ipv6Only: true })), 'tcp:[::]:3000/ipv6only')
  t.equal(listenerKey(tcp('fe80::1%eth0')), 'tcp:[fe80::1%eth0]:3000')
  t.equal(listenerKey(udp('0.0.0.0')), 'udp:0.0.0.0:3000')
  t.equal(listenerKey(udp('::', { ipv6Only: true, reuseAddr: true })), 'udp:[::]:3000/ipv6only')
  t.equal(listenerKey(unix('/run/app.sock')), 'unix:/run/app.sock')
  t.equal(listenerKey(unix('\0app')), 'unix:@app', 'abstract')
  const modes = { readableAll: true, writableAll: true }
  t.equal(listenerKey({ kind: 'unix', path: '/run/app.sock', ...modes }), 'unix:/run/app.sock')
})

t.test('a key as people write the address', async (t) => {
  t.equal(describeKey('tcp:0.0.0.0:3000'), '0.0.0.0:3000')
  t.equal(describeKey('tcp:[::]:3000/ipv6only'), '[::]:3000/ipv6only')
  t.equal(describeKey('unix:/run/tcp:1'), '/run/tcp:1')
})

t.test('every key has the shape that --drop accepts', async (t) => {
  const addresses = [
    tcp('0.0.0.0'),
    tcp('::'),
    tcp('::', { ipv6Only: true }),
    tcp('fe80::1%eth0'),
    tcp('::ffff:127.0.0.1'),
    udp('0.0.0.0'),
    udp('::', { ipv6Only: true }),
  ]
  for (const address of [...addresses, unix('/run/app.sock'), unix('\0app')]) {
    const key = listenerKey(address)
    t.ok(isListenerKey(key), key)
  }
  for (const text of [
    '',
    '3000',
    '0.0.0.0:3000',
    'tcp:localhost:3000',
    'tcp:::3000',
    'tcp:[::]',
    'unix:',
    'unix:run/a',
  ]) {
    t.notOk(isListenerKey(text), text)
  }
})

/** What the kernel does was tried by binding both: socket(7), ipv6(7) on IPV6_V6ONLY. */
const pairs: readonly [a: Address, b: Address, overlap: boolean][] = [
  [tcp('127.0.0.1'), tcp('127.0.0.1'), true],
  [tcp('127.0.0.1'), tcp('127.0.0.2'), false],
  [tcp('127.0.0.1'), tcp('127.0.0.1', { port: 3001 }), false],
  [tcp('0.0.0.0'), tcp('127.0.0.1'), true],
  [tcp('0.0.0.0'), tcp('::1'), false],
  [tcp('0.0.0.0'), tcp('::'), true],
  [tcp('::'), tcp('127.0.0.1'), true],
  [tcp('::'), tcp('::1'), true],
  [tcp('::'), tcp('::', { ipv6Only: true }), true],
  [tcp('::', { ipv6Only: true }), tcp('::1'), true],
  [tcp('::', { ipv6Only: true }), tcp('127.0.0.1'), false],
  [tcp('::1'), tcp('127.0.0.1'), false],
  [unix('/run/a.sock'), unix('/run/a.sock'), true],
  [unix('/run/a.sock'), unix('/run/b.sock'), false],
  [unix('\0a'), unix('\0a'), true],
  [unix('/run/a.sock'), tcp('0.0.0.0'), false],
  [udp('127.0.0.1'), udp('127.0.0.1'), true],
  [udp('0.0.0.0'), udp('::'), true],
  [udp('0.0.0.0'), udp('127.0.0.1', { reuseAddr: true }), true],
  [udp('0.0.0.0', { reuseAddr: true }), udp('127.0.0.1', { reuseAddr: true }), false],
  [udp('127.0.0.1'), tcp('127.0.0.1'), false],
]

t.test('addresses that overlap', async (t) => {
  for (const [a, b, overlap] of pairs) {
    const names = `${listenerKey(a)} and ${listenerKey(b)}`
    t.equal(overlaps(a, b), overlap, names)
    t.equal(overlaps(b, a), overlap, `${names}, the other way round`)
  }
})

t.test('no overlap between IPv4 and IPv6 only', async (t) => {
  t.notOk(overlaps(tcp('0.0.0.0'), tcp('::', { ipv6Only: true })))
})

t.test('an IPv4 address written as IPv6', async (t) => {
  t.ok(overlaps(tcp('0.0.0.0'), tcp('::ffff:127.0.0.1')))
  t.notOk(overlaps(tcp('::', { ipv6Only: true }), tcp('::ffff:127.0.0.1')))
})

t.test('who may listen at a place may listen on less of it', async (t) => {
  const table: readonly (readonly [place: string, asked: Address, may: boolean])[] = [
    ['3000', tcp('::', { anyFamily: true }), true],
    ['3000', tcp('0.0.0.0'), true],
    ['3000', tcp('127.0.0.1'), true],
    ['3000', udp('0.0.0.0'), false],
    ['3000', tcp('::', { port: 3001 }), false],
    ['udp:3000', udp('::'), true],
    ['0.0.0.0:3000', tcp('127.0.0.1'), true],
    ['0.0.0.0:3000', tcp('::ffff:127.0.0.1'), true],
    ['0.0.0.0:3000', tcp('::', { anyFamily: true }), false],
    ['0.0.0.0:3000', tcp('::1'), false],
    ['127.0.0.1:3000', tcp('127.0.0.1'), true],
    ['127.0.0.1:3000', tcp('127.0.0.2'), false],
    ['127.0.0.1:3000', tcp('0.0.0.0'), false],
    ['tcp:[::]:3000', tcp('::1'), true],
    ['tcp:[::]:3000', tcp('0.0.0.0'), true],
    ['tcp:[::]:3000', tcp('::', { ipv6Only: true }), true],
    ['tcp:[::]:3000/ipv6only', tcp('::', { ipv6Only: true }), true],
    ['tcp:[::]:3000/ipv6only', tcp('::1'), true],
    ['tcp:[::]:3000/ipv6only', tcp('::'), false],
    ['tcp:[::]:3000/ipv6only', tcp('::FFFF:7f00:1'), false],
    ['/run/a.sock', unix('/run/a.sock'), true],
    ['/run/a.sock', unix('/run/x/../a.sock'), false],
    ['unix:@a', unix('\0a'), true],
    ['@a', unix('/@a'), false],
    ['3000', unix('/3000'), false],
  ]
  for (const [text, asked, may] of table) {
    const place = parsePlace(text)
    if (!place) t.fail(`${text} is none`)
    else t.equal(takesIn(place, asked), may, `${text} takes in ${listenerKey(asked)}: ${may}`)
  }
  for (const key of ['tcp:3000', 'udp:[::1]:53', 'tcp:[::]:80/ipv6only', 'unix:/run/a.sock', 'unix:@a']) {
    const place = parsePlace(key)
    t.equal(place && placeText(place), key)
  }
})
