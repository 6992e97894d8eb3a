import t from 'tap'

import {
  ABORT,
  commandUsage,
  mainUsage,
  parseArguments,
  PAUSE,
  PROMOTE,
  RELOAD,
  RESUME,
  ROLLBACK,
  SCALE,
  STATUS as STATUS_COMMAND,
} from '../../src/cli/args.ts'
import { ASCII, marksFor, renderRollout, UNICODE } from '../../src/cli/rollout-text.ts'
import { isTerminal, Screen } from '../../src/cli/screen.ts'
import { readySlots, renderStatus } from '../../src/cli/status.ts'
import { formatBytes } from '../../src/cli/text.ts'
import { watchStatus } from '../../src/cli/watch.ts'
import type { ProbeStatus, RolloutStatus, Status, WorkerStatus } from '../../src/master/face.ts'
import { fakeMaster, usr2 } from '../helpers/client.ts'
import {
  DRAINED,
  progress,
  PROMOTED,
  ROLLED_BACK,
  ROLLING_OUT,
  ROLLOUT,
  STATUS,
} from '../helpers/fake-face.ts'

const MIB = 1024 * 1024

t.test('a rollout as a person would draw it', async (t) => {
  t.test('a canary in its hold', async (t) => {
    t.equal(
      renderRollout(ROLLOUT, UNICODE).join('\n'),
      `reload r7: generation 8 -> 9, for 3 min
  gen 8 ████████████████░░░░ gen 9   4 of 5 workers | 1 of 5
  ✓ 20 % of new connections (1 of 5 workers, 10 % asked for)
  ▸ analyse 5 times 1 min: errorRate < 1%, p99 < 1.5x, loopDelay < 50ms
  · 40 % of new connections (2 of 5 workers, 30 % asked for)
  · hold 5 min
  · 100 % of new connections (4 of 4 workers)
  waits for the next measurement (at most 41.0 s more)
  analysis: 3 of 5 measurements, 1 failed (at most 2 may)
    LIMIT             CANDIDATE  CURRENT  HOLDS
    errorRate < 1%        0.2 %    0.1 %  yes
    p99 < 1.5x           212 ms   120 ms  no
    loopDelay < 50ms          -     4 ms  -`,
    )
  })

  t.test('paused, where the terminal has no UTF-8, and before the first measurement', async (t) => {
    const { analysis } = ROLLOUT
    if (analysis === null) throw new Error('no analysis')
    t.equal(
      renderRollout({
        ...ROLLOUT,
        kind: 'rollback',
        paused: 'p99 < 1.5x does not hold:\n\u001b[2J212 ms, current 120 ms',
        analysis: { ...analysis, taken: 0, of: 1, failed: 0, findings: [] },
      }).join('\n'),
      `rollback r7: generation 8 -> 9, for 3 min
  gen 8 ################.... gen 9   4 of 5 workers | 1 of 5
  x 20 % of new connections (1 of 5 workers, 10 % asked for)
  > analyse 5 times 1 min: errorRate < 1%, p99 < 1.5x, loopDelay < 50ms
  - 40 % of new connections (2 of 5 workers, 30 % asked for)
  - hold 5 min
  - 100 % of new connections (4 of 4 workers)
  paused: p99 < 1.5x does not hold: \\x1b[2J212 ms, current 120 ms
    usr2 resume: goes on   usr2 promote: skips what is paused   usr2 abort: back to before
  analysis: 0 of 1 measurement, 0 failed (at most 2 may)`,
    )
  })

  t.test('before there is a candidate', async (t) => {
    const early: RolloutStatus = {
      ...ROLLOUT,
      candidate: null,
      sinceMs: 40,
      steps: [],
      waitsFor: 'for configuration and code to be read',
      accepting: { current: 1, candidate: 0 },
      analysis: null,
    }
    t.equal(
      renderRollout(early, UNICODE).join('\n'),
      `reload r7: from generation 8, for 40 ms
  gen 8 ████████████████████   1 worker
  waits for configuration and code to be read`,
    )
  })

  t.test('the bar: 20 cells, and whoever accepts has one of them', async (t) => {
    const cells = (current: number, candidate: number): readonly [number, number] => {
      const [, bar = ''] = renderRollout({ ...ROLLOUT, accepting: { current, candidate } })
      return [bar.split('#').length - 1, bar.split('.').length - 1]
    }
    t.strictSame(cells(4, 0), [20, 0])
    t.strictSame(cells(0, 4), [0, 20])
    t.strictSame(cells(3, 1), [15, 5])
    t.strictSame(cells(999, 1), [19, 1])
    t.strictSame(cells(1, 999), [1, 19])
    t.strictSame(cells(0, 0), [20, 0], 'nobody: nothing has gone over yet')
  })

  t.test('which signs a terminal has', async (t) => {
    t.equal(marksFor({ LANG: 'en_GB.UTF-8' }), UNICODE)
    t.equal(marksFor({ LC_CTYPE: 'C.utf8', LANG: 'C' }), UNICODE)
    t.equal(marksFor({ LC_ALL: 'C', LANG: 'en_GB.UTF-8' }), ASCII, 'LC_ALL wins')
    t.equal(marksFor({ LC_ALL: '', LANG: 'C.UTF-8' }), UNICODE, 'an empty one is not set')
    t.equal(marksFor({}), ASCII)
    for (const signs of [ASCII, UNICODE]) {
      for (const sign of Object.values(signs)) t.equal([...sign].length, 1)
    }
  })
})

