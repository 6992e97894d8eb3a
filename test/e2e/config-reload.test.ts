/** Every reload reads anew: the config file, the env file, the code path, the Node binary. */
import {
  chmodSync,
  copyFileSync,
  realpathSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import http from 'node:http'
import { join } from 'node:path'
import t from 'tap'
import type { TestLike } from '../helpers/scope.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { deploy, type Files, fixture, startUsr2, type Usr2, type Usr2Options } from '../helpers/usr2.ts'

const APP = 'shows-itself.cjs'

/** What fixtures/shows-itself.cjs answers. */
interface Shown {
  readonly args: readonly string[]
  readonly env: Readonly<Record<string, string | undefined>>
  readonly execArgv: readonly string[]
  readonly file: string
  readonly cwd: string
}

interface Running {
  readonly usr2: Usr2
  readonly shown: () => Promise<Shown>
  /** Fails the test unless it is promoted; gives what stands on stdout. */
  readonly promoted: () => Promise<string>
  /** Fails the test unless it is refused; gives the complaint. */
  readonly refused: () => Promise<string>
  readonly write: (files: Files) => void
}

async function runs(t: TestLike, options: Usr2Options): Promise<Running> {
  const PORT = String(await freePort(t))
  const usr2 = startUsr2(t, {
    // Unless an entry is named, or said to come from elsewhere.
    ...('entry' in options ? {} : { fixture: APP }),
    ...options,
    env: { PORT, ...options.env },
  })
  await usr2.ready()
  const reload = async (status: number): Promise<string> => {
    const { code, stdout, stderr } = await usr2.reload()
    t.equal(code, status, stderr || stdout)
    return status === 0 ? stdout : stderr
  }
  return {
    usr2,
    shown: () =>
      new Promise((resolve, reject) => {
        const answered = (response: http.IncomingMessage): void => {
          let text = ''
          response.setEncoding('utf8').on('data', (some: string) => (text += some))
          response.on('end', () => resolve(JSON.parse(text) as Shown))
        }
        http.get({ host: '127.0.0.1', port: PORT, agent: false }, answered).on('error', reject)
      }),
    promoted: () => reload(0),
    refused: () => reload(1),
    write: (files) => {
      for (const [name, text] of Object.entries(files)) writeFileSync(join(usr2.cwd, name), text)
    },
  }
}

t.test('the config file', async (t) => {
  const config = (more: object): Files => ({ 'usr2.json': JSON.stringify({ drainTimeout: '3s', ...more }) })
  const { usr2, shown, promoted, write } = await runs(t, {
    flags: ['--config', 'usr2.json'],
    files: config({ workers: 1, nodeArgs: ['--title=one'] }),
  })
  t.equal((await usr2.status()).slots, 1)
  t.match(await shown(), { execArgv: ['--title=one'], env: { USR2_WORKERS: '1' } })

  write(config({ workers: 2, nodeArgs: ['--title=two', '--no-warnings'] }))
  await promoted()
  t.match(await usr2.status(), { slots: 2, ready: 2 })
  t.match(await shown(), { execArgv: ['--title=two', '--no-warnings'], env: { USR2_WORKERS: '2' } })

  write(config({}))
  await promoted()
  t.match(await usr2.status(), { slots: 1, ready: 1 })
  t.same((await shown()).execArgv, [])
  await usr2.stop()
})

t.test('the "usr2" key of package.json, entry and arguments of the app included', async (t) => {
  const manifest = (version: string, usr2: object): Files => ({
    'package.json': JSON.stringify({ name: 'shop', version, usr2: { drainTimeout: '3s', ...usr2 } }),
  })
  const cwd = shortTmp(t)
  for (const name of ['first.cjs', 'second.cjs']) copyFileSync(fixture(APP), join(cwd, name))
  const files = manifest('1.0.0', { entry: 'first.cjs', args: ['--port', 'web'] })
  const { usr2, shown, promoted, write } = await runs(t, { entry: undefined, cwd, files })
  t.match(await shown(), { file: join(realpathSync(cwd), 'first.cjs'), args: ['--port', 'web'] })
  write(manifest('2.0.0', { entry: 'second.cjs', args: ['x y'] }))
  t.match(await promoted(), '(1.0.0 -> 2.0.0)')
  t.match(await shown(), { file: join(realpathSync(cwd), 'second.cjs'), args: ['x y'] })
  await usr2.stop()
})

t.test('the env file, which wins over the environment of the master', async (t) => {
  const { usr2, shown, promoted, refused, write } = await runs(t, {
    flags: ['--env-file', '.env', '--drain-timeout', '3s'],
    env: { FROM_BOTH: 'master', FROM_MASTER: 'master' },
    files: { '.env': 'FROM_BOTH=file 1\nFROM_FILE="a b"\n' },
  })
  const seen = async (): Promise<unknown> => {
    const { FROM_BOTH, FROM_MASTER, FROM_FILE } = (await shown()).env
    return { FROM_BOTH, FROM_MASTER, FROM_FILE }
  }
  t.same(await seen(), { FROM_BOTH: 'file 1', FROM_MASTER: 'master', FROM_FILE: 'a b' })
  write({ '.env': 'FROM_BOTH=file 2\n' })
  await promoted()
  t.same(await seen(), { FROM_BOTH: 'file 2', FROM_MASTER: 'master', FROM_FILE: undefined })
  write({ '.env': '# nothing\n' })
  await promoted()
  t.same(await seen(), { FROM_BOTH: 'master', FROM_MASTER: 'master', FROM_FILE: undefined })

  rmSync(join(usr2.cwd, '.env'))
  t.match(
    await refused(),
    `The env file cannot be used: ${join(usr2.cwd, '.env')} cannot be read: there is no such file`,
  )
  write({ '.env': `FROM_FILE=${'x'.repeat(131_072)}\n` })
  t.match(await refused(), 'FROM_FILE has 131082 bytes, and no process can be started with more than 131071')
  t.same(await seen(), { FROM_BOTH: 'master', FROM_MASTER: 'master', FROM_FILE: undefined }, 'it serves on')
  await usr2.stop()
})

t.test('the code path: current -> releases/42', async (t) => {
  const root = shortTmp(t)
  const release = (version: string): string =>
    deploy(root, version, {
      fixture: APP,
      files: { 'package.json': JSON.stringify({ name: 'shop', version: `${version}.0.0` }) },
    })
  const real = (version: string): string => join(realpathSync(root), 'releases', version)

  for (const [how, options] of [
    ['an absolute path', { entry: join(root, 'current', APP) }],
    // As a shell does it: the working directory is the release, $PWD is the link.
    [
      'cd current && usr2 run app.js',
      { entry: APP, cwd: join(root, 'current'), env: { PWD: join(root, 'current') } },
    ],
    ['--cwd', { entry: APP, flags: ['--cwd', join(root, 'current')] }],
    ['cd root && usr2 run current/app.js', { entry: `current/${APP}`, cwd: root }],
  ] satisfies [string, Usr2Options][]) {
    await t.test(how, async (t) => {
      release('41')
      const { usr2, shown, promoted } = await runs(t, options)
      t.equal((await shown()).file, join(real('41'), APP))
      release('42')
      const verdict = await promoted()
      const after = await shown()
      t.equal(after.file, join(real('42'), APP))
      t.match(verdict, '(41.0.0 -> 42.0.0)')
      t.match(await usr2.status(), { generations: [{ version: '42.0.0', entry: join(real('42'), APP) }] })
      if (how.startsWith('cd current') || how === '--cwd') {
        t.equal(after.cwd, real('42'))
        t.equal(after.env['PWD'], join(root, 'current'))
        t.match(verdict, `${real('41')} -> ${real('42')}`)
      }
      release('43')
      rmSync(join(root, 'releases'), { recursive: true })
      t.match(await usr2.reload(), { code: 1, stderr: /there is no such file/ })
      t.equal((await shown()).file, join(real('42'), APP), 'it serves on')
      await usr2.stop()
    })
  }
})

t.test('the Node binary', async (t) => {
  const bin = shortTmp(t)
  const link = join(bin, 'node')
  /** Another Node, as far as can be seen from within: another file that runs it. */
  const install = (name: string): void => {
    const path = join(bin, name)
    writeFileSync(path, `#!/bin/sh\nINSTALLED=${name} exec ${process.execPath} "$@"\n`)
    chmodSync(path, 0o755)
    symlinkSync(name, `${link}.next`)
    renameSync(`${link}.next`, link)
  }
  install('v1')
  for (const [how, options] of [
    ['by its path', { flags: ['--node', link, '--drain-timeout', '3s'] }],
    [
      'found in PATH',
      { flags: ['--node', 'node', '--drain-timeout', '3s'], env: { PATH: `${bin}:${process.env['PATH']}` } },
    ],
  ] satisfies [string, Usr2Options][]) {
    await t.test(how, async (t) => {
      install('v1')
      const { usr2, shown, promoted, refused } = await runs(t, options)
      t.equal((await shown()).env['INSTALLED'], 'v1')
      install('v2')
      await promoted()
      t.equal((await shown()).env['INSTALLED'], 'v2')

      // Replaced in place, by something that is no Node.
      writeFileSync(join(bin, 'v2'), '#!/bin/sh\necho v19.9.0\n')
      t.match(await refused(), /it is not Node\.js/)
      t.equal((await shown()).env['INSTALLED'], 'v2', 'it serves on')
      await usr2.stop()
    })
  }
})

t.test('what only a restart can change is named', async (t) => {
  const config = (more: object): Files => ({ 'usr2.json': JSON.stringify(more) })
  const { usr2, promoted, write } = await runs(t, {
    flags: ['--config', 'usr2.json', '--drain-timeout', '3s'],
    files: config({ logLevel: 'info' }),
  })
  write(config({ logLevel: 'warn', pidFile: 'x.pid', workers: 2 }))
  await promoted()
  const line = await usr2.process.line('only a restart can change it')
  t.match(JSON.parse(line.text), { level: 'warn', keys: ['pidFile', 'logLevel'] })
  t.equal((await usr2.status()).slots, 2, 'all else is changed')
  await usr2.stop()
})

t.test('a bad config is refused with every complaint', async (t) => {
  const { usr2, shown, promoted, refused, write } = await runs(t, {
    flags: ['--config', 'usr2.json', '--env-file', '.env', '--drain-timeout', '3s'],
    files: { 'usr2.json': '{ "workers": 1 }', '.env': 'A=1' },
  })
  const path = join(usr2.cwd, 'usr2.json')
  write({ 'usr2.json': '{ "workers": 0, "startTimeout": "soon", "worker": 3 }' })
  const complaint = await refused()
  t.match(complaint, `"worker" in ${path} is no key of usr2; did you mean "workers"?`)
  t.match(complaint, `"workers" in ${path} is 0; it must be a whole number from 1`)
  t.match(complaint, `"startTimeout" in ${path} is "soon"; it must be a time`)

  write({ 'usr2.json': '{\n  "workers": 2,\n  oops\n}' })
  t.match(await refused(), `${path}, line 3, column 3: this is not JSON`)

  // A good file, and everything else bad.
  write({ 'usr2.json': JSON.stringify({ workers: 2, node: './no-node', cwd: './no-such-directory' }) })
  rmSync(join(usr2.cwd, '.env'))
  const all = await refused()
  t.match(
    all,
    `Could not find the working directory ${join(usr2.cwd, 'no-such-directory')}: there is no such file`,
  )
  t.match(all, `There is no program ${join(usr2.cwd, 'no-node')} to run the workers with`)
  t.match(all, `The env file cannot be used: ${join(usr2.cwd, '.env')} cannot be read`)

  t.equal((await shown()).env['USR2_GENERATION'], '1', 'the same generation serves')
  write({ 'usr2.json': '{ "workers": 2 }', '.env': 'A=2' })
  await promoted()
  t.match((await shown()).env, { USR2_GENERATION: '2', A: '2' })
  await usr2.stop()
})
