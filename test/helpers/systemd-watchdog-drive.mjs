/**
 * Runs inside systemd-sandbox: WatchdogSec=2 over a healthy service, a hung master and hung workers. Each story has a service
 * of its own, side by side, since they mostly wait.
 *
 * A blocked worker is found after 0.6 s here, and its successor has 3 s to start; a worker that is silent for longer counts
 * as one that nobody can help (src/master/systemd/heartbeat.ts).
 */
import assert from 'node:assert/strict'
import * as fs from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { App, end, installUsr2, journal, row, succeeds, until } from './systemd-box.mjs'

const WATCHDOG_S = 2
/** Until workers that nobody replaces would be told of, and systemd would have acted: 3.6 s in whole beats, and its 2 s. */
const UNTIL_IT_FIRES_MS = 8_000
const config = {
  ...{ startTimeout: '3s', drainTimeout: '1s', shutdownTimeout: '500ms', killTimeout: '500ms' },
  probes: { liveness: { eventLoop: true, period: '200ms', timeout: '200ms', failureThreshold: 2 } },
}

await installUsr2()
let port = 8080
async function started(name, service = []) {
  const places = [{ host: '127.0.0.1', port: port++ }]
  const app = new App(name, { places, config, service: [`WatchdogSec=${WATCHDOG_S}`, ...service] })
  await succeeds(app.start())
  return app
}

/** Blocks so many of its workers, one after the other: a blocked one accepts nothing. */
async function hang(app, count) {
  const logged = async () => (await app.log()).filter(({ event }) => event === 'replacing').length
  const before = await logged()
  const hung = []
  for (let done = 1; done <= count; done++) {
    hung.push(app.get('/hang').catch(() => {}))
    await until(`${done} hung workers`, async () => (await logged()) >= before + done)
  }
}

const firings = async (app) => {
  const entries = await journal('_PID=1', `UNIT=${app.unit}`)
  return entries.filter(({ MESSAGE }) => MESSAGE.includes('Watchdog timeout')).length
}

/** `hang` makes systemd end it, by its watchdog, and start it again: once. */
async function isEndedByWatchdog(app, say, hang) {
  await app.losesWhatIsInFlight(say, hang)
  assert.equal(await firings(app), 1)
  await app.stopsClean()
}

const healthy = (about, name, service, since = 0) => [
  name,
  `a healthy service, told by ${about}: nothing happens`,
  async (app, say) => {
    const traffic = app.traffic()
    await sleep(2 * WATCHDOG_S * 1000)
    await traffic.lostNone(say)
    assert.equal(await app.property('WatchdogUSec'), `${WATCHDOG_S}s`)
    assert.deepEqual([await firings(app), await app.property('NRestarts')], [0, '0'])
    await app.stopsClean()
  },
  service,
  since,
]

const stories = [
  healthy('the program systemd-notify', 'program'),
  healthy(
    'the notify descriptor',
    'descriptor',
    ['NotifyAccess=main', 'OpenFile=/run/systemd/notify:notify:graceful'],
    253,
  ),
  [
    'master',
    'a master that hangs is ended, and started again',
    (app, say) => isEndedByWatchdog(app, say, (master) => process.kill(master, 'SIGSTOP')),
  ],
  [
    'upgraded',
    'so is one that was upgraded',
    async (app, say) => {
      await succeeds(app.usr2('upgrade'))
      await app.settles()
      await isEndedByWatchdog(app, say, (master) => process.kill(master, 'SIGSTOP'))
    },
  ],
  [
    'all',
    'all workers hang, and those that are to replace them: ended, and started again',
    (app, say) =>
      isEndedByWatchdog(app, say, async () => {
        fs.writeFileSync(`${app.home}/hang`, '')
        await hang(app, 2)
        await until('the heartbeat to be lost', async () =>
          (await app.log()).some(({ event }) => event === 'heartbeat-lost'),
        )
        fs.rmSync(`${app.home}/hang`)
      }),
  ],
  [
    'one',
    'one worker of two hangs: usr2 replaces it, and the watchdog has nothing to do',
    async (app, say) => {
      const traffic = app.traffic()
      await traffic.flows()
      const before = await app.processes()
      await hang(app, 1)
      await until('the hung one to be gone', () => before.find((pid) => !fs.existsSync(`/proc/${pid}`)))
      const goneAt = performance.now()
      await sleep(UNTIL_IT_FIRES_MS)
      await app.settles()
      await traffic.stop()
      say(String(traffic))
      assert.deepEqual(traffic.refused, {})
      assert.equal(traffic.lostSince(goneAt), 0, 'lost is what was in flight in the hung one')
      assert.deepEqual([await firings(app), await app.property('NRestarts')], [0, '0'])
      await app.stopsClean()
    },
  ],
]

const playing = []
for (const [name, about, story, service, since] of stories) {
  // One boot after the other, so that none of them is late for its watchdog.
  let hasStarted
  const start = new Promise((resolve) => (hasStarted = resolve))
  playing.push(
    row(
      about,
      async (say) => {
        const app = await started(name, service).finally(hasStarted)
        await story(app, say)
      },
      { since },
    ).finally(hasStarted),
  )
  await start
}
await Promise.all(playing)
end()
