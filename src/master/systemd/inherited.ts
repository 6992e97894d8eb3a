/**
 * What the service manager passed to this process as open descriptors (sd_listen_fds(3)): the sockets of `.socket`
 * units, and the descriptor by which it is told things. Known by name, never by order: that is not the order in the unit.
 *
 * None of it reaches a worker by itself: Node makes what it inherits close-on-exec as it starts, and the variables are
 * in NOTIFY_ENV_KEYS (systemd.ts). Workers get sockets from src/master/listening/listeners.ts.
 */
import { fstatSync } from 'node:fs'
import { adopt, fromSystemd } from 'native-free-fd-passing'
import type { HeldSocket } from 'native-free-fd-passing'
import { listenerKey } from '../../address.ts'
import type { Address, ListenerKey } from '../../address.ts'
import type { Bequest } from '../upgrade/upgrade-wire.ts'

/** As in `OpenFile=/run/systemd/notify:notify:graceful` (systemd.exec(5), systemd 253 and newer). */
export const NOTIFY_NAME = 'notify'
/** SD_LISTEN_FDS_START. */
const FIRST_FD = 3

/** A socket that is the service manager's as much as ours: it listens before us, and after us. */
export interface ActivatedSocket {
  /** FileDescriptorName= of the unit, by default the unit's own name. Several sockets may share it. */
  readonly name: string
  readonly socket: HeldSocket
  readonly address: Address
  readonly key: ListenerKey
}

export interface Inherited {
  /** A datagram socket connected to the service manager, for sd_notify(3) by write(2). */
  readonly notifyFd: number | null
  readonly sockets: readonly ActivatedSocket[]
  readonly warning: string | null
}

const NOTHING: Inherited = { notifyFd: null, sockets: [], warning: null }

/**
 * To be called once in a process: a descriptor has one holder.
 *
 * @param env LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES
 * @throws {Error} a sentence: one of the descriptors is nothing that we can hold or hand on, or two are the same
 */
export function takeInherited(env: NodeJS.ProcessEnv, pid: number = process.pid): Inherited {
  const { LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES } = env
  if (!LISTEN_FDS) return NOTHING
  if (LISTEN_PID !== String(pid)) {
    const warning =
      `LISTEN_FDS=${LISTEN_FDS} is for process ${LISTEN_PID ?? '(LISTEN_PID is not set)'}, and this is ${pid}: its ` +
      'sockets are not used; let ExecStart= start usr2 itself, or by a shell with `exec`'
    return { ...NOTHING, warning }
  }
  const at = LISTEN_FDNAMES?.split(':').indexOf(NOTIFY_NAME) ?? -1
  const notifyFd = at < 0 ? null : FIRST_FD + at
  if (notifyFd !== null && !isSocket(notifyFd)) {
    throw new Error(
      `The service manager passed file descriptor ${notifyFd} as "${NOTIFY_NAME}", which is not a socket: ` +
        'OpenFile= of that name must be /run/systemd/notify.',
    )
  }
  const sockets: ActivatedSocket[] = []
  for (const [name, all] of fromSystemd(env, pid, [NOTIFY_NAME])) {
    for (const socket of all) {
      const address: Address = socket.asked
      if (address.kind === 'unix' && address.path === '') {
        throw new Error(
          `The service manager passed file descriptor ${socket.fd} (${name}), a unix socket whose path cannot be seen ` +
            'from here: under PrivateNetwork=yes only TCP sockets can be passed.',
        )
      }
      const key = listenerKey(address)
      const twin = sockets.find((other) => other.key === key)
      if (twin) {
        throw new Error(
          `The service manager passed two sockets for ${key} (${twin.name}, ${name}), and usr2 serves one: ` +
            'remove one of their ListenStream= or ListenDatagram=.',
        )
      }
      sockets.push({ name, socket, address, key })
    }
  }
  return { notifyFd, sockets, warning: null }
}

/**
 * What the master before was passed and hands on to us. What LISTEN_FDS says is not looked at: it was not said to us.
 *
 * @throws {Error} one of the descriptors is not what it is said to be
 */
export function takeBequeathed({ activated, notifyFd }: Bequest): Inherited {
  if (notifyFd !== null && !isSocket(notifyFd)) {
    throw new Error(`File descriptor ${notifyFd}, by which systemd is told things, is not a socket.`)
  }
  const sockets = activated.map(({ fd, name, address }) => {
    return { name, address, socket: adopt(fd, address.kind), key: listenerKey(address) }
  })
  return { notifyFd, sockets, warning: null }
}

function isSocket(fd: number): boolean {
  try {
    return fstatSync(fd).isSocket()
  } catch {
    return false
  }
}

/**
 * Which of the activated sockets an app gets that asks for `asked`, the one that answers for the key first. Empty: none,
 * the address is to be bound.
 *
 * `ListenStream=3000` is `[::]:3000`, and apps say `0.0.0.0`, `::` or nothing when they mean "every address"; what the
 * unit says then decides which. So whoever asks for every address gets what the unit has at that port, one socket or
 * several (`0.0.0.0:3000` beside an IPv6-only `[::]:3000`). Whoever asks for one address gets that or nothing: an app
 * that wants the loopback is never opened to the world. UDP stays in its family: with a socket of the other one its
 * peers have addresses that `dgram` cannot answer to.
 *
 * @param isSamePath whether two paths lead to one socket (`/var/run` is a link to `/run`)
 */
export function fitting(
  asked: Address,
  activated: readonly ActivatedSocket[],
  isSamePath: (a: string, b: string) => boolean,
): ActivatedSocket[] {
  if (asked.kind === 'unix') {
    return activated
      .filter(({ address }) => address.kind === 'unix' && isSamePath(address.path, asked.path))
      .slice(0, 1)
  }
  const same = activated.flatMap((each) => {
    const { address } = each
    return address.kind === asked.kind && address.port === asked.port ? [{ each, host: address.host }] : []
  })
  const isV4 = (host: string): boolean => !host.includes(':')
  const pick = (test: (host: string) => boolean): ActivatedSocket[] =>
    same
      .filter(({ host }) => test(host))
      // The one that takes in most speaks for the others: it is what `address()` tells the app.
      .sort((a, b) => rank(a.host) - rank(b.host))
      .map(({ each }) => each)
  if (asked.host !== '::' && asked.host !== '0.0.0.0') return pick((host) => host === asked.host)
  if (asked.kind === 'udp') return pick((host) => isV4(host) === isV4(asked.host)).slice(0, 1)
  if (asked.host === '::') return pick((host) => !asked.ipv6Only || !isV4(host))
  const v4 = pick(isV4)
  return v4.length > 0 ? v4 : pick((host) => host === '::')
}

const rank = (host: string): number => (host === '::' ? 0 : host === '0.0.0.0' ? 1 : 2)
