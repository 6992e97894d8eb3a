/**
 * Raw TCP: a connection over which a few lines go to and fro, and which the client ends. It is shorter than the drain:
 * what lasts longer is cut there, nobody but the app knowing how else to end it.
 */
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { connectFailure } from '../../../src/drill/load.ts'
import { Failure, type Kind } from './kind.ts'

const ROUNDS = 10
const THINK_MS = [20, 60] as const
const SILENCE_MS = 10_000

/** A request is one line and its echo; the end of the connection is one, too. */
export async function echo(port: number, kind: Kind, stop: AbortSignal): Promise<void> {
  while (!stop.aborted) {
    try {
      await converse(port, kind)
      kind.ok()
    } catch (error) {
      kind.fail(error)
      await sleep(THINK_MS[1])
    }
  }
}

async function converse(port: number, kind: Kind): Promise<void> {
  const socket = connect({ port, host: '127.0.0.1', noDelay: true })
  socket.on('error', () => {})
  try {
    await orFailure(socket, once(socket, 'connect'), 'connect')
    for (let round = 1; round <= ROUNDS; round++) {
      const line = `line ${round}\n`
      const answer = orFailure(socket, once(socket, 'data'), `the echo of line ${round}`)
      socket.write(line)
      const text = String((await answer)[0])
      if (text !== line) throw new Failure('malformed', `${JSON.stringify(text)} for ${JSON.stringify(line)}`)
      kind.ok()
      const [min, max] = THINK_MS
      await orFailure(socket, sleep(min + Math.random() * (max - min), []), 'the next line')
    }
    const ended = orFailure(socket, once(socket, 'close'), 'its end', true)
    socket.end()
    socket.resume()
    await ended
  } finally {
    socket.destroy()
  }
}

/** @throws Failure when the connection ends before it has happened, or nothing happens for too long */
function orFailure(
  socket: Socket,
  happened: Promise<unknown[]>,
  what: string,
  mayEnd = false,
): Promise<unknown[]> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(
      () => settle(() => reject(new Failure('hang', `waited ${SILENCE_MS} ms for ${what}`))),
      SILENCE_MS,
    )
    const onError = (error: NodeJS.ErrnoException): void => {
      const { code = error.message } = error
      const failure = error.syscall === 'connect' ? connectFailure(code) : 'reset'
      settle(() => reject(new Failure(failure, `${code} before ${what}`)))
    }
    const onEnd = (): void => {
      if (!mayEnd) settle(() => reject(new Failure('truncated', `FIN before ${what}`)))
    }
    const settle = (then: () => void): void => {
      clearTimeout(timer)
      socket.off('error', onError)
      socket.off('end', onEnd)
      then()
    }
    socket.on('error', onError)
    socket.on('end', onEnd)
    happened.then(
      (values) => settle(() => resolve(values)),
      // `once` rejects by the same error, which `onError` has told.
      () => {},
    )
  })
}
