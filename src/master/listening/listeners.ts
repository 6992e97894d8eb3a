/**
 * The listeners of this master: bound on a worker's first claim, held for the master's whole life, granted to any
 * number of workers, released only on order. The master never listens, accepts or reads on them.
 *
 * A UDP socket needs no proof by listen(2): bind(2) tells all. And a worker gets its copy with the answer to its claim,
 * not with the grant: it may send before it may read, and an unread copy is no trap while others read.
 *
 * Sockets that the service manager passed are held from the start, so an app that asks for exactly their address finds
 * them as any listener of an earlier generation; one that asks for every address of a port gets them under that key as
 * well (`fitting` in inherited.ts). They are the manager's: never proved, never unlinked, and kept when nobody listens.
 */
import { rmSync } from 'node:fs'
import type { Stats } from 'node:fs'
import net from 'node:net'
import { BindError, adopt, bind } from 'native-free-fd-passing'
import type { HeldSocket } from 'native-free-fd-passing'
import { listenerKey, overlaps } from '../../address.ts'
import type { Address, ListenerKey } from '../../address.ts'
import { CMD } from '../../protocol.ts'
import type { KnownListener, WireAddress, WireError } from '../../protocol.ts'
import { fitting } from '../systemd/inherited.ts'
import type { ActivatedSocket } from '../systemd/inherited.ts'
import { isSameFile, lstat, stat } from '../look.ts'
import { refusalOf } from './permission.ts'
import type { Permission } from './permission.ts'
import { ownerOf } from './port-owner.ts'
import { KeptUnixPath } from './unix-path.ts'
import type { BequeathedActivated, BequeathedListener } from '../upgrade/upgrade-wire.ts'
import type { WorkerHandle } from '../workers/worker-handle.ts'

/** How long a worker may take to acknowledge its turn. */
const TURN_TIMEOUT_MS = 10_000
/**
 * How long a worker may take for what it has asked for as it boots: what follows `listen` or `bind` may block its event loop
 * for long (seen as too short: 10 s, an app that compiles its templates there). Others wait for it, too, and may take 60 s
 * for their start.
 */
const PROOF_TIMEOUT_MS = 30_000
/**
 * For sockets that were passed to us: listen(2) cuts it to net.core.somaxconn, so it never lowers what the unit's
 * Backlog= gave; Node's 511 would. (What that is now, nothing in /proc tells.)
 */
const MAX_BACKLOG = 2 ** 31 - 1
/** After the first generation serves: an app may listen on its second address a little later. */
const UNCLAIMED_AFTER_MS = 3_000
/** Bound on a worker's word, and then no worker says that it listens there: it has died, or never meant to. */
const CLAIM_TIMEOUT_MS = PROOF_TIMEOUT_MS + 10_000
/** Each is a descriptor of ours, and a worker can ask for every port there is: then nothing could be started any more. */
const MAX_LISTENERS = 1_000

export interface ListenersParts {
  /** What the service manager passed. */
  readonly activated?: readonly ActivatedSocket[]
  readonly log: { info(facts: object, text: string): void; warn(facts: object, text: string): void }
  /** A listener is held since; workers are told so that they may claim it without asking. */
  onHeld(listener: KnownListener): void
  /** A worker of a killed master may have an address that is in use: whether it is worth another try. */
  makeWay?(address: Address): Promise<boolean>
  /** Is not held any more: nobody has listened there. */
  onUnclaimed?(key: ListenerKey): void
}

interface Held {
  readonly socket: HeldSocket
  readonly address: Address
  readonly known: KnownListener
  readonly path: KeptUnixPath | null
  /** It is one of the service manager's. */
  readonly activated?: ActivatedSocket
}

interface Asker {
  readonly worker: WorkerHandle
  readonly id: number
  readonly address: Address
}

