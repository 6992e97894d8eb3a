/** What tests of `usr2 upgrade` share. */
import { chmodSync, cpSync, existsSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { Test } from 'tap'
import type { Traffic } from '../../src/drill/load.ts'
import { expectNothingLeft } from './spawn.ts'
import { freePort, shortTmp } from './tmp.ts'
import { CLI, imbalancesOf, startUsr2, type LogEvent, type Usr2, type Usr2Options } from './usr2.ts'
import { until } from './wait.ts'

export const TRAFFIC: readonly Traffic[] = [
  { mode: 'new', connections: 2, thinkMs: [2, 6] },
  { mode: 'keepalive', connections: 8, thinkMs: [5, 15] },
  { mode: 'hot', connections: 2 },
  { mode: 'post', connections: 1, thinkMs: [5, 15], echo: true },
  { mode: 'slow', connections: 2, path: '/slow?ms=400' },
]

/** On PORT and at ./app.sock. */
export const APP = `
const http = require('node:http')
const me = JSON.stringify({ generation: process.env.USR2_GENERATION })
const serve = (req, res) => {
  res.setHeader('Content-Type', 'application/json')
  const ms = new URL(req.url, 'http://x').searchParams.get('ms')
  if (req.method === 'POST') req.pipe(res)
  else if (ms) setTimeout(() => res.end(me), Number(ms))
  else res.end(me)
}
http.createServer(serve).listen(Number(process.env.PORT), '127.0.0.1')
http.createServer(serve).listen('app.sock')
`

export async function startBoth(
  t: Test,
  options: Usr2Options = {},
): Promise<{ usr2: Usr2; port: number; path: string }> {
  const port = await freePort(t)
  const usr2 = startUsr2(t, {
    ...options,
    files: { 'app.cjs': APP, ...options.files },
    entry: 'app.cjs',
    flags: ['--workers', '2', ...(options.flags ?? [])],
    env: { PORT: String(port), ...options.env },
  })
  await usr2.ready()
  return { usr2, port, path: join(usr2.cwd, 'app.sock') }
}

/** The new master has said hello. */
export function hello(usr2: Usr2): Promise<LogEvent> {
  const starts = ({ event, msg }: LogEvent) => event === 'upgrade' && /starts generation/.test(msg)
  const found = () => usr2.events().find(starts)
  return until(found, { timeoutMs: 20_000, what: 'a new master', logs: () => usr2.logs() })
}

/** `usr2 stop`; the master is no child of ours any more. */
export async function stopAll(t: Test, usr2: Usr2): Promise<void> {
  const { code, stderr } = await usr2.cli('stop')
  t.equal(code, 0, stderr)
  await expectNothingLeft(t, usr2.process, 5_000)
  t.notOk(existsSync(usr2.control))
  t.same(usr2.events().flatMap(imbalancesOf), [], 'the accounts of every generation agree')
}

/** A usr2 of its own, whose files can be changed as a package manager does. */
export function copyOfUsr2(t: Test): {
  readonly cli: string
  put(text: string): void
  setVersion(version: string): void
} {
  const root = shortTmp(t)
  chmodSync(root, 0o755)
  const dist = join(root, 'dist')
  cpSync(dirname(CLI), dist, { recursive: true })
  cpSync(CLI, join(dist, 'real.mjs'))
  const manifest = join(root, 'package.json')
  const json = JSON.parse(readFileSync(join(dirname(CLI), '../package.json'), 'utf8')) as object
  const cli = join(dist, 'cli.mjs')
  writeFileSync(manifest, JSON.stringify(json))
  return {
    cli,
    put: (text) => writeFileSync(cli, text),
    setVersion: (version) => writeFileSync(manifest, JSON.stringify({ ...json, version })),
  }
}

/** What a new master does in place of going on. DEAF: it is well, and does not say what it should. */
export const KILL = 'process.kill(process.pid, "SIGKILL")'
/** Without a core of its own: two of these and a busy test would have none. */
export const HANG = 'Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)'
export const DEAF = ''
/** It says on stderr that it is there, since a process that hangs cannot be asked. */
export const REACHED = 'the step is reached'
const then = (what: string): string => `{ fs.writeSync(2, "${REACHED}\\n"); ${what} }`
export const insteadOfSaying = (type: string, what: string): string =>
  inNewMaster(`
    const { send } = process
    process.send = (message, ...more) => {
      if (message.t === '${type}') ${then(what)}
      else send.call(process, message, ...more)
    }`)
export const whenTold = (type: string, what: string): string =>
  inNewMaster(`process.on('message', ({ t }) => { if (t === '${type}') ${then(what)} })`)
export const inNewMaster = (text: string): string =>
  `import fs from 'node:fs'\nif (process.env.USR2_UPGRADE) {\n${text}\n}\nawait import('./real.mjs')`
