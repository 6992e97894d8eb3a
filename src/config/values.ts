/** How single values of the configuration are written: times, sizes, JSON, and names that are nearly right. Pure. */

/** `setTimeout` fires at once for anything longer (Node doc, "timers"): 24 days and 20 hours. */
export const MAX_TIME_MS = 2 ** 31 - 1

export const DURATION = /^(?:0|(\d+)(ms|s|m|h))$/
const UNIT_MS: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 }

/** `500ms`, `30s`, `5m`, `1h` or `0` in milliseconds; undefined for any other text. */
export function parseDuration(text: string): number | undefined {
  const match = DURATION.exec(text)
  if (match === null) return undefined
  return Number(match[1] ?? 0) * (UNIT_MS[match[2] ?? 'ms'] ?? 1)
}

/** `512`, `64K`, `512M`, `2G`, `1T` in bytes, K being 1024 as systemd counts; undefined for any other text. */
export function parseSize(text: string): number | undefined {
  const match = /^(\d+)([KMGT]?)$/.exec(text)
  if (match === null) return undefined
  const bytes = Number(match[1]) * 1024 ** ' KMGT'.indexOf(match[2] || ' ')
  return Number.isSafeInteger(bytes) ? bytes : undefined
}

/**
 * The one of `known` that `word` was probably meant to be, or undefined when none is near. Case and dashes do not
 * count (`drainTimeout` for `drain-timeout`), a beginning is near (`log` for `log-level`).
 */
export function nearest<T extends string>(word: string, known: Iterable<T>): T | undefined {
  const bare = (text: string) => text.toLowerCase().replace(/[^a-z0-9]/g, '')
  const given = bare(word)
  let best: { readonly name: T; readonly distance: number } | undefined
  for (const name of known) {
    const begins = given.length >= 3 && bare(name).startsWith(given)
    const distance = begins ? 1 : editDistance(given, bare(name))
    if (distance < (best?.distance ?? Math.max(2, given.length / 3) + 1)) best = { name, distance }
  }
  return best?.name
}

/** Insertions, deletions, substitutions and swaps of neighbours (optimal string alignment). */
function editDistance(a: string, b: string): number {
  const rows: number[][] = [Array.from({ length: b.length + 1 }, (_, j) => j)]
  const cell = (i: number, j: number) => rows[i]?.[j] ?? Infinity
  for (let i = 1; i <= a.length; i++) {
    const row = [i]
    rows.push(row)
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1
      row[j] = Math.min(cell(i - 1, j) + 1, cell(i, j - 1) + 1, cell(i - 1, j - 1) + same)
      const swapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]
      if (swapped) row[j] = Math.min(cell(i, j), cell(i - 2, j - 2) + 1)
    }
  }
  return cell(a.length, b.length)
}

/** Where JSON is broken: 1-based, with what stands there and what JSON allows there. */
export interface JsonFault {
  readonly line: number
  readonly column: number
  readonly expected: string
  readonly found: string
}

/** `JSON.parse` that says where and why it fails. A byte order mark is skipped. */
export function parseJson(
  source: string,
): { readonly ok: true; readonly value: unknown } | { readonly ok: false; readonly fault: JsonFault } {
  const text = source.replace(/^\uFEFF/, '')
  try {
    return { ok: true, value: JSON.parse(text) as unknown }
  } catch {
    return { ok: false, fault: jsonFault(text) }
  }
}

const STRING = /"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"/y
const SCALAR = new RegExp(
  `${STRING.source}|(?:-?(?:0|[1-9]\\d*)(?:\\.\\d+)?(?:[eE][+-]?\\d+)?|true|false|null)(?![\\w.+-])`,
  'y',
)

/**
 * The grammar of RFC 8259, walked until it breaks. V8's own message has line and column only since Node 22, and
 * for an unexpected token (`tru`) has no place on any Node.
 */
function jsonFault(text: string): JsonFault {
  let at = 0
  const eat = (token: RegExp | string): boolean => {
    while (' \t\r\n'.includes(text[at] ?? '-')) at++
    let length = 0
    if (typeof token !== 'string') {
      token.lastIndex = at
      length = token.exec(text)?.[0].length ?? 0
    } else if (text.startsWith(token, at)) length = token.length
    at += length
    return length > 0
  }
  // Each gives what was expected at the first fault, or undefined when all was well.
  const members = (item: () => string | undefined, end: string): string | undefined => {
    if (eat(end)) return undefined
    do {
      const wrong = item()
      if (wrong !== undefined) return wrong
    } while (eat(','))
    return eat(end) ? undefined : `"," or "${end}"`
  }
  const member = () => (!eat(STRING) ? 'a key in double quotes' : !eat(':') ? '":"' : value())
  const value = (): string | undefined => {
    if (eat('{')) return members(member, '}')
    if (eat('[')) return members(value, ']')
    return eat(SCALAR) ? undefined : 'a value'
  }
  const expected = value() ?? 'nothing more'
  eat('') // to the next thing that is not white space
  const before = text.slice(0, at).split('\n')
  const rest = /^[^\r\n]{0,20}/.exec(text.slice(at))?.[0] ?? ''
  return {
    line: before.length,
    column: (before.at(-1)?.length ?? 0) + 1,
    expected,
    found:
      at >= text.length ? 'the end of the file' : JSON.stringify(rest).slice(1, -1).replaceAll('\\"', '"'),
  }
}
