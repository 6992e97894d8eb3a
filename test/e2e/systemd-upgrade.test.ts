/** `usr2 upgrade` of a service of a real systemd (docs/upgrade.md). */
import t from 'tap'
import { play, skip } from '../helpers/systemd.ts'

t.test('upgrades', { skip }, (t) => play(t, 'systemd-upgrade-drive.mjs', 'nothing'))
// Where systemd passes something to the master (`descriptor`, `sockets`), an upgrade is refused so far.
