import closeWithGrace from 'close-with-grace'
import Fastify from 'fastify'

const app = Fastify()
app.addContentTypeParser('*', { parseAs: 'buffer' }, (request, body, done) => done(null, body))
app.get('/', () => ({ generation: process.env.USR2_GENERATION }))
app.post('/echo', (request) => request.body)
closeWithGrace({ delay: 10_000 }, () => app.close())
await app.listen({ port: Number(process.env.PORT) })
