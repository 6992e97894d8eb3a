/** Every example in the docs is a program that runs under usr2, and does what its page says. */
import { readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import type { Test } from 'tap'
import { getJson } from './helpers/http.ts'
import { run } from './helpers/spawn.ts'
import { freePort } from './helpers/tmp.ts'
import { startUsr2, type Usr2, type Usr2Options } from './helpers/usr2.ts'

const root = fileURLToPath(new URL('..', import.meta.url))
const docs = join(root, 'docs')

/** A comment that names a fixture, and the block below it, which is that file. */
const EXAMPLE = /(<!-- (test\/fixtures\/\S+) -->\n\n```js\n)([^`]*)(```)/g

t.test('the blocks are the files that are tested (REWRITE=1 copies them)', async (t) => {
  const shown = new Set<string>()
  for (const page of readdirSync(docs)) {
    const text = readFileSync(join(docs, page), 'utf8')
    const renewed = text.replace(EXAMPLE, (_, head: string, file: string, __, tail: string) => {
      shown.add(file)
      return head + readFileSync(join(root, file), 'utf8') + tail
    })
    if (process.env['REWRITE'] === '1') writeFileSync(join(docs, page), renewed)
    else t.equal(text, renewed, page)
  }
  t.same(
    [...shown].sort(),
    ['consumer', 'cron', 'express', 'fastify', 'once'].map((name) => `test/fixtures/docs/${name}.mjs`),
  )
})

t.test('the import names what there is', async (t) => {
  const block = /<!-- import -->\n\n```js\n([^`]*)```/.exec(
    readFileSync(join(docs, 'app-api.md'), 'utf8'),
  )?.[1]
  const named = [...(block?.match(/\w+(?=, ?\/\/|,)/g) ?? [])]
  const { code, stdout, stderr } = await run(t, process.execPath, {
    args: [
      '--input-type=module',
      '--eval',
      `${block}\nconsole.log(Object.keys(await import('usr2')).sort().join())`,
    ],
    cwd: root,
  })
  t.equal(code, 0, stderr)
  t.equal(named.sort().join(), stdout, 'all of it')
})

interface Example {
  readonly usr2: Usr2
  readonly port: number
  said(what: RegExp): string[]
}

async function startExample(
  t: Test,
  name: string,
  options: Pick<Usr2Options, 'flags' | 'env'> = {},
): Promise<Example> {
  const port = await freePort(t)
  const env = { PORT: String(port), ...options.env }
  const usr2 = startUsr2(t, { fixture: `docs/${name}.mjs`, ...options, env })
  await usr2.ready()
  const said = (what: RegExp): string[] => usr2.process.stdout.filter((line) => what.test(line))
  return { usr2, port, said }
}

async function reload(t: Test, { usr2 }: Example): Promise<void> {
  const { code, stderr } = await usr2.reload({ flags: ['--wait', 'drained'] })
  t.equal(code, 0, `promoted ${stderr}`)
}

const closed = 'database closed'
const withoutListeners = { flags: ['--ready', 'message', '--workers', '2'] }

for (const name of ['express', 'fastify']) {
  t.test(name, async (t) => {
    const example = await startExample(t, name)
    const poll = name === 'express' ? getJson({ port: example.port }, '/events') : null
    if (poll) await example.usr2.process.line('polled')
    for (const generation of ['1', '2']) {
      t.same(await getJson({ port: example.port }), [{ generation }])
      if (generation === '1') await reload(t, example)
    }
    if (poll) t.equal(await poll, null, 'the long poll was answered as the drain began')
    await example.usr2.stop()
    t.same(example.said(/closed/), [closed, closed])
    const warnings = example.usr2.events().filter(({ level }) => level > 30)
    t.same(warnings, [], 'nothing to warn of')
  })
}

t.test('consumer', async (t) => {
  const example = await startExample(t, 'consumer', withoutListeners)
  await example.usr2.process.line(/^done/)
  await reload(t, example)
  await example.usr2.stop()
  const jobs = (what: string): string[] =>
    example
      .said(new RegExp(`^${what} `))
      .map((line) => line.slice(what.length))
      .sort()
  t.ok(jobs('begun').length > 0)
  t.same(jobs('done'), jobs('begun'), 'every job that was begun was finished')
  t.same(
    example.said(/closed/),
    Array.from({ length: 4 }, () => closed),
  )
})

t.test('cron', async (t) => {
  const example = await startExample(t, 'cron', { ...withoutListeners, env: { EVERY_MS: '20' } })
  await example.usr2.process.line('digests sent')
  const from = example.usr2.process.lines.length
  await reload(t, example)
  await example.usr2.event('leads', { from })
  await example.usr2.stop()
  t.same(
    example.usr2.events().filter(({ level }) => level > 30),
    [],
    'the AbortError is no failure',
  )
})

t.test('once', async (t) => {
  const example = await startExample(t, 'once', withoutListeners)
  const { index } = await example.usr2.process.line('cache warmed')
  await reload(t, example)
  await example.usr2.process.line('cache warmed', { from: index + 1 })
  await example.usr2.stop()
  t.same(example.said(/warmed/).length, 2, 'once in each generation, by one of its two workers')
})
