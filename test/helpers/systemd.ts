/**
 * The test's side of a real systemd: boots a private one (systemd-sandbox), runs a drive in it (systemd-*drive.mjs, which
 * tell their stories with systemd-box.mjs), and judges what it says. Needs root; where the sandbox cannot run, `skip` says so.
 */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import tap from 'tap'
import type { Test } from 'tap'
import { run } from './spawn.ts'
import { shortTmp } from './tmp.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))
const sandbox = join(root, 'test', 'helpers', 'systemd-sandbox')
/**
 * Another root to boot, for its version of systemd:
 * `debootstrap --variant=minbase --include=systemd,dbus,iproute2,libatomic1,util-linux,procps,passwd trixie DIR`.
 */
const otherRoot = process.env['USR2_SYSTEMD_ROOT']
const boot = otherRoot ? ['-r', otherRoot] : []

const DRIVE_TIMEOUT_S = 150
/** The sandbox ends the drive at its own limit, and cleans up by itself. */
const SANDBOX_TIMEOUT_MS = (DRIVE_TIMEOUT_S + 30) * 1000

const probe = await run(tap, sandbox, { args: [...boot, '-N', '--', 'true'], timeoutMs: 60_000 })

/** Why nothing here can be tested; false: it can. */
export const skip =
  probe.code !== 0 && `NOT TESTED, no private systemd here: ${probe.stderr.split('\n')[0] ?? ''}`

/** As systemd-box.mjs prints it. */
type Line =
  | { readonly row: string; readonly skip: string }
  | {
      readonly row: string
      readonly skip?: undefined
      readonly notes: readonly string[]
      readonly failure: string | null
      readonly tookMs: number
    }
  | { readonly end: true }

/** Runs test/helpers/`drive`; each of its rows is a subtest. The journal is shown where one fails. */
export async function play(t: Test, drive: string, ...args: readonly string[]): Promise<void> {
  t.ok(existsSync(join(root, 'dist', 'cli.mjs')), 'built: `npm run build` comes before this test')
  const journal = join(shortTmp(t), 'journal')
  const { code, stdout, stderr } = await run(t, sandbox, {
    args: [
      ...[...boot, '-N', '-t', String(DRIVE_TIMEOUT_S), '-j', journal],
      ...['-b', `${root}:/box/usr2:ro`, '-b', `${process.execPath}:/usr/local/bin/node:ro`],
      ...['--', '/usr/local/bin/node', `/box/usr2/test/helpers/${drive}`, ...args],
    ],
    timeoutMs: SANDBOX_TIMEOUT_MS,
  })
  const lines = stdout.split('\n').flatMap((line) => (line.startsWith('{') ? [JSON.parse(line) as Line] : []))
  for (const line of lines) {
    if ('end' in line) continue
    const { row, skip } = line
    await t.test(row, { skip: skip ?? false }, (t) => {
      if (line.skip === undefined) {
        for (const note of line.notes) t.comment(note)
        if (line.failure === null) t.pass(`${line.tookMs} ms`)
        else t.fail(line.failure.split('\n')[0] ?? '', { story: line.failure })
      }
      t.end()
    })
  }
  t.equal(code, 0, `the drive ended${code === 0 ? '' : `: ${stderr}`}`)
  t.ok(
    lines.some((line) => 'end' in line),
    'and told all of its rows',
  )
  if (!t.passing() && existsSync(journal)) t.comment(readFileSync(journal, 'utf8'))
}
