/**
 * Versions that were rolled back, so that the same content deployed again is named before it does harm again. It is not
 * refused: what it failed on may have been a database, and may be mended.
 */
import type { Verdict } from '../../rollout/state.ts'
import type { Pinned } from './generation.ts'

const MAX_BANS = 20

interface Ban {
  readonly generation: number
  readonly at: Date
  readonly why: string
}

export class Bans {
  private readonly byFingerprint = new Map<string, Ban>()

  judged(verdict: Verdict, pinned: ReadonlyMap<number, Pinned>, at: Date): void {
    const { outcome, kind, other, reasons } = verdict
    // The candidate of a reload, or what a rollback led away from. An abort is a person's word, and no verdict on it.
    const isBad = kind === 'reload' ? outcome === 'rolled-back' : outcome === 'promoted'
    const bad = pinned.get(other ?? -1)
    if (!isBad || other === null || !bad) return
    this.byFingerprint.delete(bad.fingerprint)
    const why = reasons.join('; ') || 'the operator asked for it'
    this.byFingerprint.set(bad.fingerprint, { generation: other, at, why })
    for (const oldest of this.byFingerprint.keys()) {
      if (this.byFingerprint.size <= MAX_BANS) break
      this.byFingerprint.delete(oldest)
    }
  }

  /** A sentence about this version if it was rolled back before, else null. */
  of({ fingerprint, entry }: Pinned): string | null {
    const ban = this.byFingerprint.get(fingerprint)
    if (!ban) return null
    const { generation, at, why } = ban
    return `this version of ${entry} was rolled back at ${at.toISOString()}, as generation ${generation}: ${why}`
  }
}
