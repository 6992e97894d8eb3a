/**
 * Runs inside systemd-sandbox as root: installs usr2 as an administrator would, takes an app through start, a good
 * and a broken reload, and stop, under traffic, and prints what it saw as one line of JSON. The test judges.
 *
 * Plain JavaScript without dependencies, because it runs where there is no node_modules.
 *
 *   node systemd-drive.mjs ROOT DROP-IN [HOME USER ARG...]
 *
 *   ROOT: dist/ and package.json of usr2; DROP-IN: text for the unit, or ''. With HOME the unit is not the one as shipped
 *   but `usr2 systemd install ARG...`, for the app in HOME that belongs to USER, and nobody else can read HOME if there is one.
 *
 * The port may be fixed: the sandbox has a network of its own.
 */
import { execFile } from 'node:child_process'
import * as fs from 'node:fs'
import http from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'

const UNIT = 'usr2@box.service'
const PORT = 8080
const [root, dropIn, home = '/srv/box', user = '', ...installArgs] = process.argv.slice(2)

/** Never rejects: the exit status is one of the facts. Asynchronous, so that the traffic goes on. */
function run(program, ...args) {
  return new Promise((resolve) => {
    execFile(program, args, (error, stdout, stderr) =>
      resolve({ status: error ? (error.code ?? 1) : 0, text: (stdout + stderr).trim() }),
    )
  })
}
const systemctl = (...args) => run('systemctl', ...args)
const property = async (name) => (await systemctl('show', '--value', '-p', name, UNIT)).text

// ---- Installation -------------------------------------------------------------------------------------------------

async function install() {
  const code = '/usr/local/lib/node_modules/usr2'
  fs.cpSync(`${root}/dist`, `${code}/dist`, { recursive: true })
  fs.cpSync(`${root}/package.json`, `${code}/package.json`)
  fs.chmodSync(`${code}/dist/cli.mjs`, 0o755)
  fs.rmSync('/usr/local/bin/usr2', { force: true })
  fs.symlinkSync(`${code}/dist/cli.mjs`, '/usr/local/bin/usr2')

  release('1', '')
  release('2', '')
  release('broken', `throw new Error('broken on purpose')`)
  deploy('1')
  const config = { entry: `${home}/current/server.js`, cwd: `${home}/current`, workers: 2 }
  fs.mkdirSync('/etc/usr2')
  fs.writeFileSync('/etc/usr2/box.json', JSON.stringify(config))
  if (dropIn) {
    fs.mkdirSync(`/etc/systemd/system/${UNIT}.d`)
    fs.writeFileSync(`/etc/systemd/system/${UNIT}.d/test.conf`, dropIn)
  }
  // The checkout may be closed to others; the service's user is one of them.
  await run('chmod', '-R', 'a+rX', code, home, '/etc/usr2')
  if (user !== '') {
    await run('useradd', '--home-dir', home, user)
    await run('chown', '-R', user, home)
    fs.chmodSync(home, 0o700)
  }
  if (installArgs.length > 0) {
    fs.rmSync('/etc/usr2', { recursive: true })
    facts.install = await run('usr2', 'systemd', 'install', ...installArgs)
    facts.again = await run('usr2', 'systemd', 'install', '--dry-run', ...installArgs)
  }
  await systemctl('daemon-reload')
}

function release(version, prologue) {
  fs.mkdirSync(`${home}/releases/${version}`, { recursive: true })
  fs.writeFileSync(
    `${home}/releases/${version}/server.js`,
    `${prologue}
const seen = Object.keys(process.env).filter((key) => /^(NOTIFY_|WATCHDOG_|LISTEN_)/.test(key))
require('node:http').createServer((request, response) => {
  const facts = JSON.stringify({ version: '${version}', pid: process.pid, uid: process.getuid(), seen, args: process.argv.slice(2) })
  if (request.url !== '/slow') return response.end(facts)
  response.write(' ')
  setTimeout(() => response.end(facts), 1000)
}).listen(${PORT}, '127.0.0.1')
`,
  )
}

/** As deployments do: the link is replaced by rename(2), it is never absent. */
function deploy(version) {
  fs.symlinkSync(`releases/${version}`, `${home}/next`)
  fs.renameSync(`${home}/next`, `${home}/current`)
}

// ---- Traffic ------------------------------------------------------------------------------------------------------

