/**
 * The building blocks of the schema: single values, and the keys that are structures. What is wrong within a
 * structure is said by a message that completes "it must be …" ({@link right}), beside its place.
 */
import * as v from 'valibot'
import { parsePlace } from '../address.ts'
import { parseLimit } from './limit.ts'
import { parseAmount, parseMetricsAt, wrongSteps } from './rollout.ts'
import type { HookSpec, ProbeSpec, WarmUp, WrittenStep } from './rollout.ts'
import { DURATION, MAX_TIME_MS, parseDuration, parseSize } from './values.ts'
import type { Analysis, Hook, ProbeKind } from '../rollout/state.ts'

// ---- Single values ------------------------------------------------------------------------------------------------

// No NUL bytes anywhere: spawn(2) would throw on them much later. One schema object per key: docs hang on it.
export const text = () => v.pipe(v.string(), v.regex(/^[^\u0000]*[^\s\u0000][^\u0000]*$/))
const NO_NUL = v.regex<string, undefined>(/^[^\u0000]*$/, undefined)
export const whole = (min: number, max = Number.MAX_SAFE_INTEGER) =>
  v.pipe(v.number(), v.integer(), v.minValue(min), v.maxValue(max))

export const rightTime = (minMs: number) =>
  `a time such as 500ms, 30s, 5m or 1h, ${minMs > 0 ? 'more than 0, ' : ''}at most 596h`
const duration = () => v.pipe(v.string(), v.regex(DURATION))
const timeGiven = (minMs: number) => v.union([duration(), whole(minMs, MAX_TIME_MS)])
const toMs = (given: string | number) => (typeof given === 'number' ? given : (parseDuration(given) ?? NaN))
/** In milliseconds. */
export const timeOf = (minMs: number) =>
  v.pipe(timeGiven(minMs), v.transform(toMs), whole(minMs, MAX_TIME_MS))

/** As Kubernetes' field of that name, in seconds; a time with its unit will do as well. In milliseconds. */
export const secondsOf = () =>
  v.pipe(
    v.union([duration(), whole(0, Math.floor(MAX_TIME_MS / 1000))]),
    v.transform((given) => (typeof given === 'number' ? given * 1000 : toMs(given))),
    whole(0, MAX_TIME_MS),
  )

/**
 * The rest of a pipe: what `parse` makes of the value; undefined: the value is refused, with a message, or else with
 * what is documented as right for the key.
 */
function parsed<Given, Made>(parse: (given: Given) => Made | undefined, message = '') {
  return v.rawTransform<Given, Made>(({ dataset, addIssue, NEVER }) => {
    const made = parse(dataset.value)
    if (made !== undefined) return made
    addIssue({ message })
    return NEVER
  })
}

const textOrWhole = (min: number, max: number) => v.union([text(), whole(min, max)])

export const amount = () => v.pipe(textOrWhole(0, 1024), parsed(parseAmount))
export const metricsAt = () => v.pipe(textOrWhole(1, 65_535), parsed(parseMetricsAt))
export const PLACES =
  'a port, an IP address and port, or the path of a unix socket, such as 3000, [::1]:3000, udp:53 or /run/shop.sock'
const place = () =>
  v.pipe(
    textOrWhole(1, 65_535),
    parsed((given) => parsePlace(String(given)), PLACES),
  )
export const places = () =>
  v.union([
    v.pipe(v.array(place()), v.minLength(1)),
    v.pipe(
      place(),
      v.transform((one) => [one]),
    ),
  ])
/** In bytes. */
export const sizeOf = (minBytes: number) =>
  v.pipe(
    textOrWhole(minBytes, Number.MAX_SAFE_INTEGER),
    parsed((given) => (typeof given === 'number' ? given : parseSize(given))),
    v.minValue(minBytes),
  )

// ---- Structures ---------------------------------------------------------------------------------------------------

/** Everything that is wrong with `schema` is said so: "it must be {phrase}". */
const right = <Schema extends v.GenericSchema>(phrase: string, schema: Schema): Schema =>
  v.config(schema, { message: phrase })

