// Who may import whom. Each rule: the files it is for, and what they may import besides their own folder's files.
// Run by `npm run check`; a violation is one line with the file, the import and the rule.
import { readFileSync, readdirSync } from 'node:fs'
import { dirname, join, posix, relative } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = process.argv[2] ?? dirname(dirname(fileURLToPath(import.meta.url)))
const PACKAGE = 'native-free-fd-passing'

/** First match counts. `npm` and `node` say whether npm packages and Node's own modules are allowed. */
const rules = [
  { files: /^src\/protocol\.ts$/, may: [], npm: false, node: false },
  { files: /^src\/address\.ts$/, may: [], npm: false, node: false },
  { files: /^src\/index\.ts$/, may: [], npm: false, node: false },
  { files: /^src\/cli\/systemd-unit\.ts$/, may: [/^src\/address\.ts$/], npm: false, node: false },
  { files: /^src\/rollout\//, may: [/^src\/rollout\//], npm: false, node: false },
  {
    files: /^src\/worker\//,
    may: [/^src\/worker\//, /^src\/protocol\.ts$/, /^src\/address\.ts$/],
    passing: true,
    npm: false,
    node: true,
  },
  {
    files: /^src\/config(\.ts$|\/)/,
    may: [
      /^src\/config(\.ts$|\/)/,
      /^src\/rollout\/state\.ts$/,
      // `--workers auto`: the processors that we may use.
      /^src\/master\/workers\/memory\.ts$/,
      /^src\/protocol\.ts$/,
      /^src\/address\.ts$/,
    ],
    npm: true,
    node: true,
  },
  {
    files: /^src\/master\//,
    may: [
      /^src\/master\//,
      /^src\/rollout\//,
      /^src\/protocol\.ts$/,
      /^src\/address\.ts$/,
      // trust.ts: who else could change what lies at a path.
      /^src\/config(\.ts$|\/trust\.ts$)/,
    ],
    passing: true,
    npm: true,
    node: true,
  },
  {
    files: /^src\/drill\//,
    may: [
      /^src\/drill\//,
      /^src\/config\.ts$/,
      /^src\/master\/(face|control\/control-client|figures\/ledger)\.ts$/,
      /^src\/protocol\.ts$/,
      /^src\/address\.ts$/,
    ],
    npm: false,
    node: true,
  },
  {
    files: /^src\/cli(\.ts$|\/)/,
    may: [
      /^src\/cli(\.ts$|\/)/,
      /^src\/config(\.ts$|\/)/,
      /^src\/master\//,
      /^src\/rollout\/state\.ts$/,
      /^src\/drill\//,
      /^src\/address\.ts$/,
    ],
    npm: false,
    node: true,
  },
  {
    files: /^native-free-fd-passing\/src\//,
    may: [/^native-free-fd-passing\/src\//],
    npm: false,
    node: true,
  },
]

const sources = ['src', `${PACKAGE}/src`].flatMap((folder) =>
  readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && /(?<!\.d)\.ts$/.test(entry.name))
    .map((entry) => relative(root, join(entry.parentPath ?? entry.path, entry.name))),
)

/** Static and dynamic imports, re-exports, and require: whatever brings in another module. */
const IMPORT = /(?:\bfrom\s*|\bimport\s*\(?\s*|\brequire\s*\(\s*)['"]([^'"]+)['"]/g

const complaints = []
for (const file of sources) {
  const rule = rules.find(({ files }) => files.test(file))
  if (!rule) {
    complaints.push(`${file} has no place in the house: no rule of scripts/check-imports.mjs is for it`)
    continue
  }
  const text = readFileSync(join(root, file), 'utf8').replace(/\/\*[\s\S]*?\*\/|^\s*\/\/.*$/gm, '')
  for (const [, target] of text.matchAll(IMPORT)) {
    const own = target.startsWith('.') ? posix.join(posix.dirname(file), target) : null
    const allowed = own
      ? rule.may.some((pattern) => pattern.test(own)) || own === 'package.json'
      : target.startsWith('node:')
        ? rule.node
        : target === PACKAGE
          ? rule.passing === true
          : rule.npm
    if (!allowed) complaints.push(`${file} may not import ${target}`)
  }
}

for (const complaint of complaints) console.error(complaint)
if (complaints.length > 0) process.exit(1)
console.log(`imports: ${sources.length} files keep the rules of the house`)
