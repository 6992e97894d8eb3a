/**
 * Runs inside systemd-sandbox as root: an app under usr2 behind a `.socket` unit. Kills the master, restarts the service
 * and reloads it, under traffic on every socket, and prints what it saw as one line of JSON. The test judges.
 *
 * Plain JavaScript without dependencies, because it runs where there is no node_modules.
 *
 *   node systemd-socket-drive.mjs ROOT       ROOT: dist/ and package.json of usr2
 *
 * Ports may be fixed: the sandbox has a network of its own.
 */
import { execFile } from 'node:child_process'
import dgram from 'node:dgram'
import { once } from 'node:events'
import * as fs from 'node:fs'
import http from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'

const UNIT = 'usr2@box.service'
const PATH = '/run/box.sock'
const PLACES = [{ host: '127.0.0.1', port: 8080 }, { host: '::1', port: 8080 }, { socketPath: PATH }]
const [root] = process.argv.slice(2)

/** Never rejects: the exit status is one of the facts. Asynchronous, so that the traffic goes on. */
function run(program, ...args) {
  return new Promise((resolve) => {
    execFile(program, args, (error, stdout, stderr) =>
      resolve({ status: error ? (error.code ?? 1) : 0, text: (stdout + stderr).trim() }),
    )
  })
}
const systemctl = (...args) => run('systemctl', ...args)
const property = async (name, unit = UNIT) => (await systemctl('show', '--value', '-p', name, unit)).text
const journal = async (unit) => (await run('journalctl', '-u', unit, '-o', 'cat', '--no-pager')).text

// ---- Installation -------------------------------------------------------------------------------------------------

const unit = (name, text) => fs.writeFileSync(`/etc/systemd/system/${name}`, text)

async function install() {
  const home = '/usr/local/lib/node_modules/usr2'
  fs.cpSync(`${root}/dist`, `${home}/dist`, { recursive: true })
  fs.cpSync(`${root}/package.json`, `${home}/package.json`)
  fs.chmodSync(`${home}/dist/cli.mjs`, 0o755)
  fs.rmSync('/usr/local/bin/usr2', { force: true })
  fs.symlinkSync(`${home}/dist/cli.mjs`, '/usr/local/bin/usr2')

  fs.mkdirSync('/srv/box', { recursive: true })
  fs.writeFileSync(
    '/srv/box/server.js',
    `const http = require('node:http')
const seen = Object.keys(process.env).filter((key) => /^(NOTIFY_|WATCHDOG_|LISTEN_)/.test(key))
const facts = JSON.stringify({ master: process.ppid, generation: Number(process.env.USR2_GENERATION), seen })
const answer = (request, response) => {
  setTimeout(() => response.end(facts), request.url === '/slow' ? 200 : 0)
}
for (const where of ${JSON.stringify(PLACES)}) http.createServer(answer).listen(where.socketPath ?? where)
const udp = require('node:dgram').createSocket('udp4')
udp.on('message', (data, from) => udp.send(data, from.port, from.address))
udp.bind(8053, '127.0.0.1')
`,
  )
  fs.mkdirSync('/etc/usr2')
  const config = { entry: '/srv/box/server.js', cwd: '/srv/box', workers: 2 }
  for (const name of ['box', 'bad']) fs.writeFileSync(`/etc/usr2/${name}.json`, JSON.stringify(config))
  unit(
    'usr2@box.socket',
    `[Socket]
ListenStream=127.0.0.1:8080
ListenStream=[::1]:8080
ListenStream=${PATH}
ListenDatagram=127.0.0.1:8053
FileDescriptorName=web
`,
  )
  // Not the service's only socket, and of no use to the app.
  unit('spare.socket', `[Socket]\nListenStream=127.0.0.1:9999\nService=${UNIT}\n`)
  // The checkout may be closed to others; the service's user is one of them.
  await run('chmod', '-R', 'a+rX', home, '/srv/box', '/etc/usr2')
  await systemctl('daemon-reload')
}

// ---- Traffic ------------------------------------------------------------------------------------------------------

/** One request on a connection of its own, no retry. */
function get(where, path = '/') {
  return new Promise((resolve, reject) => {
    const request = http.get({ ...where, path, agent: false, timeout: 20_000 }, (response) => {
      let body = ''
      response.on('data', (chunk) => (body += chunk))
      response.on('error', reject)
      response.on('end', () => resolve(JSON.parse(body)))
    })
    request.on('timeout', () => request.destroy(new Error('no answer in 20 s')))
    request.on('error', reject)
  })
}

/**
 * Four clients at each place, a new connection for each request, with a little time to think; and four whose requests
 * take 200 ms, so that there is always something in flight.
 */
