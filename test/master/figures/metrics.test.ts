/** The endpoint for Prometheus: what it says, to whom, and that no client costs the master much. */
import { once } from 'node:events'
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import http from 'node:http'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import fc from 'fast-check'
import t from 'tap'
import type { Test } from 'tap'
import { exposition, METRICS } from '../../../src/master/figures/exposition.ts'
import type { Status } from '../../../src/master/face.ts'
import { ledgerOf, NO_COUNTS } from '../../../src/master/figures/ledger.ts'
import { formatFor, MetricsError, openMetrics, readiness } from '../../../src/master/figures/metrics.ts'
import type { Metrics, MetricsListen, MetricsOptions } from '../../../src/master/figures/metrics.ts'
import { bounded, cumulative, NO_VERDICTS, SHOWN_BOUNDS_MS } from '../../../src/master/figures/totals.ts'
import type { GenerationTotals } from '../../../src/master/figures/totals.ts'
import { latencyBoundMs, LATENCY_BUCKETS } from '../../../src/protocol.ts'
import { parseExposition } from '../../helpers/exposition.ts'
import type { Family } from '../../helpers/exposition.ts'
import { STATUS } from '../../helpers/fake-face.ts'
import { get, type Where } from '../../helpers/http.ts'
import { openRaw } from '../../helpers/raw-client.ts'
import { run, start } from '../../helpers/spawn.ts'
import { freePort, shortTmp } from '../../helpers/tmp.ts'
import { deadline, until } from '../../helpers/wait.ts'

const root = fileURLToPath(new URL('../../..', import.meta.url))

const MIB = 1024 * 1024
/** In the midst of a canary: whatever can be told has a value. */
const CANARY: Status = {
  ...STATUS,
  state: 'rolling-out',
  generations: STATUS.generations.map((generation) => ({
    ...generation,
    workers: generation.workers.map((worker) => ({
      ...worker,
      rssBytes: worker.slot === 0 ? 80 * MIB : null,
      probes: [],
      tired: null,
    })),
  })),
  rollout: {
    reload: 'r3',
    kind: 'reload',
    current: 8,
    candidate: 9,
    sinceMs: 1000,
    steps: [
      { text: '10 % of connections: 1 of 3 workers', state: 'done' },
      { text: 'hold 5 min', state: 'now' },
      { text: '100 %', state: 'to-come' },
    ],
    waitsFor: 'for the end of this hold',
    paused: null,
    accepting: { current: 2, candidate: 1 },
    analysis: null,
  },
  parked: null,
  bootable: [7],
}
const STEADY: Status = { ...CANARY, state: 'steady', rollout: null }

/** `requests` of 3 ms each, one in ten an error; a connection for each. */
function totalsOf(generation: number, requests = 100, version = `1.${generation}`): GenerationTotals {
  const latency = Array.from({ length: LATENCY_BUCKETS }, () => 0)
  latency[latency.findIndex((_, i) => latencyBoundMs(i) > 3)] = requests
  return {
    generation,
    version,
    requests,
    errors: Math.floor(requests / 10),
    totalMs: requests * 3,
    latency,
    crashes: 1,
    restarts: 2,
    ledger: ledgerOf({ ...NO_COUNTS, accepted: requests, earlier: requests, requests }, null, 'left'),
  }
}

const snapshot = (totals: readonly GenerationTotals[], status = CANARY) => ({
  status,
  totals,
  verdicts: { ...NO_VERDICTS, reload: { ...NO_VERDICTS.reload, 'rolled-back': 3 } },
  lagMs: 1.5,
})

async function families(
  totals: readonly GenerationTotals[],
  { status = CANARY, format = 'text' as 'text' | 'openmetrics' } = {},
): Promise<readonly Family[]> {
  return parseExposition((await exposition(snapshot(totals, status), format)).text, format)
}

const samplesOf = (all: readonly Family[], name: string) =>
  all.find((family) => family.name === name)?.samples ?? []

