/**
 * Runs inside systemd-sandbox: the units as we ship them and as `usr2 systemd install` writes them, for each kind of user:
 * start, a good and a broken reload, and a stop, under traffic.
 */
import assert from 'node:assert/strict'
import * as fs from 'node:fs'
import {
  App,
  end,
  installUsr2,
  journal,
  row,
  run,
  succeeds,
  systemctl,
  systemdText,
  systemdVersion,
} from './systemd-box.mjs'

/**
 * `exposure`: the most that systemd-analyze may give; with the notify descriptor it is 0.2 less. `warned`: what the master
 * says of the unit's times.
 */
const variants = [
  {
    name: 'dynamic',
    about: 'a user of its own (DynamicUser), the unit as shipped',
    isUser: (uid) => uid >= 61_184 && uid <= 65_519,
    exposure: 1.3,
  },
  {
    name: 'root',
    about: 'root',
    service: ['User=root', 'DynamicUser=no'],
    isUser: (uid) => uid === 0,
  },
  {
    name: 'main',
    about: 'not root, with NotifyAccess=main and the notify descriptor',
    since: 253,
    user: 'somebody',
    service: [
      ...['User=somebody', 'DynamicUser=no', 'WatchdogSec=1'],
      ...['NotifyAccess=main', 'OpenFile=/run/systemd/notify:notify:graceful'],
    ],
    isUser: (uid) => uid >= 1000 && uid < 60_000,
  },
  {
    name: 'all',
    about: 'not root, with NotifyAccess=all and the program systemd-notify',
    user: 'anybody',
    // Where a file in the real /tmp would be seen.
    service: ['User=anybody', 'DynamicUser=no', 'PrivateTmp=no', 'WatchdogSec=1', 'NotifyAccess=all'],
    isUser: (uid) => uid >= 1000 && uid < 60_000,
  },
  {
    name: 'installed',
    about: 'the unit that `usr2 systemd install` writes for an app in /srv',
    install: ['--cwd', '/srv/installed/current', '--name', 'installed', '--workers', '2', 'server.js'],
    isUser: (uid) => uid >= 61_184 && uid <= 65_519,
    exposure: 1.3,
  },
  {
    name: 'closed',
    about: 'the same for a user with an app in a closed home, and too little time to stop',
    home: '/home/my shop',
    user: 'shop',
    service: ['TimeoutStopSec=20'],
    install: [
      ...['--user', 'shop', '--cwd', '/home/my shop/current', '--name', 'closed', '--workers', '2'],
      ...['./server.js', '$HOME', '50%'],
    ],
    appArgs: ['$HOME', '50%'],
    isUser: (uid) => uid >= 1000 && uid < 60_000,
    exposure: 1.4,
    warned: [/TimeoutStopSec= of usr2@closed\.service is 20\.0 s, and a stop may take 45\.0 s/],
  },
  {
    name: 'listening',
    about: 'the units that `usr2 systemd install --listen` writes',
    install: [
      ...['--cwd', '/srv/listening/current', '--name', 'listening', '--workers', '2'],
      ...['--listen', '127.0.0.1:8080', '--listen', '/run/listening.sock', 'server.js'],
    ],
    places: [{ host: '127.0.0.1', port: 8080 }, { socketPath: '/run/listening.sock' }],
    isUser: (uid) => uid >= 61_184 && uid <= 65_519,
    exposure: 1.3,
  },
]

await installUsr2()

for (const variant of variants) {
  const { name, about, isUser, home, places, user, install, service, since } = variant
  const { appArgs = [], warned = [], exposure = 10 } = variant
  await row(about, (say) => story(say), { since })

  async function story(say) {
    const app = new App(name, { home, places, service, config: install ? null : {} })
    await run('chmod', '-R', 'a+rX', app.home)
    if (user) await succeeds(run('useradd', '--home-dir', app.home, user))
    if (home) {
      await run('chown', '-R', user, home)
      fs.chmodSync(home, 0o700)
    }
    if (install) {
      await succeeds(run('usr2', 'systemd', 'install', ...install))
      const again = await succeeds(run('usr2', 'systemd', 'install', '--dry-run', ...install))
      assert.match(again, new RegExp(`${app.unit} is as it should be`))
    }
    await systemctl('daemon-reload')
    const socket = `usr2@${name}.socket`
    const sockets = install?.includes('--listen') ? [socket] : []
    assert.equal(
      (await run('systemd-analyze', 'verify', app.unit, ...sockets)).text,
      '',
      'nothing to say against it',
    )
    const security = (await run('systemd-analyze', 'security', '--no-pager', app.unit)).text
      .split('\n')
      .at(-1)
    const score = Number(/: (\d+\.\d) /.exec(security)[1])
    const hasDescriptor = install && systemdVersion >= 253
    say(`${systemdText}, node ${process.version}: exposure ${score}`)
    assert.ok(score <= exposure - (hasDescriptor ? 0.2 : 0) + 0.01, `exposure ${score}`)

    if (sockets.length > 0) await succeeds(systemctl('start', ...sockets))
    await succeeds(app.start())
    assert.equal(await app.property('ActiveState'), 'active')
    const first = await app.get('/')
    assert.equal(first.version, '1')
    assert.ok(isUser(first.uid), `the app runs as uid ${first.uid}`)
    assert.deepEqual(first.args, appArgs, 'the app gets its arguments as they were typed')
    assert.deepEqual(first.seen, [], 'the app sees nothing that systemd says to the master')
    assert.equal((await app.status()).name, name, 'usr2 status --name finds it from outside')
    const texts = [await app.property('StatusText')]
    assert.notEqual(texts[0], '', 'a status for people')

    const traffic = app.traffic()
    await traffic.flows()
    await succeeds(app.reloadTo('2'))
    await app.serves('2')
    texts.push(await app.property('StatusText'))
    assert.notEqual(texts[1], texts[0])

    const broken = await app.reloadTo('broken', { prologue: `throw new Error('broken on purpose')` })
    assert.notEqual(broken.status, 0, 'systemctl reload of a broken version fails')
    assert.equal((await app.get('/')).version, '2', 'the old version still answers')
    assert.equal(await app.property('ActiveState'), 'active', 'neither failed nor reloading for ever')
    const { text } = await app.systemctl('status', '--full', '--lines=0')
    assert.match(text, /Status: ".*broken on purpose/, 'systemctl status says why')
    await traffic.lostNone(say)
    assert.deepEqual(Object.keys(traffic.versions).sort(), ['1', '2'])
    assert.equal(await app.property('NRestarts'), '0')

    const said = (await journal('-u', app.unit, '--grep', 'Timeout(Stop|Start)Sec=')).map(
      ({ MESSAGE }) => MESSAGE,
    )
    assert.equal(said.length, warned.length, `warns of a unit that allows too little time: ${said.join(' ')}`)
    for (const [index, what] of warned.entries()) assert.match(said[index], what)
    await app.stopsClean(...sockets)
  }
}
end()
