/** The configuration of rollouts: steps, analysis, probes, limits of a worker, hooks, metrics. */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { configJsonSchema } from '../../src/config/jsonschema.ts'
import { MAX_STEPS } from '../../src/config/rollout.ts'
import * as c from '../../src/config.ts'
import { policyOf } from '../../src/master/workers/generation.ts'
import { HOOKS, METRICS } from '../../src/rollout/state.ts'
import type { Step } from '../../src/rollout/state.ts'

const cwd = t.testdir({ 'package.json': '{"name": "shop"}' })
const path = join(cwd, 'usr2.json')

const load = (argv: readonly string[], env: NodeJS.ProcessEnv = {}) =>
  c.loadConfig({ argv: [...argv, 'server.js'], env, cwd })
function good(argv: readonly string[], env?: NodeJS.ProcessEnv): c.Config {
  const result = load(argv, env)
  if (!result.ok) throw new Error(`refused: ${result.complaints.join(' | ')}`)
  return result.config
}
function bad(argv: readonly string[], env?: NodeJS.ProcessEnv): readonly string[] {
  const result = load(argv, env)
  if (result.ok) throw new Error(`should have been refused: ${argv.join(' ')}`)
  return result.complaints
}
/** The arguments for a config file that says so. */
function file(content: unknown): string[] {
  writeFileSync(path, JSON.stringify(content))
  return ['--config', 'usr2.json']
}
const flags = (given: Readonly<Record<string, string>>) => Object.entries(given).flat()

const share = (percent: number): Step => ({ k: 'share', percent })
const hold = (forMs: number | 'promote'): Step => ({ k: 'hold', forMs })
const ERRORS = { metric: 'errorRate', op: '<', value: 0.01, relative: false } as const
const ANALYSIS = {
  intervalMs: 30_000,
  count: 3,
  failureLimit: 0,
  minRequests: 50,
  inconclusive: 'pause',
  limits: [ERRORS],
} as const

void t.test('a strategy is a name for steps, with its own surge and park', async (t) => {
  const percent = (n: number) => ({ k: 'percent', n })
  const none = { k: 'workers', n: 0 }
  const whole = { maxSurge: percent(100), maxUnavailable: none, replaced: 'parked', parkForMs: 0 }
  const canary = [share(10), hold(300_000), share(30), hold(300_000), share(60), hold(300_000), share(100)]
  const expected: Record<string, object> = {
    switch: { strategy: 'switch', steps: [share(100)], ...whole },
    rolling: {
      strategy: 'rolling',
      steps: [share(100)],
      ...{ maxSurge: percent(25), maxUnavailable: percent(25), replaced: 'drained', parkForMs: 0 },
    },
    canary: { strategy: 'canary', steps: canary, ...whole },
    blueGreen: {
      strategy: 'blueGreen',
      steps: [share(0), hold('promote'), share(100)],
      ...whole,
      parkForMs: 600_000,
    },
  }
  for (const [name, fields] of Object.entries(expected)) {
    const { strategy, steps, maxSurge, maxUnavailable, replaced, parkForMs } = good(['--strategy', name])
    t.strictSame({ strategy, steps, maxSurge, maxUnavailable, replaced, parkForMs }, fields, name)
  }
  t.equal(good(['--strategy', 'blue-green']).strategy, 'blueGreen')
  t.equal(good(['--strategy', 'blue-green', '--park-for', '0']).parkForMs, 0)
  t.match(bad(['--strategy', 'recreate']), [/; it must be switch, rolling, canary or blue-green\.$/])
})