/** A bind that a worker is proving by listen(2); others who ask for the same address wait for its outcome. */
interface Proof {
  readonly prover: WorkerHandle
  readonly held: Held
  readonly waiting: Asker[]
  /** Others wait for it, too. */
  readonly timer: NodeJS.Timeout
}

export class Listeners {
  private readonly held = new Map<ListenerKey, Held>()
  private readonly proofs = new Map<ListenerKey, Proof>()
  private readonly parts: ListenersParts
  private readonly activated: readonly ActivatedSocket[]
  /** Keys of activated sockets that a worker has listened on. */
  private readonly claimedKeys = new Set<ListenerKey>()

  constructor(parts: ListenersParts) {
    this.parts = parts
    this.activated = parts.activated ?? []
    for (const each of this.activated) {
      const { name, key, address } = each
      this.held.set(key, this.holdActivated(address, key, fitting(address, this.activated, isSamePath), each))
      parts.log.info({ event: 'activated', name, listener: key }, `was passed ${key} (${name})`)
    }
  }

  /** For the workers. */
  known(permission: Permission): KnownListener[] {
    return [...this.held.values()].flatMap((held) => (isFor(held, permission) ? [held.known] : []))
  }

  /** Whether it is held, and a worker may listen there. */
  isFor(key: ListenerKey, permission: Permission): boolean {
    const held = this.held.get(key)
    return held !== undefined && isFor(held, permission)
  }

  /** For people: without what the service manager passed and nobody listens on. */
  keys(): ListenerKey[] {
    return [...this.held].flatMap(([key, { activated }]) =>
      activated && !this.claimedKeys.has(key) ? [] : [key],
    )
  }

  /** A worker listens there. */
  claimed(key: ListenerKey): void {
    clearTimeout(this.unclaimed.get(key))
    this.unclaimed.delete(key)
    if (this.held.get(key)?.activated) this.claimedKeys.add(key)
  }

  /** The first generation serves. */
  serving(): void {
    if (this.activated.length === 0) return
    this.unclaimedTimer = setTimeout(() => this.reportUnclaimed(), UNCLAIMED_AFTER_MS).unref()
  }
  private unclaimedTimer: NodeJS.Timeout | undefined

  /** Says which of the sockets that the service manager passed no worker has listened on: their clients would hang. */
  private reportUnclaimed(): void {
    const isClaimed = ({ socket }: ActivatedSocket): boolean =>
      [...this.claimedKeys].some((key) => this.held.get(key)?.socket === socket)
    for (const { name, key } of this.activated.filter((each) => !isClaimed(each))) {
      this.parts.log.warn(
        { event: 'unclaimed', name, listener: key },
        `the app does not listen on ${key}, which the service manager passed as "${name}": clients connect and get no ` +
          'answer; let the app listen there, or take the address out of the .socket unit',
      )
    }
  }

  has(key: ListenerKey): boolean {
    return this.held.has(key)
  }

  /** A worker wants to listen on an address that it does not know to be held. */
  claim(worker: WorkerHandle, id: number, wire: WireAddress): void {
    const address = wire as Address
    const key = listenerKey(address)
    const asker = { worker, id, address }
    const held = this.held.get(key)
    if (held?.activated) return this.answer(asker, held)
    const [first, ...others] = fitting(address, this.activated, isSamePath)
    if (first) return this.lend(asker, key, [first, ...others])
    const refusal = refusalOf(address, worker.permission)
    if (refusal !== null) return this.refuse(asker, { code: 'EACCES', errno: -13 }, refusal)
    if (held) return this.answer(asker, held)
    const proof = this.proofs.get(key)
    if (proof) return void proof.waiting.push(asker)
    if (this.held.size + this.proofs.size + this.binding >= MAX_LISTENERS) {
      const text = `could not bind ${key}: this master holds ${MAX_LISTENERS} listeners, and no more than that`
      return this.refuse(asker, { code: 'EMFILE', errno: -24 }, text)
    }
    this.binding++
    void this.bind(asker, key).finally(() => this.binding--)
  }
  /** Claims that are being looked at. */
  private binding = 0

