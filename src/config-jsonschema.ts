/** The JSON Schema of the config file. Apart from the schema itself, since only the build needs it, no master. */
import { toJsonSchema } from '@valibot/to-json-schema'
import { KEYS, docOf, schema } from './config-schema.ts'

/** JSON Schema (draft 2020-12) of the config file, for editors. */
export function configJsonSchema(): Record<string, unknown> {
  // `required` is left out: the entry may come from the command line.
  const { $schema, type, additionalProperties, properties } = toJsonSchema(schema, {
    typeMode: 'input',
    target: 'draft-2020-12',
  })
  const described = KEYS.map((key) => [
    key,
    Object.assign({}, properties?.[key], { description: docOf(key).means }),
  ])
  return {
    $schema,
    type,
    additionalProperties,
    title: 'Configuration of usr2',
    properties: { $schema: { type: 'string' }, ...Object.fromEntries(described) },
  }
}
