/** usr2 as PID 1 of a PID namespace of its own: what it is in a container. Takes root. */
import { spawnSync } from 'node:child_process'
import { readFileSync, readdirSync } from 'node:fs'
import type { TestLike } from './scope.ts'
import { startUsr2, type Usr2, type Usr2Options } from './usr2.ts'

const NAMESPACE = ['--pid', '--fork', '--mount-proc', '--kill-child=SIGKILL']

/** Why not here, for `skip`; false: it can be. */
export const cannotBePid1 =
  spawnSync('unshare', [...NAMESPACE, 'true']).status === 0
    ? false
    : 'PID 1 is tried as root, on Linux, by unshare(1)'

export function startAsPid1(t: TestLike, options: Usr2Options): Usr2 {
  return startUsr2(t, { ...options, node: 'unshare', nodeArgs: [...NAMESPACE, process.execPath] })
}

/** A signal to the master; unshare(1), which waits for it, keeps TERM and INT to itself. */
export function signalPid1(usr2: Usr2, signal: NodeJS.Signals): void {
  const [master] = readdirSync('/proc').filter((pid) => {
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
      return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1] === String(usr2.pid)
    } catch {
      return false
    }
  })
  if (master === undefined) throw new Error(`unshare (pid ${usr2.pid}) has no child\n${usr2.logs()}`)
  process.kill(Number(master), signal)
}
