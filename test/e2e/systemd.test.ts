/**
 * usr2 as a service of a real systemd, by the unit file as we ship it, in a private systemd that is thrown away
 * (test/helpers/systemd-sandbox). Needs root; where the sandbox cannot run, it says so and skips.
 */
import { cpSync, existsSync, mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import type { TestLike } from '../helpers/scope.ts'
import { run } from '../helpers/spawn.ts'
import { shortTmp } from '../helpers/tmp.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))
const sandbox = join(root, 'test', 'helpers', 'systemd-sandbox')
/** Another root to boot, for its version of systemd: `debootstrap --include=systemd,dbus,iproute2,libatomic1 trixie DIR`. */
const otherRoot = process.env['USR2_SYSTEMD_ROOT']
const boot = otherRoot === undefined ? [] : ['-r', otherRoot]

interface Ran {
  readonly status: number
  readonly text: string
}
interface Answer {
  readonly version: string
  readonly uid: number
  readonly seen: readonly string[]
  readonly args: readonly string[]
}
/** As test/helpers/systemd-drive.mjs prints it. */
interface Facts {
  readonly systemd: string
  readonly install?: Ran
  readonly again?: Ran
  readonly verify: Ran
  readonly security: string
  readonly start: Ran
  readonly active: string
  readonly first: Answer
  readonly client: Ran
  readonly statusAfterStart: string
  readonly good: Ran
  readonly second: Answer
  readonly statusAfterGood: string
  readonly broken: Ran
  readonly third: Answer
  readonly activeAfterBroken: string
  readonly statusAfterBroken: string
  readonly traffic: {
    readonly requests: number
    readonly failures: readonly string[]
    readonly byVersion: Readonly<Record<string, number>>
  }
  readonly restarts: string
  readonly processesBeforeStop: number
  readonly stop: Ran
  readonly slow: readonly string[]
  readonly activeAfterStop: string
  readonly result: string
  readonly processesAfterStop: readonly string[]
  readonly cgroupAfterStop: boolean
  readonly runtimeDirectoryAfterStop: boolean
  readonly warned: string
}

/** Longer than the sandbox's own limit, after which it cleans up by itself. */
const inSandbox = (t: TestLike, ...args: string[]) =>
  run(t, sandbox, { args: [...boot, ...args], timeoutMs: 100_000 })

const probe = await inSandbox(t, '-N', '--', 'true')
const skip = probe.code !== 0 && `NOT TESTED, no private systemd here: ${probe.stderr.split('\n')[0]}`

const variants = [
  {
    name: 'a user of its own (DynamicUser), the unit as shipped',
    dropIn: '',
    isUser: (uid: number) => uid > 0,
    args: [],
    appArgs: [],
    exposure: 1.3,
    warned: /^$/,
  },
  {
    name: 'root, with a watchdog of 1 s',
    dropIn: '[Service]\nUser=root\nDynamicUser=no\nWatchdogSec=1\n',
    isUser: (uid: number) => uid === 0,
    args: [],
    appArgs: [],
    exposure: null,
    warned: /^$/,
  },
  {
    name: 'the unit that `usr2 systemd install` writes for an app in /srv',
    dropIn: '',
    isUser: (uid: number) => uid > 0,
    args: ['/srv/box', '', '--cwd', '/srv/box/current', '--name', 'box', '--workers', '2', 'server.js'],
    appArgs: [],
    exposure: 1.3,
    warned: /^$/,
  },
  {
    name: 'the same for a user with an app in a closed home, and too little time to stop',
    dropIn: '[Service]\nTimeoutStopSec=20\n',
    isUser: (uid: number) => uid >= 1000 && uid < 60_000,
    args: [
      ...['/home/my shop', 'shop', '--user', 'shop', '--cwd', '/home/my shop/current'],
      ...['--name', 'box', '--workers', '2', './server.js', '$HOME', '50%'],
    ],
    appArgs: ['$HOME', '50%'],
    exposure: 1.4,
    warned: /^.*TimeoutStopSec= of usr2@box\.service is 20\.0 s, and a stop may take 45\.0 s[^\n]*$/,
  },
]

for (const { name, dropIn, isUser, args, appArgs, exposure, warned } of variants) {
  t.test(name, { skip }, async (t) => {
    t.ok(existsSync(join(root, 'dist', 'cli.mjs')), 'built: `npm run build` comes before this test')
    const directory = shortTmp(t)
    const units = join(directory, 'units')
    const journal = join(directory, 'journal')
    mkdirSync(units)
    if (args.length === 0) {
      for (const name of ['usr2@.service', 'usr2@.socket'])
        cpSync(join(root, 'systemd', name), join(units, name))
    }

    const drive = await inSandbox(
      t,
      ...['-N', '-t', '80', '-u', units, '-j', journal],
      ...['-b', `${root}:/box/usr2:ro`, '-b', `${process.execPath}:/usr/local/bin/node:ro`],
      ...[
        '--',
        '/usr/local/bin/node',
        '/box/usr2/test/helpers/systemd-drive.mjs',
        '/box/usr2',
        dropIn,
        ...args,
      ],
    )
    const showJournal = () => existsSync(journal) && t.comment(readFileSync(journal, 'utf8'))
    if (!t.equal(drive.code, 0, 'the drive ended')) return showJournal()
    const facts = JSON.parse(drive.stdout) as Facts
    t.comment(`${facts.systemd}, node ${process.version}: ${JSON.stringify(facts.traffic)}`)

    if (args.length > 0) {
      t.equal(facts.install?.status, 0, `usr2 systemd install: ${facts.install?.text}`)
      t.match(facts.again, { status: 0, text: /usr2@box\.service is as it should be/ })
    }
    t.comment(facts.security)
    const score = Number(/: (\d+\.\d) /.exec(facts.security)?.[1])
    const isMain = args.length > 0 && Number(/\d+/.exec(facts.systemd)?.[0]) >= 253
    const most = exposure !== null && isMain ? exposure - 0.2 : exposure
    if (most !== null) t.ok(score <= most + 0.01, `exposure ${score} is at most ${most}`)
    t.same(facts.verify, { status: 0, text: '' }, 'systemd-analyze verify has nothing to say')
    if (t.equal(facts.start.status, 0, 'systemctl start')) {
      t.equal(facts.active, 'active')
      t.equal(facts.first.version, '1')
      t.ok(isUser(facts.first.uid), `the app runs as uid ${facts.first.uid}`)
      t.same(facts.first.args, appArgs, 'the app gets its arguments as they were typed')
      t.same(facts.first.seen, [], 'the app sees nothing that systemd says to the master')
      t.equal(facts.client.status, 0, 'usr2 status --name box finds the service from outside')
      t.not(facts.statusAfterStart, '', 'a status for people')

      t.equal(facts.good.status, 0, 'systemctl reload of a good version')
      t.equal(facts.second.version, '2')
      t.not(facts.statusAfterGood, facts.statusAfterStart)

      t.not(facts.broken.status, 0, 'systemctl reload of a broken version fails')
      t.equal(facts.third.version, '2', 'the old version still answers')
      t.equal(facts.activeAfterBroken, 'active', 'neither failed nor reloading for ever')
      t.match(facts.statusAfterBroken, /Status: ".*broken on purpose/, 'systemctl status says why')

      t.same(facts.traffic.failures, [], 'no request failed')
      t.ok(facts.traffic.requests > 100, `${facts.traffic.requests} requests`)
      t.same(Object.keys(facts.traffic.byVersion).sort(), ['1', '2'])
      t.equal(facts.restarts, '0', 'the master beats')

      t.match(facts.warned, warned, 'warns of a unit that allows too little time, and of no other')
      t.equal(facts.stop.status, 0, 'systemctl stop')
      t.same(facts.slow, ['2', '2', '2', '2'], 'what was in flight was answered')
      t.equal(facts.activeAfterStop, 'inactive')
      t.equal(facts.result, 'success')
      t.equal(facts.processesBeforeStop, 3, 'a master and two workers')
      t.same(facts.processesAfterStop, [], 'no process is left')
      t.notOk(facts.cgroupAfterStop, 'no cgroup is left')
      t.notOk(facts.runtimeDirectoryAfterStop, 'no runtime directory is left')
    }
    if (!t.passing()) showJournal()
  })
}
