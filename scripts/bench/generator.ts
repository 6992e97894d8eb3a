/** Throughput: as many requests as the server can answer. By wrk where there is one, else by our own client. */
import { type Bench, which } from './bench.ts'
import { startLoad } from '../../src/drill/start-load.ts'

/** `new`: a connection for each request. */
export type Kind = 'new' | 'keepalive'

export interface Throughput {
  readonly requests: number
  readonly perSecond: number
}

export interface Generator {
  /** How it is called in the results. */
  readonly name: string
  /** @throws if a single request failed: then the figures are not comparable */
  run(kind: Kind, port: number, seconds: number): Promise<Throughput>
}

const CONNECTIONS: Record<Kind, number> = { new: 16, keepalive: 32 }

export async function generator(bench: Bench, core: number | null): Promise<Generator> {
  const wrk = which('wrk')
  return wrk === null ? ourOwn(core) : byWrk(bench, wrk, core)
}

function byWrk(bench: Bench, wrk: string, core: number | null): Generator {
  return {
    name: 'wrk, 1 thread, 32 connections, or 16 with `Connection: close`',
    async run(kind, port, seconds) {
      const close = kind === 'new' ? ['-H', 'Connection: close'] : []
      const args = ['-t1', `-c${CONNECTIONS[kind]}`, `-d${seconds}s`, ...close, `http://127.0.0.1:${port}/`]
      const text = await bench.run(wrk, args, { core })
      const requests = Number(/(\d+) requests in/.exec(text)?.[1])
      const perSecond = Number(/Requests\/sec:\s+([\d.]+)/.exec(text)?.[1])
      if (!(requests > 0) || !(perSecond > 0) || /Socket errors|Non-2xx/.test(text)) {
        throw new Error(`wrk did not measure what it should:\n${text}`)
      }
      return { requests, perSecond }
    },
  }
}

function ourOwn(core: number | null): Generator {
  return {
    name: 'our own client (no wrk in PATH): it costs more than the server, so throughput says little; read the CPU',
    async run(kind, port, seconds) {
      const mode = kind === 'new' ? 'new' : 'hot'
      const traffic = [{ mode, connections: CONNECTIONS[kind] }] as const
      const load = await startLoad({ target: { port }, traffic, maxMs: seconds * 1000 }, { core })
      const { requests, failed, durationMs } = await load.done
      if (failed > 0) throw new Error(`${failed} of ${requests} requests failed`)
      return { requests, perSecond: (requests / durationMs) * 1000 }
    },
  }
}
