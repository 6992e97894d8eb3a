/** `usr2 upgrade` of a service of a real systemd (docs/upgrade.md). */
import t from 'tap'
import { play, skip } from '../helpers/systemd.ts'

t.test('upgrades', { skip }, (t) => play(t, 'systemd-upgrade-drive.mjs'))
