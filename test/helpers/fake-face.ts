/** A master's face without a master: keeps what it was asked, and answers when the test says so. */
import type {
  Asker,
  Drained,
  Face,
  Progress,
  ReloadRequest,
  RollbackRequest,
  RolloutStatus,
  Status,
  UpgradeRequest,
  Verdict,
} from '../../src/master/face.ts'
import type { Order } from '../../src/rollout/state.ts'
import { ledgerOf, NO_COUNTS } from '../../src/master/figures/ledger.ts'

export const STATUS: Status = {
  name: 'shop',
  pid: 4242,
  usr2: '0.1.0',
  usr2OnDisk: null,
  node: 'v20.20.2',
  uptimeMs: 11_520_000,
  state: 'steady',
  slots: 2,
  ready: 2,
  listeners: [{ key: 'tcp:[::]:3000', accepting: 2 }],
  generations: [
    {
      id: 8,
      role: 'current',
      version: '42',
      entry: '/srv/releases/42/server.js',
      cwd: '/srv/releases/42',
      node: '/usr/bin/node',
      workers: [worker(0, 4243), worker(1, 4244)],
    },
  ],
  vacancies: [],
  waitsFor: null,
  lastVerdict: null,
  rollout: null,
  parked: null,
  bootable: [],
}

function worker(slot: number, pid: number): Status['generations'][number]['workers'][number] {
  return {
    slot,
    generation: 8,
    pid,
    phase: 'ready',
    uptimeMs: 185_000,
    open: ['tcp:[::]:3000'],
    connections: 12,
    requests: 1200,
    active: 1,
    ledger: ledgerOf({ ...NO_COUNTS, accepted: 13, earlier: 1, open: 12 }, null, 'here'),
    holding: null,
    rssBytes: 96 * 1024 * 1024,
    probes: [],
    tired: null,
    waitsFor: null,
  }
}

/** Generation 9 takes over from 8 as a canary: 1 of 5 workers, and judged. */
export const ROLLOUT: RolloutStatus = {
  reload: 'r7',
  kind: 'reload',
  current: 8,
  candidate: 9,
  sinceMs: 185_000,
  steps: [
    { text: '20 % of new connections (1 of 5 workers, 10 % asked for)', state: 'done' },
    { text: 'analyse 5 times 1 min: errorRate < 1%, p99 < 1.5x, loopDelay < 50ms', state: 'now' },
    { text: '40 % of new connections (2 of 5 workers, 30 % asked for)', state: 'to-come' },
    { text: 'hold 5 min', state: 'to-come' },
    { text: '100 % of new connections (4 of 4 workers)', state: 'to-come' },
  ],
  waitsFor: 'for the next measurement (at most 41.0 s more)',
  paused: null,
  accepting: { current: 4, candidate: 1 },
  analysis: {
    taken: 3,
    of: 5,
    failed: 1,
    failureLimit: 2,
    findings: [
      { limit: 'errorRate < 1%', candidate: '0.2 %', current: '0.1 %', holds: true },
      { limit: 'p99 < 1.5x', candidate: '212 ms', current: '120 ms', holds: false },
      { limit: 'loopDelay < 50ms', candidate: '-', current: '4 ms', holds: null },
    ],
  },
}

export const ROLLING_OUT: Status = {
  ...STATUS,
  state: 'rolling-out',
  slots: 4,
  ready: 4,
  rollout: ROLLOUT,
  parked: { generation: 7, leftMs: 480_000 },
  bootable: [7, 6, 5],
}

export const PROMOTED: Verdict = {
  kind: 'reload',
  outcome: 'promoted',
  reload: 'r1',
  current: 8,
  reasons: [],
  tookMs: 2100,
  text: 'generation 7 -> 8 in 2.1 s: /srv/releases/41 -> /srv/releases/42',
}

