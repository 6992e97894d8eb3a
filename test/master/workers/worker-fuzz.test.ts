/**
 * Whatever a worker says: messages that are none, real ones, and real ones with something changed, into a supervisor with
 * children that say nothing themselves. It never throws; what it tells of itself afterwards is whole, finite and small.
 *
 * FUZZ_RUNS= for more (a run is up to 40 messages), SEED= to repeat one.
 */
import { chmodSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { loadConfig } from '../../../src/config.ts'
import { pinGeneration } from '../../../src/master/workers/generation.ts'
import { NO_COUNTS } from '../../../src/master/figures/ledger.ts'
import type { Logger } from '../../../src/master/report.ts'
import { Supervisor } from '../../../src/master/supervisor.ts'
import type { WorkerHandle } from '../../../src/master/workers/worker-handle.ts'
import { fromWorker } from '../../../src/master/workers/worker-word.ts'
import { CMD } from '../../../src/protocol.ts'
import type { FromWorker } from '../../../src/protocol.ts'
import { withoutTap } from '../../helpers/spawn.ts'
import { freePort, shortTmp } from '../../helpers/tmp.ts'
import { until } from '../../helpers/wait.ts'

const RUNS = Number(process.env['FUZZ_RUNS'] ?? 150)
const SEED = Number(process.env['SEED'] ?? Date.now() % 0x7fffffff)
/** Whose names are its own. */
const NAMED_BY_WORKER = /"(kinds|resources)":\{[^}]*\}/g
/** The longest message that is taken: 1000 entries with paths of 4096 characters. */
const MAX_TAKEN = 5 * 1024 * 1024

const held = {
  what: 'request',
  method: 'GET',
  path: '/',
  ageMs: 1,
  bytesRead: 1,
  bytesWritten: 1,
  peer: '::1',
} as const
const realOnes = (port: number): readonly FromWorker[] => {
  const key = `tcp:127.0.0.1:${port}`
  const error = { code: 'EADDRINUSE', errno: -98, syscall: 'listen' }
  const address = { kind: 'tcp', host: '127.0.0.1', port } as const
  return [
    { t: 'hello', version: 1, node: '20.0.0' },
    { t: 'claim', id: 1, address, backlog: 511 },
    { t: 'claim', id: 2, address: { ...address, host: '::1' }, backlog: 511 },
    { t: 'claim', id: 3, address: { ...address, kind: 'udp' }, backlog: 0 },
    { t: 'verified', key, error: null },
    { t: 'verified', key, error },
    { t: 'claimed', key, error: null },
    { t: 'unclaimed', key },
    { t: 'private', address: '127.0.0.1:1' },
    { t: 'opened', key, error: null },
    { t: 'opened', key, error },
    { t: 'withdrawn', key },
    { t: 'ready' },
    { t: 'draining', timeoutMs: 1e15 },
    { t: 'counts', counts: { ...NO_COUNTS, accepted: 5, open: 5 } },
    {
      t: 'statistics',
      statistics: { requests: 9, errors: 1, totalMs: 10, latency: [[3, 9]], loopDelayMs: 7 },
    },
    { t: 'probed', id: 1, failure: null },
    { t: 'warmed', sent: 1, failure: 'no' },
    { t: 'drained', counts: NO_COUNTS, cut: [held], slowest: { method: 'GET', path: '/', tookMs: 5 } },
    { t: 'holding', holding: { oldest: [held], kinds: { request: 1 }, resources: { Timeout: 2 } } },
    { t: 'died', counts: NO_COUNTS, lost: [held] },
    { t: 'failed', failure: { name: 'E', message: 'm', stack: 's' } },
    { t: 'stderr', text: 'x' },
    { t: 'signalled', signal: 'SIGTERM' },
    { t: 'leadership-asked' },
    { t: 'leadership-ended' },
    { t: 'warning', text: 'x' },
    { t: 'ticket-keys-asked', key, fingerprint: 'ab'.repeat(32) },
  ]
}

const odd = fc.oneof(
  fc.constantFrom<unknown[]>(
    null,
    undefined,
    true,
    -1,
    NaN,
    Infinity,
    -0,
    1e308,
    2 ** 53,
    '',
    '__proto__',
    '\ud800',
    '\u001b[2J\n',
  ),
  fc.constantFrom<unknown[]>(
    'x'.repeat(300),
    'x'.repeat(1e6),
    [],
    {},
    [[]],
    JSON.parse('{"__proto__":{"t":"ready"}}'),
  ),
  fc.anything({ maxDepth: 3, withNullPrototype: true, withBigInt: false }),
)

/** Something in it is another, is missing, or is one more. */
const mutated = (real: FromWorker): fc.Arbitrary<unknown> =>
  fc.tuple(fc.array(fc.tuple(fc.nat(), odd, fc.nat(3)), { maxLength: 3 })).map(([changes]) => {
    const copy = structuredClone(real) as unknown as Record<string, unknown>
    for (const [at, given, how] of changes) {
      // Odd values are shared: one put into itself would have no end.
      const value = structuredClone(given)
      const places: [Record<string, unknown>, string][] = []
      const walk = (node: unknown): void => {
        if (typeof node !== 'object' || node === null) return
        for (const name of Object.keys(node)) {
          places.push([node as Record<string, unknown>, name])
          walk((node as Record<string, unknown>)[name])
        }
      }
      walk(copy)
      const [node, name] = places[at % Math.max(1, places.length)] ?? []
      if (!node || name === undefined || name === 't') continue
      if (how === 0) delete node[name]
      else if (how === 1) node[`more${name}`] = value
      else if (Array.isArray(node[name]) && how === 2) node[name] = Array.from({ length: 2000 }, () => value)
      else node[name] = value
    }
    return { cmd: CMD, ...copy }
  })

