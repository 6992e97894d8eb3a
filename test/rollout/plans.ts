/** Random plans for a world: every strategy, every way in which a process, a hook or an operator can go wrong. */
import fc from 'fast-check'
import { HOOKS, METRICS } from '../../src/rollout/state.ts'
import type {
  Amount,
  Analysis,
  Hook,
  Limit,
  Memory,
  Metric,
  Order,
  Policy,
  ProbePolicy,
  Step,
} from '../../src/rollout/state.ts'
import type { Behaviour, Deed, Measurement, Operation, Pin, Plan, Reply } from './world.ts'

const KEYS = ['tcp:[::]:3000', 'tcp:127.0.0.1:9000', 'unix:/run/app.sock', 'tcp:[::]:3001'] as const
const key = fc.constantFrom(...KEYS)
const ms = (max: number): fc.Arbitrary<number> => fc.integer({ min: 0, max })
const never = fc.constant('never' as const)
/** Of so many, one. */
const seldom = <T>(of: number, usual: fc.Arbitrary<T>, rare: fc.Arbitrary<T>): fc.Arbitrary<T> =>
  fc.oneof({ weight: of - 1, arbitrary: usual }, { weight: 1, arbitrary: rare })

// --- policies -------------------------------------------------------------------------------------------------

/** What a `bad` measurement is past, and a `good` one is within (world.ts). */
const BOUNDS: Readonly<Record<Metric, Limit>> = {
  errorRate: { metric: 'errorRate', op: '<', value: 0.01, relative: false },
  p50: { metric: 'p50', op: '<=', value: 1.5, relative: true },
  p90: { metric: 'p90', op: '<', value: 300, relative: false },
  p99: { metric: 'p99', op: '<', value: 1.5, relative: true },
  probeSuccess: { metric: 'probeSuccess', op: '>=', value: 0.98, relative: false },
  loopDelay: { metric: 'loopDelay', op: '<', value: 2, relative: true },
  crashes: { metric: 'crashes', op: '<=', value: 0, relative: false },
}

const analysis: fc.Arbitrary<Analysis> = fc.record({
  intervalMs: fc.integer({ min: 1, max: 900 }),
  count: fc.integer({ min: 1, max: 4 }),
  failureLimit: fc.integer({ min: 0, max: 2 }),
  minRequests: fc.constant(20),
  inconclusive: fc.constantFrom('pass' as const, 'fail' as const, 'pause' as const),
  limits: fc
    .subarray([...METRICS], { minLength: 1, maxLength: 3 })
    .map((metrics) => metrics.map((metric) => BOUNDS[metric])),
})

const pauseStep: fc.Arbitrary<Step> = fc.oneof(
  fc.record({
    k: fc.constant('hold' as const),
    forMs: seldom<number | 'promote'>(3, ms(1_500), fc.constant('promote' as const)),
  }),
  fc.record({ k: fc.constant('analyse' as const), analysis }),
)

/** A list as the configuration lets pass: it begins with a share, and shares rise (src/config/rollout.ts). */
const ownSteps: fc.Arbitrary<readonly Step[]> = fc
  .tuple(
    fc.uniqueArray(fc.constantFrom(0, 0, 10, 20, 25, 30, 50, 50, 60, 75, 99, 100), {
      minLength: 1,
      maxLength: 4,
    }),
    fc.array(fc.array(pauseStep, { maxLength: 2 }), { minLength: 4, maxLength: 4 }),
  )
  .map(([shares, pauses]) =>
    shares
      .toSorted((a, b) => a - b)
      .flatMap((percent, at): Step[] => [{ k: 'share', percent }, ...(pauses[at] ?? [])]),
  )

const steps: fc.Arbitrary<readonly Step[]> = fc.oneof(
  { weight: 2, arbitrary: fc.constant<readonly Step[]>([{ k: 'share', percent: 100 }]) },
  { weight: 3, arbitrary: ownSteps },
)

const amount = (most: number): fc.Arbitrary<Amount> =>
  fc.oneof(
    fc.record({ k: fc.constant('workers' as const), n: fc.integer({ min: 0, max: most }) }),
    fc.record({ k: fc.constant('percent' as const), n: fc.constantFrom(0, 10, 25, 50, 100) }),
  )

const bounds = fc
  .record({ maxSurge: amount(3), maxUnavailable: amount(2) })
  // The configuration refuses it.
  .filter(({ maxSurge, maxUnavailable }) => maxSurge.n > 0 || maxUnavailable.n > 0)

