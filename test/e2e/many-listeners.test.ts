/** Apps with hundreds of listeners: what the master does for each must not grow with their number. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { get } from '../helpers/http.ts'
import { shortTmp } from '../helpers/tmp.ts'
import { fixture, startUsr2 } from '../helpers/usr2.ts'

/** Listens on COUNT paths that begin with PREFIX; `@`: abstract ones. */
const files = {
  'app.cjs': `
const { createServer } = require('node:http')
const prefix = process.env.PREFIX.replace(/^@/, '\\0')
for (let i = 0; i < Number(process.env.COUNT); i++)
  createServer((req, res) => res.end(process.env.USR2_GENERATION)).listen(prefix + i)`,
}

const COUNT = 200
/**
 * What the master looks at for each of them in a start, a reload and a stop of 2 workers: entries of Maps, paths, and
 * changes of their directory. When it looked at all of them after each message these were 24,991, 2,328 and 394; they are
 * 400, 39 and 2. How often it looks depends a little on how long the workers take: so the bounds are far from both.
 */
const BOUNDS = { entries: 4_000, stats: 300, wakes: 40 }

t.test('what is done for each of 200 listeners is not done for all of them', async (t) => {
  const place = shortTmp(t)
  const prefix = join(place, 's')
  const looks = join(place, 'looks.json')
  const usr2 = startUsr2(t, {
    ...{ entry: 'app.cjs', files, flags: ['--workers', '2'] },
    nodeArgs: ['--require', fixture('counts-looks.cjs')],
    env: { COUNT: String(COUNT), PREFIX: prefix, LOOKS: looks },
  })
  await usr2.ready({ timeoutMs: 60_000 })
  t.equal((await usr2.reload()).code, 0)
  for (const i of [0, COUNT - 1]) t.equal((await get({ socketPath: `${prefix}${i}` })).body, '2')
  t.equal((await usr2.cli('stop', [], 60_000)).code, 0)
  const { watches, ...rest } = JSON.parse(readFileSync(looks, 'utf8')) as Record<string, number>
  t.comment(JSON.stringify({ watches, ...rest }))
  t.equal(watches, 1, 'one watch for their directory')
  for (const [name, bound] of Object.entries(BOUNDS)) {
    const each = Math.round((rest[name] ?? NaN) / COUNT)
    t.ok(each < bound, `${name}: ${each} for each, less than ${bound}`)
  }
})

t.test('1000 listeners with the longest names there are', async (t) => {
  // More than a variable of an environment holds, and more messages than a worker may send that nobody has asked.
  const prefix = `@${join(shortTmp(t), 'x')}`.padEnd(104, 'x')
  const usr2 = startUsr2(t, {
    ...{ entry: 'app.cjs', files },
    env: { COUNT: '1000', PREFIX: prefix },
  })
  await usr2.ready({ timeoutMs: 60_000 })
  t.equal((await usr2.reload()).code, 0)
  for (const i of [0, 999]) t.equal((await get({ socketPath: `${prefix.replace('@', '\0')}${i}` })).body, '2')
  const upgraded = await usr2.cli('upgrade', [], 60_000)
  t.equal(upgraded.code, 0, upgraded.stderr)
  for (const i of [0, 999]) t.equal((await get({ socketPath: `${prefix.replace('@', '\0')}${i}` })).body, '3')
})
