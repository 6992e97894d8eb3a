/** WatchdogSec= of a real systemd (docs/socket-activation.md, "The watchdog"). */
import t from 'tap'
import { play, skip } from '../helpers/systemd.ts'

t.test('the watchdog', { skip }, (t) => play(t, 'systemd-watchdog-drive.mjs'))
