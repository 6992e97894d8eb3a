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
 * They cost 2 to 8 ms of CPU per reload. V8 in Node 20 to 26 knows them all; for one that it does not know it writes
 * a line to stderr and goes on.
 */
import { setFlagsFromString } from 'node:v8'

const FLAGS = [
  // The interpreter will do: a compiler that has run once keeps its own code resident (8 MB after 100 reloads).
  '--no-opt',
  '--no-maglev',
  '--no-sparkplug',
  // A heap of 5 MB: keep the young generation at its first size, and collect everything each time. Otherwise what a
  // reload leaves is moved to the old generation, which V8 lets grow for hundreds of reloads before it looks.
  '--semi-space-growth-factor=1',
  '--gc-global',
  '--optimize-for-size',
]

for (const flag of FLAGS) setFlagsFromString(flag)