void t.test('own steps, as text and as a list', async (t) => {
  const text = '10% 5m, 30.5% promote, 60% analyse'
  const steps = [share(10), hold(300_000), share(30.5), hold('promote'), share(60)]
  const expected = [...steps, { k: 'analyse', analysis: ANALYSIS }, share(100)]
  const analysis = ['--analysis', 'errorRate < 1%']
  const list = [
    ...[{ share: '10%' }, { hold: '5m' }, { share: '30.5%' }, { hold: 'promote' }, { share: '60%' }],
    { analyse: { limits: ['errorRate < 1%'] } },
    { share: '100%' },
  ]
  t.strictSame(good([...analysis, '--steps', text]).steps, expected)
  t.strictSame(good(analysis, { USR2_STEPS: `${text}, 100%` }).steps, expected, 'a variable; 100% said')
  t.strictSame(good(file({ steps: list })).steps, expected, 'a list, with an analysis of its own')
  t.strictSame(good(file({ steps: text, analysis: 'errorRate < 1%' })).steps, expected, 'text in a file')
  const own = good(['--steps', '0% 5m'])
  t.strictSame(own.steps, [share(0), hold(300_000), share(100)])
  t.match(own, { strategy: 'switch', maxSurge: { k: 'percent', n: 100 }, replaced: 'parked' })
  t.strictSame(good(['--steps', '50%, 100% 1h']).steps, [share(50), share(100), hold(3_600_000)])
})

void t.test('whatever is written as steps is read, or refused by a rule', async () => {
  const step = fc.oneof(
    fc.integer({ min: 0, max: 1000 }).map((tenths) => share(tenths / 10)),
    fc.integer({ min: 1, max: 10_000 }).map(hold),
    fc.constant(hold('promote')),
  )
  const write = (step: Step) =>
    step.k === 'share'
      ? `${step.percent}%`
      : step.k === 'hold'
        ? `${step.forMs}${step.forMs === 'promote' ? '' : 'ms'}`
        : 'analyse'
  fc.assert(
    fc.property(fc.array(step, { minLength: 1, maxLength: 8 }), (steps) => {
      const shares = steps.flatMap((step) => (step.k === 'share' ? [step.percent] : []))
      const rising = shares.every((share, at) => at === 0 || share > (shares[at - 1] ?? 0))
      const result = load(['--steps', steps.map(write).join(' ')])
      if (steps[0]?.k !== 'share' || !rising) return !result.ok
      const wanted = shares.at(-1) === 100 ? steps : [...steps, share(100)]
      return result.ok && JSON.stringify(result.config.steps) === JSON.stringify(wanted)
    }),
  )
})

void t.test('steps that make no rollout', async (t) => {
  const refused: Record<string, RegExp> = {
    '5m, 10%': /^--steps is "5m, 10%"; it must be a list that begins with a share\.$/,
    '30% 5m, 10%': /; it must be a list of shares that rise, and 10% comes after 30%\.$/,
    '10%, 10%': /; it must be a list of shares that rise, and 10% comes after 10%\.$/,
    '10%, 0%': /shares that rise, and 0% comes after 10%\.$/,
    '101%': /^--steps is "101%"; it must be a share from 0% to 100%, whole or with one decimal\.$/,
    '10% 5m, 12.34%': /, with "12\.34%" in it; there it must be a share from 0% to 100%/,
    '10% 5x':
      /^--steps is "10% 5x", with "5x" in it; there it must be a time such as 30s or 5m, or promote\.$/,
    '10% 0': /with 0 in it/,
    ',': /^--steps is ","; it must be a list that begins with a share\.$/,
    ' ': /^--steps is empty; it must be steps such as/,
    '10% analyse': /^--steps has a step that analyses, and nothing says what; give --analysis/,
    [Array.from({ length: MAX_STEPS }, (_, n) => `${n}%`).join()]: /a list of at most 50 steps\.$/,
  }
  for (const [steps, pattern] of Object.entries(refused)) t.match(bad(['--steps', steps]), [pattern])
  const longest = Array.from({ length: MAX_STEPS - 1 }, (_, n) => `${n}%`).join()
  t.equal(good(['--steps', longest]).steps.length, MAX_STEPS)
  t.strictSame(bad([...file({ steps: '10%' }), '--strategy', 'switch']), [
    `--strategy and "steps" in ${path} are both given; a strategy is a name for a list of steps, so give one of them.`,
  ])
  t.strictSame(bad(file({ steps: [{ share: '10%', hold: '5m' }, {}, { hodl: '5m' }] })), [
    `"steps[0]" in ${path} is {"share":"10%","hold":"5m"}; it must be an object with one of share, hold and analyse.`,
    `"steps[1]" in ${path} is {}; it must be an object with one of share, hold and analyse.`,
    `"steps[2].hodl" in ${path} is no key of usr2; did you mean "hold"?`,
  ])
})