t.test(
  'what is taken of a message is made anew: known fields, bounded, and the same when it is read again',
  async (t) => {
    const message = fc.oneof(fc.anything(), odd, fc.constantFrom(...realOnes(1234)).chain(mutated))
    let taken = 0
    fc.assert(
      fc.property(message, (x) => {
        const said = fromWorker(x)
        if (said === undefined) return
        taken++
        const text = JSON.stringify(said)
        if (
          text.length > MAX_TAKEN ||
          /"more\w+":/.test(text.replace(NAMED_BY_WORKER, '')) ||
          /:null[,}]/.test(text.replace(/"(error|failure|slowest)":null/g, '"$1":0'))
        )
          throw new Error(`taken: ${text.slice(0, 500)}`)
        if (JSON.stringify(fromWorker({ cmd: CMD, ...said })) !== text)
          throw new Error('it is read another way again')
      }),
      { numRuns: RUNS * 20, seed: SEED },
    )
    for (const real of realOnes(1234)) t.same(fromWorker({ cmd: CMD, ...real }), real)
    t.comment(`${taken} of ${RUNS * 20} messages were taken, SEED=${SEED}`)
  },
)

t.test('a supervisor', async (t) => {
  const port = await freePort(t)
  const directory = shortTmp(t)
  writeFileSync(join(directory, 'app.cjs'), '')
  const loaded = loadConfig({
    argv: ['--workers', '2', '--listen', `${port}`, '--listen', `udp:${port}`, '--name', 't', 'app.cjs'],
    env: {},
    cwd: directory,
  })
  if (!loaded.ok) throw new Error(loaded.complaints.join())
  const pin = await pinGeneration(loaded.config, { PATH: process.env['PATH'] })
  if (!pin.ok) throw new Error(pin.reasons.join())
  // A child that has a channel and is silent.
  const node = join(directory, 'node')
  writeFileSync(node, '#!/bin/sh\nexec sleep 600\n')
  chmodSync(node, 0o755)
  const pinned = { ...pin.pinned, node, policy: { ...pin.pinned.policy, killTimeoutMs: 50 } }

  let lines = 0
  const say = (facts: object, text: string): void => {
    lines++
    if (JSON.stringify([facts, text]).length > 300_000) throw new Error(`a long line: ${text.slice(0, 200)}`)
  }
  const log = { info: say, warn: say, error: say, debug: say } as unknown as Logger
  const quiet = (): void => {}
  const notifier = {
    ...{
      enabled: false,
      watchdogIntervalMs: null,
      ready: quiet,
      reloading: quiet,
      status: quiet,
      stopping: quiet,
    },
    ...{
      watchdog: quiet,
      startWatchdog: quiet,
      extendTimeout: quiet,
      mainPid: quiet,
      speak: quiet,
      close: quiet,
    },
    flush: async () => {},
  }
  let runs = 0
  let messages = 0

  const one = async (said: readonly (readonly [worker: number, message: unknown])[]): Promise<void> => {
    let ended = false
    const supervisor = new Supervisor({
      ...{ config: loaded.config, log, notifier, preload: '/nowhere', activated: [] },
      pin: async () => ({ ok: true, pinned }),
      onServing: quiet,
      onEnd: () => void (ended = true),
      inspectorPort: () => null,
      lookInto: async () => null,
    })
    withoutTap(() => supervisor.start(pinned))
    const { handles } = supervisor as unknown as { handles: ReadonlyMap<number, WorkerHandle> }
    const children = [...handles.values()].map(({ child }) => child)
    try {
      for (const [at, message] of said) {
        messages++
        withoutTap(() => children[at % children.length]?.emit('internalMessage', message))
      }
      const text = JSON.stringify([supervisor.status(), supervisor.totals(), supervisor.statusLine()])
      if (text.length > 1_000_000) throw new Error(`a status of ${text.length} characters`)
      if (({} as Record<string, unknown>)['t'] !== undefined) throw new Error('a prototype was changed')
    } finally {
      supervisor.stop('now')
      for (const { child } of handles.values()) child.kill('SIGKILL')
      for (const child of children) child.kill('SIGKILL')
      await until(() => ended, { timeoutMs: 20_000, what: 'the end of the supervisor' })
    }
    runs++
  }

  const word = fc
    .constantFrom(...realOnes(port))
    .chain((real) =>
      fc.oneof(
        { weight: 2, arbitrary: fc.constant({ cmd: CMD, ...real } as unknown) },
        { weight: 3, arbitrary: mutated(real) },
      ),
    )
  // A message is an object with a cmd, or Node tells it otherwise.
  const sent = fc.array(fc.tuple(fc.nat(3), word), { minLength: 10, maxLength: 40 })
  await fc.assert(fc.asyncProperty(sent, one), {
    ...{ numRuns: Math.ceil(RUNS / 5), seed: SEED, endOnFailure: true },
    interruptAfterTimeLimit: 600_000,
  })
  t.ok(messages > 0)
  t.comment(`${messages} messages in ${runs} runs, ${lines} lines logged, SEED=${SEED}`)
})
