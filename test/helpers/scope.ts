/**
 * What a test holds of the outside world, given back in one order: first the processes (they may still write files),
 * then ports, then directories. One teardown for each test: tap runs teardowns last in first out and, after one that
 * throws, none of the rest.
 */
import { randomUUID } from 'node:crypto'
import type { Test } from 'tap'
import { killToken } from './processes.ts'

/**
 * The variable by which a process, and all that it starts, belongs to a test: `TEST.3` for the third process of a test,
 * so that what one of them leaves is told from its neighbours. Not named USR2_…: those do not reach a worker.
 */
export const TOKEN_VARIABLE = 'TEST_TOKEN'

/** What helpers need of a `t`; tap's own top level `t` is one, too. */
export type TestLike = Pick<Test, 'teardown' | 'passing' | 'fail' | 'equal' | 'same'>

export interface Watched {
  readonly name: string
  readonly pid: number
  /** It has ended, and not because this scope killed it. */
  endedByItself(): boolean
  log(): string
}

export class Scope {
  readonly token = randomUUID()
  readonly #watched: Watched[] = []
  readonly #last: (() => unknown)[] = []

  nextToken(): string {
    return `${this.token}.${this.#watched.length + 1}`
  }

  watch(process: Watched): void {
    this.#watched.push(process)
  }

  /** To be done when no process of the test is left. */
  finally(giveBack: () => unknown): void {
    this.#last.unshift(giveBack)
  }

  /** The logs of every process of this test. */
  logs(): string {
    return this.#watched.map((process) => process.log()).join('\n')
  }

  /** @throws a sentence that names what a clean stop left behind. */
  async end(passing: boolean): Promise<void> {
    const cleanlyStopped =
      this.#watched.length > 0 && this.#watched.every((process) => process.endedByItself())
    const killed = await killToken(this.token)
    for (const giveBack of this.#last) await giveBack()
    const left = cleanlyStopped && killed.length > 0
    if (!passing || left) console.error(this.logs())
    if (left) {
      const names = killed.map(({ pid, command }) => `${pid} (${command})`).join(', ')
      throw new Error(`every process that the test started had ended, but these were left: ${names}`)
    }
  }
}

const scopes = new WeakMap<TestLike, Scope>()

export function scopeOf(t: TestLike): Scope {
  const known = scopes.get(t)
  if (known !== undefined) return known
  const scope = new Scope()
  scopes.set(t, scope)
  t.teardown(() => scope.end(t.passing()))
  return scope
}