void t.test('surge and unavailable', async (t) => {
  const { maxSurge, maxUnavailable } = good(flags({ '--max-surge': '2', '--max-unavailable': '10%' }))
  t.strictSame([maxSurge, maxUnavailable], [{ k: 'workers', n: 2 }, { k: 'percent', n: 10 }]) // prettier-ignore
  t.strictSame(good(file({ maxSurge: 1, maxUnavailable: '0%' })).maxSurge, { k: 'workers', n: 1 })
  t.strictSame(bad(['--max-surge', '0']), [
    '--max-surge is 0, and --max-unavailable is not given, which means 0: no worker could ever be replaced; raise one of them.',
  ])
  t.match(bad(file({ maxSurge: '0%', maxUnavailable: 0 })), [
    /^"maxSurge" in .* is 0, and "maxUnavailable" in .* is 0: /,
  ])
  t.equal(
    good(['--strategy', 'rolling', '--max-surge', '0']).maxSurge.n,
    0,
    'rolling may be short of workers',
  )
  for (const amount of ['-1', '1.5', '101%', '2.5%', 'all', '25 %', '1025']) {
    t.match(bad(['--max-surge', amount]), [
      /^--max-surge is .*; it must be a whole number of workers from 0 to 1024/,
    ])
  }
})

void t.test('times of a rollout', async (t) => {
  t.equal(good(['--min-ready-seconds', '10']).minReadyMs, 10_000, 'as Kubernetes writes it')
  t.equal(good(['--min-ready-seconds', '1500ms']).minReadyMs, 1500)
  t.equal(good(file({ minReadySeconds: 3 })).minReadyMs, 3000)
  t.match(bad(['--min-ready-seconds', '1.5']), [
    /; it must be a whole number of seconds, or a time such as 10s\.$/,
  ])
  t.equal(bad(['--min-ready-seconds', '3000000']).length, 1, 'more than a timer can wait')
  t.match(good(flags({ '--progress-deadline': '1m', '--park-for': '2m', '--hook-timeout': '3s' })), {
    ...{ progressDeadlineMs: 60_000, parkForMs: 120_000, hookTimeoutMs: 3000 },
  })
})

void t.test('analysis: limits as text, everything in the file', async (t) => {
  t.strictSame(good(['--strategy', 'canary', '--analysis', 'errorRate < 1%']).analysis, ANALYSIS)
  const given = { interval: '30s', count: 4, failureLimit: 1, minRequests: 50, inconclusive: 'fail' }
  const limits = ['p99 < 1.5x', 'crashes <= 0']
  t.strictSame(good(file({ analysis: { ...given, limits } })).analysis, {
    ...{ intervalMs: 30_000, count: 4, failureLimit: 1, minRequests: 50, inconclusive: 'fail' },
    limits: limits.map(c.parseLimit),
  })
  t.strictSame(
    bad(file({ analysis: { interval: '0', count: 0, inconclusive: 'no', limits: ['p99 < 3', 'p99 < 3s'] } })),
    [
      `"analysis.interval" in ${path} is "0"; it must be a time such as 500ms, 30s, 5m or 1h, more than 0, at most 596h.`,
      `"analysis.count" in ${path} is 0; it must be a whole number of at least 1.`,
      `"analysis.inconclusive" in ${path} is "no"; it must be pause, pass or fail.`,
      `"analysis.limits[0]" in ${path} is "p99 < 3"; it must be a limit such as errorRate < 1%, p99 < 300ms, p99 < 1.5x or crashes <= 0.`,
    ],
  )
  t.match(bad(file({ analysis: {} })), [
    /^"analysis\.limits" in .* is not given; it must be a list of at least one limit/,
  ])
  t.match(bad(file({ steps: [{ share: '1%' }, { analyse: { limits: ['x'] } }] })), [
    /^"steps\[1\]\.analyse\.limits\[0\]" in .* is "x"; it must be a limit such as/,
  ])
  t.match(bad(['--analysis', 'errorRate < 1%, p98 < 3s']), [
    /, with "p98 < 3s" in it; there it must be a limit such as/,
  ])
  t.match(bad(['--on-failure', 'ignore']), [/; it must be rollback or pause\.$/])
})

