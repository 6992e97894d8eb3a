import { spawn, type ChildProcess, type StdioOptions } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'

export const LOOPBACK = { kind: 'tcp', host: '127.0.0.1', port: 0 } as const
export const SOON = { timeoutMs: 10_000 } as const

/** Children must not inherit what tap puts into process.env. */
export const ENV = { PATH: process.env.PATH, HOME: process.env.HOME, TMPDIR: os.tmpdir() }
const ROOT = fileURLToPath(new URL('../..', import.meta.url))

export function argvOf(fixture: string, ...args: string[]): string[] {
  return ['--import', 'tsx', fileURLToPath(new URL(`fixtures/${fixture}.ts`, import.meta.url)), ...args]
}

type Fact = Record<string, unknown>

/** A started fixture. It tells facts as JSON lines on stdout and takes commands as lines on stdin. */
export interface Started {
  readonly child: ChildProcess
  /** Waits for the next line that has this key; earlier lines are not skipped over for later waits. */
  fact(key: string): Promise<Fact>
  command(line: string): void
  /** `{ code, signal }` of its end. */
  readonly ended: Promise<{ code: number | null; signal: string | null }>
}

/** Starts a fixture with an IPC channel; it is killed when the test ends. */
export function start(t: Test, fixture: string, args: string[] = []): Started {
  return startCommand(t, process.execPath, argvOf(fixture, ...args), ['pipe', 'pipe', 'pipe', 'ipc'])
}

export function startCommand(t: Test, command: string, args: string[], stdio: StdioOptions): Started {
  const child = spawn(command, args, { cwd: ROOT, env: ENV, stdio })
  const facts: Fact[] = []
  const log: string[] = []
  let wake = (): void => {}
  const lines = createInterface({ input: child.stdout! })
  lines.on('line', (line) => {
    log.push(line)
    try {
      facts.push(JSON.parse(line) as Fact)
    } catch {}
    wake()
  })
  child.stderr!.on('data', (text) => log.push(String(text)))
  child.stdin?.on('error', () => {}) // EPIPE of one that has gone
  const ended = once(child, 'exit').then(([code, signal]) => ({ code, signal }) as Awaited<Started['ended']>)
  t.teardown(async () => {
    child.kill('SIGKILL')
    await ended
  })
  const waitFor = async (key: string): Promise<Fact> => {
    for (;;) {
      const at = facts.findIndex((fact) => key in fact)
      if (at >= 0) return facts.splice(at, 1)[0]!
      await new Promise<void>((resolve) => (wake = resolve))
    }
  }
  return {
    child,
    ended: within(ended, `the end of ${args.at(-1)}`, () => log),
    fact: (key) => within(waitFor(key), `"${key}" from ${args.at(-1)}`, () => log),
    command: (line) => void child.stdin!.write(`${line}\n`),
  }
}

/** Fails, with the logs, when `promise` takes too long. */
export async function within<T>(
  promise: Promise<T>,
  what: string,
  log: () => string[] = () => [],
): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new Error(`Waited 20 s for ${what}. It said:\n${log().join('\n')}`)),
      20_000,
    )
  })
  return Promise.race([promise, late]).finally(() => clearTimeout(timer))
}

/** What a server says to a new connection, and to a request if there is one, until it ends it. */
export async function ask(to: number | string, request = ''): Promise<string> {
  const socket = typeof to === 'string' ? net.connect(to) : net.connect(to, '127.0.0.1')
  let said = ''
  socket.setEncoding('utf8').on('data', (text) => (said += text))
  if (request) socket.write(request)
  await within(once(socket, 'close'), `an answer from ${to}`)
  return said
}

/** A short directory of its own: a unix path has 107 bytes. */
export function shortDir(t: Test): string {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'fd-'))
  t.teardown(() => fs.rmSync(dir, { recursive: true, force: true }))
  return dir
}