t.test('the text', async (t) => {
  for (const format of ['text', 'openmetrics'] as const) {
    t.test(`${format} is well formed, and every metric is in it`, async (t) => {
      const all = await families([totalsOf(7), totalsOf(8)], { format })
      const plain = (name: string): string => (format === 'text' ? name : name.replace(/_total$/, ''))
      t.strictSame(
        all.map(({ name, type, help }) => ({ name, type, help })),
        METRICS.map(({ name, type, help }) => ({ name: plain(name), type, help })),
      )
      for (const { name, samples } of all) t.ok(samples.length > 0, `${name} has a sample`)
      for (const { name, type } of METRICS) t.equal(/_total$/.test(name), type === 'counter', name)
    })
  }

  t.test('OpenMetrics before does not change the text after', async (t) => {
    await families([totalsOf(8)], { format: 'openmetrics' })
    t.equal(samplesOf(await families([totalsOf(8)]), 'usr2_requests_total').length, 1)
  })

  t.test('the figures are those of the master', async (t) => {
    const all = await families([totalsOf(8, 40)])
    const lines = all.flatMap(({ samples }) => samples).map(({ series, value }) => `${series} ${value}`)
    for (const line of [
      'usr2_requests_total{generation="8",version="1.8"} 40',
      'usr2_request_errors_total{generation="8",version="1.8"} 4',
      'usr2_request_duration_seconds_bucket{le="0.002",generation="8",version="1.8"} 0',
      'usr2_request_duration_seconds_bucket{le="0.004",generation="8",version="1.8"} 40',
      'usr2_request_duration_seconds_bucket{le="+Inf",generation="8",version="1.8"} 40',
      'usr2_request_duration_seconds_sum{generation="8",version="1.8"} 0.12',
      'usr2_connections_total{generation="8",version="1.8",ending="earlier"} 40',
      'usr2_connections_total{generation="8",version="1.8",ending="cut"} 0',
      'usr2_requests_unanswered_total{generation="8",version="1.8",reason="crashed"} 0',
      'usr2_worker_crashes_total{generation="8",version="1.8"} 1',
      'usr2_workers{generation="8",role="current",phase="ready"} 2',
      'usr2_workers{generation="8",role="current",phase="draining"} 0',
      `usr2_worker_rss_bytes{generation="8",slot="0"} ${80 * MIB}`,
      'usr2_open_connections{generation="8"} 24',
      'usr2_reloads_total{outcome="rolled-back"} 3',
      'usr2_reloads_total{outcome="promoted"} 0',
      'usr2_rollout_info{kind="reload",current="8",candidate="9"} 1',
      'usr2_rollout_step 2',
      'usr2_rollout_steps 3',
      'usr2_rollout_paused 0',
      'usr2_rollout_accepting_workers{side="candidate"} 1',
      'usr2_slots 2',
      'usr2_slots_ready 2',
      'nodejs_eventloop_lag_seconds 0.0015',
    ]) {
      const [series = '', value] = [
        line.slice(0, line.lastIndexOf(' ')),
        line.slice(line.lastIndexOf(' ') + 1),
      ]
      const found = all.flatMap(({ samples }) => samples).find((sample) => same(sample.series, series))
      t.equal(String(found?.value), value, found ? line : `${line} in\n${lines.join('\n')}`)
    }
    t.equal(samplesOf(all, 'usr2_worker_rss_bytes').length, 1, 'a worker that is gone has no memory')
  })

  t.test('says nothing of a rollout while none runs', async (t) => {
    const all = await families([totalsOf(8)], { status: STEADY })
    const rollout = all.filter(({ name }) => name.startsWith('usr2_rollout_'))
    t.strictSame(
      rollout.map(({ samples }) => samples.length),
      rollout.map(() => 0),
    )
    t.equal(rollout.length, 5)
  })

  t.test('two workers of one slot, as one replaces the other, are added', async (t) => {
    const [current] = STEADY.generations
    const [worker] = current?.workers ?? []
    if (!current || !worker) throw new Error('no worker')
    const old = { ...worker, phase: 'draining' as const, rssBytes: 5 * MIB }
    const status = { ...STEADY, generations: [{ ...current, workers: [worker, old] }] }
    const samples = samplesOf(await families([], { status }), 'usr2_worker_rss_bytes')
    t.strictSame(
      samples.map(({ value }) => value),
      [85 * MIB],
    )
  })

  t.test('a version is what somebody wrote', async (t) => {
    const version = '"a\\b"\n{c="d"} 1'
    const [sample] = samplesOf(await families([totalsOf(1, 1, version)]), 'usr2_requests_total')
    t.equal(sample?.labels['version'], version)
    const [long] = samplesOf(await families([totalsOf(1, 1, 'x'.repeat(5000))]), 'usr2_requests_total')
    t.equal(long?.labels['version'], 'x'.repeat(64))
  })
})

