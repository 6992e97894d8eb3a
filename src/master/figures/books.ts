/** What the master has counted since its start: figures for an analysis, and sums for metrics. Decides nothing. */
import type { Statistics } from '../../protocol.ts'
import type { Figures, GenerationId, Ms, Verdict } from '../../rollout/state.ts'
import { sumOf } from './ledger.ts'
import type { Ledger } from './ledger.ts'
import { StatisticsBook } from './statistics.ts'
import { NO_VERDICTS, bounded } from './totals.ts'
import type { GenerationTotals, Verdicts } from './totals.ts'
import type { WorkerHandle } from '../workers/worker-handle.ts'

interface Account {
  readonly version: string
  readonly ledger: Ledger
  readonly restarts: number
}

export class Books {
  verdicts: Verdicts = NO_VERDICTS
  private readonly statistics = new StatisticsBook()
  /** Of workers that have ended, by generation that has not. */
  private readonly accounts = new Map<GenerationId, Account>()
  /** Generations that have ended: a counter that a scrape has seen never gets less. */
  private closed: readonly GenerationTotals[] = []

  told({ id, generation }: WorkerHandle, statistics: Statistics, now: Ms): void {
    this.statistics.told(id, generation, statistics, now)
  }

  probed(generation: GenerationId, passed: boolean, now: Ms): void {
    this.statistics.probed(generation, passed, now)
  }

  /** @param crashed it was not asked to */
  exited({ id, generation, facts, ledger }: WorkerHandle, crashed: boolean, now: Ms): void {
    this.statistics.exited(id, generation, crashed, now)
    const before = this.accounts.get(generation)
    this.accounts.set(generation, {
      version: facts.version,
      ledger: sumOf([before?.ledger, ledger]),
      restarts: (before?.restarts ?? 0) + (crashed ? 1 : 0),
    })
  }

  judged({ kind, outcome }: Verdict): void {
    const of = this.verdicts[kind]
    this.verdicts = { ...this.verdicts, [kind]: { ...of, [outcome]: of[outcome] + 1 } }
  }

  figuresOver(generation: GenerationId, ms: Ms, now: Ms): Figures {
    return this.statistics.figuresOver(generation, ms, now)
  }

  /** Its last worker has gone. */
  ended(generation: GenerationId): void {
    this.closed = bounded([...this.closed, this.totalsOf(generation, [])])
    this.accounts.delete(generation)
  }

  totals(handles: Iterable<WorkerHandle>): readonly GenerationTotals[] {
    const live = [...handles]
    const ids = new Set([...this.accounts.keys(), ...live.map(({ generation }) => generation)])
    return bounded([...this.closed, ...[...ids].map((id) => this.totalsOf(id, live))])
  }

  private totalsOf(generation: GenerationId, handles: readonly WorkerHandle[]): GenerationTotals {
    const account = this.accounts.get(generation)
    const { requests, errors, latency, totalMs, crashes } =
      this.statistics.totals().get(generation) ?? NOTHING
    const here = handles.filter((handle) => handle.generation === generation)
    return {
      ...{ generation, requests, errors, latency, totalMs, crashes },
      version: here[0]?.facts.version ?? account?.version ?? '',
      restarts: account?.restarts ?? 0,
      ledger: sumOf([account?.ledger, ...here.map(({ ledger }) => ledger)]),
    }
  }
}

const NOTHING = { requests: 0, errors: 0, latency: [], totalMs: 0, crashes: 0 }
