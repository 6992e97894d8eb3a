/**
 * A {@link Load} in a process of its own, told what to do by JSON lines on stdin, answering by JSON lines on stdout.
 * The first line is the options. It ends after the result, and when its stdin ends: whoever started it is gone then.
 */
import { createInterface } from 'node:readline'
import { Load } from './load.ts'
import type { Answer, Order, RemoteLoadOptions } from './start-load.ts'

function answer(line: Answer): void {
  process.stdout.write(`${JSON.stringify(line)}\n`)
}

function begin(options: RemoteLoadOptions): Load {
  const load = new Load(options).start()
  void load.done.then((result) => {
    answer({ result })
    input.close()
    process.stdin.destroy()
  })
  answer({ started: true })
  return load
}

let load: Load | undefined
let finished = false
let guarded: number | undefined
const input = createInterface({ input: process.stdin })

input.on('line', (text) => {
  const order = JSON.parse(text) as Order
  if ('options' in order) {
    guarded = order.guard
    load = begin(order.options)
    void load.done.then(() => (finished = true))
  } else if ('mark' in order) load?.mark(order.mark, order.atMs, order.kind)
  else if ('epoch' in order) load?.epoch(order.epoch)
  else if ('onlySince' in order) load?.onlySince(order.onlySince)
  else if ('snapshot' in order && load !== undefined) answer({ snapshot: load.snapshot() })
  else if ('stop' in order) void load?.stop()
})

input.on('close', () => {
  if (finished) return
  try {
    if (guarded !== undefined) process.kill(guarded, 'SIGTERM')
  } catch {
    // It has ended by itself.
  }
  process.exit(1)
})
