/**
 * A drill as a picture: one SVG file that needs nothing else. Above, throughput by generation, stacked; below, latency
 * over the same time. A dark band is a reload (signal to promotion), a light one its drain.
 *
 * Colours are set twice: as attributes, for whatever draws SVG without style sheets, and by a style sheet that a
 * browser's dark mode changes. The background is our own, so that neither black nor white ends up on itself.
 */
import type { DrillResult, ReloadResult } from './options.ts'
import type { Slice } from './result.ts'

const WIDTH = 960
const HEIGHT = 624
const LEFT = 72
const RIGHT = 24
const PLOT_WIDTH = WIDTH - LEFT - RIGHT
const TOP_PANEL = { top: 132, height: 190 }
const LOW_PANEL = { top: 382, height: 190 }
/** Narrower columns could not be told apart. */
const MAX_COLUMNS = 280
const FONT = 'system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'

/** Neighbours differ in lightness too, for eyes that do not tell the hues apart (after Okabe and Ito). */
const GENERATION_COLOURS = ['#0072b2', '#e69f00', '#56b4e9', '#8c5a00', '#009e73', '#cc79a7'] as const
const FAILED = '#d62728'

interface Column {
  /** Seconds after the start. */
  readonly from: number
  readonly to: number
  /** Each second. */
  readonly byEpoch: ReadonlyMap<number, number>
  readonly failed: number
  readonly p50Ms: number | null
  readonly p99Ms: number | null
}

