/** Who may do what: workers of another user under a root master, and who may connect to the control socket. */
import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  existsSync,
  lchownSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:net'
import { dirname, join } from 'node:path'
import t from 'tap'
import { gidOf, identityOf, type Find } from '../../src/master/workers/identity.ts'
import { mustBeTrusted } from '../../src/master/control/runtime-directory.ts'
import { KeptUnixPath } from '../../src/master/listening/unix-path.ts'
import { getJson } from '../helpers/http.ts'
import { run, start } from '../helpers/spawn.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { CLI, startUsr2 } from '../helpers/usr2.ts'

const isRoot = process.getuid?.() === 0
const skip = isRoot ? false : 'only root may become somebody else'
const NOBODY = { uid: 65534, gid: 65534 }

const APP = `
const { readFileSync } = require('node:fs')
const status = readFileSync('/proc/self/status', 'utf8')
const of = (name) => new RegExp('^' + name + ':[ \\\\t]*(.*)$', 'm').exec(status)[1].trim()
const { HOME, USER, LOGNAME, FROM_FILE } = process.env
const me = { uid: process.getuid(), gid: process.getgid(), groups: of('Groups'), caps: of('CapEff'), HOME, USER, LOGNAME, FROM_FILE }
require('node:http').createServer((req, res) => res.end(JSON.stringify(me))).listen(Number(process.env.PORT), '127.0.0.1')
`
interface Me {
  readonly uid: number
  readonly gid: number
  readonly groups: string
  readonly caps: string
  readonly HOME?: string
  readonly USER?: string
  readonly LOGNAME?: string
  readonly FROM_FILE?: string
}

t.test('--user: workers of a root master', { skip }, async (t) => {
  t.test('are that user, with nothing of root, and serve, reload and stop as ever', async (t) => {
    const port = await freePort(t)
    const hook = 'echo the uid is $(id -u)'
    const usr2 = startUsr2(t, {
      isShared: true,
      entry: 'app.cjs',
      files: {
        'app.cjs': APP,
        '.env': 'FROM_FILE=yes\nHOME=/srv\n',
        'c.json': JSON.stringify({
          user: 'nobody',
          probes: { readiness: '/' },
          hooks: { afterPromote: hook },
        }),
      },
      flags: ['--config', 'c.json', '--env-file', '.env', '--workers', '2'],
      env: { PORT: String(port), HOME: '/root', USER: 'root', LOGNAME: 'root' },
    })
    await usr2.ready()
    const me = {
      ...{ ...NOBODY, groups: '', caps: '0000000000000000' },
      // The env file has the last word.
      ...{ HOME: '/srv', USER: 'nobody', LOGNAME: 'nobody', FROM_FILE: 'yes' },
    }
    t.same(await getJson<Me>({ port }), me)
    const { code, stderr } = await usr2.reload({ flags: ['--wait', 'drained'] })
    t.equal(code, 0, stderr)
    t.same(await getJson<Me>({ port }), me)
    await usr2.process.line(/the uid is 65534/, { what: 'the uid of the hook' })
    await usr2.stop()
  })

  t.test('HOME, USER and LOGNAME are theirs', async (t) => {
    const port = await freePort(t)
    const usr2 = startUsr2(t, {
      isShared: true,
      entry: 'app.cjs',
      files: { 'app.cjs': APP },
      flags: ['--user', 'nobody', '--group', '1'],
      env: { PORT: String(port), HOME: '/root', USER: 'root', LOGNAME: 'root' },
    })
    await usr2.ready()
    const HOME = spawnSync('getent', ['passwd', 'nobody'], { encoding: 'utf8' }).stdout.split(':')[5]
    const { caps, ...me } = await getJson<Me>({ port })
    t.same(me, { uid: NOBODY.uid, gid: 1, groups: '', HOME, USER: 'nobody', LOGNAME: 'nobody' })
    t.match(caps, /^0+$/)
    const { mode } = statSync(dirname(usr2.control))
    t.equal(mode & 0o777, 0o755)
    await usr2.stop()
  })

  t.test('who cannot read what they need is told so, and nothing is started', async (t) => {
    const refused = async (options: { isShared: boolean; entryMode: number }) => {
      const cwd = join(shortTmp(t), 'app')
      chmodSync(dirname(cwd), 0o755)
      mkdirSync(cwd)
      writeFileSync(join(cwd, 'app.cjs'), APP)
      chmodSync(join(cwd, 'app.cjs'), options.entryMode)
      const usr2 = startUsr2(t, { ...options, cwd, entry: 'app.cjs', flags: ['--user', 'nobody'] })
      const { code } = await usr2.process.ended(20_000)
      return { code, said: usr2.logs() }
    }
    const entry = await refused({ isShared: true, entryMode: 0o600 })
    t.equal(entry.code, 2)
    t.match(entry.said, /Workers as nobody could not load the entry \S+\/app\.cjs: that user may not read it/)
    const guest = await refused({ isShared: false, entryMode: 0o644 })
    t.equal(guest.code, 1)
    t.match(
      guest.said,
      /Workers as nobody could not load \S+\/preload\.cjs: .* another place with --control PATH/,
    )
  })

  t.test('an unknown user, an unknown group, and no root', async (t) => {
    const cwd = shortTmp(t)
    writeFileSync(join(cwd, 'app.cjs'), APP)
    const said = async (flags: string[]) => {
      const { code, stderr } = await run(t, process.execPath, {
        args: [CLI, 'run', ...flags, 'app.cjs'],
        cwd,
      })
      t.equal(code, 2)
      return stderr
    }
    t.equal(await said(['--user', 'no-such-user']), 'usr2: There is no user no-such-user (--user).')
    t.equal(await said(['--group', 'no-such-group']), 'usr2: There is no group no-such-group (--group).')
    t.equal(
      await said(['--control-group', 'no-such-group']),
      'usr2: There is no group no-such-group (--control-group).',
    )
    t.match(await said(['--user', '../x']), /--user is "\.\.\/x"; it must be the name or number of a user\./)
  })
})