/** The order of labels means nothing. */
const same = (a: string, b: string): boolean => parts(a) === parts(b)
const parts = (series: string): string => series.split(/[{},]/).sort().join()

t.test('labels are bounded, and no counter falls', async (t) => {
  /** What a master may know, growing: in each step some generations count more, and perhaps there is one more. */
  const steps = fc.array(
    fc.record({ more: fc.array(fc.nat(1000), { maxLength: 20 }), reload: fc.boolean() }),
    {
      minLength: 10,
      maxLength: 40,
    },
  )
  const counters = METRICS.filter(({ type }) => type !== 'gauge').map(({ name }) => name)
  await fc.assert(
    fc.asyncProperty(steps, async (steps) => {
      const requests = Array.from({ length: 8 }, () => 7)
      let before: readonly Family[] = []
      for (const { more, reload } of steps) {
        if (reload) requests.push(0)
        more.forEach((n, i) => (requests[i] !== undefined ? (requests[i] += n) : undefined))
        const now = await families(requests.map((n, i) => totalsOf(i + 1, n)))
        for (const name of counters) {
          const samples = new Map(samplesOf(now, name).map(({ series, value }) => [series, value]))
          for (const { series, value } of samplesOf(before, name)) {
            const after = samples.get(series)
            if (after !== undefined && after < value)
              throw new Error(`${series} fell from ${value} to ${after}`)
          }
          const sum = (all: readonly Family[]): number =>
            samplesOf(all, name).reduce((total, { value }) => total + value, 0)
          if (sum(now) < sum(before) * (1 - 1e-12)) throw new Error(`${name} in all fell`)
          const labels = new Set(samplesOf(now, name).map(({ labels }) => labels['generation']))
          if (labels.size > 11) throw new Error(`${name} has ${labels.size} generations`)
        }
        before = now
      }
    }),
    { numRuns: 15 },
  )

  const many = Array.from({ length: 25 }, (_, i) => totalsOf(i + 1, 10 * (i + 1)))
  const all = bounded(many)
  t.strictSame(
    all.map(({ generation }) => generation),
    ['older', ...Array.from({ length: 10 }, (_, i) => 16 + i)],
  )
  t.equal(all[0]?.version, '')
  t.equal(all[0]?.requests, 1200, 'those of 1 to 15')
  t.strictSame(bounded([...bounded(many.slice(0, 14)), ...many.slice(14)]), all, 'in two goes as in one')
  t.strictSame(bounded(many.toReversed()), all, 'in any order')
  t.strictSame(bounded([]), [])
})

t.test('the bounds that are shown, of those that workers count by', async (t) => {
  t.strictSame(
    SHOWN_BOUNDS_MS,
    Array.from({ length: 14 }, (_, i) => 2 ** i),
  )
  const onlyIn = (bucket: number) => Array.from({ length: LATENCY_BUCKETS }, (_, i) => (i === bucket ? 1 : 0))
  for (let bucket = 0; bucket < LATENCY_BUCKETS; bucket++) {
    const { below, count } = cumulative(onlyIn(bucket))
    t.equal(count, 1)
    t.strictSame(
      below,
      SHOWN_BOUNDS_MS.map((ms) => (latencyBoundMs(bucket) <= ms ? 1 : 0)),
      `what takes less than ${latencyBoundMs(bucket)} ms`,
    )
  }
})

