import { describeFd } from './describe-fd.ts'
import { adopt, type HeldSocket } from './held-socket.ts'

/** SD_LISTEN_FDS_START of sd_listen_fds(3). */
const FIRST_FD = 3

/**
 * The sockets that a service manager passed (sd_listen_fds(3): LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES), by name. Several
 * sockets of one `.socket` unit share its name, and their order is not the order in the unit. Sockets without names are
 * called `unknown`, as sd_listen_fds_with_names(3) does.
 *
 * Empty when nothing was passed, or passed to another process (LISTEN_PID is not `pid`). Changes neither the environment
 * nor, when it throws, any descriptor. Call it once: a descriptor can be adopted by one holder only.
 *
 * @param ignore names to leave alone, such as that of an `OpenFile=`.
 * @throws {Error} when the variables contradict each other, or a descriptor is not a socket that can be held.
 */
export function fromSystemd(
  env: NodeJS.ProcessEnv = process.env,
  pid: number = process.pid,
  ignore: readonly string[] = [],
): ReadonlyMap<string, readonly HeldSocket[]> {
  const sockets = new Map<string, HeldSocket[]>()
  if (env.LISTEN_PID !== String(pid) || env.LISTEN_FDS === undefined) return sockets

  const count = Number(env.LISTEN_FDS)
  if (!/^\d+$/.test(env.LISTEN_FDS) || !Number.isSafeInteger(count)) {
    throw new Error(`LISTEN_FDS is not a number of file descriptors: ${JSON.stringify(env.LISTEN_FDS)}.`)
  }
  const names = env.LISTEN_FDNAMES?.split(':')
  if (names && names.length !== count) {
    throw new Error(`LISTEN_FDNAMES has ${names.length} names for LISTEN_FDS=${count} file descriptors.`)
  }
  const passed = Array.from({ length: count }, (_, i) => ({
    fd: FIRST_FD + i,
    name: names?.[i] ?? 'unknown',
  }))
  const wanted = passed.filter(({ name }) => !ignore.includes(name))
  for (const { fd, name } of wanted) {
    const { kind, what } = describeFd(fd)
    if (kind === 'other') {
      throw new Error(
        `The service manager passed file descriptor ${fd} (${name}), which is ${what}, not a socket to hold.`,
      )
    }
  }
  for (const { fd, name } of wanted) {
    sockets.set(name, [...(sockets.get(name) ?? []), adoptPassed(fd, name)])
  }
  return sockets
}

function adoptPassed(fd: number, name: string): HeldSocket {
  try {
    return adopt(fd)
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    throw new Error(`The service manager passed file descriptor ${fd} (${name}). ${why}`, { cause: error })
  }
}