  private refuse(
    { worker, id, address }: Asker,
    error: Pick<WireError, 'code' | 'errno'>,
    why: string,
  ): void {
    const facts = { ...worker.facts, event: 'claim-refused', listener: listenerKey(address) }
    if (worker.mayBeQuoted(this.parts.log)) this.parts.log.warn(facts, why)
    worker.explain(why)
    worker.send({ t: 'answer', id, error: { ...error, syscall: address.kind === 'udp' ? 'bind' : 'listen' } })
  }

  /** The service manager's sockets under the key that the app asks for. */
  private lend(
    asker: Asker,
    key: ListenerKey,
    sockets: readonly [ActivatedSocket, ...ActivatedSocket[]],
  ): void {
    const held = this.holdActivated(asker.address, key, sockets, sockets[0])
    const names = sockets.map((each) => `${each.key} (${each.name})`).join(' and ')
    this.parts.log.info(
      { ...asker.worker.facts, event: 'lent', listener: key },
      `the app asks for ${key} and gets ${names}, which the service manager passed`,
    )
    this.keep(asker, held)
    this.answer(asker, held)
  }

  private holdActivated(
    address: Address,
    key: ListenerKey,
    sockets: readonly ActivatedSocket[],
    activated: ActivatedSocket,
  ): Held {
    const { socket } = activated
    const also = sockets.filter((each) => each !== activated).map((each) => each.key)
    const known: KnownListener = {
      ...{ key, bound: socket.bound, backlog: MAX_BACKLOG },
      ...(also.length > 0 && { also }),
    }
    return { socket, address, known, path: null, activated }
  }

  private async bind(asker: Asker, key: ListenerKey): Promise<void> {
    const { worker, id, address } = asker
    const refuse = (code: string, errno: number, why: string): void =>
      this.refuse(asker, { code, errno }, why)
    const rival = [...this.held.values(), ...[...this.proofs.values()].map((p) => p.held)].find((other) =>
      overlaps(other.address, address),
    )
    if (rival) {
      const whose = rival.activated
        ? `which the service manager passed (${rival.activated.name}): let the app listen on that, or change the .socket unit`
        : `which this master holds (if the app has moved there: usr2 reload --drop ${rival.known.key}, or stop and start)`
      return refuse('EADDRINUSE', -98, `could not bind ${key}: it overlaps ${rival.known.key}, ${whose}`)
    }
    try {
      await removeStale(address)
      // The claimant may have died, or another one been faster, while we looked.
      if (this.held.has(key) || this.proofs.has(key)) return this.claim(worker, id, address)
      // One that was cut off lives for a while: each of its claims, a thousand in a flood, would be bound and closed again.
      if (!worker.alive || !worker.child.connected) return
      const held = this.hold(bindAs(address), address, key)
      if (address.kind === 'udp') {
        this.keep(asker, held)
        return this.answer(asker, held)
      }
      // It has heard of nothing, and its app waits.
      const fail = (error: WireError): void => {
        if (this.proofs.get(key)?.held !== held) return
        worker.send({ t: 'answer', id, error })
        this.proved(worker, key, error)
      }
      const timer = setTimeout(() => {
        fail({ code: 'ETIMEDOUT', errno: -110, syscall: 'listen' })
      }, PROOF_TIMEOUT_MS)
      this.proofs.set(key, { prover: worker, held, waiting: [], timer })
      const message = { cmd: CMD, t: 'handle', purpose: 'verify', listener: held.known, id }
      held.socket.sendTo(worker.child, message, { timeoutMs: PROOF_TIMEOUT_MS }).catch(() => {
        fail({ code: 'ECANCELED', errno: -125, syscall: 'listen' })
      })
    } catch (error) {
      if (!(error instanceof BindError)) {
        // A worker's word is not to be trusted: an address that is none must not end the master.
        const why = error instanceof Error ? error.message : String(error)
        return refuse('EINVAL', -22, `could not bind ${key}: ${why}`)
      }
      const isInUse = error.code === 'EADDRINUSE'
      if (isInUse && (await this.parts.makeWay?.(address))) return this.claim(worker, id, address)
      const owner = isInUse ? ownerOf(address) : null
      const { code, errno } = error
      refuse(code, errno, `could not bind ${key}: ${hintFor(code, owner, error.message)}`)
    }
  }

