/** The text of the units: what is shipped, and what `usr2 systemd` makes of an app. No systemd is asked here. */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { isUnedited, timesOf } from '../../src/cli/systemd.ts'
import { loadConfig } from '../../src/config.ts'
import { policyOf, stopBudgetMs } from '../../src/master/workers/generation.ts'
import {
  commandLine,
  parseListen,
  serviceText,
  socketText,
  TEMPLATE,
  TEMPLATE_SOCKET,
  UNIT_NAME,
} from '../../src/cli/systemd-unit.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))

const policyFor = (...argv: string[]) => {
  const loaded = loadConfig({ argv: ['--name', 'shop', ...argv, 'server.js'], env: {}, cwd: '/app' })
  if (!loaded.ok) throw new Error(loaded.complaints.join('\n'))
  return policyOf(loaded.config)
}
const timesFor = (...argv: string[]) => timesOf(policyFor(...argv))

t.test('the shipped units are the template (REWRITE=1 writes them)', async (t) => {
  const texts = { service: serviceText(TEMPLATE), socket: socketText(TEMPLATE_SOCKET) }
  for (const [kind, text] of Object.entries(texts)) {
    const path = join(root, 'systemd', `usr2@.${kind}`)
    if (process.env['REWRITE'] === '1') writeFileSync(path, text)
    else t.equal(readFileSync(path, 'utf8'), text, path)
  }
})

t.test('times', async (t) => {
  const { startSec, reloadSec, stopSec } = TEMPLATE.times
  t.match(timesFor(), { startSec, reloadSec, stopSec }, "the template's are those of the defaults")
  t.match(
    timesFor('--drain-timeout', '2m', '--kill-timeout', '1s'),
    { stopSec: 120 + 10 + 1 + 15, stopIs: [/drainTimeout 120 s/] },
    'a stop has the stop budget, and some',
  )
  t.match(
    timesFor('--keep-alive-timeout', '70s'),
    { stopSec: 72 + 10 + 5 + 15 },
    'a promise of keep-alive raises the drain, and so the stop',
  )
  const hooked = { ...policyFor(), hooks: ['beforeStop'], hookTimeoutMs: 20_000 } as const
  t.equal(timesOf(hooked).stopSec, stopBudgetMs(hooked) / 1000 + 15, 'all that the budget has')
  t.match(timesFor('--start-timeout', '5m'), { startSec: 330, reloadSec: 320 })
  t.match(
    timesFor('--steps', '10% 5m, 50% 10m, 100%', '--workers', '10'),
    { reloadSec: 3 * 60 + 15 * 60 + 20, startSec: 3 * 60 + 15 * 60 + 30 },
    'a reload has the time of its holds',
  )
  t.match(
    timesFor('--steps', '50% promote', '--workers', '2'),
    { reloadSec: null, startSec: null },
    'nobody knows how long a person takes',
  )
  t.match(
    timesFor('--strategy', 'rolling', '--workers', '4', '--max-surge', '1', '--max-unavailable', '0'),
    { reloadSec: 4 * (60 + 45) + 20 },
    'workers that are replaced one by one boot, and leave, one after another',
  )
})

t.test('words of a command line', async (t) => {
  for (const [args, line] of [
    [['run', '--workers', '2', 'server.js'], '/n run --workers 2 server.js'],
    [['a b', ''], '/n "a b" ""'],
    [['100%', '$HOME', '${X}'], '/n 100%% $$HOME "$${X}"'],
    [['"', '\\', "'", ';'], `/n "\\"" "\\\\" "'" ";"`],
    [['a\nb'], '/n "a\\x0ab"'],
  ] as const) {
    t.equal(commandLine('/n', args), line)
  }
  t.equal(commandLine('/a $b/50%', []), '"/a $b/50%%"', 'in the path of the program a $ is a $')
})

t.test('what systemd can hold', async (t) => {
  for (const value of [
    '3000',
    '65535',
    '0.0.0.0:80',
    '127.0.0.1:3000',
    '[::]:80',
    '[::1]:3000',
    '/run/a b.sock',
    '@shop',
  ]) {
    t.same(parseListen(value), { directive: 'ListenStream', value })
  }
  t.same(parseListen('udp:53'), { directive: 'ListenDatagram', value: '53' })
  t.same(parseListen('udp:[::1]:53'), { directive: 'ListenDatagram', value: '[::1]:53' })
  for (const wrong of [
    ...['', '0', '65536', '99999', '03000', 'localhost:80', '256.0.0.1:80', '1.2.3:80', ':80', '::1:80'],
    ...['[1.2.3.4]:80', 'run/a.sock', '@', `/${'a'.repeat(107)}`, '/run/a\nExecStartPre=/x', 'udp:/run/a'],
  ]) {
    t.equal(parseListen(wrong), undefined, JSON.stringify(wrong))
  }
})

