/** usr2 in a container: as PID 1, with a delay before the stop, and as docs/containers.md says that it is to be used. */
import { chmodSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { parseAllDocuments } from 'yaml'
import { loadConfig } from '../../src/config.ts'
import type { Config } from '../../src/config.ts'
import type { Traffic } from '../../src/drill/load.ts'
import { policyOf, stopBudgetMs } from '../../src/master/workers/generation.ts'
import { watchOrphans } from '../../src/master/workers/orphans.ts'
import { get } from '../helpers/http.ts'
import { expectNoneFailed, loadUnder } from '../helpers/load.ts'
import { cannotBePid1, signalPid1, startAsPid1 } from '../helpers/pid-one.ts'
import { expectNothingLeft } from '../helpers/spawn.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { startUsr2 } from '../helpers/usr2.ts'
import { until } from '../helpers/wait.ts'

const TRAFFIC: readonly Traffic[] = [
  { mode: 'new', connections: 2, thinkMs: [2, 6] },
  { mode: 'keepalive', connections: 4, thinkMs: [10, 30] },
]

t.test('as PID 1', { skip: cannotBePid1 }, async (t) => {
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    t.test(`a reload and ${signal}: no signal reaches the app but at its end`, async (t) => {
      const port = await freePort(t)
      const usr2 = startAsPid1(t, { fixture: 'in-a-container.cjs', env: { PORT: String(port) } })
      await usr2.ready()
      t.equal(usr2.events().find(({ event }) => event === 'starting')?.['master'], 1, 'it is PID 1')
      signalPid1(usr2, 'SIGUSR2')
      await usr2.event('promoted')
      await usr2.process.line('got SIGTERM', { what: 'the shutdown of the first generation' })
      t.equal((await get({ port })).body, 'generation 2')
      const held = get({ port }, '/slow')
      // In flight, not on its way.
      await until(
        async () =>
          JSON.parse((await usr2.cli('status', ['--json'])).stdout).generations.some(
            ({ workers }: { workers: { active: number }[] }) => workers.some(({ active }) => active > 0),
          ),
        {
          what: 'a request in flight',
          timeoutMs: 20_000,
        },
      )
      signalPid1(usr2, signal)
      t.equal((await held).body, 'slow', 'what is in flight is answered')
      const { code } = await usr2.process.ended(20_000)
      t.equal(code, 0)
      t.same(
        usr2.process.stdout,
        ['got SIGTERM', 'got SIGTERM'],
        'each generation heard of its own end, and of nothing else',
      )
      t.same(
        usr2.events().filter(({ event }) => event === 'orphans'),
        [],
      )
      await expectNothingLeft(t, usr2.process)
    })
  }

  t.test('an orphan that nobody reaps is said once', async (t) => {
    const port = await freePort(t)
    const usr2 = startAsPid1(t, { fixture: 'in-a-container.cjs', env: { PORT: String(port) } })
    await usr2.ready()
    await get({ port }, '/orphan')
    const { msg } = await usr2.event('orphans', { timeoutMs: 30_000 })
    t.match(msg, /\(sleep\).*docker run --init/)
    signalPid1(usr2, 'SIGTERM')
    t.equal((await usr2.process.ended(20_000)).code, 0)
  })
})

t.test('orphans: a child that is reaped late is none, and one warning is enough', async (t) => {
  const seen = [
    new Map([[7, 'node']]),
    new Map([[8, 'node']]),
    new Map([
      [8, 'sh'],
      [9, 'sleep'],
    ]),
  ]
  let looks = 0
  const warnings: string[] = []
  const end = watchOrphans({
    log: { warn: (_, text) => warnings.push(text) },
    look: () => seen[Math.min(looks++, seen.length - 1)] ?? new Map(),
    everyMs: 1,
  })
  t.teardown(end)
  await until(() => warnings.length > 0, { what: 'a warning', timeoutMs: 10_000 })
  t.match(warnings, [/\(sh, sleep\)/])
  t.equal(looks, 4, 'the same process twice')
})

