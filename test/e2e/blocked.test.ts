// What blocks a worker: src/master/workers/blocked.ts, with the guest as it is built.
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import type { Test } from 'tap'
import { StackReader, busyness } from '../../src/master/workers/blocked.ts'
import { listening } from '../../src/master/listening/port-owner.ts'
import { GUEST_ENV, type GuestConfig, PROTOCOL_VERSION } from '../../src/protocol.ts'
import { start, withoutTap } from '../helpers/spawn.ts'
import { shortTmp } from '../helpers/tmp.ts'
import { fixture } from '../helpers/usr2.ts'
import { until } from '../helpers/wait.ts'

const dist = (name: string): string => fileURLToPath(new URL(`../../dist/${name}`, import.meta.url))

interface Logged {
  readonly event: string
  readonly openMs?: number
}

async function reader(t: Test, helper = dist('blocked.mjs')) {
  const logged: Logged[] = []
  const log = {
    debug: (facts: Logged) => void logged.push(facts),
    warn: (facts: Logged) => void logged.push(facts),
  }
  const stacks = await StackReader.open({ helper, log } as Parameters<typeof StackReader.open>[0])
  t.teardown(() => stacks.close())
  return { stacks, logged, look: (pid: number) => withoutTap(() => stacks.look(pid)) }
}

/** A worker with the guest, that has said that it blocks now. */
async function blocked(t: Test, way: string, inspectorPort: number | null, env: Record<string, string> = {}) {
  const file = join(shortTmp(t), 'go-on')
  const guest: GuestConfig = {
    version: PROTOCOL_VERSION,
    generation: 1,
    slot: 0,
    ready: 'listen',
    known: [],
    times: { drainTimeoutMs: 1_000, shutdownTimeoutMs: 1_000 },
    keepAliveTimeoutMs: null,
    websocketDrain: 'close',
    statistics: true,
    inspectorPort,
    pwd: process.cwd(),
    runtime: '/run/usr2',
  }
  const worker = start(t, process.execPath, {
    args: ['--require', dist('preload.cjs'), fixture('blocks.cjs'), way, file],
    env: { [GUEST_ENV]: JSON.stringify(guest), ...env },
    moreStdio: ['ipc'],
    name: way,
  })
  await worker.line('blocks')
  return Object.assign(worker, { goOn: () => writeFileSync(file, '') })
}

/** Sockets of this machine that listen on the port. */
function listeners(port: number): number {
  const hex = port.toString(16).toUpperCase().padStart(4, '0')
  return listening('/proc/net/tcp').filter((columns) => columns[1]?.endsWith(`:${hex}`)).length
}

