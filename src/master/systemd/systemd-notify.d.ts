/** The npm package `systemd-notify` 1.0.0 ships no types. It spawns the program of that name, inheriting `process.env`. */
declare module 'systemd-notify' {
  /**
   * Settles when the program ends: rejects with its stderr (a string) or the spawn error. It has no deadline.
   * Sends `MAINPID=<pid>` with every `ready` and `status`; without `pid`, the calling process's.
   */
  function notify(options: { ready?: boolean; status?: string; pid?: number }): Promise<unknown>
  export = notify
}