t.test('the status of a rollout', async (t) => {
  const [current] = STATUS.generations
  const worker = current?.workers[0]
  if (current === undefined || worker === undefined) throw new Error('no worker')
  const passing: ProbeStatus = { probe: 'readiness', standing: 'passing', why: 'timed out once' }
  const workers: readonly WorkerStatus[] = [
    { ...worker, open: [], probes: [{ probe: 'startup', standing: 'passing', why: '' }, passing] },
    {
      ...worker,
      slot: 1,
      probes: [passing, { probe: 'readiness', standing: 'failing', why: 'GET /healthz answered\n503' }].slice(
        1,
      ) as ProbeStatus[],
    },
    {
      ...worker,
      slot: 2,
      rssBytes: 1.5 * 1024 * MIB,
      probes: [
        passing,
        { probe: 'liveness', standing: 'failing', why: 'its event loop did not answer for 3 s' },
      ],
      tired: 'its resident memory is 1.5 GiB, above --max-memory 1 GiB',
    },
  ]
  const booting: WorkerStatus = {
    ...worker,
    pid: null,
    phase: 'booting',
    rssBytes: null,
    probes: [{ probe: 'startup', standing: 'unknown', why: 'connection refused' }],
    waitsFor: 'to become ready (at most 58.1 s more)',
  }
  const status: Status = {
    ...ROLLING_OUT,
    generations: [
      { ...current, workers },
      { ...current, id: 9, role: 'candidate', version: '43', workers: [booting] },
    ],
  }

  t.test('with probes, memory and what is wrong with whom', async (t) => {
    const text = renderStatus(status, UNICODE)
    t.equal(
      text,
      `shop: rolling-out, 4 of 4 slots ready, pid 4242, up 3 h 12 min (usr2 0.1.0, Node 20.20.2)

${renderRollout(ROLLOUT, UNICODE).join('\n')}

generation 8, current: version 42, /srv/releases/42/server.js
  SLOT   PID  PHASE  READY     UP  CONNS  ACTIVE  REQUESTS  CUT      RSS  NOTES
     0  4243  ready  yes    3 min     12       1      1200    0   96 MiB  accepts nothing
     1  4243  ready  no     3 min     12       1      1200    0   96 MiB
        not ready: GET /healthz answered 503
     2  4243  ready  yes    3 min     12       1      1200    0  1.5 GiB
        not alive: its event loop did not answer for 3 s
        tired, to be replaced: its resident memory is 1.5 GiB, above --max-memory 1 GiB

generation 9, candidate: version 43, /srv/releases/42/server.js
  SLOT  PID  PHASE    READY       UP  CONNS  ACTIVE  REQUESTS  CUT  RSS  NOTES
     0    -  booting  not yet  3 min     12       1      1200    0    -
        not started: connection refused
        waits to become ready (at most 58.1 s more)

listeners:
  tcp:[::]:3000  2 workers accepting
`,
    )
    t.ok(
      text.split('\n').every((line) => [...line].length <= 100),
      'within 100 columns',
    )
    t.notMatch(renderStatus(status), /[^\n -~]/, 'plain ASCII where that is all there is')
  })

  t.test('the ways back, once it is over', async (t) => {
    const steady: Status = { ...ROLLING_OUT, state: 'steady', rollout: null }
    t.match(
      renderStatus({ ...steady, lastVerdict: { ...ROLLED_BACK, kind: 'rollback' } }),
      `
ways back:
  generation 7, parked for 8 min more: usr2 rollback
  generation 6, booted again: usr2 rollback --to 6
  generation 5, booted again: usr2 rollback --to 5

last rollback: generation 8 rolled back`,
    )
    t.match(
      renderStatus({ ...steady, parked: null }),
      `
ways back:
  generation 7, booted again: usr2 rollback
  generation 6, booted again: usr2 rollback --to 6
`,
    )
    t.notMatch(renderStatus({ ...steady, parked: null, bootable: [] }), 'ways back')
    t.notMatch(renderStatus(ROLLING_OUT), 'ways back', 'during a rollout it is usr2 abort')
  })

  t.test('a generation that is parked, and one without a version', async (t) => {
    const parked = {
      ...current,
      id: 7,
      role: 'parked' as const,
      version: '',
      workers: [{ ...worker, open: [] }],
    }
    t.match(
      renderStatus({ ...ROLLING_OUT, generations: [parked] }),
      /\ngeneration 7, parked: \/srv\/releases\/42\/server\.js\n.*\n {5}0 .* 96 MiB\n/,
    )
    const queue: Status = { ...STATUS, listeners: [], generations: [{ ...parked, role: 'current' }] }
    t.notMatch(renderStatus(queue), 'accepts nothing', 'an app without listeners does not')
  })

  t.test('is not degraded while the candidate has a share', async (t) => {
    const share = (current: number, candidate: number): Status => ({
      ...ROLLING_OUT,
      ready: current,
      rollout: { ...ROLLOUT, accepting: { current, candidate } },
    })
    t.equal(readySlots(share(3, 2)), 4)
    t.match(renderStatus(share(3, 2)), 'rolling-out, 4 of 4 slots ready')
    t.equal(readySlots(share(2, 1)), 3)
    t.equal(readySlots({ ...share(0, 0), ready: 4 }), 4, 'without listeners nobody accepts')
    t.equal(readySlots({ ...STATUS, ready: 1 }), 1)
  })

  t.test('bytes', async (t) => {
    t.strictSame([0, 96.4 * MIB, 1023 * MIB, 1024 * MIB, 12_345 * MIB].map(formatBytes), [
      '0 MiB',
      '96 MiB',
      '1023 MiB',
      '1.0 GiB',
      '12.1 GiB',
    ])
  })
})

