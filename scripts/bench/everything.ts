/**
 * The profile `everything` of reload.ts: every kind of client at once, against everything.cjs. Some 1,500 requests a
 * second: enough to meet each moment of a reload, and far from saturated.
 */
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { MIX, type TallyResult, type Traffic } from '../../src/drill/load.ts'
import { type Bench, type Child, freePort } from './bench.ts'
import type { Detail, KindCount } from './clients/kind.ts'
import type { SubjectOptions } from './subjects.ts'

const here = (name: string): string => fileURLToPath(new URL(name, import.meta.url))
const CLIENTS = here('clients/main.ts')
const GRPC_CLIENT = here('../../test/fixtures/grpc-load.mjs')
/** Between a gRPC client's answer and its next call. */
const GRPC_PAUSE_MS = 10

const NAMES = ['h2c', 'tls', 'https', 'grpc', 'tcp', 'udp'] as const
type Ports = Readonly<Record<(typeof NAMES)[number], number>>

export interface Everything {
  /** What usr2 is started with. */
  readonly options: Pick<SubjectOptions, 'app' | 'env' | 'flags'>
  readonly traffic: readonly Traffic[]
  /** Starts the clients that are not of src/drill. */
  startClients(httpPort: number): Clients
}

export async function prepareEverything(bench: Bench): Promise<Everything> {
  const entries: [string, number][] = []
  for (const name of NAMES) entries.push([name, await freePort()])
  const ports = Object.fromEntries(entries) as Ports
  const path = join(bench.directory, 'app.sock')
  const env = Object.fromEntries(entries.map(([name, port]) => [`${name.toUpperCase()}_PORT`, `${port}`]))
  return {
    options: {
      app: here('everything.cjs'),
      env: { ...env, UNIX_PATH: path },
      // WebSockets and event streams are ended over all of a drain: with the usual 30 s, 100 reloads would take an hour.
      flags: ['--drain-timeout', '4s'],
    },
    traffic: trafficTo(ports, path),
    startClients: (http) => new Clients(bench, { ...ports, http }),
  }
}

function trafficTo({ h2c, tls, https }: Ports, path: string): readonly Traffic[] {
  const toH2c = { port: h2c }
  const overTls = { port: tls, tls: true }
  const toHttps = { port: https, tls: true }
  const byPath = { path }
  return [
    // Shorter than in the mix, for the sake of short drains; long against a boot all the same.
    ...MIX.map((one) => ({ ...one, ...PATHS[one.mode] })),
    { mode: 'pipelined', connections: 4, thinkMs: [10, 30] },
    { mode: 'upload', connections: 4, uploadMs: 800, echo: true },
    { mode: 'preconnect', connections: 4, thinkMs: [0, 1000] },
    { mode: 'websocket', connections: 20, pingMs: 200 },
    { mode: 'keepalive', name: 'https keepalive', connections: 8, target: toHttps },
    { mode: 'new', name: 'https new', connections: 2, target: toHttps, thinkMs: [20, 60] },
    { mode: 'post', name: 'https post', connections: 2, target: toHttps, echo: true },
    { mode: 'keepalive', name: 'allowHTTP1 keepalive', connections: 4, target: overTls },
    { mode: 'http2', name: 'h2', connections: 4, depth: 4, target: overTls, thinkMs: [10, 50] },
    { mode: 'http2', name: 'h2c', connections: 4, depth: 4, target: toH2c, thinkMs: [10, 50] },
    { mode: 'http2', name: 'h2c slow', connections: 2, depth: 4, target: toH2c, path: '/slow?ms=500' },
    { mode: 'keepalive', name: 'unix path keepalive', connections: 4, target: byPath },
    { mode: 'new', name: 'unix path new', connections: 1, target: byPath, thinkMs: [20, 60] },
  ]
}

const PATHS: Partial<Record<Traffic['mode'], { readonly path: string }>> = {
  slow: { path: '/slow?ms=600' },
  stream: { path: '/stream?ms=800' },
}

/** A row of the one table: a kind of client, and what became of what it asked. */
export interface Row {
  readonly kind: string
  readonly requests: number
  /** Not processed, and safe to send again (src/drill/tally.ts). */
  readonly retryable: number
  readonly failed: number
  readonly failures: Readonly<Record<string, number>>
}

export interface ClientDetail extends Detail {
  readonly kind: string
}

interface GrpcResult {
  readonly byKind: Readonly<
    Record<
      string,
      { readonly calls: number; readonly failed: number; readonly failures: Record<string, number> }
    >
  >
  readonly details: readonly ClientDetail[]
}

/** The clients that are not of src/drill, in two processes. */
export class Clients {
  readonly #others: Child
  readonly #grpc: Child

  constructor(bench: Bench, { http, tcp, udp, grpc }: Ports & { readonly http: number }) {
    const start = (name: string, args: readonly string[]): Child =>
      bench.start(name, process.execPath, args, { stdin: 'pipe' })
    const tsx = `--import=${import.meta.resolve('tsx')}`
    this.#others = start('the other clients', [tsx, CLIENTS, JSON.stringify({ http, tcp, udp })])
    this.#grpc = start('the gRPC clients', [GRPC_CLIENT, `${grpc}`, `${GRPC_PAUSE_MS}`])
  }

  async stop(): Promise<{ rows: Row[]; details: ClientDetail[] }> {
    const [others, grpc] = await Promise.all([this.#others.endInput(), this.#grpc.endInput()])
    const counts = Object.entries(others as unknown as Record<string, KindCount>)
    const { byKind, details } = grpc as unknown as GrpcResult
    const rows = [
      ...counts.map(([kind, { requests, failed, failures }]) => ({ kind, requests, failed, failures })),
      ...Object.entries(byKind).map(([kind, { calls, failed, failures }]) => ({
        kind: `gRPC ${kind}`,
        requests: calls,
        failed,
        failures,
      })),
    ]
    return {
      // Nothing of these is sent again by us. What @grpc/grpc-js itself sends again is not seen.
      rows: rows.map((row) => ({ ...row, retryable: 0 })),
      details: [
        ...counts.flatMap(([kind, { details }]) => details.map((detail) => ({ ...detail, kind }))),
        ...details.map((detail) => ({ ...detail, kind: `gRPC ${detail.kind}` })),
      ],
    }
  }
}

export const rowsOf = (traffic: Readonly<Record<string, TallyResult>>): Row[] =>
  Object.entries(traffic).map(([kind, { requests, retryable, failed, failures }]) => ({
    kind,
    requests,
    retryable,
    failed,
    failures: { ...failures },
  }))
