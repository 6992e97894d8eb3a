/**
 * `usr2 check`: would this version start? One worker of it is booted with everything that a generation pins, and asked
 * to leave again. Each `listen` is answered as if the address were held by a master already: the app goes on as it would,
 * nothing is bound, and no client can reach it. (On port 0 it listens by itself, as ever.) A running master is not touched.
 *
 * What the app does as it boots, it does: a migration runs, a consumer begins to read. `USR2_CHECK=1` tells it not to.
 */
import { bind } from 'native-free-fd-passing'
import { listenerKey } from '../../address.ts'
import type { Address } from '../../address.ts'
import { CMD } from '../../protocol.ts'
import type { ProbeSpec } from '../../config.ts'
import type { FromWorker, WireAddress } from '../../protocol.ts'
import { PROBES } from '../../rollout/state.ts'
import type { ProbeKind } from '../../rollout/state.ts'
import { stopBudgetMs } from './generation.ts'
import type { Pinned } from './generation.ts'
import { leftovers, signalGroup } from './leftovers.ts'
import { rssBytes } from './memory.ts'
import { refusalOf } from '../listening/permission.ts'
import { seconds } from '../words.ts'
import { WorkerHandle } from './worker-handle.ts'

/** How long a worker that is ready is watched on: more listeners may come, or an error. */
const WATCH_MS = 500
/** A datagram socket has to be there: the app may send by it. This one nobody knows. */
const NOWHERE = { kind: 'udp', host: '127.0.0.1', port: 0 } as const
const HANDOVER_TIMEOUT_MS = 5_000

export interface CheckReport {
  readonly ok: boolean
  /** Why not, in whole sentences. */
  readonly reasons: readonly string[]
  /** What is no reason against it, and should be known. */
  readonly warnings: readonly string[]
  readonly entry: string
  readonly cwd: string
  readonly version: string
  readonly node: string
  /** What its probes came to, in the order in which they were asked. */
  readonly probes: readonly CheckedProbe[]
  /** What it listens on. */
  readonly listeners: readonly string[]
  /** From its start until it was ready; null: it never was. */
  readonly bootMs: number | null
  /** Resident memory of the one worker once it was ready. */
  readonly rssBytes: number | null
  /** From the order to leave to its end; null: it did not leave by itself. */
  readonly shutdownMs: number | null
}

export interface CheckedProbe {
  readonly probe: ProbeKind
  /** Why not, in words; null: it passed. */
  readonly failure: string | null
  /** How often it was asked. */
  readonly asked: number
}

export interface CheckParts {
  readonly pinned: Pinned
  /** The guest's file. */
  readonly preload: string
  /** Listeners of the running generation: a version without them would be rolled back. */
  readonly wanted: readonly string[]
  /** Ends the check early: Ctrl-C. */
  readonly signal: AbortSignal
}

