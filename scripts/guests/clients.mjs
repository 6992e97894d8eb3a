// Clients that are not the raw-socket load client, in a process of their own: `clients.mjs KIND PORT`, until stdin ends.
// Says which generation has answered for the first time; then one line of JSON. Nothing is sent again.
import { request } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { io } from 'socket.io-client'
import { Pool, fetch } from 'undici'
import { WebSocket } from 'ws'

const [kind, port] = process.argv.slice(2)
const result = { requests: 0, failed: 0, failures: {}, generations: {}, ends: {} }
let stopped = false
process.stdin.on('end', () => (stopped = true)).resume()

const count = (counts, what) => (counts[what] = (counts[what] ?? 0) + 1)
function fail(what) {
  result.failed++
  count(result.failures, what)
}
function answered(generation) {
  result.requests++
  if (count(result.generations, generation) === 1) console.log(`generation ${generation}`)
}

const body = Buffer.alloc(64 * 1024, 'usr2 ')
const url = `http://127.0.0.1:${port}`
const pool = new Pool(url)
const lanes = {
  async undici(n) {
    const asks = [
      async () => answered((await (await fetch(url)).json()).generation),
      async () => answered((await (await pool.request({ path: '/', method: 'GET' })).body.json()).generation),
      async () => {
        const answer = await pool.request({ path: '/echo', method: 'POST', body })
        const echo = Buffer.from(await answer.body.arrayBuffer())
        if (!echo.equals(body))
          throw new Error(`an echo of ${echo.length} bytes, status ${answer.statusCode}`)
        result.requests++
      },
    ]
    const ask = asks[n % asks.length]
    while (!stopped) {
      await ask().catch((error) => fail(error.cause?.code ?? error.code ?? error.message))
      await sleep(n < 3 ? 0 : Math.random() * 40)
    }
  },
  // A connection through a reload sees a close frame with 1001, and no error.
  async ws() {
    while (!stopped) {
      const socket = new WebSocket(`ws://127.0.0.1:${port}`)
      socket.on('error', (error) => fail(error.code ?? error.message))
      socket.on('message', async (text) => {
        answered(String(text))
        await sleep(20)
        if (stopped) socket.close(1000)
        else if (socket.readyState === WebSocket.OPEN) socket.send('x')
      })
      socket.on('open', () => socket.send('x'))
      const code = await new Promise((resolve) => socket.on('close', resolve))
      count(result.ends, code)
      if (code !== 1001 && !(stopped && (code === 1000 || code === 1005))) fail(`closed with ${code}`)
    }
  },
  // A connection through a reload sees FIN, and no error.
  async upgrade() {
    while (!stopped) {
      const asked = request(url, { headers: { Connection: 'Upgrade', Upgrade: 'lines' } }).end()
      const socket = await new Promise((resolve, reject) => {
        asked.on('upgrade', (response, socket) => resolve(socket))
        asked.on('response', ({ statusCode }) => reject(new Error(`status ${statusCode}`)))
        asked.on('error', reject)
      }).catch((error) => fail(`connect: ${error.code ?? error.message}`))
      if (!socket) continue
      socket.on('error', (error) => fail(error.code ?? error.message))
      socket.on('data', async (text) => {
        answered(String(text).trim())
        await sleep(20)
        if (stopped) socket.end()
        else if (socket.writable) socket.write('x\n')
      })
      socket.write('x\n')
      await new Promise((resolve) => socket.on('close', resolve))
      count(result.ends, socket.readableEnded ? 'FIN' : 'no FIN')
    }
  },
  'socket.io': async () => {
    const socket = io(url, {
      transports: ['websocket'],
      forceNew: true,
      reconnectionDelay: 20,
      reconnectionDelayMax: 50,
    })
    socket.on('connect_error', (error) => fail(`connect: ${error.message}`))
    socket.on('disconnect', (reason, details) => {
      if (stopped) return
      // Of the transport: `details.context.code` is that of the close frame.
      const code = details?.context?.code
      count(result.ends, code)
      if (code !== 1001) fail(`${reason} (${code})`)
    })
    while (!stopped) {
      // What is in flight at the close is lost: socket.io delivers at most once.
      await new Promise((done) => {
        socket.timeout(1000).emit('echo', (error, generation) => {
          if (!error) answered(generation)
          done()
        })
        socket.once('disconnect', done)
      })
      await sleep(20)
    }
    socket.close()
  },
}

await Promise.all(Array.from({ length: 12 }, (_, n) => lanes[kind](n)))
console.log(JSON.stringify(result))
process.exit()
