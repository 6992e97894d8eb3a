/**
 * What is at a path; null where nothing can be found: also where a part of the way is a file now (ENOTDIR), may not be
 * entered (EACCES) or leads in a circle (ELOOP), all of which `throwIfNoEntry: false` throws. For a master that looks after
 * paths of others while they serve, none of it may be an exception: what comes next says why.
 */
import { lstatSync, statSync } from 'node:fs'
import type { Stats } from 'node:fs'

const attempt = (look: () => Stats): Stats | null => {
  try {
    return look()
  } catch {
    return null
  }
}

/** Follows links. */
export const stat = (path: string): Stats | null => attempt(() => statSync(path))

/** Of a link: itself. */
export const lstat = (path: string): Stats | null => attempt(() => lstatSync(path))

/** null: nothing is there. */
export const isSameFile = (a: Stats | null, b: Stats | null): boolean =>
  a !== null && b !== null && a.dev === b.dev && a.ino === b.ino
