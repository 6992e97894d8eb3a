/**
 * What the drives (systemd-*drive.mjs) have in common: they run inside systemd-sandbox as root, and each tells stories of
 * usr2 under a real systemd. A story installs usr2 as an administrator would, has traffic on, and states what was lost.
 *
 * Plain JavaScript without dependencies, because it runs where there is no node_modules. Ports may be fixed: the sandbox has
 * a network of its own. The test's side is systemd.ts.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import * as fs from 'node:fs'
import http from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

/** Of the checkout, with dist/ and package.json. */
const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const UNITS = '/etc/systemd/system'
/** Where `npm install --global` puts it. */
export const USR2 = '/usr/local/lib/node_modules/usr2'

// ---- Rows: what the test judges -----------------------------------------------------------------------------------------

/**
 * Tells one story, and prints how it went as one line of JSON. Its first failed assertion ends it; the drive goes on.
 *
 * @param story gets `say(text)`, for figures that the test shows
 * @param since the systemd from which on it can be told; before, it is skipped, with the reason
 */
export async function row(name, story, { since = 0 } = {}) {
  if (systemdVersion < since) {
    print({ row: name, skip: `NOT TESTED: needs systemd ${since}, this is ${systemdVersion}` })
    return
  }
  const notes = []
  const startedAt = performance.now()
  let failure = null
  try {
    await story((text) => notes.push(text))
  } catch (error) {
    failure = error.stack
  }
  print({ row: name, notes, failure, tookMs: Math.round(performance.now() - startedAt) })
}

/**
 * To be called after the last row: without it the test takes the drive for broken off. Ends the process, in which the
 * traffic of a row that failed may still be on.
 */
export const end = () => print({ end: true }, () => process.exit())

const print = (line, done) => process.stdout.write(`${JSON.stringify(line)}\n`, done)

// ---- Programs -----------------------------------------------------------------------------------------------------------

/** Never rejects: the exit status is one of the facts. Asynchronous, so that the traffic goes on. */
export function run(program, ...args) {
  return new Promise((resolve) => {
    execFile(program, args, { timeout: 60_000, maxBuffer: 2 ** 26 }, (error, stdout, stderr) =>
      resolve({ status: error ? (error.code ?? error.signal) : 0, text: (stdout + stderr).trim(), stdout }),
    )
  })
}

export const systemctl = (...args) => run('systemctl', ...args)
export const systemdText = (await systemctl('--version')).text.split('\n')[0]
export const systemdVersion = Number(/\d+/.exec(systemdText)[0])

/** @throws what it said, unless its exit status is 0 */
export async function succeeds(running) {
  const { status, text } = await running
  assert.equal(status, 0, text)
  return text
}

/** The first truthy value of `fact`, asked every 10 ms. */
export async function until(what, fact, timeoutMs = 20_000) {
  const end = performance.now() + timeoutMs
  for (;;) {
    const value = await fact()
    if (value) return value
    if (performance.now() > end) throw new Error(`gave up after ${timeoutMs} ms waiting for ${what}`)
    await sleep(10)
  }
}

/** Entries of the journal by a filter of journalctl, as objects. */
export async function journal(...filter) {
  const { stdout } = await run('journalctl', '--no-pager', '-o', 'json', ...filter)
  const lines = stdout.split('\n').filter((line) => line.startsWith('{'))
  return lines.map((line) => JSON.parse(line))
}

// ---- Installation -------------------------------------------------------------------------------------------------------

/** usr2 as `npm install --global` leaves it, and the units as we ship them. */
export async function installUsr2() {
  fs.cpSync(`${ROOT}/dist`, `${USR2}/dist`, { recursive: true })
  fs.cpSync(`${ROOT}/package.json`, `${USR2}/package.json`)
  fs.chmodSync(`${USR2}/dist/cli.mjs`, 0o755)
  fs.rmSync('/usr/local/bin/usr2', { force: true })
  fs.symlinkSync(`${USR2}/dist/cli.mjs`, '/usr/local/bin/usr2')
  fs.mkdirSync('/etc/usr2')
  for (const name of ['usr2@.service', 'usr2@.socket'])
    fs.cpSync(`${ROOT}/systemd/${name}`, `${UNITS}/${name}`)
  // The checkout may be closed to others; the service's user is one of them.
  await run('chmod', '-R', 'a+rX', USR2, '/etc/usr2')
  await systemctl('daemon-reload')
}

export const unit = (name, text) => {
  fs.mkdirSync(`${UNITS}/${name}`.replace(/\/[^/]*$/, ''), { recursive: true })
  fs.writeFileSync(`${UNITS}/${name}`, text)
}

/**
 * Answers with facts about itself. `/slow` takes 200 ms, `/held` says its head at once and the rest when `HOME/held` does not
 * exist any more, `/hang` blocks the event loop for good, as does a start while `HOME/hang` exists.
 */
