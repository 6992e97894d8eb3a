/** usr2 itself under test: `node dist/cli.mjs run …`, and what people do with it. */
import {
  chmodSync,
  chownSync,
  mkdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
  copyFileSync,
  existsSync,
} from 'node:fs'
import { basename, dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Status } from '../../src/master/face.ts'
import type { Ledger } from '../../src/master/figures/ledger.ts'
import { hasToken } from './processes.ts'
import {
  expectNothingLeft,
  type Exit,
  type Finished,
  type LineOptions,
  run,
  start,
  type TestProcess,
} from './spawn.ts'
import type { TestLike } from './scope.ts'
import { shortTmp } from './tmp.ts'

export const CLI = fileURLToPath(new URL('../../dist/cli.mjs', import.meta.url))
export const fixture = (name: string): string =>
  fileURLToPath(new URL(`../fixtures/${name}`, import.meta.url))

/** A file's text by its path inside a directory. */
export type Files = Readonly<Record<string, string>>

export interface Usr2Options {
  /** What is run: a path as a user would type it (relative to `cwd`), or the name of a file in test/fixtures. */
  readonly entry?: string
  readonly fixture?: string
  /** Written to a directory of their own, which is the default of `cwd`. */
  readonly files?: Files
  readonly args?: readonly string[]
  /** Of `usr2 run`, before the entry. */
  readonly flags?: readonly string[]
  readonly env?: Readonly<Record<string, string | undefined>>
  readonly cwd?: string
  /** Other users may enter the test's directories. */
  readonly isShared?: boolean
  /** As whom the master runs; its directories are his. Default: as the test. */
  readonly ids?: { readonly uid: number; readonly gid: number }
  /** What runs the master, with which flags. Default: the Node that runs the test. */
  readonly node?: string
  readonly nodeArgs?: readonly string[]
  /** Another usr2 than the one that was built, by its cli.mjs. */
  readonly cli?: string
  /** A process group of its own. */
  readonly detached?: boolean
  /** Descriptors from 3 on with their names, as a service manager passes them (sd_listen_fds(3)). */
  readonly passed?: readonly { readonly name: string; readonly fd: number | 'pipe' }[]
}

/** LISTEN_PID is the process that usr2 becomes. */
const PASS = 'LISTEN_PID=$$; export LISTEN_PID; exec "$@"'

/** A line of usr2's log. */
export interface LogEvent {
  readonly event: string
  readonly level: number
  readonly msg: string
  readonly generation?: number
  readonly reasons?: readonly string[]
  readonly [key: string]: unknown
}

export interface ReloadOptions {
  readonly flags?: readonly string[]
  readonly timeoutMs?: number
}

export class Usr2 {
  readonly process: TestProcess
  readonly control: string
  readonly cwd: string
  readonly #t: TestLike
  readonly #options: Usr2Options

  /** @internal Use {@link startUsr2}. */
  constructor(t: TestLike, options: Usr2Options) {
    if (!existsSync(CLI)) throw new Error(`${CLI} is not there: run \`npm run build\` first`)
    const tmp = shortTmp(t)
    const cwd = options.cwd ?? join(tmp, 'app')
    mkdirSync(cwd, { recursive: true })
    if (options.isShared) chmodSync(tmp, 0o755)
    writeFiles(cwd, options.files ?? {})
    if (options.ids) for (const path of [tmp, cwd]) chownSync(path, options.ids.uid, options.ids.gid)
    const entry = options.fixture === undefined ? options.entry : fixture(options.fixture)
    this.#t = t
    this.#options = options
    this.cwd = cwd
    this.control = join(tmp, 'c.sock')
    const { passed, node = process.execPath } = options
    this.process = start(t, passed ? 'sh' : node, {
      name: 'usr2 run',
      args: [
        ...(passed ? ['-c', PASS, 'sh', node] : []),
        ...(options.nodeArgs ?? []),
        ...[options.cli ?? CLI, 'run', '--control', this.control, '--name', 't', ...(options.flags ?? [])],
        ...(entry === undefined ? [] : [entry]),
        ...(options.args ?? []),
      ],
      env: {
        ...(passed && {
          LISTEN_FDS: String(passed.length),
          LISTEN_FDNAMES: passed.map(({ name }) => name).join(':'),
        }),
        ...options.env,
      },
      moreStdio: passed?.map(({ fd }) => fd),
      cwd,
      ids: options.ids,
      detached: options.detached,
    })
  }

  get pid(): number {
    return this.process.pid
  }

  /** The first generation serves. */
  ready(options?: LineOptions): Promise<LogEvent> {
    return this.event('ready', options)
  }

  /**
   * The first log line with that `event`; `from: usr2.process.lines.length` asks for one that is still to come.
   * @throws when time is over, or usr2 has ended without it
   */
  async event(name: string, options?: LineOptions): Promise<LogEvent> {
    const line = await this.process.line(({ text }) => eventOf(text)?.event === name, {
      what: `the event ${name}`,
      ...options,
    })
    return JSON.parse(line.text) as LogEvent
  }

  /** All log lines with an `event` so far. */
  events(): LogEvent[] {
    return this.process.stderr.flatMap((text) => eventOf(text) ?? [])
  }

  /** Of the first TCP listener. */
  async port(): Promise<number> {
    const { listeners } = await this.status()
    const key = listeners.find((listener) => listener.key.startsWith('tcp:'))?.key
    const port = /:(\d+)(\/ipv6only)?$/.exec(key ?? '')?.[1]
    if (port === undefined)
      throw new Error(`no TCP listener among ${JSON.stringify(listeners)}\n${this.logs()}`)
    return Number(port)
  }