void t.test('a canary that is analysed measures for as long as it would have held', async (t) => {
  const counts = (interval: string) =>
    good(file({ strategy: 'canary', analysis: { interval, limits: ['errorRate < 1%'] } })).steps.map(
      (step) => (step.k === 'analyse' ? step.analysis.count : step.k),
    )
  t.strictSame(counts('40s'), ['share', 7, 'share', 7, 'share', 7, 'share'])
  t.strictSame(counts('1h'), ['share', 1, 'share', 1, 'share', 1, 'share'])
  const blueGreen = load(['--strategy', 'blue-green', '--analysis', 'errorRate < 1%'])
  t.match(blueGreen, { ok: true, config: { steps: [share(0), hold('promote'), share(100)] } })
  t.match(blueGreen, { warnings: [/^--analysis changes nothing: no step analyses\./] })
  t.strictSame(load(['--strategy', 'canary', '--analysis', 'errorRate < 1%']), {
    ...{ ok: true, warnings: [] },
    config: good(['--strategy', 'canary', '--analysis', 'errorRate < 1%']),
  })
})

void t.test('limits: what is written is what is read', async (t) => {
  t.strictSame(c.parseLimit('errorRate < 1%'), ERRORS)
  t.strictSame(c.parseLimit(' p99<=1.5s '), { metric: 'p99', op: '<=', value: 1500, relative: false })
  t.strictSame(c.parseLimit('loopDelay < 2x'), { metric: 'loopDelay', op: '<', value: 2, relative: true })
  const metrics = {
    errorRate: '%',
    p50: 'ms',
    p90: 's',
    p99: 'x',
    probeSuccess: '%',
    loopDelay: 'ms',
    crashes: '',
  }
  const digits = fc
    .tuple(fc.nat(100), fc.nat(999))
    .map(([whole, part]) => (whole < 100 ? `${whole}.${part}` : '100'))
  const op = fc.constantFrom('<', '<=', '>', '>=')
  fc.assert(
    fc.property(fc.constantFrom(...METRICS), op, digits, (metric, op, digits) => {
      const limit = c.parseLimit(`${metric} ${op} ${digits}${metrics[metric]}`)
      if (limit === undefined) return false
      const factor = { '%': 0.01, s: 1000 }[metrics[metric]] ?? 1
      if (Math.abs(limit.value - Number(digits) * factor) > 1e-9) return false
      return JSON.stringify(c.parseLimit(c.limitText(limit))) === JSON.stringify(limit)
    }),
    { numRuns: 1000 },
  )
  for (const text of [
    'errorRate < 1%',
    'p99 < 300ms',
    'p99 < 1.5x',
    'probeSuccess >= 98%',
    'crashes <= 0',
    'errorRate > 0.07%',
  ]) {
    const limit = c.parseLimit(text)
    t.equal(limit && c.limitText(limit), text)
  }
  for (const text of [
    '',
    'errorRate',
    'errorRate < 1',
    'errorRate < 101%',
    'p99 < 1',
    'p99 < 1%',
    'p95 < 1s',
    'crashes < 1x',
    'p99 = 1s',
    'p99 < -1s',
    'p99 < 1e3ms',
    'toString < 1%',
    'p99 < 1s p50 < 1s',
  ]) {
    t.equal(c.parseLimit(text), undefined, text)
  }
})

