/** A bucket that fills at a rate: what one who is not trusted may cost us. Pure; `now` is monotonic milliseconds. */

export interface AllowanceRates {
  /** So much at once. */
  readonly atOnce: number
  /** And so much for good. */
  readonly perSecond: number
}

export class Allowance {
  private readonly rates: AllowanceRates
  private left: number
  private at: number

  constructor(rates: AllowanceRates, now: number) {
    this.rates = rates
    this.left = rates.atOnce
    this.at = now
  }

  /** Takes `cost`, and gives whether there was as much. What there was not is owed to nobody. */
  take(cost: number, now: number): boolean {
    const { atOnce, perSecond } = this.rates
    const refilled = Math.min(atOnce, this.left + ((now - this.at) / 1_000) * perSecond)
    // What was given beyond that is not lost.
    this.left = Math.max(this.left, refilled)
    this.at = now
    if (cost > this.left) return false
    this.left -= cost
    return true
  }

  /** So much more, for what was asked of it. */
  give(more: number): void {
    this.left += more
  }
}