t.test('--stop-delay', async (t) => {
  const start = async (stopDelay: string, env: Record<string, string> = {}) => {
    const port = await freePort(t)
    const metrics = { socketPath: join(shortTmp(t), 'm.sock') }
    const flags = ['--stop-delay', stopDelay, '--metrics', metrics.socketPath, '--workers', '2']
    const usr2 = startUsr2(t, { fixture: 'http-app.cjs', flags, env: { PORT: String(port), ...env } })
    await usr2.ready()
    const readiness = async () => (await get(metrics, '/readyz')).status
    t.equal(await readiness(), 200)
    return { usr2, port, readiness }
  }

  t.test('/readyz fails first, and clients that still come are answered', async (t) => {
    const { usr2, port, readiness } = await start('3s')
    const load = await loadUnder(t, { target: { port }, traffic: TRAFFIC })
    const answered = async (more: number) => {
      const { ok } = await load.snapshot()
      const what = `${more} more answers`
      await until(async () => (await load.snapshot()).ok >= ok + more, { timeoutMs: 10_000, what })
    }
    await answered(50)
    usr2.signal('SIGTERM')
    await usr2.event('leaving')
    t.equal(await readiness(), 503)
    t.match((await usr2.cli('status')).stdout, /stopping/)
    await answered(50)
    // As clients of a load balancer do, which has seen it.
    expectNoneFailed(t, await load.stop())
    t.same(
      usr2.events().filter(({ event }) => event === 'stopping'),
      [],
      'nothing drains yet',
    )
    t.equal(await readiness(), 503)
    await usr2.event('stopping')
    t.equal((await usr2.process.ended(20_000)).code, 0)
    await expectNothingLeft(t, usr2.process)
  })

  t.test('a second TERM waits for nothing', async (t) => {
    const { usr2 } = await start('10m')
    usr2.signal('SIGTERM')
    await usr2.event('leaving')
    usr2.signal('SIGTERM')
    t.equal((await usr2.process.ended(20_000)).code, 0)
  })

  t.test('usr2 stop waits as long, usr2 stop --now does not, and nothing new begins', async (t) => {
    const { usr2 } = await start('10m')
    const stopping = usr2.cli('stop')
    await usr2.event('leaving')
    const reload = await usr2.reload()
    t.equal(reload.code, 1)
    t.match(reload.stderr, /the master is stopping/)
    t.equal((await usr2.cli('stop', ['--now'])).code, 0)
    t.equal((await stopping).code, 0)
    t.equal((await usr2.process.ended(20_000)).code, 0)
  })

  t.test('the service manager hears of it at its begin, with the time that it takes', async (t) => {
    const bin = shortTmp(t)
    const said = join(bin, 'said')
    writeFileSync(join(bin, 'systemd-notify'), `#!/bin/sh\necho "$*" >> ${said}\n`)
    chmodSync(join(bin, 'systemd-notify'), 0o755)
    const PATH = `${bin}:${process.env['PATH']}`
    const { usr2 } = await start('20m', { PATH, NOTIFY_SOCKET: join(bin, 'nobody') })
    const heard = () => readFileSync(said, 'utf8')
    usr2.signal('SIGTERM')
    const extended = /STOPPING=1[^]*EXTEND_TIMEOUT_USEC=1210000000/
    await until(() => extended.test(heard()), { what: 'an extension', timeoutMs: 20_000, logs: heard })
    t.same(
      usr2.events().filter(({ event }) => event === 'stopping'),
      [],
    )
    usr2.signal('SIGTERM')
    t.equal((await usr2.process.ended(20_000)).code, 0)
  })

  t.test('is part of the stop budget', async (t) => {
    const budget = (...argv: string[]) => stopBudgetMs(policyOf(configOf([...argv, 'x.js'])))
    t.equal(budget('--stop-delay', '7s') - budget(), 7_000)
  })
})

function configOf(argv: readonly string[]): Config {
  const loaded = loadConfig({ argv, env: {}, cwd: fileURLToPath(new URL('..', import.meta.url)) })
  if (!loaded.ok) throw new Error(loaded.complaints.join('\n'))
  return loaded.config
}

