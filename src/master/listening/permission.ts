/**
 * Where a worker may listen. What a worker asks for is bound by the master, with the master's rights: under a root master
 * whose workers are somebody else (`--user`), a claim is a request to root. So without `--listen` such a worker gets what its
 * user could have bound by itself, and no more:
 *
 * - no port that is privileged, and no share in somebody's port (SO_REUSEPORT asks for the same user);
 * - no unix path at all: root would make, link, rename and remove files wherever it is told to.
 *
 * With `--listen` it gets what is on that list. A path must then be where only root can change what it leads to: whoever may
 * rename one of its directories would turn `/srv/app/run/passwd` into `/etc/passwd` while root brings it back or removes it.
 *
 * What the service manager passed is the operator's choice as well, and not asked about here.
 */
import { readFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { placeText, listenerKey, takesIn } from '../../address.ts'
import type { Address, Place } from '../../address.ts'
import { doubtsAbout } from '../../config/trust.ts'
import type { Ids } from '../workers/identity.ts'

export interface Permission {
  /** Where workers may listen; null: nobody said. */
  readonly listen: readonly Place[] | null
  /** As whom they run; null: as the master. */
  readonly identity: (Ids & { readonly name: string }) | null
}

/** Why a worker may not listen there, in a sentence that ends without a stop; null: it may. */
export function refusalOf(asked: Address, { listen, identity }: Permission): string | null {
  const key = listenerKey(asked)
  const stranger = identity !== null && identity.uid !== process.geteuid?.() ? identity : null
  if (listen !== null && !listen.some((place) => takesIn(place, asked))) {
    return (
      `${key} is none of the addresses of --listen (${listen.map(placeText).join(', ')}): let the app listen there, or ` +
      'allow it with a further --listen'
    )
  }
  if (stranger === null) return null
  if (listen === null && isPrivilege(asked)) {
    return (
      `${key} would be bound with the rights of usr2 (root), which the workers, who run as ${stranger.name}, do not have: ` +
      `allow it with --listen ${placeText(placeOf(asked))}`
    )
  }
  if (asked.kind !== 'unix' || asked.path.startsWith('\0')) return null
  const [doubt] = doubtsAbout(dirname(asked.path))
  return doubt === undefined
    ? null
    : `${key} cannot be made by usr2 (root) for workers who run as ${stranger.name}: ${doubt.text}, and could put another ` +
        'file in its place; take a directory that only root may write to, or a port'
}

function isPrivilege(asked: Address): boolean {
  if (asked.kind === 'unix') return !asked.path.startsWith('\0')
  return asked.port < firstFreePort() || (asked.kind === 'udp' && asked.reusePort === true)
}

const placeOf = (asked: Address): Place =>
  asked.kind === 'unix' ? asked : { kind: asked.kind, host: null, port: asked.port }

/** ip(7): ip_unprivileged_port_start. */
function firstFreePort(): number {
  try {
    return Number(readFileSync('/proc/sys/net/ipv4/ip_unprivileged_port_start', 'utf8'))
  } catch {
    return 1024
  }
}
