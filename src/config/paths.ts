/** Where things are: the user's directory, the app's package.json, the env file, the control socket. */
import { closeSync, constants, existsSync, fstatSync, openSync, readFileSync, statSync } from 'node:fs'
import { basename, dirname, isAbsolute, join } from 'node:path'
import { parse as parseDotenv } from 'dotenv'
import { MAX_UNIX_PATH_BYTES } from '../address.ts'
import { parseJson } from './values.ts'

export type Result<T> = ({ readonly ok: true } & T) | { readonly ok: false; readonly complaint: string }

/**
 * The directory that the user is in, as they see it: `$PWD` while it is the same directory as `cwd`, else `cwd`.
 * `process.cwd()` has already lost the symlink of `cd current`, and with it the next release.
 *
 * Ask once, at the start: when `current` points to the next release, `$PWD` and the first `process.cwd()` are no
 * longer the same directory.
 */
export function startDirectory(env: NodeJS.ProcessEnv, cwd: string): string {
  const pwd = env['PWD']
  if (pwd === undefined || !isAbsolute(pwd)) return cwd
  try {
    const [there, here] = [statSync(pwd), statSync(cwd)]
    return there.dev === here.dev && there.ino === here.ino ? pwd : cwd
  } catch {
    return cwd
  }
}

/**
 * `given` seen from `base`, with no `..` folded: in `current/../x` the kernel goes up from where `current` leads
 * to, `path.join` would go up from the link.
 */
export function joinAsGiven(base: string, given: string): string {
  if (isAbsolute(given)) return given
  const rest = given.replace(/^(?:\.\/+)*(?:\.$)?/, '')
  return rest === '' ? base : `${base.replace(/\/+$/, '')}/${rest}`
}

/** The nearest package.json from `directory` upwards, or null. */
export function nearestPackageJson(directory: string): string | null {
  for (let at = directory; ; at = dirname(at)) {
    const path = join(at, 'package.json')
    if (existsSync(path)) return path
    if (dirname(at) === at) return null
  }
}

/** A JSON file whose top is an object, read now. */
export function readJsonObject(path: string): Result<{ readonly value: Readonly<Record<string, unknown>> }> {
  const file = readText(path)
  if (!file.ok) return file
  const json = parseJson(file.text)
  if (!json.ok) {
    const { line, column, expected, found } = json.fault
    const complaint = `${path}, line ${line}, column ${column}: this is not JSON; ${expected} should be there, not ${found}.`
    return { ok: false, complaint }
  }
  return isObject(json.value)
    ? { ok: true, value: json.value }
    : { ok: false, complaint: `${path} must hold a JSON object, in braces.` }
}

export function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** The variables of an env file (`KEY=value` lines, as the npm package dotenv reads them), read now. */
export function readEnvFile(path: string): Result<{ readonly env: Record<string, string> }> {
  const file = readText(path)
  if (!file.ok) return { ok: false, complaint: `The env file cannot be used: ${file.complaint}` }
  // A NUL byte (UTF-16, a binary) would make spawn(2) throw much later, with a message about something else.
  if (file.text.includes('\0')) return { ok: false, complaint: `The env file ${path} is not UTF-8 text.` }
  return { ok: true, env: parseDotenv(file.text) }
}

/** Far above any configuration. What somebody puts in the place of one must not fill the memory of a running master. */
const MAX_FILE_BYTES = 1024 * 1024

function readText(path: string): Result<{ readonly text: string }> {
  let fd: number | null = null
  try {
    // To open a pipe waits for who writes into it: a running master would wait with all that it looks after.
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK)
    const stat = fstatSync(fd)
    if (stat.isDirectory()) throw new Error('it is a directory')
    if (!stat.isFile() && stat.rdev !== statSync('/dev/null').rdev) {
      throw new Error('it is a pipe or a device, not a file, and could not be read again at a reload')
    }
    if (stat.size > MAX_FILE_BYTES) throw new Error(`it has over ${MAX_FILE_BYTES} bytes`)
    return { ok: true, text: readFileSync(fd, 'utf8') }
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    const known: Readonly<Record<string, string>> = {
      ENOENT: 'there is no such file',
      EACCES: 'permission denied',
      ENXIO: 'it is a socket, not a file',
    }
    return { ok: false, complaint: `${path} cannot be read: ${known[code ?? ''] ?? message}.` }
  } finally {
    if (fd !== null) closeSync(fd)
  }
}

