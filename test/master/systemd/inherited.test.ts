import type { HeldSocket } from 'native-free-fd-passing'
import t from 'tap'
import { listenerKey } from '../../../src/address.ts'
import type { Address } from '../../../src/address.ts'
import { fitting } from '../../../src/master/systemd/inherited.ts'

/** `0.0.0.0:80`, `[::]:80`, `[::]:80/ipv6only`, `udp:…`, `/a/path`, `@abstract` */
function addressOf(text: string): Address {
  if (/^[/@]/.test(text)) return { kind: 'unix', path: text.replace('@', '\0') }
  const [, udp, v6, v4, port, ipv6Only] = /^(udp:)?(?:\[(.*)\]|([\d.]+)):(\d+)(\/ipv6only)?$/.exec(text) ?? []
  const host = v6 ?? v4 ?? ''
  return { kind: udp ? 'udp' : 'tcp', host, port: Number(port), ...(ipv6Only && { ipv6Only: true }) }
}

const rows: readonly (readonly [has: string, asks: string, gets: string])[] = [
  ['127.0.0.1:80', '127.0.0.1:80', '127.0.0.1:80'],
  ['127.0.0.1:80', '127.0.0.1:81', ''],
  ['127.0.0.1:80', '127.0.0.2:80', ''],
  // Every address: what the unit has.
  ['[::]:80', '[::]:80', '[::]:80'],
  ['[::]:80', '0.0.0.0:80', '[::]:80'],
  ['[::]:80', '[::]:80/ipv6only', '[::]:80'],
  ['0.0.0.0:80', '[::]:80', '0.0.0.0:80'],
  ['0.0.0.0:80', '[::]:80/ipv6only', ''],
  ['127.0.0.1:80', '[::]:80', '127.0.0.1:80'],
  ['127.0.0.1:80', '0.0.0.0:80', '127.0.0.1:80'],
  ['[::1]:80', '[::]:80/ipv6only', '[::1]:80'],
  ['[::1]:80', '0.0.0.0:80', ''],
  // Several.
  ['0.0.0.0:80 [::]:80', '[::]:80', '[::]:80 0.0.0.0:80'],
  ['0.0.0.0:80 [::]:80', '0.0.0.0:80', '0.0.0.0:80'],
  ['127.0.0.1:80 127.0.0.2:80 10.0.0.1:81', '[::]:80', '127.0.0.1:80 127.0.0.2:80'],
  // One address: that or nothing.
  ['0.0.0.0:80', '127.0.0.1:80', ''],
  ['[::]:80', '127.0.0.1:80', ''],
  ['[::]:80', '[::1]:80', ''],
  // UDP stays in its family, and apart from TCP.
  ['udp:[::]:53', 'udp:0.0.0.0:53', ''],
  ['udp:0.0.0.0:53 udp:[::]:53', 'udp:[::]:53', 'udp:[::]:53'],
  ['udp:127.0.0.1:53', 'udp:0.0.0.0:53', 'udp:127.0.0.1:53'],
  ['0.0.0.0:53', 'udp:0.0.0.0:53', ''],
  // Paths.
  ['/run/a', '/run/a', '/run/a'],
  ['/run/a', '/run/b', ''],
  ['/run/a', '/var/run/a', '/run/a'],
  ['@a', '@a', '@a'],
]

t.test('which of the passed sockets an app gets', async (t) => {
  const socket = {} as HeldSocket
  const isSamePath = (a: string, b: string): boolean => a === b.replace('/var/run', '/run')
  for (const [has, asks, gets] of rows) {
    const activated = has.split(' ').map((name) => {
      const address = addressOf(name)
      return { name, socket, address, key: listenerKey(address) }
    })
    const got = fitting(addressOf(asks), activated, isSamePath).map(({ name }) => name)
    t.equal(got.join(' '), gets, `${has}, asked for ${asks}`)
  }
})
