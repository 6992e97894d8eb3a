/** Who counts as a worker of a killed master: what is no such worker is neither waited for nor killed. */
import { spawn, spawnSync } from 'node:child_process'
import type { ChildProcess, SpawnOptions } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, realpathSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { Survivors } from '../../../src/master/workers/survivors.ts'
import { GUEST_ENV } from '../../../src/protocol.ts'
import type { TestLike } from '../../helpers/scope.ts'
import { shortTmp } from '../../helpers/tmp.ts'
import { deadline, until } from '../../helpers/wait.ts'

const WAIT_MS = 20_000

const place = (t: TestLike): { control: string; directory: string } => {
  const directory = realpathSync(shortTmp(t))
  return { control: join(directory, 'control.sock'), directory }
}

/** As a worker of the master `master` has it in its environment. */
const tokenOf = (directory: string, master: number): NodeJS.ProcessEnv => ({
  ...process.env,
  [GUEST_ENV]: JSON.stringify({
    runtime: join(directory, `.usr2-app-${master}-Ab12Cd`),
    generation: 1,
    slot: 0,
  }),
})

async function start(
  t: TestLike,
  command: string,
  args: readonly string[],
  options: SpawnOptions,
): Promise<ChildProcess> {
  const child = spawn(command, args, { stdio: 'ignore', ...options })
  t.teardown(() => child.kill('SIGKILL'))
  await once(child, 'spawn')
  return child
}

/** A process that is what it is to be by the time it is looked for. */
const SAYS_SO = 'echo here; exec sleep 60'
const saysSo = async ({ stdout }: ChildProcess): Promise<void> => {
  if (stdout) await deadline(once(stdout, 'data'), WAIT_MS, 'its word')
}

/** Those that are found, by their pid; they are killed at once. */
async function found(control: string): Promise<number[]> {
  const pids: number[] = []
  const survivors = new Survivors({
    ...{ control, name: 'app', killTimeoutMs: 100, stopBudgetMs: 60_000, uid: process.getuid?.() ?? 0 },
    log: {
      info: () => {},
      warn: (facts: object) => {
        const { event, survivors } = facts as { event: string; survivors: { pid: number }[] }
        if (event === 'survivors') pids.push(...survivors.map(({ pid }) => pid))
      },
    },
  })
  survivors.look()
  survivors.kill()
  await deadline(survivors.gone, WAIT_MS, 'the end of the survivors')
  return pids
}

/** Of a process that has ended and was reaped. */
const deadPid = (): number => spawnSync('true').pid

t.test('a worker whose master is gone', async (t) => {
  const { control, directory } = place(t)
  const worker = await start(t, 'sleep', ['60'], { env: tokenOf(directory, deadPid()), detached: true })
  const exit = once(worker, 'exit')
  t.same(await found(control), [worker.pid])
  t.same(await deadline(exit, WAIT_MS, 'its end'), [null, 'SIGKILL'])
})

t.test('a worker whose master had the pid that a younger process has by now', async (t) => {
  const { control, directory } = place(t)
  // The process that will have that pid begins after the worker, which waits to be told it.
  const script = 'read pid; exec env USR2_GUEST="$(printf "$FORM" "$pid")" sleep 60'
  const worker = spawn('sh', ['-c', script], {
    env: { ...process.env, FORM: tokenOf(directory, 0)[GUEST_ENV]?.replace('-0-', '-%s-') },
    stdio: ['pipe', 'ignore', 'ignore'],
    detached: true,
  })
  t.teardown(() => worker.kill('SIGKILL'))
  await once(worker, 'spawn')
  // Times are in ticks of 10 ms.
  await new Promise((resolve) => setTimeout(resolve, 30))
  const younger = await start(t, 'sleep', ['60'], {})
  worker.stdin.end(`${younger.pid}\n`)
  await until(() => readFileSync(`/proc/${worker.pid}/cmdline`, 'utf8').startsWith('sleep'), {
    ...{ timeoutMs: WAIT_MS, what: 'the exec' },
  })
  t.same(await found(control), [worker.pid])
  t.equal(younger.exitCode ?? younger.signalCode, null)
})

function childrenOf(pid: number | undefined): string[] {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8')
  return children.split(' ').filter((pid) => pid !== '')
}

t.test('what a worker of a live master has started, with its token, is nobody of a dead one', async (t) => {
  const { control, directory } = place(t)
  // Started before our guest took the token away: by a --require of NODE_OPTIONS, or by a `node` that is a script.
  const shim = await start(t, 'sh', ['-c', `setsid sh -c '${SAYS_SO}' & sleep 60 & wait`], {
    env: tokenOf(directory, process.pid),
    stdio: ['ignore', 'pipe', 'ignore'],
    detached: true,
  })
  await saysSo(shim)
  t.teardown(() => {
    spawnSync('kill', ['-9', ...childrenOf(shim.pid)])
  })
  t.same(await found(control), [])
  t.equal(shim.exitCode ?? shim.signalCode, null)
})

t.test(
  'who leads no process group is none: it could not be ended, and would be waited for for ever',
  async (t) => {
    const { control, directory } = place(t)
    const child = await start(t, 'sleep', ['60'], { env: tokenOf(directory, deadPid()) })
    t.same(await found(control), [])
    t.equal(child.exitCode ?? child.signalCode, null)
  },
)

t.test(
  'a worker in a container has the pid of its master from another namespace',
  { skip: spawnSync('unshare', ['--pid', '--fork', 'true']).status !== 0 && 'only root makes namespaces' },
  async (t) => {
    const { control, directory } = place(t)
    // The master there is pid 1, the path of its control socket is as ours: it has file systems of its own.
    const container = await start(
      t,
      'unshare',
      ['--pid', '--fork', '--kill-child', 'setsid', 'sleep', '60'],
      {
        env: tokenOf(directory, deadPid()),
        detached: false,
      },
    )
    t.same(await found(control), [])
    t.equal(container.exitCode ?? container.signalCode, null)
  },
)
