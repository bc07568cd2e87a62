/**
 * The console's own keys. A terminal cannot tell Ctrl+Shift+letter from Ctrl+letter, so no program waits for
 * one: that is where ours live, with Cmd on a Mac, which no shell ever sees.
 */
import { isMac } from "./dom";

export type Action =
  "copy" | "paste" | "search" | "list" | "duplicate" | "close" | "next" | "previous" | "help";

const CTRL_SHIFT: Record<string, Action> = {
  KeyC: "copy",
  KeyV: "paste",
  KeyF: "search",
  KeyE: "list",
  KeyD: "duplicate",
  KeyX: "close",
  KeyH: "help",
  BracketRight: "next",
  BracketLeft: "previous",
};

const COMMAND: Record<string, Action> = { KeyC: "copy", KeyV: "paste", KeyF: "search" };

export function actionFor(event: KeyboardEvent): Action | undefined {
  if (event.altKey) return undefined;
  if (event.ctrlKey && event.shiftKey && !event.metaKey) return CTRL_SHIFT[event.code];
  if (isMac && event.metaKey && !event.ctrlKey && !event.shiftKey) return COMMAND[event.code];
  return undefined;
}

const shift = isMac ? "⌃⇧" : "Ctrl+Shift+";

/** For the help dialog, in the order it shows them. */
export const SHORTCUTS: readonly (readonly [keys: string, what: string])[] = [
  [isMac ? "⌘C" : "Ctrl+Shift+C", "Copy the selection"],
  [isMac ? "⌘V" : "Ctrl+Shift+V", "Paste"],
  [isMac ? "⌘F" : "Ctrl+Shift+F", "Search in the output"],
  [`${shift}E`, "Go to the list of instances, and back"],
  [`${shift}D`, "Another terminal on the same instance"],
  [`${shift}]`, "Next terminal"],
  [`${shift}[`, "Previous terminal"],
  [`${shift}X`, "Close the terminal"],
  [`${shift}H`, "This help"],
  ["Enter", "Reconnect, once a shell has ended"],
  [isMac ? "⌘ click" : "Ctrl+click", "Open a link"],
  ["Shift+drag", "Select while a program has the mouse"],
];
