import t from 'tap'
import {
  UPGRADE_ENV,
  UPGRADE_VERSION,
  bequestEnv,
  parseBequest,
  takeBequest,
} from '../../../src/master/upgrade/upgrade-wire.ts'
import type { Bequest } from '../../../src/master/upgrade/upgrade-wire.ts'

/** What one variable of an environment takes, with its name (execve(2), MAX_ARG_STRLEN). */
const MAX_VARIABLE_BYTES = 128 * 1024

const bequest = (count: number): Bequest => {
  const paths = Array.from({ length: count }, (_, i) => `/run/größe-${'🚀'.repeat(5)}/${i}.sock`)
  return {
    ...{ protocol: UPGRADE_VERSION, pid: 1, name: 'x', control: '/run/x', activated: [], notifyFd: null },
    listeners: paths.map((path, i) => ({
      fd: i,
      address: { kind: 'unix', path },
      known: { key: `unix:${path}`, bound: null },
    })),
    heritage: {
      ...{ nextGeneration: 2, nextReload: 1, scale: null, history: [] },
      wants: Array.from({ length: 4 }, () => paths.map((path) => `unix:${path}`)),
    },
    stopBudgetMs: 1,
  }
}

t.test('a bequest comes over whole, in as many variables as it takes', async (t) => {
  for (const [count, variables] of [
    [1, 1],
    [1_000, 7],
  ] as const) {
    const given = bequest(count)
    const env: NodeJS.ProcessEnv = { PATH: '/bin', ...bequestEnv(given) }
    for (const [name, value] of Object.entries(env))
      t.ok(Buffer.byteLength(`${name}=${value}`) < MAX_VARIABLE_BYTES, name)
    t.equal(Object.keys(env).filter((name) => name.startsWith(UPGRADE_ENV)).length, variables)
    t.same(parseBequest(takeBequest(env) ?? ''), given)
    t.same(env, { PATH: '/bin' }, 'and nothing of it stays')
  }
  t.equal(takeBequest({ PATH: '/bin' }), undefined)
})