void t.test('probes as flags', async (t) => {
  const target = (probe: string) => good(['--readiness', probe]).probes.readiness?.target
  const http = { k: 'http', path: '/healthz', headers: {}, expect: [200, 399], port: null }
  t.strictSame(target('/healthz'), http)
  t.strictSame(target('tcp'), { k: 'tcp', port: null })
  t.strictSame(target('tcp:3000'), { k: 'tcp', port: 3000 })
  t.strictSame(target('message'), { k: 'message' })
  t.strictSame(target('event-loop'), { k: 'event-loop' })
  const { probes } = good(flags({ '--startup': '/up', '--readiness': '/up', '--liveness': '/up' }))
  const times = { initialDelayMs: 0, periodMs: 10_000, timeoutMs: 1000, successThreshold: 1 }
  const up = { ...http, path: '/up' }
  t.strictSame(probes, {
    startup: { target: up, ...times, failureThreshold: 30 },
    readiness: { target: up, ...times, failureThreshold: 3 },
    liveness: { target: up, ...times, failureThreshold: 3 },
  })
  t.strictSame(good(['--liveness', 'none']).probes, {})
  t.strictSame(good(['--liveness=none'], { USR2_READINESS: 'tcp' }).probes.readiness?.target, {
    k: 'tcp',
    port: null,
  })
  for (const probe of ['health', 'tcp:', 'tcp:x', 'eventLoop', 'constructor', '']) {
    t.match(bad(['--readiness', probe]), [
      /^--readiness is .*; it must be \/path, tcp, tcp:PORT, message, event-loop or none/,
    ])
  }
  t.match(bad(['--readiness', 'tcp:70000']), [
    /, with 70000 in it; there it must be a port from 1 to 65535, or true\.$/,
  ])
  t.match(bad(['--readiness', '/a b']), [/; it must be a path that begins with a slash, without spaces\.$/])
})

void t.test('probes in the file', async (t) => {
  const headers = { host: 'shop.example' }
  const readiness = {
    http: { path: '/ready', headers, expect: 204, port: 3000 },
    period: '2s',
    timeout: 500,
    initialDelay: '1s',
    successThreshold: 2,
    failureThreshold: 5,
  }
  const probes = { startup: { tcp: true }, readiness, liveness: 'none' }
  const expected = {
    startup: { target: { k: 'tcp', port: null }, failureThreshold: 30 },
    readiness: {
      target: { k: 'http', path: '/ready', headers, expect: [204, 204], port: 3000 },
      ...{ initialDelayMs: 1000, periodMs: 2000, timeoutMs: 500, successThreshold: 2, failureThreshold: 5 },
    },
  }
  t.match(good(file({ probes })).probes, expected)
  t.match(good(file(probes)).probes, expected, 'under the names of the flags')
  t.equal(good(file({ probes })).probes.liveness, undefined)
  t.strictSame(good([...file({ probes }), '--readiness', 'message']).probes.readiness?.target, {
    k: 'message',
  })
  t.strictSame(bad(file({ probes: { readiness: 'tcp' }, readiness: 'tcp' })), [
    `"readiness" in ${path} is given twice, here and as "probes.readiness" in ${path}; give it once.`,
  ])
  const http = { path: 'x', expect: '399-200', port: 0, headers: { 'a b': 'c' }, method: 'GET' }
  t.strictSame(
    bad(
      file({
        probes: {
          startup: { message: true, tcp: true },
          readiness: { http, period: '0' },
          liveness: { eventLoop: true, successThreshold: 2, perod: '1s' },
          livenes: 'tcp',
        },
      }),
    ),
    [
      `"probes.livenes" in ${path} is no key of usr2; did you mean "probes.liveness"?`,
      `"probes.startup" in ${path} is {"message":true,"tcp":true}; it must be a probe of exactly one kind: http, tcp, message or eventLoop.`,
      `"probes.readiness.http.path" in ${path} is "x"; it must be a path that begins with a slash, without spaces.`,
      `"probes.readiness.http.headers.a b" in ${path} is "c"; it must be under a name that a header can have.`,
      `"probes.readiness.http.expect" in ${path} is "399-200"; it must be a status such as 200, or from and to, such as 200-399.`,
      `"probes.readiness.http.port" in ${path} is 0; it must be a port from 1 to 65535.`,
      `"probes.readiness.http.method" in ${path} is no key of usr2; known there are path, headers, expect, port.`,
      `"probes.readiness.period" in ${path} is "0"; it must be a time such as 500ms, 30s, 5m or 1h, more than 0, at most 596h.`,
      `"probes.liveness.successThreshold" in ${path} is 2; it must be 1 for liveness.`,
      `"probes.liveness.perod" in ${path} is no key of usr2; did you mean "period"?`,
    ],
  )
})

