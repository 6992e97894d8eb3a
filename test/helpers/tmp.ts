/** Places that a test owns for its time: a short directory, a port. */
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type ListenOptions, type Server } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { scopeOf, type TestLike } from './scope.ts'

/** unix(7) leaves 107 bytes for the path of a socket; `t.testdir()` of a deep checkout has used them up. */
const MAX_SHORT_BYTES = 60

/** A fresh directory with a short path, removed after the last process of the test. */
export function shortTmp(t: TestLike): string {
  const path = mkdtempSync(join(tmpdir(), 'u2-'))
  scopeOf(t).finally(() => rmSync(path, { recursive: true, force: true }))
  if (Buffer.byteLength(path) > MAX_SHORT_BYTES) {
    throw new Error(
      `${path} is too long for unix sockets in it: run the tests with a TMPDIR of a few letters`,
    )
  }
  return path
}

const FIRST_PORT = 20_000
const PORTS = 10_000

/**
 * A TCP port for a process that cannot tell us which one it got (usr2 never claims port 0). Ours until the end of the
 * test, free now.
 *
 * Asking the kernel (bind 0, read the port, close) and using it later is forbidden: the kernel gives it from the same
 * range (ip(7), ip_local_port_range: 32768 to 60999) as the local ports of outgoing connections, so in between a load
 * client, or another test, may get the very same one; then an EADDRINUSE appears once in a hundred runs. Our range lies
 * outside of it, so only tests take ports from here, and each first takes the lock of the port: a socket in Linux's
 * abstract namespace (unix(7)). Binding it is atomic, it is seen by all test processes of this network namespace as the
 * port is, and the kernel drops it with its owner, so that a killed run leaves neither a lock nor a file.
 */
export async function freePort(t: TestLike): Promise<number> {
  // A place to begin for each process, so that those running side by side seldom meet.
  let port = FIRST_PORT + ((process.pid * 97 + Math.floor(Math.random() * 97)) % PORTS)
  for (let tried = 0; tried < PORTS; tried++, port = port + 1 < FIRST_PORT + PORTS ? port + 1 : FIRST_PORT) {
    const lock = await tryListen({ path: `\0usr2-test-port-${port}` })
    if (lock === null) continue
    if (await isFree(port)) {
      lock.unref()
      scopeOf(t).finally(() => close(lock))
      return port
    }
    await close(lock)
  }
  throw new Error(`none of the ports ${FIRST_PORT} to ${FIRST_PORT + PORTS - 1} is free`)
}

/** On the wildcard address: somebody's 127.0.0.1 would be in the way of our 0.0.0.0 as well. */
async function isFree(port: number): Promise<boolean> {
  const server = await tryListen({ port, host: '0.0.0.0', exclusive: true })
  if (server === null) return false
  await close(server)
  return true
}

function tryListen(where: ListenOptions): Promise<Server | null> {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => socket.destroy())
    server.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EADDRINUSE' || error.code === 'EACCES') resolve(null)
      else reject(error)
    })
    server.listen(where, () => resolve(server))
  })
}

const close = (server: Server) => new Promise<void>((resolve) => server.close(() => resolve()))