t.test('the stack of a worker that computes, or waits for a lock', async (t) => {
  const { stacks, logged, look } = await reader(t)
  for (const way of ['for', 'wait', 'regexp']) {
    const worker = await blocked(t, way, stacks.port)
    const stack = (await look(worker.pid)) ?? ''
    const lines = stack.split('\n')
    t.match(
      lines.find((line) => line.includes('blocks.cjs')),
      /^at (for|wait|regexp) \(\/\S+\/blocks\.cjs:\d+:\d+\)$/,
      stack,
    )
    t.match(stack, /^at compute \(/m)
    const { event, openMs = 0 } = logged.at(-1) ?? { event: 'nothing' }
    t.equal(event, 'looked-into', 'and the inspector was closed again')
    t.comment(`${way}: the inspector listened ${openMs} ms`)
    worker.kill('SIGKILL')
  }
})

t.test('it goes on as before, and the inspector does not start again', async (t) => {
  const { stacks, look } = await reader(t)
  const worker = await blocked(t, 'for-until', stacks.port)
  t.match(await look(worker.pid), /compute/)
  t.equal(listeners(stacks.port), 1, 'ours, which keeps the port')
  t.notOk(worker.stdout.includes('went on'))
  worker.goOn()
  await worker.line('and on')
  t.equal(worker.stderr.filter((line) => line.includes('Debugger listening')).length, 1, worker.log())
  worker.kill('SIGKILL')
})

t.test('in a system call there is no stack, and no inspector afterwards', async (t) => {
  const { stacks, logged, look } = await reader(t)
  const worker = await blocked(t, 'exec-until', stacks.port)
  t.equal(await look(worker.pid), null)
  worker.goOn()
  await worker.line('and on')
  await worker.line(/address already in use/, { what: 'the inspector that could not start' })
  t.equal(worker.stderr.filter((line) => line.includes('Debugger listening')).length, 0, worker.log())
  t.same(
    logged.map(({ event }) => event),
    ['looked-into'],
  )
  worker.kill('SIGKILL')
})

t.test('a stray SIGUSR1 starts no inspector, and does not reach the app', async (t) => {
  const { stacks } = await reader(t)
  const worker = await blocked(t, 'nothing', stacks.port)
  worker.kill('SIGUSR1')
  await worker.line(/address already in use/)
  const kept = await blocked(t, 'nothing', null)
  kept.kill('SIGUSR1')
  const listens = await blocked(t, 'nothing', stacks.port, { LISTENS_TO_USR1: '1' })
  listens.kill('SIGUSR1')
  const listened = await blocked(t, 'nothing', stacks.port, { LISTENS_TO_USR1: 'briefly' })
  listened.kill('SIGUSR1')
  for (const each of [worker, kept, listens, listened]) {
    await each.line('and on')
    t.notMatch(each.log(), /Debugger listening|heard/)
    each.kill('SIGKILL')
  }
})

t.test('where the signal would do harm, or nothing, there is none', async (t) => {
  const { stacks, look } = await reader(t)
  const worker = await blocked(t, 'for', null)
  t.equal(await look(worker.pid), null, 'the guest keeps the signal')
  const bare = start(t, '/bin/sleep', { args: ['600'] })
  t.equal(await look(bare.pid), null)
  t.equal(bare.exit, null, 'a process without a handler is not killed')
  worker.kill('SIGKILL')
  bare.kill('SIGKILL')
  await bare.ended()
  t.equal(await look(bare.pid), null, 'gone')
  await stacks.close()
  t.equal(await look(worker.pid), null, 'closed')
  t.equal(listeners(stacks.port), 0)
})

t.test('an inspector that stays open is told, and the port is taken again when it has gone', async (t) => {
  // As a helper that could not close it: somebody else listens when it has ended.
  const helper = join(shortTmp(t), 'helper.mjs')
  const stays = `require('net').createServer().listen(PORT, '127.0.0.1', () => console.log('up')); setTimeout(process.exit, 700)`
  writeFileSync(
    helper,
    `import { spawn } from 'node:child_process'
    const code = ${JSON.stringify(stays)}.replace('PORT', process.argv[3])
    const child = spawn(process.execPath, ['-e', code], { detached: true, stdio: ['ignore', 'pipe', 'ignore'] })
    child.stdout.once('data', () => { process.stdout.write('{"stack":"at x","openMs":1}'); process.exit() })`,
  )
  const { stacks, logged, look } = await reader(t, helper)
  const worker = await blocked(t, 'nothing', stacks.port)
  t.equal(await look(worker.pid), 'at x')
  t.same(
    logged.map(({ event }) => event),
    ['looked-into', 'inspector-open'],
  )
  t.equal(await look(worker.pid), null, "not while it is another's")
  await until(async () => (await look(worker.pid)) === 'at x', {
    timeoutMs: 10_000,
    what: 'the port to be ours again',
  })
  worker.kill('SIGKILL')
})

t.test('what /proc tells', async (t) => {
  const words = async (way: string): Promise<string> => {
    const worker = await blocked(t, way, null)
    if (way === 'exec') {
      await until(async () => (await busyness(worker.pid, 20))?.includes('sleep 600'), {
        timeoutMs: 5_000,
        what: 'the child',
      })
    }
    const said = await busyness(worker.pid)
    worker.kill('SIGKILL')
    return said ?? 'nothing'
  }
  t.match(
    await words('for'),
    /^it (used \d+ % of a processor: JavaScript or native code runs|wants a processor)/,
  )
  t.match(await words('wait'), /^it sleeps/)
  t.match(await words('exec'), /^it sleeps.*, perhaps for its child \d+ \(.*sleep 600\)$/)

  const files = (state: string, ticks: number): ((path: string) => string) => {
    let looks = 0
    return (path) => {
      if (path.endsWith('/stat')) return `7 (a ) b) ${state} 1 7 7 0 -1 0 0 0 0 0 ${ticks * looks++} 0 0 0 20`
      return path.endsWith('/wchan') ? 'folio_wait_bit' : ''
    }
  }
  t.equal(await busyness(7, 20, files('D', 0)), 'it waits for a disk or another device in folio_wait_bit')
  t.equal(await busyness(7, 20, files('T', 0)), 'it is stopped, by SIGSTOP or a debugger')
  t.equal(await busyness(7, 20, files('R', 0)), 'it wants a processor and got 0 % of one')
  t.equal(
    await busyness(7, 20, files('S', 1_000)),
    'it used 100 % of a processor: JavaScript or native code runs',
  )
  t.equal(await busyness(7, 20, () => ''), null)
})
