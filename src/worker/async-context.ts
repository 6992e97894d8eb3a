/**
 * Node 24 and 26 have async contexts (AsyncLocalStorage) switched off until somebody asks for them, or a first timer has
 * run out. Switching on changes the class whose methods `process.nextTick`, timers and the tick queue call for each
 * callback (internal/async_context_frame). What was called before that V8 has learnt in the form that is gone, and the
 * guest calls all of them before the app does: their compiled code then never inlines those methods. Measured on Node 24:
 * 7,000 instructions a request of the app's 50,000, in 44 lookups for some 14 ticks.
 */
import { AsyncLocalStorage } from 'node:async_hooks'

/** Switches them on, in 0.1 ms. To be called before anything else of the guest. On Node 20 and 22 it changes nothing. */
export function settleAsyncContext(): void {
  // Made, not only named: the bundler would leave out what is not used. No store is ever set in it.
  new AsyncLocalStorage()
}
