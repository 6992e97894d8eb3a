/** Which Node a binary is: asked of the binary itself, once for each file. */
import { execFile } from 'node:child_process'
import { accessSync, constants, realpathSync, statSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { promisify } from 'node:util'

export interface NodeBinary {
  /** With its symlinks resolved. */
  readonly path: string
  /** Without the `v`: `22.23.3`. */
  readonly version: string
  /** Runs `.ts` files by itself. */
  readonly stripsTypes: boolean
}

export const OLDEST_MAJOR = 20
const DEADLINE_MS = 10_000
/** Prints what this file has to know of a runtime; Bun runs it as well, which is how it is found out. */
const QUESTION =
  'process.stdout.write(JSON.stringify({ node: process.versions.node, bun: process.versions.bun, ' +
  'deno: process.versions.deno, types: process.features.typescript ? true : false }))'

const known = new Map<string, NodeBinary>()

/**
 * @param given a path, or a command to be found in PATH
 * @param nodeArgs options that may switch type stripping on
 * @throws {Error} one sentence: there is none, it is no Node, it is too old
 */
export async function inspectNode(
  given: string,
  nodeArgs: readonly string[],
  env: NodeJS.ProcessEnv,
): Promise<NodeBinary> {
  const path = find(given, env)
  const stat = statSync(path)
  const flags = nodeArgs.filter((arg) => /^--(no-)?experimental-(strip|transform)-types$/.test(arg))
  // A reload must not pay for a Node that was asked before; one that was replaced in place is another file.
  const identity = [path, stat.ino, stat.size, stat.mtimeMs, ...flags].join(' ')
  const before = known.get(identity)
  if (before) return before
  const { node, bun, deno, types } = await ask(path, flags, env)
  const other = bun ? 'Bun' : deno ? 'Deno' : null
  if (other || !node) {
    throw new Error(
      `Could not use ${given} for the workers: it is ${other ?? 'not Node.js'}, and handing over sockets needs ` +
        `Node.js ${OLDEST_MAJOR} or newer; pass --node PATH of one.`,
    )
  }
  if (Number.parseInt(node, 10) < OLDEST_MAJOR) {
    throw new Error(
      `Could not use ${given} for the workers: it is Node.js ${node}, and usr2 needs ${OLDEST_MAJOR} or newer.`,
    )
  }
  const binary = { path, version: node, stripsTypes: types === true }
  known.set(identity, binary)
  return binary
}

function find(given: string, env: NodeJS.ProcessEnv): string {
  const places = given.includes('/')
    ? [given]
    : (env['PATH'] ?? '').split(delimiter).map((dir) => join(dir, given))
  for (const place of places) {
    try {
      accessSync(place, constants.X_OK)
      if (statSync(place).isFile()) return realpathSync(place)
    } catch {
      // Not this one.
    }
  }
  throw new Error(
    `There is no program ${given} to run the workers with; pass --node PATH of a Node.js binary.`,
  )
}

interface Answer {
  readonly node?: string
  readonly bun?: string
  readonly deno?: string
  readonly types?: boolean
}

async function ask(path: string, flags: readonly string[], env: NodeJS.ProcessEnv): Promise<Answer> {
  const run = (args: string[]): Promise<{ stdout: string }> =>
    // NODE_OPTIONS of the app may preload anything; the question is about the binary.
    promisify(execFile)(path, args, {
      timeout: DEADLINE_MS,
      killSignal: 'SIGKILL',
      env: { PATH: env['PATH'] },
    })
  try {
    return JSON.parse((await run([...flags, '-e', QUESTION])).stdout) as Answer
  } catch {
    const name = await run(['--version']).then(
      ({ stdout }) => stdout,
      () => '',
    )
    return /deno/i.test(name) ? { deno: name } : {}
  }
}
