import Hapi from '@hapi/hapi'

const server = Hapi.server({ port: process.env.PORT, host: '127.0.0.1' })
server.route({ method: 'GET', path: '/', handler: () => ({ generation: process.env.USR2_GENERATION }) })
server.route({
  method: 'POST',
  path: '/echo',
  options: { payload: { parse: false } },
  handler: (request) => request.payload,
})
process.on('SIGTERM', async () => {
  await server.stop({ timeout: 5_000 })
  process.exit(0)
})
await server.start()
