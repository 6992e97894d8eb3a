/** Apps on a unix socket whose path they, or others, take away at the wrong moments. */
import { existsSync, lstatSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { LoadResult } from '../../src/drill/load.ts'
import { getJson } from '../helpers/http.ts'
import { expectNoneFailed, loadUnder } from '../helpers/load.ts'
import { expectNothingLeft } from '../helpers/spawn.ts'
import { shortTmp } from '../helpers/tmp.ts'
import { deploy, type Files, startUsr2, type Usr2 } from '../helpers/usr2.ts'
import { until } from '../helpers/wait.ts'

/** What all of them do between two unlinks. A `broken` file makes them fail after the first, at the worst moment. */
const SERVE = `
  const here = import.meta.dirname ?? new URL('.', import.meta.url).pathname
  const broken = () => { if (fs.existsSync(join(here, 'broken'))) throw new Error('broken on purpose') }
  const me = JSON.stringify({ pid: process.pid, generation: process.env.USR2_GENERATION })
  const server = http.createServer((req, res) => res.end(me))`

const apps: Record<string, Files> = {
  'unlinkSync, CommonJS': {
    'app.cjs': `
      const fs = require('node:fs'), http = require('node:http'), { join } = require('node:path')
      const path = process.argv[2]
      const unlink = () => { try { fs.unlinkSync(path) } catch (error) { if (error.code !== 'ENOENT') throw error } }
      unlink()
      if (fs.existsSync(join(__dirname, 'broken'))) throw new Error('broken on purpose')
      const me = JSON.stringify({ pid: process.pid, generation: process.env.USR2_GENERATION })
      const server = http.createServer((req, res) => res.end(me)).listen(path)
      process.on('SIGTERM', () => { unlink(); server.close(() => { unlink(); process.exit() }) })`,
  },
  'named imports, ES module': {
    'app.mjs': `
      import fs, { existsSync, unlinkSync } from 'node:fs'
      import http from 'node:http'
      import { join } from 'node:path'
      ${SERVE}
      const [, , path] = process.argv
      if (existsSync(path)) unlinkSync(path)
      broken()
      server.listen({ path })
      process.on('SIGTERM', () => { unlinkSync(path); server.close(() => process.exit()) })`,
  },
  'fs.promises.rm and fs.unlink': {
    'app.mjs': `
      import fs from 'node:fs'
      import { rm } from 'node:fs/promises'
      import http from 'node:http'
      import { join } from 'node:path'
      ${SERVE}
      const [, , path] = process.argv
      await rm(path, { force: true })
      broken()
      server.listen(path)
      process.on('SIGTERM', () => fs.unlink(path, () => server.close(() => process.exit())))`,
  },
  'rm -f by a child process': {
    'app.mjs': `
      import { execFileSync } from 'node:child_process'
      import fs from 'node:fs'
      import http from 'node:http'
      import { join } from 'node:path'
      ${SERVE}
      const [, , path] = process.argv
      execFileSync('rm', ['-f', path])
      broken()
      server.listen(path)`,
  },
}

async function verdictOf(usr2: Usr2, wanted: 'promoted' | 'rolled-back'): Promise<void> {
  const from = usr2.process.lines.length
  usr2.signal('SIGUSR2')
  const verdict = await usr2.process.line(/"event":"(promoted|rolled-back|refused)"/, {
    from,
    timeoutMs: 30_000,
  })
  if (!verdict.text.includes(`"event":"${wanted}"`)) throw new Error(`${wanted} was wanted: ${verdict.text}`)
}

/** Reloads, every fifth followed by one of a version that fails after it has unlinked the path. */
async function reloadUnderConnects(
  t: Test,
  files: Files,
  reloads: number,
): Promise<{ result: LoadResult; repaired: boolean }> {
  const directory = shortTmp(t)
  const path = join(directory, 'app.sock')
  const usr2 = startUsr2(t, { files, entry: Object.keys(files)[0], args: [path] })
  await usr2.ready()
  const traffic = [
    { mode: 'new', connections: 4, thinkMs: [1, 4] },
    { mode: 'keepalive', connections: 2, thinkMs: [5, 15] },
  ] as const
  const load = await loadUnder(t, { target: { path }, traffic })
  for (let reload = 1; reload <= reloads; reload++) {
    await verdictOf(usr2, 'promoted')
    if (reload % 5 > 0) continue
    writeFileSync(join(usr2.cwd, 'broken'), '')
    await verdictOf(usr2, 'rolled-back')
    rmSync(join(usr2.cwd, 'broken'))
  }
  const result = await load.stop()
  t.ok(lstatSync(path).isSocket(), 'the path is there after all of it')
  const generation = async () => (await getJson<{ generation: string }>({ socketPath: path })).generation
  // The very last one was rolled back.
  const last = String(reloads + Math.floor(reloads / 5))
  // At a promotion the old worker may accept a last one.
  await until(async () => (await generation()) === last, { timeoutMs: 5_000, what: `generation ${last}` })
  await usr2.stop()
  t.same(readdirSync(directory), [], 'no file is left')
  return { result, repaired: usr2.logs().includes('brought it back') }
}

for (const [name, files] of Object.entries(apps)) {
  const isOurs = !name.startsWith('rm -f')
  const reloads = name.startsWith('unlinkSync') ? 50 : 10
  t.test(`${name}: ${reloads} reloads and ${reloads / 5} rollbacks`, async (t) => {
    const { result, repaired } = await reloadUnderConnects(t, files, reloads)
    // Also where no client happened to come in between: a path that had to be repaired was away for a moment.
    t.equal(repaired, !isOurs)
    if (isOurs) return expectNoneFailed(t, result)
    // Another process is out of our sight: between its unlink and the master's repair there is no path.
    const { refused = 0, ...others } = result.failures
    t.comment(`${refused} of ${result.requests} found no path`)
    t.same(others, {}, 'nothing else failed')
    t.ok(result.ok > refused, 'the path came back each time')
  })
}

const RELATIVE: Files = {
  'app.cjs': `
    const me = JSON.stringify({ version: require('node:fs').readFileSync(__dirname + '/VERSION', 'utf8') })
    require('node:http').createServer((req, res) => res.end(me)).listen('./app.sock')`,
}

t.test('a relative path below a symlink that moves is one listener across releases', async (t) => {
  const root = shortTmp(t)
  const cwd = join(root, 'current')
  const socketPath = join(cwd, 'app.sock')
  deploy(root, '1', { files: RELATIVE })
  // As a shell has it: `cd current`.
  const usr2 = startUsr2(t, { cwd, entry: 'app.cjs', env: { PWD: cwd } })
  await usr2.ready()
  const version = async () => (await getJson<{ version: string }>({ socketPath })).version
  t.equal(await version(), '1')
  for (const next of ['2', '3']) {
    deploy(root, next, { files: RELATIVE })
    await until(() => existsSync(socketPath), {
      timeoutMs: 5_000,
      what: 'the path in the new release',
      logs: () => usr2.logs(),
    })
    t.equal(await version(), String(Number(next) - 1), 'clients find it before anyone has asked for a reload')
    await verdictOf(usr2, 'promoted')
    await until(async () => (await version()) === next, { timeoutMs: 5_000, what: `version ${next}` })
    // What a deploy tool does with old releases.
    rmSync(join(root, 'releases', String(Number(next) - 1)), { recursive: true })
  }
  rmSync(socketPath)
  await until(() => existsSync(socketPath), { timeoutMs: 5_000, what: 'the path again' })
  t.equal(await version(), '3', 'the spare link has moved along with it')
  t.equal((await usr2.status()).listeners.length, 1)
  await usr2.stop()
  t.same(readdirSync(join(root, 'releases', '3')).sort(), ['VERSION', 'app.cjs'])
})

const PLAIN: Files = {
  'app.cjs': `require('node:http').createServer((req, res) => res.end('{}')).listen(process.argv[2])`,
}

t.test('what a killed master leaves at the path is replaced, and swept', async (t) => {
  const directory = shortTmp(t)
  const path = join(directory, 'app.sock')
  const killed = startUsr2(t, { files: PLAIN, entry: 'app.cjs', args: [path] })
  await killed.ready()
  killed.process.kill('SIGKILL')
  await killed.process.exited
  await expectNothingLeft(t, killed.process, 10_000)
  t.ok(existsSync(path), 'a killed master cannot clean up')
  const next = startUsr2(t, { files: PLAIN, entry: 'app.cjs', args: [path] })
  await next.ready()
  t.same(await getJson({ socketPath: path }), {})
  await next.stop()
  t.same(readdirSync(directory), [])
})

t.test('a socket of a living process is never replaced', async (t) => {
  const directory = shortTmp(t)
  const path = join(directory, 'app.sock')
  const other = createServer((socket) => void socket.on('error', () => {}).end('mine')).listen(path)
  await new Promise((resolve) => other.once('listening', resolve))
  const { ino } = lstatSync(path)
  const usr2 = startUsr2(t, { files: PLAIN, entry: 'app.cjs', args: [path] })
  t.equal((await usr2.process.ended()).code, 1)
  t.match((await usr2.event('stopped')).msg, `EADDRINUSE: address already in use ${path}`)
  t.match((await usr2.event('stopped')).msg, `in use by pid ${process.pid} (`)
  t.equal(lstatSync(path).ino, ino)
  await new Promise((resolve) => other.close(resolve))
  t.same(readdirSync(directory), [])
})

t.test('whatever else is put at the path makes room again', async (t) => {
  const directory = shortTmp(t)
  const path = join(directory, 'app.sock')
  const usr2 = startUsr2(t, { files: PLAIN, entry: 'app.cjs', args: [path] })
  await usr2.ready()
  // In one step: after an unlink the socket might be back before we have written.
  writeFileSync(`${path}.new`, 'not a socket')
  renameSync(`${path}.new`, path)
  const isBack = () => lstatSync(path, { throwIfNoEntry: false })?.isSocket()
  await until(isBack, { timeoutMs: 5_000, what: 'the socket again', logs: () => usr2.logs() })
  t.same(await getJson({ socketPath: path }), {})
  await usr2.stop()
  t.same(readdirSync(directory), [])
})
