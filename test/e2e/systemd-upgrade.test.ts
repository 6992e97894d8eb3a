/** `usr2 upgrade` of a service of a real systemd (docs/upgrade.md), by what systemd passes to the master. */
import t from 'tap'
import { play, skip } from '../helpers/systemd.ts'

for (const kind of ['nothing', 'descriptor', 'sockets']) {
  t.test(`upgrades, systemd passes: ${kind}`, { skip }, (t) => play(t, 'systemd-upgrade-drive.mjs', kind))
}
