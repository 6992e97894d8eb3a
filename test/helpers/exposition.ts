/**
 * Reads what Prometheus would read, and is stricter: the text format 0.0.4
 * (https://prometheus.io/docs/instrumenting/exposition_formats/) and OpenMetrics 1.0.0.
 */

export interface Family {
  readonly name: string
  readonly type: string
  readonly help: string
  readonly samples: readonly Sample[]
}
export interface Sample {
  /** `usr2_requests_total{generation="7",version="1.2"}`. */
  readonly series: string
  readonly name: string
  readonly labels: Readonly<Record<string, string>>
  readonly value: number
}

const NAME = /^[a-zA-Z_][a-zA-Z0-9_]*$/
const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\"n])*",?)*)\})? (\S+)$/
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\\n]|\\[\\"n])*)"/g

/** @throws with the line, at the first thing that is not right */
export function parseExposition(text: string, format: 'text' | 'openmetrics'): readonly Family[] {
  if (!text.endsWith('\n')) throw new Error('the last line has no end')
  const lines = text.slice(0, -1).split('\n')
  if (format === 'openmetrics' && lines.pop() !== '# EOF') throw new Error('no # EOF')
  const families: (Family & { readonly samples: Sample[] })[] = []
  const seen = new Set<string>()
  for (const line of lines) {
    const wrong = (why: string): Error => new Error(`${why}: ${line}`)
    const family = families.at(-1)
    if (line === '' && format === 'text') continue
    const [, keyword, name = '', rest = ''] = /^# (HELP|TYPE) (\S+) (.+)$/.exec(line) ?? []
    if (keyword === 'HELP') {
      if (!NAME.test(name)) throw wrong('not a name')
      if (families.some((other) => other.name === name)) throw wrong('a second time')
      families.push({ name, type: '', help: rest, samples: [] })
    } else if (keyword === 'TYPE') {
      if (family?.name !== name || family.type !== '') throw wrong('a type without its help, or a second one')
      if (!['counter', 'gauge', 'histogram'].includes(rest)) throw wrong('no type')
      families.splice(-1, 1, { ...family, type: rest })
    } else {
      const sample = sampleOf(line)
      if (sample === null) throw wrong('not a sample')
      if (family === undefined || !namesOf(family, format).includes(sample.name))
        throw wrong(`not of ${family?.name}`)
      if (seen.has(sample.series)) throw wrong('a second time')
      if (!Number.isFinite(sample.value)) throw wrong('not a number')
      if (family.type !== 'gauge' && sample.value < 0) throw wrong('below 0')
      seen.add(sample.series)
      family.samples.push(sample)
    }
  }
  for (const family of families) if (family.type === 'histogram') checkHistogram(family)
  return families
}

function namesOf({ name, type }: Family, format: 'text' | 'openmetrics'): readonly string[] {
  switch (type) {
    case 'histogram':
      return [`${name}_bucket`, `${name}_sum`, `${name}_count`]
    case 'counter':
      // OpenMetrics names the family without it.
      return format === 'openmetrics' ? [`${name}_total`] : name.endsWith('_total') ? [name] : []
    default:
      return [name]
  }
}

function sampleOf(line: string): Sample | null {
  const [, name, list = '', value] = SAMPLE.exec(line) ?? []
  if (name === undefined || value === undefined) return null
  const pairs = [...list.matchAll(LABEL)].map(([, label = '', text = '']) => [label, unescape(text)] as const)
  if (new Set(pairs.map(([label]) => label)).size < pairs.length) return null
  return {
    series: line.slice(0, line.lastIndexOf(' ')),
    name,
    labels: Object.fromEntries(pairs),
    value: value === '+Inf' ? Infinity : Number(value),
  }
}

const unescape = (text: string): string => text.replace(/\\(.)/g, (_, c: string) => (c === 'n' ? '\n' : c))

function checkHistogram({ name, samples }: Family): void {
  for (const key of new Set(samples.map(({ labels }) => keyOf(labels)))) {
    const group = samples.filter(({ labels }) => keyOf(labels) === key)
    const buckets = group.filter((sample) => sample.name === `${name}_bucket`)
    const bounds = buckets.map(({ labels }) => (labels['le'] === '+Inf' ? Infinity : Number(labels['le'])))
    const rises = (numbers: readonly number[]): boolean =>
      numbers.every((n, i) => i === 0 || n >= (numbers[i - 1] ?? 0))
    const count = group.find((sample) => sample.name === `${name}_count`)?.value
    if (!rises(bounds) || new Set(bounds).size < bounds.length)
      throw new Error(`bounds of ${name}{${key}}: ${bounds}`)
    if (!rises(buckets.map(({ value }) => value))) throw new Error(`buckets of ${name}{${key}} fall`)
    if (bounds.at(-1) !== Infinity || buckets.at(-1)?.value !== count)
      throw new Error(`${name}{${key}}: no sum of all`)
  }
}

const keyOf = ({ le: _, ...labels }: Sample['labels']): string => JSON.stringify(labels)
