/** What a command says, and where: results on stdout, complaints on stderr. */
import { asJson, printable } from './text.ts'

export const BAD_USAGE = 2

export function say(line: string): void {
  process.stdout.write(`${line}\n`)
}

export function complain(line: string): void {
  process.stderr.write(`${line}\n`)
}

/** With `--json` an error is a line like the others: who reads JSON reads stdout. */
export function fail(sentence: string, json: boolean): void {
  if (json) say(asJson({ error: sentence }))
  else complain(`usr2: ${printable(sentence)}`)
}

export function refuse(complaints: readonly string[]): number {
  for (const complaint of complaints) complain(`usr2: ${printable(complaint)}`)
  return BAD_USAGE
}