function startTraffic() {
  const traffic = { requests: 0, inFlight: 0, errors: {}, longestMs: 0 }
  let on = true
  const client = async (where, path) => {
    while (on) {
      const from = performance.now()
      traffic.inFlight++
      try {
        await get(where, path)
        traffic.longestMs = Math.max(traffic.longestMs, Math.round(performance.now() - from))
      } catch (error) {
        const what = error.code ?? error.message
        traffic.errors[what] = (traffic.errors[what] ?? 0) + 1
      }
      traffic.inFlight--
      traffic.requests++
      await sleep(2 + Math.random() * 4)
    }
  }
  const four = (where, path) => Array.from({ length: 4 }, () => client(where, path))
  const clients = [...PLACES.flatMap((where) => four(where, '/')), ...four(PLACES[0], '/slow')]
  const stop = async () => {
    on = false
    await Promise.all(clients)
    return traffic
  }
  return { traffic, stop }
}

/** Under traffic, until all places have been answered by a generation for which `isNew` holds. */
async function underTraffic(doIt, isNew) {
  const { traffic, stop } = startTraffic()
  await sleep(300)
  const { inFlight } = traffic
  const status = await doIt()
  for (const where of PLACES) while (!isNew(await get(where).catch(() => ({})))) await sleep(20)
  await sleep(300)
  return { ...status, ...(await stop()), inFlight }
}

async function echo(text) {
  const client = dgram.createSocket('udp4')
  client.send(text, 8053, '127.0.0.1')
  const [data] = await Promise.race([once(client, 'message'), sleep(10_000).then(() => ['nothing'])])
  client.close()
  return String(data)
}

/** What listen(2) was told, as the kernel keeps it. */
async function backlogs() {
  const { text } = await run('ss', '-Hltn', 'sport = :8080')
  return text.split('\n').map((row) => Number(row.trim().split(/\s+/)[2]))
}

// ---- The course of things -----------------------------------------------------------------------------------------

const facts = { systemd: (await run('systemctl', '--version')).text.split('\n')[0] }
await install()
facts.verify = await run('systemd-analyze', 'verify', 'usr2@box.socket')
facts.socket = await systemctl('start', 'usr2@box.socket', 'spare.socket')
facts.before = await backlogs()
facts.wasActive = (await systemctl('is-active', UNIT)).text

// The first clients start the service, and wait for it.
const first = await Promise.all(PLACES.map((where) => get(where)))
facts.first = first.map(({ generation }) => generation)
facts.seen = first[0].seen
facts.echo = await echo('hello')
facts.after = await backlogs()

const masterOf = async () => Number(await property('MainPID'))
const reload = () => systemctl('reload', UNIT)
facts.reload = await underTraffic(reload, ({ generation }) => generation === 2)
facts.afterReload = await backlogs()

let master = await masterOf()
facts.kill = await underTraffic(
  () => {
    process.kill(master, 'SIGKILL')
    return { status: 0, text: '' }
  },
  (answer) => answer.master !== undefined && answer.master !== master,
)
facts.restarts = await property('NRestarts')
const unclaimed = async () =>
  (await journal(UNIT)).split('\n').filter((line) => line.includes('does not listen on'))
for (let tries = 0; tries < 100 && (await unclaimed()).length === 0; tries++) await sleep(100)
facts.unclaimed = await unclaimed()
master = await masterOf()
facts.restart = await underTraffic(
  () => systemctl('restart', UNIT),
  (answer) => answer.master !== undefined && answer.master !== master,
)

// Stopped, the sockets are still systemd's: the next client starts the service anew.
facts.stop = await systemctl('stop', UNIT)
facts.pathAfterStop = fs.existsSync(PATH)
facts.again = (await get(PLACES[2])).generation
await systemctl('stop', 'usr2@box.socket', 'spare.socket', UNIT)

// ---- What cannot be served ----------------------------------------------------------------------------------------

facts.bad = {}
fs.mkdirSync('/etc/systemd/system/usr2@bad.service.d')
unit('usr2@bad.service.d/test.conf', '[Service]\nRestart=no\n')
for (const [kind, line] of Object.entries({
  'unix datagram': 'ListenDatagram=/run/bad.sock',
  seqpacket: 'ListenSequentialPacket=/run/bad.sock',
  fifo: 'ListenFIFO=/run/bad.fifo',
  netlink: 'ListenNetlink=kobject-uevent',
})) {
  unit('usr2@bad.socket', `[Socket]\n${line}\nFileDescriptorName=oddity\n`)
  await systemctl('daemon-reload')
  await systemctl('start', 'usr2@bad.socket')
  const { status } = await systemctl('start', 'usr2@bad.service')
  const said = (await journal('usr2@bad.service')).split('\n').filter((text) => text.startsWith('usr2: '))
  facts.bad[kind] = { status, exit: await property('ExecMainStatus', 'usr2@bad.service'), said: said.at(-1) }
  await systemctl('stop', 'usr2@bad.socket', 'usr2@bad.service')
  await systemctl('reset-failed')
}
console.log(JSON.stringify(facts))