t.test('which format', async (t) => {
  const openmetrics = 'application/openmetrics-text'
  for (const [accept, format] of [
    [undefined, 'text'],
    ['*/*', 'text'],
    [
      `${openmetrics};version=1.0.0;q=0.5,${openmetrics};version=0.0.1;q=0.4,text/plain;q=0.3,*/*;q=0.2`,
      'openmetrics',
    ],
    [`text/plain;version=0.0.4;q=0.6,${openmetrics};version=1.0.0;q=0.5`, 'text'],
    [`${openmetrics}; version=0.0.1`, 'text'],
    [openmetrics, 'openmetrics'],
    [`${openmetrics};q=0`, 'text'],
    [`${openmetrics};q=x`, 'text'],
    [',;,', 'text'],
  ] as const) {
    t.equal(formatFor(accept), format, accept ?? 'nothing asked for')
  }
})

t.test('readyz', async (t) => {
  for (const [status, code, said] of [
    [STEADY, 200, 'ok: 2 of 2 workers serve\n'],
    [CANARY, 200, 'ok: 2 of 2 workers serve\n'],
    [{ ...STEADY, ready: 1 }, 200, 'ok: 1 of 2 workers serves\n'],
    [
      { ...STEADY, state: 'starting', ready: 0, waitsFor: 'for 2 workers to become ready' },
      503,
      'starting: 0 of 2 workers serve; the master waits for 2 workers to become ready\n',
    ],
    [{ ...STEADY, ready: 0 }, 503, 'not ready: 0 of 2 workers serve\n'],
    [{ ...STEADY, state: 'stopping' }, 503, 'stopping: 2 workers left\n'],
  ] as const) {
    const { status: is, text } = readiness(status)
    t.strictSame([is, text], [code, said])
  }
})

async function serve(
  t: Test,
  { listen, ...options }: Partial<MetricsOptions> = {},
): Promise<{
  readonly metrics: Metrics
  readonly where: { readonly port: number }
  readonly warnings: string[]
}> {
  const port = await freePort(t)
  const warnings: string[] = []
  const metrics = await openMetrics({
    listen: listen ?? { host: '127.0.0.1', port },
    status: () => CANARY,
    totals: () => [totalsOf(7), totalsOf(8)],
    verdicts: () => NO_VERDICTS,
    log: { warn: (_, text) => warnings.push(text) },
    ...options,
  })
  t.teardown(() => metrics.close())
  return { metrics, where: { port }, warnings }
}

/** With the head. */
async function ask(where: { readonly port: number }, method: string, path: string, headers = {}) {
  const request = http.request({ host: '127.0.0.1', ...where, method, path, headers, agent: false }).end()
  const [response] = (await once(request, 'response')) as [http.IncomingMessage]
  let body = ''
  for await (const chunk of response) body += String(chunk)
  return { status: response.statusCode, headers: response.headers, body }
}

