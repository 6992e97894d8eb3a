/** A load client for a test: in a process of its own, ended with the test. */
import { type LoadResult, summary } from '../../src/drill/load.ts'
import { type RemoteLoad, type RemoteLoadOptions, startLoad } from '../../src/drill/start-load.ts'
import { scopeOf, type TestLike } from './scope.ts'
import { withoutTap } from './spawn.ts'
import { until } from './wait.ts'

export async function loadUnder(t: TestLike, options: RemoteLoadOptions): Promise<RemoteLoad> {
  // Without the test's token: it may well outlive the server whose leftovers are looked for.
  const load = await withoutTap(() => startLoad(options))
  scopeOf(t).finally(() => load.kill())
  return load
}

/** Fails the test with the summary of the run unless it has requests and nothing failed. */
export function expectNoneFailed(t: TestLike, result: LoadResult): void {
  if (result.requests === 0) t.fail('the load client has not sent a single request')
  else if (result.failed > 0) t.fail(`${result.failed} failed\n${summary(result)}`)
  else t.equal(result.failed, 0, `0 failed of ${result.requests}`)
}

/** Waits until that version has answered under load. */
export async function untilServed(
  load: { snapshot(): LoadResult | Promise<LoadResult> },
  version: string,
  timeoutMs = 10_000,
): Promise<void> {
  const served = async () => (await load.snapshot()).versions[version] !== undefined
  await until(served, { timeoutMs, what: `an answer of version ${version}` })
}
