import Koa from 'koa'

const app = new Koa()
app.use((context) => {
  if (context.method === 'POST') context.body = context.req
  else context.body = { generation: process.env.USR2_GENERATION }
})
app.listen(process.env.PORT)
