/** What is reloaded under load: usr2, and its peers in the same harness with the same app. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  APP,
  type Bench,
  bootEnv,
  Child,
  CLUSTER_PEER,
  firstAnswer,
  freePort,
  type LogLine,
  reloadUsr2,
  serveUsr2,
  until,
  which,
} from './bench.ts'
import { childrenOf } from './proc.ts'

export interface Subject {
  readonly name: string
  readonly port: number
  /** Whether there is an app behind it; nginx alone only answers `GET /`. */
  readonly hasApp: boolean
  /** Of usr2: its log so far. */
  readonly log?: readonly LogLine[]
  /** The processes that serve now. */
  workers(): number[]
  /** Resolves when the reload is done as far as its command tells: old processes may still be leaving. */
  reload(): Promise<void>
  stop(): Promise<void>
}

export interface SubjectOptions {
  readonly node: string
  readonly cli: string
  readonly workers: number
  readonly bootMs: number
  readonly bootCpuMs?: number
  /** Of usr2 only: another app than app.cjs, with its environment and the flags it needs. */
  readonly app?: string
  readonly env?: Readonly<Record<string, string>>
  readonly flags?: readonly string[]
}

/** In a mount namespace without cgroups of version 1, where no worker can have one of its own. */
const WITHOUT_GROUPS = [
  'unshare',
  '--mount',
  'sh',
  '-c',
  'umount --all --lazy --types cgroup; exec "$@"',
  'sh',
]
/** What takes away every capability, and so the right to raise a priority: what a service with `User=` has. */
const UNPRIVILEGED = [...WITHOUT_GROUPS, 'setpriv', '--bounding-set', '-all', '--inh-caps', '-all']

export const PEERS = ['cluster', 'pm2', 'pm2-docs', 'nginx'] as const
export const SUBJECTS = ['usr2', 'usr2-niceness', 'usr2-unprivileged', ...PEERS] as const
export type SubjectName = (typeof SUBJECTS)[number]

export function startSubject(name: SubjectName, bench: Bench, options: SubjectOptions): Promise<Subject> {
  switch (name) {
    case 'usr2':
      return usr2(name, bench, options)
    case 'usr2-niceness':
      return usr2(name, bench, options, WITHOUT_GROUPS)
    case 'usr2-unprivileged':
      return usr2(name, bench, options, UNPRIVILEGED)
    case 'cluster':
      return cluster(bench, options)
    case 'pm2':
      return pm2(name, bench, options, {})
    case 'pm2-docs':
      return pm2(name, bench, options, { PM2_DOCS_SHUTDOWN: '1' })
    case 'nginx':
      return nginx(bench, options)
  }
}

async function usr2(
  name: SubjectName,
  bench: Bench,
  options: SubjectOptions,
  wrapper: readonly string[] = [],
): Promise<Subject> {
  const served = await serveUsr2(bench, { ...options, wrapper })
  return {
    name,
    port: served.port,
    hasApp: true,
    log: served.child.lines,
    workers: () => childrenOf(served.child.pid),
    reload: async () => void (await reloadUsr2(served)),
    stop: () => served.child.stop(),
  }
}

async function cluster(
  bench: Bench,
  { node, workers, bootMs, bootCpuMs = 0 }: SubjectOptions,
): Promise<Subject> {
  const port = await freePort()
  const env = { PORT: `${port}`, ...bootEnv(bootMs, bootCpuMs) }
  const child = bench.start('cluster', node, [CLUSTER_PEER, APP, `${workers}`], { env })
  await child.event(['ready'])
  return {
    name: 'cluster',
    port,
    hasApp: true,
    workers: () => childrenOf(child.pid),
    async reload() {
      const from = child.lines.length
      child.process.kill('SIGUSR2')
      await child.event(['promoted'], from)
    },
    stop: () => child.stop(),
  }
}

/** From the registry, into a directory of this run: it is no dependency of the project. */
async function installPm2(bench: Bench): Promise<string> {
  const folder = join(bench.directory, 'pm2')
  const bin = join(folder, 'node_modules', 'pm2', 'bin', 'pm2')
  if (existsSync(bin)) return bin
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, 'package.json'), '{"private":true}')
  const args = ['install', '--no-audit', '--no-fund', '--ignore-scripts', '--fetch-retries=1', 'pm2@7']
  await bench.run('npm', args, { cwd: folder }).catch((error: Error) => {
    throw new Error(`PM2 could not be installed from the npm registry: ${error.message.split('\n')[0]}`)
  })
  return bin
}

async function pm2(
  name: SubjectName,
  bench: Bench,
  { node, workers, bootMs, bootCpuMs = 0 }: SubjectOptions,
  appEnv: Readonly<Record<string, string>>,
): Promise<Subject> {
  const bin = await installPm2(bench)
  const port = await freePort()
  const home = join(bench.directory, `${name}-${port}`)
  mkdirSync(home)
  const app = {
    name: 'app',
    script: APP,
    exec_mode: 'cluster',
    instances: workers,
    env: { PORT: `${port}`, ...bootEnv(bootMs, bootCpuMs), ...appEnv },
  }
  const ecosystem = join(home, 'ecosystem.config.json')
  writeFileSync(ecosystem, JSON.stringify({ apps: [app] }))
  const run = (...args: string[]): Promise<string> =>
    bench.run(node, [bin, ...args, '--no-color'], { env: { PM2_HOME: home, HOME: home } })
  await run('start', ecosystem)
  const daemon = Number(readFileSync(join(home, 'pm2.pid'), 'utf8'))
  await answers(port)
  const serving = (): number[] => childrenOf(daemon)
  await until(() => serving().length === workers, 'the workers of PM2')
  return {
    name,
    port,
    hasApp: true,
    workers: serving,
    reload: async () => void (await run('reload', 'app')),
    stop: async () => void (await run('kill')),
  }
}

/** nginx itself, no proxy: what its own workers do with their connections at a reload. */
async function nginx(bench: Bench, { workers }: SubjectOptions): Promise<Subject> {
  const program = which('nginx') ?? (existsSync('/usr/sbin/nginx') ? '/usr/sbin/nginx' : null)
  if (program === null) throw new Error('there is no nginx on this machine')
  const port = await freePort()
  const home = join(bench.directory, 'nginx')
  mkdirSync(join(home, 'temp'), { recursive: true })
  const temps = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map(
    (kind) => `${kind}_temp_path ${home}/temp;`,
  )
  const config = join(home, 'nginx.conf')
  writeFileSync(
    config,
    `daemon off; worker_processes ${workers}; pid ${home}/pid; error_log stderr; events {}
    http {
      access_log off; keepalive_requests 100000000; ${temps.join(' ')}
      server { listen 127.0.0.1:${port}; location / { default_type application/json; return 200 '{"pid":$pid}'; } }
    }`,
  )
  const child = bench.start('nginx', program, ['-c', config, '-p', home, '-e', 'stderr'])
  await answers(port, child)
  return {
    name: 'nginx',
    port,
    hasApp: false,
    workers: () => childrenOf(child.pid),
    async reload() {
      const before = childrenOf(child.pid)
      child.process.kill('SIGHUP')
      const fresh = (): number => childrenOf(child.pid).filter((pid) => !before.includes(pid)).length
      await until(() => fresh() >= workers, "nginx's new workers")
    },
    stop: () => child.stop(),
  }
}

const answers = (port: number, child?: Child): Promise<number> =>
  firstAnswer(port, () => true, child ?? { log: () => '' })
