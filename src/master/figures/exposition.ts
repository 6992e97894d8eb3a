/**
 * The metrics: each with its name, help and labels in one list, from which the text for Prometheus and the table in
 * docs/metrics.md are made.
 *
 * Names and units follow https://prometheus.io/docs/practices/naming/: seconds and bytes, counters end in `_total`.
 * A counter has all its label values from the first scrape, at 0: `increase()` sees no first increment otherwise.
 *
 * The registry is made anew for each scrape, from one snapshot: then all figures are of one moment. (Also, prom-client
 * 15 takes the `_total` off its counters' names for good once it has written OpenMetrics.)
 */
// Not its index, which brings OpenTelemetry, a push gateway and node:cluster: 1.9 MB of the master's memory.
import Counter from 'prom-client/lib/counter.js'
import Gauge from 'prom-client/lib/gauge.js'
import Histogram from 'prom-client/lib/histogram.js'
import Registry from 'prom-client/lib/registry.js'
import type { PrometheusContentType, OpenMetricsContentType } from 'prom-client'
import type { RolloutStatus, Status } from '../face.ts'
import { bounded, cumulative, SHOWN_BOUNDS_MS } from './totals.ts'
import type { GenerationTotals, Verdicts } from './totals.ts'

export interface Snapshot {
  readonly status: Status
  readonly totals: readonly GenerationTotals[]
  readonly verdicts: Verdicts
  /** How late the master's event loop is now. */
  readonly lagMs: number
}

type Labels = Readonly<Record<string, string | number>>
type Sample = readonly [labels: Labels, value: number]

interface Definition {
  readonly name: string
  readonly help: string
  readonly labels?: readonly string[]
}
interface Simple extends Definition {
  readonly type: 'counter' | 'gauge'
  readonly samples: (snapshot: Snapshot) => readonly Sample[]
}
interface Latency extends Definition {
  readonly type: 'histogram'
}

const BY_GENERATION = ['generation', 'version'] as const
/** Of what is read from a package.json or a deploy's directory, as much as is of use in a graph. */
const MAX_VERSION_LENGTH = 64
const byGeneration = ({ generation, version }: GenerationTotals): Labels => ({
  generation,
  version: version.slice(0, MAX_VERSION_LENGTH),
})
const each =
  (figure: (totals: GenerationTotals) => number) =>
  ({ totals }: Snapshot): readonly Sample[] =>
    totals.map((one) => [byGeneration(one), figure(one)])
/** One sample for each name: `{ending: 'client'}`, … */
const named = (
  label: string,
  figures: Readonly<Record<string, number>>,
  more: Labels = {},
): readonly Sample[] => Object.entries(figures).map(([name, value]) => [{ ...more, [label]: name }, value])
const one =
  (figure: (snapshot: Snapshot) => number) =>
  (snapshot: Snapshot): readonly Sample[] => [[{}, figure(snapshot)]]
const ofRollout =
  (samples: (rollout: RolloutStatus) => readonly Sample[]) =>
  ({ status: { rollout } }: Snapshot): readonly Sample[] =>
    rollout ? samples(rollout) : []

const PHASES = ['booting', 'ready', 'draining', 'terminating', 'killed'] as const
const cpuSeconds = (): number => {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1e6
}

