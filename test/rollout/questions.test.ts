import t from 'tap'
import {
  accepts,
  candidateOf,
  currentOf,
  fills,
  holder,
  inRotation,
  isSpare,
  listensOn,
  meetsReadiness,
  missing,
  roleOf,
  serves,
  stateOf,
  wantsOf,
} from '../../src/rollout/questions.ts'
import { initialState } from '../../src/rollout/state.ts'
import type { Doing, ListenerKey, Slot, Top, Worker } from '../../src/rollout/state.ts'
import type { Generation } from '../../src/rollout/state.ts'
import * as built from './builders.ts'
import { booting, byId, generation, held, open, opening, ready, slotOf, vacant, worker } from './builders.ts'

const WEB = 'tcp:[::]:3000'
const ADMIN = 'tcp:127.0.0.1:9000'
const none: ReadonlySet<ListenerKey> = new Set()

const rollingOut = (doing: Doing, open = 0, out = 0): Top => ({
  k: 'rolling-out',
  current: 1,
  rollout: { ...built.rollout, doing, open, out },
  next: [],
  parked: null,
})
const by = { timerAt: 1 }
const pinning = rollingOut({ k: 'pinning', by })
const bringingUp = rollingOut({ k: 'bringing-up', candidate: 2, by })
const shifting = rollingOut({ k: 'shifting', candidate: 2, by }, 2)
const holding = rollingOut({ k: 'holding', candidate: 2, until: 'promote' }, 1, 1)
const steady: Top = { k: 'steady', current: 1, parked: null }
const parked: Top = { k: 'steady', current: 1, parked: { generation: 2, until: by } }
const stopping: Top = { k: 'stopping', status: 0, why: [] }

t.test('roles are where the top points', async (t) => {
  t.equal(currentOf(steady), 1)
  t.equal(currentOf(shifting), 1)
  t.equal(currentOf(stopping), null)
  t.equal(candidateOf(pinning), null, 'nothing was made yet')
  t.equal(candidateOf(bringingUp), 2)
  t.same(
    [1, 2, 3].map((id) => roleOf(shifting, id)),
    ['current', 'candidate', 'old'],
  )
  t.same(
    [1, 2].map((id) => roleOf(stopping, id)),
    ['old', 'old'],
  )
})

t.test('in rotation: the current generation, and as much of a candidate as its share', async (t) => {
  const at = (generation: number, slot: number): Worker => ({ ...worker(1, ready), generation, slot })
  t.ok(inRotation(steady, at(1, 0)))
  t.ok(inRotation(bringingUp, at(1, 0)))
  t.notOk(inRotation(bringingUp, at(2, 0)))
  t.ok(inRotation(shifting, at(2, 1)))
  t.notOk(inRotation(shifting, at(2, 2)), 'the rollout has not come to it')
  t.notOk(inRotation(shifting, at(3, 0)))
  t.notOk(inRotation(holding, at(1, 0)), 'its place is taken')
  t.ok(inRotation(holding, at(1, 1)))
  t.equal(roleOf(parked, 2), 'parked')
  t.notOk(inRotation(parked, at(2, 0)), 'parked')
  t.notOk(inRotation(stopping, at(1, 0)))
})

t.test('the worker that holds a slot', async (t) => {
  const slot = (state: Slot['state']): Slot => ({ state, deaths: 0, wants: null })
  t.equal(holder(slotOf(4, null)), 4)
  t.equal(holder(vacant(null)), null)
  t.equal(holder(slot({ k: 'leaving', by: 4, when: { timerAt: 1 } })), 4)
  t.equal(
    holder(slot({ k: 'replacing', by: 4, with: 5, why: 'signal' })),
    4,
    'the old one, until its replacement serves',
  )
})

t.test('ready by listening', async (t) => {
  const isReady = (wants: readonly ListenerKey[] | null, one: Worker): boolean =>
    meetsReadiness(generation([slotOf(1, wants)]), one)
  t.notOk(isReady(null, worker(1, booting)))
  t.ok(isReady(null, worker(1, booting, { [WEB]: held })), 'any listener, while nothing is known')
  t.notOk(isReady([WEB, ADMIN], worker(1, booting, { [WEB]: held })), 'all that is wanted')
  t.ok(isReady([WEB, ADMIN], worker(1, booting, { [WEB]: held, [ADMIN]: held })))
  t.ok(isReady([], worker(1, { ...booting, settle: 'settled' })), 'a private one, once it has settled')
  t.notOk(isReady([], worker(1, { ...booting, settle: { timerAt: 1 } })))
  t.notOk(
    isReady([WEB], worker(1, { ...booting, settle: 'settled' })),
    'which is not enough where more is wanted',
  )
  t.notOk(isReady(null, { ...worker(1, booting), saidReady: true }), 'its word is not asked for')
  t.notOk(isReady(null, worker(1, ready, { [WEB]: held })), 'it is already')
})

t.test('ready by message', async (t) => {
  const isReady = (wants: readonly ListenerKey[] | null, one: Worker): boolean =>
    meetsReadiness(generation([slotOf(1, wants)], { ready: 'message' }), one)
  const said = (one: Worker): Worker => ({ ...one, saidReady: true })
  t.notOk(isReady(null, worker(1, booting, { [WEB]: held })))
  t.ok(isReady(null, said(worker(1, booting))), 'no listener is needed')
  t.notOk(isReady([WEB], said(worker(1, booting))), 'but for what the current generation listens on')
  t.same(missing(slotOf(1, [WEB, ADMIN]), worker(1, booting, { [WEB]: held })), [ADMIN])
})

