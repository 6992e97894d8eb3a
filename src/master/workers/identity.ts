/**
 * As whom workers run under a master that is root: `--user` and `--group`. Node sets uid and gid between fork and exec, and
 * takes every supplementary group away (libuv, uv_spawn: setgroups(0)); it has no way to set others. The environment says
 * who it is, since a shell's `su` would, too: an app that writes to ~/.cache must not try root's.
 */
import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { promisify } from 'node:util'
import type { Config } from '../../config.ts'

export interface Ids {
  readonly uid: number
  readonly gid: number
}

export interface Identity extends Ids {
  /** For messages. */
  readonly name: string
  readonly env: Readonly<Record<string, string>>
}

/** For `spawn`, which takes both or none. */
export const idsOf = (identity: Ids | null): Partial<Ids> =>
  identity === null ? {} : { uid: identity.uid, gid: identity.gid }

/** A directory service may be asked, which may be far away. */
const DEADLINE_MS = 5_000

/** Lines of a database as `getent DATABASE KEY` prints them (getent(1), passwd(5), group(5)). */
export type Find = (database: 'passwd' | 'group', key: string) => Promise<readonly string[] | null>

/**
 * Null: workers run as the master does.
 *
 * @throws {Error} one sentence: not root, or no such user or group
 */
export async function identityOf(
  { user, group }: Pick<Config, 'user' | 'group'>,
  find: Find = findEntry,
  ownUid = process.geteuid?.() ?? 0,
): Promise<Identity | null> {
  if (user === null && group === null) return null
  const asked = [
    ...(user === null ? [] : [`--user ${user}`]),
    ...(group === null ? [] : [`--group ${group}`]),
  ]
  if (ownUid !== 0) {
    throw new Error(
      `${asked.join(' and ')} cannot be done: only a master that runs as root may start workers as somebody else, and ` +
        `this one is uid ${ownUid}. Leave it out, and start usr2 itself as that user (User= in its unit).`,
    )
  }
  const entry = user === null ? null : await find('passwd', user)
  const [name = user ?? '', , uidText = user, primary, , home = '/'] = entry ?? []
  if (user !== null && entry === null && !isNumber(user))
    throw new Error(`There is no user ${user} (--user).`)
  const gid = group === null ? (user === null ? 0 : primary) : await gidOf(group, '--group', find)
  if (gid === undefined) {
    throw new Error(`There is no user with the uid ${user} whose group could be taken: give --group, too.`)
  }
  return {
    name: entry === null ? asked.join(' ') : name,
    uid: Number(user === null ? ownUid : uidText),
    gid: Number(gid),
    env: user === null ? {} : { HOME: home || '/', ...(entry === null ? {} : { USER: name, LOGNAME: name }) },
  }
}

/** @throws {Error} one sentence: no such group, which `option` asked for */
export async function gidOf(group: string, option: string, find: Find = findEntry): Promise<number> {
  const entry = await find('group', group)
  if (entry === null && !isNumber(group)) throw new Error(`There is no group ${group} (${option}).`)
  return Number(entry?.[2] ?? group)
}

/**
 * Whether that user may read a file, by asking as that user: also where access control lists or a security module
 * decide. True where nobody can be asked.
 */
export async function mayRead(path: string, { uid, gid }: Ids): Promise<boolean> {
  try {
    await run('test', ['-r', path], { uid, gid, timeout: DEADLINE_MS })
    return true
  } catch (error) {
    return (error as { code?: unknown }).code !== 1
  }
}

const run = promisify(execFile)
const isNumber = (text: string): boolean => /^\d+$/.test(text)

async function findEntry(database: 'passwd' | 'group', key: string): Promise<readonly string[] | null> {
  try {
    const { stdout } = await run('getent', [database, key], { timeout: DEADLINE_MS })
    return stdout.trim().split(':')
  } catch (error) {
    // getent(1): 2 is "not found". An image without the program has no directory service either.
    if ((error as { code?: unknown }).code !== 'ENOENT') return null
    return inFile(database, key)
  }
}

function inFile(database: 'passwd' | 'group', key: string): readonly string[] | null {
  try {
    const entries = readFileSync(`/etc/${database}`, 'utf8')
      .split('\n')
      .map((line) => line.split(':'))
    return entries.find(([name, , id]) => name === key || (isNumber(key) && id === key)) ?? null
  } catch {
    return null
  }
}
