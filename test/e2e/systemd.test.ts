/** usr2 as a service of a real systemd, by the units as we ship and as we write them, for each kind of user. */
import t from 'tap'
import { play, skip } from '../helpers/systemd.ts'

t.test('units', { skip }, (t) => play(t, 'systemd-drive.mjs'))
