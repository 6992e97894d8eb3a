/**
 * usr2 behind a `.socket` unit of a real systemd, in a private one that is thrown away (test/helpers/systemd-sandbox).
 * Needs root; where the sandbox cannot run, it says so and skips.
 */
import { cpSync, existsSync, mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import type { TestLike } from '../helpers/scope.ts'
import { run } from '../helpers/spawn.ts'
import { shortTmp } from '../helpers/tmp.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))
const sandbox = join(root, 'test', 'helpers', 'systemd-sandbox')

interface Ran {
  readonly status: number
  readonly text: string
}
interface UnderTraffic extends Ran {
  readonly requests: number
  /** When it was done. */
  readonly inFlight: number
  readonly errors: Readonly<Record<string, number>>
  readonly longestMs: number
}
/** As test/helpers/systemd-socket-drive.mjs prints it. */
interface Facts {
  readonly systemd: string
  readonly verify: Ran
  readonly socket: Ran
  readonly before: readonly number[]
  readonly wasActive: string
  readonly first: readonly number[]
  readonly seen: readonly string[]
  readonly echo: string
  readonly after: readonly number[]
  readonly unclaimed: readonly string[]
  readonly reload: UnderTraffic
  readonly afterReload: readonly number[]
  readonly kill: UnderTraffic
  readonly restarts: string
  readonly restart: UnderTraffic
  readonly stop: Ran
  readonly pathAfterStop: boolean
  readonly again: number
  readonly bad: Readonly<
    Record<string, { readonly status: number; readonly exit: string; readonly said: string }>
  >
}

/** Longer than the sandbox's own limit, after which it cleans up by itself. */
const inSandbox = (t: TestLike, ...args: string[]) => run(t, sandbox, { args, timeoutMs: 110_000 })

/** With one request at a time each. */
const CLIENTS = 16

const probe = await inSandbox(t, '-N', '--', 'true')
const skip = probe.code !== 0 && `NOT TESTED, no private systemd here: ${probe.stderr.split('\n')[0]}`

t.test('a .socket unit: TCP4, TCP6, unix, UDP', { skip }, async (t) => {
  t.ok(existsSync(join(root, 'dist', 'cli.mjs')), 'built: `npm run build` comes before this test')
  const directory = shortTmp(t)
  const units = join(directory, 'units')
  const journal = join(directory, 'journal')
  mkdirSync(units)
  cpSync(join(root, 'systemd', 'usr2@.service'), join(units, 'usr2@.service'))
  const drive = await inSandbox(
    t,
    ...['-N', '-t', '90', '-u', units, '-j', journal],
    ...['-b', `${root}:/box/usr2:ro`, '-b', `${process.execPath}:/usr/local/bin/node:ro`],
    ...['--', '/usr/local/bin/node', '/box/usr2/test/helpers/systemd-socket-drive.mjs', '/box/usr2'],
  )
  const showJournal = () => existsSync(journal) && t.comment(readFileSync(journal, 'utf8'))
  if (!t.equal(drive.code, 0, 'the drive ended')) {
    t.comment(drive.stderr)
    return showJournal()
  }
  const facts = JSON.parse(drive.stdout) as Facts
  const { reload, kill, restart } = facts
  t.comment(`${facts.systemd}, node ${process.version}`)
  for (const [name, { requests, inFlight, errors, longestMs }] of Object.entries({ reload, kill, restart })) {
    const figures = `${requests} requests, ${inFlight} in flight, errors ${JSON.stringify(errors)}`
    t.comment(`${name}: ${figures}, longest ${longestMs} ms`)
  }

  t.same(facts.verify, { status: 0, text: '' }, 'systemd-analyze verify has nothing to say')
  t.equal(facts.socket.status, 0)
  t.equal(facts.wasActive, 'inactive', 'the service starts with its first client')
  t.same(facts.first, [1, 1, 1], 'which waits for it, on TCP4, TCP6 and a path')
  t.equal(facts.echo, 'hello', 'and UDP')
  t.same(facts.seen, [], 'the app sees nothing that systemd says to the master')
  t.equal(facts.unclaimed.length, 1)
  t.match(
    facts.unclaimed[0],
    /tcp:127\.0\.0\.1:9999, which the service manager passed as \\"spare\.socket\\"/,
  )

  t.ok(
    facts.before.every((backlog) => backlog > 511),
    `systemd listened with ${facts.before.join(', ')}`,
  )
  t.same(facts.after, facts.before, 'and the queues are as long as before')
  t.same(facts.afterReload, facts.before, 'also after a reload')

  t.equal(reload.status, 0)
  t.same(reload.errors, {}, `reload: 0 lost of ${reload.requests}`)
  t.equal(restart.status, 0)
  t.same(restart.errors, {}, `systemctl restart: 0 refused, 0 lost of ${restart.requests}`)
  const { ECONNRESET: reset = 0, ...others } = kill.errors
  t.same(others, {}, `kill -9 of the master: 0 refused of ${kill.requests}`)
  // The workers serve on until systemd kills them, too: each client can lose one request, and none a second one.
  t.ok(reset <= CLIENTS, `${reset} lost: in flight in the workers when systemd killed them`)
  t.equal(facts.restarts, '1')

  t.equal(facts.stop.status, 0)
  t.ok(facts.pathAfterStop, 'the path is not ours to remove')
  t.equal(facts.again, 1, 'a client starts the service again')

  const refusals: Readonly<Record<string, RegExp>> = {
    'unix datagram': /\(oddity\), which is a unix datagram socket/,
    seqpacket: /\(oddity\), which is a unix seqpacket socket/,
    fifo: /\(oddity\), which is a FIFO or pipe/,
    netlink: /oddity/,
  }
  for (const [kind, why] of Object.entries(refusals)) {
    t.match(facts.bad[kind], { status: 1, exit: '1', said: why }, `${kind} is refused by name`)
  }
  if (!t.passing()) showJournal()
})
