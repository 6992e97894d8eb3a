/** Enough of XML 1.0 to tell whether what we write is well-formed: one root, tags that nest, quoted attributes, known entities. */
export function isWellFormed(xml: string): boolean {
  const open: string[] = []
  let roots = 0
  const token =
    /<(\/?)([A-Za-z][\w:-]*)((?:\s+[\w:-]+="[^"<&]*(?:&(?:amp|lt|gt|quot);[^"<&]*)*")*)\s*(\/?)>|([^<>&]|&(?:amp|lt|gt|quot);)+/y
  for (token.lastIndex = 0; token.lastIndex < xml.length;) {
    const match = token.exec(xml)
    if (match === null) return false
    const [text, end, name, , empty] = match
    if (name === undefined) {
      if (open.length === 0 && text.trim() !== '') return false
    } else if (end === '/') {
      if (open.pop() !== name) return false
    } else {
      if (open.length === 0) roots++
      if (empty !== '/') open.push(name)
    }
  }
  return roots === 1 && open.length === 0
}
