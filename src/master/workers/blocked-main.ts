/**
 * Main program of the helper that looks into a blocked worker (src/master/workers/blocked.ts says why and when): `blocked.mjs PID
 * PORT`. A process of its own, so that the master loads neither a WebSocket nor fetch, 10 MB it would keep. Writes one
 * {@link LookResult} as JSON.
 *
 * The words are those of the Chrome DevTools Protocol, domains Debugger and Runtime, as Node's inspector speaks it.
 */
import { readdirSync, readlinkSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { listening } from '../listening/port-owner.ts'

export interface LookResult {
  /** Lines, innermost frame first; empty: it could not be paused. */
  readonly stack: string
  /** How long the inspector listened, as far as we saw; null: it did not start. */
  readonly openMs: number | null
}

/** The inspector starts on a thread of its own, within milliseconds unless the processors are busy. */
const START_MS = 2_500
const PAUSE_MS = 2_500
const POLL_MS = 5
const MAX_FRAMES = 20
const MAX_LINE_CHARS = 300

interface Frame {
  readonly functionName: string
  readonly url: string
  readonly location: {
    readonly scriptId: string
    readonly lineNumber: number
    readonly columnNumber?: number
  }
}
/** Of all that it may say, what is used here. */
interface Said {
  readonly method?: string
  readonly params?: {
    readonly callFrames?: readonly Frame[]
    readonly scriptId?: string
    readonly url?: string
  }
}

const [pid = '', port = ''] = process.argv.slice(2)
process.stdout.write(JSON.stringify(await look()))
process.exit()

async function look(): Promise<LookResult> {
  await loadClients()
  process.kill(Number(pid), 'SIGUSR1')
  const until = performance.now() + START_MS
  // Somebody else's program may have taken the port meanwhile: it is asked nothing.
  while (!listens()) {
    if (performance.now() > until) return { stack: '', openMs: null }
    await sleep(POLL_MS)
  }
  const opened = performance.now()
  const stack = await stackOf(await target()).catch(() => '')
  const gone = performance.now() + PAUSE_MS
  while (listens() && performance.now() < gone && stack !== '') await sleep(POLL_MS)
  return { stack, openMs: Math.round(performance.now() - opened) }
}

/** Node loads them when they are first used: before the inspector listens, which then does so for half of the time. */
async function loadClients(): Promise<void> {
  // Nobody answers there yet.
  await fetch(`http://127.0.0.1:${port}/`, { signal: AbortSignal.timeout(PAUSE_MS) }).catch(() => {})
  const socket = new WebSocket(`ws://127.0.0.1:${port}/`)
  await new Promise((resolve) => {
    socket.addEventListener('error', resolve)
    socket.addEventListener('open', resolve)
    setTimeout(resolve, PAUSE_MS)
  })
  socket.close()
}

/** Whether it is the worker that listens on the port: proc(5), /proc/net/tcp. */
function listens(): boolean {
  const address = `0100007F:${Number(port).toString(16).toUpperCase().padStart(4, '0')}`
  const row = listening('/proc/net/tcp').find((columns) => columns[1] === address)
  if (row === undefined) return false
  return readdirSync(`/proc/${pid}/fd`).some((fd) => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${fd}`) === `socket:[${row[9]}]`
    } catch {
      return false
    }
  })
}

async function target(): Promise<string> {
  const response = await fetch(`http://127.0.0.1:${port}/json/list`, {
    signal: AbortSignal.timeout(PAUSE_MS),
  })
  const [first] = (await response.json()) as { webSocketDebuggerUrl: string }[]
  if (first === undefined) throw new Error('no target')
  return first.webSocketDebuggerUrl
}

/** Pauses it, takes its frames, and lets the inspector end itself while it is paused: that resumes it, too. */
function stackOf(url: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url)
    const urls = new Map<string, string>()
    let stack = ''
    let nth = 0
    const send = (method: string, params: object = {}): void =>
      socket.send(JSON.stringify({ id: ++nth, method, params }))
    const timer = setTimeout(() => socket.close(), PAUSE_MS)
    socket.addEventListener('open', () => {
      send('Debugger.enable')
      send('Debugger.pause')
    })
    socket.addEventListener('message', ({ data }) => {
      const { method, params = {} } = JSON.parse(String(data)) as Said
      // Frames of functions that were compiled before have no URL of their own.
      if (method === 'Debugger.scriptParsed') urls.set(params.scriptId ?? '', params.url ?? '')
      if (method !== 'Debugger.paused') return
      stack = (params.callFrames ?? [])
        .slice(0, MAX_FRAMES)
        .map((frame) => line(frame, urls))
        .join('\n')
      send('Runtime.evaluate', { expression: 'process._debugEnd()' })
    })
    socket.addEventListener('error', () => reject(new Error('no connection')))
    socket.addEventListener('close', () => {
      clearTimeout(timer)
      resolve(stack)
    })
  })
}

function line({ functionName, url, location }: Frame, urls: ReadonlyMap<string, string>): string {
  const where = url || urls.get(location.scriptId) || '<unknown>'
  const file = where.startsWith('file://') ? fileURLToPath(where) : where
  const place = `${file}:${location.lineNumber + 1}:${(location.columnNumber ?? 0) + 1}`
  return `at ${functionName || '<anonymous>'} (${place})`.slice(0, MAX_LINE_CHARS)
}
