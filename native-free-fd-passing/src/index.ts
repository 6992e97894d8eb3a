/** Bind a socket without accepting on it, keep it, and hand it to any number of child processes. See README.md. */
export type { Address, BoundAddress } from './address.ts'
export { BindError, errnoInfo, SendError } from './errors.ts'
export { Facade, type FacadeOptions } from './facade.ts'
export { adopt, bind, support, type HeldSocket } from './held-socket.ts'
export { bindFrom, UdpFacade, type UdpFacadeOptions } from './udp-facade.ts'
export { onReceive, type ReceivedSocket } from './receive.ts'
export { fromSystemd } from './systemd.ts'