const program = ({ version, home, places, listenAfterMs = 0, prologue = '' }) => `${prologue}
const http = require('node:http')
const { existsSync } = require('node:fs')
const hang = () => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)
if (existsSync(${JSON.stringify(`${home}/hang`)})) hang()
console.log('version ${version} has been started')
const seen = Object.keys(process.env).filter((key) => /^(NOTIFY_|WATCHDOG_|LISTEN_)/.test(key))
const facts = JSON.stringify({
  ...{ version: '${version}', generation: Number(process.env.USR2_GENERATION), pid: process.pid, master: process.ppid },
  ...{ uid: process.getuid(), seen, args: process.argv.slice(2) },
})
const answer = ({ url }, response) => {
  if (url === '/hang') return hang()
  const say = () => response.end(facts)
  if (url === '/slow') return setTimeout(say, 200)
  if (url !== '/held') return say()
  response.write(' ')
  const look = setInterval(() => {
    if (existsSync(${JSON.stringify(`${home}/held`)})) return
    clearInterval(look)
    say()
  }, 20)
}
setTimeout(() => {
  for (const where of ${JSON.stringify(places)}) http.createServer(answer).listen(where.socketPath ?? where)
}, ${listenAfterMs})
`

/** An app with its releases and the link to the one that is deployed, and its instance of the unit. */
export class App {
  /**
   * @param options `home`: of the releases; `places`: what it listens on; `config`: more of /etc/usr2/NAME.json, or null:
   *   none; `service`: lines for a drop-in, of its section [Service]
   */
  constructor(name, { home = `/srv/${name}`, places = [{ host: '127.0.0.1', port: 8080 }], ...more } = {}) {
    const { config = {}, service = [] } = more
    this.name = name
    this.unit = `usr2@${name}.service`
    this.home = home
    this.places = places
    /** What the administrator types. */
    this.client = ['usr2']
    this.runtimeDirectory = `/run/usr2/${name}`
    fs.mkdirSync(`${home}/releases`, { recursive: true })
    this.release('1')
    this.deploy('1')
    if (config !== null) this.configure(config)
    if (service.length > 0) unit(`${this.unit}.d/test.conf`, `[Service]\n${service.join('\n')}\n`)
  }

  /** For the next start, or reload. */
  configure(more) {
    const { home } = this
    const config = { entry: `${home}/current/server.js`, cwd: `${home}/current`, workers: 2, ...more }
    fs.writeFileSync(`/etc/usr2/${this.name}.json`, JSON.stringify(config))
  }

  /** `prologue`: code before all other; `listenAfterMs`: how long it takes to listen. */
  release(version, how = {}) {
    const { home, places } = this
    fs.mkdirSync(`${home}/releases/${version}`, { recursive: true })
    fs.writeFileSync(`${home}/releases/${version}/server.js`, program({ version, home, places, ...how }))
  }

  /** As deployments do: the link is replaced by rename(2), it is never absent. */
  deploy(version) {
    fs.symlinkSync(`releases/${version}`, `${this.home}/next`)
    fs.renameSync(`${this.home}/next`, `${this.home}/current`)
  }

  /** A version that has just been written, by `systemctl reload`. */
  reloadTo(version, how) {
    this.release(version, how)
    this.deploy(version)
    return this.systemctl('reload')
  }

  /** Started by hand, it starts: the limit of starts in a minute is for those by `Restart=`. */
  async start() {
    await systemctl('daemon-reload')
    await this.systemctl('reset-failed')
    return this.systemctl('start')
  }

  systemctl(verb, ...args) {
    return systemctl(verb, ...args, this.unit)
  }

  usr2(command, ...args) {
    return run(...this.client, command, '--name', this.name, ...args)
  }

  async status() {
    const { status, text, stdout } = await this.usr2('status', '--json')
    assert.equal(status, 0, text)
    return JSON.parse(stdout)
  }

  async property(name) {
    return (await this.systemctl('show', '--value', '-p', name)).text
  }

  async mainPid() {
    return Number(await this.property('MainPID'))
  }

  /** The log of its masters, as objects. */
  async log() {
    const entries = await journal('-u', this.unit)
    return entries.flatMap(({ MESSAGE }) => {
      const isOurs = typeof MESSAGE === 'string' && MESSAGE.startsWith('{')
      return isOurs ? [JSON.parse(MESSAGE)] : []
    })
  }

  /** Until a process of its has said that. */
  says(text) {
    return until(`"${text}" in the journal`, async () => {
      const entries = await journal('-u', this.unit)
      return entries.some(({ MESSAGE }) => String(MESSAGE).includes(text))
    })
  }

