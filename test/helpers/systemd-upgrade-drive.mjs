/**
 * Runs inside systemd-sandbox: `usr2 upgrade` of a service: twice in a row, to a usr2 that cannot be run, crashes or hangs,
 * with a stop in the middle; and the new master killed.
 *
 *   node systemd-upgrade-drive.mjs KIND      KIND: what systemd passes to the master
 */
import assert from 'node:assert/strict'
import * as fs from 'node:fs'
import {
  App,
  USR2,
  end,
  installUsr2,
  journal,
  row,
  succeeds,
  systemctl,
  unit,
  until,
} from './systemd-box.mjs'

await installUsr2()
const CLI = `${USR2}/dist/cli.mjs`
/** As it was installed, for clients. */
const HEALTHY = `${USR2}/dist/healthy.mjs`
fs.cpSync(CLI, HEALTHY)
/** The usr2 on disk is another one from now on: this, and then itself. */
const putUsr2 = (prologue) =>
  fs.writeFileSync(CLI, `#!/usr/bin/env node\n${prologue}\nawait import('./healthy.mjs')\n`)
const inNewMaster = (what) => `if (process.env.USR2_UPGRADE) { ${what} }`
const HANGS = inNewMaster('await new Promise((done) => setTimeout(done, 2 ** 30))')

const ALONE = [{ host: '127.0.0.1', port: 8080 }]
const NOTIFY = ['NotifyAccess=main', 'OpenFile=/run/systemd/notify:notify:graceful']
const kinds = {
  nothing: { places: ALONE, service: [] },
  descriptor: { places: ALONE, service: NOTIFY, since: 253 },
  sockets: { places: [...ALONE, { socketPath: '/run/box.sock' }], service: [], socket: 'usr2@box.socket' },
}
const { places, service, socket, since } = kinds[process.argv[2]]
const tell = (name, story) => row(name, story, { since })

const box = new App('box', { places, service: ['WatchdogSec=2', ...service] })
box.client = ['node', HEALTHY]
if (socket) unit(socket, '[Socket]\nListenStream=127.0.0.1:8080\nListenStream=/run/box.sock\n')
async function starts() {
  await systemctl('daemon-reload')
  if (socket) await succeeds(systemctl('start', socket))
  await succeeds(box.start())
}
/** With its sockets, so that no client starts it again. */
const sockets = socket ? [socket] : []
const stopsClean = () => box.stopsClean(...sockets)

/** Another main process, which systemd and usr2 agree about. */
async function upgrades(...args) {
  const before = await box.mainPid()
  const text = await succeeds(box.usr2('upgrade', ...args))
  const after = await box.mainPid()
  assert.notEqual(after, before)
  assert.equal((await box.status()).pid, after)
  assert.equal(await box.property('ActiveState'), 'active')
  await box.answers('by its workers', ({ master }) => master === after)
  return { before, after, text: text.split('\n').at(-1) }
}

/** By another cause than that it could not be tried: the same master goes on, and has all that it had. */
async function failsToUpgrade(why, ...args) {
  const before = { pid: await box.mainPid(), files: fs.readdirSync(box.runtimeDirectory) }
  const { status, text } = await box.usr2('upgrade', ...args)
  assert.equal(status, 1, text)
  assert.match(text, why)
  assert.deepEqual({ pid: await box.mainPid(), files: fs.readdirSync(box.runtimeDirectory) }, before)
  const { pid, state } = await box.status()
  assert.deepEqual({ pid, state }, { pid: before.pid, state: 'steady' })
  await box.settles()
}

/** Every line that these processes wrote belongs to the unit. */
async function writeForTheUnit(pids) {
  for (const pid of pids) {
    const entries = await until(`lines of pid ${pid}`, async () => {
      const found = await journal(`_PID=${pid}`)
      return found.length > 0 && found
    })
    const strangers = entries.filter(({ _SYSTEMD_UNIT }) => _SYSTEMD_UNIT !== box.unit)
    assert.deepEqual(strangers, [], `lines of pid ${pid}`)
  }
}

await tell('twice in a row, a reload, and a clean stop', async (say) => {
  await starts()
  const traffic = box.traffic({ slow: 4 })
  await traffic.flows()
  for (const generation of [2, 3]) {
    const { before, after, text } = await upgrades()
    say(text)
    await until('the old master to leave', () => !fs.existsSync(`/proc/${before}`))
    assert.equal((await box.get('/')).generation, generation)
    const { generations } = await box.status()
    const workers = generations.flatMap(({ workers }) => workers.map(({ pid }) => pid))
    assert.equal(workers.length, 2)
    await writeForTheUnit([after, ...workers])
  }
  await succeeds(box.reloadTo('2'))
  await box.serves('2')
  await traffic.lostNone(say)
  assert.equal(await box.property('NRestarts'), '0', 'the watchdog of 2 s has been fed throughout')
  await stopsClean()
})

await tell(
  'to a usr2 that cannot be run, one that crashes and one that hangs, then to a good one',
  async (say) => {
    await starts()
    const traffic = box.traffic({ slow: 4 })
    await traffic.flows()
    putUsr2('this is no JavaScript')
    await failsToUpgrade(/cannot be run by .*SyntaxError/)
    putUsr2(inNewMaster(`throw new Error('crashes on purpose')`))
    await failsToUpgrade(/ended without a word/)
    putUsr2(HANGS)
    await failsToUpgrade(/--timeout 2s expired/, '--timeout', '2s')
    putUsr2('')
    box.release('broken', { prologue: `throw new Error('broken on purpose')` })
    box.deploy('broken')
    await failsToUpgrade(/broken on purpose/)
    box.deploy('1')
    say((await upgrades()).text)
    await box.serves('1')
    await traffic.lostNone(say)
    assert.equal(await box.property('NRestarts'), '0')
    await stopsClean()
  },
)

await tell('a stop before the new master has taken over', async (say) => {
  await starts()
  const traffic = box.traffic()
  await traffic.flows()
  box.release('late', { listenAfterMs: 60_000 })
  box.deploy('late')
  const upgrading = box.usr2('upgrade')
  await box.says('version late has been started')
  await traffic.lostNone(say)
  const before = await box.footprint()
  await box.endsAnswering('stop', ...sockets)
  const { status, text } = await upgrading
  assert.equal(status, 1)
  assert.match(text, /told to stop/)
  await box.leftNothing(before)
})

await tell('a stop while the old master drains', async (say) => {
  box.deploy('1')
  await starts()
  const held = await box.hold()
  const { before, text } = await upgrades()
  say(text)
  assert.ok(fs.existsSync(`/proc/${before}`), 'the old one waits for its requests')
  const footprint = await box.footprint()
  await box.endsAnswering('stop', ...sockets)
  assert.deepEqual(await held.lost(), [], 'what was in flight in the old one was answered')
  await box.leftNothing(footprint)
})

await tell('systemctl restart of a master that was upgraded', async (say) => {
  await starts()
  const { after } = await upgrades()
  await box.settles()
  await box.endsAnswering('restart')
  const { master } = await box.answers(
    'by another master',
    (answer) => answer.master && answer.master !== after,
  )
  assert.equal(master, await box.mainPid())
  say('0 of 4 in flight lost')
})

await tell('SIGKILL to a master that was upgraded: lost is what was in flight', async (say) => {
  await upgrades()
  await box.settles()
  const { refused } = await box.losesWhatIsInFlight(say, (master) => process.kill(master, 'SIGKILL'))
  if (socket) assert.deepEqual(refused, {}, '0 refused')
  await stopsClean()
})
end()
