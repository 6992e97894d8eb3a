import express from 'express'

const app = express()
app.get('/', (req, res) => res.json({ generation: process.env.USR2_GENERATION }))
app.post('/echo', express.raw({ type: () => true, limit: '1mb' }), (req, res) => res.send(req.body))
const server = app.listen(process.env.PORT)
// As its documentation has it ("Health checks and graceful shutdown").
process.on('SIGTERM', () => server.close())
