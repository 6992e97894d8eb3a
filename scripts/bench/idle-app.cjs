'use strict'
// What idle.ts connects to: `GET /` tells the pid, and a WebSocket says nothing. PORT, KEEP_ALIVE_MS.
const http = require('node:http')
const { WebSocketServer } = require('ws')

const server = http.createServer((req, res) => res.end(String(process.pid)))
server.keepAliveTimeout = Number(process.env.KEEP_ALIVE_MS)
new WebSocketServer({ server })
server.listen({ port: Number(process.env.PORT), host: '127.0.0.1', backlog: 4096 })
