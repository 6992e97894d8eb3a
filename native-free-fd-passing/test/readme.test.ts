// The README's example, as it is printed there.
import fs from 'node:fs'
import path from 'node:path'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { ask, ENV, within } from './helpers.ts'
import { spawn } from 'node:child_process'

const HERE = path.dirname(fileURLToPath(import.meta.url))

t.test('the example replaces its child', async (t) => {
  const dir = t.testdir()
  const readme = fs.readFileSync(path.join(HERE, '../README.md'), 'utf8')
  const source = new URL('../src/index.ts', import.meta.url).href
  for (const [, code = '', name = ''] of readme.matchAll(
    /```js\n(\/\/ (\w+\.mjs)\n[^`]*(?:`[^`]+`[^`]*)*?)```/g,
  )) {
    fs.writeFileSync(path.join(dir, name), code.replace("'native-free-fd-passing'", `'${source}'`))
  }
  t.same(fs.readdirSync(dir).sort(), ['child.mjs', 'parent.mjs'])

  const env = { ...ENV, PORT: '0' }
  const parent = spawn(process.execPath, ['--import', 'tsx', 'parent.mjs'], { cwd: dir, env })
  let said = ''
  parent.stdout.setEncoding('utf8').on('data', (text: string) => (said += text))
  parent.stderr.setEncoding('utf8').on('data', (text: string) => (said += text))
  t.teardown(async () => {
    parent.kill()
    await once(parent, 'exit')
  })
  const served = async (times: number): Promise<RegExpMatchArray> => {
    for (;;) {
      const matches = [...said.matchAll(/port (\d+) is served by (\d+)/g)]
      if (matches.length >= times) return matches[times - 1]!
      await once(parent.stdout, 'data')
    }
  }
  const [, port, first] = await within(served(1), 'the first child', () => [said])
  t.match(await ask(Number(port), 'GET / HTTP/1.0\r\n\r\n'), new RegExp(`hello from ${first}\n$`))
  parent.kill('SIGHUP')
  const [, , second] = await within(served(2), 'the second child', () => [said])
  t.not(first, second)
  await within(gone(Number(first)), 'the end of the first child')
  t.match(await ask(Number(port), 'GET / HTTP/1.0\r\n\r\n'), new RegExp(`hello from ${second}\n$`))
})

/** It is no child of ours: there is no event to wait for. */
async function gone(pid: number): Promise<void> {
  for (;;) {
    try {
      process.kill(pid, 0)
    } catch {
      return
    }
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}