export const METRICS: readonly (Simple | Latency)[] = [
  {
    name: 'usr2_build_info',
    type: 'gauge',
    help: 'Always 1; the versions of usr2 and of the Node.js that runs the master.',
    labels: ['version', 'node'],
    samples: ({ status: { usr2, node } }) => [[{ version: usr2, node }, 1]],
  },
  {
    name: 'usr2_master_start_time_seconds',
    type: 'gauge',
    help: 'When the master started, in seconds since 1970. All counters count since then.',
    samples: one(() => performance.timeOrigin / 1000),
  },
  {
    name: 'usr2_slots',
    type: 'gauge',
    help: 'Workers wanted.',
    samples: one(({ status }) => status.slots),
  },
  {
    name: 'usr2_slots_ready',
    type: 'gauge',
    help: 'Slots whose worker of the current generation serves.',
    samples: one(({ status }) => status.ready),
  },
  {
    name: 'usr2_slots_vacant',
    type: 'gauge',
    help: 'Slots whose worker died and was not started again yet.',
    samples: one(({ status }) => status.vacancies.length),
  },
  {
    name: 'usr2_workers',
    type: 'gauge',
    help: 'Living workers by generation, its role (current, candidate, parked, old) and their phase.',
    labels: ['generation', 'role', 'phase'],
    samples: ({ status }) =>
      status.generations.flatMap(({ id, role, workers }) =>
        PHASES.map((phase): Sample => [
          { generation: id, role, phase },
          workers.filter((worker) => worker.phase === phase).length,
        ]),
      ),
  },
  {
    name: 'usr2_worker_rss_bytes',
    type: 'gauge',
    help: 'Resident memory of a worker; of both, while one replaces another in its slot. Shared pages count in each.',
    labels: ['generation', 'slot'],
    samples: ({ status }) =>
      status.generations
        .flatMap(({ workers }) => workers)
        .flatMap(({ generation, slot, rssBytes }): Sample[] =>
          rssBytes === null ? [] : [[{ generation, slot }, rssBytes]],
        ),
  },
  {
    name: 'usr2_open_connections',
    type: 'gauge',
    help: 'Connections that are open in living workers.',
    labels: ['generation'],
    samples: ({ status }) =>
      status.generations.map(({ id, workers }) => [
        { generation: id },
        workers.reduce((sum, { connections }) => sum + connections, 0),
      ]),
  },
  {
    name: 'usr2_requests_in_flight',
    type: 'gauge',
    help: 'Requests without a whole response yet, in living workers.',
    labels: ['generation'],
    samples: ({ status }) =>
      status.generations.map(({ id, workers }) => [
        { generation: id },
        workers.reduce((sum, { active }) => sum + active, 0),
      ]),
  },
  {
    name: 'usr2_requests_total',
    type: 'counter',
    help: 'Requests answered over HTTP/1.1 and HTTP/2; probes and warm-up are none.',
    labels: BY_GENERATION,
    samples: each(({ requests }) => requests),
  },
  {
    name: 'usr2_request_errors_total',
    type: 'counter',
    help: 'Of usr2_requests_total, those answered with a status of 500 or more.',
    labels: BY_GENERATION,
    samples: each(({ errors }) => errors),
  },
  {
    name: 'usr2_request_duration_seconds',
    type: 'histogram',
    help: 'From the head of a request to the end of its response, as the worker saw it.',
    labels: BY_GENERATION,
  },
  {
    name: 'usr2_requests_unanswered_total',
    type: 'counter',
    help: 'Requests without a whole response: cut by a deadline, aborted by client or app, lost with a worker that crashed.',
    labels: [...BY_GENERATION, 'reason'],
    samples: ({ totals }) =>
      totals.flatMap((one) => {
        const { cut, aborted, crashed } = one.ledger.requests
        return named('reason', { cut, aborted, crashed }, byGeneration(one))
      }),
  },
  {
    name: 'usr2_connections_accepted_total',
    type: 'counter',
    help: 'Connections that workers accepted.',
    labels: BY_GENERATION,
    samples: each(({ ledger }) => ledger.connections.accepted),
  },
  {
    name: 'usr2_connections_total',
    type: 'counter',
    help: 'Connections that ended, by how: earlier is before a drain; the others are the words of the ledger.',
    labels: [...BY_GENERATION, 'ending'],
    samples: ({ totals }) =>
      totals.flatMap((one) => {
        const { accepted: _, open: __, ...ended } = one.ledger.connections
        return named('ending', ended, byGeneration(one))
      }),
  },
  {
    name: 'usr2_worker_crashes_total',
    type: 'counter',
    help: 'Workers that died without being asked to.',
    labels: BY_GENERATION,
    samples: each(({ crashes }) => crashes),
  },
  {
    name: 'usr2_worker_restarts_total',
    type: 'counter',
    help: 'Workers started in the place of one that died or was replaced.',
    labels: BY_GENERATION,
    samples: each(({ restarts }) => restarts),
  },
  {
    name: 'usr2_reloads_total',
    type: 'counter',
    help: 'Reloads by their verdict: promoted, rolled-back, refused, overtaken.',
    labels: ['outcome'],
    samples: ({ verdicts }) => named('outcome', verdicts.reload),
  },
  {
    name: 'usr2_rollbacks_total',
    type: 'counter',
    help: 'Rollbacks that somebody asked for, by their verdict; promoted: the earlier generation answers again.',
    labels: ['outcome'],
    samples: ({ verdicts }) => named('outcome', verdicts.rollback),
  },
  {
    name: 'usr2_rollout_info',
    type: 'gauge',
    help: 'Always 1, while a rollout runs; its kind (reload, rollback) and its generations.',
    labels: ['kind', 'current', 'candidate'],
    samples: ofRollout(({ kind, current, candidate }) => [
      [{ kind, current, candidate: candidate ?? '' }, 1],
    ]),
  },
  {
    name: 'usr2_rollout_step',
    type: 'gauge',
    help: 'The step that the rollout is at, from 1. Absent while none runs.',
    samples: ofRollout(({ steps }) => [[{}, 1 + steps.findIndex(({ state }) => state === 'now')]]),
  },
  {
    name: 'usr2_rollout_steps',
    type: 'gauge',
    help: 'Steps of the rollout. Absent while none runs.',
    samples: ofRollout(({ steps }) => [[{}, steps.length]]),
  },
  {
    name: 'usr2_rollout_paused',
    type: 'gauge',
    help: '1 while the rollout is paused, else 0. Absent while none runs.',
    samples: ofRollout(({ paused }) => [[{}, paused === null ? 0 : 1]]),
  },
  {
    name: 'usr2_rollout_accepting_workers',
    type: 'gauge',
    help: 'Workers that accept connections during the rollout, by side: the share of traffic as it is.',
    labels: ['side'],
    samples: ofRollout(({ accepting }) => named('side', { ...accepting })),
  },
  {
    name: 'process_resident_memory_bytes',
    type: 'gauge',
    help: 'Resident memory of the master.',
    samples: one(() => process.memoryUsage.rss()),
  },
  {
    name: 'process_cpu_seconds_total',
    type: 'counter',
    help: 'CPU time of the master, user and system.',
    samples: one(cpuSeconds),
  },
  {
    name: 'process_start_time_seconds',
    type: 'gauge',
    help: 'When the master started, by the name that dashboards know.',
    samples: one(() => performance.timeOrigin / 1000),
  },
  {
    name: 'nodejs_eventloop_lag_seconds',
    type: 'gauge',
    help: "How late the master's event loop was at this scrape.",
    samples: one(({ lagMs }) => lagMs / 1000),
  },
]