const named = (names: readonly string[]) => `an object with ${names.join(', ')}`
/** The message of an unknown key are the known ones, for a guess at what was meant ({@link knownKeys}). */
function structure<const Entries extends v.ObjectEntries>(entries: Entries) {
  const names = Object.keys(entries)
  return v.strictObject(entries, (issue) => (issue.expected === 'never' ? names.join(' ') : named(names)))
}

/** Whether it is about a rule of ours that has a message, rather than about the shape of the value. */
export const isRule = (issue: v.BaseIssue<unknown>): boolean =>
  issue.type === 'raw_transform' && issue.message !== ''

/** Of an issue about an unknown key: the known ones; undefined: it is about something else. */
export function knownKeys(issue: v.BaseIssue<unknown>): readonly string[] | undefined {
  return issue.type === 'strict_object' && issue.expected === 'never' ? issue.message.split(' ') : undefined
}

/** An argument of a program; it may be empty. */
export const word = () => right('a string without NUL bytes', v.pipe(v.string(), NO_NUL))
const time = (standard: string, minMs: number) => v.optional(right(rightTime(minMs), timeOf(minMs)), standard)
const atLeast = (min: number) => right(`a whole number of at least ${min}`, whole(min))
const yes = () => right('true', v.literal(true))
const port = () => whole(1, 65_535)
const urlPath = () =>
  right(
    'a path that begins with a slash, without spaces',
    v.pipe(v.string(), v.regex(/^\/[\x21-\x7e]*$/), v.maxLength(1024)),
  )

const limit = () =>
  v.pipe(
    v.string(),
    parsed(parseLimit, 'a limit such as errorRate < 1%, p99 < 300ms, p99 < 1.5x or crashes <= 0'),
  )
const analysisShape = () =>
  structure({
    interval: time('30s', 1),
    count: v.optional(atLeast(1), 3),
    failureLimit: v.optional(atLeast(0), 0),
    minRequests: v.optional(atLeast(0), 50),
    inconclusive: v.optional(right('pause, pass or fail', v.picklist(['pause', 'pass', 'fail'])), 'pause'),
    limits: v.optional(
      right(
        'a list of at least one limit, such as ["errorRate < 1%"]',
        v.pipe(v.array(limit()), v.minLength(1), v.maxLength(50)),
      ),
      [],
    ),
  })
const toAnalysis = ({ interval, ...rest }: v.InferOutput<ReturnType<typeof analysisShape>>): Analysis => ({
  intervalMs: interval,
  ...rest,
})
export const analysis = () => v.pipe(analysisShape(), v.transform(toAnalysis))

const ONE_OF_STEP = 'an object with one of share, hold and analyse'
const SHARE = 'a share from 0% to 100%, whole or with one decimal'
const step = () =>
  v.pipe(
    structure({
      share: v.optional(
        v.pipe(
          right(SHARE, v.string()),
          parsed((given: string) => {
            const percent = /^(\d{1,3}(?:\.\d)?)%$/.exec(given)?.[1]
            return percent !== undefined && Number(percent) <= 100 ? Number(percent) : undefined
          }, SHARE),
        ),
      ),
      hold: v.optional(
        right('a time such as 30s or 5m, or promote', v.union([v.literal('promote'), timeOf(1)])),
      ),
      analyse: v.optional(right('true, or an object with limits', v.union([v.literal(true), analysis()]))),
    }),
    parsed(({ share, hold, analyse }): WrittenStep | undefined => {
      if ([share, hold, analyse].filter((given) => given !== undefined).length !== 1) return undefined
      if (share !== undefined) return { k: 'share', percent: share }
      if (hold !== undefined) return { k: 'hold', forMs: hold }
      return { k: 'analyse', analysis: analyse === true || analyse === undefined ? null : analyse }
    }, ONE_OF_STEP),
  )
export const steps = () =>
  v.pipe(
    v.array(step()),
    v.rawTransform(({ dataset, addIssue, NEVER }) => {
      const message = wrongSteps(dataset.value)
      if (message === undefined) return dataset.value
      addIssue({ message })
      return NEVER
    }),
  )

