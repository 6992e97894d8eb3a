/** What waits until the workers of a generation accept no more: verdicts, and the end of a handover. */
import { roleOf } from '../../rollout/questions.ts'
import type { GenerationId, State, WorkerId } from '../../rollout/state.ts'
import type { WorkerHandle } from './worker-handle.ts'

/** How long at most: a worker whose event loop is blocked does not accept either. */
const WITHDRAWAL_TIMEOUT_MS = 2_000

export interface WithdrawalsParts {
  readonly handles: ReadonlyMap<WorkerId, WorkerHandle>
  state(): State
}

interface Withdrawal {
  readonly accepting: Set<WorkerId>
  readonly then: () => void
  readonly timer: NodeJS.Timeout
}

export class Withdrawals {
  private readonly parts: WithdrawalsParts
  private readonly waiting = new Set<Withdrawal>()

  constructor(parts: WithdrawalsParts) {
    this.parts = parts
  }

  /**
   * Calls `then` when nobody of that generation accepts, at once where nobody does.
   *
   * Whoever is told "promoted" asks the new version for something at once, and a busy old worker may not have read yet
   * that it is to accept no more (seen: 4 of 40 connections made right after a verdict, on a loaded machine).
   */
  when(generation: GenerationId | null, then: () => void): void {
    const accepting = [...this.parts.handles.values()].filter(
      (handle) => handle.generation === generation && this.isToldToStop(handle),
    )
    if (accepting.length === 0) return then()
    const withdrawal: Withdrawal = {
      accepting: new Set(accepting.map(({ id }) => id)),
      then,
      timer: setTimeout(() => this.deliver(withdrawal), WITHDRAWAL_TIMEOUT_MS),
    }
    this.waiting.add(withdrawal)
  }

  /** That worker accepts no more, or has ended. */
  withdrawn(worker: WorkerId): void {
    for (const withdrawal of [...this.waiting]) {
      if (withdrawal.accepting.delete(worker) && withdrawal.accepting.size === 0) this.deliver(withdrawal)
    }
  }

  /** A listener was withdrawn from that worker, which stays: it counts when it has lost the last. */
  withdrew(worker: WorkerId): void {
    if (!this.isWithdrawing(worker)) this.withdrawn(worker)
  }

  /**
   * It will say so when it accepts no more: as it begins to drain, or of each listener where it stays, parked. A worker
   * that has said so before says nothing now, and nobody is to wait for it.
   */
  private isToldToStop({ id, saidDraining }: WorkerHandle): boolean {
    const { workers, top } = this.parts.state()
    const worker = workers.get(id)
    if (worker?.phase.k !== 'ready') return !saidDraining
    return roleOf(top, worker.generation) !== 'parked' || this.isWithdrawing(id)
  }

  private isWithdrawing(worker: WorkerId): boolean {
    const claims = this.parts.state().workers.get(worker)?.claims.values() ?? []
    return [...claims].some(({ k }) => k === 'withdrawing')
  }

  private deliver(withdrawal: Withdrawal): void {
    clearTimeout(withdrawal.timer)
    if (this.waiting.delete(withdrawal)) withdrawal.then()
  }
}
