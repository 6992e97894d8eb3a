/**
 * A picture at the end of a terminal's text, drawn again in place. No alternate screen: what is printed above it
 * stays when the command has ended, and so does the picture that was drawn last.
 *
 * ECMA-48: CUU moves up, EL erases to the end of the line, ED to the end of the screen. DECAWM (xterm's control
 * sequences) is off while we draw: a line that is wider than the terminal must not become two, or the way up is wrong.
 */

export interface Terminal {
  write(text: string): unknown
  /** 0 or undefined where it is not known. */
  readonly rows?: number
}

const up = (lines: number): string => (lines > 0 ? `\u001b[${lines}A` : '')
const ERASE_LINE = '\u001b[K'
const ERASE_BELOW = '\u001b[J'
const WRAP_OFF = '\u001b[?7l'
const WRAP_ON = '\u001b[?7h'

/** Whether a picture can be drawn there. */
export function isTerminal(stream: { readonly isTTY?: boolean }, env: NodeJS.ProcessEnv): boolean {
  return stream.isTTY === true && env['TERM'] !== 'dumb'
}

export class Screen {
  readonly #terminal: Terminal
  #picture: readonly string[] = []

  constructor(terminal: Terminal) {
    this.#terminal = terminal
  }

  /** Puts these lines in the place of the ones before; as many as fit, since what has scrolled away is out of reach. */
  draw(lines: readonly string[]): void {
    const before = this.#picture.length
    this.#picture = fitting(lines, (this.#terminal.rows || 24) - 1)
    this.#terminal.write(up(before) + this.#drawn())
  }

  /** Lines that stay, above the picture. They may wrap. */
  print(text: string): void {
    const before = this.#picture.length
    this.#terminal.write(`${up(before)}${ERASE_BELOW}${text}\n${this.#drawn()}`)
  }

  /** Takes the picture away. */
  clear(): void {
    if (this.#picture.length > 0) this.draw([])
  }

  /** One write: a terminal that paints in between would flicker. */
  #drawn(): string {
    const lines = this.#picture.map((line) => `${line}${ERASE_LINE}\n`)
    return `${WRAP_OFF}${lines.join('')}${ERASE_BELOW}${WRAP_ON}`
  }
}

function fitting(lines: readonly string[], most: number): readonly string[] {
  if (lines.length <= most || most < 2) return lines.slice(0, most)
  return [...lines.slice(0, most - 1), `(${lines.length - most + 1} lines more)`]
}