const probe: fc.Arbitrary<ProbePolicy> = fc.record({
  initialDelayMs: seldom(3, fc.constant(0), ms(200)),
  periodMs: fc.integer({ min: 100, max: 1_500 }),
  timeoutMs: fc.integer({ min: 5, max: 200 }),
  successThreshold: seldom(4, fc.constant(1), fc.constant(2)),
  failureThreshold: fc.integer({ min: 1, max: 3 }),
})
const probes: fc.Arbitrary<Policy['probes']> = seldom(
  2,
  fc.constant({}),
  fc.record({ startup: probe, readiness: probe, liveness: probe }, { requiredKeys: [] }),
)

const hooks: fc.Arbitrary<readonly Hook[]> = seldom<readonly Hook[]>(
  3,
  fc.constant([]),
  fc.subarray([...HOOKS]),
)

const policy: fc.Arbitrary<Policy> = fc
  .record({
    slots: seldom(3, fc.integer({ min: 2, max: 4 }), fc.integer({ min: 1, max: 6 })),
    steps,
    bounds,
    replaced: fc.constantFrom('parked' as const, 'drained' as const),
    minReadyMs: fc.oneof(fc.constant(0), ms(1_000)),
    progressDeadlineMs: fc.integer({ min: 1_500, max: 9_000 }),
    parkForMs: fc.oneof(fc.constant(0), ms(6_000)),
    onFailure: fc.constantFrom('rollback' as const, 'pause' as const),
    probes,
    warmUp: seldom(4, fc.constant(false), fc.constant(true)),
    hooks,
    stopDelayMs: seldom(2, fc.constant(0), ms(2_000)),
    hookTimeoutMs: fc.integer({ min: 200, max: 1_000 }),
    replaceAt: fc.record({
      memoryBytes: fc.option(fc.constant(100)),
      requests: fc.option(fc.constant(1_000)),
      ageMs: seldom<number | null>(4, fc.constant(null), fc.integer({ min: 1_000, max: 9_000 })),
    }),
    ready: fc.constantFrom('listen' as const, 'listen' as const, 'message' as const),
    startTimeoutMs: fc.integer({ min: 1_000, max: 6_000 }),
    drainTimeoutMs: fc.integer({ min: 1, max: 4_000 }),
    shutdownTimeoutMs: fc.integer({ min: 1, max: 1_500 }),
    killTimeoutMs: fc.integer({ min: 1, max: 500 }),
    grantTimeoutMs: seldom(5, fc.integer({ min: 400, max: 900 }), fc.integer({ min: 1, max: 400 })),
    minUptimeMs: fc.integer({ min: 100, max: 3_000 }),
    maxRestarts: fc.integer({ min: 1, max: 5 }),
    maxDraining: fc.integer({ min: 0, max: 3 }),
  })
  .map(({ bounds, ...rest }) => ({ ...rest, ...bounds }))

// --- processes ------------------------------------------------------------------------------------------------

const deed: fc.Arbitrary<Deed> = fc.oneof(
  { weight: 6, arbitrary: fc.record({ k: fc.constant('claim' as const), key }) },
  { weight: 3, arbitrary: fc.record({ k: fc.constant('unclaim' as const), key }) },
  {
    weight: 1,
    arbitrary: fc.constantFrom<Deed>({ k: 'listen-privately' }, { k: 'say-ready' }, { k: 'ask-replacement' }),
  },
  { weight: 2, arbitrary: fc.constant<Deed>({ k: 'ask-leadership' }) },
  {
    weight: 2,
    arbitrary: fc.record({
      k: fc.constant('weigh' as const),
      rssBytes: fc.constantFrom(null, 90, 120, 200),
      requests: fc.constantFrom(1, 1, 1_000),
    }),
  },
  { weight: 1, arbitrary: fc.constantFrom<Deed>({ k: 'crash' }, { k: 'be-stillborn' }) },
)
const deeds = (most: number, within: number): fc.Arbitrary<Behaviour['deeds']> =>
  fc.array(fc.record({ afterMs: ms(within), deed }), { maxLength: most })

const reply = (passes: fc.Arbitrary<boolean>, within: number): fc.Arbitrary<Reply> =>
  fc.record({ afterMs: seldom<number | 'never'>(12, ms(within), never), passes })
const PASSES: Reply = { afterMs: 1, passes: true }
/** Passes for a while, and then comes and goes. */
const flapping: fc.Arbitrary<readonly Reply[]> = fc
  .tuple(fc.integer({ min: 1, max: 5 }), fc.array(reply(fc.boolean(), 250), { minLength: 1, maxLength: 8 }))
  .map(([times, then]) => [...Array.from({ length: times }, () => PASSES), ...then])
const passing: fc.Arbitrary<readonly Reply[]> = fc.constant([PASSES])

