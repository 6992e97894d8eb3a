/** An app whose master is killed, and the next master of its name. */
import { readdirSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { Test } from 'tap'
import { processesWithToken } from './processes.ts'
import { expectNothingLeft, start, type TestProcess } from './spawn.ts'
import { freePort, shortTmp } from './tmp.ts'
import { CLI, fixture, type LogEvent, startUsr2, type Usr2, type Usr2Options } from './usr2.ts'
import { until } from './wait.ts'

export const WAIT_MS = 20_000

export interface Me {
  readonly pid: number
  readonly slot: string
  readonly generation: string
}

export interface App {
  readonly usr2: Usr2
  readonly port: number
  /** What the next master is started with, too. */
  readonly args: readonly string[]
  readonly env: Record<string, string>
}

export async function startApp(
  t: Test,
  { flags = [], env = {}, ...options }: Usr2Options = {},
): Promise<App> {
  const port = await freePort(t)
  const all = { PORT: String(port), ...env } as Record<string, string>
  const { cwd = join(shortTmp(t), 'app'), entry = fixture('busy-app.cjs') } = options
  const usr2 = startUsr2(t, { ...options, cwd, entry, flags, env: all })
  return { usr2, port, args: [...flags, entry], env: all }
}

/** SIGKILL, and it runs no more. */
export async function killMaster({ usr2 }: App): Promise<void> {
  usr2.process.kill('SIGKILL')
  await usr2.process.exited
}

/** `usr2 run` of the same name, once more. */
export class Next {
  readonly process: TestProcess
  readonly #t: Test
  readonly #control: string

  constructor(t: Test, { usr2, args, env }: App, more: Record<string, string> = {}) {
    this.#t = t
    this.#control = usr2.control
    this.process = start(t, process.execPath, {
      name: 'the next usr2',
      args: [CLI, 'run', '--control', usr2.control, '--name', 't', ...args],
      cwd: usr2.cwd,
      env: { ...env, ...more },
    })
  }

  event(name: string): Promise<LogEvent> {
    const found = this.process.line((line) => eventOf(line.text)?.event === name, {
      timeoutMs: WAIT_MS,
      what: `the event ${name}`,
    })
    return found.then(({ text }) => JSON.parse(text) as LogEvent)
  }

  events(): LogEvent[] {
    return this.process.stderr.flatMap((text) => eventOf(text) ?? [])
  }

  /** Stops it; then nothing is left of it nor of the killed one. */
  async stop(dead: App): Promise<void> {
    this.process.kill('SIGTERM')
    this.#t.equal((await this.process.ended(60_000)).code, 0, 'the next master stops as asked')
    await expectNothingLeft(this.#t, this.process)
    this.#t.same(processesWithToken(dead.usr2.process.token), [], 'no process of the killed one is left')
    this.#t.same(ourFiles(dirname(this.#control)), [], 'nor a file')
    this.#t.same(ourFiles(dead.usr2.cwd), [])
  }
}

export const ourFiles = (directory: string): string[] =>
  readdirSync(directory).filter((name) => name.startsWith('.usr2-') || name.startsWith('c.sock'))

function eventOf(text: string): LogEvent | null {
  try {
    return text.startsWith('{') ? (JSON.parse(text) as LogEvent) : null
  } catch {
    return null
  }
}

export async function untilGone({ usr2 }: App, timeoutMs = WAIT_MS): Promise<void> {
  const none = () => processesWithToken(usr2.process.token).length === 0
  await until(none, {
    timeoutMs,
    what: 'every process of the killed master to leave',
    logs: () => usr2.logs(),
  })
}

export const workersOf = async ({ usr2 }: App): Promise<number[]> =>
  (await usr2.status()).generations.flatMap(({ workers }) => workers.flatMap(({ pid }) => pid ?? []))
