/**
 * The text of the units that run an app under usr2. Pure: what the machine is like comes in as a {@link UnitSpec}.
 *
 * `systemd/usr2@.service` and `systemd/usr2@.socket` are {@link TEMPLATE} in this text (a test compares them), and
 * `usr2 systemd` fills it for one app. So what is known of a directive stands here once, as the comment beside it:
 * units are read by the person whose app does not start.
 */
import { parsePlace } from '../address.ts'

export interface UnitSpec {
  /** The app's name, or `%i` in the template. */
  readonly name: string
  /** Who wrote the file and how it is changed: comment lines without their `#`. */
  readonly header: readonly string[]
  /** See {@link commandLine}. */
  readonly execStart: string
  readonly execReload: string
  /** The directory that relative paths of the command line are seen from; null: `/`. */
  readonly cwd: string | null
  /** Null: DynamicUser. */
  readonly user: string | null
  readonly group: string | null
  readonly times: UnitTimes
  /** Whether something that the service reads lies in /home, /root or /run/user. */
  readonly readsHome: boolean
  /** The version of systemd that is to read it; null: whichever. */
  readonly systemd: number | null
  readonly listen: readonly Listen[]
}

export interface Listen {
  readonly directive: 'ListenStream' | 'ListenDatagram'
  /** As systemd.socket(5) has it. */
  readonly value: string
}

/** Whole seconds; null: no limit. */
export interface UnitTimes {
  readonly startSec: number | null
  /** `--timeout` of `usr2 reload`: below `startSec`, which is also systemd's limit of a reload. */
  readonly reloadSec: number | null
  readonly stopSec: number
  /** Where the figures come from, for the comments. */
  readonly startIs: readonly string[]
  readonly stopIs: readonly string[]
}

/**
 * The descriptor that speaks to systemd came with 253. Before, `systemd-analyze verify` complains of the unknown key, and the
 * master has only a child to send a notice by, which NotifyAccess=main would not let through for a user that is not root.
 */
export const FIRST_WITH_OPEN_FILE = 253

// ---- Words --------------------------------------------------------------------------------------------------------

/** systemd.unit(5): `%` begins a specifier. */
const percent = (text: string): string => text.replaceAll('%', '%%')