t.test('names', async (t) => {
  for (const name of ['shop', 'shop-2', 'a.b_c', 'x'.repeat(64)]) t.match(name, UNIT_NAME)
  for (const name of ['', '-a', '.a', 'a b', 'a@b', 'a:b', 'a%i', 'é', 'x'.repeat(65)])
    t.notMatch(name, UNIT_NAME)
})

const keys = (text: string): ReadonlyMap<string, readonly string[]> => {
  const found = new Map<string, string[]>()
  for (const line of text.split('\n')) {
    const [, key, value = ''] = /^(\w+)=(.*)$/.exec(line) ?? []
    if (key !== undefined) found.set(key, [...(found.get(key) ?? []), value])
  }
  return found
}

t.test('the notice, for each version of systemd', async (t) => {
  for (const systemd of [null, 247, 252]) {
    const made = keys(serviceText({ ...TEMPLATE, systemd }))
    t.same([made.get('NotifyAccess'), made.get('OpenFile')], [['all'], undefined], String(systemd))
  }
  for (const systemd of [253, 257]) {
    const made = keys(serviceText({ ...TEMPLATE, systemd }))
    const descriptor = '/run/systemd/notify:notify:graceful'
    t.same([made.get('NotifyAccess'), made.get('OpenFile')], [['main'], [descriptor]], String(systemd))
  }
})

t.test('what an app changes', async (t) => {
  const made = keys(
    serviceText({
      ...TEMPLATE,
      name: 'shop',
      cwd: '/srv/my shop/100%',
      user: 'shop',
      group: 'web',
      readsHome: true,
      times: { ...TEMPLATE.times, startSec: null, reloadSec: null, stopSec: 7 },
      listen: [{ directive: 'ListenStream', value: '80' }],
    }),
  )
  const expected = {
    WorkingDirectory: ['/srv/my shop/100%%'],
    Environment: ['"PWD=/srv/my shop/100%%"', 'NODE_ENV=production'],
    User: ['shop'],
    Group: ['web'],
    DynamicUser: undefined,
    ProtectHome: ['read-only'],
    TimeoutStartSec: ['infinity'],
    TimeoutStopSec: ['7'],
    Requires: ['usr2@shop.socket'],
    Also: ['usr2@shop.socket'],
    RuntimeDirectory: ['usr2/shop'],
  }
  for (const [key, values] of Object.entries(expected)) t.same(made.get(key), values, key)
  const shipped = keys(serviceText(TEMPLATE))
  for (const key of ['WorkingDirectory', 'User', 'Group', 'Requires', 'Also']) t.notOk(shipped.has(key), key)
  const socket = keys(
    socketText({
      ...TEMPLATE_SOCKET,
      listen: [
        { directive: 'ListenStream', value: '80' },
        { directive: 'ListenDatagram', value: '53' },
      ],
    }),
  )
  t.same([socket.get('ListenStream'), socket.get('ListenDatagram')], [['80'], ['53']])
})

t.test('beside each line that an app may have to loosen stands how', async (t) => {
  const lines = serviceText(TEMPLATE).split('\n')
  for (const key of [
    ...['NotifyAccess', 'LimitNOFILE', 'LimitCORE', 'TasksMax', 'UMask', 'NoNewPrivileges', 'PrivateUsers'],
    ...[
      'CapabilityBoundingSet',
      'PrivateTmp',
      'PrivateDevices',
      'ProtectSystem',
      'ProtectHome',
      'ProtectProc',
    ],
    ...['RestrictAddressFamilies', 'RestrictNamespaces', 'RestrictRealtime', 'RestrictSUIDSGID', 'RemoveIPC'],
    ...['LockPersonality', 'SystemCallArchitectures', 'SystemCallFilter'],
  ]) {
    t.match(lines[lines.findIndex((line) => line.startsWith(`${key}=`)) - 1], /^# /, key)
  }
  t.ok(
    lines.every((line) => line.length <= 130),
    'readable in a terminal',
  )
})

t.test('a file that was edited is told from one that was not', async (t) => {
  t.notOk(isUnedited(''))
  t.notOk(isUnedited(serviceText(TEMPLATE)), 'a copy of the template is not ours to renew')
})
