// A protocol of its own behind `Upgrade`: every line is answered by the generation.
import { createServer } from 'node:http'

const server = createServer()
server.on('upgrade', (request, socket) => {
  socket.on('error', console.error)
  socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: lines\r\nConnection: Upgrade\r\n\r\n')
  socket.on('data', () => socket.write(`${process.env.USR2_GENERATION}\n`))
  socket.on('end', () => socket.end())
})
server.listen(process.env.PORT)
