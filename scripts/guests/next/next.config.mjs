import { fileURLToPath } from 'node:url'

// All that is needed is below scripts/guests: its node_modules, and this folder.
export default { output: 'standalone', outputFileTracingRoot: fileURLToPath(new URL('..', import.meta.url)) }
