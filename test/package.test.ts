/** What is published: only what is needed, right for every way to import it, and enough to run from. */
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { builtinModules } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import type { TestLike } from './helpers/scope.ts'
import { expectNothingLeft, type Finished, run, start } from './helpers/spawn.ts'
import { freePort, shortTmp } from './helpers/tmp.ts'
import { fixture } from './helpers/usr2.ts'

const root = fileURLToPath(new URL('..', import.meta.url))
const PASSING = 'native-free-fd-passing'
const tmp = shortTmp(t)

/** npm, without a registry: what it would have to fetch is an error. */
const npm = (t: TestLike, args: readonly string[], cwd: string): Promise<Finished> =>
  run(t, 'npm', {
    args: [
      ...args,
      '--offline',
      '--no-audit',
      '--no-fund',
      '--loglevel',
      'error',
      '--cache',
      join(tmp, 'npm'),
    ],
    cwd,
    timeoutMs: 60_000,
  })

/** The program of a development dependency. */
const tool = (name: string): string => join(root, 'node_modules/.bin', name)

interface Packed {
  readonly filename: string
  readonly files: readonly { readonly path: string; readonly mode: number }[]
}
async function pack(t: TestLike, directory: string): Promise<Packed> {
  const packed = await npm(t, ['pack', '--json', '--pack-destination', tmp], directory)
  if (packed.code !== 0) throw new Error(packed.stderr)
  const [first] = JSON.parse(packed.stdout) as Packed[]
  if (first === undefined) throw new Error('npm packed nothing')
  return first
}

const usr2 = await pack(t, root)
const passing = await pack(t, join(root, PASSING))
const tarball = (packed: Packed): string => join(tmp, packed.filename)

t.test('the packages hold what is needed, and nothing else', async (t) => {
  t.same(usr2.files.map(({ path }) => path).sort(), [
    'LICENSE',
    'README.md',
    'dist/blocked.mjs',
    'dist/cli.mjs',
    'dist/config.schema.json',
    'dist/drill-load.mjs',
    'dist/drill.mjs',
    'dist/index.cjs',
    'dist/index.d.cts',
    'dist/index.d.mts',
    'dist/index.mjs',
    'dist/metrics.mjs',
    'dist/preload.cjs',
    'dist/pretty.mjs',
    'package.json',
    'systemd/README.md',
    'systemd/usr2@.service',
    'systemd/usr2@.socket',
  ])
  t.equal((usr2.files.find(({ path }) => path === 'dist/cli.mjs')?.mode ?? 0) & 0o111, 0o111)
  const names = passing.files.map(({ path }) => path)
  const needed = ['LICENSE', 'README.md', 'dist/index.cjs', 'dist/index.mjs', 'package.json']
  t.same(names.filter((name) => !/\.d\.[cm]ts$/.test(name)).sort(), needed)
  t.same(
    names.filter((name) => /\.d\.cts$/.test(name)).map((name) => name.replace('.d.cts', '.d.mts')),
    names.filter((name) => /\.d\.mts$/.test(name)),
    'types for both formats',
  )
})

for (const packed of [usr2, passing]) {
  t.test(`publint and attw find nothing wrong with ${packed.filename}`, async (t) => {
    const publint = await run(t, process.execPath, {
      args: [tool('publint'), 'run', tarball(packed), '--strict'],
      timeoutMs: 60_000,
    })
    t.equal(publint.code, 0, publint.stdout)
    // A JSON Schema is for editors; the resolver of Node 10 knows no "exports", so this one subpath it cannot find.
    const attw = await run(t, process.execPath, {
      args: [
        ...[tool('attw'), tarball(packed), '--format', 'ascii', '--no-definitely-typed'],
        ...['--exclude-entrypoints', 'config.schema.json'],
      ],
      timeoutMs: 60_000,
    })
    t.equal(attw.code, 0, attw.stdout)
  })
}

