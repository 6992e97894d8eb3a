// A small shop on Express, as it might be yours: nothing in it knows of usr2.
const express = require('express')
const { version } = require('./package.json')

const app = express()
const orders = []
app.get('/', (req, res) => res.json({ version, pid: process.pid }))
app.post('/orders', express.raw({ type: () => true, limit: '1mb' }), (req, res) => {
  orders.push(req.body.length)
  // Answered with what was sent, so that the demo's client can see that it arrived whole.
  res.type('application/octet-stream').send(req.body)
})
app.get('/report', (req, res) => setTimeout(() => res.json({ version, pid: process.pid }), 2000))

// Connecting to a database, filling caches: real apps take a moment before they listen.
setTimeout(() => app.listen(Number(process.env.PORT), '127.0.0.1'), 500)
