'use strict'
// Every protocol that the load client speaks, in one app: as app.cjs on PORT, with WebSockets (echo) there too; HTTP/2
// without TLS on H2C_PORT; HTTP/2 and HTTP/1.1 over TLS on TLS_PORT. BOOT_MS before it listens.
const { readFileSync } = require('node:fs')
const http = require('node:http')
const http2 = require('node:http2')
const { join } = require('node:path')
const { WebSocketServer } = require('ws')

const { PORT, H2C_PORT, TLS_PORT, BOOT_MS = '0' } = process.env
const pem = (name) => readFileSync(join(__dirname, '../../test/fixtures/tls', name))
const me = JSON.stringify({ pid: process.pid })

function answer(req, res) {
  res.setHeader('Content-Type', 'application/json')
  const { pathname, searchParams } = new URL(req.url, 'http://localhost')
  const ms = Number(searchParams.get('ms') ?? 0)
  if (req.method === 'POST') {
    const chunks = []
    req.on('data', (chunk) => chunks.push(chunk)).on('end', () => res.end(Buffer.concat(chunks)))
  } else if (pathname === '/slow') setTimeout(() => res.end(me), ms)
  else if (pathname === '/stream') {
    res.write(`${me.slice(0, -1)},"ticks":"`)
    const ticking = setInterval(() => res.write('.'), 100)
    setTimeout(() => {
      clearInterval(ticking)
      res.end('"}')
    }, ms)
  } else res.end(me)
}

const server = http.createServer(answer)
new WebSocketServer({ server }).on('connection', (socket) =>
  socket.on('message', (text) => socket.send(text)),
)
const h2c = http2.createServer(answer)
const tls = http2.createSecureServer({ key: pem('key.pem'), cert: pem('cert.pem'), allowHTTP1: true }, answer)
setTimeout(() => {
  h2c.listen(Number(H2C_PORT), '127.0.0.1')
  tls.listen(Number(TLS_PORT), '127.0.0.1')
  server.listen(Number(PORT), '127.0.0.1')
}, Number(BOOT_MS))
