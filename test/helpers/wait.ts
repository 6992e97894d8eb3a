/** Waiting with an end. A wait that gives up says what for, and what the processes said meanwhile. */
import { setTimeout as sleep } from 'node:timers/promises'

/** Settles as `promise` does, or rejects after `ms` with what was waited for and the logs of that moment. */
export async function deadline<T>(
  promise: Promise<T>,
  ms: number,
  what: string,
  logs?: () => string,
): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(gaveUp(ms, what, logs))), ms)
  })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}

/**
 * The first truthy value of `fact`, asked every 10 ms. Only for facts that no event tells (/proc, a status).
 * What `fact` throws ends the wait.
 */
export async function until<T>(
  fact: () => T | Promise<T>,
  {
    timeoutMs,
    what,
    logs,
  }: { readonly timeoutMs: number; readonly what: string; readonly logs?: () => string },
): Promise<Exclude<T, false | 0 | '' | null | undefined>> {
  const end = performance.now() + timeoutMs
  for (;;) {
    const value = await fact()
    if (value) return value as Exclude<T, false | 0 | '' | null | undefined>
    if (performance.now() > end) throw new Error(gaveUp(timeoutMs, what, logs))
    await sleep(10)
  }
}

function gaveUp(ms: number, what: string, logs?: () => string): string {
  const said = logs?.().trim()
  return `gave up after ${ms} ms waiting for ${what}${said ? `\n${said}` : ''}`
}