/** One request, no retry. `onHead` is called when the head of the response is here. */
function get(path, agent, onHead = () => {}) {
  return new Promise((resolve, reject) => {
    const request = http.get({ host: '127.0.0.1', port: PORT, path, agent, timeout: 20_000 }, (response) => {
      onHead()
      let body = ''
      response.on('data', (chunk) => (body += chunk))
      response.on('error', reject)
      response.on('end', () => {
        if (response.statusCode !== 200) reject(new Error(`status ${response.statusCode}`))
        else resolve(JSON.parse(body))
      })
    })
    request.on('timeout', () => request.destroy(new Error('no answer in 20 s')))
    request.on('error', reject)
  })
}

/** Four clients that keep their connection and four that open one for each request, with a little time to think. */
function startTraffic() {
  const traffic = { requests: 0, failures: [], byVersion: {} }
  let on = true
  const client = async (agent) => {
    while (on) {
      try {
        const { version } = await get('/', agent)
        traffic.byVersion[version] = (traffic.byVersion[version] ?? 0) + 1
      } catch (error) {
        traffic.failures.push(`${agent ? 'keep-alive' : 'new'}: ${error.code ?? error.message}`)
      }
      traffic.requests++
      await sleep(3)
    }
    if (agent) agent.destroy()
  }
  const kept = () => new http.Agent({ keepAlive: true, maxSockets: 1 })
  const clients = [kept(), kept(), kept(), kept(), false, false, false, false].map(client)
  return async () => {
    on = false
    await Promise.all(clients)
    return traffic
  }
}

/** What the listener's newest connection is answered by, asked until it is `version` or 5 s are over. */
async function versionThatAnswers(version) {
  const end = performance.now() + 5000
  for (;;) {
    const answer = await get('/', false)
    if (answer.version === version || performance.now() > end) return answer
    await sleep(5)
  }
}

// ---- The story ----------------------------------------------------------------------------------------------------

const facts = { systemd: (await run('systemctl', '--version')).text.split('\n')[0] }
await install()
const sockets = fs.existsSync('/etc/systemd/system/usr2@.socket') ? ['usr2@box.socket'] : []
facts.verify = await run('systemd-analyze', 'verify', UNIT, ...sockets)
facts.security = (await run('systemd-analyze', 'security', '--no-pager', UNIT)).text.split('\n').at(-1)

facts.start = await systemctl('start', UNIT)
if (facts.start.status === 0) {
  facts.active = (await systemctl('is-active', UNIT)).text
  facts.first = await get('/', false)
  facts.client = await run('usr2', 'status', '--name', 'box')
  facts.statusAfterStart = await property('StatusText')
  const stopTraffic = startTraffic()

  deploy('2')
  facts.good = await systemctl('reload', UNIT)
  facts.second = await versionThatAnswers('2')
  facts.statusAfterGood = await property('StatusText')

  deploy('broken')
  facts.broken = await systemctl('reload', UNIT)
  facts.third = await get('/', false)
  facts.activeAfterBroken = (await systemctl('is-active', UNIT)).text
  facts.statusAfterBroken = (await systemctl('status', '--full', '--lines=0', UNIT)).text

  // Longer than a WatchdogSec=1 of the drop-in: a master that does not beat is ended and started again.
  const beatenUntil = performance.now() + 2500
  while (performance.now() < beatenUntil) await sleep(100)
  facts.traffic = await stopTraffic()
  facts.restarts = await property('NRestarts')

  const cgroup = `/sys/fs/cgroup${await property('ControlGroup')}`
  const pids = fs.readFileSync(`${cgroup}/cgroup.procs`, 'utf8').trim().split('\n')
  facts.processesBeforeStop = pids.length
  // In flight when the stop comes, and to be answered whole.
  const slow = []
  await Promise.all(
    Array.from(
      { length: 4 },
      () => new Promise((begun) => slow.push(get('/slow', false, begun).finally(begun))),
    ),
  )
  const slowAnswers = Promise.allSettled(slow)
  facts.stop = await systemctl('stop', UNIT)
  facts.slow = (await slowAnswers).map((a) => (a.status === 'fulfilled' ? a.value.version : String(a.reason)))
  facts.activeAfterStop = (await systemctl('is-active', UNIT)).text
  facts.result = await property('Result')
  facts.processesAfterStop = pids.filter((pid) => fs.existsSync(`/proc/${pid}`))
  facts.warned = (await run('journalctl', '-o', 'cat', '-u', UNIT, '--grep', 'Timeout(Stop|Start)Sec=')).text
  facts.cgroupAfterStop = fs.existsSync(cgroup)
  facts.runtimeDirectoryAfterStop = fs.existsSync('/run/usr2/box')
}
console.log(JSON.stringify(facts))
