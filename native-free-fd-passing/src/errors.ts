import os from 'node:os'
import { getSystemErrorMap } from 'node:util'
import { describeAddress, type Address } from './address.ts'

/** The negative errno of a POSIX error name, as libuv reports it on Unix. */
export function errnoOf(code: keyof typeof os.constants.errno): number {
  return -os.constants.errno[code]
}

/** Name and text of a negative errno: `-98` is `EADDRINUSE`, `address already in use`. */
export function errnoInfo(errno: number): { code: string; message: string } {
  const [code, message] = getSystemErrorMap().get(errno) ?? ['UNKNOWN', `unknown system error ${errno}`]
  return { code, message }
}

/** A socket could not be bound or adopted. */
export class BindError extends Error {
  override readonly name = 'BindError'
  /** `EADDRINUSE`, `EACCES`, … */
  readonly code: string
  /** Negative, as libuv has it. */
  readonly errno: number
  /** `bind`: the address was refused. `open`: the file descriptor is not such a socket. `chmod`: its mode could not be set. */
  readonly syscall: 'bind' | 'open' | 'chmod'
  /** What was asked for; null when a file descriptor was. */
  readonly address: Address | null

  constructor(syscall: BindError['syscall'], errno: number, address: Address | null, text: string) {
    super(text)
    this.syscall = syscall
    this.errno = errno
    this.code = errnoInfo(errno).code
    this.address = address
  }
}

export function bindError(syscall: 'bind' | 'chmod', errno: number, address: Address): BindError {
  const { code, message } = errnoInfo(errno)
  const doing = syscall === 'bind' ? 'bind' : 'set the mode of'
  const text = `Cannot ${doing} ${describeAddress(address)}: ${message} (${code}).${hint(code, address)}`
  return new BindError(syscall, errno, address, text)
}

function hint(code: string, address: Address): string {
  const unix = address.kind === 'unix'
  switch (code) {
    case 'EADDRINUSE':
      return unix
        ? ' The file exists: remove it if no living server owns it.'
        : ' Another socket holds it: stop its owner, or choose another port.'
    case 'EACCES':
      // libuv turns a unix path's ENOENT into EACCES, so a missing directory looks like a forbidden one.
      if (unix) return ' Its directory must exist and be writable.'
      return address.port > 0 && address.port < 1024
        ? ' Ports below 1024 need CAP_NET_BIND_SERVICE or an inherited socket.'
        : ''
    case 'EADDRNOTAVAIL':
      return ' No interface of this machine has this address.'
    case 'ENAMETOOLONG':
      return ' The path of a unix socket is limited by the system (107 bytes on Linux): choose a shorter one.'
    default:
      return ''
  }
}

/** Why a socket did not reach a child, as far as the sender can know. */
export class SendError extends Error {
  override readonly name = 'SendError'
  readonly code: 'timeout' | 'exited' | 'disconnected' | 'aborted' | 'refused' | 'failed'
  /** True when the socket had left our hands: a child that was only slow may still receive it. */
  readonly mayArrive: boolean

  constructor(code: SendError['code'], mayArrive: boolean, text: string, options?: ErrorOptions) {
    super(text, options)
    this.code = code
    this.mayArrive = mayArrive
  }
}
