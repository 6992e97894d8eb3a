/**
 * An app with a compromised dependency, or a bad bug: a worker that puts anything into its channel. The master lives, its
 * memory and its descriptors stay bounded, the other worker serves with 0 failed, and a reload to a good version works.
 */
import { readFileSync, readdirSync, readlinkSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import type { Test } from 'tap'
import { expectNoneFailed, loadUnder } from '../helpers/load.ts'
import { freePort, shortTmp } from '../helpers/tmp.ts'
import { deploy, startUsr2, type Usr2 } from '../helpers/usr2.ts'
import { until } from '../helpers/wait.ts'

/** Descriptors that the master may open for itself meanwhile; an attack opens hundreds. */
const SLACK = 5
const MIB = 1024 * 1024
const descriptors = (pid: number): number => readdirSync(`/proc/${pid}/fd`).length
const targets = (pid: number): string[] =>
  readdirSync(`/proc/${pid}/fd`).map((fd) => {
    try {
      return `${fd} ${readlinkSync(`/proc/${pid}/fd/${fd}`)}`
    } catch {
      return `${fd} (closed meanwhile)`
    }
  })
function rssBytes(pid: number): number {
  const [, kib] = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? []
  return Number(kib) * 1024
}

interface Row {
  /** The worker is ended, and the log says why. */
  readonly ended?: RegExp
  readonly mayEnd?: true
  readonly lies?: true
  readonly flags?: readonly string[]
  readonly env?: Readonly<Record<string, string>>
  also?(usr2: Usr2, t: Test): Promise<void>
  /** Once the reload has gone well. */
  after?(usr2: Usr2, t: Test): void
}

const named = (usr2: Usr2, name: RegExp): readonly string[] =>
  usr2.events().flatMap(({ event, msg }) => (name.test(event) ? [msg] : []))

const rows: Readonly<Record<string, Row>> = {
  'not-json': { ended: /sent what is no message/ },
  'endless-line': { ended: /floods the master|is no message|more than 8 MB/ },
  'no-handle-was-sent': {},
  'no-handle-was-sent-nack': {},
  // The answer is too much for its own Node.
  'handle-of-no-type': { mayEnd: true },
  'internal-commands': {},
  handles: {},
  // Among them is a signal, for which it is replaced.
  'wrong-types': { mayEnd: true },
  // It says that it got a signal, and is replaced. What it says of its own traffic are lies, and are told as it says them.
  accounts: {
    mayEnd: true,
    lies: true,
    async also(usr2, t) {
      const { generations } = await usr2.status()
      const numbers = (value: unknown): unknown[] =>
        typeof value === 'object' && value !== null ? Object.values(value).flatMap(numbers) : [value]
      for (const { ledger } of generations.flatMap(({ workers }) => workers)) {
        const { slowest: _, ...sums } = ledger
        t.ok(
          numbers(sums).every((n) => typeof n === 'number' && n >= 0 && Number.isFinite(n)),
          JSON.stringify(sums),
        )
        t.same(
          Object.keys(ledger.connections).filter((name) => name === 'junk'),
          [],
        )
      }
    },
  },
  words: {
    async also(usr2, t) {
      const said = usr2.events().filter(({ event }) => event === 'worker-warning')
      t.ok(said.length <= 60, `${said.length} of 500 warnings were logged`)
      t.match(said.at(-1)?.msg, /says more than is logged/)
      t.ok(usr2.process.stderr.every((line) => !/[\u0000-\u0008\u001b]/.test(line)))
    },
  },
  claims: {
    async also(usr2, t) {
      t.same((await usr2.status()).listeners.length, 1, 'nothing more is held')
    },
  },
  'claims-flood': { ended: /floods the master/ },
  flood: { ended: /floods the master/ },
  'own-flood': { ended: /floods the master/ },
  'toggles-ref': {},
  // What it says goes on until it drains, in the midst of the reload.
  'own-words': {
    after(usr2, t) {
      t.same(named(usr2, /^worker-(died|broke|signalled)$/), [], 'none is taken for a word of ours')
      t.notOk(named(usr2, /^worker-warning$/).includes('own'))
      t.same(
        usr2.process.stdout.filter((line) => line.startsWith('saw')),
        [],
        'and it hears none of ours',
      )
    },
  },
  chatty: {
    async also(usr2, t) {
      await usr2.process.line('has said 300', { timeoutMs: 30_000 })
      t.same(named(usr2, /^worker-(died|broke)$/), [], 'it is within its allowance')
    },
  },
  'closes-channel': { ended: /has closed its channel|exited|was killed/ },
}

for (const [attack, row] of Object.entries(rows)) {
  t.test(attack, async (t) => {
    const port = await freePort(t)
    const others = createServer().listen(0, '127.0.0.1')
    t.teardown(() => others.close())
    const address = others.address()
    const root = shortTmp(t)
    const current = deploy(root, '1', { fixture: 'hostile.cjs' })
    const usr2 = startUsr2(t, {
      entry: join(current, 'hostile.cjs'),
      flags: ['--workers', '2', '--drain-timeout', '3s', '--kill-timeout', '1s', ...(row.flags ?? [])],
      env: {
        ...{ PORT: String(port), ATTACK: attack },
        OTHERS: typeof address === 'object' ? String(address?.port) : '',
        ...row.env,
      },
    })
    await usr2.ready()
    const before = await usr2.status()
    const [hostile, good] = [0, 1].map((slot) =>
      before.generations[0]?.workers.find((worker) => worker.slot === slot),
    )
    const fds = descriptors(usr2.pid)
    const rss = rssBytes(usr2.pid)
    // A worker that is ended takes what it held with it; who asks its sibling loses nothing.
    const load =
      row.ended || row.mayEnd
        ? null
        : await loadUnder(t, {
            target: { port },
            traffic: [{ mode: 'new', connections: 2, thinkMs: [2, 6] }],
          })
    process.kill(hostile?.pid ?? 0, 'SIGWINCH')
    if (row.ended) {
      const died = await usr2.event('worker-died', { timeoutMs: 20_000 })
      t.match(died.msg, row.ended)
    } else {
      await usr2.process.line('attacks', { what: 'the attack', timeoutMs: 30_000 })
    }
    // Whatever was sent before has been read when the answer comes.
    const after = await usr2.status()
    t.equal(after.pid, before.pid)
    t.equal(
      after.generations[0]?.workers.find(({ slot }) => slot === 1)?.pid,
      good?.pid,
      'the other one serves on',
    )
    if (!row.ended && !row.mayEnd)
      t.equal(after.generations[0]?.workers.find(({ slot }) => slot === 0)?.pid, hostile?.pid)
    await row.also?.(usr2, t)

    deploy(root, '2', { fixture: 'hostile.cjs' })
    const { code, stderr } = await usr2.reload({ flags: ['--wait', 'drained'] })
    t.equal(code, 0, `the reload went well ${stderr}`)
    row.after?.(usr2, t)
    if (load) expectNoneFailed(t, await load.stop())
    await until(() => descriptors(usr2.pid) <= fds + SLACK, {
      timeoutMs: 40_000,
      what: `descriptors to be ${fds} again`,
    }).catch((error: unknown) => {
      throw new Error(`they are ${targets(usr2.pid).join(', ')}\n${usr2.logs()}`, { cause: error })
    })
    const grown = (rssBytes(usr2.pid) - rss) / MIB
    t.ok(grown < 100, `the master has grown by ${Math.round(grown)} MiB`)
    t.notOk(
      usr2.process.stdout.some((line) => line.startsWith('saw')),
      'the app sees nothing of ours',
    )
    if (!row.lies) await usr2.stop()
    else {
      usr2.signal('SIGTERM')
      t.equal((await usr2.process.ended(30_000)).code, 0)
    }
  })
}

t.test('a flood while a reload is under way', async (t) => {
  const [port, root, flags] = [await freePort(t), shortTmp(t), shortTmp(t)]
  const current = deploy(root, '1', { fixture: 'hostile.cjs' })
  const usr2 = startUsr2(t, {
    entry: join(current, 'hostile.cjs'),
    flags: ['--workers', '2', '--drain-timeout', '3s', '--kill-timeout', '1s'],
    env: { PORT: String(port), ATTACK: 'flood-in-reload', FLAGS: flags },
  })
  await usr2.ready()
  const workers = async () => (await usr2.status()).generations.flatMap((generation) => generation.workers)
  const [hostile, good] = (await workers()).toSorted((a, b) => a.slot - b.slot)
  const load = await loadUnder(t, {
    target: { port },
    traffic: [{ mode: 'new', connections: 2, thinkMs: [2, 6] }],
  })
  process.kill(hostile?.pid ?? 0, 'SIGWINCH')
  await usr2.process.line('attacks', { what: 'the attack' })

  deploy(root, '2', { fixture: 'hostile.cjs' })
  const verdict = usr2.reload({ flags: ['--wait', 'drained'] })
  await until(async () => (await usr2.status()).state === 'rolling-out', {
    timeoutMs: 20_000,
    what: 'the reload',
  })
  writeFileSync(join(flags, 'flood'), '')
  const broke = await usr2.event('worker-broke', { timeoutMs: 20_000 })
  t.match(broke.msg, /floods the master/)
  t.equal((await usr2.status()).state, 'rolling-out', 'the reload goes on')
  t.ok(
    (await workers()).some(({ pid }) => pid === good?.pid),
    'the other one serves on',
  )
  writeFileSync(join(flags, 'go'), '')
  const { code, stdout, stderr } = await verdict
  t.equal(code, 0, `${stdout}${stderr}`)
  t.same(
    (await usr2.status()).generations.map(({ id, role }) => ({ id, role })),
    [{ id: 2, role: 'current' }],
  )
  expectNoneFailed(t, await load.stop())
  await usr2.stop()
})
