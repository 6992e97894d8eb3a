/** `usr2 check`: its command line, and what it prints. */
import { chmodSync, copyFileSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { commandUsage, parseArguments, splitOptions, type Command } from './args.ts'
import { asJson, formatDuration, printable } from './text.ts'
import { controlCandidates, loadConfig, startDirectory, usage } from '../config.ts'
import { checkVersion, type CheckReport } from '../master/workers/check.ts'
import { askStatus, findMaster, NoMasterError } from '../master/control/control-client.ts'
import { pinGeneration } from '../master/workers/generation.ts'

const OK = 0
const FAILED = 1
const BAD_USAGE = 2

export const CHECK: Command = {
  name: 'check',
  summary: 'would this version start? Boots one worker that nobody can reach: usr2 check server.js',
  options: [{ flag: '--json', means: 'JSON on stdout instead of text' }],
  notes: [
    'Before the entry also every option of "usr2 run". A running master is not touched; when one of this name answers,',
    'the version has to listen on all that its current generation listens on. The app boots as always, so what it does',
    'at its start it does now: it finds USR2_CHECK=1 in its environment.',
    '',
    'Exit status: 0 it would start; 1 it would not, with the reason; 2 bad usage or configuration.',
  ],
}

export const checkUsage = (): string => `${commandUsage(CHECK)}\n${usage('check')}`

export async function runCheck(argv: readonly string[]): Promise<number> {
  const { ours, theirs, complaints } = splitOptions(CHECK, argv)
  const args = parseArguments(CHECK, ours)
  if (args.help) {
    process.stdout.write(checkUsage())
    return OK
  }
  const cwd = startDirectory(process.env, process.cwd())
  const loaded = loadConfig({ argv: theirs, env: process.env, cwd })
  const wrong = [...complaints, ...args.complaints, ...(loaded.ok ? [] : loaded.complaints)]
  if (!loaded.ok || wrong.length > 0) return refuse(wrong)
  const { config } = loaded
  const pin = await pinGeneration(config, process.env)
  if (!pin.ok) return refuse(pin.reasons)
  const interrupted = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.removeAllListeners(signal)
    process.on(signal, () => interrupted.abort())
  }
  // As a master does: the guest that a worker loads is a copy that no `npm ci` changes meanwhile.
  const directory = mkdtempSync(join(tmpdir(), '.usr2-check-'))
  try {
    const preload = join(directory, 'preload.cjs')
    copyFileSync(fileURLToPath(new URL('preload.cjs', import.meta.url)), preload)
    // The worker may run as another user.
    chmodSync(directory, 0o755)
    chmodSync(preload, 0o644)
    const wanted = await runningListeners(config.control, config.name)
    const report = await checkVersion({ pinned: pin.pinned, preload, wanted, signal: interrupted.signal })
    process.stdout.write(args.has('--json') ? `${asJson(report)}\n` : renderCheck(report))
    return report.ok ? OK : FAILED
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}

/** What the current generation of a master of this name accepts on; without such a master nothing. */
async function runningListeners(control: string | null, name: string): Promise<readonly string[]> {
  try {
    const candidates = control === null ? controlCandidates(name, process.env) : [control]
    const { listeners } = await askStatus(await findMaster(candidates))
    return listeners.filter(({ accepting }) => accepting > 0).map(({ key }) => key)
  } catch (error) {
    if (error instanceof NoMasterError) return []
    throw error
  }
}

const MIB = 1024 * 1024

export function renderCheck(report: CheckReport): string {
  const { ok, reasons, warnings, entry, version, node, listeners, probes } = report
  const { bootMs, rssBytes, shutdownMs } = report
  const lines = [
    `${ok ? 'It would start' : 'It would not start'}: ${entry} (${version || 'no version'}), Node ${node}`,
  ]
  if (bootMs !== null) {
    const memory = rssBytes === null ? '' : `, ${Math.round(rssBytes / MIB)} MiB resident`
    lines.push(
      `  ready after ${formatDuration(bootMs)}${memory}; listens on ${listeners.join(', ') || 'nothing'}`,
    )
  }
  for (const { probe, failure } of probes) lines.push(`  ${probe} probe: ${failure ?? 'passes'}`)
  if (shutdownMs !== null) lines.push(`  left ${formatDuration(shutdownMs)} after it was asked to`)
  lines.push(...reasons.map((reason) => `  ${reason}`), ...warnings.map((warning) => `  warning: ${warning}`))
  return `${lines.map(printable).join('\n')}\n`
}

function refuse(complaints: readonly string[]): number {
  for (const complaint of complaints) process.stderr.write(`usr2: ${printable(complaint)}\n`)
  return BAD_USAGE
}
