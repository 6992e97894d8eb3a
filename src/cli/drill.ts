/**
 * `usr2 drill`: its command line, and what it prints. Bundled apart (dist/drill.mjs): a master never loads it.
 *
 * Its command line is that of `usr2 run` with options of its own before the entry; which is whose is told by name.
 */
import { accessSync, constants, readFileSync, statSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import {
  BOUND_TIME,
  commandUsage,
  parseArguments,
  splitOptions,
  type Arguments,
  type Command,
} from './args.ts'
import { renderDrill } from './drill-text.ts'
import { asJson, printable } from './text.ts'
import {
  controlCandidates,
  joinAsGiven,
  loadConfig,
  parseDuration,
  parseSize,
  startDirectory,
} from '../config.ts'
import { drill } from '../drill/drill.ts'
import { DrillComplaint, type DrillOptions, type NamedTarget } from '../drill/options.ts'
import { picture } from '../drill/picture.ts'
import { ControlError, NoMasterError } from '../master/control/control-client.ts'

const OK = 0
const FAILED = 1
const BAD_USAGE = 2
const NO_MASTER = 3

const PATH_RULE = {
  says: 'the path of a request, such as /health',
  keeps: (text: string) => /^\/[!-~]*$/.test(text),
}
const count = (most: number, least = 1) => ({
  says: `a whole number from ${least} to ${most}`,
  keeps: (text: string) => /^\d{1,9}$/.test(text) && Number(text) >= least && Number(text) <= most,
})

const MAX_BODY_BYTES = 64 * 1024 * 1024

export const DRILL: Command = {
  name: 'drill',
  summary: 'reload an app under load and count what is lost: usr2 drill server.js',
  options: [
    { flag: '--reloads', value: 'N', means: 'how often to reload (5)', rule: count(10_000) },
    {
      flag: '--rate',
      value: 'N',
      means: 'requests a second, all kinds together (200)',
      rule: count(100_000),
    },
    {
      flag: '--connections',
      value: 'N',
      means: 'requests of one kind outstanding at once, at most (32)',
      rule: count(10_000),
    },
    { flag: '--path', value: 'PATH', many: true, means: 'what to GET (/); repeatable', rule: PATH_RULE },
    {
      flag: '--stream',
      value: 'PATH',
      many: true,
      means: 'a long download to GET, 4 at a time; repeatable',
      rule: PATH_RULE,
    },
    {
      flag: '--post',
      value: 'PATH',
      means: 'where to POST, at once and as slow uploads; nothing is posted without',
      rule: PATH_RULE,
    },
    { flag: '--body', value: 'FILE', means: 'what to POST (64 KiB of text)' },
    {
      flag: '--body-size',
      value: 'SIZE',
      means: 'how much of it to POST instead, such as 512K',
      rule: {
        says: 'a size from 1 to 64M, such as 512, 64K or 1M',
        keeps: (text) => (parseSize(text) ?? 0) > 0 && (parseSize(text) ?? 0) <= MAX_BODY_BYTES,
      },
    },
    { flag: '--upload-time', value: 'TIME', means: 'how long a slow upload takes (2s)', rule: BOUND_TIME },
    {
      flag: '--websocket',
      value: 'PATH',
      means: 'where the app takes WebSockets; none are opened without',
      rule: PATH_RULE,
    },
    { flag: '--websockets', value: 'N', means: 'how many to keep open (20)', rule: count(10_000) },
    { flag: '--http2', means: 'HTTP/2 also where it was not found' },
    {
      flag: '--header',
      value: 'LINE',
      many: true,
      means: 'a header for every request, such as "Authorization: Bearer x"; repeatable',
      rule: {
        says: 'a header line, such as "Accept: text/html"',
        keeps: (text) => /^[!#$%&'*+.^_`|~0-9A-Za-z-]+:[ \t]*[ -~]*$/.test(text),
      },
    },
    {
      flag: '--target',
      value: 'WHERE',
      many: true,
      means: 'where to send requests (every listener of the app); repeatable',
      rule: {
        says: 'http://HOST:PORT, https://HOST:PORT, HOST:PORT or the path of a unix socket',
        keeps: (text) => targetFrom(text) !== null,
      },
    },
    {
      flag: '--steady',
      value: 'TIME',
      means: 'undisturbed load before the first reload, and after the last (3s)',
      rule: BOUND_TIME,
    },
    { flag: '--pause', value: 'TIME', means: 'undisturbed load between two reloads (1s)', rule: BOUND_TIME },
    {
      flag: '--timeout',
      value: 'TIME',
      means: 'a request without a byte for that long has failed (10s)',
      rule: BOUND_TIME,
    },
    { flag: '--report', value: 'FILE', means: 'a picture of the drill, as SVG' },
    {
      flag: '--control',
      value: 'PATH',
      means: 'drill the running master with this control socket, instead of an entry',
    },
    { flag: '--name', value: 'NAME', means: 'drill the running master of this name, instead of an entry' },
    { flag: '--json', means: 'JSON on stdout instead of text' },
  ],
  notes: [
    'Every option of "usr2 run" goes before the entry, too. The app runs under a master of its own, beside whatever',
    'runs already, so its port must be free. GETs only, unless --post or --websocket is given.',
    'Exit status: 0 nothing was lost; 1 something was, or a reload was not promoted; 2 bad usage, or the app cannot be',
    'drilled so; 3 no master answers (with --control or --name).',
  ],
}

export function drillUsage(): string {
  return commandUsage(DRILL).replace(
    'usr2 drill [options]',
    'usr2 drill [options] <entry> [args…]\n       usr2 drill [options] --control PATH | --name NAME',
  )
}

/** @returns the exit status */
export async function runDrill(argv: readonly string[]): Promise<number> {
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {})
  const cwd = startDirectory(process.env, process.cwd())
  const { ours, theirs, complaints } = splitOptions(DRILL, argv)
  const args = parseArguments(DRILL, ours)
  if (args.help) {
    process.stdout.write(drillUsage())
    return OK
  }
  const read = optionsOf(args, theirs, cwd)
  const all = [...complaints, ...args.complaints, ...read.complaints]
  if (all.length > 0 || read.options === null) return refuse(all)
  const json = args.has('--json')
  const stop = new AbortController()
  const onSignal = (name: NodeJS.Signals) => stop.abort(new Interrupted(name))
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(name, onSignal)
  try {
    // What is going on is for people, the result for stdout.
    const result = await drill(read.options, (line) => complain(printable(line)), stop.signal)
    process.stdout.write(json ? `${asJson(result)}\n` : printable(renderDrill(result)))
    const report = args.one('--report')
    if (report !== undefined) writeFileSync(joinAsGiven(cwd, report), picture(result))
    return result.ok ? OK : FAILED
  } catch (error) {
    if (error instanceof DrillComplaint) return refuse(error.complaints)
    const sentence = error instanceof Error ? error.message : String(error)
    if (json) process.stdout.write(`${asJson({ error: sentence })}\n`)
    else complain(`usr2: ${printable(sentence)}`)
    if (error instanceof Interrupted) return error.status
    if (error instanceof ControlError) return error instanceof NoMasterError ? NO_MASTER : FAILED
    return FAILED
  }
}

class Interrupted extends Error {
  /** 128 + the signal's number, as shells have it. */
  readonly status: number
  constructor(signal: NodeJS.Signals) {
    super(`The drill was ended by ${signal}; what it had started is stopped.`)
    this.status = 128 + { SIGHUP: 1, SIGINT: 2, SIGTERM: 15 }[signal as 'SIGINT']
  }
}

// ---- The command line ---------------------------------------------------------------------------------------------

interface Read {
  readonly options: DrillOptions | null
  readonly complaints: readonly string[]
}

function optionsOf(args: Arguments, theirs: readonly string[], cwd: string): Read {
  const complaints: string[] = []
  const ms = (flag: string, otherwise: number) => parseDuration(args.one(flag) ?? '') ?? otherwise
  const number = (flag: string, otherwise: number) => Number(args.one(flag) ?? otherwise)
  const { app, complaints: ofApp } = appOf(args, theirs, cwd)
  complaints.push(...ofApp)
  const { body, complaint } = bodyOf(args, cwd)
  if (complaint !== null) complaints.push(complaint)
  const report = args.one('--report')
  // Before the drill, not after it: minutes of load would be for nothing.
  const unwritable = report === undefined ? null : unwritableReport(joinAsGiven(cwd, report))
  if (unwritable !== null) complaints.push(`--report is ${report}, which cannot be written: ${unwritable}.`)
  if (args.one('--post') === undefined)
    for (const flag of ['--body', '--body-size', '--upload-time'])
      if (args.has(flag)) complaints.push(`${flag} is of no use without --post PATH: nothing is posted.`)
  if (args.has('--websockets') && !args.has('--websocket'))
    complaints.push('--websockets is of no use without --websocket PATH: none are opened.')
  if (app === null || complaints.length > 0) return { options: null, complaints }
  const paths = args.many('--path')
  const mix = {
    paths: paths.length === 0 ? ['/'] : paths,
    streams: args.many('--stream'),
    post: args.one('--post') ?? null,
    body,
    uploadMs: ms('--upload-time', 2000),
    webSocket: args.one('--websocket') ?? null,
    webSockets: number('--websockets', 20),
    http2: args.has('--http2'),
    headers: args.many('--header'),
    perSecond: number('--rate', 200),
    connections: number('--connections', 32),
  }
  const options: DrillOptions = {
    app,
    cwd,
    env: process.env,
    targets: args.many('--target').flatMap((text) => targetFrom(text) ?? []),
    mix,
    reloads: number('--reloads', 5),
    steadyMs: ms('--steady', 3000),
    pauseMs: ms('--pause', 1000),
    timeoutMs: ms('--timeout', 10_000),
  }
  return { options, complaints }
}

function appOf(
  args: Arguments,
  theirs: readonly string[],
  cwd: string,
): { readonly app: DrillOptions['app'] | null; readonly complaints: readonly string[] } {
  const control = args.one('--control')
  const name = args.one('--name')
  if (control !== undefined || name !== undefined) {
    const which = control === undefined ? '--name' : '--control'
    if (theirs.length > 0) {
      return {
        app: null,
        complaints: [
          `${which} means a running master, and ${JSON.stringify(theirs[0])} is for one to be started; leave out one of them.`,
        ],
      }
    }
    const places = control === undefined ? controlCandidates(name, process.env) : [joinAsGiven(cwd, control)]
    return { app: { control: places, name }, complaints: [] }
  }
  const loaded = loadConfig({ argv: theirs, env: process.env, cwd: process.cwd() })
  if (!loaded.ok)
    return {
      app: null,
      complaints: loaded.complaints.map((line) => line.replaceAll('"usr2 run ', '"usr2 drill ')),
    }
  const { startTimeoutMs, stopDelayMs, drainTimeoutMs, shutdownTimeoutMs, killTimeoutMs } = loaded.config
  const stopBudgetMs = stopDelayMs + drainTimeoutMs + shutdownTimeoutMs + killTimeoutMs
  return { app: { argv: theirs, startTimeoutMs, stopBudgetMs }, complaints: [] }
}

function bodyOf(
  args: Arguments,
  cwd: string,
): { readonly body: Buffer | null; readonly complaint: string | null } {
  const file = args.one('--body')
  const size = parseSize(args.one('--body-size') ?? '')
  if (file !== undefined && size !== undefined)
    return { body: null, complaint: '--body and --body-size exclude each other: a file has its size.' }
  if (size !== undefined) return { body: Buffer.alloc(size, 'usr2 drill '), complaint: null }
  if (file === undefined) return { body: null, complaint: null }
  try {
    return { body: readFileSync(joinAsGiven(cwd, file)), complaint: null }
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    return { body: null, complaint: `--body is ${file}, which cannot be read: ${why}.` }
  }
}

function unwritableReport(path: string): string | null {
  try {
    if (statSync(path, { throwIfNoEntry: false })?.isDirectory()) return 'it is a directory'
    accessSync(dirname(path), constants.W_OK | constants.X_OK)
    return null
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
}

function targetFrom(text: string): NamedTarget | null {
  if (text.startsWith('/')) return { label: text, target: { path: text } }
  const match = /^(?:(https?):\/\/)?(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+)):(\d{1,5})\/?$/.exec(text)
  if (match === null || Number(match[4]) > 65_535 || Number(match[4]) === 0) return null
  const [, scheme, v6, host = v6 ?? '', port] = match
  return { label: text, target: { host, port: Number(port), ...(scheme === 'https' ? { tls: true } : {}) } }
}

function complain(line: string): void {
  process.stderr.write(`${line}\n`)
}

function refuse(complaints: readonly string[]): number {
  for (const complaint of complaints) complain(`usr2: ${printable(complaint)}`)
  return BAD_USAGE
}