t.test('over HTTP', async (t) => {
  t.test('the three pages, and nothing else', async (t) => {
    const { metrics, where } = await serve(t)
    t.equal(metrics.address, `127.0.0.1:${where.port}`)
    const page = await ask(where, 'GET', '/metrics?name[]=x')
    t.equal(page.status, 200)
    t.equal(page.headers['content-type'], 'text/plain; version=0.0.4; charset=utf-8')
    t.equal(page.headers['connection'], 'close')
    t.ok(parseExposition(page.body, 'text').length > 20)
    const open = await ask(where, 'GET', '/metrics', { accept: 'application/openmetrics-text' })
    t.equal(open.headers['content-type'], 'application/openmetrics-text; version=1.0.0; charset=utf-8')
    t.ok(parseExposition(open.body, 'openmetrics').length > 20)
    t.strictSame(await get(where, '/livez'), { status: 200, body: 'ok\n' })
    t.equal((await get(where, '/readyz')).status, 200)
    for (const path of ['/', '/metrics/', '/metricsx', '//metrics', '/../metrics']) {
      t.equal((await get(where, path)).status, 404, path)
    }
    for (const method of ['POST', 'PUT', 'DELETE', 'HEAD', 'OPTIONS']) {
      const { status, headers } = await ask(where, method, '/metrics')
      t.strictSame([status, headers['allow']], [405, 'GET'], method)
    }
  })

  t.test('what the master cannot say is an error, and no end', async (t) => {
    let broken = true
    const status = (): Status => {
      if (broken) throw new Error('no status')
      return STEADY
    }
    const { where, warnings } = await serve(t, { status })
    t.equal((await get(where, '/metrics')).status, 500)
    t.equal((await get(where, '/livez')).status, 200)
    t.strictSame(warnings, ['could not answer /metrics of the metrics'])
    broken = false
    t.equal((await get(where, '/metrics')).status, 200)
  })

  t.test('a stop is told, until the end', async (t) => {
    let status = STEADY
    const { metrics, where } = await serve(t, { status: () => status, limits: { connectionMs: 60_000 } })
    t.equal((await get(where, '/readyz')).status, 200)
    status = { ...STEADY, state: 'stopping' }
    t.strictSame(await get(where, '/readyz'), { status: 503, body: 'stopping: 2 workers left\n' })
    t.equal((await get(where, '/livez')).status, 200)
    const slow = await openRaw(t, { ...where, allowHalfOpen: true })
    const idle = await openRaw(t, { ...where, allowHalfOpen: true })
    slow.send('GET /livez HTTP/1.1\r\nHost: ')
    // Answered later than they were sent: what was sent before has arrived.
    await get(where, '/livez')
    const closed = Promise.all([metrics.close(), metrics.close(), slow.ended(), idle.ended()])
    await deadline(closed, 20_000, 'the end, with clients connected')
    await t.rejects(get(where, '/livez'), { code: 'ECONNREFUSED' })
  })
})

t.test('bad clients', async (t) => {
  t.test('a head of more than 8 KiB is refused', async (t) => {
    const { where } = await serve(t)
    const client = await openRaw(t, where)
    client.get('/metrics', `X: ${'y'.repeat(9 * 1024)}`)
    t.equal((await client.response()).status, 431)
    await client.ended()
    const other = await openRaw(t, where)
    t.equal((await other.get('/metrics', `X: ${'y'.repeat(7 * 1024)}`).response()).status, 200)
  })

  t.test('no HTTP at all', async (t) => {
    const { where } = await serve(t)
    const client = await openRaw(t, where)
    t.equal((await client.send('\x16\x03\x01 hello\r\n\r\n').response()).status, 400)
  })

  t.test('a large body is not read', async (t) => {
    const { where } = await serve(t)
    const client = await openRaw(t, where)
    client.send(`POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n${'z'.repeat(100)}`)
    t.equal((await client.response()).status, 405)
    await client.ended()
  })

  t.test('pipelined requests: one is answered, and no other is made', async (t) => {
    let scrapes = 0
    const status = () => {
      scrapes++
      return STEADY
    }
    const { where } = await serve(t, { status })
    for (const page of ['/livez', '/metrics']) {
      const client = await openRaw(t, where)
      client.send(`GET ${page} HTTP/1.1\r\nHost: x\r\n\r\n`.repeat(100))
      t.equal((await client.response()).status, 200)
      await client.ended()
      t.equal(client.rest, '')
    }
    t.equal(scrapes, 1)
  })

  const connectionMs = 300
  for (const [name, sends] of [
    ['nothing', ''],
    ['half a head', 'GET /metrics HTTP/1.1\r\nHost: '],
    ['half a body', 'POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n'],
  ] as const) {
    t.test(`who sends ${name} and waits is closed`, async (t) => {
      const { where } = await serve(t, { limits: { connectionMs } })
      const client = await openRaw(t, { ...where, allowHalfOpen: true })
      client.send(sends)
      t.match(await client.ended(), /FIN|ECONNRESET/)
    })
  }

  t.test('slowly, a byte at a time', async (t) => {
    const { where } = await serve(t, { limits: { connectionMs } })
    const client = await openRaw(t, where)
    const drip = setInterval(() => client.send('x'), 20)
    t.teardown(() => clearInterval(drip))
    client.send('GET /metrics HTTP/1.1\r\nX: ')
    t.match(await client.ended(), /FIN|ECONNRESET/)
  })

  t.test('as many as there may be, and more: who says nothing makes way', async (t) => {
    const connections = 8
    const { where } = await serve(t, { limits: { connections, connectionMs: 2_000 } })
    const clients = await Promise.all(Array.from({ length: 50 }, () => openRaw(t, where)))
    await until(() => clients.filter(({ ending }) => ending === null).length === connections, {
      timeoutMs: 10_000,
      what: `${connections} that are left`,
    })
    // Held by others all the while, and each time somebody gets in.
    for (let i = 0; i < 20; i++) {
      t.equal((await get(where, '/livez')).status, 200)
      await openRaw(t, where)
    }
    await Promise.all(clients.map((client) => client.ended()))
    t.equal((await get(where, '/metrics')).status, 200)
  })
})

