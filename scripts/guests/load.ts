/** The load client, in one place. */
export type { LoadResult, Traffic } from '../../src/drill/load.ts'
export { startLoad } from '../../src/drill/start-load.ts'
