/** A stop while the master is being replaced, at each step: nothing is left of either, and what was in flight is answered. */
import { existsSync, readdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t from 'tap'
import { openRaw } from '../helpers/raw-client.ts'
import { expectNothingLeft } from '../helpers/spawn.ts'
import {
  DEAF,
  HANG,
  REACHED,
  copyOfUsr2,
  hello,
  inNewMaster,
  insteadOfSaying,
  startBoth,
  whenTold,
} from '../helpers/upgrades.ts'
import { imbalancesOf } from '../helpers/usr2.ts'

const BOOTING = inNewMaster('')
const steps = [
  { name: 'before its hello', disk: insteadOfSaying('hello', HANG) },
  { name: 'while its app boots', disk: BOOTING, app: 'setTimeout(() => {}, 60_000)' },
  { name: 'as its generation serves', disk: insteadOfSaying('ready', DEAF) },
  { name: 'when it hangs in taking over', disk: whenTold('take-over', HANG) },
  { name: 'when it has the control socket', disk: insteadOfSaying('took-over', DEAF) },
]
for (const { name, disk: text, app } of steps) {
  for (const how of ['graceful', 'now']) {
    t.test(`a stop (${how}) ${name}`, async (t) => {
      const disk = copyOfUsr2(t)
      const { usr2, port, path } = await startBoth(t, { cli: disk.cli })
      const slow = how === 'graceful' ? await openRaw(t, { port }) : null
      slow?.get('/slow?ms=1500', 'Connection: close')
      disk.put(text)
      if (app !== undefined) writeFileSync(join(usr2.cwd, 'app.cjs'), app)
      const upgrading = usr2.cli('upgrade')
      if (text === BOOTING) await hello(usr2)
      else await usr2.process.line(REACHED)
      if (how === 'graceful') usr2.signal('SIGTERM')
      else t.equal((await usr2.cli('stop', ['--now'])).code, 0)
      t.match(await upgrading, { code: 1, stderr: /The master was told to stop/ })
      if (slow) t.equal((await slow.response()).status, 200, 'what was in flight is answered')
      t.match(await usr2.process.ended(), { code: 0, signal: null })
      await expectNothingLeft(t, usr2.process, 2_000)
      t.notOk(existsSync(path))
      t.same(readdirSync(dirname(usr2.control)), ['app'], 'nothing is left of either')
      t.same(
        readdirSync(usr2.cwd).filter((file) => file.startsWith('.usr2')),
        [],
      )
      t.same(usr2.events().flatMap(imbalancesOf), [], 'the accounts of every generation agree')
    })
  }
}