t.test('docs/containers.md', async (t) => {
  const page = readFileSync(fileURLToPath(new URL('../../docs/containers.md', import.meta.url)), 'utf8')
  const block = (language: string) => new RegExp(`\`\`\`${language}\\n([^\`]*)\`\`\``).exec(page)?.[1] ?? ''
  const argsOfRun = (command: readonly string[]) => command.slice(command.indexOf('run') + 1)

  t.test('the Dockerfile', async (t) => {
    const command = JSON.parse(
      /^CMD (\[[^\]]*\])/m.exec(block('dockerfile').replace(/\\\n/g, ''))?.[1] ?? '[]',
    ) as string[]
    t.match(block('dockerfile'), /^ENTRYPOINT \["tini", "--"\]/m)
    const config = configOf(argsOfRun(command))
    t.same(config.metrics, { host: '0.0.0.0', port: 9464 }, 'the kubelet asks from outside')
  })

  t.test('the manifest: probes, and times that agree with each other', async (t) => {
    interface Probe {
      readonly httpGet: { readonly path: string; readonly port: string }
      readonly periodSeconds: number
      readonly failureThreshold: number
    }
    interface Manifest {
      readonly kind: string
      readonly spec: {
        readonly replicas: number
        readonly maxUnavailable: number
        readonly selector: { readonly matchLabels: object }
        readonly strategy: { readonly rollingUpdate: object }
        readonly template: {
          readonly metadata: { readonly labels: object }
          readonly spec: {
            readonly terminationGracePeriodSeconds: number
            readonly containers: readonly {
              readonly args: readonly string[]
              readonly ports: readonly { readonly name: string; readonly containerPort: number }[]
              readonly lifecycle?: object
              readonly startupProbe: Probe
              readonly livenessProbe: Probe
              readonly readinessProbe: Probe
            }[]
          }
        }
      }
    }
    const documents = parseAllDocuments(block('yaml'))
    t.same(
      documents.flatMap(({ errors }) => errors),
      [],
    )
    const manifests = documents.map((document) => document.toJS() as Manifest)
    const [deployment, budget] = ['Deployment', 'PodDisruptionBudget'].map((kind) =>
      manifests.find((one) => one.kind === kind),
    )
    const pod = deployment?.spec.template.spec
    const [container] = pod?.containers ?? []
    if (!deployment || !budget || !pod || !container) throw new Error('no deployment or no budget')
    t.same(deployment.spec.strategy.rollingUpdate, { maxSurge: 1, maxUnavailable: 0 })
    t.same(budget.spec.selector.matchLabels, deployment.spec.template.metadata.labels)
    t.ok(budget.spec.maxUnavailable < deployment.spec.replicas)

    const config = configOf(argsOfRun(container.args))
    t.ok(config.stopDelayMs > 0)
    t.equal(container.lifecycle, undefined, 'no preStop beside it')
    const graceMs = pod.terminationGracePeriodSeconds * 1000
    t.ok(graceMs > stopBudgetMs(policyOf(config)), `${graceMs} ms for ${stopBudgetMs(policyOf(config))} ms`)

    const { startupProbe, livenessProbe, readinessProbe } = container
    t.same(
      [startupProbe, livenessProbe, readinessProbe].map(({ httpGet }) => httpGet.path),
      ['/readyz', '/livez', '/readyz'],
    )
    const port = container.ports.find(({ name }) => name === 'health')?.containerPort
    t.same(config.metrics, { host: '0.0.0.0', port })
    for (const { httpGet } of [startupProbe, livenessProbe, readinessProbe]) t.equal(httpGet.port, 'health')
    const toStartMs = startupProbe.periodSeconds * startupProbe.failureThreshold * 1000
    t.ok(toStartMs > config.startTimeoutMs, 'usr2 says first why it does not start')
    const unreadyMs = readinessProbe.periodSeconds * readinessProbe.failureThreshold * 1000
    t.ok(unreadyMs <= config.stopDelayMs, 'also what follows /readyz alone has seen it fail')
  })
})
