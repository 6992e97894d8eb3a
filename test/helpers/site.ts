/** usr2 with version 1.0.0 of the healthy app, under traffic. */
import type { Test } from 'tap'
import type { Verdict } from '../../src/master/face.ts'
import { type Clients, type ClientOptions, clientsOf, deploysIn } from './deploys.ts'
import type { Deploys } from './deploys.ts'
import { freePort } from './tmp.ts'
import { startUsr2, type Usr2 } from './usr2.ts'

export interface Site {
  readonly deploys: Deploys
  readonly usr2: Usr2
  readonly clients: Clients
}

export interface SiteOptions {
  readonly flags?: readonly string[]
  /** The config file. */
  readonly config?: object
  readonly env?: Readonly<Record<string, string>>
  readonly clients?: Partial<ClientOptions>
}

/** Version 1.0.0 of the healthy app under traffic. */
export async function site(
  t: Test,
  { flags = [], config = {}, env = {}, clients = {} }: SiteOptions,
): Promise<Site> {
  const port = await freePort(t)
  const deploys = deploysIn(t)
  deploys.to('healthy', '1.0.0')
  const usr2 = startUsr2(t, {
    entry: deploys.entry,
    cwd: deploys.root,
    files: { 'usr2.json': JSON.stringify({ maxDraining: 10, ...config }) },
    flags: ['--config', 'usr2.json', ...flags],
    env: { PORT: String(port), ...env },
  })
  await usr2.ready()
  const load = await clientsOf(t, { port, newPerSecond: 100, keepAlive: 4, ...clients })
  await load.served('1.0.0')
  return { deploys, usr2, clients: load }
}

export async function verdictOf(usr2: Usr2, command: string, ...flags: string[]): Promise<Verdict> {
  const { stdout, stderr } = await usr2.cli(command, ['--json', ...flags], 60_000)
  const line = stdout.split('\n').find((text) => text.includes('"verdict"'))
  if (line === undefined) throw new Error(`no verdict: ${stdout}${stderr}`)
  return (JSON.parse(line) as { verdict: Verdict }).verdict
}