  /** Pids in its cgroup. */
  async processes() {
    const cgroup = await this.property('ControlGroup')
    return cgroup === '' ? [] : processesIn(`/sys/fs/cgroup${cgroup}`)
  }

  /** A master and its workers, and nobody else: no old one that drains, no helper. */
  async settles(processes = 3) {
    await until(`${processes} processes`, async () => (await this.processes()).length === processes)
    // The word of it may still be on its way.
    await until('the unit to be active', async () => (await this.property('ActiveState')) === 'active')
  }

  /** Four requests whose heads have come, and that end when they are let go. */
  async hold() {
    const file = `${this.home}/held`
    fs.writeFileSync(file, '')
    const held = []
    const begin = () => new Promise((head) => held.push(this.get('/held', false, head).finally(head)))
    await Promise.all(Array.from({ length: 4 }, begin))
    const ended = Promise.allSettled(held)
    return {
      letGo: () => fs.rmSync(file, { force: true }),
      /** The errors of those that were not answered; settles when the last one has ended. */
      lost: async () =>
        (await ended).flatMap(({ status, reason }) => (status === 'rejected' ? [nameOf(reason)] : [])),
    }
  }

  /**
   * `systemctl stop`, or `restart`, with four requests in flight that end only when it is under way, and are answered.
   *
   * @param more units to be stopped with it
   */
  async endsAnswering(verb, ...more) {
    const held = await this.hold()
    const ending = this.systemctl(verb, ...more)
    await until('the stop', async () => (await this.property('ActiveState')) === 'deactivating')
    held.letGo()
    await succeeds(ending)
    assert.deepEqual(await held.lost(), [], 'what was in flight was answered')
  }

  /** Stops it as {@link endsAnswering}, and asserts that nothing is left. */
  async stopsClean(...more) {
    await this.settles()
    const before = await this.footprint()
    await this.endsAnswering('stop', ...more)
    await this.leftNothing(before)
  }

  /**
   * Something kills the master and all workers, and systemd starts the service again: what was in flight is lost, and what
   * connects once the killed processes have gone is not.
   *
   * @param kill gets the master's pid
   * @returns the traffic beside
   */
  async losesWhatIsInFlight(say, kill) {
    const traffic = this.traffic({ slow: 4 })
    await traffic.flows()
    const { master } = await this.get('/')
    assert.equal(master, await this.mainPid())
    const pids = await this.processes()
    const held = await this.hold()
    await kill(master)
    const goneAt = await gone(pids)
    await this.answers('by another master', (answer) => answer.master && answer.master !== master)
    await traffic.stop()
    say(`beside 4 long requests: ${traffic}`)
    assert.deepEqual(await held.lost(), Array(4).fill('ECONNRESET'), 'those that were in flight for sure')
    assert.equal(traffic.lostSince(goneAt), 0, 'lost, though the killed processes had gone before')
    assert.equal(await this.property('NRestarts'), '1')
    return traffic
  }

  /** Where it may leave something, for {@link leftNothing}. */
  async footprint() {
    return { cgroup: await this.property('ControlGroup'), pids: await this.processes() }
  }

  /** After a stop. */
  async leftNothing({ cgroup, pids }) {
    assert.equal(await this.property('ActiveState'), 'inactive')
    assert.equal(await this.property('Result'), 'success')
    const alive = pids.filter((pid) => fs.existsSync(`/proc/${pid}`))
    assert.deepEqual(alive, [], 'no process is left')
    assert.ok(!fs.existsSync(`/sys/fs/cgroup${cgroup}`), 'no cgroup is left')
    assert.ok(!fs.existsSync(this.runtimeDirectory), 'no runtime directory is left')
    const isOfOthers = (name) => name.startsWith('systemd-private-') && !name.includes(this.unit)
    const ofOurs = fs.readdirSync('/tmp').filter((name) => !isOfOthers(name))
    assert.deepEqual(ofOurs, [], 'nothing is left in /tmp')
    const alien = (await journal('_PID=1')).filter(({ MESSAGE }) => /which is not our child/.test(MESSAGE))
    assert.deepEqual(alien, [], 'systemd never took the main process for an alien')
  }

  // ---- Traffic ----------------------------------------------------------------------------------------------------------

  get(path, agent, onHead) {
    return get(this.places[0], path, agent, onHead)
  }

  /** What its newest connections are answered by, asked until `isIt`. An answer that fails is an empty one. */
  answers(what, isIt, where = this.places[0]) {
    return until(`an answer ${what}`, async () => {
      const answer = await get(where).catch(() => ({}))
      return isIt(answer) && answer
    })
  }

  serves(version) {
    return this.answers(`by version ${version}`, (answer) => answer.version === version)
  }

  traffic(clients) {
    return new Traffic(this.places, clients)
  }
}