/** A terminal as far as a {@link Screen} needs one. It throws at what it does not know. */
class Emulator {
  readonly lines: string[] = ['']
  #row = 0
  #wraps = true
  readonly rows: number
  readonly #columns: number

  constructor(rows = 24, columns = 100) {
    this.rows = rows
    this.#columns = columns
  }

  write(text: string): void {
    // eslint-disable-next-line no-control-regex
    for (const [token] of text.matchAll(/\u001b\[\?7[lh]|\u001b\[\d*[AJK]|[^\u001b]/gsu)) this.#take(token)
    const unknown = text.replace(/\u001b\[\?7[lh]|\u001b\[\d*[AJK]|[^\u001b]/gsu, '')
    if (unknown !== '') throw new Error(`no terminal obeys ${JSON.stringify(unknown)}`)
  }

  #take(token: string): void {
    const line = this.lines[this.#row] ?? ''
    if (token === '\n') {
      this.#row++
      this.lines[this.#row] ??= ''
      this.#column = 0
    } else if (token === '\u001b[?7l') this.#wraps = false
    else if (token === '\u001b[?7h') this.#wraps = true
    else if (token === '\u001b[K') this.lines[this.#row] = line.slice(0, this.#column)
    else if (token === '\u001b[J') {
      this.lines.length = this.#row + 1
      this.lines[this.#row] = line.slice(0, this.#column)
    } else if (token.startsWith('\u001b')) {
      this.#row -= Number(token.slice(2, -1))
      if (this.#row < this.lines.length - this.rows) throw new Error('what has scrolled away is out of reach')
    } else if (this.#column < this.#columns) {
      this.lines[this.#row] = line.slice(0, this.#column) + token + line.slice(this.#column + token.length)
      this.#column += token.length
    } else if (this.#wraps) {
      this.#take('\n')
      this.#take(token)
    }
  }
  #column = 0

  get text(): string {
    return this.lines.join('\n')
  }
}

t.test('a picture drawn in place', async (t) => {
  t.test('again and again, with lines that stay above it', async (t) => {
    const terminal = new Emulator()
    terminal.write('$ usr2 reload --watch\n')
    const screen = new Screen(terminal)
    screen.draw(['one', 'two longer', 'three'])
    screen.draw(['ONE', 'two'])
    t.equal(terminal.text, '$ usr2 reload --watch\nONE\ntwo\n')
    screen.print('told\nin two lines')
    t.equal(terminal.text, '$ usr2 reload --watch\ntold\nin two lines\nONE\ntwo\n')
    screen.draw(['1', '2', '3', '4'])
    t.equal(terminal.text, '$ usr2 reload --watch\ntold\nin two lines\n1\n2\n3\n4\n')
    screen.clear()
    screen.clear()
    terminal.write('verdict\n')
    t.equal(terminal.text, '$ usr2 reload --watch\ntold\nin two lines\nverdict\n')
  })

  t.test('wider than the terminal: cut, but what stays is whole', async (t) => {
    const terminal = new Emulator(24, 10)
    const screen = new Screen(terminal)
    screen.draw(['0123456789abc', 'x'])
    screen.print('0123456789abc')
    screen.draw(['0123456789abc', 'y'])
    t.equal(terminal.text, '0123456789\nabc\n0123456789\ny\n')
  })

  t.test('higher than the terminal: as much as fits', async (t) => {
    const terminal = new Emulator(5)
    const screen = new Screen(terminal)
    const lines = Array.from({ length: 9 }, (_, i) => `line ${i}`)
    screen.draw(lines)
    screen.draw(lines)
    t.equal(terminal.text, 'line 0\nline 1\nline 2\n(6 lines more)\n')
    screen.draw(lines.slice(0, 4))
    t.equal(terminal.text, 'line 0\nline 1\nline 2\nline 3\n')
    for (const [rows, text] of [
      [1, ''],
      [2, 'line 0\n'],
    ] as const) {
      const tiny = new Emulator(rows)
      const small = new Screen(tiny)
      small.draw(lines)
      small.draw(lines)
      t.equal(tiny.text, text)
    }
  })

  t.test('what a terminal is', async (t) => {
    t.ok(isTerminal({ isTTY: true }, { TERM: 'xterm' }))
    t.notOk(isTerminal({ isTTY: true }, { TERM: 'dumb' }))
    t.notOk(isTerminal({}, { TERM: 'xterm' }))
  })
})

t.test('arguments', async (t) => {
  for (const [given, right] of [
    ['4', '4'],
    ['+1', '+1'],
    ['-1', '-1'],
    ['1024', '1024'],
  ] as const) {
    const { complaints, positional } = parseArguments(SCALE, ['--json', given])
    t.strictSame([complaints, positional], [[], right])
  }
  for (const wrong of ['0', '-0', '+0', '1025', '1.5', 'four', '++1', '1e3', '']) {
    t.match(parseArguments(SCALE, [wrong]).complaints, [/must be a number of workers from 1 to 1024, or a/])
  }
  t.match(parseArguments(SCALE, []).complaints, [/"usr2 scale" needs a number of workers/])
  t.match(parseArguments(SCALE, ['2', '-1']).complaints, [/takes one N\|\+N\|-N, not also "-1"/])
  t.match(parseArguments(SCALE, ['-x', '2']).complaints, [
    /-x is no option of "usr2 scale"/,
    /needs a number/,
  ])
  t.match(parseArguments(PAUSE, ['-1']).complaints, [/-1 is no option of "usr2 pause"/])
  t.match(parseArguments(PAUSE, ['now']).complaints, [/takes no argument "now"/])
  t.match(parseArguments(ROLLBACK, ['--to', '0']).complaints, [/--to is "0"; it must be the number of a gen/])
  t.match(parseArguments(ROLLBACK, ['--to', 'r7']).complaints, [/must be the number of a generation/])
  t.match(parseArguments(ROLLBACK, ['--drop', 'x']).complaints, [/--drop is no option/])

  t.match(commandUsage(SCALE), /^Usage: usr2 scale <N\|\+N\|-N> \[options\]\n(.*\n)+ {2}N\|\+N\|-N +so many/)
  const commands = [RELOAD, ROLLBACK, PROMOTE, PAUSE, RESUME, ABORT, SCALE, STATUS_COMMAND]
  for (const command of commands) {
    t.match(mainUsage(), `\n  ${command.name.padEnd(8)}  ${command.summary}\n`)
    for (const line of commandUsage(command).split('\n')) t.ok(line.length <= 110, line)
  }
})

t.test('usr2 rollback', async (t) => {
  const { path, face } = await fakeMaster(t)
  const back = { ...PROMOTED, kind: 'rollback', current: 7, text: 'generation 8 -> 7 in 3 ms' } as const
  face.onRollback = ({ asker, request }) => {
    asker.progress(progress('generation 7 answers again'))
    asker.verdict(back)
    if (request.wait === 'drained') asker.drained(DRAINED)
  }
  t.match(await usr2(t, ['rollback', '--control', path]).ended, {
    code: 0,
    stdout: 'generation 7 answers again\ngeneration 8 -> 7 in 3 ms\n',
    stderr: '',
  })
  const argv = ['rollback', '--to', '5', '--wait', 'drained', '--json', '--watch', '--control', path]
  const json = await usr2(t, argv).ended
  t.match(
    json.stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as unknown),
    [{ progress: { generation: 8 } }, { verdict: back }, { drained: DRAINED }],
  )
  face.onRollback = ({ asker }) =>
    asker.verdict({ ...back, outcome: 'refused', text: 'its directory is gone' })
  t.match(await usr2(t, ['rollback', '--control', path]).ended, {
    code: 1,
    stdout: '',
    stderr: 'usr2: its directory is gone\n',
  })
  face.onRollback = () => {}
  face.onAbort = ({ asker }, reason) => asker.verdict({ ...back, outcome: 'overtaken', reasons: [reason] })
  t.match(await usr2(t, ['rollback', '--timeout', '50ms', '--control', path]).ended, {
    code: 1,
    stderr: /The rollout was aborted: --timeout 50ms expired/,
  })
  t.strictSame(
    face.rollbacks.map(({ request }) => request),
    [
      { to: null, wait: 'promoted' },
      { to: 5, wait: 'drained' },
      { to: null, wait: 'promoted' },
      { to: null, wait: 'promoted' },
    ],
  )
})

t.test('orders', async (t) => {
  const { path, face } = await fakeMaster(t)
  const orders = [
    [['promote'], { k: 'promote', full: false }, /^promoted: the rollout goes on\n$/],
    [['promote', '--full'], { k: 'promote', full: true }, /^promoted in full/],
    [['pause'], { k: 'pause' }, /^paused, or will be .* usr2 resume goes on\n$/],
    [['resume'], { k: 'resume' }, /^resumed/],
    [['abort'], { k: 'abort' }, /^aborted/],
    [['scale', '5'], { k: 'scale', to: 5 }, /^scaling to 5\n$/],
    [['scale', '+1'], { k: 'scale-by', by: 1 }, /^scaling by \+1\n$/],
    [['scale', '-2'], { k: 'scale-by', by: -2 }, /^scaling by -2\n$/],
    [['scale', '-2', '--json'], { k: 'scale-by', by: -2 }, /^\{"done":true\}\n$/],
  ] as const
  await Promise.all(
    orders.map(async ([argv, , stdout]) =>
      t.match(await usr2(t, [...argv, '--control', path]).ended, { code: 0, stdout, stderr: '' }),
    ),
  )
  const sorted = (all: readonly object[]) => all.map((order) => JSON.stringify(order)).toSorted()
  t.strictSame(sorted(face.orders), sorted(orders.map(([, order]) => order)))
  face.onOrder = (_, done) => done('No rollout runs.')
  const refused = await usr2(t, ['promote', '--control', path]).ended
  t.match(refused, { code: 1, stdout: '', stderr: 'usr2: No rollout runs.\n' })
  const json = await usr2(t, ['promote', '--json', '--control', path]).ended
  t.match(json, { code: 1, stdout: '{"refused":"No rollout runs."}\n', stderr: '' })
  t.equal((await usr2(t, ['pause', '--control', `${path}2`]).ended).code, 3)
  t.match(await usr2(t, ['scale', '0', '--control', path]).ended, { code: 2, stderr: /^usr2: "0" must be a/ })
  t.equal(face.orders.length, orders.length + 2)
})

/** Makes a pipe a terminal, in the eyes of `usr2`. */
const ON_A_TERMINAL = {
  NODE_OPTIONS: '--import=data:text/javascript,process.stdout.isTTY=true',
  TERM: 'xterm',
  LANG: 'C.UTF-8',
}

t.test('--watch', async (t) => {
  t.test('asks again after a question without an answer, or throws', async (t) => {
    const { path, face } = await fakeMaster(t)
    const status = face.status.bind(face)
    const stop = new AbortController()
    const seen: string[] = []
    const show = ({ name }: Status) => {
      seen.push(name)
      // By hello and status: the next question gets no answer.
      face.status = () => {
        throw new Error('not now')
      }
    }
    const lost = (error: Error) => {
      seen.push(error.message)
      face.status = status
      if (seen.length > 3) stop.abort()
    }
    await watchStatus(path, show, { signal: stop.signal, everyMs: 1, lost })
    t.match(seen, ['shop', /not now/, 'shop', /not now/])
    await t.rejects(watchStatus(`${path}2`, show, { signal: new AbortController().signal }), {
      name: 'NoMasterError',
    })
  })

  t.test('a reload: drawn while it runs, told above it, and nothing is left but the verdict', async (t) => {
    const { path, face } = await fakeMaster(t)
    face.current = ROLLING_OUT
    const client = usr2(t, ['reload', '--watch', '--control', path], { env: ON_A_TERMINAL })
    await client.says('▸ analyse 5 times')
    face.current = { ...ROLLING_OUT, rollout: { ...ROLLOUT, paused: 'the operator asked for it' } }
    face.reloads[0]?.asker.progress(progress('paused'))
    await client.says('paused\n')
    await client.says('usr2 resume: goes on')
    const drawn = new Emulator()
    drawn.write(client.said())
    t.match(drawn.text, /^paused\nreload r7: generation 8 -> 9, .*\n {2}gen 8 █/, 'the picture is below')
    face.reloads[0]?.asker.verdict(PROMOTED)
    const { code, stdout, stderr } = await client.ended
    t.match({ code, stderr }, { code: 0, stderr: '' })
    const terminal = new Emulator()
    terminal.write(stdout)
    t.equal(terminal.text, `paused\n${PROMOTED.text}\n`)
  })

  t.test('a reload without a terminal: lines, and no second connection', async (t) => {
    const { path, face } = await fakeMaster(t)
    let asked = 0
    face.status = () => {
      asked++
      return ROLLING_OUT
    }
    face.onReload = ({ asker }) => {
      asker.progress(progress('a line'))
      asker.verdict(PROMOTED)
    }
    const { stdout } = await usr2(t, ['reload', '--watch', '--control', path]).ended
    t.equal(stdout, `a line\n${PROMOTED.text}\n`)
    t.equal(asked, 1, 'by hello alone')
  })

  t.test('a reload whose master is lost', async (t) => {
    const { path, control } = await fakeMaster(t, undefined, ROLLING_OUT)
    const client = usr2(t, ['reload', '--watch', '--control', path], { env: ON_A_TERMINAL })
    await client.says('analyse 5 times')
    await control.close()
    t.match(await client.ended, { code: 4, stderr: /was lost before the verdict/ })
  })

  t.test('the status: drawn until it is interrupted', async (t) => {
    const { path, face } = await fakeMaster(t)
    const client = usr2(t, ['status', '--watch', '--control', path], { env: ON_A_TERMINAL })
    await client.says('shop: steady')
    face.current = ROLLING_OUT
    await client.says('▸ analyse 5 times')
    client.child.kill('SIGINT')
    const { signal, stdout } = await client.ended
    t.equal(signal, 'SIGINT')
    const terminal = new Emulator(60)
    terminal.write(stdout)
    t.match(terminal.text, /^shop: rolling-out, .*\n\nreload r7/, 'the last picture stays')
    t.notMatch(terminal.text, 'steady')
  })

  t.test('the status without a terminal', async (t) => {
    const { path, control } = await fakeMaster(t)
    t.match(await usr2(t, ['status', '--watch', '--control', path]).ended, {
      code: 2,
      stderr: /--watch draws on a terminal, and stdout is none; with --json/,
    })
    const client = usr2(t, ['status', '--watch', '--json', '--control', path])
    await client.says('}\n{')
    await control.close()
    const { code, stdout } = await client.ended
    t.equal(code, 3)
    const lines = stdout.trim().split('\n')
    t.strictSame(JSON.parse(lines[0] ?? ''), STATUS)
    t.match(JSON.parse(lines.at(-1) ?? ''), { error: /no such file/ })

    const reader = await fakeMaster(t)
    const gone = usr2(t, ['status', '--watch', '--json', '--control', reader.path])
    await gone.says('\n')
    gone.child.stdout?.destroy()
    t.match(await gone.ended, { code: 0, stderr: '' }, 'a reader that hangs up ends it')
  })
})
