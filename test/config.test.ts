import { symlinkSync, unlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { configJsonSchema } from '../src/config/jsonschema.ts'
import * as c from '../src/config.ts'
import { nearest, parseJson } from '../src/config/values.ts'
import { autoWorkers } from '../src/master/workers/memory.ts'
import { PROBES } from '../src/rollout/state.ts'

type Input = { argv?: string[]; env?: NodeJS.ProcessEnv; cwd: string }
const load = ({ argv = [], env = {}, cwd }: Input) => c.loadConfig({ argv, env, cwd })

function good(input: Input): c.Config {
  const result = load(input)
  if (!result.ok) throw new Error(`refused: ${result.complaints.join(' | ')}`)
  return result.config
}
function bad(input: Input): readonly string[] {
  const result = load(input)
  if (result.ok) throw new Error('should have been refused')
  return result.complaints
}
const run = (cwd: string, ...argv: string[]) => ({ cwd, argv })
const shop = JSON.stringify({ name: '@acme/shop' })

void t.test('an entry alone is enough: defaults', async (t) => {
  const cwd = t.testdir({ 'package.json': shop })
  const config = good(run(cwd, 'server.js'))
  t.strictSame(config, {
    entry: join(cwd, 'server.js'),
    args: [],
    workers: 1,
    name: 'shop',
    cwd,
    node: process.execPath,
    nodeArgs: [],
    envFile: null,
    ready: 'listen',
    startTimeoutMs: 60_000,
    drainTimeoutMs: 30_000,
    shutdownTimeoutMs: 10_000,
    killTimeoutMs: 5_000,
    keepAliveTimeoutMs: null,
    websocketDrain: 'close',
    statistics: true,
    stackOfBlocked: true,
    minUptimeMs: 30_000,
    maxRestarts: 8,
    maxDraining: 2,
    strategy: 'switch',
    steps: [{ k: 'share', percent: 100 }],
    maxSurge: { k: 'percent', n: 100 },
    maxUnavailable: { k: 'workers', n: 0 },
    replaced: 'parked',
    minReadyMs: 0,
    progressDeadlineMs: 600_000,
    parkForMs: 0,
    analysis: null,
    onFailure: 'rollback',
    probes: {
      liveness: {
        target: { k: 'event-loop' },
        initialDelayMs: 0,
        periodMs: 10_000,
        timeoutMs: 10_000,
        successThreshold: 1,
        failureThreshold: 6,
      },
    },
    warmUp: null,
    maxMemoryBytes: null,
    maxRequests: null,
    maxAgeMs: null,
    hooks: {},
    hookTimeoutMs: 60_000,
    stopDelayMs: 0,
    user: null,
    group: null,
    listen: null,
    metrics: null,
    control: null,
    controlMode: 0o600,
    controlGroup: null,
    pidFile: null,
    logFile: null,
    logLevel: 'info',
    sources: { file: null },
  })
  const parts = [config, config.args, config.nodeArgs, config.sources, config.steps[0], config.maxSurge]
  t.ok(parts.every(Object.isFrozen), 'frozen to the bottom')
  t.ok(Object.isFrozen(config.probes.liveness?.target))
})

void t.test(
  'flags win over the environment, the environment over the file, the file over defaults',
  async (t) => {
    const cwd = t.testdir({
      'package.json': JSON.stringify({
        name: 'shop',
        usr2: {
          entry: 'a.js',
          args: ['--a'],
          workers: 2,
          drainTimeout: '2m',
          killTimeout: 1500,
          nodeArgs: ['--x'],
        },
      }),
    })
    const env = { USR2_WORKERS: '3', USR2_DRAIN_TIMEOUT: '3s', USR2_NODE_ARGS: ' --y  --z=1 ' }
    const config = good({ cwd, env, argv: ['--workers', '4', '--node-args=--b'] })
    t.match(config, { workers: 4, drainTimeoutMs: 3000, killTimeoutMs: 1500, maxRestarts: 8, args: ['--a'] })
    t.strictSame(config.nodeArgs, ['--b'])
    t.equal(config.sources.file, join(cwd, 'package.json'))
    t.strictSame(good({ cwd, env }).nodeArgs, ['--y', '--z=1'])
    t.strictSame(good({ cwd }).nodeArgs, ['--x'])
  },
)

void t.test('our flags end where the entry begins', async (t) => {
  const cwd = t.testdir({ 'package.json': shop })
  const config = good(run(cwd, '--workers', '2', 'server.js', '--workers', '9', '--', '--nope', '-h'))
  t.match(config, { workers: 2, args: ['--workers', '9', '--', '--nope', '-h'] })
  t.match(good(run(cwd, '--workers=2', '--', '-odd.js', 'x')), { entry: join(cwd, '-odd.js'), args: ['x'] })
  const spaced = good(
    run(cwd, '--node-args', '--max-old-space-size=512 --enable-source-maps', '--name=a=b', 'x.js'),
  )
  t.strictSame(spaced.nodeArgs, ['--max-old-space-size=512', '--enable-source-maps'])
  t.equal(spaced.name, 'a=b')
  t.equal(good(run(cwd, '--workers', 'auto', 'x.js')).workers, autoWorkers())
  t.ok(c.wantsHelp(['--workers', '2', '--help']))
  t.notOk(c.wantsHelp(['server.js', '--help']), "the app's own --help")
})

void t.test(
  'every complaint at once, each with the key, the place, what was given and what is right',
  async (t) => {
    const cwd = t.testdir({
      'usr2.json': JSON.stringify({ wrokers: 2, maxDraining: 0, args: ['a', 1], ready: null, config: 'x' }),
    })
    const env = { USR2_NAME: '', USR2_MAX_RESTARTS: 'many' }
    const argv = [
      '--wrokers',
      '2',
      '--workers',
      '0',
      '--drainTimeout=3s',
      '--drain-timeout',
      '-5s',
      '--config',
    ]
    const file = join(cwd, 'usr2.json')
    const all = bad({
      cwd,
      env,
      argv: [...argv, 'usr2.json', '--log-level', 'loud', '--pid-file', '--name='],
    })
    t.strictSame(all, [
      '--wrokers is no option of "usr2 run [options] <entry> [args…]"; did you mean --workers?',
      '--drainTimeout is no option of "usr2 run [options] <entry> [args…]"; did you mean --drain-timeout?',
      '--pid-file was given without a value; it must be the path of a file.',
      `"wrokers" in ${file} is no key of usr2; did you mean "workers"?`,
      `"config" in ${file} is no key of usr2.`,
      `"args[1]" in ${file} is 1; it must be a string without NUL bytes.`,
      '--workers is "0"; it must be a whole number from 1 to 1024, or auto.',
      '--name is empty; it must be a name of at most 64 characters without slashes and control characters, and not "." or "..".',
      `"ready" in ${file} is null; it must be listen or message.`,
      '--drain-timeout is "-5s"; it must be a time such as 500ms, 30s, 5m or 1h, at most 596h.',
      'USR2_MAX_RESTARTS is "many"; it must be a whole number of at least 0.',
      `"maxDraining" in ${file} is 0; it must be a whole number of at least 1.`,
      '--log-level is "loud"; it must be one of trace, debug, info, warn, error, fatal, silent.',
    ])
  },
)

void t.test('who may do what, and when: users, the control socket, the log, the stop', async (t) => {
  const cwd = t.testdir({
    'package.json': shop,
    'usr2.json': JSON.stringify({ user: 1001, group: 'www-data', controlMode: '0666', controlGroup: 'adm' }),
  })
  t.match(good(run(cwd, '--config', 'usr2.json', '--log-file', 'log/x', '--stop-delay', '5s', 'x.js')), {
    ...{ user: '1001', group: 'www-data', controlMode: 0o666, controlGroup: 'adm' },
    ...{ logFile: join(cwd, 'log/x'), stopDelayMs: 5_000 },
  })
  const env = {
    USR2_USER: 'ACME\\shop',
    USR2_CONTROL_MODE: '640',
    USR2_LOG_FILE: '/x',
    USR2_STOP_DELAY: '1m',
  }
  t.match(good({ cwd, env, argv: ['x.js'] }), {
    ...{ user: 'ACME\\shop', controlMode: 0o640, logFile: '/x', stopDelayMs: 60_000 },
  })
  t.equal(
    good(run(cwd, '--control-group', 'adm', 'x.js')).controlMode,
    0o660,
    'else nobody in it could connect',
  )
  t.strictSame(
    bad(run(cwd, '--user', '-x', '--group=a:b', '--control-mode', '0444', '--control-group', 'a b', 'x.js')),
    [
      '--user is "-x"; it must be the name or number of a user.',
      '--group is "a:b"; it must be the name or number of a group.',
      '--control-mode is "0444"; it must be permission bits such as 0600 or 0660, in quotes in a file.',
      '--control-group is "a b"; it must be the name or number of a group.',
    ],
  )
  t.strictSame(bad(run(cwd, '--stop-delay', 'soon', '--log-file', ' ', 'x.js')), [
    '--stop-delay is "soon"; it must be a time such as 500ms, 30s, 5m or 1h, at most 596h.',
    '--log-file is empty; it must be the path of a file.',
  ])
  writeFileSync(join(cwd, 'usr2.json'), JSON.stringify({ controlMode: 660, user: -1 }))
  t.strictSame(bad(run(cwd, '--config', 'usr2.json', 'x.js')).length, 2)
})

void t.test('single bad inputs', async (t) => {
  const cwd = t.testdir({ 'package.json': shop })
  const one = (pattern: RegExp, ...argv: string[]) => {
    const complaints = bad(run(cwd, ...argv))
    t.equal(complaints.length, 1, complaints.join(' | '))
    t.match(complaints[0], pattern)
  }
  for (const workers of ['0', '-1', 'abc', '1.5', '1e3', '99999', '']) {
    one(/^--workers is (empty|"[^"]+"); it must be a whole number/, '--workers', workers, 'x.js')
  }
  for (const time of ['5', '-1s', '1.5s', '30 s', '9999h', 'soon']) {
    one(/^--drain-timeout is .* a time such as/, `--drain-timeout=${time}`, 'x.js')
  }
  one(/^--start-timeout is "0"; .*more than 0/, '--start-timeout', '0', 'x.js')
  t.equal(good(run(cwd, '--drain-timeout', '0', 'x.js')).drainTimeoutMs, 0)
  one(/^--workers was given without a value; it must be/, '--workers', '--', 'x.js')
  one(/^--node-args was given without a value; it must be/, '--node-args', '--workers', '2', 'x.js')
  one(/^--node-args is empty/, '--node-args', ' ', 'x.js')
  one(/^--workers was given twice \("2" and "3"\); give it once\.$/, '--workers=2', '--workers', '3', 'x.js')
  one(/^No entry was given; say which file to run/, '--workers', '2')
  one(/^<entry> is empty; it must be/, '')
  one(/^--entry is no option .*; both come last, without a flag\.$/, '--entry', 'x.js')
  one(/^-w is no option .*"\.?/, '-w', '2', 'x.js')
  one(/^--config is empty; it must be the path of a JSON file\.$/, '--config=', 'x.js')
  one(/^--control is \/a{120}, 121 bytes; .* room for 107\.$/, '--control', `/${'a'.repeat(120)}`, 'x.js')
  for (const name of ['a/b', '..', '.', 'a'.repeat(65), 'a\nb']) {
    one(/^--name is .*; it must be a name of at most 64/, '--name', name, 'x.js')
  }
})

void t.test('unknown variables are a warning, since other tools may set them', async (t) => {
  const cwd = t.testdir({ 'package.json': shop })
  const ours = { USR2_GUEST: 'x', USR2_SLOT: '0', USR2_GENERATION: '1', USR2_CHECK: '1', USR2_WORKERS: '2' }
  const result = load({ ...run(cwd, 'x.js'), env: { ...ours, USR2_WROKERS: '2', USR2_QUUX: '' } })
  t.match(result, { ok: true, config: { workers: 2 } })
  t.strictSame(result.ok && result.warnings, [
    'USR2_WROKERS is no variable of usr2 and changes nothing; did you mean USR2_WORKERS?',
    'USR2_QUUX is no variable of usr2 and changes nothing.',
  ])
})

void t.test('config files', async (t) => {
  const dir = t.testdir({
    'package.json': shop,
    etc: {
      'usr2.json': JSON.stringify({
        $schema: 'x',
        entry: 'server.js',
        cwd: '../app',
        envFile: './.env',
        pidFile: '/run/a.pid',
        control: 'c.sock',
        node: './node',
      }),
      'here.json': '\uFEFF{"entry": "server.js", "node": "node22"}',
      'absolute.json': '{"entry": "/srv/server.js"}',
      'list.json': '[]',
      'broken.json': '{\n  "workers": 2,\n  "name": tru\n}',
      'package.json': '{}',
    },
    app: { 'package.json': '{"usr2": {"entry": "main.js", "name": "inner"}}', sub: {} },
    odd: { 'package.json': '{"usr2": 3}' },
    ruined: { 'package.json': '{"usr2": {}' },
  })
  const etc = join(dir, 'etc')
  t.match(good(run(dir, '--config', 'etc/usr2.json')), {
    entry: `${etc}/../app/server.js`,
    cwd: `${etc}/../app`,
    name: 'app',
    envFile: join(etc, '.env'),
    pidFile: '/run/a.pid',
    control: join(etc, 'c.sock'),
    node: join(etc, 'node'),
    sources: { file: join(etc, 'usr2.json') },
  })
  t.equal(good({ cwd: dir, env: { USR2_CONFIG: 'etc/usr2.json' } }).sources.file, join(etc, 'usr2.json'))
  const here = good(run(dir, '--config', 'etc/here.json'))
  t.match(
    here,
    { cwd: etc, entry: join(etc, 'server.js'), node: 'node22' },
    'a relative entry stays with its file',
  )
  t.match(good(run(dir, '--config', 'etc/absolute.json')), { cwd: dir, entry: '/srv/server.js' })
  t.match(good(run(dir, '--config', 'etc/here.json', 'x.js')), { cwd: dir, entry: join(dir, 'x.js') })

  const app = join(dir, 'app')
  const inner = { entry: join(app, 'main.js'), cwd: app, name: 'inner' }
  t.match(good(run(join(app, 'sub'))), inner, 'nearest package.json upwards')
  t.match(good(run(dir, '--cwd', 'app')), inner, 'of the app, not of the user')

  t.strictSame(bad(run(dir, '--config', 'etc/broken.json')), [
    `${etc}/broken.json, line 3, column 11: this is not JSON; a value should be there, not tru.`,
  ])
  t.strictSame(bad(run(dir, '--config', 'nope.json')), [
    `${dir}/nope.json cannot be read: there is no such file.`,
  ])
  t.strictSame(bad(run(dir, '--config', 'etc')), [`${etc} cannot be read: it is a directory.`])
  t.strictSame(bad(run(dir, '--config', 'etc/list.json')), [
    `${etc}/list.json must hold a JSON object, in braces.`,
  ])
  t.match(bad(run(dir, '--config', 'etc/package.json')), [/has no "usr2" key/])
  t.strictSame(bad(run(join(dir, 'odd'))), [
    `"usr2" of ${dir}/odd/package.json must be an object, in braces.`,
  ])
  t.match(bad(run(join(dir, 'ruined'))), [
    /line 1, column 12: .* "," or "}" should be there, not the end of the file\.$/,
  ])
})

void t.test('a reload reads everything anew', async (t) => {
  const cwd = t.testdir({ 'package.json': shop, 'c.json': '{"workers": 1}' })
  const input = run(cwd, '--config', 'c.json', 'x.js')
  const before = good(input)
  writeFileSync(
    join(cwd, 'c.json'),
    '{"workers": 2, "logLevel": "debug", "control": "s", "name": "n", "pidFile": "p"}',
  )
  const after = good(input)
  t.match([before.workers, after.workers], [1, 2])
  t.strictSame(c.needsRestart(before, after), ['name', 'control', 'pidFile', 'logLevel'])
  t.strictSame(c.needsRestart(before, { ...before, workers: 5 }), [])
  const at = (port: number) => ({ ...before, metrics: { host: '127.0.0.1', port } })
  t.strictSame(c.needsRestart(at(1), at(1)), [])
  t.strictSame(c.needsRestart(at(1), at(2)), ['metrics'])
  const other = { controlMode: 0o660, controlGroup: 'adm', logFile: '/x' }
  t.strictSame(c.needsRestart(before, { ...before, ...other }), ['controlMode', 'controlGroup', 'logFile'])
  writeFileSync(join(cwd, 'c.json'), '{"workers": ')
  t.match(bad(input), [/c\.json, line 1, column 1\d: this is not JSON/])
})

void t.test('a directory entered through a symlink keeps it, also at a reload', async (t) => {
  const dir = t.testdir({ releases: { 41: { 'package.json': '{"name": "shop"}' }, 42: {} } })
  const current = join(dir, 'current')
  symlinkSync('releases/41', current)
  const cwd = join(dir, 'releases/41')
  const env = { PWD: current }
  const first = good({ cwd, env, argv: ['app.js'] })
  t.match(first, { cwd: current, entry: join(current, 'app.js'), name: 'shop' })
  t.equal(c.startDirectory({ PWD: dir }, cwd), cwd, 'a PWD that is another directory is stale')
  t.equal(c.startDirectory({ PWD: '.' }, cwd), cwd)
  t.equal(c.startDirectory({ PWD: join(dir, 'gone') }, cwd), cwd)
  t.equal(c.startDirectory({}, cwd), cwd)
  const start = c.startDirectory(env, cwd)
  unlinkSync(current)
  symlinkSync('releases/42', current)
  t.equal(good({ cwd: start, env, argv: ['--name', 'shop', 'app.js'] }).entry, first.entry)
  t.equal(c.joinAsGiven(current, '../x.js'), `${current}/../x.js`, 'the kernel goes up from the target')
  t.equal(c.joinAsGiven('/', '././x.js'), '/x.js')
  t.equal(c.joinAsGiven('/a', '.'), '/a')
  t.equal(c.joinAsGiven('/a', './'), '/a')
  t.equal(c.joinAsGiven('/a', '.env'), '/a/.env')
})

void t.test('a name from the package, else the directory; refused when it is no name', async (t) => {
  const dir = t.testdir({
    odd: { 'package.json': JSON.stringify({ name: 'x'.repeat(70) }) },
    none: { 'package.json': '{"name": 7}' },
  })
  t.match(bad(run(join(dir, 'odd'), 'x.js')), [
    /^No name was given and the name "x+" in .*odd\/package\.json does not/,
  ])
  t.equal(good(run(join(dir, 'none'), 'x.js')).name, 'none')
  t.match(c.defaultName('/'), { ok: false, complaint: /the directory \/ does not make one; pass --name/ })
})

void t.test('the env file', async (t) => {
  const dir = t.testdir({ '.env': 'A=1\nexport B="two words" # why\n', utf16: Buffer.from('A=1', 'utf16le') })
  t.strictSame(c.readEnvFile(join(dir, '.env')), { ok: true, env: { A: '1', B: 'two words' } })
  t.strictSame(c.readEnvFile(join(dir, 'no')), {
    ok: false,
    complaint: `The env file cannot be used: ${dir}/no cannot be read: there is no such file.`,
  })
  t.match(c.readEnvFile(join(dir, 'utf16')), { ok: false, complaint: /utf16 is not UTF-8 text\.$/ })
})

void t.test('where the control socket is', async (t) => {
  const env = { USR2_CONTROL: '/c', RUNTIME_DIRECTORY: '/run/usr2/a:/run/b', XDG_RUNTIME_DIR: '/run/user/1' }
  const run = '/run/usr2/shop/control.sock'
  const own = '/run/user/1/usr2/shop.sock'
  t.strictSame(c.controlCandidates('shop', env), ['/c', '/run/usr2/a/control.sock', run, own])
  t.strictSame(c.controlCandidates(undefined, env), ['/c', '/run/usr2/a/control.sock'])
  t.strictSame(c.controlCandidates('shop', { XDG_RUNTIME_DIR: 'relative' }), [run])
  t.strictSame(c.controlDirectories({ XDG_RUNTIME_DIR: '/run/user/1' }), [
    { directory: '/run/usr2', layout: 'NAME/control.sock' },
    { directory: '/run/user/1/usr2', layout: 'NAME.sock' },
  ])
  const user = { XDG_RUNTIME_DIR: '/run/user/1' }
  const config = { name: 'shop', control: null }
  t.strictSame(
    c.defaultControlPath(config, user, () => true),
    { ok: true, path: run },
  )
  t.strictSame(
    c.defaultControlPath(config, user, (dir) => dir === '/run/user/1/usr2'),
    { ok: true, path: own },
  )
  t.match(
    c.defaultControlPath(config, user, () => false),
    {
      ok: false,
      complaint: /: \/run\/usr2\/shop, \/run\/user\/1\/usr2 cannot be written.*; pass --control PATH/,
    },
  )
  const asked = { name: 'shop', control: '/x/c.sock' }
  t.strictSame(
    c.defaultControlPath(asked, user, () => true),
    { ok: true, path: '/x/c.sock' },
  )
  t.match(
    c.defaultControlPath(asked, user, (dir) => dir !== '/x'),
    { ok: false, complaint: /: \/x cannot/ },
  )
})

void t.test('the JSON Schema and the help text know every key', async (t) => {
  const json = configJsonSchema()
  t.match(json, { $schema: 'https://json-schema.org/draft/2020-12/schema', additionalProperties: false })
  t.notOk('required' in json, 'the entry may come from the command line')
  const properties = json['properties'] as Record<string, { description?: string; default?: unknown }>
  const cwd = t.testdir({ 'package.json': shop })
  const derived = ['sources', 'replaced', 'minReady']
  const fields = Object.keys(good(run(cwd, 'x.js'))).map((key) => key.replace(/Ms$|Bytes$/, ''))
  const keys = [...fields.filter((key) => !derived.includes(key)), 'minReadySeconds', ...PROBES]
  t.strictSame(Object.keys(properties).sort(), [...keys, '$schema'].sort())
  t.ok(Object.entries(properties).every(([key, p]) => key === '$schema' || p.description))
  t.equal(properties['drainTimeout']?.default, '30s')

  const help = c.usage('run')
  const noFlags = ['entry', 'args', 'hooks', 'probes']
  for (const key of [...keys.filter((key) => !noFlags.includes(key)), 'config']) {
    t.match(help, `  --${key.replace(/[A-Z]/g, (l) => `-${l.toLowerCase()}`)} `)
  }
  t.match(help, /--drain-timeout TIME +an old .*\(30s\)/)
  t.ok(help.split('\n').every((line) => line.length <= 110))
})

void t.test('times: what is written is what is read', async (t) => {
  const units = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 }
  const write = (ms: number) => {
    const [unit, size] = Object.entries(units).findLast(([, size]) => ms % size === 0) ?? ['ms', 1]
    return `${ms / size}${unit}`
  }
  fc.assert(
    fc.property(fc.nat(1e6), fc.constantFrom(...Object.values(units)), (n, size) => {
      return c.parseDuration(write(n * size)) === n * size
    }),
  )
  fc.assert(
    fc.property(
      fc.string(),
      (text) => c.parseDuration(text) === undefined || /^(0|\d+(ms|s|m|h))$/.test(text),
    ),
  )
  t.equal(c.parseDuration('0'), 0)
})

void t.test('sizes', async (t) => {
  const sizes = { '512': 512, '0': 0, '64K': 65536, '512M': 536870912, '2G': 2147483648, '1T': 2 ** 40 }
  for (const [text, bytes] of Object.entries(sizes)) t.equal(c.parseSize(text), bytes)
  for (const text of ['', 'M', '1.5G', '-1M', '512m', '512 M', '9999999999T'])
    t.equal(c.parseSize(text), undefined)
})

void t.test('broken JSON is placed where JSON.parse gives up; sound JSON is never refused', async (t) => {
  const fault = (text: string) => {
    const result = parseJson(text)
    if (result.ok) return 'fine'
    const { line, column, expected, found } = result.fault
    return `${line}:${column} ${expected} / ${found}`
  }
  const cases: Record<string, string> = {
    '': '1:1 a value / the end of the file',
    '{"a": 1,}': '1:9 a key in double quotes / }',
    '{\n  a: 1}': '2:3 a key in double quotes / a: 1}',
    '{"a" 1}': '1:6 ":" / 1}',
    '{"a": 1\n "b": 2}': '2:2 "," or "}" / "b": 2}',
    '[1, 2': '1:6 "," or "]" / the end of the file',
    '{"a": \'x\'}': "1:7 a value / 'x'}",
    '{} x': '1:4 nothing more / x',
    '{"a": "x\ny"}': '1:7 a value / "x',
    '[01]': '1:2 a value / 01]',
    '[1.x]': '1:2 a value / 1.x]',
    '// no\n{}': '1:1 a value / // no',
  }
  for (const [text, place] of Object.entries(cases)) t.equal(fault(text), place)
  fc.assert(fc.property(fc.json(), (text) => parseJson(text).ok))
  // Sound JSON with one character replaced: ours is the place that V8 names, or the beginning of the token there.
  const edit = fc.tuple(
    fc.json(),
    fc.nat(),
    fc.constantFrom('', '"', ',', '}', ']', '{', ':', '\\', 'x', '0', '\n'),
  )
  fc.assert(
    fc.property(edit, ([sound, where, character]) => {
      const text = sound.slice(0, where % sound.length) + character + sound.slice((where % sound.length) + 1)
      const result = parseJson(text)
      if (result.ok) return true
      const before = text.split('\n').slice(0, result.fault.line - 1)
      const ours = before.join('\n').length + Math.min(before.length, 1) + result.fault.column - 1
      const theirs = Number(/at position (\d+)/.exec(v8Message(text))?.[1] ?? ours)
      return ours === theirs || (ours < theirs && /["\-\dtfn]/.test(text[ours] ?? ''))
    }),
    { numRuns: 1000 },
  )
})

function v8Message(text: string): string {
  try {
    JSON.parse(text)
    return 'fine'
  } catch (error) {
    return (error as Error).message
  }
}

void t.test('the nearest name', async (t) => {
  const known = ['workers', 'drain-timeout', 'log-level', 'name', 'node']
  const guesses = {
    wrokers: 'workers',
    worker: 'workers',
    drainTimeout: 'drain-timeout',
    log: 'log-level',
    nmae: 'name',
  }
  for (const [word, name] of Object.entries(guesses)) t.equal(nearest(word, known), name)
  t.equal(nearest('cluster-mode', known), undefined)
})

void t.test('--listen: what people type, and what `usr2 status` shows', async (t) => {
  const cwd = t.testdir({
    'c.json': JSON.stringify({ listen: [3000, './x.sock'] }),
    'text.json': JSON.stringify({ listen: '3000, udp:53' }),
    'one.json': JSON.stringify({ listen: 80 }),
  })
  const port = (port: number) => ({ kind: 'tcp', host: null, port })
  const listen = (...args: string[]) => good(run(cwd, ...args, 'x.js')).listen
  t.strictSame(listen('--listen', '3000', '--listen=udp:53'), [port(3000), { ...port(53), kind: 'udp' }])
  t.strictSame(listen('--listen', '127.0.0.1:80,[::]:80'), [
    { kind: 'tcp', host: '127.0.0.1', port: 80 },
    { kind: 'tcp', host: '::', port: 80 },
  ])
  t.strictSame(listen('--listen', 'tcp:[::]:80/ipv6only'), [
    { kind: 'tcp', host: '::', port: 80, ipv6Only: true },
  ])
  t.strictSame(listen('--listen', './a/../a.sock', '--listen', '@shop', '--listen', 'unix:/run//b.sock'), [
    { kind: 'unix', path: `${cwd}/a.sock` },
    { kind: 'unix', path: '\0shop' },
    { kind: 'unix', path: '/run/b.sock' },
  ])
  t.strictSame(listen('--config', 'c.json'), [port(3000), { kind: 'unix', path: `${cwd}/x.sock` }])
  t.strictSame(listen('--config', 'text.json'), [port(3000), { ...port(53), kind: 'udp' }])
  t.strictSame(listen('--config', 'one.json'), [port(80)])
  for (const wrong of [
    '0',
    '65536',
    'shop',
    'localhost:80',
    '::1:80',
    'udp:/run/a.sock',
    'tcp:/a',
    '3000,',
    '/a\nb',
  ])
    t.match(
      bad(run(cwd, '--listen', wrong, 'x.js')).join(),
      /--listen is ".*it must be a port, an IP address/,
      wrong,
    )
})
