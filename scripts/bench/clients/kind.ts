/** What one kind of client counts. */

export interface Detail {
  readonly failure: string
  readonly text: string
  /** Epoch milliseconds. */
  readonly atMs: number
}

export interface KindCount {
  readonly requests: number
  readonly failed: number
  readonly failures: Readonly<Record<string, number>>
  /** Of each class of failure the first few. */
  readonly details: readonly Detail[]
}

const DETAILS_PER_CLASS = 10

/** Why a request failed: its class, by the words of src/drill/tally.ts where they fit, and what was seen. */
export class Failure extends Error {
  readonly failure: string

  constructor(failure: string, text: string) {
    super(text)
    this.failure = failure
  }
}

export class Kind {
  readonly name: string
  #requests = 0
  readonly #failures = new Map<string, number>()
  readonly #details: Detail[] = []

  constructor(name: string) {
    this.name = name
  }

  ok(): void {
    this.#requests++
  }

  fail(error: unknown): void {
    this.#requests++
    const { failure, text } =
      error instanceof Failure
        ? { failure: error.failure, text: error.message }
        : { failure: 'local', text: String(error) }
    const count = (this.#failures.get(failure) ?? 0) + 1
    this.#failures.set(failure, count)
    if (count <= DETAILS_PER_CLASS) this.#details.push({ failure, text, atMs: Date.now() })
  }

  count(): KindCount {
    const failed = [...this.#failures.values()].reduce((sum, count) => sum + count, 0)
    const failures = Object.fromEntries(this.#failures)
    return { requests: this.#requests, failed, failures, details: this.#details }
  }
}
