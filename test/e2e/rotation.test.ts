/**
 * Workers go out of rotation and come back, and change places in it, under bursts of new connections: no connection that
 * the kernel has queued is lost. Real workers by the real preload, with this test as their master.
 */
import { existsSync, readdirSync, readlinkSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { bind, type HeldSocket } from 'native-free-fd-passing'
import t from 'tap'
import type { Test } from 'tap'
import { listenerKey } from '../../src/address.ts'
import { CMD, GUEST_ENV, PROTOCOL_VERSION } from '../../src/protocol.ts'
import { fromWorker } from '../../src/master/workers/worker-word.ts'
import type { FromWorker, GuestConfig, KnownListener, ToWorker } from '../../src/protocol.ts'
import type { LoadResult } from '../../src/drill/load.ts'
import { expectNoneFailed, loadUnder } from '../helpers/load.ts'
import { openRaw } from '../helpers/raw-client.ts'
import { start } from '../helpers/spawn.ts'
import { freePort } from '../helpers/tmp.ts'
import { fixture } from '../helpers/usr2.ts'
import { deadline, until } from '../helpers/wait.ts'

const PRELOAD = fileURLToPath(new URL('../../dist/preload.cjs', import.meta.url))
const HANDOVER_MS = 20_000

interface Worker {
  /** Settles when it accepts. */
  open(): Promise<void>
  /** Settles when it has its fresh copy. */
  turn(): Promise<void>
  /** Sends both at once, the copy behind the order, as when they cross. Settles when the worker has both. */
  turnAfterWithdrawal(): Promise<void>
  /** Settles when it does not accept any more. */
  withdraw(): Promise<void>
  /** Its copies of the socket, by their numbers as files. */
  copies(): string[]
}

interface Fleet {
  readonly port: number
  readonly workers: readonly Worker[]
}

async function fleetOf(t: Test, count: number): Promise<Fleet> {
  if (!existsSync(PRELOAD)) throw new Error(`${PRELOAD} is not there: run \`npm run build\` first`)
  const port = await freePort(t)
  const address = { kind: 'tcp', host: '127.0.0.1', port } as const
  const socket = bind(address)
  t.teardown(() => socket.close())
  const listener = { key: listenerKey(address), bound: socket.bound }
  const workers = Array.from({ length: count }, (_, slot) => startWorker(t, socket, listener, port, slot))
  return { port, workers: await Promise.all(workers) }
}

async function startWorker(
  t: Test,
  socket: HeldSocket,
  listener: KnownListener,
  port: number,
  slot: number,
): Promise<Worker> {
  const config: GuestConfig = {
    version: PROTOCOL_VERSION,
    generation: 1,
    slot,
    ready: 'listen',
    known: [listener],
    times: { drainTimeoutMs: 10_000, shutdownTimeoutMs: 10_000 },
    keepAliveTimeoutMs: null,
    websocketDrain: 'close',
    statistics: true,
    inspectorPort: null,
    pwd: process.cwd(),
    runtime: '/run/usr2',
  }
  const worker = start(t, process.execPath, {
    name: `worker ${slot}`,
    args: ['--require', PRELOAD, fixture('rollouts/healthy.cjs')],
    env: { PORT: String(port), USR2_SLOT: String(slot), [GUEST_ENV]: JSON.stringify(config) },
    moreStdio: ['ipc'],
  })
  const waiting = new Map<FromWorker['t'], (() => void)[]>()
  const events = worker.child as NodeJS.EventEmitter
  events.on('internalMessage', (raw: unknown) => {
    const message = fromWorker(raw)
    if (message) waiting.get(message.t)?.shift()?.()
  })
  const heard = (kind: FromWorker['t']): Promise<void> => {
    const told = new Promise<void>((resolve) =>
      waiting.set(kind, [...(waiting.get(kind) ?? []), () => resolve()]),
    )
    return deadline(told, HANDOVER_MS, `'${kind}' of worker ${slot}`, () => worker.log())
  }
  const send = (purpose: 'open' | 'turn'): Promise<void> =>
    socket.sendTo(worker.child, { cmd: CMD, t: 'handle', purpose, listener }, { timeoutMs: HANDOVER_MS })
  const tell = (order: ToWorker): void => void worker.child.send({ cmd: CMD, ...order })
  await worker.line(/^listening/)
  return {
    async open() {
      const opened = heard('opened')
      await send('open')
      await opened
    },
    turn: () => send('turn'),
    async turnAfterWithdrawal() {
      const withdrawn = heard('withdrawn')
      tell({ t: 'withdraw', key: listener.key })
      await Promise.all([withdrawn, send('turn')])
    },
    async withdraw() {
      const withdrawn = heard('withdrawn')
      tell({ t: 'withdraw', key: listener.key })
      await withdrawn
    },
    copies() {
      const files = `/proc/${worker.pid}/fd`
      const held = readlinkSync(`/proc/self/fd/${socket.fd}`)
      return readdirSync(files).filter((fd) => linkOf(`${files}/${fd}`) === held)
    },
  }
}

/** `socket:[12345]` of a file in /proc; null: closed since the directory was read. */
function linkOf(path: string): string | null {
  try {
    return readlinkSync(path)
  } catch {
    return null
  }
}

const requests = async (load: { snapshot(): Promise<LoadResult> }): Promise<number> =>
  (await load.snapshot()).ok

t.test('workers leave and come back under bursts: nothing is lost', async (t) => {
  const { port, workers } = await fleetOf(t, 3)
  for (const worker of workers) await worker.open()
  // 100 at once, the next 100 as soon as these are answered: the queue is never empty for long.
  const load = await loadUnder(t, { target: { port }, traffic: [{ mode: 'new', connections: 100 }] })
  for (let round = 0; round < 10; round++) {
    const before = await requests(load)
    const [leaving, ...others] = [...workers.slice(round % 3), ...workers.slice(0, round % 3)]
    await leaving?.withdraw()
    // Each fifth time all of them: who connects meanwhile waits in the kernel.
    if (round % 5 === 4) {
      await Promise.all(others.map((worker) => worker.withdraw()))
      await sleep(50)
      await Promise.all(others.map((worker) => worker.open()))
    }
    await leaving?.open()
    const more = async (): Promise<boolean> => (await requests(load)) >= before + 100
    await until(more, { timeoutMs: 20_000, what: '100 more answers' })
  }
  expectNoneFailed(t, await load.stop())
})

t.test('workers take turns under bursts: nothing is lost, and all of them accept', async (t) => {
  const { port, workers } = await fleetOf(t, 3)
  for (const worker of workers) await worker.open()
  const traffic = [{ mode: 'new', connections: 50 }] as const
  const load = await loadUnder(t, { target: { port }, traffic, versionOf: 'pid' })
  for (let turn = 0; turn < 300; turn++) await workers[turn % 3]?.turn()
  const result = await load.stop()
  expectNoneFailed(t, result)
  t.equal(Object.keys(result.versions).length, 3)
})

t.test('a turn is a fresh copy, of which a worker has one', async (t) => {
  const { workers } = await fleetOf(t, 1)
  const [worker] = workers
  if (worker === undefined) throw new Error('no worker')
  await worker.open()
  const before = worker.copies()
  t.equal(before.length, 1)
  await worker.turn()
  const has = (): boolean => worker.copies().length === 1 && worker.copies()[0] !== before[0]
  await until(has, { timeoutMs: 10_000, what: `one copy that is not ${before.join()}` })
})

t.test('a turn that crosses a withdrawal does not make a worker accept again', async (t) => {
  const { port, workers } = await fleetOf(t, 1)
  const [worker] = workers
  await worker?.open()
  await worker?.turnAfterWithdrawal()
  const client = await openRaw(t, { port })
  const answer = client.get('/').response()
  const first = await Promise.race([answer.then(() => 'answered'), sleep(200, 'waits')])
  t.equal(first, 'waits', 'in the queue of the kernel')
  await worker?.open()
  t.equal((await answer).status, 200, 'until somebody accepts again')
})
