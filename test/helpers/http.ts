/** One request on a connection of its own, never sent again. */
import http from 'node:http'

export interface Answered {
  readonly status: number
  readonly body: string
}

export type Where = { readonly port: number } | { readonly socketPath: string }

/** @throws what the socket says (ECONNREFUSED, ENOENT, ECONNRESET), or a sentence after `timeoutMs` without an answer */
export function get(where: Where, path = '/', timeoutMs = 20_000): Promise<Answered> {
  return new Promise((resolve, reject) => {
    const options = { host: '127.0.0.1', ...where, path, agent: false, timeout: timeoutMs }
    const request = http.get(options, (response) => {
      let body = ''
      response.setEncoding('utf8').on('data', (text: string) => (body += text))
      response.on('end', () => resolve({ status: response.statusCode ?? 0, body }))
      response.on('error', reject)
    })
    request.on('error', reject)
    request.on('timeout', () => request.destroy(new Error(`no answer to ${path} within ${timeoutMs} ms`)))
  })
}

export async function getJson<T>(where: Where, path = '/'): Promise<T> {
  return JSON.parse((await get(where, path)).body) as T
}
