/**
 * Many apps unlink the path of their unix socket before `listen` and again when they are told to stop. Under a
 * master the path belongs to the listener, which outlives them: between the unlink of a new generation and its
 * `listen` every connect would get ENOENT. So in a worker, unlinking a path that the master holds does nothing.
 * (What removes it by other means is repaired by the master.)
 */
import fs from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'
import { basename, dirname, isAbsolute, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

export interface KeptPaths {
  add(path: string): void
  remove(path: string): void
}

/** @param pwd the working directory as the user gave it, symlinks unresolved: keys of listeners are made with it */
export function keepPaths(pwd: string): KeptPaths {
  const kept = new Set<string>()
  let patched = false

  const real = (path: string): string => {
    try {
      return join(fs.realpathSync(dirname(path)), basename(path))
    } catch {
      return path
    }
  }
  const isKept = (given: unknown): boolean => {
    if (kept.size === 0 || !(typeof given === 'string' || given instanceof URL || Buffer.isBuffer(given)))
      return false
    const text = given instanceof URL ? fileURLToPath(given) : String(given)
    const absolute = isAbsolute(text) ? text : resolve(pwd, text)
    if (kept.has(absolute)) return true
    return [...kept].some((path) => basename(path) === basename(absolute) && real(path) === real(absolute))
  }

  const patch = (): void => {
    patched = true
    for (const name of ['unlinkSync', 'rmSync'] as const) {
      const original = fs[name] as (...args: unknown[]) => void
      Object.assign(fs, {
        [name]: (...args: unknown[]) => (isKept(args[0]) ? undefined : original.apply(fs, args)),
      })
    }
    for (const name of ['unlink', 'rm'] as const) {
      const original = fs[name] as (...args: unknown[]) => void
      Object.assign(fs, {
        [name]: (...args: unknown[]) => {
          const callback = args.at(-1)
          if (!isKept(args[0]) || typeof callback !== 'function') return original.apply(fs, args)
          process.nextTick(callback as (error: null) => void, null)
        },
      })
      const inPromise = fs.promises[name] as (...args: unknown[]) => Promise<void>
      Object.assign(fs.promises, {
        [name]: async (...args: unknown[]) =>
          isKept(args[0]) ? undefined : inPromise.apply(fs.promises, args),
      })
    }
    // `import { unlinkSync } from 'node:fs'` has copies of these functions.
    syncBuiltinESMExports()
  }

  return {
    add(path) {
      if (path.startsWith('\0')) return
      kept.add(path)
      if (!patched) patch()
    },
    remove: (path) => void kept.delete(path),
  }
}