export async function checkVersion({ pinned, preload, wanted, signal }: CheckParts): Promise<CheckReport> {
  const { policy } = pinned
  const reasons: string[] = []
  const warnings: string[] = []
  const listeners = new Set<string>()
  let bootMs: number | null = null
  let rss: number | null = null
  let shutdownMs: number | null = null
  let hasLeft = false
  let ended = ''
  let saidReady = false
  let isPrivate = false
  const probes: CheckedProbe[] = []
  const answers = new Map<number, string | null>()

  const events = new EventTarget()
  const tell = (): void => void events.dispatchEvent(new Event('change'))
  const worker = new WorkerHandle({
    id: 0,
    generation: 0,
    slot: 0,
    name: pinned.config.name,
    pinned: { ...pinned, env: { ...pinned.env, USR2_CHECK: '1' } },
    preload,
    known: [],
    // Ours has the report.
    stdout: 2,
    onMessage(worker, message) {
      onMessage(worker, message)
      tell()
    },
    onBroken: (worker) => worker.signal('SIGKILL'),
    onExit(_, { reason }) {
      hasLeft = true
      ended = reason
      tell()
    },
  })

  const onMessage = (worker: WorkerHandle, message: FromWorker): void => {
    switch (message.t) {
      case 'several':
        return message.news.forEach((each) => onMessage(worker, each))
      case 'claim':
        return answer(worker, message.id, message.address, warnings)
      case 'claimed':
        return void listeners.add(message.key)
      case 'unclaimed':
        return void listeners.delete(message.key)
      case 'private':
        isPrivate = true
        return
      case 'ready':
        saidReady = true
        return
      case 'probed':
        return void answers.set(message.id, message.failure)
      case 'warning':
        return void warnings.push(message.text)
      default:
        return
    }
  }

  /** Whether it is so by then. A worker that has ended, or the end of `patience`, is not waited past. */
  const until = (fact: () => boolean, timeoutMs: number, patience?: AbortSignal): Promise<boolean> =>
    new Promise((resolve) => {
      const settle = (): void => {
        clearTimeout(timer)
        events.removeEventListener('change', look)
        patience?.removeEventListener('abort', look)
        resolve(fact())
      }
      const look = (): void => {
        if (fact() || hasLeft || patience?.aborted) settle()
      }
      const timer = setTimeout(settle, timeoutMs)
      events.addEventListener('change', look)
      patience?.addEventListener('abort', look)
      look()
    })

  const missing = (): string[] => wanted.filter((key) => !listeners.has(key))
  const isReady = (): boolean =>
    policy.ready === 'message'
      ? saidReady
      : (listeners.size > 0 || (isPrivate && wanted.length === 0)) && missing().length === 0
  /** Asked as a rollout asks it, until it passes or has failed as often as it may. */
  const probe = async (kind: ProbeKind, spec: ProbeSpec): Promise<CheckedProbe> => {
    const { target, timeoutMs, periodMs, failureThreshold } = spec
    let failure: string | null = 'it was not asked'
    let asked = 0
    await until(() => false, spec.initialDelayMs, signal)
    while (asked < failureThreshold && failure !== null && !hasLeft && !signal.aborted) {
      if (asked > 0) await until(() => false, periodMs, signal)
      const id = worker.expectProbe(kind, ++asked)
      worker.send({ t: 'probe', id, kind, target, timeoutMs })
      await until(() => answers.has(id), timeoutMs, signal)
      failure = answers.get(id) ?? (answers.has(id) ? null : `no answer within ${seconds(timeoutMs)}`)
    }
    return { probe: kind, failure, asked }
  }

  if (await until(isReady, policy.startTimeoutMs, signal)) {
    bootMs = performance.now() - worker.startedAt
    for (const kind of PROBES) {
      const spec = pinned.config.probes[kind]
      if (!spec || hasLeft || signal.aborted) continue
      const checked = await probe(kind, spec)
      probes.push(checked)
      if (checked.failure !== null && !signal.aborted && !hasLeft) {
        const times = checked.asked === 1 ? 'once' : `${checked.asked} times`
        reasons.push(`Its ${kind} probe does not pass (asked ${times}): ${checked.failure}.`)
      }
      // The others wait for it, as in a rollout.
      if (kind === 'startup' && checked.failure !== null) break
    }
    await until(() => false, WATCH_MS, signal)
    rss = worker.pid === null ? null : rssBytes(worker.pid)
  }
  if (signal.aborted) reasons.push('The check was interrupted.')
  else if (hasLeft) reasons.push(`The new version does not stay up: ${ended}.`)
  else if (bootMs === null) reasons.push(notReady(pinned, [...listeners], missing()))

  const asked = performance.now()
  const { drainTimeoutMs, shutdownTimeoutMs, killTimeoutMs } = policy
  worker.send({ t: 'drain', times: { drainTimeoutMs, shutdownTimeoutMs } })
  const leaveMs = stopBudgetMs(policy)
  if (!hasLeft && (await until(() => hasLeft, leaveMs))) shutdownMs = performance.now() - asked
  if (!hasLeft) {
    warnings.push(`it did not leave within ${seconds(leaveMs)} of being asked to, and was killed`)
    worker.signal('SIGKILL')
    await until(() => hasLeft, killTimeoutMs)
  }
  const left = worker.pid === null ? [] : leftovers(worker.pid)
  if (worker.pid !== null && left.length > 0) {
    warnings.push(`it left running: ${left.map(({ pid, command }) => `${pid} (${command})`).join(', ')}`)
    signalGroup(worker.pid, 'SIGKILL')
  }
  return {
    ok: reasons.length === 0,
    reasons,
    warnings,
    entry: pinned.entry,
    cwd: pinned.cwd,
    version: pinned.version,
    node: pinned.nodeVersion,
    probes,
    listeners: [...listeners],
    bootMs: bootMs === null ? null : Math.round(bootMs),
    rssBytes: rss,
    shutdownMs: shutdownMs === null ? null : Math.round(shutdownMs),
  }
}

function answer(worker: WorkerHandle, id: number, wire: WireAddress, warnings: string[]): void {
  const address = wire as Address
  const key = listenerKey(address)
  const refusal = refusalOf(address, worker.permission)
  if (refusal !== null) {
    warnings.push(refusal)
    worker.explain(refusal)
    const syscall = address.kind === 'udp' ? 'bind' : 'listen'
    return worker.send({ t: 'answer', id, error: { code: 'EACCES', errno: -13, syscall } })
  }
  if (address.kind === 'unix') return worker.send({ t: 'answer', id, ok: { key, bound: null } })
  const family = address.host.includes(':') ? 'IPv6' : 'IPv4'
  const listener = { key, bound: { address: address.host, family, port: address.port } }
  if (address.kind === 'tcp') return worker.send({ t: 'answer', id, ok: listener })
  const socket = bind(NOWHERE)
  const message = { cmd: CMD, t: 'handle', purpose: 'bound', listener, id }
  socket
    .sendTo(worker.child, message, { timeoutMs: HANDOVER_TIMEOUT_MS })
    .catch(() => {
      worker.send({ t: 'answer', id, error: { code: 'ECANCELED', errno: -125, syscall: 'bind' } })
    })
    .finally(() => socket.close())
}

function notReady({ policy }: Pinned, listeners: readonly string[], missing: readonly string[]): string {
  const within = `within the start timeout of ${seconds(policy.startTimeoutMs)}`
  if (policy.ready === 'message') return `The new version did not say that it is ready ${within}.`
  if (listeners.length === 0) return `The new version did not listen on anything ${within}.`
  return (
    `The new version does not listen on ${missing.join(', ')}, as the running one does, ${within}: a reload would be ` +
    `rolled back (unless with --drop). It listens on ${listeners.join(', ')}.`
  )
}
