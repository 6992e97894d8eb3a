/**
 * Keeps this process alive while its IPC channel is open, as long as at least one holder asks for it.
 *
 * By a `'disconnect'` listener, which Node counts (process.channel in the docs of node:process), rather than by
 * `process.channel.ref()`: after one explicit `ref()` or `unref()` Node ignores its count for good, and an app's own
 * `process.on('message')` would no longer keep the process alive.
 */
let holders = 0

function noop(): void {}

export function holdProcess(hold: boolean): void {
  holders += hold ? 1 : -1
  if (hold && holders === 1) process.on('disconnect', noop)
  if (!hold && holders === 0) process.off('disconnect', noop)
}