const STATUSES = 'a status such as 200, or from and to, such as 200-399'
function parseStatuses(given: string | number): readonly [from: number, to: number] | undefined {
  const match = /^([1-5]\d\d)(?:-([1-5]\d\d))?$/.exec(String(given))
  if (match === null) return undefined
  const from = Number(match[1])
  const to = Number(match[2] ?? from)
  return from <= to ? [from, to] : undefined
}
const http = () =>
  structure({
    path: v.optional(urlPath(), '/'),
    headers: v.optional(
      right(
        'an object with headers',
        v.record(
          right(
            'under a name that a header can have',
            v.pipe(v.string(), v.regex(/^[!#$%&'*+.^`|~\w-]+$/)), // RFC 9110, 5.6.2: token
          ),
          right('text of one line', v.pipe(v.string(), v.regex(/^[\t\x20-\x7e]*$/))),
        ),
      ),
      {},
    ),
    expect: v.optional(
      v.pipe(right(STATUSES, v.union([v.string(), whole(100, 599)])), parsed(parseStatuses, STATUSES)),
      '200-399',
    ),
    port: v.optional(right('a port from 1 to 65535', port())),
  })
/** Kubernetes' defaults; `successThreshold` of startup and liveness is 1 there, too. */
export const probe = (kind: ProbeKind) =>
  v.union([
    v.literal('none'),
    v.pipe(
      structure({
        http: v.optional(http()),
        tcp: v.optional(right('a port from 1 to 65535, or true', v.union([v.literal(true), port()]))),
        message: v.optional(yes()),
        eventLoop: v.optional(yes()),
        initialDelay: time('0', 0),
        period: time('10s', 1),
        timeout: time('1s', 1),
        successThreshold: v.optional(
          kind === 'readiness' ? atLeast(1) : right(`1 for ${kind}`, whole(1, 1)),
          1,
        ),
        failureThreshold: v.optional(atLeast(1), kind === 'startup' ? 30 : 3),
      }),
      parsed(({ http, tcp, message, eventLoop, initialDelay, period, timeout, ...thresholds }) => {
        const targets: ProbeSpec['target'][] = []
        if (http !== undefined) targets.push({ k: 'http', ...http, port: http.port ?? null })
        if (tcp !== undefined) targets.push({ k: 'tcp', port: tcp === true ? null : tcp })
        if (message !== undefined) targets.push({ k: 'message' })
        if (eventLoop !== undefined) targets.push({ k: 'event-loop' })
        const [target, ...more] = targets
        if (target === undefined || more.length > 0) return undefined
        const times = { initialDelayMs: initialDelay, periodMs: period, timeoutMs: timeout }
        return { target, ...times, ...thresholds } satisfies ProbeSpec
      }, 'a probe of exactly one kind: http, tcp, message or eventLoop'),
    ),
  ])

const requests = () => right('a whole number from 0 to 10000', whole(0, 10_000))
const FEW = 10
const MANY_PATHS = 'a list of 1 to 100 paths'
export const warmUp = () =>
  v.pipe(
    v.union([
      requests(),
      structure({
        paths: v.optional(right(MANY_PATHS, v.pipe(v.array(urlPath()), v.minLength(1), v.maxLength(100))), [
          '/',
        ]),
        count: v.optional(requests(), FEW),
      }),
    ]),
    v.transform((given): WarmUp | null => {
      const { paths, count } = typeof given === 'number' ? { paths: ['/'], count: given } : given
      return count === 0 ? null : { paths, count }
    }),
  )

const COMMAND = 'a command of the shell, or a list of a program and its arguments'
const command = () =>
  v.optional(
    right(
      COMMAND,
      v.pipe(
        v.union([text(), v.pipe(v.array(word()), v.minLength(1))]),
        v.transform((given): HookSpec => ({
          command: typeof given === 'string' ? ['/bin/sh', '-c', given] : given,
        })),
      ),
    ),
  )

export const hooks = () =>
  structure({
    beforeSpawn: command(),
    beforePromote: command(),
    afterPromote: command(),
    afterRollback: command(),
    beforeStop: command(),
  } satisfies Record<Hook, unknown>)
