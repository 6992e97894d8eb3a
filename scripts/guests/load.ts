/** The load client, in one place. */
export type { LoadResult, Traffic } from '../bench/load.ts'
export { startLoad } from '../bench/start-load.ts'