export function picture(result: DrillResult): string {
  const columns = columnsOf(result.timeline, result.sliceMs)
  const endS = columns.at(-1)?.to ?? 1
  const x = (seconds: number) => round(LEFT + (seconds / endS) * PLOT_WIDTH)
  const title = `usr2 drill: ${result.app.name}`
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${HEIGHT}" viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-labelledby="title desc" font-family="${FONT}" font-size="12">
<title id="title">${escape(title)}</title>
<desc id="desc">${escape(result.verdict)}</desc>
<style>
  .paper { fill: #ffffff } .ink { fill: #1f2328 } .dim { fill: #59636e } .grid { stroke: #d1d9e0 } .band { fill: #8c959f }
  .p50 { stroke: #1f2328 } .p99 { stroke: #8250df } .p99-ink { fill: #8250df } .bad { fill: ${FAILED} }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117 } .ink { fill: #f0f6fc } .dim { fill: #9198a1 } .grid { stroke: #3d444d } .band { fill: #9198a1 }
    .p50 { stroke: #f0f6fc } .p99 { stroke: #bc8cff } .p99-ink { fill: #bc8cff } .bad { fill: #ff6b6b }
  }
</style>
<rect class="paper" fill="#ffffff" width="${WIDTH}" height="${HEIGHT}"/>
${text(LEFT, 30, title, 'ink', 'font-size="18" font-weight="600"')}
${text(LEFT, 50, result.verdict, result.ok ? 'dim' : 'bad')}
${text(LEFT, 68, `Node ${result.app.node.replace(/^v/, '')}, usr2 ${result.app.usr2}, ${result.startedAt.replace(/\.\d+Z$/, 'Z')}`, 'dim')}
${bands(result.reloads, x)}
${throughput(columns, result, x)}
${latency(columns, x)}
${timeAxis(endS, x)}
</svg>
`
}

// ---- Parts --------------------------------------------------------------------------------------------------------

function bands(reloads: readonly ReloadResult[], x: (seconds: number) => number): string {
  const { top } = TOP_PANEL
  let labelledTo = -Infinity
  return reloads
    .map(({ number, askedAtMs, promotedAtMs, drainedAtMs, outcome }) => {
      const [asked, promoted] = [x(askedAtMs / 1000), x(promotedAtMs / 1000)]
      const drained = drainedAtMs === null ? promoted : x(drainedAtMs / 1000)
      const band = (from: number, to: number, opacity: number) =>
        [TOP_PANEL, LOW_PANEL]
          .map(
            (panel) =>
              `<rect class="band" fill="#8c959f" fill-opacity="${opacity}" x="${from}" y="${panel.top}" ` +
              `width="${round(Math.max(1, to - from))}" height="${panel.height}"/>`,
          )
          .join('')
      // With many reloads the labels would lie on each other.
      const label =
        asked - labelledTo < 22
          ? ''
          : text(asked, top - 6, `${outcome === 'promoted' ? '' : 'x '}${number}`, 'dim')
      if (label !== '') labelledTo = asked
      return `<g><title>${escape(`reload ${number}: ${outcome}`)}</title>${band(asked, promoted, 0.45)}${band(promoted, drained, 0.16)}${label}</g>`
    })
    .join('\n')
}

function throughput(
  columns: readonly Column[],
  { generations, reloads }: DrillResult,
  x: (s: number) => number,
): string {
  const { top, height } = TOP_PANEL
  const sum = (column: Column) => column.failed + [...column.byEpoch.values()].reduce((a, b) => a + b, 0)
  const scale = ticksFor(Math.max(1, ...columns.map(sum)))
  const y = (value: number) => round(top + height - (value / scale.max) * height)
  const epochs = generations.map((_, epoch) => epoch)
  const layers = epochs.map((epoch) => {
    const path = columns
      .map((column) => {
        const below = epochs.slice(0, epoch).reduce((a, e) => a + (column.byEpoch.get(e) ?? 0), 0)
        const here = column.byEpoch.get(epoch) ?? 0
        return here === 0 ? '' : bar(x(column.from), x(column.to), y(below), y(below + here))
      })
      .join('')
    return `<path fill="${colourOf(epoch)}" d="${path}"><title>generation ${generations[epoch] ?? '?'}</title></path>`
  })
  const failures = columns
    .map((column) => {
      const all = sum(column)
      return column.failed === 0
        ? ''
        : bar(
            x(column.from),
            x(column.to),
            y(all - column.failed),
            Math.min(y(all), y(all - column.failed) - 2),
          )
    })
    .join('')
  const failed =
    failures === '' ? '' : `<path class="bad" fill="${FAILED}" d="${failures}"><title>failed</title></path>`
  const heading = 'requests per second, by the generation that answered'
  return [
    grid(scale.ticks, y, String),
    text(LEFT, top - 25, heading, 'ink', 'font-weight="600"'),
    legend(generations, failed !== '', reloads.length),
    ...layers,
    failed,
  ].join('\n')
}

const bar = (left: number, right: number, low: number, high: number) =>
  `M${left} ${low}V${high}H${right}V${low}Z`

/** At most as many generations as there is room for: first ones, last one. */
function legend(generations: readonly number[], failed: boolean, reloads: number): string {
  const y = TOP_PANEL.top - 34
  const shown =
    generations.length <= 6 ? generations : [...generations.slice(0, 4), null, generations.at(-1) ?? 0]
  const items: string[] = []
  let at = 470
  const item = (mark: string, label: string, width: number) => {
    items.push(`${mark}${text(at + 15, y + 9, label, 'dim')}`)
    at += width
  }
  for (const id of shown) {
    if (id === null) item('', '…', 34)
    else item(square(at, y, `fill="${colourOf(generations.indexOf(id))}"`), `${id}`, 38)
  }
  if (failed) item(square(at, y, `class="bad" fill="${FAILED}"`), 'failed', 62)
  if (reloads > 0) {
    item(square(at, y, 'class="band" fill="#8c959f" fill-opacity="0.45"'), 'reload', 64)
    item(square(at, y, 'class="band" fill="#8c959f" fill-opacity="0.16"'), 'drain', 50)
  }
  return items.join('')
}

const square = (x: number, y: number, attributes: string) =>
  `<rect x="${x}" y="${y}" width="10" height="10" ${attributes}/>`

function latency(columns: readonly Column[], x: (s: number) => number): string {
  const { top, height } = LOW_PANEL
  const values = columns
    .flatMap(({ p50Ms, p99Ms }) => [p50Ms ?? [], p99Ms ?? []].flat())
    .filter((ms) => ms > 0)
  // Logarithmic: a stall of seconds and a median of a millisecond are both to be read.
  const low = Math.floor(Math.log10(Math.min(1, ...values)))
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(1, ...values))))
  const y = (ms: number) => {
    const share = (Math.log10(Math.max(ms, 10 ** low)) - low) / (high - low)
    return round(top + height - share * height)
  }
  const ticks = Array.from({ length: high - low + 1 }, (_, at) => 10 ** (low + at))
  const line = (of: (column: Column) => number | null, css: string, colour: string, name: string) => {
    let pen = 'M'
    const path = columns
      .map((column) => {
        const ms = of(column)
        if (ms === null) {
          pen = 'M'
          return ''
        }
        const step = `${pen}${x((column.from + column.to) / 2)} ${y(ms)}`
        pen = 'L'
        return step
      })
      .join('')
    return `<path class="${css}" fill="none" stroke="${colour}" stroke-width="1.5" stroke-linejoin="round" d="${path}"><title>${name}</title></path>`
  }
  return [
    grid(ticks, y, msLabel),
    text(LEFT, top - 10, 'latency, from when each request was due (logarithmic)', 'ink', 'font-weight="600"'),
    `<rect x="700" y="${top - 16}" width="14" height="2" class="p99-ink" fill="#8250df"/>${text(719, top - 10, 'p99', 'dim')}`,
    `<rect x="760" y="${top - 16}" width="14" height="2" class="ink" fill="#1f2328"/>${text(779, top - 10, 'p50', 'dim')}`,
    line(({ p99Ms }) => p99Ms, 'p99', '#8250df', 'p99'),
    line(({ p50Ms }) => p50Ms, 'p50', '#1f2328', 'p50'),
  ].join('\n')
}

function timeAxis(endS: number, x: (s: number) => number): string {
  const { ticks } = ticksFor(endS, 8)
  const y = LOW_PANEL.top + LOW_PANEL.height
  const labels = ticks
    .filter((seconds) => seconds <= endS)
    .map((seconds) => text(x(seconds), y + 18, `${seconds}`, 'dim', 'text-anchor="middle"'))
  return [
    ...labels,
    text(LEFT + PLOT_WIDTH / 2, y + 40, 'seconds since the load began', 'dim', 'text-anchor="middle"'),
  ].join('')
}

function grid(
  ticks: readonly number[],
  y: (value: number) => number,
  label: (value: number) => string,
): string {
  return ticks
    .map(
      (value) =>
        `<line class="grid" stroke="#d1d9e0" x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${y(value)}" y2="${y(value)}"/>` +
        text(LEFT - 8, y(value) + 4, label(value), 'dim', 'text-anchor="end"'),
    )
    .join('')
}

// ---- Numbers and words --------------------------------------------------------------------------------------------

/** Slices, as many put together as it takes for a column to be seen. A column's p99 is its worst slice's. */
function columnsOf(timeline: readonly Slice[], sliceMs: number): Column[] {
  const together = Math.max(1, Math.ceil(timeline.length / MAX_COLUMNS))
  const columns: Column[] = []
  for (let at = 0; at < timeline.length; at += together) {
    const slices = timeline.slice(at, at + together)
    const seconds = (slices.length * sliceMs) / 1000
    const byEpoch = new Map<number, number>()
    for (const { epochs } of slices)
      for (const [epoch, count] of Object.entries(epochs))
        byEpoch.set(Number(epoch), (byEpoch.get(Number(epoch)) ?? 0) + count / seconds)
    const known = slices.flatMap(({ latency }) => latency ?? [])
    const middle = known.map(({ p50Ms }) => p50Ms).sort((a, b) => a - b)[Math.floor(known.length / 2)]
    columns.push({
      from: (at * sliceMs) / 1000,
      to: ((at + slices.length) * sliceMs) / 1000,
      byEpoch,
      failed: slices.reduce((sum, { failed }) => sum + failed, 0) / seconds,
      p50Ms: middle ?? null,
      p99Ms: known.length === 0 ? null : Math.max(...known.map(({ p99Ms }) => p99Ms)),
    })
  }
  return columns
}

/** Round numbers from 0 to at least `most`. */
function ticksFor(most: number, about = 4): { readonly ticks: readonly number[]; readonly max: number } {
  const rough = most / about
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10) * power
  const count = Math.ceil(most / step)
  return { ticks: Array.from({ length: count + 1 }, (_, at) => round(at * step)), max: count * step }
}

const colourOf = (epoch: number) => GENERATION_COLOURS[epoch % GENERATION_COLOURS.length] ?? '#0072b2'

const msLabel = (ms: number) => (ms >= 1000 ? `${ms / 1000} s` : `${ms} ms`)

const round = (value: number) => Math.round(value * 100) / 100

function text(x: number, y: number, words: string, css: 'ink' | 'dim' | 'bad', more = ''): string {
  const fill = css === 'ink' ? '#1f2328' : css === 'dim' ? '#59636e' : FAILED
  return `<text class="${css}" fill="${fill}" x="${x}" y="${y}"${more === '' ? '' : ` ${more}`}>${escape(words)}</text>`
}

/** XML 1.0 has no control characters at all, not even escaped. */
function escape(words: string): string {
  const named: Readonly<Record<string, string>> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' }
  return words
    .replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, '')
    .replace(/[&<>"]/g, (char) => named[char] ?? '')
}