t.test('as whom', async (t) => {
  const find: Find = async (database, key) =>
    (database === 'passwd'
      ? [
          ['shop', 'x', '1001', '100', '', '/home/shop', '/bin/sh'],
          ['bare', 'x', '1002', '100', '', '', ''],
        ]
      : [['www-data', 'x', '33', '']]
    ).find(([name, , id]) => name === key || id === key) ?? null
  const as = (user: string | null, group: string | null, uid = 0) => identityOf({ user, group }, find, uid)
  const shop = { HOME: '/home/shop', USER: 'shop', LOGNAME: 'shop' }
  t.equal(await as(null, null, 1000), null)
  t.same(await as('shop', null), { name: 'shop', uid: 1001, gid: 100, env: shop })
  t.same(await as('1001', 'www-data'), { name: 'shop', uid: 1001, gid: 33, env: shop })
  t.match(await as('bare', null), { env: { HOME: '/' } })
  t.same(await as('7777', '33'), { name: '--user 7777 --group 33', uid: 7777, gid: 33, env: { HOME: '/' } })
  t.same(await as(null, 'www-data'), { name: '--group www-data', uid: 0, gid: 33, env: {} })
  t.equal(await gidOf('4242', '--control-group', find), 4242)
  await t.rejects(as('7777', null), { message: /no user with the uid 7777 .*--group/ })
  await t.rejects(as('shop', null, 1000), {
    message:
      /^--user shop cannot be done: only a master that runs as root .* uid 1000\. .*\(User= in its unit\)\.$/,
  })
})

t.test('--control-mode and --control-group', { skip }, async (t) => {
  const port = await freePort(t)
  const usr2 = startUsr2(t, {
    isShared: true,
    entry: 'app.cjs',
    files: { 'app.cjs': APP },
    flags: ['--control-group', '1'],
    env: { PORT: String(port) },
  })
  await usr2.ready()
  const { mode, gid, uid } = lstatSync(usr2.control)
  t.same({ mode: mode & 0o777, gid, uid }, { mode: 0o660, gid: 1, uid: 0 })
  const statusAs = (user: number, group: number) =>
    run(t, 'setpriv', {
      args: [
        ...['--reuid', String(user), '--regid', String(group), '--clear-groups'],
        ...[process.execPath, CLI, 'status', '--control', usr2.control],
      ],
      cwd: '/',
    })
  const member = await statusAs(NOBODY.uid, 1)
  t.equal(member.code, 0, member.stderr)
  const other = await statusAs(NOBODY.uid, NOBODY.gid)
  t.equal(other.code, 3, other.stdout)
  t.match(other.stderr, /this user may not connect to it/)
  await usr2.stop()
})

const DEAD = 999_999_990 // above any pid_max