void t.test('warm-up', async (t) => {
  t.strictSame(good(['--warm-up', '50']).warmUp, { paths: ['/'], count: 50 })
  t.strictSame(good(['--warm-up', '/, /search?q=1']).warmUp, { paths: ['/', '/search?q=1'], count: 10 })
  t.equal(good(['--warm-up', '0']).warmUp, null)
  t.strictSame(good(file({ warmUp: { paths: ['/a'], count: 3 } })).warmUp, { paths: ['/a'], count: 3 })
  t.strictSame(good(file({ warmUp: 7 })).warmUp, { paths: ['/'], count: 7 })
  t.match(bad(['--warm-up', 'a,/b']), [
    /^--warm-up is "a,\/b"; it must be a whole number up to 10000, or paths/,
  ])
  t.match(bad(['--warm-up', '/a,b']), [/, with "b" in it; there it must be a path that begins with a slash/])
  t.match(bad(['--warm-up', '10001']), [/^--warm-up is "10001"; it must be a whole number/])
  t.match(bad(file({ warmUp: { paths: [] } })), [
    /^"warmUp\.paths" in .* is \[\]; it must be a list of 1 to 100 paths\.$/,
  ])
})

void t.test('limits of a worker', async (t) => {
  const config = good(flags({ '--max-memory': '512M', '--max-requests': '1000', '--max-age': '1h' }))
  t.match(config, { maxMemoryBytes: 512 * 1024 ** 2, maxRequests: 1000, maxAgeMs: 3_600_000 })
  t.equal(good(file({ maxMemory: 2 ** 30 })).maxMemoryBytes, 2 ** 30)
  for (const size of ['512', '15M', '0', '512MB', 'lots']) {
    t.match(bad(['--max-memory', size]), [/; it must be a size such as 512M or 2G, at least 16M\.$/], size)
  }
  t.match(bad(['--max-requests', '0']), [/; it must be a whole number of at least 1\.$/])
  t.match(bad(['--max-age', '0']), [/; it must be a time .* more than 0/])
})

