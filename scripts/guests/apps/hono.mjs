import { serve } from '@hono/node-server'
import { Hono } from 'hono'

const app = new Hono()
app.get('/', (c) => c.json({ generation: process.env.USR2_GENERATION }))
app.post('/echo', async (c) => c.body(await c.req.arrayBuffer()))
const server = serve({ fetch: app.fetch, port: Number(process.env.PORT) })
// As its documentation has it.
process.on('SIGTERM', () => {
  server.close((error) => process.exit(error ? 1 : 0))
})
