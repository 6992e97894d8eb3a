/** `usr2 …` as its user starts it, and a master with a fake face for it to talk to. */
import { spawn, type ChildProcess } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import type t from 'tap'

import { openControl } from '../../src/master/control/control.ts'
import type { Status } from '../../src/master/face.ts'
import { FakeFace, STATUS } from './fake-face.ts'
import { CLI } from './usr2.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))

type Tap = Pick<typeof t, 'teardown'>

export function scratch(t: Tap): string {
  const directory = mkdtempSync(join(tmpdir(), 'usr2-'))
  t.teardown(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}

export async function fakeMaster(t: Tap, path = join(scratch(t), 'c.sock'), status: Status = STATUS) {
  const face = new FakeFace(status)
  const log = { debug: () => {}, warn: () => {} }
  const control = await openControl({ path, face, log })
  t.teardown(() => control.close())
  return { face, path, control }
}

interface Ended {
  readonly code: number | null
  readonly signal: string | null
  readonly stdout: string
  readonly stderr: string
}

/** `usr2 …` as its user starts it, with nothing of this test's environment. */
export function usr2(
  t: Tap,
  argv: readonly string[],
  options: { cwd?: string; env?: Record<string, string> } = {},
) {
  const child: ChildProcess = spawn(process.execPath, [CLI, ...argv], {
    cwd: options.cwd ?? root,
    env: { PATH: process.env['PATH'], HOME: tmpdir(), TMPDIR: tmpdir(), ...options.env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  t.teardown(() => child.kill('SIGKILL'))
  let stdout = ''
  let stderr = ''
  child.stdout?.on('data', (chunk) => (stdout += chunk))
  child.stderr?.on('data', (chunk) => (stderr += chunk))
  const ended = new Promise<Ended>((resolve) => {
    child.once('close', (code, signal) => resolve({ code, signal, stdout, stderr }))
  })
  return {
    child,
    ended,
    /** What stdout has brought so far. */
    said: () => stdout,
    /** Until stdout has `text`, or the process has ended. */
    async says(text: string): Promise<void> {
      while (!stdout.includes(text) && child.exitCode === null) {
        await Promise.race([new Promise((resolve) => child.stdout?.once('data', resolve)), ended])
      }
    },
  }
}
