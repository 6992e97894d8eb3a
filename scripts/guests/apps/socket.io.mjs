import { createServer } from 'node:http'
import { Server } from 'socket.io'

const server = createServer()
const io = new Server(server)
io.on('connection', (socket) => {
  socket.on('echo', (answer) => answer(process.env.USR2_GENERATION))
})
server.listen(process.env.PORT)
