/**
 * What the control socket, the CLI and the service manager see of a running master. Types only: the supervisor
 * implements them, `control.ts` carries them over the socket, `cli.ts` prints them.
 */

import type { Holding } from '../protocol.ts'
import type { Order } from '../rollout/state.ts'
import type { Ledger } from './figures/ledger.ts'

export type Wait = 'promoted' | 'drained'

export interface ReloadRequest {
  /** Listener keys that may go: the new generation need not listen on them. */
  readonly drop: readonly string[]
  readonly wait: Wait
}

export interface RollbackRequest {
  /** A generation that was current before; null: the one before the current one. */
  readonly to: number | null
  readonly wait: Wait
}

export interface UpgradeRequest {
  /** An absolute path: the Node.js that runs the new master; null: the one that a restart would run. */
  readonly node: string | null
}

/** One line of what a rollout is doing, for people, with the facts beside it for programs. */
export interface Progress {
  /** The id that every log line of this rollout carries. */
  readonly reload: string
  readonly generation: number | null
  /** A sentence without a full stop: `generation 8: 2 of 4 workers ready`. */
  readonly text: string
}

export interface Verdict {
  /** `upgrade`: of the master itself; `promoted` then means that the new master has taken over. */
  readonly kind: 'reload' | 'rollback' | 'upgrade'
  /** Of a rollback `promoted`: the generation that was asked for answers again. `refused`: nothing was started. `overtaken`: a stop, or an abort by the one who asked, ended it. */
  readonly outcome: 'promoted' | 'rolled-back' | 'refused' | 'overtaken'
  readonly reload: string
  /** The generation that answers now. */
  readonly current: number | null
  /** Why, in whole sentences: the worker's own words where it gave some. One entry per complaint. */
  readonly reasons: readonly string[]
  /** From the request to the verdict. */
  readonly tookMs: number
  /** One line: `generation 7 -> 8 in 2.1 s: /srv/releases/41 -> /srv/releases/42`. */
  readonly text: string
}

/** After `--wait drained`: how the old generation ended. */
export interface Drained {
  readonly generation: number
  readonly ledger: Ledger
  readonly tookMs: number
  readonly text: string
}

export interface WorkerStatus {
  readonly slot: number
  readonly generation: number
  readonly pid: number | null
  readonly phase: 'booting' | 'ready' | 'draining' | 'terminating' | 'killed'
  readonly uptimeMs: number
  /** Listeners it accepts on. */
  readonly open: readonly string[]
  readonly connections: number
  readonly requests: number
  readonly active: number
  readonly ledger: Ledger
  /** While it leaves: what it waits for, as it last said, and how long ago that was. */
  readonly holding: (Holding & { readonly saidMsAgo: number }) | null
  readonly rssBytes: number | null
  /** Probes that have begun. */
  readonly probes: readonly ProbeStatus[]
  /** Why it is to be replaced, as a phrase, or null. */
  readonly tired: string | null
  /** What this worker waits for, as a phrase, or null. */
  readonly waitsFor: string | null
}

export interface ProbeStatus {
  readonly probe: 'startup' | 'readiness' | 'liveness'
  readonly standing: 'unknown' | 'passing' | 'failing'
  /** Of the last failure, in words; empty where there was none. */
  readonly why: string
}

/** A rollout as a person would draw it: what was done, where it is, what is to come. */
export interface RolloutStatus {
  readonly reload: string
  readonly kind: 'reload' | 'rollback'
  readonly current: number
  readonly candidate: number | null
  readonly sinceMs: number
  /** `10 % of connections: 1 of 5 workers`, `hold 5 min`, … */
  readonly steps: readonly { readonly text: string; readonly state: 'done' | 'now' | 'to-come' }[]
  /** What it waits for, as a phrase: `for the end of this hold (at most 3 min more)`. */
  readonly waitsFor: string
  /** Why it is paused, or null. */
  readonly paused: string | null
  /** Workers that accept now, of each side. */
  readonly accepting: { readonly current: number; readonly candidate: number }
  readonly analysis: AnalysisStatus | null
}

export interface AnalysisStatus {
  readonly taken: number
  readonly of: number
  readonly failed: number
  readonly failureLimit: number
  /** Of the last measurement; empty before the first. */
  readonly findings: readonly FindingStatus[]
}

export interface FindingStatus {
  /** `p99 < 1.5x`. */
  readonly limit: string
  /** `212 ms`, or `-` where nothing is known. */
  readonly candidate: string
  readonly current: string
  readonly holds: boolean | null
}

export interface GenerationStatus {
  readonly id: number
  readonly role: 'current' | 'candidate' | 'parked' | 'old'
  readonly version: string
  readonly entry: string
  readonly cwd: string
  readonly node: string
  readonly workers: readonly WorkerStatus[]
}

export interface Status {
  readonly name: string
  readonly pid: number
  readonly usr2: string
  /** The version that `usr2 upgrade` would run, where it is another one; null: the same, or nobody knows. */
  readonly usr2OnDisk: string | null
  readonly node: string
  readonly uptimeMs: number
  readonly state: 'starting' | 'steady' | 'rolling-out' | 'stopping'
  /** Slots wanted, and slots of the current generation whose worker accepts. */
  readonly slots: number
  readonly ready: number
  readonly listeners: readonly { readonly key: string; readonly accepting: number }[]
  readonly generations: readonly GenerationStatus[]
  /** Slots whose worker died, and when they are tried again. */
  readonly vacancies: readonly {
    readonly slot: number
    readonly deaths: number
    readonly retryInMs: number
  }[]
  /** What the master waits for, as a phrase, or null. */
  readonly waitsFor: string | null
  readonly lastVerdict: Verdict | null
  readonly rollout: RolloutStatus | null
  /** The generation that an instant rollback would go to, and for how long yet. */
  readonly parked: { readonly generation: number; readonly leftMs: number } | null
  /** Generations whose version a rollback can boot again, the latest first. */
  readonly bootable: readonly number[]
}

export interface Asker {
  progress(progress: Progress): void
  verdict(verdict: Verdict): void
  /** Only with `wait: 'drained'`, once, after a `promoted` verdict. */
  drained(drained: Drained): void
}

export interface Face {
  status(): Status
  /** Gives a handle by which the asker withdraws its request: `abort` ends the rollout when nobody else asked. */
  reload(request: ReloadRequest, asker: Asker): { abort(reason: string): void; detach(): void }
  /** The same for the way back. */
  rollback(request: RollbackRequest, asker: Asker): { abort(reason: string): void; detach(): void }
  /** Replaces the master itself; the same handle. */
  upgrade(request: UpgradeRequest, asker: Asker): { abort(reason: string): void; detach(): void }
  /** `done`: at once, with a sentence why nothing was changed, or null. */
  order(what: Order, done: (problem: string | null) => void): void
  /** `done` is called when no worker is left, right before the master exits. */
  stop(how: 'graceful' | 'now', done: () => void): void
}