/** What a name must be: it becomes a file's and a directory's name. Also in the JSON Schema. */
export const NAME = /^(?!\s*$|\.{1,2}$)[^\/\u0000-\u001f\u007f]{1,64}$/
export const NAME_RULE =
  'a name of at most 64 characters without slashes and control characters, and not "." or ".."'

/** The name of the app in `cwd` that was given none: its package's without the scope, else its directory's. */
export function defaultName(cwd: string): Result<{ readonly name: string }> {
  const path = nearestPackageJson(cwd)
  const file = path === null ? undefined : readJsonObject(path)
  if (file?.ok === false) return file
  const packageName = file?.value['name']
  const fromPackage = typeof packageName === 'string' && packageName !== ''
  const name = fromPackage ? packageName.replace(/^@[^/]*\//, '') : basename(cwd)
  if (NAME.test(name)) return { ok: true, name }
  const origin = fromPackage ? `the name ${JSON.stringify(packageName)} in ${path}` : `the directory ${cwd}`
  return {
    ok: false,
    complaint: `No name was given and ${origin} does not make one; pass --name with ${NAME_RULE}.`,
  }
}

/**
 * Where a master named `name` may have its control socket, first choice first. `--control` comes before all of
 * these; without a name the places that need one are left out.
 */
export function controlCandidates(name: string | undefined, env: NodeJS.ProcessEnv): string[] {
  const runtime = env['RUNTIME_DIRECTORY']?.split(':')[0] // systemd.exec(5): several are joined by colons
  return [
    env['USR2_CONTROL'] || undefined,
    runtime ? join(runtime, 'control.sock') : undefined,
    ...controlDirectories(env).map(({ directory, layout }) =>
      name === undefined
        ? undefined
        : join(
            directory,
            layout.replace('NAME', () => name),
          ),
    ),
  ].filter((path) => path !== undefined)
}

/** Directories that hold the sockets of several masters, and how one lies in them: where `usr2 ls` looks. */
export interface ControlDirectory {
  readonly directory: string
  readonly layout: 'NAME/control.sock' | 'NAME.sock'
}

export function controlDirectories(env: NodeJS.ProcessEnv): ControlDirectory[] {
  const user = env['XDG_RUNTIME_DIR'] ?? ''
  const own: ControlDirectory[] = isAbsolute(user)
    ? [{ directory: join(user, 'usr2'), layout: 'NAME.sock' }]
    : []
  return [{ directory: '/run/usr2', layout: 'NAME/control.sock' }, ...own]
}

/** Whether `path` can be bound or connected to at all: unix(7) has room for 107 bytes. */
export function fitsUnixPath(path: string): boolean {
  return Buffer.byteLength(path) <= MAX_UNIX_PATH_BYTES
}

/**
 * Where this master's control socket goes: what the user said, or the first candidate whose directory will do.
 * `canWrite(directory)` says whether it exists or can be made, and is writable.
 */
export function defaultControlPath(
  config: { readonly name: string; readonly control: string | null },
  env: NodeJS.ProcessEnv,
  canWrite: (directory: string) => boolean,
): Result<{ readonly path: string }> {
  const candidates = config.control === null ? controlCandidates(config.name, env) : [config.control]
  const path = candidates.find((candidate) => fitsUnixPath(candidate) && canWrite(dirname(candidate)))
  if (path !== undefined) return { ok: true, path }
  const tried = [...new Set(candidates.map((candidate) => dirname(candidate)))].join(', ')
  return {
    ok: false,
    complaint: `There is no place for the control socket: ${tried} cannot be written, or the path is over ${MAX_UNIX_PATH_BYTES} bytes; pass --control PATH in a directory that this user may write to.`,
  }
}

/**
 * Where nobody lives but the app, and volumes are often open to all. Known by being PID 1, by what systemd and Podman say
 * (`container=`), or by Kubernetes. Under an init of Docker's nothing tells.
 */
export const isContainer = (env: NodeJS.ProcessEnv): boolean =>
  process.pid === 1 || Boolean(env['container']) || Boolean(env['KUBERNETES_SERVICE_HOST'])
