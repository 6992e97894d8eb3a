/**
 * The guest: what usr2 puts into a worker, by `--require`, before the first line of the app. It has no
 * dependencies, does nothing without its token or outside the main thread, and leaves no trace that a grandchild
 * or a worker thread would inherit. Wiring only; each part is a file of its own.
 */
import childProcess from 'node:child_process'
import net from 'node:net'
import { isMainThread } from 'node:worker_threads'
import { onReceive } from 'native-free-fd-passing'
import { GUEST_ENV, PROTOCOL_VERSION, toWorker } from '../protocol.ts'
import type { GuestConfig } from '../protocol.ts'
import { faceApp } from './app-face.ts'
import { settleAsyncContext } from './async-context.ts'
import { claimUdp } from './claim-udp.ts'
import { withholdClaims } from './claim-news.ts'
import { claimListeners } from './claim.ts'
import { prepareDrain, promiseMs } from './drain.ts'
import { reportFailures } from './failure.ts'
import { softenHttp1 } from './http1.ts'
import { watchHttp2 } from './http2.ts'
import { raiseKeepAlive, watchProxies } from './keep-alive.ts'
import { keepPaths } from './keep-path.ts'
import { Ledger } from './ledger.ts'
import { prepareLeadership } from './leadership.ts'
import { connectLink } from './link.ts'
import { prepareProbes } from './probe.ts'
import { watchRotation } from './rotation.ts'
import { shutDownApp } from './shutdown.ts'
import { keepSignals } from './signals.ts'
import { recordStatistics } from './statistics.ts'
import { shareTlsTickets } from './tls-tickets.ts'
import { watchUpgrades } from './upgraded.ts'
import { warmUp } from './warm-up.ts'

const COUNTS_EVERY_MS = 1_000

// Also in a worker thread, which gets the options of its process: it may fork, too.
forgetPreload()
const token = process.env[GUEST_ENV]
if (token !== undefined && isMainThread && process.send) {
  delete process.env[GUEST_ENV]
  start(JSON.parse(token) as GuestConfig)
}

