/**
 * Runs inside systemd-sandbox: starts, reloads and restarts of a service without a `.socket`, good and bad, one in the
 * middle of another; and the master killed.
 */
import assert from 'node:assert/strict'
import { App, end, gone, installUsr2, row, succeeds, until } from './systemd-box.mjs'

const NEVER_MS = 60_000

await installUsr2()
const box = new App('box')
const isReloading = () =>
  until('the unit to be reloading', async () => (await box.property('ActiveState')) === 'reloading')

await row('a start that takes its time: systemctl comes back when the app serves', async (say) => {
  box.release('1', { listenAfterMs: 1000 })
  await succeeds(box.start())
  const traffic = box.traffic()
  await traffic.lostNone(say)
})

await row('a slow reload: systemctl comes back when the new version serves', async (say) => {
  const traffic = box.traffic()
  await traffic.flows()
  let isOver = false
  const reloading = box.reloadTo('2', { listenAfterMs: 2000 }).finally(() => (isOver = true))
  await isReloading()
  assert.equal((await box.get('/')).version, '1', 'the old one serves meanwhile')
  assert.ok(!isOver, 'systemctl waits')
  await succeeds(reloading)
  assert.equal((await box.get('/')).version, '2')
  assert.equal(await box.property('ActiveState'), 'active')
  await traffic.lostNone(say)
})

for (const [who, slow, next] of [
  ['systemctl', '3', '4'],
  ['usr2 reload', '5', '6'],
]) {
  await row(`a reload by ${who} while reloading: what was deployed last serves at its end`, async (say) => {
    const traffic = box.traffic()
    await traffic.flows()
    const first = box.reloadTo(slow, { listenAfterMs: 1000 })
    await box.says(`version ${slow} has been started`)
    box.release(next)
    box.deploy(next)
    await succeeds(who === 'systemctl' ? box.systemctl('reload') : box.usr2('reload'))
    assert.equal((await box.get('/')).version, next)
    await succeeds(first)
    await box.settles()
    await traffic.lostNone(say)
  })
}

await row('a stop during a reload', async (say) => {
  const traffic = box.traffic()
  await traffic.flows()
  const reloading = box.reloadTo('7', { listenAfterMs: NEVER_MS })
  await box.says('version 7 has been started')
  await traffic.lostNone(say)
  const before = await box.footprint()
  await box.endsAnswering('stop')
  const { status, text } = await reloading
  say(`reload: ${status} ${text}`)
  assert.notEqual(status, 0, 'the reload has failed')
  await box.leftNothing(before)
})

await row('a start that fails', async () => {
  box.release('broken', { prologue: `throw new Error('broken on purpose')` })
  box.deploy('broken')
  const { status } = await box.start()
  assert.notEqual(status, 0)
  const reasons = (await box.log()).filter(({ msg }) => /broken on purpose/.test(msg))
  assert.ok(reasons.length > 0, 'the journal says why')
  await box.systemctl('stop')
})

await row(
  'systemctl restart: refused while nobody listens, and lost only what no worker had accepted',
  async (say) => {
    box.deploy('6')
    await succeeds(box.start())
    const traffic = box.traffic({ slow: 4 })
    await traffic.flows()
    const pids = await box.processes()
    await box.endsAnswering('restart')
    const goneAt = await gone(pids)
    await box.serves('6')
    await traffic.stop()
    say(String(traffic))
    // The kernel resets what waits in the queue of a listener that is closed.
    assert.equal(traffic.lostOnKept, 0, 'none on a connection that a worker had')
    assert.equal(traffic.lostSince(goneAt), 0)
  },
)

await row(
  'SIGKILL to the master: lost is what was in flight, refused until it is started again',
  async (say) => {
    await box.losesWhatIsInFlight(say, (master) => process.kill(master, 'SIGKILL'))
    await box.stopsClean()
  },
)
end()