  private hold(socket: HeldSocket, address: Address, key: ListenerKey): Held {
    const known = { key, bound: socket.bound }
    return { socket, address, known, path: this.keepPath(address, key) }
  }

  private keepPath(address: Address, key: ListenerKey): KeptUnixPath | null {
    if (address.kind !== 'unix' || address.path.startsWith('\0')) return null
    const { log } = this.parts
    const restored = (): void =>
      log.warn({ listener: key }, `something removed ${address.path}; brought it back`)
    try {
      const path = new KeptUnixPath(address.path, restored)
      this.kept.push(path)
      return path
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error)
      log.warn(
        { listener: key },
        `no spare link of ${address.path} could be made, so nothing may remove it: ${why}`,
      )
      return null
    }
  }

  private keep({ worker }: { readonly worker: WorkerHandle }, held: Held): void {
    const { key } = held.known
    this.held.set(key, held)
    if (worker.mayBeQuoted(this.parts.log))
      this.parts.log.info({ ...worker.facts, listener: key }, `holds ${key}`)
    if (!held.activated) {
      const timer = setTimeout(() => {
        this.unclaimed.delete(key)
        void this.release(key)
        this.parts.onUnclaimed?.(key)
      }, CLAIM_TIMEOUT_MS)
      this.unclaimed.set(key, timer)
    }
    this.parts.onHeld(held.known)
  }

  /** Those that nobody has listened on yet. */
  private readonly unclaimed = new Map<ListenerKey, NodeJS.Timeout>()

  private answer({ worker, id, address }: Asker, { known, socket }: Held): void {
    if (address.kind !== 'udp') return worker.send({ t: 'answer', id, ok: known })
    const message = { cmd: CMD, t: 'handle', purpose: 'bound', listener: known, id }
    socket.sendTo(worker.child, message, { timeoutMs: PROOF_TIMEOUT_MS }).catch(() => {
      worker.send({ t: 'answer', id, error: { code: 'ECANCELED', errno: -125, syscall: 'bind' } })
    })
  }

  /** The prover's listen(2) went well (`error` null) or not. */
  proved(worker: WorkerHandle, key: ListenerKey, error: WireError | null): void {
    const proof = this.proofs.get(key)
    if (!proof || proof.prover !== worker) return
    this.proofs.delete(key)
    clearTimeout(proof.timer)
    if (error === null) {
      this.keep({ worker }, proof.held)
      for (const asker of proof.waiting) this.answer(asker, proof.held)
      return
    }
    const owner = error.code === 'EADDRINUSE' ? ownerOf(proof.held.address) : null
    // Cancelled by its own end, this is not what it ended of: an app with two ports dies of the one that is in use, and may
    // not have proved the other.
    if (worker.alive && error.code !== 'ECANCELED') {
      worker.explain(`could not listen on ${key}: ${hintFor(error.code, owner, error.code)}`)
    }
    void this.close(proof.held)
    // The others try for themselves: the prover may only have died.
    for (const { worker, id, address } of proof.waiting) this.claim(worker, id, address)
  }

  /** A worker has ended: what it was proving is given to the next who waits. */
  forget(worker: WorkerHandle): void {
    for (const [key, proof] of this.proofs) {
      if (proof.prover === worker)
        this.proved(worker, key, { code: 'ECANCELED', errno: -125, syscall: 'listen' })
    }
  }

  /**
   * Hands a listener to a worker. Settles when the worker has it; whether it accepts on it, the worker says itself.
   *
   * @throws {Error} a sentence: it is not held, or the worker did not take it in time
   */
  async grant(worker: WorkerHandle, key: ListenerKey, timeoutMs: number): Promise<void> {
    const held = this.held.get(key)
    if (!held) throw new Error(`${key} is not held any more`)
    const message = { cmd: CMD, t: 'handle', purpose: 'open', listener: held.known }
    await held.socket.sendTo(worker.child, message, { timeoutMs })
  }

  /**
   * Puts a worker that accepts at the head of those whom the kernel tells of a connection: it gets a fresh copy and closes
   * its own. One that does not accept (any more) closes it. Settles when the worker has it.
   *
   * @throws {Error} a sentence: it is not held, or the worker did not take it in time
   */
  async turn(worker: WorkerHandle, key: ListenerKey): Promise<void> {
    const held = this.held.get(key)
    if (!held) throw new Error(`${key} is not held any more`)
    const message = { cmd: CMD, t: 'handle', purpose: 'turn', listener: held.known }
    await held.socket.sendTo(worker.child, message, { timeoutMs: TURN_TIMEOUT_MS })
  }

  /**
   * Brings back unix paths that somebody removed.
   *
   * @param keys of those to look at; null: all
   */
  restorePaths(keys: readonly ListenerKey[] | null): void {
    const some = keys?.flatMap((key) => this.held.get(key) ?? [])
    for (const { path, known } of some ?? this.held.values()) {
      if (path?.restore())
        this.parts.log.warn({ listener: known.key }, `something removed ${path.path}; brought it back`)
    }
  }

  async release(key: ListenerKey): Promise<void> {
    const held = this.held.get(key)
    if (!held) return
    if (held.activated) {
      // Closed, it would go on to listen in the service manager, and nobody here could take it up again.
      this.claimedKeys.delete(key)
      if (key !== held.activated.key) this.held.delete(key)
      this.parts.log.info(
        { listener: key },
        `nobody listens on ${key} any more; it stays, as it was passed to us`,
      )
      return
    }
    this.held.delete(key)
    this.parts.log.info({ listener: key }, `released ${key}`)
    await this.close(held)
  }

  /**
   * Takes over the descriptor of a listener that another master holds as well. Until {@link own} the path of a unix
   * socket is that one's: we would bring it back when that one removes it.
   *
   * @throws {BindError} it is no such socket
   */
  inherit({ fd, address, known }: BequeathedListener): void {
    const socket = adopt(fd, address.kind)
    this.shared = true
    this.held.set(known.key, { socket, address, known, path: null })
  }
  /** Another master holds the same sockets. */
  private shared = false

  /** The other master has let go of what it bequeathed. */
  own(): void {
    this.shared = false
    for (const [key, held] of this.held) {
      const { address, path, activated } = held
      if (path === null && !activated) this.held.set(key, { ...held, path: this.keepPath(address, key) })
    }
  }

  /** The other master goes on after all. */
  disown(): void {
    this.shared = true
    for (const { path } of this.held.values()) path?.abandon()
  }

  /**
   * What a successor needs to hold the same. Each descriptor once, under whatever keys we hold it: two handles for one
   * cannot be (EEXIST). A bind that is being proved is not in it.
   */
  bequeath(): { readonly listeners: BequeathedListener[]; readonly activated: BequeathedActivated[] } {
    const bound = [...this.held.values()].filter(({ activated }) => activated === undefined)
    return {
      listeners: bound.map(({ socket, address, known }) => ({ fd: socket.fd, address, known })),
      activated: this.activated.map(({ name, socket, address }) => ({ fd: socket.fd, name, address })),
    }
  }

  /**
   * Forgets all that is held without closing it: libuv unlinks the path of a unix socket that this process bound as it
   * closes it, and the path is the successor's now (FACTS M4). The descriptors go with this process.
   */
  handOver(): void {
    // It is the successor's to say now: here nothing is claimed any more.
    clearTimeout(this.unclaimedTimer)
    for (const timer of this.unclaimed.values()) clearTimeout(timer)
    for (const { socket, path } of this.held.values()) {
      path?.abandon()
      this.handedOver.push(socket)
    }
    this.held.clear()
  }
  private readonly handedOver: HeldSocket[] = []

  /** That master has died: nobody accepts on them any more, and clients that wait in their queues would wait for nothing. */
  closeHandedOver(): void {
    for (const socket of this.handedOver.splice(0)) void this.close({ socket, path: null })
  }

  /** Takes away the spare links of a successor that was killed, also of what we have released meanwhile. */
  sweep(pid: number): void {
    for (const path of this.kept) path.sweep(pid)
  }
  private readonly kept: KeptUnixPath[] = []

  async closeAll(): Promise<void> {
    clearTimeout(this.unclaimedTimer)
    const all = [...this.held.values(), ...[...this.proofs.values()].map(({ held }) => held)]
    for (const { timer } of this.proofs.values()) clearTimeout(timer)
    for (const timer of this.unclaimed.values()) clearTimeout(timer)
    this.held.clear()
    this.proofs.clear()
    await Promise.all(all.map((held) => this.close(held)))
  }

  private async close({ socket, path }: Pick<Held, 'socket' | 'path'>): Promise<void> {
    if (this.shared) path?.abandon()
    else path?.remove()
    // A send that was given up may still have the handle in Node's queue: its owner refuses to be closed then.
    for (let tries = 0; tries < 200; tries++) {
      try {
        return socket.close()
      } catch {
        await new Promise((resolve) => setTimeout(resolve, 50))
      }
    }
  }
}