const quiet: Omit<MetricsOptions, 'listen'> = {
  status: () => STEADY,
  totals: () => [],
  verdicts: () => NO_VERDICTS,
  log: { warn: () => {} },
}
const sentence = (listen: MetricsListen): Promise<string> =>
  openMetrics({ ...quiet, listen }).then(
    async (metrics) => {
      await metrics.close()
      return 'opened'
    },
    (error: unknown) => (error instanceof MetricsError ? error.message : `no MetricsError: ${String(error)}`),
  )

t.test('an address that cannot be had', async (t) => {
  const { where } = await serve(t)
  const end = 'Give another place with --metrics.'
  t.match(
    await sentence({ host: '127.0.0.1', ...where }),
    /^Could not serve the metrics at 127\.0\.0\.1:\d+: .+ listens there\. /,
  )
  const directory = shortTmp(t)
  t.equal(
    await sentence({ path: join(directory, 'no/m.sock') }),
    `Could not serve the metrics at ${directory}/no/m.sock: there is no directory ${directory}/no. ${end}`,
  )
  t.match(await sentence({ path: join(directory, 'x'.repeat(100)) }), /too long for a socket/)
})

t.test('an address for other machines: of a pod the kubelet asks from outside', async (t) => {
  const port = await freePort(t)
  const metrics = await openMetrics({ ...quiet, listen: { host: '0.0.0.0', port } })
  t.teardown(() => metrics.close())
  t.equal(metrics.address, `0.0.0.0:${port}`)
  t.equal((await get({ port }, '/livez')).status, 200)
})

