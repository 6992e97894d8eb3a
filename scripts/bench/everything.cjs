'use strict'
// Every protocol that the load clients speak, in one app. As app.cjs on PORT and on UNIX_PATH, with WebSockets (echo)
// and server-sent events there too; HTTP/1.1 over TLS on HTTPS_PORT; HTTP/2 without TLS on H2C_PORT; HTTP/2 and HTTP/1.1
// over TLS on TLS_PORT; gRPC (@grpc/grpc-js) on GRPC_PORT; echo over TCP on TCP_PORT and over UDP on UDP_PORT. BOOT_MS
// before it listens.
const dgram = require('node:dgram')
const { readFileSync } = require('node:fs')
const http = require('node:http')
const http2 = require('node:http2')
const https = require('node:https')
const net = require('node:net')
const { join } = require('node:path')
const { WebSocketServer } = require('ws')
const { createGrpcServer } = require('../../test/fixtures/guests/grpc-server.cjs')

const { BOOT_MS = '0', UNIX_PATH, ...env } = process.env
// A drain is as long as the longest time that clients were promised, and 2 s, if anything stays open: with Node's 5 s
// 100 reloads would take a quarter of an hour.
const KEEP_ALIVE_MS = 2000
const EVENT_EVERY_MS = 50
const pem = (name) => readFileSync(join(__dirname, '../../test/fixtures/tls', name))
const me = JSON.stringify({ pid: process.pid })

function answer(req, res) {
  const { pathname, searchParams } = new URL(req.url, 'http://localhost')
  if (pathname === '/events') return sendEvents(req, res)
  res.setHeader('Content-Type', 'application/json')
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

/** Without an end, as long as the client is there; numbered from the one after the last that it has. */
function sendEvents(req, res) {
  res.setHeader('Content-Type', 'text/event-stream')
  let id = Number(req.headers['last-event-id'] ?? 0)
  const send = () => res.write(`id: ${++id}\ndata: ${process.pid}\n\n`)
  send()
  const sending = setInterval(send, EVENT_EVERY_MS)
  res.on('close', () => clearInterval(sending))
}

const server = http.createServer(answer)
new WebSocketServer({ server }).on('connection', (socket) =>
  socket.on('message', (text) => socket.send(text)),
)
const onPath = http.createServer(answer)
const identity = { key: pem('key.pem'), cert: pem('cert.pem') }
const overTls = https.createServer(identity, answer)
const h2c = http2.createServer(answer)
const tls = http2.createSecureServer({ ...identity, allowHTTP1: true }, answer)
for (const one of [server, onPath, overTls, tls]) one.keepAliveTimeout = KEEP_ALIVE_MS
const tcp = net.createServer((socket) => socket.on('error', () => {}).pipe(socket))
const udp = dgram.createSocket('udp4')
udp.on('message', (data, from) => udp.send(data, from.port, from.address))
setTimeout(() => {
  const listen = (on, name) => on.listen(Number(env[name]), '127.0.0.1')
  listen(overTls, 'HTTPS_PORT')
  listen(h2c, 'H2C_PORT')
  listen(tls, 'TLS_PORT')
  listen(tcp, 'TCP_PORT')
  onPath.listen(UNIX_PATH)
  udp.bind(Number(env.UDP_PORT), '127.0.0.1')
  createGrpcServer(`127.0.0.1:${env.GRPC_PORT}`, () => listen(server, 'PORT'))
}, Number(BOOT_MS))