/** What the service manager passed is the operator's choice, too. */
const isFor = ({ activated, address }: Held, permission: Permission): boolean =>
  activated !== undefined || refusalOf(address, permission) === null

/** `/var/run/a.sock` and `/run/a.sock` are one. */
function isSamePath(a: string, b: string): boolean {
  if (a === b) return true
  const at = (path: string): Stats | null => (path.startsWith('\0') ? null : stat(path))
  return isSameFile(at(a), at(b))
}

/** A path gets the mode that the app's own umask gives it, not ours. Nothing else runs in between. */
function bindAs(address: Address): HeldSocket {
  if (address.kind !== 'unix' || address.umask === undefined) return bind(address)
  const ours = process.umask(address.umask)
  try {
    return bind(address)
  } finally {
    process.umask(ours)
  }
}

function hintFor(code: string, owner: string | null, otherwise: string): string {
  if (code === 'EADDRINUSE') return owner ? `the address is in use by ${owner}` : 'the address is in use'
  if (code === 'EACCES') {
    return (
      'this user has no right to it (EACCES); below port 1024 use a .socket unit, ' +
      'AmbientCapabilities=CAP_NET_BIND_SERVICE, or a port from 1024 on'
    )
  }
  if (code === 'EADDRNOTAVAIL') return 'this machine has no such address (EADDRNOTAVAIL)'
  return otherwise
}

/**
 * A master that was killed leaves the file of its unix socket, and every bind after it would fail with EADDRINUSE.
 * A socket that nobody answers at is removed; anything else is left for bind(2) to refuse.
 */
async function removeStale(address: Address): Promise<void> {
  if (address.kind !== 'unix' || address.path.startsWith('\0')) return
  if (!lstat(address.path)?.isSocket()) return
  const refused = await new Promise<boolean>((resolve) => {
    const socket = net.connect(address.path)
    const settle = (answer: boolean): void => {
      socket.destroy()
      resolve(answer)
    }
    socket.once('connect', () => settle(false))
    socket.once('error', (error: NodeJS.ErrnoException) => settle(error.code === 'ECONNREFUSED'))
    socket.setTimeout(1_000, () => settle(false))
  })
  if (refused) rmSync(address.path, { force: true })
}
