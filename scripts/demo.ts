/**
 * `npm run demo`: a small Express app under usr2, traffic on it, and four deploys by a real SIGUSR2, one of them
 * broken on purpose. Ends with `0 failed` and status 0, or with what failed and status 1.
 */
import { spawn } from 'node:child_process'
import { copyFileSync, mkdirSync, mkdtempSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { startLoad } from '../src/drill/start-load.ts'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const DEADLINE_MS = 30_000

interface LogLine {
  readonly event?: string
  readonly msg: string
  readonly tookMs?: number
}

async function main(): Promise<number> {
  // Inside node_modules, so that the releases find express; the control socket lies where paths are short.
  const home = join(root, 'node_modules', '.usr2-demo')
  const control = join(mkdtempSync(join(tmpdir(), 'usr2-demo-')), 'control.sock')
  rmSync(home, { recursive: true, force: true })
  const port = await freePort(18_080)

  deploy(home, '1.0.0')
  const master = spawn(
    process.execPath,
    [join(root, 'dist/cli.mjs'), 'run', '--control', control, '--name', 'shop', '--workers', '2', 'app.cjs'],
    {
      // As a shell does it: `cd current && usr2 run app.cjs`.
      cwd: join(home, 'current'),
      env: {
        PATH: process.env['PATH'],
        HOME: process.env['HOME'],
        PWD: join(home, 'current'),
        PORT: String(port),
      },
      stdio: ['ignore', 'inherit', 'pipe'],
    },
  )
  const ended = new Promise<void>((resolve) => master.once('exit', () => resolve()))
  const waiting: { events: readonly string[]; found: (line: LogLine) => void }[] = []
  createInterface({ input: master.stderr }).on('line', (text) => {
    const line = parse(text)
    console.log(`  usr2 | ${line.msg}`)
    const at = waiting.findIndex(({ events }) => events.includes(line.event ?? ''))
    if (at >= 0) waiting.splice(at, 1)[0]?.found(line)
  })
  const event = (...events: string[]): Promise<LogLine> =>
    new Promise((resolve, reject) => {
      const late = (): void =>
        reject(new Error(`usr2 did not say ${events.join(' or ')} in ${DEADLINE_MS} ms`))
      const timer = setTimeout(late, DEADLINE_MS)
      const found = (line: LogLine): void => {
        clearTimeout(timer)
        resolve(line)
      }
      waiting.push({ events, found })
    })

  try {
    await event('ready')
    console.log(
      '\nTraffic: 24 keep-alive clients, 8 in a tight loop, 4 with a new connection each time, POSTs, slow ones.\n',
    )
    const load = await startLoad({
      target: { port },
      versionOf: 'version',
      traffic: [
        { mode: 'keepalive', connections: 24, thinkMs: [10, 30] },
        { mode: 'hot', connections: 8 },
        { mode: 'new', connections: 4, thinkMs: [2, 6] },
        { mode: 'post', connections: 2, path: '/orders', thinkMs: [10, 30], echo: true },
        { mode: 'slow', connections: 4, path: '/report' },
      ],
    })
    const reloads: { version: string; outcome: string; tookMs: number }[] = []
    const reload = async (version: string, broken = false): Promise<void> => {
      console.log(
        `\nDeploying ${version}${broken ? ', which is broken on purpose' : ''}: kill -USR2 ${master.pid}`,
      )
      deploy(home, version, broken)
      load.mark(version)
      const verdict = event('promoted', 'rolled-back', 'refused')
      master.kill('SIGUSR2')
      const { event: outcome = '', tookMs = 0 } = await verdict
      reloads.push({ version, outcome, tookMs })
      // Let the new version be seen before the next one is deployed: a second of traffic.
      await new Promise((resolve) => setTimeout(resolve, 1_000))
    }
    await reload('1.1.0')
    await reload('1.2.0', true)
    await reload('1.3.0')
    await reload('2.0.0')
    const result = await load.stop()
    const stopped = event('stopped')
    console.log(`\nStopping: kill -TERM ${master.pid}`)
    master.kill('SIGTERM')
    await stopped
    await ended

    const row = (...cells: (string | number)[]): string =>
      cells.map((cell) => String(cell).padStart(12)).join('')
    console.log(`\n${row('version', 'deploy', 'took ms', 'responses')}`)
    console.log(row('1.0.0', 'first', '-', result.versions['1.0.0']?.responses ?? 0))
    for (const { version, outcome, tookMs } of reloads) {
      console.log(row(version, outcome, Math.round(tookMs), result.versions[version]?.responses ?? 0))
    }
    const outcomes = reloads.map(({ outcome }) => outcome).join(' ')
    console.log(`\n${result.requests} requests, ${result.ok} answered whole, by every client without a retry`)
    for (const [failure, count] of Object.entries(result.failures))
      if (count > 0) console.log(`  ${failure}: ${count}`)
    for (const detail of result.details) console.log(`  ${JSON.stringify(detail)}`)
    const asMeant = outcomes === 'promoted rolled-back promoted promoted'
    if (!asMeant) console.log(`The deploys did not go as they should: ${outcomes}`)
    console.log(`${result.failed} failed`)
    return result.failed === 0 && asMeant ? 0 : 1
  } finally {
    if (master.exitCode === null && master.signalCode === null) master.kill('SIGTERM')
    await ended
    rmSync(home, { recursive: true, force: true })
    rmSync(dirname(control), { recursive: true, force: true })
  }
}

/** A release in a directory of its own, and the link `current` moved to it in one step. */
function deploy(home: string, version: string, broken = false): void {
  const release = join(home, 'releases', version)
  mkdirSync(release, { recursive: true })
  writeFileSync(join(release, 'package.json'), JSON.stringify({ name: 'shop', version }))
  if (broken) writeFileSync(join(release, 'app.cjs'), "require('./payment-gateway')\n")
  else copyFileSync(join(root, 'scripts/demo/app.cjs'), join(release, 'app.cjs'))
  symlinkSync(release, join(home, 'next'))
  renameSync(join(home, 'next'), join(home, 'current'))
}

function parse(text: string): LogLine {
  try {
    return JSON.parse(text) as LogLine
  } catch {
    // What the app itself writes, or Node about its crash.
    return { msg: text }
  }
}

/** The first port from `first` on that nobody listens on. */
async function freePort(first: number): Promise<number> {
  for (let port = first; port < first + 100; port++) {
    const server = net.createServer()
    const isFree = await new Promise<boolean>((resolve) => {
      server.once('error', () => resolve(false))
      server.listen(port, '127.0.0.1', () => resolve(true))
    })
    if (isFree) {
      await new Promise((resolve) => server.close(resolve))
      return port
    }
  }
  throw new Error(`no port from ${first} to ${first + 99} is free`)
}

process.exitCode = await main()
