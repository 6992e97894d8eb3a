'use strict'
// What every benchmark serves: bare, under usr2 and under its peers, unchanged. PORT, BOOT_MS (waiting), BOOT_STEP_MS
// (as long again for each slot below this one's) and BOOT_CPU_MS (at work, as a framework is that reads and compiles its
// modules) before listen. REUSE_PORT: a socket of its own on that port (Node 22.12 and newer).
// GET / | /slow?ms= | /stream?ms= | /work?ms= (of processor time) tell the pid; POST /echo gives back the body. The path of `GET /` costs next to
// nothing on purpose: whatever a supervisor adds to a request is seen at its largest beside it.
const http = require('node:http')

const { PORT, BOOT_MS = '0', BOOT_STEP_MS = '0', BOOT_CPU_MS = '0', USR2_SLOT = '0' } = process.env
const { REUSE_PORT, PM2_DOCS_SHUTDOWN, SAY_BOOT } = process.env
const me = JSON.stringify({ pid: process.pid })

const cpuMs = () => {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1000
}
const work = (ms) => {
  for (const end = cpuMs() + ms; cpuMs() < end;);
}

const server = http.createServer((req, res) => {
  res.setHeader('Content-Type', 'application/json')
  if (req.url === '/') return res.end(me)
  const { pathname, searchParams } = new URL(req.url, 'http://localhost')
  const ms = Number(searchParams.get('ms') ?? 0)
  if (req.method === 'POST' && pathname === '/echo') {
    const chunks = []
    req.on('data', (chunk) => chunks.push(chunk)).on('end', () => res.end(Buffer.concat(chunks)))
  } else if (pathname === '/slow') {
    setTimeout(() => res.end(me), ms)
  } else if (pathname === '/work') {
    work(ms)
    res.end(me)
  } else if (pathname === '/stream') {
    res.write(`${me.slice(0, -1)},"ticks":"`)
    const ticking = setInterval(() => res.write('.'), 100)
    setTimeout(() => {
      clearInterval(ticking)
      res.end('"}')
    }, ms)
  } else {
    res.writeHead(404).end('{}')
  }
})

// What this process took until it listens, for preload.ts.
if (SAY_BOOT) {
  server.once('listening', () => {
    console.log(JSON.stringify({ event: 'listening', ms: performance.now(), cpuMs: cpuMs() }))
  })
}

work(Number(BOOT_CPU_MS))
const where = { port: Number(PORT), host: '127.0.0.1', reusePort: REUSE_PORT !== undefined }
setTimeout(() => server.listen(where), Number(BOOT_MS) + Number(BOOT_STEP_MS) * Number(USR2_SLOT))

// The handler that PM2's documentation shows, for the peer that asks for it.
if (PM2_DOCS_SHUTDOWN) process.on('SIGINT', () => server.close(() => process.exit(0)))