t.test('installed from its file alone, without a registry', async (t) => {
  const app = join(tmp, 'app')
  mkdirSync(app)
  writeFileSync(join(app, 'package.json'), '{ "name": "app", "version": "1.2.3" }')
  const installed = await npm(t, ['install', tarball(usr2), tarball(passing)], app)
  t.equal(installed.code, 0, installed.stderr)
  const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string }

  await t.test('usr2 --version', async (t) => {
    const said = await run(t, join(app, 'node_modules/.bin/usr2'), { args: ['--version'] })
    t.same(
      { code: said.code, stdout: said.stdout, stderr: said.stderr },
      { code: 0, stdout: version, stderr: '' },
    )
  })

  await t.test('usr2 run', async (t) => {
    const PORT = String(await freePort(t))
    const control = join(shortTmp(t), 'c.sock')
    cpSync(fixture('http-app.cjs'), join(app, 'app.cjs'))
    const master = start(t, process.execPath, {
      args: [join(app, 'node_modules/.bin/usr2'), 'run', '--control', control, 'app.cjs'],
      env: { PORT },
      cwd: app,
    })
    await master.line('"event":"ready"')
    const answer = (await (
      await fetch(`http://127.0.0.1:${PORT}/`, { headers: { Connection: 'close' } })
    ).json()) as { generation: string }
    t.equal(answer.generation, '1')
    t.match(
      master.stderr.find((line) => line.includes('"ready"')),
      '"version":"1.2.3"',
    )
    master.kill('SIGTERM')
    t.equal((await master.ended(20_000)).code, 0)
    await expectNothingLeft(t, master)
  })

  const use = `
    usr2.ready()
    usr2.onDrain(() => { throw new Error('called') })
    usr2.onResume(() => { throw new Error('called') })
    usr2.onShutdown('x', () => { throw new Error('called') }, { timeoutMs: 1 })
    console.log(JSON.stringify([usr2.supervised, usr2.generation, usr2.slot, usr2.drainSignal.aborted]))
    console.log(typeof passing.bind, typeof passing.onReceive, schema.type)`
  for (const [file, head] of [
    [
      'use.cjs',
      `const usr2 = require('usr2'); const passing = require('${PASSING}')
       const schema = require('usr2/config.schema.json')`,
    ],
    [
      'use.mjs',
      `import * as usr2 from 'usr2'; import * as passing from '${PASSING}'
       import { createRequire } from 'node:module'
       const schema = createRequire(import.meta.url)('usr2/config.schema.json')`,
    ],
  ] as const) {
    await t.test(`${file}: without a supervisor nothing is called`, async (t) => {
      writeFileSync(join(app, file), `${head}\n${use}`)
      const said = await run(t, process.execPath, { args: [join(app, file)] })
      t.equal(said.code, 0, said.stderr)
      t.equal(said.stdout, '[false,null,null,false]\nfunction function object')
    })
  }
})

t.test('the guest, and what apps import, need nothing but Node', async (t) => {
  const imports = (file: string): string[] => {
    const text = readFileSync(join(root, 'dist', file), 'utf8')
    const found = text.matchAll(/\b(?:require\(|from\s*|import\()\s*["']([^"'\n]+)["']/g)
    return [...new Set([...found].map(([, name]) => name ?? ''))]
  }
  const isBuiltin = (name: string): boolean =>
    name.startsWith('node:') && builtinModules.includes(name.slice('node:'.length))
  t.equal(imports('preload.cjs').length > 5, true, 'imports are found at all')
  t.same(
    imports('preload.cjs').filter((name) => !isBuiltin(name)),
    [],
  )
  t.same(imports('index.cjs'), [])
  t.same(imports('index.mjs'), [])
})

const BAD: Readonly<Record<string, readonly [file: string, text: string, complaint: string]>> = {
  'a decision that looks at the clock': [
    'src/rollout/step.ts',
    `import { performance } from 'node:perf_hooks'`,
    'src/rollout/step.ts may not import node:perf_hooks',
  ],
  'a decision that logs': [
    'src/rollout/step.ts',
    `export * from '../master/report.ts'`,
    'src/rollout/step.ts may not import ../master/report.ts',
  ],
  'a guest with a dependency': [
    'src/worker/preload.ts',
    `const pino = require('pino')`,
    'src/worker/preload.ts may not import pino',
  ],
  'a guest that knows the master': [
    'src/worker/preload.ts',
    `await import('../master/run.ts')`,
    'src/worker/preload.ts may not import ../master/run.ts',
  ],
  'a package that knows usr2': [
    `${PASSING}/src/index.ts`,
    `import '../../src/protocol.ts'`,
    `${PASSING}/src/index.ts may not import ../../src/protocol.ts`,
  ],
  'a protocol that imports anything': [
    'src/protocol.ts',
    `import type { Address } from './address.ts'`,
    'src/protocol.ts may not import ./address.ts',
  ],
  'a master that would hold the drill in memory': [
    'src/master/run.ts',
    `import '../drill/drill.ts'`,
    'src/master/run.ts may not import ../drill/drill.ts',
  ],
  'a file without a place': ['src/utils.ts', '', 'src/utils.ts has no place in the house'],
}

t.test('the rules of who may import whom', async (t) => {
  const check = (t: TestLike, args: readonly string[]): Promise<Finished> =>
    run(t, process.execPath, { args: [join(root, 'scripts/check-imports.mjs'), ...args] })
  const ours = await check(t, [])
  t.equal(ours.code, 0, ours.stderr)
  for (const [name, [file, text, complaint]] of Object.entries(BAD)) {
    const tree = join(tmp, 'tree')
    const good = [
      ['src/rollout/state.ts', 'export const x = 1'],
      ['src/protocol.ts', '// import x from "node:fs"'],
      [`${PASSING}/src/index.ts`, `import net from 'node:net'`],
      ['src/worker/preload.ts', `import { bind } from '${PASSING}'\nimport '../protocol.ts'`],
    ]
    for (const [path = '', content = ''] of [...good, [file, text]]) {
      mkdirSync(dirname(join(tree, path)), { recursive: true })
      writeFileSync(join(tree, path), content)
    }
    const { code, stderr } = await check(t, [tree])
    t.equal(code, 1, name)
    t.match(stderr, complaint)
    t.equal(stderr.split('\n').length, 1, 'and nothing else is complained about')
    rmSync(tree, { recursive: true })
  }
})
