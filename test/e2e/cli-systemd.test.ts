/** `usr2 systemd` as its user types it, into a root of the test's own. What runs of it: systemd.test.ts. */
import {
  chmodSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import type { Test } from 'tap'
import { type Finished, run } from '../helpers/spawn.ts'
import { shortTmp } from '../helpers/tmp.ts'

const CLI = fileURLToPath(new URL('../../dist/cli.mjs', import.meta.url))

interface Place {
  readonly root: string
  readonly app: string
  readonly units: string
  readonly service: string
  readonly socket: string
  readonly env: Record<string, string>
  usr2(args: readonly string[], env?: Record<string, string>): Promise<Finished>
}

/** An app behind a link, as deployments have it, and a systemctl that says its version. */
function place(t: Test, systemctl: string | null = 'systemd 252 (252.38-1~deb12u1)'): Place {
  const root = shortTmp(t)
  chmodSync(root, 0o755)
  const bin = join(root, 'bin')
  mkdirSync(bin)
  const says = systemctl === null ? 'exit 127' : `[ "$1" = --version ] && echo "${systemctl}"`
  writeFileSync(join(bin, 'systemctl'), `#!/bin/sh\n${says}\n`, { mode: 0o755 })
  mkdirSync(join(root, 'releases/1'), { recursive: true })
  writeFileSync(join(root, 'releases/1/server.js'), '')
  writeFileSync(join(root, 'releases/1/package.json'), '{ "name": "@firm/shop" }')
  symlinkSync('releases/1', join(root, 'current'))
  const app = join(root, 'current')
  const units = join(root, 'etc/systemd/system')
  const env = { PATH: `${bin}:${process.env['PATH'] ?? ''}`, PWD: app }
  return {
    ...{
      root,
      app,
      units,
      env,
      service: join(units, 'usr2@shop.service'),
      socket: join(units, 'usr2@shop.socket'),
    },
    usr2: (args, more = {}) =>
      run(t, process.execPath, { args: [CLI, 'systemd', ...args], cwd: app, env: { ...env, ...more } }),
  }
}

const values = (text: string, key: string): string[] =>
  text
    .split('\n')
    .filter((line) => line.startsWith(`${key}=`))
    .map((line) => line.slice(key.length + 1))

t.test('print', async (t) => {
  const { usr2, app } = place(t)
  const { code, stdout } = await usr2(['print', '--drain-timeout', '1m', 'server.js', '--port', '3000'])
  t.equal(code, 0)
  const [start = ''] = values(stdout, 'ExecStart')
  const [node = '', script = '', ...rest] = start.split(' ')
  t.match(node, /^\/.*node/, 'the absolute path of node')
  t.match(script, /^\/.*\/cli\.mjs$/, 'and of usr2')
  t.same(rest.join(' '), 'run --name shop --drain-timeout 1m server.js --port 3000')
  t.same(values(stdout, 'ExecReload'), [`${node} ${script} reload --name shop --timeout 80s`])
  t.same(values(stdout, 'WorkingDirectory'), [app], 'by the link, not by what it leads to')
  t.same(values(stdout, 'Environment'), [`PWD=${app}`, 'NODE_ENV=production'])
  t.same(values(stdout, 'TimeoutStopSec'), ['90'])
  t.same(values(stdout, 'DynamicUser'), ['yes'])
  t.same(values(stdout, 'NotifyAccess'), ['all'])

  await t.test('from elsewhere, with --cwd', async (t) => {
    const there = await usr2(['print', '--cwd', app, 'server.js'], { PWD: '/' })
    t.same(values(there.stdout, 'WorkingDirectory'), [app])
  })
  await t.test('for a user', async (t) => {
    const { stdout } = await usr2(['print', '--user', 'shop', '--group', 'web', 'server.js'])
    const of = (key: string) => values(stdout, key)
    t.same([of('User'), of('Group'), of('DynamicUser')], [['shop'], ['web'], []])
  })
  await t.test('with sockets', async (t) => {
    const { stdout } = await usr2([
      'print',
      '--listen',
      '80',
      '--listen',
      '[::1]:81',
      '--listen=/run/s',
      'server.js',
    ])
    t.same(values(stdout, 'ListenStream'), ['80', '[::1]:81', '/run/s'])
    t.same(values(stdout, 'Requires'), ['usr2@shop.socket'])
  })
})

t.test('the version of systemd', async (t) => {
  const notice = async (t: Test, says: string | null, args: string[] = []) => {
    const { stdout, stderr } = await place(t, says).usr2(['print', ...args, 'server.js'])
    return { access: values(stdout, 'NotifyAccess'), file: values(stdout, 'OpenFile'), stderr }
  }
  const main = { access: ['main'], file: ['/run/systemd/notify:notify:graceful'] }
  const all = { access: ['all'], file: [] }
  t.match(await notice(t, 'systemd 257 (257.4-1)'), main)
  t.match(await notice(t, 'systemd 252 (252.38)'), all)
  t.match(await notice(t, 'systemd 252 (252.38)', ['--systemd-version', '253']), main)
  t.match(await notice(t, 'systemd 257 (257.4-1)', ['--systemd-version', '252']), all)
  t.match(await notice(t, null), { ...all, stderr: /no systemctl here/ })
})

t.test('install', async (t) => {
  const { usr2, root, units, service, socket } = place(t)
  const install = (...args: string[]) => usr2(['install', '--root', root, ...args, 'server.js'])
  const dry = await install('--dry-run', '--listen', '80')
  t.match(dry, { code: 0, stdout: `${service} would be written\n${socket} would be written` })
  t.throws(() => readdirSync(units), 'a dry run makes nothing')

  const first = await install('--listen', '80')
  t.match(first, { code: 0, stdout: `${service} written\n${socket} written` })
  t.same(readdirSync(units).sort(), ['usr2@shop.service', 'usr2@shop.socket'], 'and nothing beside them')
  t.equal(lstatSync(service).mode & 0o777, 0o644)
  t.match(await install('--listen', '80'), {
    code: 0,
    stdout: /service is as it should be\n.*socket is as it should be/,
  })

  t.match(await install('--workers', '3'), {
    code: 0,
    stdout: /service renewed\n.*socket is there from before/,
  })
  t.match(readFileSync(service, 'utf8'), /^ExecStart=.* --workers 3 server\.js$/m)

  const edited = readFileSync(service, 'utf8').replace('LimitCORE=0', 'LimitCORE=infinity')
  writeFileSync(service, edited)
  for (const flags of [[], ['--dry-run']]) {
    t.match(await install('--listen', '90', ...flags), { code: 1, stderr: /service was edited.*--force/ })
  }
  t.equal(readFileSync(service, 'utf8'), edited)
  t.match(readFileSync(socket, 'utf8'), /^ListenStream=80$/m, 'the other one is not written either')
  t.match(await install('--dry-run', '--force'), { code: 0, stdout: /service would be replaced/ })
  t.equal(readFileSync(service, 'utf8'), edited)
  t.match(await install('--force'), { code: 0, stdout: /service replaced/ })
  t.match(readFileSync(service, 'utf8'), /^LimitCORE=0$/m)

  writeFileSync(service, `${readFileSync(service, 'utf8')}[Service]\nUser=shop\n`)
  t.match(await install(), { code: 1, stderr: /was edited/ }, 'a line at the end is an edit')

  writeFileSync(service, '[Service]\nExecStart=/x\n')
  t.match(await install(), { code: 1, stderr: /is not a file of usr2/ })

  t.test('a masked unit', async (t) => {
    const { usr2, root, units, service } = place(t)
    mkdirSync(units, { recursive: true })
    symlinkSync('/dev/null', service)
    t.match(await usr2(['install', '--root', root, 'server.js']), {
      code: 1,
      stderr: /is not a file of usr2/,
    })
    t.match(await usr2(['install', '--force', '--root', root, 'server.js']), { code: 0 })
    t.ok(lstatSync(service).isFile(), 'the link was replaced, not followed')
  })

  t.test('a directory that cannot be written', async (t) => {
    const { usr2, root } = place(t)
    writeFileSync(join(root, 'etc'), '')
    const { code, stderr } = await usr2(['install', '--root', root, 'server.js'])
    t.equal(code, 1)
    t.match(stderr, `usr2: The units could not be written into ${root}/etc/systemd/system: `)
  })
})

t.test('complaints, all at once', async (t) => {
  const { usr2 } = place(t)
  for (const [args, complaint] of [
    [['print'], /No entry was given/],
    [['print', '--listen', 'localhost:80', 'server.js'], /--listen is "localhost:80"; it must be a port/],
    [['print', '--name', 'a b', 'server.js'], /The name "a b" cannot be part of a unit's name/],
    [['print', '--group', 'web', 'server.js'], /--group is given without --user/],
    [['print', '--user', 'a\nb', 'server.js'], /--user is "a\\nb"/],
    [['print', '--systemd-version', '219', 'server.js'], /247 or newer/],
    [['print', '--force', 'server.js'], /--force is no option of "usr2 systemd print"/],
    [['print', '--cwd', 'nowhere', 'server.js'], /nowhere is no directory/],
    [['print', '--wokers', '2', 'server.js'], /--wokers is no option.*--workers/],
    [['write', 'server.js'], /"usr2 systemd" is install or print, not "write"/],
  ] as const) {
    const said = await usr2(args)
    t.match(said, { code: 2, stdout: '', stderr: complaint }, args.join(' '))
  }
  const two = await usr2(['print', '--listen', '0', '--workers', 'many', 'server.js'])
  t.match(two.stderr, /--listen is "0"[^]*--workers is "many"/)
})

t.test('warnings', async (t) => {
  const { usr2, root, app, env } = place(t)
  const warned = async (args: readonly string[], env: Record<string, string> = {}) =>
    (await usr2(['print', ...args], env)).stderr
  t.match(await warned(['other.js']), /other\.js, the entry, does not exist yet/)
  t.match(
    await warned(['server.js'], { USR2_WORKERS: '4' }),
    /USR2_WORKERS of this shell does not go into the unit/,
  )
  t.match(await warned(['--pid-file', '/run/shop.pid', 'server.js']), /\/run\/shop\.pid is to be written/)
  t.notMatch(await warned(['--pid-file', '/run/usr2/shop/pid', 'server.js']), /is to be written/)
  const withoutPwd = (args: readonly string[]) =>
    run(t, 'env', {
      args: ['-u', 'PWD', process.execPath, CLI, 'systemd', 'print', ...args, 'server.js'],
      cwd: app,
      env,
    })
  t.match((await withoutPwd([])).stderr, /no PWD.*releases\/1, with every link followed/, 'as under sudo')
  t.notMatch((await withoutPwd(['--cwd', app])).stderr, /no PWD/)
  t.match(await warned(['server.js']), /PrivateTmp=/, 'the app of this test lies in /tmp')

  const closed = new RegExp(`${root} is closed to other users.*chmod o\\+x ${root}`)
  t.notMatch(await warned(['server.js']), closed)
  chmodSync(root, 0o700)
  t.match(await warned(['server.js']), closed)
  t.notMatch(await warned(['--user', 'shop', 'server.js']), closed, 'a user of their own may be let in')
})

const analyze = await run(t, 'systemd-analyze', { args: ['--version'] }).catch(() => null)
const version = Number(/^systemd (\d+)/.exec(analyze?.stdout ?? '')?.[1])
t.test(
  'systemd-analyze has nothing to say against the files for the version here',
  { skip: Number.isNaN(version) && 'NOT TESTED: there is no systemd-analyze here' },
  async (t) => {
    const { usr2, root, service, socket } = place(t, `systemd ${version}`)
    await usr2([
      'install',
      '--root',
      root,
      '--listen',
      '80',
      '--listen',
      'udp:53',
      '--listen',
      '@shop',
      'server.js',
    ])
    const verify = await run(t, 'systemd-analyze', { args: ['verify', service, socket], timeoutMs: 30_000 })
    t.same({ ...verify }, { code: 0, signal: null, stdout: '', stderr: '' })
    if (version < 250)
      return t.comment(`NOT TESTED: exposure, since systemd ${version} cannot tell it offline`)
    const args = ['security', '--offline=true', '--no-pager', service]
    const { stdout } = await run(t, 'systemd-analyze', { args, timeoutMs: 30_000 })
    const score = Number(/exposure level for .*: (\d+\.\d) /.exec(stdout)?.[1])
    t.ok(score <= (version < 253 ? 1.3 : 1.1), `exposure ${score} with systemd ${version}`)
  },
)
