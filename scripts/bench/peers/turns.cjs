'use strict'
// WORKERS processes that share one socket and take turns: every TURN_MS (0: never) the next of them opens a fresh
// duplicate of it and closes its own, and stands at the head of the kernel's queue of those who wait for a connection.
// As `turns.cjs worker` it is one of them, and runs app.cjs.
const { fork } = require('node:child_process')
const net = require('node:net')
const { bind, Facade, onReceive } = require('native-free-fd-passing')

const { PORT, WORKERS = '2', TURN_MS = '0' } = process.env

async function serve() {
  const socket = bind({ kind: 'tcp', host: '127.0.0.1', port: Number(PORT) })
  const send = (child) => socket.sendTo(child, {}, { timeoutMs: 10_000 })
  const children = []
  for (let slot = 0; slot < Number(WORKERS); slot++) {
    const child = fork(__filename, ['worker'])
    await new Promise((resolve) => child.once('message', resolve))
    await send(child)
    children.push(child)
  }
  console.log(JSON.stringify({ event: 'ready', pids: children.map(({ pid }) => pid) }))
  process.on('SIGTERM', () => process.exit())
  if (Number(TURN_MS) === 0) return
  for (let turn = 0; ; turn++) {
    await new Promise((resolve) => setTimeout(resolve, Number(TURN_MS)))
    await send(children[turn % children.length])
  }
}

function work() {
  const { listen } = net.Server.prototype
  net.Server.prototype.listen = function () {
    const facade = new Facade({ kind: 'tcp', bound: null })
    listen.call(this, facade.handle, 511)
    onReceive((socket) => {
      facade.withdraw()
      facade.open(socket)
    })
    process.send('listens')
    return this
  }
  process.on('disconnect', () => process.exit())
  require('../app.cjs')
}

if (process.argv[2] === 'worker') work()
else void serve()