function start(config: GuestConfig): void {
  settleAsyncContext()
  const link = connectLink()
  refuseCluster()
  const failures = reportFailures(link)
  const ledger = new Ledger()
  const statistics = config.statistics
    ? recordStatistics({
        ledger,
        everyMs: COUNTS_EVERY_MS,
        send: (statistics) => link.send({ t: 'statistics', statistics }),
      })
    : null
  // What was answered since the last tick.
  if (statistics) process.on('exit', statistics.tell)
  const http1 = softenHttp1()
  const http2 = watchHttp2(ledger)
  const tickets = shareTlsTickets(link)
  const servers = new Set<net.Server>()
  const paths = keepPaths(config.pwd)
  const warn = (text: string): void => link.send({ t: 'warning', text })
  const news = withholdClaims(link)
  const leadership = prepareLeadership(link, warn)
  const app = faceApp({
    generation: config.generation,
    slot: config.slot,
    leadership,
    ready() {
      probes.heardReady()
      // After where it listens: it says so in the callback of its `listen`.
      news.tell({ t: 'ready' })
    },
    warn,
  })
  const probes = prepareProbes({ servers, functions: app.probes, send: link.send })
  let times = config.times

  const claims = claimListeners({
    link,
    news,
    known: config.known,
    paths,
    pwd: config.pwd,
    onClaimed(server, key) {
      servers.add(server)
      if (key !== undefined) tickets.share(server, key)
      http1.guard(server)
      http2.watch(server)
      watchUpgrades(server, statistics?.upgraded)
      if (config.keepAliveTimeoutMs !== null) raiseKeepAlive(server, config.keepAliveTimeoutMs)
      // After the app has had its turn to set `keepAliveTimeout`. One worker says it for all.
      if (config.slot === 0) setImmediate(() => warnOfPromise(server, config.times.drainTimeoutMs, warn))
    },
  })

  const rotation = watchRotation(http1, http2, servers)
  const udp = claimUdp(link, news, warn)
  const drain = prepareDrain({
    ledger,
    http1,
    http2,
    servers,
    websocketDrain: config.websocketDrain,
    withdrawAll() {
      claims.withdrawAll()
      udp.withdrawAll()
    },
    onBegin(timeoutMs) {
      // First what it holds: whoever sees it drain asks that at once.
      link.send({ t: 'counts', counts: ledger.counts() })
      link.send({ t: 'draining', timeoutMs })
      app.drains(timeoutMs)
    },
    onOver(counts, cut, slowest) {
      const shutDown = (): void => {
        link.send({ t: 'drained', counts, cut, slowest })
        const stay = link.hold()
        const release = (): void => {
          signals.release()
          stay()
        }
        void shutDownApp({ closers: app.closers, timeoutMs: times.shutdownTimeoutMs, release, warn })
      }
      // The job at which a leader is has the time of the drain, as a request has, also where there are no connections;
      // and a datagram that was read has its moment to be answered.
      leadership.whenReturned(() => udp.whenQuiet(times.drainTimeoutMs, shutDown))
    },
    onDied: (counts, lost) => link.send({ t: 'died', counts, lost }),
  })

  // One worker watches for all.
  if (config.slot === 0) watchProxies({ ledger, isServing: () => drain.phase === 'serving', warn })

  if (config.inspectorPort !== null) process.debugPort = config.inspectorPort
  const signals = keepSignals(config.inspectorPort !== null, (signal) => {
    if (signal !== 'SIGTERM' || drain.phase !== 'serving') return
    // Whoever sends TERM to one worker wants it gone: the master starts its successor first.
    if (link.connected) link.send({ t: 'signalled', signal })
    else drain.begin(times)
  })

  link.onMessage((message) => {
    switch (message.t) {
      case 'drain':
        failures.stopListening()
        times = message.times
        return drain.begin(times)
      case 'cut':
        drain.cut()
        leadership.cut()
        return udp.cut()
      case 'lead':
        return leadership.lead()
      case 'step-down':
        return leadership.stepDown()
      case 'probe':
        return probes.answer(message)
      case 'warm-up':
        return void warmUp(message, servers).then(link.send)
      case 'exit':
        return process.exit(1)
      case 'ticket-keys':
        return tickets.take(message)
      default:
        if (message.t === 'withdraw') app.withdrawn()
        claims.handle(message)
        if (message.t === 'withdraw' && claims.any) rotation.changed(claims.accepting)
        return udp.handle(message)
    }
  })
  onReceive((socket, message) => {
    const order = toWorker(message)
    if (order?.t !== 'handle') return socket.close()
    if (order.purpose === 'open') {
      if (drain.phase !== 'serving') return socket.close()
      failures.stopListening()
    }
    // A proof is given also in a drain: else the app would never hear of its `listen`, nor would anybody else who asks
    // the master for that address before this worker has gone. And an app that binds a datagram socket may send.
    const accepted = claims.accepting
    if (socket.kind === 'udp') udp.receive(socket, order)
    else claims.receive(socket, order)
    if (order.purpose !== 'open') return
    if (claims.any) rotation.changed(claims.accepting)
    // With the first of its listeners.
    if (!accepted) statistics?.opened()
    app.granted()
  })
  // The master died: nobody will replace this worker, and its listeners may be bound anew by the next master.
  link.onLost(() => drain.begin(times))

  let last = ''
  setInterval(() => {
    statistics?.tick()
    if (drain.phase !== 'serving') link.send({ t: 'holding', holding: drain.holding() })
    const counts = ledger.counts()
    const text = JSON.stringify(counts)
    if (text === last) return
    last = text
    link.send({ t: 'counts', counts })
  }, COUNTS_EVERY_MS).unref()

  Object.defineProperty(globalThis, Symbol.for('usr2.guest.v1'), { value: app.guest })
  link.send({ t: 'hello', version: PROTOCOL_VERSION, node: process.versions.node })
}

function warnOfPromise(server: net.Server, drainTimeoutMs: number, warn: (text: string) => void): void {
  const neededMs = promiseMs(server)
  if (neededMs <= drainTimeoutMs) return
  warn(
    `this app promises its clients to keep idle connections (keepAliveTimeout) longer than the drain timeout of ` +
      `${drainTimeoutMs / 1000} s: drains will take up to ${neededMs / 1000} s`,
  )
}

/** `fork()` and tools pass `process.execArgv` on; the copy of the guest may be gone by then. */
function forgetPreload(): void {
  // `__filename` has its symlinks resolved (/var/run), the argument has not; but its name is ours alone.
  const at = process.execArgv.findIndex(
    (arg, i, all) => all[i - 1] === '--require' && /\/\.usr2-[^/]*\/preload\.cjs$/.test(arg),
  )
  if (at > 0) process.execArgv.splice(at - 1, 2)
}

/**
 * An app that forks its own cluster would be drained while requests are in flight in grandchildren that we do not
 * see. node:cluster forks through this function, with its own variable in the environment.
 */
function refuseCluster(): void {
  const fork = childProcess.fork as (...args: unknown[]) => childProcess.ChildProcess
  childProcess.fork = ((...args: unknown[]) => {
    const options = args.find((arg) => typeof arg === 'object' && arg !== null && !Array.isArray(arg))
    const env = (options as { env?: NodeJS.ProcessEnv } | undefined)?.env
    if (env && 'NODE_UNIQUE_ID' in env) {
      throw new Error(
        'this app forks workers of its own with node:cluster, which usr2 cannot drain: ' +
          'remove cluster from the app and let usr2 do it, with --workers N',
      )
    }
    return fork(...args)
  }) as typeof childProcess.fork
}