  /**
   * What `usr2 status --json` says.
   * @throws if it says nothing, or if a worker does not carry the test's token: then the check for leftovers is blind
   */
  async status(): Promise<Status> {
    const { code, stdout, stderr } = await this.cli('status', ['--json'])
    if (stdout === '') throw new Error(`usr2 status ended with ${code} and said: ${stderr}\n${this.logs()}`)
    const status = JSON.parse(stdout) as Status
    for (const { pid } of status.generations.flatMap((generation) => generation.workers)) {
      if (pid !== null && isAlive(pid) && !hasToken(pid, this.process.token) && isAlive(pid)) {
        throw new Error(`worker ${pid} does not have the token of its test in its environment`)
      }
    }
    return status
  }

  /** `usr2 reload`: waits for the verdict. */
  reload({ flags = [], timeoutMs = 60_000 }: ReloadOptions = {}): Promise<Finished> {
    return this.cli('reload', flags, timeoutMs)
  }

  /** Any command of usr2 that speaks with this master. */
  cli(command: string, flags: readonly string[] = [], timeoutMs = 20_000): Promise<Finished> {
    const args = [CLI, command, '--control', this.control, ...flags]
    return run(this.#t, this.#options.node ?? process.execPath, { name: `usr2 ${command}`, args, timeoutMs })
  }

  signal(signal: NodeJS.Signals): void {
    this.process.kill(signal)
  }

  /** SIGTERM; fails the test unless usr2 ends with status 0 and leaves no process. */
  async stop(timeoutMs = 60_000): Promise<Exit> {
    this.signal('SIGTERM')
    const exit = await this.process.ended(timeoutMs)
    this.#t.same({ code: exit.code, signal: exit.signal }, { code: 0, signal: null }, 'usr2 stopped as asked')
    await expectNothingLeft(this.#t, this.process)
    this.#t.same(this.events().flatMap(imbalancesOf), [], 'the accounts of every generation agree')
    return exit
  }

  logs(): string {
    return this.process.log()
  }
}

/** Starts `usr2 run`; does not wait for it to be ready. Its control socket lies in a directory of its own. */
export const startUsr2 = (t: TestLike, options: Usr2Options): Usr2 => new Usr2(t, options)

/** Runs a command of usr2 that needs no running master: `usr2 run --workers 0 x.js`, `usr2 --help`. */
export function usr2(
  t: TestLike,
  args: readonly string[],
  options: { readonly env?: Usr2Options['env']; readonly cwd?: string; readonly timeoutMs?: number } = {},
): Promise<Finished> {
  return run(t, process.execPath, { name: `usr2 ${args[0] ?? ''}`, ...options, args: [CLI, ...args] })
}

/**
 * A release as people deploy them: `root/releases/VERSION` with the fixture (under its own name), a file VERSION and
 * `files`; then the link `root/current` is turned over to it in one step (rename(2): there is no moment without one).
 * Gives the path of the link.
 */
export function deploy(
  root: string,
  version: string,
  { fixture: name, files = {} }: { readonly fixture?: string; readonly files?: Files } = {},
): string {
  const release = join(root, 'releases', version)
  mkdirSync(release, { recursive: true })
  if (name !== undefined) copyFileSync(fixture(name), join(release, basename(name)))
  writeFiles(release, { VERSION: version, ...files })
  return pointTo(root, version)
}

/** Turns `root/current` over to a release that is there. Gives the path of the link. */
export function pointTo(root: string, version: string): string {
  const release = join(root, 'releases', version)
  const current = join(root, 'current')
  const next = `${current}.next`
  rmSync(next, { force: true })
  symlinkSync(relative(root, release), next)
  renameSync(next, current)
  return current
}

/** Every connection and request is in exactly one bucket. */
export function imbalancesOf({ event, generation, ...rest }: LogEvent): string[] {
  if (event !== 'drained') return []
  const { connections, requests } = rest['ledger'] as Ledger
  const sum = (all: object): number => Object.values(all).reduce((a: number, b: number) => a + b, 0)
  const { accepted, ...ended } = connections
  const { begun, ...became } = requests
  const of = `generation ${generation}: `
  return [
    ...(accepted === sum(ended) ? [] : [`${of}${accepted} connections are ${JSON.stringify(ended)}`]),
    ...(begun === sum(became) ? [] : [`${of}${begun} requests are ${JSON.stringify(became)}`]),
    ...Object.entries({ ...ended, ...became }).flatMap(([name, count]) =>
      count < 0 ? [`${of}${count} ${name}`] : [],
    ),
  ]
}

function writeFiles(directory: string, files: Files): void {
  for (const [path, text] of Object.entries(files)) {
    const file = join(directory, path)
    mkdirSync(dirname(file), { recursive: true })
    writeFileSync(file, text)
  }
}

function eventOf(text: string): LogEvent | null {
  if (!text.startsWith('{')) return null
  try {
    const value = JSON.parse(text) as Partial<LogEvent> | null
    return typeof value?.event === 'string' ? (value as LogEvent) : null
  } catch {
    return null
  }
}

/** A zombie has no `exe` any more (proc(5)). */
const isAlive = (pid: number): boolean => existsSync(`/proc/${pid}/exe`)
