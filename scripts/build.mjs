// Builds what is published: the CLI (one ESM file), the guest (one CommonJS file without dependencies), what apps
// import (ESM and CommonJS), types, and the JSON Schema of the config file.
import { execFileSync } from 'node:child_process'
import { chmodSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { build } from 'esbuild'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
process.chdir(root)
const { version } = JSON.parse(readFileSync('package.json', 'utf8'))
const passing = 'native-free-fd-passing'

const common = {
  bundle: true,
  platform: 'node',
  target: 'node20',
  logLevel: 'warning',
  legalComments: 'none',
  define: { __USR2_VERSION__: JSON.stringify(version) },
}

for (const dist of ['dist', `${passing}/dist`]) mkdirSync(dist, { recursive: true })

/** Each file whole or not at all: a supervisor or a test may be starting from it right now. */
function put(path, content) {
  writeFileSync(`${path}.${process.pid}`, content)
  renameSync(`${path}.${process.pid}`, path)
}
async function bundle(options) {
  const { outputFiles } = await build({ ...common, ...options, write: false })
  for (const { path, contents } of outputFiles) put(path, contents)
}

// Dependencies are bundled: the master loads nothing from disk after its start, so that an `npm ci` under a running
// master cannot mix versions. Some of them are CommonJS and need a `require`.
const require = `import { createRequire as __createRequire } from 'node:module'; const require = __createRequire(import.meta.url);`
const jsonSchemaMaker = `dist/.jsonschema.${process.pid}.mjs`
// Files of their own: what is loaded only on a terminal, only with --metrics, and only by `usr2 drill`.
const APART = {
  'pretty.ts': './pretty.mjs',
  'figures/metrics.ts': './metrics.mjs',
  'cli/drill.ts': './drill.mjs',
}
const apart = {
  name: 'apart',
  setup: ({ onResolve }) =>
    onResolve({ filter: /\/(pretty|figures\/metrics|cli\/drill)\.ts$/ }, ({ kind, path }) =>
      kind === 'entry-point' ? null : { path: APART[path.replace(/^\.\//, '')], external: true },
    ),
}
await Promise.all([
  bundle({
    entryPoints: ['src/cli.ts'],
    outfile: 'dist/cli.mjs',
    format: 'esm',
    minifySyntax: true,
    banner: { js: require },
    plugins: [apart],
  }),
  bundle({
    entryPoints: ['src/master/pretty.ts'],
    outfile: 'dist/pretty.mjs',
    format: 'esm',
    banner: { js: require },
  }),
  bundle({
    entryPoints: ['src/master/figures/metrics.ts'],
    outfile: 'dist/metrics.mjs',
    format: 'esm',
    minifySyntax: true,
    banner: { js: require },
  }),
  bundle({
    entryPoints: ['src/cli/drill.ts'],
    outfile: 'dist/drill.mjs',
    format: 'esm',
    minifySyntax: true,
    banner: { js: require },
  }),
  bundle({ entryPoints: ['src/drill/load-main.ts'], outfile: 'dist/drill-load.mjs', format: 'esm' }),
  bundle({ entryPoints: ['src/master/workers/blocked-main.ts'], outfile: 'dist/blocked.mjs', format: 'esm' }),
  bundle({ entryPoints: ['src/worker/preload.ts'], outfile: 'dist/preload.cjs', format: 'cjs' }),
  bundle({ entryPoints: ['src/index.ts'], outfile: 'dist/index.mjs', format: 'esm' }),
  bundle({ entryPoints: ['src/index.ts'], outfile: 'dist/index.cjs', format: 'cjs' }),
  bundle({ entryPoints: [`${passing}/src/index.ts`], outfile: `${passing}/dist/index.mjs`, format: 'esm' }),
  bundle({ entryPoints: [`${passing}/src/index.ts`], outfile: `${passing}/dist/index.cjs`, format: 'cjs' }),
  bundle({
    entryPoints: ['src/config/jsonschema.ts'],
    outfile: jsonSchemaMaker,
    format: 'esm',
    banner: { js: require },
  }),
])
chmodSync('dist/cli.mjs', 0o755)

const { configJsonSchema } = await import(pathToFileURL(join(root, jsonSchemaMaker)).href)
put('dist/config.schema.json', `${JSON.stringify(configJsonSchema(), null, 2)}\n`)
rmSync(jsonSchemaMaker)

// Declarations for both module formats: TypeScript tells them apart by the file's ending, also in their imports.
const tsc = join(dirname(createRequire(import.meta.url).resolve('typescript/package.json')), 'bin/tsc')
function declare(project, dist) {
  const types = join(dist, `types.${process.pid}`)
  execFileSync(process.execPath, [tsc, '-p', project, '--outDir', types], { stdio: 'inherit' })
  for (const name of readdirSync(types)) {
    const text = readFileSync(join(types, name), 'utf8')
    for (const format of ['m', 'c']) {
      const to = join(dist, name.replace(/\.d\.ts$/, `.d.${format}ts`))
      put(to, text.replace(/(from '\.\/[^']+)\.ts'/g, `$1.${format}js'`))
    }
  }
  rmSync(types, { recursive: true })
}
declare('scripts/tsconfig.types.json', 'dist')
declare('scripts/tsconfig.types-passing.json', `${passing}/dist`)
