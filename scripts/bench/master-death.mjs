/**
 * `kill -9` of the master under load, on a real systemd: with and without a `.socket` unit, by KillMode. README.md beside
 * this file says what the columns mean. Needs root, since it boots a private systemd (test/helpers/systemd-sandbox), inside
 * which this file runs once more with `--inside`.
 *
 *   node scripts/bench/master-death.mjs [--runs 3] [--root DIR] [--node PATH] [--json]
 *
 * Plain JavaScript, because inside there is no node_modules.
 */
import { spawn } from 'node:child_process'
import * as fs from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

/** In a user namespace of its own a service may not read the environment of processes that its last start has left. */
const SEES = ['PrivateUsers=no']
const KILL_MODES = { mixed: [], 'control-group': [], process: [], 'process, sees them': SEES }
const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const LIMIT_S = 900

const { values } = parseArgs({
  options: {
    runs: { type: 'string', default: '3' },
    root: { type: 'string' },
    node: { type: 'string', default: process.execPath },
    json: { type: 'boolean', default: false },
    inside: { type: 'boolean', default: false },
  },
})
if (values.inside) await inside(Number(values.runs))
else await outside()

async function outside() {
  const boot = values.root ? ['-r', values.root] : []
  const binds = ['-b', `${ROOT}:/box/usr2:ro`, '-b', `${values.node}:/usr/local/bin/node:ro`]
  const drive = [
    '/usr/local/bin/node',
    '/box/usr2/scripts/bench/master-death.mjs',
    '--inside',
    '--runs',
    values.runs,
  ]
  const sandbox = spawn(
    `${ROOT}/test/helpers/systemd-sandbox`,
    [...boot, '-N', '-t', String(LIMIT_S), ...binds, '--', ...drive],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  )
  let text = ''
  sandbox.stdout.setEncoding('utf8').on('data', (chunk) => (text += chunk))
  const status = await new Promise((resolve) => sandbox.once('close', resolve))
  if (status !== 0) process.exit(1)
  if (values.json) return process.stdout.write(text)
  const { systemd, node, controllers, kills, stops, worker } = JSON.parse(text)
  console.log(
    `${systemd}, Node.js ${node}, ${values.runs} runs each; controllers of cgroup v2 here: ${controllers || 'none'}\n`,
  )
  table(kills)
  table(stops)
  table([worker])
}

function table(rows) {
  const names = Object.keys(rows[0])
  const line = (cells) => console.log(`| ${cells.join(' | ')} |`)
  line(names)
  line(names.map(() => '---'))
  for (const row of rows) line(Object.values(row))
  console.log('')
}

