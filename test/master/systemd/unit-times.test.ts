/** A stand-in for systemctl says what the unit allows; test/e2e/systemd-install.test.ts asks the real one. */
import { chmodSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import type { Test } from 'tap'
import { loadConfig } from '../../../src/config.ts'
import { policyOf } from '../../../src/master/workers/generation.ts'
import { checkUnitTimes, limitsOf, unitOf } from '../../../src/master/systemd/unit-times.ts'
import { shortTmp } from '../../helpers/tmp.ts'

t.test('the unit, by its cgroup', async (t) => {
  for (const [cgroup, unit] of [
    ['0::/system.slice/system-usr2.slice/usr2@shop.service\n', { name: 'usr2@shop.service', ofUser: false }],
    [
      '12:memory:/system.slice/x.service\n1:name=systemd:/system.slice/shop.service\n0::/\n',
      { name: 'shop.service', ofUser: false },
    ],
    [
      '0::/user.slice/user-1000.slice/user@1000.service/app.slice/shop.service\n',
      { name: 'shop.service', ofUser: true },
    ],
    ['0::/user.slice/user-1000.slice/session-1.scope\n', null],
    ['0::/user.slice/user-1000.slice/user@1000.service/app.slice/term.scope\n', null],
    ['0::/\n', null],
    ['', null],
  ] as const) {
    t.same(unitOf(cgroup), unit, cgroup)
  }
})

t.test('the limits, as systemctl prints them', async (t) => {
  const of = (text: string) => limitsOf(`TimeoutStartUSec=1min 30s\nTimeoutStopUSec=${text}\n`).stopMs
  t.equal(of('45s'), 45_000)
  t.equal(of('1min 30s'), 90_000)
  t.equal(of('1h 500ms'), 3_600_500)
  t.equal(of('infinity'), Infinity)
  t.equal(of('soon'), undefined)
  t.same(limitsOf(''), { startMs: undefined, stopMs: undefined })
})

const loaded = loadConfig({ argv: ['--name', 'shop', 'server.js'], env: {}, cwd: '/app' })
if (!loaded.ok) throw new Error(loaded.complaints.join('\n'))
const policy = policyOf(loaded.config)

async function warnings(t: Test, script: string, env: Readonly<Record<string, string>>): Promise<string[]> {
  const directory = shortTmp(t)
  writeFileSync(join(directory, 'systemctl'), `#!/bin/sh\n${script}\n`)
  chmodSync(join(directory, 'systemctl'), 0o755)
  const said: string[] = []
  await checkUnitTimes({
    env: { PATH: `${directory}:/usr/bin:/bin`, ...env },
    policy,
    log: { warn: (_facts, text) => said.push(text) },
    pid: 7,
    cgroup: '0::/system.slice/usr2@shop.service\n',
  })
  return said
}

const shows = (start: string, stop: string) =>
  `[ "$*" = "show -p TimeoutStartUSec,TimeoutStopUSec -- usr2@shop.service" ] || exit 1
   echo TimeoutStartUSec=${start}; echo TimeoutStopUSec=${stop}`
const NOTIFY = { NOTIFY_SOCKET: '/run/systemd/notify' }

t.test('says what is too short', async (t) => {
  t.match(await warnings(t, shows("'1min 30s'", '45s'), NOTIFY), [
    /^TimeoutStopSec= of usr2@shop\.service is 45\.0 s, and a stop may take 45\.0 s/,
  ])
  t.match(await warnings(t, shows('20s', '1min'), { SYSTEMD_EXEC_PID: '7' }), [
    /^TimeoutStartSec= of usr2@shop\.service is 20\.0 s, and a worker has 60\.0 s/,
  ])
  t.equal((await warnings(t, shows('1s', '1s'), NOTIFY)).length, 2)
})

t.test('is silent', async (t) => {
  const short = shows('1s', '1s')
  t.same(await warnings(t, shows('infinity', 'infinity'), NOTIFY), [], 'where nothing is too short')
  t.same(await warnings(t, shows("'1min 30s'", '1min'), NOTIFY), [], 'in the unit as we ship it')
  t.same(await warnings(t, short, {}), [], 'without systemd')
  t.same(await warnings(t, short, { SYSTEMD_EXEC_PID: '8' }), [], 'in a shell of another service')
  t.same(await warnings(t, 'exit 1', NOTIFY), [], 'when systemd does not answer')
  t.same(await warnings(t, 'exec sleep 60', NOTIFY), [], 'when systemd hangs')
})
