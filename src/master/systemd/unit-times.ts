/** Whether the unit that this master is the main process of leaves it the time that a start and a stop may take. */
import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import type { Policy } from '../../rollout/state.ts'
import { stopBudgetMs } from '../workers/generation.ts'
import { seconds } from '../words.ts'

const DEADLINE_MS = 2_000

export interface UnitTimesOptions {
  readonly env: Readonly<Record<string, string | undefined>>
  readonly policy: Policy
  readonly log: { warn(facts: object, text: string): void }
  /** Only for tests. */
  readonly pid?: number
  readonly cgroup?: string
}

/**
 * Asks systemd once, and warns where a limit of the unit is too short. Silent when this is no service of systemd's, and
 * when systemd does not answer within 2 s: this is advice, and no start waits for it.
 */
export async function checkUnitTimes(options: UnitTimesOptions): Promise<void> {
  const { env, policy, log } = options
  const unit = isMain(env, options.pid ?? process.pid) ? unitOf(options.cgroup ?? ownCgroup()) : null
  if (unit === null) return
  const limits = limitsOf(await ask(unit, env['PATH']))
  const fix = (directive: string) =>
    `raise it by systemctl edit ${unit.name}, or have "usr2 systemd" write the unit (${directive})`
  const stopMs = stopBudgetMs(policy)
  const facts = { event: 'unit-times', unit: unit.name, ...limits }
  if (limits.stopMs !== undefined && limits.stopMs <= stopMs) {
    log.warn(
      facts,
      `TimeoutStopSec= of ${unit.name} is ${seconds(limits.stopMs)}, and a stop may take ${seconds(stopMs)} (hook, drain, ` +
        `shutdown and kill timeout): systemd may kill workers with requests in flight; ${fix('TimeoutStopSec=')}`,
    )
  }
  if (limits.startMs !== undefined && limits.startMs <= policy.startTimeoutMs) {
    log.warn(
      facts,
      `TimeoutStartSec= of ${unit.name} is ${seconds(limits.startMs)}, and a worker has ${seconds(policy.startTimeoutMs)} to ` +
        `start: systemd may end a start, or a systemctl reload, that would succeed; ${fix('TimeoutStartSec=')}`,
    )
  }
}

/**
 * In a shell of a service (an editor's, a CI runner's) these variables are inherited, and the unit is none of our business.
 * SYSTEMD_EXEC_PID: systemd.exec(5), since 248. NOTIFY_SOCKET also after an upgrade, when the pid is another.
 */
function isMain(env: UnitTimesOptions['env'], pid: number): boolean {
  return Boolean(env['NOTIFY_SOCKET']) || env['SYSTEMD_EXEC_PID'] === String(pid)
}

export interface Unit {
  readonly name: string
  /** Of a user's systemd, not of the machine's. */
  readonly ofUser: boolean
}

/** The unit of a process, from its /proc/PID/cgroup (cgroups(7)): of version 2, or systemd's own hierarchy of version 1. */
export function unitOf(cgroup: string): Unit | null {
  for (const line of cgroup.split('\n')) {
    const path = /^(?:0::|\d+:name=systemd:)(\/.*)$/.exec(line)?.[1]
    const name = path?.split('/').at(-1) ?? ''
    if (name.endsWith('.service')) return { name, ofUser: /\/user@\d+\.service\//.test(path ?? '') }
  }
  return null
}

export interface Limits {
  /** Infinity: none. */
  readonly startMs: number | undefined
  readonly stopMs: number | undefined
}

/** What `systemctl show -p TimeoutStartUSec,TimeoutStopUSec` printed. */
export function limitsOf(shown: string): Limits {
  const valueOf = (key: string): number | undefined => {
    const text = new RegExp(`^${key}=(.*)$`, 'm').exec(shown)?.[1]
    return text === undefined ? undefined : parseSpan(text)
  }
  return { startMs: valueOf('TimeoutStartUSec'), stopMs: valueOf('TimeoutStopUSec') }
}

const UNITS_MS: Readonly<Record<string, number>> = {
  ...{ us: 0.001, ms: 1, s: 1_000, min: 60_000, h: 3_600_000, d: 86_400_000, w: 604_800_000 },
  ...{ month: 2_629_800_000, y: 31_557_600_000 },
}

/** A time span as systemd prints it (systemd.time(7)): `1min 30s`, `infinity`. */
function parseSpan(text: string): number | undefined {
  if (text === 'infinity') return Infinity
  let ms = 0
  for (const part of text.split(' ')) {
    const [, digits, unit = ''] = /^(\d+(?:\.\d+)?)([a-z]+)$/.exec(part) ?? []
    const unitMs = UNITS_MS[unit]
    if (unitMs === undefined) return undefined
    ms += Number(digits) * unitMs
  }
  return ms
}

function ownCgroup(): string {
  try {
    return readFileSync('/proc/self/cgroup', 'utf8')
  } catch {
    return ''
  }
}

function ask({ name, ofUser }: Unit, path: string | undefined): Promise<string> {
  const args = [...(ofUser ? ['--user'] : []), 'show', '-p', 'TimeoutStartUSec,TimeoutStopUSec', '--', name]
  const env = { PATH: path, XDG_RUNTIME_DIR: process.env['XDG_RUNTIME_DIR'], LC_ALL: 'C' }
  return new Promise((resolve) => {
    execFile('systemctl', args, { timeout: DEADLINE_MS, killSignal: 'SIGKILL', env }, (_error, stdout) =>
      resolve(String(stdout)),
    )
  })
}