async function inside(runs) {
  const { App, get, hold, installUsr2, journal, now, systemctl, systemdText, unit, until } =
    await import('../../test/helpers/systemd-box.mjs')
  await installUsr2()
  const place = { host: '127.0.0.1', port: 8080 }
  const app = new App('box', { places: [place], config: { drainTimeout: '10s' } })

  const configure = async (killMode, hasSocket) => {
    await systemctl('stop', 'usr2@box.socket', app.unit)
    if (hasSocket) unit('usr2@box.socket', '[Socket]\nListenStream=127.0.0.1:8080\n')
    else fs.rmSync('/etc/systemd/system/usr2@box.socket', { force: true })
    const lines = [`KillMode=${killMode.split(',')[0]}`, 'OOMPolicy=continue', ...KILL_MODES[killMode]]
    unit(`${app.unit}.d/test.conf`, `[Service]\n${lines.join('\n')}\n`)
    await systemctl('daemon-reload')
    if (hasSocket) await systemctl('start', 'usr2@box.socket')
    await app.start()
    await app.settles()
  }

  /** The longest time in which no new connection was answered. */
  const watchGap = () => {
    let on = true
    let longestMs = 0
    let lastAt = performance.now()
    const ask = async () => {
      while (on) {
        const isAnswered = await get(place).then(
          () => true,
          () => false,
        )
        const at = performance.now()
        if (isAnswered) {
          longestMs = Math.max(longestMs, at - lastAt)
          lastAt = at
        }
        await sleep(5)
      }
    }
    const asking = Promise.all([ask(), ask()])
    return async () => {
      on = false
      await asking
      return Math.round(longestMs)
    }
  }

  const servedByOther = (master) =>
    until(
      'another master',
      async () => {
        const answer = await get(place).catch(() => ({}))
        return answer.master !== undefined && answer.master !== master
      },
      70_000,
    )

  const killOnce = async () => {
    const since = await now()
    const master = await app.mainPid()
    const old = await app.processes()
    const held = await hold(place, 4, 1500)
    const stopGap = watchGap()
    const traffic = app.traffic({ slow: 4 })
    await traffic.flows()
    const at = performance.now()
    process.kill(master, 'SIGKILL')
    await servedByOther(master)
    const backMs = Math.round(performance.now() - at)
    const isThere = (pid) => fs.existsSync(`/proc/${pid}`)
    await until('the old workers to leave', () => !old.some(isThere), 30_000)
    const leftMs = Math.round(performance.now() - at)
    await traffic.stop()
    const ofSystemd = await journal('_PID=1', `--after-cursor=${since}`)
    const leftover = ofSystemd.filter(({ MESSAGE }) => /left-over process/.test(MESSAGE)).length
    const { requests, totalRefused: refused, totalLost: lost } = traffic
    const heldLost = (await held.lost()).length
    await app.settles()
    return { requests, refused, lost, heldLost, gapMs: await stopGap(), backMs, leftMs, leftover }
  }

  const range = (results, name) => {
    const all = results.map((result) => result[name]).sort((a, b) => a - b)
    const [least, most] = [all[0], all.at(-1)]
    return least === most ? String(least) : `${all[all.length >> 1]} (${least}-${most})`
  }

  const kills = []
  for (const hasSocket of [true, false]) {
    for (const killMode of Object.keys(KILL_MODES)) {
      await configure(killMode, hasSocket)
      const results = []
      for (let i = 0; i < runs; i++) results.push(await killOnce())
      process.stderr.write(`${killMode} ${hasSocket}: ${JSON.stringify(results)}\n`)
      kills.push({
        '.socket': hasSocket ? 'yes' : 'no',
        KillMode: killMode,
        requests: range(results, 'requests'),
        refused: range(results, 'refused'),
        'lost in flight': range(results, 'lost'),
        'of 4 slow ones': range(results, 'heldLost'),
        'longest gap, ms': range(results, 'gapMs'),
        'old workers gone, ms': range(results, 'leftMs'),
        'left-over warnings': range(results, 'leftover'),
      })
    }
  }

  // A stop while workers of the killed master have 4 s of work left.
  const stops = []
  for (const killMode of Object.keys(KILL_MODES)) {
    await configure(killMode, true)
    const { cgroup } = await app.footprint()
    const master = await app.mainPid()
    const held = await hold(place, 4, 5000)
    process.kill(master, 'SIGKILL')
    await servedByOther(master)
    const before = (await app.processes()).length
    const at = performance.now()
    await systemctl('stop', 'usr2@box.socket', app.unit)
    const tookMs = Math.round(performance.now() - at)
    const path = `/sys/fs/cgroup${cgroup}/cgroup.procs`
    const left = fs.existsSync(path) ? fs.readFileSync(path, 'utf8').trim().split('\n').filter(Boolean) : []
    stops.push({
      'stop after a kill, KillMode': killMode,
      'processes before': before,
      'of 4 requests lost': (await held.lost()).length,
      'stop took, ms': tookMs,
      'left in the cgroup': left.length,
      Result: await app.property('Result'),
    })
  }

  // As the kernel does when memory ends: one worker gets SIGKILL.
  await configure('mixed', true)
  const [main, pids] = [await app.mainPid(), await app.processes()]
  const traffic = app.traffic({ slow: 4 })
  await traffic.flows()
  const victim = pids.find((pid) => pid !== main)
  process.kill(victim, 'SIGKILL')
  await until('the worker to be replaced', async () => {
    const now = await app.processes()
    return now.length === 3 && !now.includes(victim)
  })
  await traffic.stop()
  const worker = {
    'one worker killed': 'mixed, .socket',
    requests: traffic.requests,
    refused: traffic.totalRefused,
    'lost in flight': traffic.totalLost,
    'longest request, ms': traffic.longestMs,
    'same master': (await app.mainPid()) === main ? 'yes' : 'no',
    ActiveState: await app.property('ActiveState'),
  }
  await systemctl('stop', 'usr2@box.socket', app.unit)
  const controllers = fs.readFileSync('/sys/fs/cgroup/cgroup.controllers', 'utf8').trim()
  const { version: node } = process
  console.log(JSON.stringify({ systemd: systemdText, node, controllers, kills, stops, worker }))
}
