/** What must not grow from reload to reload: samples of a running usr2, and their comparison. */
import { readdirSync } from 'node:fs'
import { openFiles, rssMb } from './proc.ts'

export interface Sample {
  readonly reload: number
  /** Of the master, by kind. */
  readonly fds: Readonly<Record<string, number>>
  /** The master, its workers, and whatever else carries the token of the run. */
  readonly processes: number
  /** In the runtime directory and beside it, wherever the run could leave some. */
  readonly files: readonly string[]
  readonly rssMb: number
}

export interface Watched {
  readonly master: number
  readonly directory: string
  processes(): readonly number[]
}

/** Bytes that the heap of a master may come to hold more by chance of collection: 5 MB (DESIGN's bound). */
export const RSS_GROWTH_MB = 5

export function sampleOf({ master, directory, processes }: Watched, reload: number): Sample {
  const files = readdirSync(directory, { recursive: true }).map(String).sort()
  return { reload, fds: openFiles(master), processes: processes().length, files, rssMb: rssMb(master) }
}

/**
 * Apart from memory: whether `sample` holds something that `before` did not. Less is no growth: the end of a worker's
 * channel reaches the master a moment after the end of its process, so the earlier sample may have one more.
 */
export function holdsMore(sample: Sample, before: Sample): boolean {
  return (
    Object.entries(sample.fds).some(([kind, count]) => count > (before.fds[kind] ?? 0)) ||
    sample.processes > before.processes ||
    sample.files.some((file) => !before.files.includes(file))
  )
}

/** A sentence for each sample that holds more than the first one from reload `from` on. */
export function growthFrom(samples: readonly Sample[], from: number): string[] {
  const [first, ...later] = samples.filter(({ reload }) => reload >= from)
  if (first === undefined || later.length === 0)
    return [`no two samples from reload ${from} on: nothing is shown`]
  const changed = later
    .filter((sample) => holdsMore(sample, first))
    .map(
      (sample) =>
        `reload ${sample.reload} has ${thingsOf(sample)}; reload ${first.reload} had ${thingsOf(first)}`,
    )
  const largest = later.reduce((a, b) => (b.rssMb > a.rssMb ? b : a))
  const moreMb = largest.rssMb - first.rssMb
  if (moreMb <= RSS_GROWTH_MB) return changed
  const more = `${moreMb.toFixed(1)} MB more at reload ${largest.reload} than at reload ${first.reload}`
  return [...changed, `RSS of the master: ${more}, over ${RSS_GROWTH_MB} MB`]
}

const thingsOf = ({ fds, processes, files }: Sample): string =>
  `fds ${JSON.stringify(fds)}, ${processes} processes, files ${files.join(' ')}`