t.test('a unix socket', async (t) => {
  const open = (path: string) => openMetrics({ ...quiet, listen: { path } })

  t.test('is for user and group, alone in its directory, and gone afterwards', async (t) => {
    const directory = shortTmp(t)
    const path = join(directory, 'm.sock')
    const umask = process.umask(0o077)
    t.teardown(() => process.umask(umask))
    const metrics = await open(path)
    t.equal(metrics.address, path)
    t.equal(lstatSync(path).mode & 0o777, 0o660, 'whatever the umask')
    t.equal(process.umask(), 0o077, 'which is as it was')
    t.strictSame(readdirSync(directory), ['m.sock'])
    const where: Where = { socketPath: path }
    t.strictSame(await get(where, '/livez'), { status: 200, body: 'ok\n' })
    await metrics.close()
    t.strictSame(readdirSync(directory), [])
  })

  t.test('of a killed master is replaced', async (t) => {
    const path = join(shortTmp(t), 'm.sock')
    const child = start(t, process.execPath, {
      args: ['-e', 'require("net").createServer().listen(process.argv[1], () => console.log("up"))', path],
    })
    await child.line('up')
    t.match(await sentence({ path }), /another process answers there/)
    process.kill(child.pid, 'SIGKILL')
    await child.exited
    t.ok(existsSync(path))
    const metrics = await open(path)
    t.equal((await get({ socketPath: path }, '/livez')).status, 200)
    await metrics.close()
  })

  t.test('what is no socket stays', async (t) => {
    const directory = shortTmp(t)
    writeFileSync(join(directory, 'file'), 'kept')
    mkdirSync(join(directory, 'directory'))
    symlinkSync('file', join(directory, 'link'))
    t.match(
      await sentence({ path: join(directory, 'file') }),
      /it is not a socket, which usr2 does not replace/,
    )
    t.match(await sentence({ path: join(directory, 'directory') }), /it is a directory/)
    t.match(await sentence({ path: join(directory, 'link') }), /it is a symbolic link/)
    t.equal(readFileSync(join(directory, 'file'), 'utf8'), 'kept')
    t.strictSame(readdirSync(directory).sort(), ['directory', 'file', 'link'])
  })

  t.test("a successor's file stays", async (t) => {
    const path = join(shortTmp(t), 'm.sock')
    const metrics = await open(path)
    rmSync(path)
    const successor = createServer().listen(path)
    await once(successor, 'listening')
    t.teardown(() => successor.close())
    await metrics.close()
    t.ok(existsSync(path))
  })
})

t.test('what is built holds only what is needed', async (t) => {
  const { code, stdout, stderr } = await run(t, process.execPath, {
    args: [
      ...['--expose-internals', '--input-type=module', '--eval'],
      `const before = new Set(process.moduleLoadList)
       const { openMetrics } = await import(${JSON.stringify(pathToFileURL(join(root, 'dist/metrics.mjs')).href)})
       console.log(typeof openMetrics, process.moduleLoadList.filter((m) => !before.has(m)).filter((m) => /undici|cluster|http2/.test(m)).join())`,
    ],
  })
  t.equal(code, 0, stderr)
  t.equal(stdout.trim(), 'function', 'undici, by an import of node:http, is 14 MB')
  t.notMatch(readFileSync(join(root, 'dist/metrics.mjs'), 'utf8'), /opentelemetry/)
})

t.test('docs/metrics.md names them all (REWRITE=1 writes it)', async (t) => {
  const page = join(root, 'docs/metrics.md')
  const rows = METRICS.map(
    ({ name, type, labels = [], help }) =>
      `| \`${name}\` | ${type} | ${labels.map((label) => `\`${label}\``).join(', ')} | ${help} |`,
  )
  const table = ['| name | type | labels | |', '| --- | --- | --- | --- |', ...rows].join('\n')
  const text = readFileSync(page, 'utf8')
  const renewed = text.replace(
    /(<!-- metrics -->\n\n)[^]*?(\n\n<!-- \/metrics -->)/,
    (_, a: string, b: string) => a + table + b,
  )
  if (process.env['REWRITE'] === '1') writeFileSync(page, renewed)
  else t.equal(text, renewed)
  t.ok(renewed.includes(table), 'the page has a place for it')
  // The queries on the page are of metrics that there are.
  const known = METRICS.flatMap(({ name, type }) =>
    type === 'histogram' ? [name, `${name}_bucket`, `${name}_sum`, `${name}_count`] : [name],
  )
  const used = new Set(text.match(/\b(?:usr2|process|nodejs)_[a-z0-9_]+/g))
  t.strictSame(
    [...used].filter((name) => !known.includes(name)),
    [],
  )
})
