/**
 * TLS sessions that outlive a generation. A client that comes back with a session ticket skips the certificates and
 * the signatures of a handshake; in bare Node every process makes ticket keys of its own, so that a reload would
 * cost every client a full handshake, all at once, on a machine that boots workers just then. So workers get the
 * keys of their listener from the master (src/master/listening/ticket-keys.ts), siblings as well as generations.
 *
 * What keeps it as safe as one process of bare Node:
 * - Keys are shared only between servers of one listener and one {@link fingerprintOf fingerprint}: certificate, CA
 *   and all else that decides what a handshake would check. A worker is given keys only for what it presents itself.
 * - Never with `requestCert`: a resumed session is not asked for its client certificate again. Worse, one that began
 *   without any, on a server that wanted none, passes a server that does: past `rejectUnauthorized`, on Node 20 and 22
 *   over TLS 1.3 even as `authorized` (measured with equal keys; 24 and 26 refuse). Such servers keep the random keys
 *   of their process.
 * - Never where the app sets keys itself: the option `ticketKeys`, or `server.setTicketKeys()` at any time.
 * - Keys live in memory and in the channel between master and worker: not in logs, the environment or files.
 *
 * The key alone is not enough: OpenSSL refuses a session of another `sessionIdContext`, and Node's default for it is
 * a hash of `process.argv`, which has the release's path in it (tls.createServer; lib/internal/tls/wrap.js).
 *
 * Not covered: a TLS server that never listens itself and is fed by `emit('connection')`, one that listens by
 * another server (`b.listen(a)`), and port 0. They resume as in bare Node.
 */
import { createRequire } from 'node:module'
import net from 'node:net'
import type { ToWorker } from '../protocol.ts'
import { isTls } from './http1.ts'
import type { Link } from './link.ts'

export interface TlsTickets {
  /** This server is about to listen there. Before its `claimed`, so that keys come ahead of the first connection. */
  share(server: net.Server, key: string): void
  /** Keys of the master's: the answer to a question, or new ones. */
  take(message: Extract<ToWorker, { t: 'ticket-keys' }>): void
}

/** OpenSSL's own view of a certificate and its settings; Node keeps no other. */
interface NativeContext {
  /** DER, or null where there is none. */
  getCertificate?(): Uint8Array | null
  setSessionIdContext?(id: string): void
}

/** The options that Node keeps on a server, each under its own name (20 to 26), and what holds its certificates. */
interface TlsServer extends net.Server, Readonly<Record<(typeof POLICY)[number], unknown>> {
  readonly requestCert: unknown
  readonly ticketKeys: unknown
  readonly sessionIdContext: unknown
  readonly _sharedCreds?: { readonly context?: NativeContext }
  /** Of `addContext`. */
  readonly _contexts?: readonly (readonly [RegExp, NativeContext])[]
  setTicketKeys(keys: Buffer): void
  setSecureContext(options: object): void
}
type TlsPrototype = Pick<TlsServer, 'setTicketKeys' | 'setSecureContext'>

/**
 * What decides how a handshake ends, other than the private key, which belongs to its certificate. A resumed session
 * keeps the cipher of its first handshake, so a stricter policy must not meet tickets of a laxer one.
 */
const POLICY = [
  ...['cert', 'pfx', 'ca', 'crl', 'requestCert', 'rejectUnauthorized'],
  ...['minVersion', 'maxVersion', 'secureProtocol', 'secureOptions', 'sessionTimeout'],
  ...['ciphers', 'honorCipherOrder', 'sigalgs', 'ecdhCurve', 'dhparam'],
] as const

/** Loaded with the app's first TLS server, which has loaded both already: at boot they would cost up to 13 ms. */
const load = createRequire('/')
const nodeCrypto = (): typeof import('node:crypto') => load('node:crypto')
const nodeTls = (): typeof import('node:tls') => load('node:tls')

