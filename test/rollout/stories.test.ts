/** Replays test/rollout/stories/*.txt. `REWRITE=1` writes down what follows now: commit a diff only if you understand it. */
import { readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { retell } from './story.ts'

const HEADER =
  '# Rewritten by REWRITE=1 npx tap run test/rollout/stories.test.ts; commit a diff only if you understand it.'

const directory = fileURLToPath(new URL('stories', import.meta.url))
const names = readdirSync(directory).filter((name) => name.endsWith('.txt'))
t.ok(names.length > 0, 'there are stories')

for (const name of names) {
  t.test(name, async (t) => {
    const path = join(directory, name)
    const text = readFileSync(path, 'utf8')
    t.ok(text.startsWith(HEADER), 'it says how it is rewritten')
    const retold = retell(text)
    if (process.env.REWRITE === '1') writeFileSync(path, retold)
    else t.equal(text, retold)
  })
}