export const ROLLED_BACK: Verdict = {
  kind: 'reload',
  outcome: 'rolled-back',
  reload: 'r2',
  current: 7,
  reasons: ['Worker 0 of generation 8 died before it was ready: Error: no database\n    at server.js:3:9'],
  tookMs: 300,
  text: 'generation 8 rolled back after 0.3 s; generation 7 goes on',
}

export const DRAINED: Drained = {
  generation: 7,
  ledger: ledgerOf({ ...NO_COUNTS, accepted: 100, earlier: 100 }, null, 'left'),
  tookMs: 1500,
  text: 'generation 7 drained in 1.5 s: 100 connections, 0 cut',
}

export function progress(text: string): Progress {
  return { reload: 'r1', generation: 8, text }
}

export interface Asked<Request> {
  readonly request: Request
  readonly asker: Asker
}

/** What happened to a face, in order: `reload`, `rollback`, `abort REASON`, `detach`, `order K`, `stop graceful`. */
export class FakeFace implements Face {
  readonly calls: string[] = []
  readonly reloads: Asked<ReloadRequest>[] = []
  readonly rollbacks: Asked<RollbackRequest>[] = []
  readonly upgrades: Asked<UpgradeRequest>[] = []
  readonly orders: Order[] = []
  readonly stops: (() => void)[] = []
  current: Status
  /** Called at every reload, inside of it: may answer at once. So are the others. */
  onReload: (asked: Asked<ReloadRequest>) => void = () => {}
  onRollback: (asked: Asked<RollbackRequest>) => void = () => {}
  onUpgrade: (asked: Asked<UpgradeRequest>) => void = () => {}
  onAbort: (asked: Asked<unknown>, reason: string) => void = () => {}
  onOrder: (what: Order, done: (problem: string | null) => void) => void = (_, done) => done(null)
  onStop: (done: () => void) => void = () => {}
  #waiting: { readonly arrived: () => boolean; readonly resolve: () => void }[] = []

  constructor(current: Status = STATUS) {
    this.current = current
  }

  status(): Status {
    return this.current
  }

  reload(request: ReloadRequest, asker: Asker): ReturnType<Face['reload']> {
    const asked = { request, asker }
    this.reloads.push(asked)
    this.#note('reload')
    this.onReload(asked)
    return this.#handle(asked)
  }

  rollback(request: RollbackRequest, asker: Asker): ReturnType<Face['rollback']> {
    const asked = { request, asker }
    this.rollbacks.push(asked)
    this.#note('rollback')
    this.onRollback(asked)
    return this.#handle(asked)
  }

  upgrade(request: UpgradeRequest, asker: Asker): ReturnType<Face['upgrade']> {
    const asked = { request, asker }
    this.upgrades.push(asked)
    this.#note('upgrade')
    this.onUpgrade(asked)
    return this.#handle(asked)
  }

  order(what: Order, done: (problem: string | null) => void): void {
    this.orders.push(what)
    this.#note(`order ${what.k}`)
    this.onOrder(what, done)
  }

  stop(how: 'graceful' | 'now', done: () => void): void {
    this.stops.push(done)
    this.#note(`stop ${how}`)
    this.onStop(done)
  }

  /** Until `times` calls were made that begin with `wanted`. */
  async called(wanted: string, times = 1): Promise<void> {
    const arrived = () => this.calls.filter((call) => call.startsWith(wanted)).length >= times
    if (arrived()) return
    await new Promise<void>((resolve) => this.#waiting.push({ arrived, resolve }))
  }

  #handle(asked: Asked<unknown>): ReturnType<Face['reload']> {
    return {
      abort: (reason) => {
        this.#note(`abort ${reason}`)
        this.onAbort(asked, reason)
      },
      detach: () => this.#note('detach'),
    }
  }

  #note(call: string): void {
    this.calls.push(call)
    for (const { arrived, resolve } of this.#waiting) if (arrived()) resolve()
    this.#waiting = this.#waiting.filter(({ arrived }) => !arrived())
  }
}
