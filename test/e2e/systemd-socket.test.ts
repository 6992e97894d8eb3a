/** usr2 behind a `.socket` unit of a real systemd. */
import t from 'tap'
import { play, skip } from '../helpers/systemd.ts'

t.test('a .socket unit: TCP4, TCP6, unix, UDP', { skip }, (t) => play(t, 'systemd-socket-drive.mjs'))