export type Format = 'text' | 'openmetrics'

/** What a scrape of `snapshot` gives. */
export async function exposition(
  snapshot: Snapshot,
  format: Format,
): Promise<{ readonly contentType: string; readonly text: string }> {
  const registry = new Registry<PrometheusContentType | OpenMetricsContentType>()
  registry.setContentType(
    format === 'text' ? Registry.PROMETHEUS_CONTENT_TYPE : Registry.OPENMETRICS_CONTENT_TYPE,
  )
  const seen = { ...snapshot, totals: bounded(snapshot.totals) }
  for (const metric of METRICS) {
    const { name, help, labels = [] } = metric
    const settings = { name, help, labelNames: labels, registers: [registry] }
    if (metric.type === 'histogram') {
      new CountedHistogram(settings, seen.totals)
    } else if (metric.type === 'counter') {
      const counter = new Counter(settings)
      for (const [labels, value] of metric.samples(seen)) counter.inc(labels, value)
    } else {
      const gauge = new Gauge(settings)
      // One without labels has a 0 from the start, which would say something while no rollout runs.
      gauge.remove({})
      for (const [labels, value] of metric.samples(seen)) gauge.inc(labels, value)
    }
  }
  return { contentType: registry.contentType, text: await registry.metrics() }
}

type Settings = ConstructorParameters<typeof Histogram>[0]

/** prom-client's histogram observes one value at a time; ours were counted in the workers. */
class CountedHistogram extends Histogram {
  readonly #settings: Settings
  readonly #totals: readonly GenerationTotals[]

  constructor(settings: Settings, totals: readonly GenerationTotals[]) {
    super(settings)
    this.#settings = settings
    this.#totals = totals
  }

  /** The registry asks for this where a metric has it; `get` is made from it. */
  getForPromString() {
    const { name, help } = this.#settings
    return { name, help, type: 'histogram', values: this.#totals.flatMap((one) => this.#samples(one)) }
  }

  #samples(one: GenerationTotals): readonly object[] {
    const labels = byGeneration(one)
    const { below, count } = cumulative(one.latency)
    const sample = (part: string, value: number, more: Labels = {}) => ({
      metricName: `${this.#settings.name}_${part}`,
      labels: { ...labels, ...more },
      value,
    })
    return [
      ...below.map((value, i) => sample('bucket', value, { le: (SHOWN_BOUNDS_MS[i] ?? 0) / 1000 })),
      sample('bucket', count, { le: '+Inf' }),
      sample('sum', one.totalMs / 1000),
      sample('count', count),
    ]
  }
}
