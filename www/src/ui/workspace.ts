/** The terminals: their tabs, the bar above, the line below, and the keys that move between them. */
import type { UnderpassError } from "../errors";
import type { Ground, Place } from "../shell";
import { confirmPaste, helpDialog } from "./dialogs";
import { button, h, icon, text, toggle } from "./dom";
import { KeyBar } from "./keybar";
import { type Action, actionFor } from "./keys";
import { Pane } from "./pane";
import { StatusBar } from "./statusbar";
import type { Scheme } from "./terminal";

export interface WorkspaceHost {
  ground(): Ground | undefined;
  toggleList(): void;
  cycleTheme(): void;
  /** A pane opened, closed, or changed its phase. */
  changed(pane: Pane, phase: Pane["shell"]["phase"] | "closed"): void;
  selected(pane: Pane | undefined): void;
}

const MAX_TERMINALS = 24;

export class Workspace {
  readonly element: HTMLElement;
  readonly panes: Pane[] = [];
  readonly listButton: HTMLButtonElement;
  active: Pane | undefined;

  private readonly tabs = h("div", { class: "tabs", role: "tablist", "aria-label": "Terminals" });
  private readonly stage = h("div", { class: "stage" });
  private readonly themeButton: HTMLButtonElement;
  private readonly paneTools: HTMLElement;
  private readonly keybar = new KeyBar(() => void this.act("paste"));
  private readonly status = new StatusBar(() => this.active?.inspect());
  private readonly live = h("div", { class: "visually-hidden", role: "status", "aria-live": "polite" });
  private readonly toast = h("div", { class: "toast", part: "toast", hidden: true });
  private readonly strip: HTMLElement;
  private readonly help = helpDialog();
  private readonly phases = new WeakMap<Pane, string>();
  private toastTimer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly host: WorkspaceHost,
    private scheme: Scheme,
  ) {
    this.listButton = button({
      label: "Instances",
      icon: "list",
      class: "list-button",
      onclick: () => host.toggleList(),
    });
    this.themeButton = button({ label: "Theme", icon: "system", onclick: () => host.cycleTheme() });
    this.paneTools = h(
      "div",
      { class: "pane-tools" },
      button({
        label: "Another terminal on this instance",
        icon: "plus",
        onclick: () => this.act("duplicate"),
      }),
      button({ label: "Search in the output", icon: "search", onclick: () => this.act("search") }),
      button({
        label: "Copy everything in this terminal",
        icon: "copy",
        class: "wide-only",
        onclick: () => this.copyAll(),
      }),
      button({
        label: "Full screen",
        icon: "expand",
        class: "wide-only",
        onclick: () => void this.fullscreen(),
      }),
    );
    this.strip = h(
      "div",
      { class: "strip", role: "alert", hidden: true },
      h("span", { class: "strip-text" }),
      h(
        "button",
        { class: "button small", type: "button", onclick: () => host.ground()?.link.wake() },
        "Try now",
      ),
    );
    this.element = h(
      "section",
      { class: "workspace", "aria-label": "Terminals" },
      h("h1", { class: "visually-hidden" }, "Underpass console"),
      h(
        "header",
        { class: "bar", part: "bar" },
        this.listButton,
        this.tabs,
        h("span", { class: "spacer" }),
        this.paneTools,
        this.themeButton,
        button({ label: "Keys and help", icon: "help", onclick: () => this.act("help") }),
      ),
      this.strip,
      this.stage,
      this.keybar.element,
      this.status.element,
      this.live,
      this.toast,
      this.help,
    );
    this.stage.append(blank());
    this.tabs.addEventListener("keydown", (event) => this.tabKey(event));
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.select(undefined);
  }

  open(place: Place): Pane | undefined {
    const ground = this.host.ground();
    if (!ground) return undefined;
    if (this.panes.length >= MAX_TERMINALS) {
      this.say(`${MAX_TERMINALS} terminals are open, the most one page holds. Close one first.`);
      return undefined;
    }
    const number = 1 + this.panes.filter((pane) => pane.shell.place.instance === place.instance).length;
    const pane = new Pane(
      ground,
      place,
      {
        takesKey: (event) => actionFor(event) !== undefined,
        confirmPaste: (pasted) => confirmPaste(this.element, pasted),
        offerClipboard: (offered) => void this.offerClipboard(offered),
        changed: (changed) => this.changed(changed),
        close: (closing) => this.close(closing),
        select: (selected) => {
          this.select(selected);
          selected.focus();
        },
      },
      this.scheme,
      number,
    );
    this.panes.push(pane);
    this.tabs.append(pane.tab);
    this.stage.append(pane.panel);
    this.select(pane);
    void pane.start();
    return pane;
  }

  select(pane: Pane | undefined): void {
    this.active = pane;
    for (const each of this.panes) {
      const current = each === pane;
      each.tab.setAttribute("aria-selected", String(current));
      each.tab.tabIndex = current ? 0 : -1;
      if (current) each.show();
      else each.hide();
    }
    pane?.tab.scrollIntoView?.({ block: "nearest", inline: "nearest" });
    toggle(this.element, "data-empty", this.panes.length === 0);
    this.tabs.hidden = this.panes.length === 0;
    this.paneTools.hidden = this.panes.length === 0;
    this.keybar.for(pane?.view);
    this.host.selected(pane);
    this.renderStatus();
  }

  close(pane: Pane): void {
    const at = this.panes.indexOf(pane);
    if (at < 0) return;
    this.panes.splice(at, 1);
    const next = this.active === pane ? (this.panes[at] ?? this.panes[at - 1]) : this.active;
    pane.dispose();
    this.select(next);
    if (next) next.focus();
    else this.listButton.focus();
    this.host.changed(pane, "closed");
  }

  closeAll(): void {
    for (const pane of this.panes.splice(0)) pane.dispose();
    this.select(undefined);
  }

  /** The tunnel changed: shells on a closed one are told why, and a lost one shows that it comes back. */
  linkChanged(): void {
    const link = this.host.ground()?.link;
    if (link?.state === "closed" && link.error) {
      for (const pane of this.panes) pane.shell.lost(link.error);
    }
    const away = link?.state === "reconnecting" && this.panes.some((pane) => pane.live);
    if (this.strip.hidden === away) {
      this.strip.hidden = !away;
      const said = this.strip.querySelector(".strip-text");
      if (said)
        text(said, "The connection was lost. Reconnecting; your shells wait and what you type is kept.");
    }
    this.renderStatus();
  }

  set look(look: { scheme: Scheme; choice: "light" | "dark" | "system" }) {
    this.scheme = look.scheme;
    for (const pane of this.panes) pane.view.scheme = look.scheme;
    const name = look.choice === "system" ? "as the system" : look.choice;
    this.themeButton.replaceChildren(
      icon(look.choice === "light" ? "sun" : look.choice === "dark" ? "moon" : "system"),
    );
    this.themeButton.setAttribute("aria-label", `Theme: ${name}`);
    this.themeButton.title = `Theme: ${name}`;
  }

  renderStatus(): void {
    this.status.render(this.host.ground()?.link, this.active);
  }

  /** Shown for a while, read out, and never the only place of an error that stays. */
  say(message: string, error?: UnderpassError, action?: { label: string; run(): void }): void {
    clearTimeout(this.toastTimer);
    toggle(this.toast, "data-tone", error && "bad");
    this.toast.replaceChildren(h("span", {}, message));
    if (error) this.toast.append(h("code", { class: "problem-code" }, error.code));
    if (action) {
      this.toast.append(
        h(
          "button",
          {
            class: "button small",
            type: "button",
            onclick: () => {
              this.toast.hidden = true;
              action.run();
            },
          },
          action.label,
        ),
      );
    }
    this.toast.hidden = false;
    this.announce(message);
    this.toastTimer = setTimeout(
      () => {
        this.toast.hidden = true;
      },
      action || error ? 9000 : 3500,
    );
  }

  announce(message: string): void {
    text(this.live, message);
  }

  async copy(value: string, said: string): Promise<void> {
    try {
      await navigator.clipboard.writeText(value);
      this.say(said);
    } catch {
      this.say("The browser did not allow copying. Select the text and use the browser's own Copy.");
    }
  }

  private copyAll(): void {
    if (this.active) void this.copy(this.active.view.text(), "Copied everything in this terminal.");
  }

  private changed(pane: Pane): void {
    const phase = pane.shell.phase;
    if (this.phases.get(pane) !== phase) {
      this.phases.set(pane, phase);
      this.announce(pane.summary);
      this.host.changed(pane, phase);
    }
    if (pane === this.active) this.renderStatus();
  }

  private key(event: KeyboardEvent): void {
    const action = actionFor(event);
    if (!action) return;
    // The browser's own paste fires the event that xterm reads, with no permission to ask for.
    if (action === "paste") return;
    const inTerminal = event
      .composedPath()
      .some((node) => node instanceof Element && node.classList.contains("terminal-box"));
    if (!inTerminal && action === "copy") return;
    event.preventDefault();
    event.stopPropagation();
    void this.act(action);
  }

  private async act(action: Action): Promise<void> {
    const pane = this.active;
    switch (action) {
      case "copy":
        if (pane?.view.selection) await this.copy(pane.view.selection, "Copied.");
        break;
      case "paste":
        await this.pasteFromButton(pane);
        break;
      case "search":
        pane?.search.open();
        break;
      case "list":
        this.host.toggleList();
        break;
      case "duplicate":
        if (pane) this.open(pane.shell.place);
        break;
      case "close":
        if (pane) this.close(pane);
        break;
      case "next":
      case "previous":
        this.step(action === "next" ? 1 : -1);
        break;
      case "help":
        this.help.showModal();
    }
  }

  private async pasteFromButton(pane: Pane | undefined): Promise<void> {
    if (!pane) return;
    try {
      const pasted = await navigator.clipboard.readText();
      const plain = pane.view.term.modes.bracketedPasteMode || !/[\r\n]/.test(pasted.trimEnd());
      if (plain || (await confirmPaste(this.element, pasted))) pane.view.paste(pasted);
      pane.view.focus();
    } catch {
      this.say("The browser did not allow reading the clipboard. Paste with its own menu instead.");
    }
  }

  private step(by: number): void {
    if (!this.active || this.panes.length < 2) return;
    const at = this.panes.indexOf(this.active) + by;
    const next = this.panes[(at + this.panes.length) % this.panes.length];
    this.select(next);
    next?.focus();
  }

  /** The keys of a tab list: arrows move and select, Delete closes, Enter goes into the terminal. */
  private tabKey(event: KeyboardEvent): void {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const at = this.active ? this.panes.indexOf(this.active) : -1;
    const last = this.panes.length - 1;
    const to = {
      ArrowRight: at === last ? 0 : at + 1,
      ArrowLeft: at === 0 ? last : at - 1,
      Home: 0,
      End: last,
    }[event.key];
    if (to !== undefined) {
      this.select(this.panes[to]);
      this.panes[to]?.tab.focus();
    } else if (event.key === "Delete" && this.active) this.close(this.active);
    else if (event.key === "Enter" || event.key === " ") this.active?.focus();
    else return;
    event.preventDefault();
  }

  private async offerClipboard(offered: string): Promise<void> {
    try {
      await navigator.clipboard.writeText(offered);
      this.say("The program copied text to your clipboard.");
    } catch {
      this.say("The program wants to copy text to your clipboard.", undefined, {
        label: "Copy it",
        run: () => void this.copy(offered, "Copied."),
      });
    }
  }

  /** In full screen a browser may hand over Ctrl+W, Ctrl+T and their kin. */
  private async fullscreen(): Promise<void> {
    if (document.fullscreenElement) {
      await document.exitFullscreen();
      return;
    }
    const root = this.element.getRootNode() as ShadowRoot;
    try {
      await root.host.requestFullscreen();
      const { keyboard } = navigator as { keyboard?: { lock(keys?: string[]): Promise<void> } };
      await keyboard?.lock(["KeyW", "KeyT", "KeyN", "Tab"]);
    } catch {
      // Refused: the terminal works the same in its window.
    }
    this.active?.focus();
  }
}

/** What stands where terminals will: the way a keystroke goes, and who can read it. */
function blank(): HTMLElement {
  const stop = (name: string, what: string) =>
    h(
      "li",
      { class: "route-stop" },
      h("span", { class: "route-dot", "aria-hidden": "true" }),
      h("b", {}, name),
      h("span", {}, what),
    );
  return h(
    "div",
    { class: "blank", part: "empty" },
    h(
      "div",
      { class: "blank-inner" },
      h("h2", {}, "Choose an instance"),
      h(
        "p",
        { class: "muted" },
        "A terminal opens here. What you type is encrypted from one end of this line to the other.",
      ),
      h(
        "ol",
        { class: "route" },
        stop("This tab", "makes the keys, keeps them"),
        stop("Relay", "carries ciphertext"),
        stop("Gateway", "routes inside your network"),
        stop("Instance", "proves who it is, runs your shell"),
      ),
    ),
  );
}
