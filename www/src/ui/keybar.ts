/** The keys a phone's keyboard lacks. Ctrl and Alt hold for the next key. */
import { h } from "./dom";
import type { TerminalView } from "./terminal";

const KEYS: readonly (readonly [label: string, name: string, normal: string, application?: string])[] = [
  ["esc", "Escape", "\x1b"],
  ["tab", "Tab", "\t"],
  ["←", "Left", "\x1b[D", "\x1bOD"],
  ["↑", "Up", "\x1b[A", "\x1bOA"],
  ["↓", "Down", "\x1b[B", "\x1bOB"],
  ["→", "Right", "\x1b[C", "\x1bOC"],
  ["|", "Pipe", "|"],
  ["/", "Slash", "/"],
  ["-", "Minus", "-"],
  ["~", "Tilde", "~"],
];

export class KeyBar {
  readonly element: HTMLElement;
  private view: TerminalView | undefined;
  private readonly ctrl: HTMLButtonElement;
  private readonly alt: HTMLButtonElement;

  constructor(paste: () => void) {
    this.ctrl = this.modifier("ctrl", "Control, for the next key");
    this.alt = this.modifier("alt", "Alt, for the next key");
    const [esc, tab, ...rest] = KEYS.map(([label, name, normal, application]) =>
      this.key(label, name, () => {
        const data = (this.view?.term.modes.applicationCursorKeysMode && application) || normal;
        this.view?.type(data);
      }),
    );
    this.element = h(
      "div",
      { class: "keybar", part: "keybar", role: "toolbar", "aria-label": "Keys" },
      esc,
      this.ctrl,
      tab,
      this.alt,
      ...rest,
      this.key("paste", "Paste", paste),
    );
    // A press must not take the focus from the terminal, or the phone's keyboard closes.
    for (const type of ["pointerdown", "mousedown"]) {
      this.element.addEventListener(type, (event) => event.preventDefault());
    }
  }

  for(view: TerminalView | undefined): void {
    this.view = view;
    if (view) view.onSticky = () => this.render();
    this.render();
  }

  private modifier(name: "ctrl" | "alt", label: string): HTMLButtonElement {
    const element = this.key(name, label, () => {
      if (!this.view) return;
      this.view.sticky = { ...this.view.sticky, [name]: !this.view.sticky[name] };
      this.render();
      this.view.focus();
    });
    element.setAttribute("aria-pressed", "false");
    return element;
  }

  private key(label: string, name: string, press: () => void): HTMLButtonElement {
    return h("button", { class: "key", type: "button", "aria-label": name, onclick: press }, label);
  }

  private render(): void {
    const sticky = this.view?.sticky ?? { ctrl: false, alt: false };
    this.ctrl.setAttribute("aria-pressed", String(sticky.ctrl));
    this.alt.setAttribute("aria-pressed", String(sticky.alt));
  }
}
