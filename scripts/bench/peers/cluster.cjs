'use strict'
// A rolling restart over node:cluster by SIGUSR2, as it is often written by hand: for one worker after the other,
// fork its successor, wait until that listens, disconnect the old one, and end it if it is still there after 10 s.
const cluster = require('node:cluster')

const KILL_AFTER_MS = 10_000
cluster.setupPrimary({ exec: process.argv[2] })

const fork = () =>
  new Promise((resolve) => {
    const worker = cluster.fork()
    worker.once('listening', () => resolve(worker))
  })
const say = (event) => console.log(JSON.stringify({ event }))

process.on('SIGUSR2', async () => {
  for (const old of Object.values(cluster.workers)) {
    if (old.isDead() || old.exitedAfterDisconnect) continue
    await fork()
    old.disconnect()
    const kill = setTimeout(() => old.kill('SIGTERM'), KILL_AFTER_MS)
    old.once('exit', () => clearTimeout(kill))
  }
  say('promoted')
})
process.on('SIGTERM', () => process.exit(0))

Promise.all(Array.from({ length: Number(process.argv[3]) }, fork)).then(() => say('ready'))
