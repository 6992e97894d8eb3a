/**
 * So many connections at once and no more, where one more takes the place of whoever can best be spared.
 *
 * To turn the newcomer away instead would let whoever may connect keep all others out for ever, with connections on which
 * it says nothing: the operator from `usr2 status`, the kubelet from /livez. Node has no SO_PEERCRED: whose connection it
 * is cannot count.
 */
export class Crowd<Member> {
  readonly #limit: number
  readonly #worthOf: (member: Member) => number
  /** In the order in which they came. */
  readonly #members = new Set<Member>()

  /** @param worthOf the least goes first, of equals the oldest; Infinity: it cannot be spared */
  constructor(limit: number, worthOf: (member: Member) => number) {
    this.#limit = limit
    this.#worthOf = worthOf
  }

  get size(): number {
    return this.#members.size
  }

  [Symbol.iterator](): Iterator<Member> {
    return this.#members.values()
  }

  /** @returns false: it is full of those that cannot be spared. Otherwise `newcomer` is in, and `sendAway` was told who is not. */
  enter(newcomer: Member, sendAway: (member: Member) => void): boolean {
    if (this.#members.size >= this.#limit) {
      const spared = this.#leastWorth()
      if (spared === null) return false
      this.#members.delete(spared)
      sendAway(spared)
    }
    this.#members.add(newcomer)
    return true
  }

  leave(member: Member): void {
    this.#members.delete(member)
  }

  #leastWorth(): Member | null {
    let least: Member | null = null
    let worth = Infinity
    for (const member of this.#members) {
      const its = this.#worthOf(member)
      if (its < worth) [least, worth] = [member, its]
    }
    return least
  }
}