void t.test('hooks', async (t) => {
  const hooks = { beforeSpawn: './migrate.sh --now', beforeStop: ['./leave', 'a b', ''] }
  t.strictSame(good(file({ hooks })).hooks, {
    beforeSpawn: { command: ['/bin/sh', '-c', './migrate.sh --now'] },
    beforeStop: { command: ['./leave', 'a b', ''] },
  })
  const every = Object.fromEntries(HOOKS.map((hook) => [hook, 'true']))
  t.strictSame(Object.keys(good(file({ hooks: every })).hooks).sort(), [...HOOKS].sort())
  t.strictSame(bad(file({ hooks: { beforeSpwan: 'x', afterPromote: [], afterRollback: ' ' } })), [
    `"hooks.afterPromote" in ${path} is []; it must be a command of the shell, or a list of a program and its arguments.`,
    `"hooks.afterRollback" in ${path} is empty; it must be a command of the shell, or a list of a program and its arguments.`,
    `"hooks.beforeSpwan" in ${path} is no key of usr2; did you mean "beforeSpawn"?`,
  ])
  t.match(bad(file({ hooks: 'x' })), [/^"hooks" in .* is "x"; it must be an object, in the config file/])
  t.match(bad([], { USR2_HOOKS: 'x' }), [/^USR2_HOOKS is "x"; it must be an object, in the config file/])
  t.match(bad(['--hooks', 'x']), [/^--hooks is no option of/])
})

void t.test('metrics', async (t) => {
  const at = (text: string) => good(['--metrics', text]).metrics
  t.equal(good([]).metrics, null)
  t.strictSame(at('127.0.0.1:9464'), { host: '127.0.0.1', port: 9464 })
  t.strictSame(at('9464'), { host: '127.0.0.1', port: 9464 })
  t.strictSame(at('localhost:9464'), { host: 'localhost', port: 9464 })
  t.strictSame(at('[::1]:9464'), { host: '::1', port: 9464 })
  t.strictSame(at('/run/x.sock'), { path: '/run/x.sock' })
  t.strictSame(at('./x.sock'), { path: join(cwd, 'x.sock') })
  t.strictSame(good(file({ metrics: 9464 })).metrics, { host: '127.0.0.1', port: 9464 })
  for (const text of [
    '127.0.0.1',
    'shop.example:80',
    '::1:9464',
    '[::g]:1',
    '1.2.3:4',
    '0',
    '127.0.0.1:0',
    '65536',
    '127.0.0.1:70000',
    '',
  ]) {
    t.match(
      bad(['--metrics', text]),
      [/^--metrics is .*; it must be IP:PORT such as 127\.0\.0\.1:9464/],
      text,
    )
  }
  t.equal(bad(file({ metrics: { toString: 1 } })).length, 1)
  t.match(bad(['--metrics', `/${'a'.repeat(120)}`]), [
    /^--metrics is \/a{120}, 121 bytes; .* room for 107\.$/,
  ])
  for (const text of ['127.0.0.1:1', '[::1]:1', '/run/x', '127.0.0.2:1', 'localhost:1']) {
    const result = load(['--metrics', text])
    t.strictSame(result.ok && result.warnings, [], text)
  }
  for (const text of ['0.0.0.0:9464', '[::]:9464', '10.0.0.1:9464']) {
    t.match(load(['--metrics', text]), {
      ok: true,
      warnings: [/^--metrics is .*, no address of this machine alone/],
    })
  }
})

void t.test('the policy of a generation has what decisions need of it', async (t) => {
  const hooks = { beforeStop: 'a', beforeSpawn: 'b' }
  const given = {
    strategy: 'rolling',
    hooks,
    warmUp: 1,
    maxMemory: '1G',
    minReadySeconds: 2,
    onFailure: 'pause',
  }
  const config = good(file({ ...given, workers: 3, readiness: '/up', maxAge: '1h', hookTimeout: '5s' }))
  const policy = policyOf(config)
  t.match(policy, {
    ...{ slots: 3, steps: [share(100)], maxSurge: { k: 'percent', n: 25 }, replaced: 'drained' },
    ...{ minReadyMs: 2000, progressDeadlineMs: 600_000, parkForMs: 0, onFailure: 'pause' },
    ...{ warmUp: true, hooks: ['beforeSpawn', 'beforeStop'], hookTimeoutMs: 5000 },
    replaceAt: { memoryBytes: 2 ** 30, requests: null, ageMs: 3_600_000 },
  })
  const times = { initialDelayMs: 0, successThreshold: 1 }
  t.strictSame(policy.probes, {
    readiness: { ...times, periodMs: 10_000, timeoutMs: 1000, failureThreshold: 3 },
    liveness: { ...times, periodMs: 10_000, timeoutMs: 10_000, failureThreshold: 6 },
  })
  t.match(policyOf(good([])), { warmUp: false, hooks: [], parkForMs: 0 })
})

