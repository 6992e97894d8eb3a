/**
 * Releases as people deploy them, of the programs of test/fixtures/rollouts, and clients that hold failures of the
 * transport and bad answers apart: a rollout may let some clients see a bad version, and must lose nobody's request.
 */
import { readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { type LoadResult, summary } from '../../src/drill/load.ts'
import type { RemoteLoad } from '../../src/drill/start-load.ts'
import { loadUnder, untilServed } from './load.ts'
import type { TestLike } from './scope.ts'
import { shortTmp } from './tmp.ts'
import { deploy, type Files, fixture, pointTo } from './usr2.ts'
import { until } from './wait.ts'

export type RolloutFixture =
  | 'healthy'
  | 'fails-a-tenth'
  | 'slow'
  | 'leaks'
  | 'blocks'
  | 'never-ready'
  | 'crashes-after'
  | 'flaps'
  | 'probe-counter'
  | 'warm'

export interface ReleaseOptions {
  /** Its directory under `releases`, where that is not the version. */
  readonly release?: string
  /** More of its files. */
  readonly files?: Files
}

/** `root/releases/…` and the link `root/current`, turned over by rename(2): there is no moment without one. */
export class Deploys {
  readonly root: string
  /** `root/current`, for `cwd`. */
  readonly current: string
  /** `root/current/server.cjs`, for `usr2 run`: the same path whichever program it is. */
  readonly entry: string

  /** @internal Use {@link deploysIn}. */
  constructor(root: string) {
    this.root = root
    this.current = join(root, 'current')
    this.entry = join(this.current, 'server.cjs')
  }

  /** `current` is that program from now on, with a package.json of that version. Gives the directory of the release. */
  to(name: RolloutFixture, version: string, { release = version, files = {} }: ReleaseOptions = {}): string {
    const textOf = (file: string): string => readFileSync(fixture(`rollouts/${file}.cjs`), 'utf8')
    deploy(this.root, release, {
      files: {
        'package.json': `${JSON.stringify({ name: 'app', version, main: 'server.cjs' })}\n`,
        'server.cjs': textOf(name),
        'base.cjs': textOf('base'),
        ...files,
      },
    })
    return this.directory(release)
  }

  /** `current` is a release that was deployed before, as it is. */
  backTo(release: string): void {
    pointTo(this.root, release)
  }

  remove(release: string): void {
    rmSync(this.directory(release), { recursive: true })
  }

  directory(release: string): string {
    return join(this.root, 'releases', release)
  }
}

/** Removed with the test. Deploy something before usr2 is started: `current` is not there yet. */
export const deploysIn = (t: TestLike): Deploys => new Deploys(shortTmp(t))

export interface ClientOptions {
  readonly port: number
  /** Default `/`; `/?slow` takes healthy.cjs 20 ms. */
  readonly path?: string
  /** New connections a second, each for one request, whatever becomes of those before. Default 200. */
  readonly newPerSecond?: number
  /** Connections that are kept, with a request every 10 ms or so. Default 8; 0: none. */
  readonly keepAlive?: number
  /** Without a byte for that long, a request has hung. Default 10 s. */
  readonly timeoutMs?: number
}

export interface ByVersion {
  /** Answered with 2xx. */
  readonly ok: number
  /** Answered with 500 or more. */
  readonly errors: number
}

export interface ClientsResult {
  readonly requests: number
  /** Whatever a client noticed that is no answer: refused, reset, cut off, hanging; by its class. */
  readonly lost: Readonly<Record<string, number>>
  /** Answers with 500 or more. */
  readonly errors: number
  readonly byVersion: Readonly<Record<string, ByVersion>>
  /** All that was counted: latencies, when a version answered first and last. */
  readonly load: LoadResult
}

/** Clients in a process of their own, which end with the test. */
export class Clients {
  readonly #load: RemoteLoad

  /** @internal Use {@link clientsOf}. */
  constructor(load: RemoteLoad) {
    this.#load = load
  }

  /** A new phase of `load.phases` begins. */
  mark(name: string): void {
    this.#load.mark(name)
  }

  async sofar(): Promise<ClientsResult> {
    return resultOf(await this.#load.snapshot())
  }

  /** That version has answered a request well. */
  served(version: string, timeoutMs?: number): Promise<void> {
    return untilServed(this.#load, version, timeoutMs)
  }

  /** So many requests more have been answered by that version, well or not. */
  async answered(version: string, count: number, timeoutMs = 20_000): Promise<void> {
    const have = async (): Promise<number> => {
      const { ok = 0, errors = 0 } = (await this.sofar()).byVersion[version] ?? {}
      return ok + errors
    }
    const enough = (await have()) + count
    const what = `${count} more answers of version ${version}`
    await until(async () => (await have()) >= enough, { timeoutMs, what })
  }

  async stop(): Promise<ClientsResult> {
    return resultOf(await this.#load.stop())
  }
}

/** Resolves when the first connections are on their way. */
export async function clientsOf(t: TestLike, options: ClientOptions): Promise<Clients> {
  const { port, path = '/', newPerSecond = 200, keepAlive = 8, timeoutMs } = options
  const traffic = [
    { mode: 'new', path, perSecond: newPerSecond, connections: MAX_OUTSTANDING },
    ...(keepAlive > 0
      ? [{ mode: 'keepalive', path, thinkMs: [5, 15], connections: keepAlive } as const]
      : []),
  ] as const
  return new Clients(await loadUnder(t, { target: { port }, traffic, versionOf: 'version', timeoutMs }))
}

/** Beyond any answer's time that a test waits for, so that the loop stays open. */
const MAX_OUTSTANDING = 500

/** Fails the test with the summary unless there were requests and each was answered, whatever the answer. */
export function expectNoneLost(t: TestLike, { requests, lost, load }: ClientsResult): void {
  if (requests === 0) t.fail('the clients have not sent a single request')
  else if (Object.keys(lost).length > 0) t.fail(`${JSON.stringify(lost)}\n${summary(load)}`)
  else t.same(lost, {}, `0 lost of ${requests}`)
}

function resultOf(load: LoadResult): ClientsResult {
  const { status: _, ...failures } = load.failures
  const lost = Object.fromEntries(Object.entries(failures).filter(([, count]) => count > 0))
  // A status below 500 is no bad version, it is a wrong request: a mistake of the test, told as a loss.
  const wrong = sumOf(load.statuses, (status) => status < 500)
  if (wrong > 0) lost['status below 500'] = wrong
  const names = new Set([...Object.keys(load.versions), ...Object.keys(load.statusesByVersion)])
  return {
    requests: load.requests,
    lost,
    errors: sumOf(load.statuses, (status) => status >= 500),
    byVersion: Object.fromEntries(
      [...names].map((version) => [
        version,
        {
          ok: load.versions[version]?.responses ?? 0,
          errors: sumOf(load.statusesByVersion[version] ?? {}, (status) => status >= 500),
        },
      ]),
    ),
    load,
  }
}

const sumOf = (statuses: Readonly<Record<string, number>>, counts: (status: number) => boolean): number =>
  Object.entries(statuses).reduce((sum, [status, count]) => sum + (counts(Number(status)) ? count : 0), 0)