const saneProbes: fc.Arbitrary<Behaviour['probes']> = fc.record({
  startup: passing,
  readiness: fc.oneof(passing, flapping),
  liveness: seldom(4, passing, flapping),
})
const wildProbes: fc.Arbitrary<Behaviour['probes']> = fc.record({
  startup: fc.oneof(passing, flapping, fc.array(reply(fc.boolean(), 400), { minLength: 1, maxLength: 4 })),
  readiness: fc.oneof(flapping, fc.array(reply(fc.boolean(), 400), { minLength: 1, maxLength: 4 })),
  liveness: fc.oneof(passing, flapping, fc.array(reply(fc.boolean(), 400), { minLength: 1, maxLength: 4 })),
})

/** Listens on the usual, says so, leaves when told; now and then does something odd later. */
const sane: fc.Arbitrary<Behaviour> = fc
  .record({
    bootMs: ms(400),
    open: seldom(6, ms(50), ms(500)),
    withdraw: seldom(4, ms(5), ms(300)),
    probes: saneProbes,
    warmUpMs: ms(200),
    drain: ms(1_000),
    shutdown: ms(100),
    odd: seldom(2, fc.constant([]), deeds(2, 20_000)),
    // The same for all, or hardly a candidate would listen on all that is wanted.
    two: seldom(14, fc.constant(true), fc.constant(false)),
    asksToLead: fc.option(ms(600)),
    leads: fc.oneof(never, ms(3_000)),
    stepsDown: ms(1_500),
  })
  .map(({ bootMs, two, asksToLead, odd, warmUpMs, ...rest }) => ({
    ...rest,
    deeds: [
      { afterMs: bootMs, deed: { k: 'claim', key: KEYS[0] } },
      ...(two ? [{ afterMs: bootMs, deed: { k: 'claim', key: KEYS[1] } } as const] : []),
      { afterMs: bootMs + 10, deed: { k: 'say-ready' } },
      ...(asksToLead === null ? [] : [{ afterMs: asksToLead, deed: { k: 'ask-leadership' } } as const]),
      ...odd,
    ],
    warmUp: { afterMs: warmUpMs, passes: warmUpMs % 4 !== 0 },
    promised: null,
    tellsWithdrawals: true,
    terminate: 5,
  }))

const wild: fc.Arbitrary<Behaviour> = fc.record({
  deeds: deeds(8, 6_000),
  open: fc.oneof(ms(1_000), never, fc.constant('fails' as const)),
  withdraw: fc.oneof(ms(1_000), never),
  probes: wildProbes,
  warmUp: reply(fc.boolean(), 2_000),
  promised: fc.oneof(fc.constant(null), ms(8_000)),
  tellsWithdrawals: fc.boolean(),
  drain: fc.oneof(ms(6_000), never),
  shutdown: fc.oneof(ms(3_000), never),
  leads: fc.oneof(ms(3_000), never),
  stepsDown: fc.oneof(ms(3_000), never),
  terminate: fc.oneof(ms(800), fc.constant('ignored' as const)),
})

const SHORT: Memory = { freeBytes: 50, workerBytes: 100 }

// --- operations -----------------------------------------------------------------------------------------------

const order: fc.Arbitrary<Order> = fc.oneof(
  { weight: 3, arbitrary: fc.record({ k: fc.constant('promote' as const), full: fc.boolean() }) },
  { weight: 2, arbitrary: fc.constant<Order>({ k: 'pause' }) },
  { weight: 2, arbitrary: fc.constant<Order>({ k: 'resume' }) },
  { weight: 2, arbitrary: fc.constant<Order>({ k: 'abort' }) },
  {
    weight: 1,
    arbitrary: fc.record({ k: fc.constant('scale' as const), to: fc.integer({ min: 0, max: 5 }) }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ k: fc.constant('scale-by' as const), by: fc.integer({ min: -2, max: 2 }) }),
  },
)

