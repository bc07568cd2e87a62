/** The sheets of the shadow root, parsed once and shared by every console of the page. */
import xterm from "@xterm/xterm/css/xterm.css?inline";
import base from "./styles/base.css?inline";
import list from "./styles/list.css?inline";
import terminal from "./styles/terminal.css?inline";
import workspace from "./styles/workspace.css?inline";

let sheets: CSSStyleSheet[] | undefined;

export function styleSheets(): CSSStyleSheet[] {
  sheets ??= [xterm, base, list, workspace, terminal].map((source) => {
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(source);
    return sheet;
  });
  return sheets;
}
