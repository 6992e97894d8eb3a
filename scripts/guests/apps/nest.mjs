// As the compiler of a Nest project writes it: decorators are functions.
import 'reflect-metadata'
import { Controller, Get, Module, Post, Req } from '@nestjs/common'
import { NestFactory } from '@nestjs/core'
import express from 'express'

class AppController {
  get() {
    return { generation: process.env.USR2_GENERATION }
  }
  echo(request) {
    return request.body.toString('latin1')
  }
}
const decorate = (name, decorator) =>
  decorator(AppController.prototype, name, Object.getOwnPropertyDescriptor(AppController.prototype, name))
Controller()(AppController)
decorate('get', Get('/'))
decorate('echo', Post('/echo'))
Req()(AppController.prototype, 'echo', 0)
class AppModule {}
Module({ controllers: [AppController] })(AppModule)

const app = await NestFactory.create(AppModule, { bodyParser: false, logger: ['error', 'warn'] })
app.use(express.raw({ type: () => true, limit: '1mb' }))
app.enableShutdownHooks()
await app.listen(process.env.PORT)
