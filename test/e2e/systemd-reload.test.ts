/** Starts, reloads, restarts and crashes of usr2 under a real systemd, without a `.socket` unit. */
import t from 'tap'
import { play, skip } from '../helpers/systemd.ts'

t.test('without a .socket unit', { skip }, (t) => play(t, 'systemd-reload-drive.mjs'))
