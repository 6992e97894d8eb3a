/** The usr2 that is on disk where this one was started from: what a restart, and `usr2 upgrade`, would run. */
import { accessSync, constants, readFileSync, realpathSync } from 'node:fs'
import { delimiter, dirname, isAbsolute, join, relative } from 'node:path'
import { ownVersion } from '../report.ts'

/** @returns its version where that is another one than runs; null: the same, or nobody can tell */
export function versionOnDisk(program = process.argv[1]): string | null {
  if (program === undefined) return null
  try {
    // Resolved anew: `/usr/bin/usr2` may lead to another package by now. One level up from dist/.
    const file = join(dirname(realpathSync.native(program)), '../package.json')
    const { name, version } = JSON.parse(readFileSync(file, 'utf8')) as { name?: unknown; version?: unknown }
    if (name !== 'usr2' || typeof version !== 'string' || version === ownVersion()) return null
    return version
  } catch {
    return null
  }
}

/**
 * The program's path as a restart would find it. Node has resolved argv[1] against a cwd that had lost its symlinks, so
 * `node_modules/.bin/usr2` below `current` would lead to the old release for ever.
 *
 * @param cwd of the process at its start, as the kernel had it
 * @param given the same directory as the user gave it
 */
export function programPath(program: string, cwd: string, given: string): string {
  const inside = relative(cwd, program)
  return inside.startsWith('..') || isAbsolute(inside) ? program : join(given, inside)
}

/**
 * The Node.js that a restart would run: `/usr/bin/node`, or `node` in PATH, may be another one by now.
 * `process.execPath` has its symlinks resolved and would stay the old one.
 */
export function nodePath(argv0: string, env: NodeJS.ProcessEnv): string {
  const places = argv0.includes('/')
    ? [argv0]
    : (env['PATH'] ?? '').split(delimiter).map((directory) => join(directory, argv0))
  return places.find((path) => isAbsolute(path) && isExecutable(path)) ?? process.execPath
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}
