/**
 * Probes and warm-up of a real worker, through the real preload, with this test as its master: the gate is shut all the
 * time, no socket listens anywhere, and yet the app is asked. (What each probe answers to which app: test/worker.)
 */
import { existsSync, readdirSync, readlinkSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import type { Test } from 'tap'
import { listenerKey } from '../../src/address.ts'
import {
  CMD,
  GUEST_ENV,
  PROTOCOL_VERSION,
  type FromWorker,
  type GuestConfig,
  type ProbeTarget,
  type ToWorker,
} from '../../src/protocol.ts'
import { fromWorker } from '../../src/master/workers/worker-word.ts'
import { start, type TestProcess } from '../helpers/spawn.ts'
import { fixture } from '../helpers/usr2.ts'
import { deadline } from '../helpers/wait.ts'

const PRELOAD = fileURLToPath(new URL('../../dist/preload.cjs', import.meta.url))
/** Never bound: what is asked there is asked by the private channel, or not at all. */
const PORT = 3999
const times = { drainTimeoutMs: 10_000, shutdownTimeoutMs: 10_000 }

type Message<T extends FromWorker['t']> = Extract<FromWorker, { t: T }>

interface Worker {
  readonly process: TestProcess
  tell(order: ToWorker): void
  /** The next one, or one that has come and was not asked for yet. */
  hear<T extends FromWorker['t']>(kind: T): Promise<Message<T>>
  /** The failure that the worker answers with. */
  probe(target: ProbeTarget, timeoutMs?: number): Promise<string | null>
  /** What GET /seen says of the requests before. */
  seen(): Promise<string>
}

async function startWorker(t: Test, env: Readonly<Record<string, string>> = {}): Promise<Worker> {
  if (!existsSync(PRELOAD)) throw new Error(`${PRELOAD} is not there: run \`npm run build\` first`)
  const bound = { address: '127.0.0.1', family: 'IPv4', port: PORT }
  const config: GuestConfig = {
    version: PROTOCOL_VERSION,
    generation: 1,
    slot: 0,
    ready: 'listen',
    known: [{ key: listenerKey({ kind: 'tcp', host: '127.0.0.1', port: PORT }), bound }],
    times,
    keepAliveTimeoutMs: null,
    websocketDrain: 'close',
    statistics: true,
    inspectorPort: null,
    pwd: process.cwd(),
    runtime: '/run/usr2',
  }
  const worker = start(t, process.execPath, {
    name: 'a worker',
    args: ['--require', PRELOAD, fixture('probed.cjs')],
    env: { PORT: String(PORT), [GUEST_ENV]: JSON.stringify(config), ...env },
    moreStdio: ['ipc'],
  })
  const heard: FromWorker[] = []
  const listeners = new Set<() => void>()
  const events = worker.child as NodeJS.EventEmitter
  events.on('internalMessage', (raw: unknown) => {
    const message = fromWorker(raw)
    if (!message) return
    heard.push(message)
    for (const listener of listeners) listener()
  })
  const take = <M extends FromWorker>(is: (message: FromWorker) => message is M): Promise<M> => {
    const found = new Promise<M>((resolve) => {
      const look = (): void => {
        const at = heard.findIndex(is)
        const message = heard[at]
        if (!message || !is(message)) return
        heard.splice(at, 1)
        listeners.delete(look)
        resolve(message)
      }
      listeners.add(look)
      look()
    })
    return deadline(found, 10_000, 'a message of the worker', () => worker.log())
  }
  const tell = (order: ToWorker): void => void worker.child.send({ cmd: CMD, ...order })
  let last = 0
  const probe = async (target: ProbeTarget, timeoutMs = 5_000): Promise<string | null> => {
    const id = ++last
    tell({ t: 'probe', id, kind: 'readiness', target, timeoutMs })
    const { failure } = await take(
      (message): message is Message<'probed'> => message.t === 'probed' && message.id === id,
    )
    return failure
  }
  t.teardown(() => {
    if (worker.exit === null) worker.kill('SIGKILL')
  })
  await worker.line('listening')
  return {
    process: worker,
    tell,
    probe,
    hear: <T extends FromWorker['t']>(kind: T) =>
      take((message): message is Message<T> => message.t === kind),
    async seen() {
      const failure = await probe({ ...http('/seen'), expect: [0, 0] })
      return failure?.replace('GET /seen answered 200: ', '') ?? ''
    },
  }
}

const http = (path: string, port: number | null = null): Extract<ProbeTarget, { k: 'http' }> => ({
  k: 'http',
  path,
  headers: {},
  expect: [200, 399],
  port,
})

/** Under way for as long as the worker lives. */
const neverAnswered: ToWorker = {
  t: 'probe',
  id: 0,
  kind: 'readiness',
  target: http('/never'),
  timeoutMs: 60_000,
}

const openFiles = ({ pid }: TestProcess): string[] =>
  readdirSync(`/proc/${pid}/fd`)
    .map((fd) => `${fd} ${readlinkSync(`/proc/${pid}/fd/${fd}`)}`)
    .sort()

t.test('with its gate shut a worker answers, and opens nothing for it', async (t) => {
  const worker = await startWorker(t)
  const files = openFiles(worker.process)
  t.equal(await worker.probe(http('/healthz')), null)
  t.equal(await worker.probe(http('/healthz', PORT)), null)
  t.match(await worker.probe(http('/healthz', 80)), `no HTTP server listens on port 80 in this worker`)
  t.equal(await worker.probe({ k: 'tcp', port: PORT }), null)
  t.equal(await worker.probe({ k: 'event-loop' }), null)
  t.match(await worker.probe({ k: 'message' }), 'has not said that it is ready')

  const { index } = await worker.process.line('listening')
  const hangs = worker.probe(http('/never'), 1_000)
  await worker.process.line('asked', { from: index })
  t.same(openFiles(worker.process), files, 'also while a request is under way')
  t.equal(await hangs, 'GET /never did not answer within 1 s')

  t.match(await worker.hear('counts'), { counts: { accepted: 0, requests: 0 } }, 'no traffic')
  t.equal(await worker.seen(), '3 on 3 of 127.0.0.1')
})

t.test('a blocked event loop: no answer meanwhile, and a late one is a failure', async (t) => {
  const worker = await startWorker(t)
  t.equal(await worker.probe(http('/block?ms=200'), 50), 'GET /block?ms=200 did not answer within 0.05 s')
  t.equal(await worker.probe({ k: 'event-loop' }), null)
})

t.test('message: ready(), process.send, onProbe', async (t) => {
  const asked = async (env: Record<string, string>): Promise<string | null> =>
    (await startWorker(t, env)).probe({ k: 'message' })
  t.equal(await asked({ READY: 'send' }), null)
  t.equal(await asked({ READY: 'usr2' }), null)
  t.equal(await asked({ ON_PROBE: 'yes' }), null, 'need not be ready')
  const beginning = 'onProbe of the app, asked for its readiness: '
  t.equal(await asked({ READY: 'usr2', ON_PROBE: 'no' }), `${beginning}it answered false`)
  t.equal(await asked({ ON_PROBE: 'no cache' }), `${beginning}readiness: no cache`)
})

t.test('a drain does not wait for a probe, and the worker is probed in it and after', async (t) => {
  const worker = await startWorker(t)
  worker.tell(neverAnswered)
  await worker.process.line('asked')
  worker.tell({ t: 'drain', times })
  t.match(await worker.hear('drained'), { counts: { accepted: 0, requests: 0, active: 0 }, cut: [] })
  await worker.process.line('terminating')
  t.equal(await worker.probe(http('/healthz')), null)
  t.equal(await worker.probe({ k: 'tcp', port: PORT }), null, 'the app has not closed it')
  t.equal(await worker.probe(http('/close')), null)
  t.equal(await worker.probe(http('/healthz')), 'no HTTP server listens in this worker')
  t.equal(await worker.probe({ k: 'tcp', port: PORT }), 'no server of this worker listens')
  worker.tell({ t: 'exit' })
  await worker.process.ended()
})

t.test('warm-up with the gate shut, in no count', async (t) => {
  const worker = await startWorker(t)
  const files = openFiles(worker.process)
  worker.tell({ t: 'warm-up', paths: ['/healthz', '/search'], count: 50, timeoutMs: 10_000 })
  t.match(await worker.hear('warmed'), { sent: 50, failure: null })
  t.equal(await worker.seen(), '50 on 4 of 127.0.0.1')
  t.same(openFiles(worker.process), files)
  worker.tell({ t: 'drain', times })
  t.match(await worker.hear('drained'), { counts: { accepted: 0, requests: 0 }, cut: [] })
  worker.tell({ t: 'exit' })
  await worker.process.ended()
})

t.test('it ends by itself as it does unprobed: a probe keeps nothing alive', async (t) => {
  const worker = await startWorker(t)
  worker.tell(neverAnswered)
  await worker.process.line('asked')
  t.equal(await worker.probe(http('/close')), null)
  t.match(await worker.process.ended(), { code: 0 })
})
