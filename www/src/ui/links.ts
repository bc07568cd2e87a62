/**
 * Links open with Ctrl (or Cmd) alone, so that a click in a terminal stays a click. While the pointer rests
 * on one, its true target is shown: the text of an OSC 8 link may say anything.
 */
import { WebLinksAddon } from "@xterm/addon-web-links";
import type { ILinkHandler, Terminal } from "@xterm/xterm";
import { isMac } from "./dom";

export interface LinkHint {
  show(target: string): void;
  hide(): void;
}

export function linkHandler(hint: LinkHint): ILinkHandler {
  return {
    activate: (event, target) => open(event, target),
    hover: (_event, target) => hint.show(target),
    leave: () => hint.hide(),
    allowNonHttpProtocols: false,
  };
}

export function plainLinks(term: Terminal, hint: LinkHint): void {
  term.loadAddon(
    new WebLinksAddon((event, target) => open(event, target), {
      hover: (_event, target) => hint.show(target),
      leave: () => hint.hide(),
    }),
  );
}

function open(event: MouseEvent, target: string): void {
  if (!(isMac ? event.metaKey : event.ctrlKey)) return;
  let url: URL;
  try {
    url = new URL(target);
  } catch {
    return;
  }
  if (url.protocol !== "https:" && url.protocol !== "http:") return;
  globalThis.open(url.href, "_blank", "noopener,noreferrer");
}