/** When they had gone, by `performance.now()`. */
export async function gone(pids) {
  await until(`${pids.join(', ')} to be gone`, () => pids.every((pid) => !fs.existsSync(`/proc/${pid}`)))
  return performance.now()
}

const processesIn = (cgroup) => {
  const path = `${cgroup}/cgroup.procs`
  const text = fs.existsSync(path) ? fs.readFileSync(path, 'utf8').trim() : ''
  return text === '' ? [] : text.split('\n').map(Number)
}

// ---- Traffic ------------------------------------------------------------------------------------------------------------

/** One request, no retry. `onHead` is called when the head of the response is here. */
export function get(where, path = '/', agent = false, onHead = () => {}) {
  return new Promise((resolve, reject) => {
    const request = http.get({ ...where, path, agent, timeout: 60_000 }, (response) => {
      onHead()
      let body = ''
      response.on('data', (chunk) => (body += chunk))
      response.on('error', reject)
      response.on('end', () => {
        if (response.statusCode !== 200) reject(new Error(`status ${response.statusCode}`))
        else resolve(JSON.parse(body))
      })
    })
    request.on('timeout', () => request.destroy(new Error('no answer in 60 s')))
    request.on('error', (error) => reject(Object.assign(error, { onKept: request.reusedSocket })))
  })
}

const nameOf = (error) => error.code ?? error.message

/** The kernel said at once that nobody listens: the request never reached anybody. */
const REFUSED = ['ECONNREFUSED', 'ENOENT']

/**
 * Clients that ask until they are stopped, one request at a time each, no retry, with a little time to think. At the first
 * place four that keep their connection and four that open one for each request, at each further one four of the latter;
 * and `slow` ones whose requests take 200 ms, so that there is always something in flight.
 */
export class Traffic {
  requests = 0
  inFlight = 0
  longestMs = 0
  versions = {}
  /** By error, of those that nobody accepted, and of those that somebody did. */
  refused = {}
  lost = {}
  /** When those had begun that were lost on a connection of their own. */
  #lostFrom = []
  /** Of the lost ones, those on a connection that had been used before: a worker had accepted it for sure. */
  lostOnKept = 0
  #on = true
  #clients

  constructor([first, ...others], { slow = 0 } = {}) {
    const times = (count, client) => Array.from({ length: count }, client)
    const kept = () => new http.Agent({ keepAlive: true, maxSockets: 1 })
    this.#clients = [
      ...times(4, () => this.#client(first, '/', kept())),
      ...times(4, () => this.#client(first, '/', false)),
      ...others.flatMap((where) => times(4, () => this.#client(where, '/', false))),
      ...times(slow, () => this.#client(first, '/slow', false)),
    ]
  }

  async #client(where, path, agent) {
    while (this.#on) {
      const from = performance.now()
      this.inFlight++
      try {
        const { version } = await get(where, path, agent)
        this.versions[version] = (this.versions[version] ?? 0) + 1
        this.longestMs = Math.max(this.longestMs, Math.round(performance.now() - from))
      } catch (error) {
        const what = nameOf(error)
        const isRefused = REFUSED.includes(what)
        const kind = isRefused ? this.refused : this.lost
        kind[what] = (kind[what] ?? 0) + 1
        if (error.onKept) this.lostOnKept++
        else if (!isRefused) this.#lostFrom.push(from)
      }
      this.inFlight--
      this.requests++
      await sleep(5 + Math.random() * 10)
    }
    if (agent) agent.destroy()
  }

  /** Until `count` more have been answered or failed: the traffic is under way. */
  async flows(count = 50) {
    const goal = this.requests + count
    await until(`${count} requests`, () => this.requests >= goal)
  }

  /**
   * So many of the lost ones had connected after that, by `performance.now()`. A connection from before may be used once
   * more, until this process has heard of its end.
   */
  lostSince(time) {
    return this.#lostFrom.filter((from) => from > time).length
  }

  toString() {
    const { requests, refused, lost, longestMs } = this
    const of = (kind) => (sum(kind) === 0 ? '0' : `${sum(kind)} ${JSON.stringify(kind)}`)
    return `${requests} requests, refused ${of(refused)}, lost ${of(lost)}, the longest ${longestMs} ms`
  }

  /** After some more of it. */
  async stop() {
    await this.flows()
    this.#on = false
    await Promise.all(this.#clients)
    return this
  }

  /** Stops, and asserts that none was lost or refused. */
  async lostNone(say) {
    await this.stop()
    say(String(this))
    assert.deepEqual(
      { refused: this.refused, lost: this.lost },
      { refused: {}, lost: {} },
      '0 lost, 0 refused',
    )
  }
}

const sum = (counts) => Object.values(counts).reduce((a, b) => a + b, 0)