t.test('serves: ready, and accepts on everything it listens on', async (t) => {
  t.notOk(serves(undefined))
  t.notOk(serves(worker(1, booting)))
  t.ok(serves(worker(1, ready)), 'a queue worker')
  t.ok(serves(worker(1, ready, { [WEB]: open })))
  t.notOk(serves(worker(1, ready, { [WEB]: open, [ADMIN]: opening })))
  t.ok(accepts(worker(1, ready, { [WEB]: open }), WEB))
  t.notOk(accepts(worker(1, ready, { [WEB]: opening }), WEB))
  t.ok(fills(slotOf(1, [WEB]), worker(2, ready, { [WEB]: open })))
  t.notOk(fills(slotOf(1, [WEB, ADMIN]), worker(2, ready, { [WEB]: open })))
  t.notOk(fills(slotOf(1, [WEB]), undefined))
})

t.test('spare: it can go and no listener loses its last worker', async (t) => {
  const one = worker(1, ready, { [WEB]: open })
  const two = worker(2, ready, { [WEB]: open })
  const old = { ...worker(3, ready, { [WEB]: open }), generation: 0 }
  const candidate = { ...worker(4, ready, { [WEB]: open }), generation: 2 }
  const whole = (current: Generation, workers: readonly Worker[], top: Top = steady) => ({
    ...{ top, generations: new Map([[current.id, current]]), workers: byId(...workers) },
  })
  const pair = generation([slotOf(1, [WEB]), slotOf(2, [WEB])])
  t.ok(isSpare(whole(pair, [one, two]), one))
  t.notOk(
    isSpare(whole(pair, [one, worker(2, ready, { [WEB]: opening })]), one),
    'the other one does not accept yet',
  )
  t.ok(isSpare(whole(pair, [one, old]), old), 'one of the current generation accepts')
  t.notOk(isSpare(whole(pair, [one, old]), one), 'an old one does not count')
  t.ok(isSpare(whole(pair, [one, candidate], shifting), one), 'a candidate that accepts does')
  const dead = generation([vacant([WEB])])
  t.notOk(isSpare(whole(dead, [old]), old), 'the only worker of the current generation has died')
  t.ok(
    isSpare(whole(generation([vacant([ADMIN])]), [old]), old),
    'the current generation never listened there',
  )
  const closed = generation([slotOf(1, [WEB])])
  t.ok(isSpare(whole(closed, [worker(1, ready), old]), old), 'its app has closed that server')
  t.ok(isSpare(whole(pair, [old], stopping), old), 'in a stop')
})

t.test('what the slots of a new generation must listen on', async (t) => {
  const wants = (slots: readonly Slot[], workers: Worker[], count: number, drop = none): ListenerKey[][] =>
    wantsOf(generation(slots), byId(...workers), count, drop).map((keys) => [...keys].sort())
  const both = worker(1, ready, { [WEB]: open, [ADMIN]: open })
  const web = worker(2, ready, { [WEB]: open })
  const slots = [slotOf(1, [WEB, ADMIN]), slotOf(2, [WEB])]
  t.same(wants(slots, [both, web], 2), [[WEB, ADMIN].sort(), [WEB]], 'slot by slot')
  t.same(
    wants(slots, [both, web], 3),
    [[WEB, ADMIN].sort(), [WEB], [WEB]],
    'a new one: what all have in common',
  )
  t.same(wants([slotOf(2, [WEB])], [web], 2), [[WEB], []], 'beside a single one: who knows')
  t.same(wants(slots, [both, web], 2, new Set([ADMIN])), [[WEB], [WEB]], 'but for what is dropped')
  t.same(
    wants([vacant([WEB, ADMIN]), slotOf(2, [WEB])], [web], 1),
    [[WEB, ADMIN].sort()],
    'as before its death',
  )
  t.same(
    wants([slotOf(1, [WEB, ADMIN])], [worker(1, booting)], 1),
    [[WEB, ADMIN].sort()],
    'also while it boots again',
  )
  t.same(
    wants([slotOf(1, [WEB, ADMIN])], [worker(1, ready, { [WEB]: open })], 1),
    [[WEB]],
    'it closed the other',
  )
  const reversed = [slotOf(2, [WEB]), slotOf(1, [WEB, ADMIN])]
  t.same(
    wants(reversed, [both, web], 1),
    [[WEB, ADMIN].sort()],
    'a slot less: what only that one listened on',
  )
  t.same(wants(reversed, [both, web], 1, new Set([ADMIN])), [[WEB]])
  t.same(wants([slotOf(1, [])], [worker(1, ready)], 2), [[], []], 'a queue worker wants nothing')
  t.same(listensOn(vacant(null), byId()), [])
})

t.test('the state as status tells it', async (t) => {
  const state = (top: Top): string => stateOf({ ...initialState, top })
  t.same([initialState.top, steady, shifting, stopping, { k: 'ended' as const }].map(state), [
    'starting',
    'steady',
    'rolling-out',
    'stopping',
    'stopping',
  ])
})
