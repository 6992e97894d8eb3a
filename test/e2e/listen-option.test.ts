/** `--listen`: workers listen there only; and what a root master does for workers of another user. */
import { existsSync, mkdirSync, chmodSync, chownSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import { getJson } from '../helpers/http.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { startUsr2, usr2 as command } from '../helpers/usr2.ts'

/** Serves on PORT, tries MORE (JSON, as `listen` takes it), and answers what came of that. */
const APP = `
const { createServer } = require('node:http')
let tried = null
createServer((req, res) => res.end(JSON.stringify({ tried }))).listen(Number(process.env.PORT), '127.0.0.1', () => {
  const more = JSON.parse(process.env.MORE)
  createServer().on('error', ({ code, syscall }) => (tried = { code, syscall })).listen(more, () => (tried = 'listens'))
})`
const files = { 'app.cjs': APP }

async function ask(port: number): Promise<unknown> {
  for (;;) {
    const { tried } = await getJson<{ tried: unknown }>({ port })
    if (tried !== null) return tried
  }
}

t.test('an address that is none of them is refused, before anything is bound or removed', async (t) => {
  const port = await freePort(t)
  const other = await freePort(t)
  const place = shortTmp(t)
  const stale = join(place, 'stale.sock')
  // A socket that nobody answers at: its server has ended without a word.
  await new Promise<void>((resolve) => {
    const server = createServer().listen(join(place, 'first.sock'), () => {
      void import('node:fs').then(({ linkSync }) => {
        linkSync(join(place, 'first.sock'), stale)
        server.close(() => resolve())
      })
    })
  })
  for (const [more, key] of [
    [{ port: other, host: '127.0.0.1' }, `tcp:127.0.0.1:${other}`],
    [{ port, host: '127.0.0.2' }, `tcp:127.0.0.2:${port}`],
    [{ path: stale }, `unix:${stale}`],
  ] as const) {
    const usr2 = startUsr2(t, {
      ...{ entry: 'app.cjs', files, flags: ['--listen', `127.0.0.1:${port}`] },
      env: { PORT: String(port), MORE: JSON.stringify(more) },
    })
    await usr2.ready()
    t.same(await ask(port), { code: 'EACCES', syscall: 'listen' }, key)
    const { msg } = await usr2.event('claim-refused')
    t.equal(
      msg,
      `${key} is none of the addresses of --listen (tcp:127.0.0.1:${port}): let the app listen there, or allow it with a ` +
        'further --listen',
    )
    t.same(
      (await usr2.status()).listeners.map((listener) => listener.key),
      [`tcp:127.0.0.1:${port}`],
    )
    t.ok(existsSync(stale))
    await usr2.stop()
  }
})

t.test('what is allowed is as without it, also a relative path, and a reload reads it anew', async (t) => {
  const port = await freePort(t)
  const cwd = join(shortTmp(t), 'app')
  const config = (listen: readonly unknown[]) => ({ 'c.json': JSON.stringify({ listen }) })
  const { writeFileSync } = await import('node:fs')
  const usr2 = startUsr2(t, {
    ...{ cwd, entry: 'app.cjs', files: { ...files, ...config([port, './more.sock']) } },
    flags: ['--config', 'c.json', '--start-timeout', '3s'],
    env: { PORT: String(port), MORE: JSON.stringify({ path: 'more.sock' }) },
  })
  await usr2.ready()
  t.equal(await ask(port), 'listens')
  writeFileSync(join(cwd, 'c.json'), JSON.stringify({ listen: [port] }))
  const refused = await usr2.reload()
  t.equal(refused.code, 1, 'the new generation does not listen on all that the current one does')
  t.match(refused.stderr + refused.stdout, /more\.sock/)
  const { code, stderr } = await usr2.reload({ flags: ['--drop', `unix:${join(cwd, 'more.sock')}`] })
  t.equal(code, 0, stderr)
  t.same(await ask(port), { code: 'EACCES', syscall: 'listen' })
  await usr2.stop()
})

t.test('usr2 check knows it', async (t) => {
  const port = await freePort(t)
  const cwd = shortTmp(t)
  const { writeFileSync } = await import('node:fs')
  writeFileSync(join(cwd, 'app.cjs'), `require('node:http').createServer().listen(${port}, '127.0.0.1')`)
  const args = ['check', '--control', join(cwd, 'none.sock')]
  const refused = await command(t, [...args, '--listen', '1', 'app.cjs'], { cwd })
  t.equal(refused.code, 1)
  t.match(refused.stdout, `tcp:127.0.0.1:${port} is none of the addresses of --listen (tcp:1)`)
  t.equal((await command(t, [...args, '--listen', `${port}`, 'app.cjs'], { cwd })).code, 0)
})

const skip = process.getuid?.() === 0 ? false : 'only root may become somebody else'
t.test('a root master with workers of another user', { skip }, async (t) => {
  const cwd = join(shortTmp(t), 'app')
  const theirs = join(cwd, '..', 'theirs')
  const roots = join(cwd, '..', 'roots')
  for (const at of [theirs, roots]) {
    mkdirSync(at)
    chmodSync(at, 0o755)
  }
  chownSync(theirs, 65534, 65534)
  const inTheirs = join(theirs, 'a.sock')
  const inRoots = join(roots, 'a.sock')
  const rows: readonly (readonly [more: object, flags: readonly string[], refused: string | null])[] = [
    [{ port: 7, host: '127.0.0.1' }, [], 'would be bound with the rights of usr2 (root)'],
    [{ path: inRoots }, [], `allow it with --listen unix:${inRoots}`],
    [
      { path: inTheirs },
      ['--listen', inTheirs],
      `${theirs} belongs to uid 65534, and could put another file`,
    ],
    [{ path: inRoots }, ['--listen', inRoots], null],
    [{ port: 7, host: '127.0.0.1' }, ['--listen', '7'], null],
    [{ path: '\0usr2-listen-test' }, [], null],
  ]
  for (const [more, flags, refused] of rows) {
    const port = await freePort(t)
    const usr2 = startUsr2(t, {
      ...{ cwd, isShared: true, entry: 'app.cjs', files },
      flags: ['--user', 'nobody', ...flags, ...(flags.length > 0 ? ['--listen', `${port}`] : [])],
      env: { PORT: String(port), MORE: JSON.stringify(more) },
    })
    chmodSync(join(cwd, '..'), 0o755)
    await usr2.ready()
    const what = `${JSON.stringify(more)} ${flags.join(' ')}`
    if (refused === null) t.equal(await ask(port), 'listens', what)
    else {
      t.same(await ask(port), { code: 'EACCES', syscall: 'listen' }, what)
      t.match((await usr2.event('claim-refused')).msg, refused)
      t.notOk(existsSync(inTheirs))
    }
    await usr2.stop()
  }
})