export function shareTlsTickets(link: Pick<Link, 'send'>): TlsTickets {
  const listening = new Map<string, { readonly server: TlsServer; readonly fingerprint: string }>()
  const keyOf = new WeakMap<net.Server, string>()
  const ownKeys = new WeakSet<net.Server>()
  let setTicketKeys: TlsServer['setTicketKeys'] | undefined

  const mayShare = (server: TlsServer): boolean =>
    server.requestCert !== true && !server.ticketKeys && !ownKeys.has(server)

  const ask = (server: TlsServer, key: string): void => {
    // Left as it is: an app with a session store of its own must not resume past a check of certificates either.
    if (server.requestCert === true) return
    const fingerprint = fingerprintOf(server)
    if (!hasOwnId(server))
      server._sharedCreds?.context?.setSessionIdContext?.(fingerprint.slice(0, MAX_ID_BYTES))
    if (!mayShare(server)) return
    listening.set(key, { server, fingerprint })
    link.send({ t: 'ticket-keys-asked', key, fingerprint })
  }

  const watch = (prototype: TlsPrototype): void => {
    const original = prototype.setTicketKeys
    setTicketKeys = original
    prototype.setTicketKeys = function (this: TlsServer, keys) {
      ownKeys.add(this)
      return original.call(this, keys)
    }
    const { setSecureContext } = prototype
    prototype.setSecureContext = function (this: TlsServer, options) {
      const result = setSecureContext.call(this, options)
      // A renewed certificate: Node has made a new context, with random keys.
      const key = this.listening ? keyOf.get(this) : undefined
      if (key !== undefined) ask(this, key)
      return result
    }
  }
  onFirstTlsServer(watch)

  return {
    share(server, key) {
      if (!isTls(server)) return
      keyOf.set(server, key)
      ask(server as TlsServer, key)
    },
    take({ key, fingerprint, keys }) {
      const asked = listening.get(key)
      // Asked anew since, or the app has set keys of its own.
      if (asked?.fingerprint !== fingerprint || !mayShare(asked.server)) return
      setTicketKeys?.call(asked.server, Buffer.from(keys, 'base64'))
    },
  }
}

/** SSL_MAX_SID_CTX_LENGTH. */
const MAX_ID_BYTES = 32

/** Node's default is the hash of what the process was called with. */
function hasOwnId({ sessionIdContext }: TlsServer): boolean {
  const standard = nodeCrypto().createHash('sha1').update(process.argv.join(' ')).digest('hex').slice(0, 32)
  return sessionIdContext !== standard
}

/**
 * A hash of everything that a full handshake of this server would show or check: equal fingerprints, equal outcome.
 * Certificates for further names count as they stand now; what `SNICallback` will give is not known.
 */
function fingerprintOf(server: TlsServer): string {
  const hash = nodeCrypto().createHash('sha256')
  const feed = (value: unknown): void => {
    if (Array.isArray(value)) {
      hash.update(`list ${value.length}\n`)
      value.forEach(feed)
    } else if (ArrayBuffer.isView(value)) {
      const { buffer, byteOffset, byteLength } = value
      hash.update(`bytes ${byteLength}\n`).update(new Uint8Array(buffer, byteOffset, byteLength))
    } else if (typeof value === 'object' && value !== null && 'buf' in value) {
      // `pfx: [{buf, passphrase}]`
      feed(value.buf)
    } else {
      const text = String(value)
      hash.update(`${typeof value} ${Buffer.byteLength(text)}\n`).update(text)
    }
  }
  for (const name of POLICY) feed(server[name])
  for (const [name, context] of server._contexts ?? []) {
    feed(name)
    feed(context.getCertificate?.())
  }
  feed(hasOwnId(server) ? server.sessionIdContext : undefined)
  // What the app left to Node: another release of Node may have stricter defaults.
  const { DEFAULT_CIPHERS, DEFAULT_ECDH_CURVE, DEFAULT_MAX_VERSION, DEFAULT_MIN_VERSION } = nodeTls()
  feed([process.version, DEFAULT_CIPHERS, DEFAULT_ECDH_CURVE, DEFAULT_MIN_VERSION, DEFAULT_MAX_VERSION])
  return hash.digest('hex')
}

/**
 * An app may call `setTicketKeys` before `listen`, and nothing on the server tells so afterwards: its prototype has
 * to be ours by then. Loading node:tls at boot only to reach it would cost every app up to 13 ms. But every server
 * goes through net.Server's constructor, which sets `_listeningId` (20 to 26): the setter below waits there for the
 * first TLS server, and goes.
 */
function onFirstTlsServer(found: (prototype: TlsPrototype) => void): void {
  const name = '_listeningId'
  Object.defineProperty(net.Server.prototype, name, {
    configurable: true,
    set(this: net.Server, value: unknown) {
      Object.defineProperty(this, name, { value, writable: true, enumerable: true, configurable: true })
      if (isTls(this) && Reflect.deleteProperty(net.Server.prototype, name)) found(nodeTls().Server.prototype)
    },
  })
}