const operation: fc.Arbitrary<Operation> = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({
      k: fc.constant('reload' as const),
      times: fc.oneof(fc.constant(1), fc.integer({ min: 1, max: 8 })),
      drop: fc.oneof(
        { weight: 3, arbitrary: fc.constant([]) },
        { weight: 1, arbitrary: fc.array(key, { maxLength: 2 }) },
      ),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({ k: fc.constant('rollback' as const), to: fc.option(fc.nat(30), { freq: 2 }) }),
  },
  { weight: 5, arbitrary: fc.record({ k: fc.constant('order' as const), what: order }) },
  { weight: 7, arbitrary: fc.record({ k: fc.constant('steer' as const), nth: fc.nat(11) }) },
  { weight: 1, arbitrary: fc.constant<Operation>({ k: 'crash-current' }) },
  {
    weight: 2,
    arbitrary: fc.record({
      k: fc.constant('crash-parked' as const),
      workers: fc.integer({ min: 1, max: 2 }),
    }),
  },
  { weight: 2, arbitrary: fc.record({ k: fc.constant('replace' as const), nth: fc.nat(5) }) },
  {
    weight: 2,
    arbitrary: fc.record({ k: fc.constant('crash' as const), oldest: fc.integer({ min: 1, max: 4 }) }),
  },
  { weight: 2, arbitrary: fc.record({ k: fc.constant('crash-one' as const), nth: fc.nat(11) }) },
  {
    weight: 2,
    arbitrary: fc.record({
      k: fc.constant('weigh' as const),
      nth: fc.nat(11),
      rssBytes: fc.constantFrom(90, 120, 120, 200),
      requests: fc.constantFrom(1, 1_000),
      memory: fc.constantFrom(null, SHORT, SHORT, { ...SHORT, freeBytes: 500 }),
    }),
  },
  { weight: 1, arbitrary: fc.record({ k: fc.constant('take-back' as const), nth: fc.nat(30) }) },
  {
    weight: 1,
    arbitrary: fc.record({
      k: fc.constant('stray-reply' as const),
      nth: fc.nat(8),
      fact: fc.constantFrom('pinned' as const, 'pin-failed', 'hook-ended', 'measured'),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      k: fc.constant('stray' as const),
      nth: fc.nat(5),
      key,
      fact: fc.constantFrom(
        'claimed' as const,
        'unclaimed',
        'listened-privately',
        'said-ready',
        'opened',
        'open-failed',
        'withdrawn',
        'probed',
        'warmed',
        'weighed',
        'worker-drained',
        'drain-began',
        'replace-asked',
        'leadership-asked',
        'leadership-ended',
        'worker-exited',
      ),
    }),
  },
  { weight: 1, arbitrary: fc.record({ k: fc.constant('oversleep' as const), lagMs: ms(5_000) }) },
  { weight: 1, arbitrary: fc.constantFrom<Operation>({ k: 'tick-from-the-past' }, { k: 'start-again' }) },
)

const memory: fc.Arbitrary<Memory | null> = seldom<Memory | null>(
  3,
  fc.constant(null),
  fc.record({ freeBytes: fc.integer({ min: 0, max: 1_200 }), workerBytes: fc.constant(100) }),
)

const pin: fc.Arbitrary<Pin> = fc.record({
  afterMs: ms(300),
  result: fc.oneof(
    { weight: 40, arbitrary: policy },
    { weight: 1, arbitrary: fc.constant('fails' as const) },
    { weight: 1, arbitrary: never },
  ),
  memory,
})

const measurement: fc.Arbitrary<Measurement> = fc.record({
  afterMs: seldom<number | 'never'>(10, ms(200), never),
  candidate: fc.constantFrom('good' as const, 'good', 'bad', 'few', 'unknown'),
  current: fc.constantFrom('good' as const, 'good', 'good', 'few', 'unknown'),
})

/** Far apart, and now and then close together: much goes wrong only while something else is going on. */
const operations = (minLength: number, maxLength: number): fc.Arbitrary<Plan['operations']> =>
  fc.array(fc.record({ afterMs: fc.oneof(ms(5_000), ms(2_000), ms(400)), operation }), {
    minLength,
    maxLength,
    size: 'max',
  })

export const plan: fc.Arbitrary<Plan> = fc.record({
  policy,
  // The first processes are sane more often than not: most worlds should get past their first generation.
  behaviours: fc
    .tuple(
      fc.array(sane, { minLength: 2, maxLength: 8, size: 'max' }),
      fc.array(fc.oneof({ weight: 9, arbitrary: sane }, { weight: 2, arbitrary: wild }), {
        minLength: 1,
        maxLength: 12,
      }),
    )
    .map(([first, others]) => [...first, ...others]),
  pins: fc.array(pin, { minLength: 2, maxLength: 8, size: 'max' }),
  hooks: fc.array(reply(seldom(5, fc.constant(true), fc.constant(false)), 400), {
    minLength: 1,
    maxLength: 4,
  }),
  measurements: fc.array(measurement, { minLength: 1, maxLength: 6 }),
  operations: fc.oneof(operations(0, 4), operations(10, 40)),
  lateMs: fc.oneof(fc.constant(0), ms(200)),
  rests: fc.boolean(),
  stops: fc.array(
    fc.record({ afterMs: ms(6_000), how: fc.constantFrom('graceful' as const, 'now' as const) }),
    { maxLength: 2 },
  ),
})