void t.test(
  'the page about it has every key of rollouts, and examples that are accepted as they are',
  async (t) => {
    const page = readFileSync(new URL('../../docs/configuration.md', import.meta.url), 'utf8')
    const examples = [...page.matchAll(/```json\n([^`]*)```/g)].map(([, json = '']) => json)
    t.equal(examples.length, 6)
    for (const json of examples) t.match(load(file(JSON.parse(json))), { ok: true, warnings: [] }, json)
    const keys = Object.keys((configJsonSchema()['properties'] as object) ?? {})
    const ofRollouts = keys.slice(keys.indexOf('strategy'), keys.indexOf('metrics'))
    for (const key of ofRollouts) t.match(page, new RegExp(`[\`"]${key}[\`"]`), key)
    const quoted = /^ {4}"steps\[1\]\.hold" in \S+ (.*)$/m.exec(page)?.[1] ?? ''
    t.match(bad(file({ steps: [{ share: '1%' }, { hold: '5q' }] })), [
      new RegExp(quoted.replace(/\./g, '\\.')),
    ])
  },
)

void t.test('whatever a file holds in place of a value is refused in whole sentences', async (t) => {
  const http = { path: '/', headers: { host: 'x' }, expect: 200, port: 3000 }
  const times = { period: '1s', timeout: '1s', initialDelay: 0, successThreshold: 1, failureThreshold: 3 }
  const analysis = {
    interval: '1s',
    count: 1,
    failureLimit: 0,
    minRequests: 0,
    inconclusive: 'pass',
    limits: ['crashes <= 0'],
  }
  const sound = {
    steps: [{ share: '10%' }, { hold: '5m' }, { analyse: analysis }],
    ...{
      maxSurge: 1,
      maxUnavailable: '10%',
      minReadySeconds: 1,
      analysis,
      warmUp: { paths: ['/'], count: 1 },
    },
    probes: { startup: { tcp: 1, ...times }, readiness: { http, ...times }, liveness: { eventLoop: true } },
    ...{
      maxMemory: '1G',
      maxRequests: 1,
      maxAge: '1h',
      metrics: 9464,
      hooks: { beforeSpawn: ['a'], beforeStop: 'a' },
    },
  }
  t.ok(load(file(sound)).ok)
  /** Every place of a value: the whole, and what is in it. */
  const places = (value: unknown): string[][] =>
    typeof value === 'object' && value !== null
      ? Object.entries(value).flatMap(([key, inner]) => [
          [key],
          ...places(inner).map((rest) => [key, ...rest]),
        ])
      : []
  const replaced = (value: unknown, [key, ...rest]: string[], by: unknown): unknown => {
    if (key === undefined) return by
    const copy = structuredClone(value) as Record<string, unknown>
    copy[key] = replaced(copy[key], rest, by)
    return copy
  }
  const odd = fc.oneof(
    fc.jsonValue({ maxDepth: 2 }),
    fc.constantFrom(-1, 1e9, '', ' ', 'none', [], {}, null, '\0'),
  )
  fc.assert(
    fc.property(fc.constantFrom(...places(sound)), odd, (place, by) => {
      const result = load(file(replaced(sound, place, by)))
      const key = place[0] ?? ''
      if (result.ok) return true
      return result.complaints.every(
        (text) => text.includes(`"${key}`) && /^"(?!.*(Invalid|undefined)).*[.?]$/.test(text),
      )
    }),
    { numRuns: 700 },
  )
})
