/** A master's face without a master: keeps what it was asked, and answers when the test says so. */
import type { Asker, Drained, Face, Progress, ReloadRequest, Status, Verdict } from '../../src/master/face.ts'
import { ledgerOf, NO_COUNTS } from '../../src/master/ledger.ts'

export const STATUS: Status = {
  name: 'shop',
  pid: 4242,
  usr2: '0.1.0',
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
    waitsFor: null,
  }
}

export const PROMOTED: Verdict = {
  outcome: 'promoted',
  reload: 'r1',
  current: 8,
  reasons: [],
  tookMs: 2100,
  text: 'generation 7 -> 8 in 2.1 s: /srv/releases/41 -> /srv/releases/42',
}

export const ROLLED_BACK: Verdict = {
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

export interface AskedReload {
  readonly request: ReloadRequest
  readonly asker: Asker
}

/** What happened to a face, in order: `reload`, `abort REASON`, `detach`, `stop graceful`. */
export class FakeFace implements Face {
  readonly calls: string[] = []
  readonly reloads: AskedReload[] = []
  readonly stops: (() => void)[] = []
  current: Status
  /** Called at every reload, inside of it: may answer at once. */
  onReload: (asked: AskedReload) => void = () => {}
  onAbort: (asked: AskedReload, reason: string) => void = () => {}
  onStop: (done: () => void) => void = () => {}
  #waiting: { readonly wanted: string; readonly resolve: () => void }[] = []

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
    return {
      abort: (reason) => {
        this.#note(`abort ${reason}`)
        this.onAbort(asked, reason)
      },
      detach: () => this.#note('detach'),
    }
  }

  stop(how: 'graceful' | 'now', done: () => void): void {
    this.stops.push(done)
    this.#note(`stop ${how}`)
    this.onStop(done)
  }

  /** Until a call that begins with `wanted` was made. */
  async called(wanted: string): Promise<void> {
    if (this.calls.some((call) => call.startsWith(wanted))) return
    await new Promise<void>((resolve) => this.#waiting.push({ wanted, resolve }))
  }

  #note(call: string): void {
    this.calls.push(call)
    for (const { wanted, resolve } of this.#waiting) if (call.startsWith(wanted)) resolve()
    this.#waiting = this.#waiting.filter(({ wanted }) => !call.startsWith(wanted))
  }
}
