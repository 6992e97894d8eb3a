/** Who is asked to take a turn, and when nobody is. */
import t from 'tap'
import { type Place, Turns } from '../../../src/master/listening/turns.ts'
import type { WorkerHandle } from '../../../src/master/workers/worker-handle.ts'
import { until } from '../../helpers/wait.ts'

const KEY = 'tcp:127.0.0.1:3000'

/** Only who it is matters. */
const worker = (slot: number): WorkerHandle => ({ slot }) as WorkerHandle
const at = (slot: number, key = KEY): Place => ({ worker: worker(slot), key })

interface Tried {
  readonly turns: Turns
  readonly asked: string[]
  /** So many have been asked. */
  asks(count: number): Promise<unknown>
}

function tried(turn: (place: Place) => Promise<void> = async () => {}): Tried {
  const asked: string[] = []
  const turns = new Turns({
    everyMs: 1,
    turn(place) {
      asked.push(`${place.worker.slot} ${place.key}`)
      return turn(place)
    },
  })
  t.teardown(() => turns.end())
  const asks = (count: number): Promise<unknown> =>
    until(() => asked.length >= count, { timeoutMs: 5_000, what: `${count} turns` })
  return { turns, asked, asks }
}

t.test('one after the other, each place as often as the others', async (t) => {
  const { turns, asked, asks } = tried()
  turns.among([at(0), at(1), at(1, 'unix:/run/a.sock'), at(1, 'udp:127.0.0.1:53')])
  await asks(7)
  t.same(asked.slice(0, 7), [
    ...[`0 ${KEY}`, `1 ${KEY}`, '1 unix:/run/a.sock'],
    ...[`0 ${KEY}`, `1 ${KEY}`, '1 unix:/run/a.sock', `0 ${KEY}`],
  ])
})

t.test('those told last take turns; after nobody, and after the end, no one', async (t) => {
  const { turns, asked, asks } = tried()
  turns.among([at(0)])
  await asks(2)
  const from = asked.length
  turns.among([at(1)])
  await asks(from + 2)
  t.same([...new Set(asked.slice(from))], [`1 ${KEY}`])
  turns.end()
  const timers = (): number => process.getActiveResourcesInfo().filter((kind) => kind === 'Timeout').length
  for (const end of [() => turns.among([]), () => turns.end()]) {
    const without = timers()
    turns.among([at(0)])
    t.equal(timers(), without + 1)
    end()
    t.equal(timers(), without)
    const had = asked.length
    await new Promise((resolve) => setTimeout(resolve, 20))
    t.equal(asked.length, had)
  }
})

t.test('one that does not take its copy is not asked again, and holds up nobody', async (t) => {
  const { turns, asked, asks } = tried(({ worker: { slot } }) =>
    slot === 0 ? new Promise<void>(() => {}) : Promise.reject(new Error('it ends')),
  )
  turns.among([at(0), at(1)])
  await asks(5)
  t.same(asked.slice(0, 5), [`0 ${KEY}`, ...Array<string>(4).fill(`1 ${KEY}`)])
})
