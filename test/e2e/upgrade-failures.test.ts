/** A new master that fails, at each step of taking over: it is ended, and the old one goes on with all that it had. */
import { readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t from 'tap'
import type { Test } from 'tap'
import { expectNoneFailed, loadUnder, untilServed } from '../helpers/load.ts'
import {
  DEAF,
  HANG,
  KILL,
  REACHED,
  TRAFFIC,
  copyOfUsr2,
  inNewMaster,
  insteadOfSaying,
  startBoth,
  stopAll,
  whenTold,
} from '../helpers/upgrades.ts'
import type { Usr2 } from '../helpers/usr2.ts'

t.test('under load', async (t) => {
  const disk = copyOfUsr2(t)
  const { usr2, port, path } = await startBoth(t, {
    cli: disk.cli,
    flags: ['--start-timeout', '5s', '--pid-file', 'pid'],
  })
  t.equal((await usr2.status()).usr2OnDisk, null)
  const loads = [
    await loadUnder(t, { target: { port }, traffic: TRAFFIC, versionOf: 'generation' }),
    await loadUnder(t, {
      target: { path },
      traffic: [{ mode: 'new', connections: 2, thinkMs: [2, 6] }],
      versionOf: 'generation',
    }),
  ]
  for (const load of loads) await untilServed(load, '1')

  disk.setVersion('99.1.0')
  t.match((await usr2.cli('status')).stdout, 'usr2 99.1.0 is on disk, ')
  t.equal((await usr2.status()).usr2OnDisk, '99.1.0')

  const rows = [
    {
      name: 'cannot be loaded',
      disk: 'this is no JavaScript',
      outcome: 'refused',
      why: /cannot be run by .*SyntaxError/,
    },
    { name: 'throws', disk: inNewMaster('throw new Error("on purpose")'), why: /ended without a word/ },
    {
      name: 'speaks another version',
      disk: inNewMaster(`
        const { send } = process
        process.send = (message, ...more) => send.call(process, { ...message, protocol: 99 }, ...more)`),
      why: /speaks version 99 of the upgrade/,
    },
    {
      name: 'is asked by a master of another version',
      disk: inNewMaster(`
        process.env.USR2_UPGRADE = JSON.stringify({ ...JSON.parse(process.env.USR2_UPGRADE), protocol: 1 })`),
      why: /speaks another version of the upgrade/,
    },
    { name: 'dies before its hello', disk: insteadOfSaying('hello', KILL), why: /ended without a word/ },
    { name: 'dies after its hello', disk: whenTold('begin', KILL), why: /ended without a word/ },
    {
      name: 'dies as its generation serves',
      disk: insteadOfSaying('ready', KILL),
      why: /ended without a word/,
    },
    { name: 'dies before it takes over', disk: whenTold('take-over', KILL), why: /ended without a word/ },
    {
      name: 'dies when it has the control socket',
      disk: insteadOfSaying('took-over', KILL),
      why: /ended without a word/,
    },
    { name: 'hangs before its hello', disk: insteadOfSaying('hello', HANG), hangs: true },
    { name: 'hangs after its hello', disk: whenTold('begin', HANG), hangs: true },
    { name: 'hangs as its generation serves', disk: insteadOfSaying('ready', HANG), hangs: true },
    { name: 'hangs before it takes over', disk: whenTold('take-over', HANG), hangs: true },
    { name: 'hangs when it has the control socket', disk: insteadOfSaying('took-over', HANG), hangs: true },
    {
      name: 'has the control socket and does not say so',
      disk: insteadOfSaying('took-over', DEAF),
      hangs: true,
    },
  ]
  for (const { name, disk: text, outcome = 'rolled-back', why, hangs } of rows) {
    await t.test(`one that ${name}`, async (t) => {
      disk.put(text)
      const from = usr2.process.lines.length
      const reached = () => usr2.process.lines.slice(from).some((line) => line.text === REACHED)
      if (!hangs) await fails(t, usr2, outcome, why ?? /nothing/)
      // A busy machine may take longer to come so far.
      for (const timeout of hangs ? ['700ms', '2s', '5s', '10s'] : []) {
        if (!reached()) await fails(t, usr2, 'overtaken', /--timeout \d+m?s expired/, ['--timeout', timeout])
      }
      const isLate = hangs || text.includes(REACHED)
      if (isLate) t.ok(reached(), 'it had come so far')
      t.equal(readFileSync(join(usr2.cwd, 'pid'), 'utf8'), `${usr2.pid}\n`)
    })
  }

  disk.put('await import("./real.mjs")')
  const { code, stderr } = await usr2.cli('upgrade')
  t.equal(code, 0, stderr)
  t.equal((await usr2.status()).generations[0]?.id, 2, 'the attempts have used no number up')
  for (const load of loads) {
    await untilServed(load, '2')
    expectNoneFailed(t, await load.stop())
  }
  await stopAll(t, usr2)
})

t.test('an app that does not start in the new master', async (t) => {
  const { usr2, port } = await startBoth(t)
  const load = await loadUnder(t, { target: { port }, traffic: TRAFFIC, versionOf: 'generation' })
  await untilServed(load, '1')
  writeFileSync(join(usr2.cwd, 'app.cjs'), 'throw new Error("no database")')
  await fails(t, usr2, 'rolled-back', /no database/)
  expectNoneFailed(t, await load.stop())
  await stopAll(t, usr2)
})

// --- What the tests share ---------------------------------------------------------------------------------------------

/** The upgrade fails as told, and the same master goes on, also with its control socket and its files. */
async function fails(
  t: Test,
  usr2: Usr2,
  outcome: string,
  why: RegExp,
  flags: readonly string[] = [],
): Promise<void> {
  const { code, stdout, stderr } = await usr2.cli('upgrade', ['--json', ...flags])
  t.equal(code, 1, stderr)
  const verdict = stdout
    .split('\n')
    .map((line) => (JSON.parse(line) as { verdict?: { outcome: string; reasons: string[] } }).verdict)
    .find((found) => found !== undefined)
  t.equal(verdict?.outcome, outcome)
  t.match(verdict?.reasons.join(' '), why)
  const { pid, state, generations } = await usr2.status()
  t.match({ pid, state }, { pid: usr2.pid, state: 'steady' })
  t.same(
    generations.map(({ id }) => id),
    [1],
  )
  const spares = readdirSync(usr2.cwd).filter((name) => name.startsWith('.usr2'))
  t.same(spares, [`.usr2-${usr2.pid}-app.sock`], 'nothing of the other one is left')
  t.same(
    readdirSync(dirname(usr2.control)).flatMap((name) => /^\.usr2-t-(\d+)/.exec(name)?.[1] ?? []),
    [String(usr2.pid)],
  )
}
