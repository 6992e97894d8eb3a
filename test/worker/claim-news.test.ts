import { mock } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import t from 'tap'
import type { FromWorker, News } from '../../src/protocol.ts'
import { MAX_WITHHELD_MS, withholdClaims } from '../../src/worker/claim-news.ts'

const claimed = (key: string): News => ({ t: 'claimed', key, error: null })

function start(): { news: ReturnType<typeof withholdClaims>; sent: FromWorker[] } {
  const sent: FromWorker[] = []
  return {
    sent,
    news: withholdClaims({
      send: (message) => void sent.push(...(message.t === 'several' ? message.news : [message])),
    }),
  }
}

t.test('with no listen waiting, the master hears a turn later, in order', async (t) => {
  const { news, sent } = start()
  news.tell(claimed('a'))
  news.tell({ t: 'ready' })
  news.tell({ t: 'unclaimed', key: 'a' })
  t.same(sent, [])
  await turn()
  t.same(sent, [claimed('a'), { t: 'ready' }, { t: 'unclaimed', key: 'a' }])
})

t.test('it hears nothing while a listen waits, whichever came first', async (t) => {
  const { news, sent } = start()
  news.tell(claimed('a'))
  const answered = news.waits()
  await turn()
  t.same(sent, [])
  news.tell(claimed('b'))
  const resolved = news.waits()
  resolved()
  // A name that was looked up, and is claimed in the same callback.
  const claims = news.waits()
  resolved()
  answered()
  await turn()
  t.same(sent, [], 'one waits, and to end one twice ends no other')
  claims()
  t.same(sent, [], 'not in the same turn')
  const next = news.waits()
  await turn()
  t.same(sent, [], 'its callback has called another listen')
  next()
  await turn()
  t.same(sent, [claimed('a'), claimed('b')])
})

t.test('it hears all when the worker drains, and nothing twice', async (t) => {
  const { news, sent } = start()
  const answered = news.waits()
  news.tell(claimed('a'))
  news.flush()
  t.same(sent, [claimed('a')])
  answered()
  await turn()
  t.equal(sent.length, 1)
})

t.test('a listen that waits for too long holds nothing back any more', async (t) => {
  mock.timers.enable({ apis: ['setTimeout'] })
  t.teardown(() => mock.timers.reset())
  const { news, sent } = start()
  news.waits()
  news.tell(claimed('a'))
  mock.timers.tick(MAX_WITHHELD_MS - 1)
  news.tell(claimed('b'))
  await turn()
  t.same(sent, [])
  mock.timers.tick(1)
  t.same(sent, [claimed('a'), claimed('b')], 'counted from the first')
})
