/**
 * OSC 52, write only: a program may offer text for the clipboard, none may read it. A query is swallowed
 * without an answer, so that a program learns nothing, not even that it was refused.
 */
import type { Terminal } from "@xterm/xterm";

const MAX_BASE64 = 1_000_000;

export function clipboardWrites(term: Terminal, write: (text: string) => void): void {
  term.parser.registerOscHandler(52, (data) => {
    const payload = data.slice(data.indexOf(";") + 1);
    if (payload === "?" || payload.length === 0 || payload.length > MAX_BASE64) return true;
    try {
      const bytes = Uint8Array.from(atob(payload), (char) => char.charCodeAt(0));
      write(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    } catch {
      // Not base64, or not UTF-8: nothing is written.
    }
    return true;
  });
}
