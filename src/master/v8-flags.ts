/**
 * V8 set to be small. A master works for milliseconds around a reload and then waits for days, so what V8 spends on
 * speed is never earned back. Imported by run.ts alone: the clients keep V8 as it is, and so do the workers, which
 * are processes of their own (NODE_OPTIONS is not touched).
 *
 * Resident MB at the start and after 100 reloads, one worker:
 *
 *                Node 20       Node 22       Node 24       Node 26
 *     without    48.1  64.1    54.1  69.3    59.2  75.7    59.5  75.4
 *     with       47.8  48.7    53.7  55.8    58.8  61.4    59.0  62.0
 *
 * (That was an early version. Now, with them, at the 10th and the 100th reload of soak.ts: 52.9 54.2, 59.7 59.5, 63.0 63.6
 * and 63.8 64.1.) V8 in Node 20 to 26 knows them all; for one that it does not know it writes
 * a line to stderr and goes on.
 */
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

const FLAGS = [
  // The interpreter will do: a compiler that has run once keeps its own code resident (8 MB after 100 reloads).
  '--no-opt',
  '--no-maglev',
  '--no-sparkplug',
  // A heap of 5 MB: keep the young generation at its first size.
  '--semi-space-growth-factor=1',
  '--optimize-for-size',
]

for (const flag of FLAGS) setFlagsFromString(flag)

/** After the last worker of a generation has gone. Of 60 reloads within 5 s (5.6 MB) four or five are cleaned up after. */
const QUIET_MS = 1_000

let timer: NodeJS.Timeout | undefined
let collect: (() => void) | undefined

/**
 * What a reload leaves is moved to the old generation, which V8 lets grow for hundreds of reloads before it looks. So it is
 * told to, when nobody waits: a whole collection takes 11 ms of processor time. With `--gc-global`,
 * which did it twice in the midst of each reload, a master took 68 ms of processor time for a reload of 2 workers, and
 * without it 34: time that those who serve on 2 busy processors had to wait for.
 */
export function collectSoon(): void {
  timer ??= setTimeout(() => {
    timer = undefined
    collect ??= collector()
    collect()
  }, QUIET_MS).unref()
}

/** V8 gives its `gc` to contexts that are made while the flag is set. */
function collector(): () => void {
  setFlagsFromString('--expose-gc')
  const gc: unknown = runInNewContext('typeof gc === "function" ? gc : null')
  setFlagsFromString('--no-expose-gc')
  return typeof gc === 'function' ? () => void gc() : () => {}
}