/** systemd.syntax(7): quoted where a blank, a quote or a `;` would end or change the word. */
export function quoted(text: string): string {
  if (/^[\w/.:=@,+%$-]+$/.test(text)) return text
  const escaped = text
    .replace(/[\\"]/g, '\\$&')
    .replace(/[\u0000-\u001f\u007f]/g, (char) => `\\x${char.charCodeAt(0).toString(16).padStart(2, '0')}`)
  return `"${escaped}"`
}

/**
 * An Exec line: systemd.service(5), "Command lines".
 *
 * @param program an absolute path; `$` is an ordinary character in it, and in no other word
 */
export function commandLine(program: string, args: readonly string[]): string {
  return [percent(program), ...args.map((arg) => percent(arg).replaceAll('$', '$$$$'))].map(quoted).join(' ')
}

/** Names that are the same in a unit's name, in `%i` and in a directory: systemd.unit(5), without its escapes. */
export const UNIT_NAME = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$/

export const serviceName = (name: string): string => `usr2@${name}.service`
export const socketName = (name: string): string => `usr2@${name}.socket`

/**
 * What `--listen` says, as systemd takes it: `3000`, `127.0.0.1:3000`, `[::1]:3000`, `/run/shop.sock`, `@shop` (abstract),
 * and with `udp:` before a port or an address a datagram socket.
 *
 * @returns undefined for any other text; host names too, which systemd does not look up
 */
export function parseListen(text: string): Listen | undefined {
  const place = parsePlace(text)
  const [, scheme, value = ''] = /^(?:(tcp|udp|unix):)?(.*)$/s.exec(text) ?? []
  if (place === undefined || (scheme !== undefined && scheme !== 'udp') || value.endsWith('/ipv6only'))
    return undefined
  if (place.kind === 'unix' && !/^[/@]/.test(value)) return undefined
  return { directive: place.kind === 'udp' ? 'ListenDatagram' : 'ListenStream', value }
}

// ---- The units ----------------------------------------------------------------------------------------------------

const seconds = (sec: number | null): string => (sec === null ? 'infinity' : String(sec))
const comment = (lines: readonly string[]): string => lines.map((line) => `# ${line}`).join('\n')
const block = (...lines: readonly (string | false)[]): string =>
  lines.filter((line) => line !== false).join('\n')

export function serviceText(spec: UnitSpec): string {
  const { name, times } = spec
  const socket = spec.listen.length > 0 && socketName(name)
  const shown = name === '%i' ? 'shop' : name
  const main = spec.systemd !== null && spec.systemd >= FIRST_WITH_OPEN_FILE
  return `${comment(spec.header)}

[Unit]
Description=Node.js app ${name} under usr2
After=network-online.target
Wants=network-online.target
${block(
  socket && '# systemd holds the sockets: connections wait in them while the service restarts.',
  socket && `Requires=${socket}`,
  socket && `After=${socket}`,
  '# An app that cannot start is tried five times in a minute, then left for a person to look at.',
)}
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
# Not notify-reload: systemd before 253 takes that for Type=simple, and such a reload cannot fail.
Type=notify
${notifyText(main, spec.systemd === null)}
ExecStart=${spec.execStart}
# Ends with the verdict: \`systemctl reload\` fails when the new version does, and the old one serves on.
${
  times.reloadSec === null
    ? '# No --timeout: a step of the rollout waits for a person.'
    : '# Below TimeoutStartSec=, which is also the limit of a reload: past it systemd would end this client instead.'
}
ExecReload=${spec.execReload}
${block(
  spec.cwd !== null &&
    '# PWD too: a link, such as one to the current release, is then followed anew at each reload.',
  spec.cwd !== null && `WorkingDirectory=${percent(spec.cwd)}`,
  spec.cwd !== null && `Environment=${quoted(`PWD=${percent(spec.cwd)}`)}`,
  'Environment=NODE_ENV=production',
)}

${comment(times.startIs)}
TimeoutStartSec=${seconds(times.startSec)}
${comment(times.stopIs)}
TimeoutStopSec=${times.stopSec}
# Beats while the master is well and half of the workers answer. One that hangs is the master's to replace.
WatchdogSec=20
# SIGTERM to the master alone, which drains the workers; what is left when it has gone is killed.
KillMode=mixed
Restart=on-failure
RestartSec=500ms
# Exit status 2 is a bad config; trying again does not mend it.
RestartPreventExitStatus=2
# A reload that a stop puts an end to; by any other status the stop would count as failed.
SuccessExitStatus=143
# A worker killed for memory is the master's to replace, not a reason to stop the others.
OOMPolicy=continue
# More connections than that: raise it.
LimitNOFILE=65536
# A core dump holds the app's secrets. To look into a crash of V8: infinity.
LimitCORE=0
# Threads count as well; each worker has about a dozen.
TasksMax=4096

# The control socket: /run/usr2/${shown}/control.sock. A directory per app: one shared by all would be removed with the
# first that stops.
RuntimeDirectory=usr2/${name}
RuntimeDirectoryMode=0750
# Where the app may keep files: $STATE_DIRECTORY, /var/lib/usr2/${shown}.
StateDirectory=usr2/${name}

${userText(spec)}
# Files and unix sockets of the app are closed to others. A web server of another user before a unix socket: 0002,
# and a common group (SupplementaryGroups=).
UMask=0027

# What most apps never need. Each line works with Node 20 to 26; if your app fails, loosen the one that names it.
# No setuid program (sudo, ping, a sandboxed Chromium) gains rights: no.
NoNewPrivileges=yes
# Ports below 1024 without a .socket: CapabilityBoundingSet=CAP_NET_BIND_SERVICE,
# AmbientCapabilities=CAP_NET_BIND_SERVICE and PrivateUsers=no. The workers have the capability too.
CapabilityBoundingSet=
AmbientCapabilities=
# All users but root and the service's own look like "nobody" to it: no, where the app compares owners of files.
PrivateUsers=yes
# Shares /tmp with other services: no, and DynamicUser=no with it.
PrivateTmp=yes
# Mounts that are made later (a USB disk, an autofs) are seen still, the app's own stay its own.
PrivateMounts=yes
# GPUs, serial lines, cameras: PrivateDevices=no and DeviceAllow=.
PrivateDevices=yes
DevicePolicy=closed
# The file system is read-only but for the directories above. More: ReadWritePaths=.
ProtectSystem=strict
${
  spec.readsHome
    ? '# The app, Node or usr2 lies in a home directory. Once none does: yes.\nProtectHome=read-only'
    : '# An app, or a Node of nvm, in /home or /root: ProtectHome=read-only.\nProtectHome=yes'
}
# Processes of other users are not in /proc; monitoring agents want default.
ProtectProc=invisible
# Setting the clock, the host's name, kernel variables: no; reading them works.
ProtectClock=yes
ProtectHostname=yes
ProtectKernelTunables=yes
# The kernel's log (dmesg), its modules, cgroups that the app would make itself: no.
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
# AF_UNIX is what the master and its workers speak. Without AF_NETLINK os.networkInterfaces() throws, and Fastify asks
# it at every start on 0.0.0.0. Raw sockets: AF_PACKET.
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
# A headless browser with a sandbox of its own: RestrictNamespaces=no.
RestrictNamespaces=yes
# Real-time scheduling (audio): no.
RestrictRealtime=yes
# Making files setuid or setgid, as installers and some archive programs do: no.
RestrictSUIDSGID=yes
# Shared memory that is to outlive the service: no.
RemoveIPC=yes
# Emulating another kernel's personality (linux32): no.
LockPersonality=yes
KeyringMode=private
# 32-bit programs: SystemCallArchitectures=native x86.
SystemCallArchitectures=native
# os.setPriority() is in @resources. A refused call is an error to the app, not its death: V8 tries pkey_alloc(2).
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
# Left out on purpose: MemoryDenyWriteExecute=yes ends V8 (SIGTRAP), ProcSubset=pid empties os.cpus(),
# IPAddressDeny=any cuts off the app's own connections.

[Install]
WantedBy=multi-user.target
${socket ? `Also=${socket}\n` : ''}`
}

function notifyText(main: boolean, anyVersion: boolean): string {
  if (main) {
    return `# The master speaks to systemd through this descriptor; no other process of the service is listened to.
NotifyAccess=main
OpenFile=/run/systemd/notify:notify:graceful`
  }
  const better = anyVersion
    ? `
# systemd 253 and newer: NotifyAccess=main and OpenFile=/run/systemd/notify:notify:graceful instead. Then the master
# speaks for itself, and no other process of the service is listened to. Older ones do not know the key.`
    : ''
  return `# The notice comes from a child of the master, the program systemd-notify. Workers are not given the socket's address.${better}
NotifyAccess=all`
}

function userText({ user, group }: UnitSpec): string {
  if (user === null) {
    return `# A user made for the service and gone with it. For one of your own: User=shop and DynamicUser=no.
DynamicUser=yes`
  }
  return block(
    '# A user that other services share (nobody, www-data) can read and stop this one.',
    `User=${percent(user)}`,
    group !== null && `Group=${percent(group)}`,
  )
}

export function socketText({ name, header, listen }: Pick<UnitSpec, 'name' | 'header' | 'listen'>): string {
  return `${comment(header)}

[Unit]
Description=Listening sockets of the Node.js app ${name}

[Socket]
# What the app listens on, as it says it: listen(3000) is 3000, listen(3000, '127.0.0.1') is 127.0.0.1:3000. A socket that
# the app does not ask for is reported in the log of usr2. systemd cannot read the port from the app or its config.
${listen.map(({ directive, value }) => `${directive}=${percent(value)}`).join('\n')}
# Connections that may wait to be accepted. The kernel caps it at net.core.somaxconn.
Backlog=4096
Service=${serviceName(name)}

[Install]
WantedBy=sockets.target
`
}

// ---- The template -------------------------------------------------------------------------------------------------

/** `systemd/usr2@.service` and `.socket`; its times are those of a configuration that says nothing of times. */
export const TEMPLATE: UnitSpec = {
  name: '%i',
  header: [
    'One Node.js app under usr2: `systemctl start usr2@shop` runs what /etc/usr2/shop.json says, under the name `shop`.',
    'Change it by `systemctl edit usr2@shop` (a drop-in), not here. See README.md beside this file. `usr2 systemd print`',
    'writes this text for an app of yours, with its paths and times.',
  ],
  execStart: '/usr/local/bin/usr2 run --config /etc/usr2/%i.json --name %i',
  execReload: '/usr/local/bin/usr2 reload --timeout 80s',
  cwd: null,
  user: null,
  group: null,
  times: {
    startSec: 90,
    reloadSec: 80,
    stopSec: 60,
    startIs: ['Above startTimeout (60 s).'],
    stopIs: [
      'Above the stop budget: drainTimeout 30 s (raised to keep-alive + 2 s where that is longer) + shutdownTimeout 10 s',
      '+ killTimeout 5 s. Raise it with them.',
    ],
  },
  readsHome: false,
  systemd: null,
  listen: [],
}

/** An example: an instance has a port of its own, by a drop-in. */
export const TEMPLATE_SOCKET: Pick<UnitSpec, 'name' | 'header' | 'listen'> = {
  name: '%i',
  header: [
    'An example: the sockets of usr2@shop are held by systemd, so that connections wait while the master restarts, and',
    'port 80 needs no capability. The port below is for you to change, for each app by `systemctl edit usr2@shop.socket`:',
    '    [Socket]',
    '    ListenStream=',
    '    ListenStream=80',
    'Then `systemctl enable --now usr2@shop.socket`. `usr2 systemd install --listen 80` writes both units for one app.',
  ],
  listen: [{ directive: 'ListenStream', value: '3000' }],
}