t.test('the runtime directory: nothing that lies there is used or followed', async (t) => {
  const [directory, victim] = [shortTmp(t), shortTmp(t)]
  const cwd = shortTmp(t)
  writeFileSync(join(cwd, 'app.cjs'), APP)
  writeFileSync(join(victim, 'preload.cjs'), 'keep')
  const at = (name: string) => join(directory, name)
  symlinkSync(victim, at(`.usr2-t-${DEAD}`))
  symlinkSync(victim, at(`.usr2-t-${DEAD + 1}-abcdef`))
  const ownStale = at(`.usr2-t-${DEAD + 2}-abcdef`)
  mkdirSync(ownStale)
  symlinkSync(victim, join(ownStale, 'inside'))
  const foreign = at(`.usr2-t-${DEAD + 3}-abcdef`)
  mkdirSync(foreign)
  if (isRoot) chownSync(foreign, NOBODY.uid, NOBODY.gid)
  const planted = readdirSync(directory)

  const control = at('c.sock')
  const args = [CLI, 'run', '--control', control, '--name', 't', 'app.cjs']
  const env = { PORT: String(await freePort(t)) }
  const master = start(t, process.execPath, { name: 'usr2 run', args, cwd, env })
  await master.line('"event":"ready"')
  const [made, ...more] = readdirSync(directory).filter(
    (name) => !planted.includes(name) && name !== 'c.sock',
  )
  t.match(made, new RegExp(`^\\.usr2-t-${master.pid}-\\w{6}$`))
  t.same(more, [])
  const look = (path: string) => ({ mode: lstatSync(path).mode & 0o777, uid: lstatSync(path).uid })
  const uid = process.getuid?.()
  t.same(look(at(made ?? '')), { mode: 0o755, uid })
  t.same(look(join(at(made ?? ''), 'preload.cjs')), { mode: 0o644, uid })
  t.equal(readFileSync(join(victim, 'preload.cjs'), 'utf8'), 'keep')
  t.equal(existsSync(ownStale), false, 'what a dead master of ours left is swept')
  t.equal(readlinkSync(at(`.usr2-t-${DEAD}`)), victim)
  t.equal(existsSync(foreign), isRoot, 'what is another user’s is not touched')
  master.kill()
  t.equal((await master.ended()).code, 0)
  t.equal(existsSync(at(made ?? '')), false)
  t.same(readdirSync(victim), ['preload.cjs'])
})

t.test('a place in which others could put code under the workers is refused', async (t) => {
  const cwd = shortTmp(t)
  writeFileSync(join(cwd, 'app.cjs'), APP)
  const said = async (directory: string) => {
    const args = [CLI, 'run', '--control', join(directory, 'c.sock'), 'app.cjs']
    const { code, stderr } = await run(t, process.execPath, { args, cwd, env: { PORT: '1' } })
    t.equal(code, 1)
    t.same(readdirSync(directory), [], 'nothing is left in it')
    return stderr
  }
  const open = shortTmp(t)
  chmodSync(open, 0o777)
  t.match(
    await said(open),
    /The control socket cannot be in \S+: everybody may write to it, .* --control PATH\.$/,
  )
  chmodSync(open, 0o1777)
  t.doesNotThrow(() => mustBeTrusted(open), 'as /tmp is: nobody else can rename what is ours')
  if (!isRoot) return
  chmodSync(open, 0o700)
  chownSync(open, NOBODY.uid, NOBODY.gid)
  t.match(await said(open), /cannot be in \S+: it belongs to uid 65534, who could put other code under/)
  const link = join(shortTmp(t), 'link')
  symlinkSync(cwd, link)
  t.doesNotThrow(() => mustBeTrusted(link), 'as /var/run is')
  lchownSync(link, NOBODY.uid, NOBODY.gid)
  t.throws(() => mustBeTrusted(link), /belongs to uid 65534/)
})

t.test('the spare link of a unix socket is put into no directory that was planted', async (t) => {
  const [directory, victim] = [shortTmp(t), shortTmp(t)]
  const path = join(directory, 'app.sock')
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(path, resolve))
  t.teardown(() => server.close())
  writeFileSync(join(victim, 's'), 'keep')
  symlinkSync(victim, join(directory, `.usr2-${process.pid}-app.sock`))
  symlinkSync(victim, join(directory, `.usr2-${DEAD}-app.sock`))
  t.throws(() => new KeptUnixPath(path, () => {}), { code: 'EEXIST' })
  t.equal(readFileSync(join(victim, 's'), 'utf8'), 'keep')
  t.same(readdirSync(victim), ['s'])
})
