/** The JSON Schema of the config file. Apart from the schema itself, since only the build needs it, no master. */
import { toJsonSchema } from '@valibot/to-json-schema'
import { KEYS, ROOF, docOf, schema } from './schema.ts'
import type { Key } from './schema.ts'
import { PROBES } from '../rollout/state.ts'

/** JSON Schema (draft 2020-12) of the config file, for editors. */
export function configJsonSchema(): Record<string, unknown> {
  // `required` is left out: the entry may come from the command line.
  const { $schema, type, additionalProperties, properties } = toJsonSchema(schema, {
    typeMode: 'input',
    target: 'draft-2020-12',
  })
  const described = (key: Key) => {
    const { means, textInFile } = docOf(key)
    const structure = properties?.[key] ?? {}
    const shape = textInFile ? { anyOf: [{ type: 'string' }, structure] } : structure
    return Object.assign({}, shape, { description: means })
  }
  const entries = KEYS.map((key) => [key, described(key)] as const)
  const probes = Object.fromEntries(PROBES.map((kind) => [kind, described(kind)]))
  const roof = { type, additionalProperties, properties: probes, description: 'the probes of a worker' }
  return {
    $schema,
    type,
    additionalProperties,
    title: 'Configuration of usr2',
    properties: { $schema: { type: 'string' }, ...Object.fromEntries(entries), [ROOF]: roof },
  }
}
