import { WebSocketServer } from 'ws'

const server = new WebSocketServer({ port: Number(process.env.PORT) })
server.on('connection', (socket) => {
  socket.on('error', console.error)
  socket.on('message', () => socket.send(process.env.USR2_GENERATION))
})
