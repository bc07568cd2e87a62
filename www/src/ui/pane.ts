/** One terminal with what belongs to it: its tab, its ladder, its search bar, its last words. */
import type { UnderpassError } from "../errors";
import { type Ground, type Place, Shell } from "../shell";
import type { ExitStatus } from "../surface";
import { button, duration, h, icon, isMac, text, toggle } from "./dom";
import { LadderView, problem } from "./ladder";
import { SearchBar } from "./search";
import { type Scheme, type TerminalHost, TerminalView } from "./terminal";

export interface PaneHost extends Pick<TerminalHost, "takesKey" | "confirmPaste" | "offerClipboard"> {
  changed(pane: Pane): void;
  close(pane: Pane): void;
  select(pane: Pane): void;
}

let made = 0;

export class Pane {
  readonly id = `terminal-${++made}`;
  readonly tab: HTMLElement;
  readonly panel: HTMLElement;
  readonly view: TerminalView;
  readonly shell: Shell;
  readonly search: SearchBar;

  private readonly tabName = h("span", { class: "tab-name" });
  private readonly tabState = h("span", { class: "visually-hidden" });
  private readonly ladder = new LadderView();
  private readonly title = h("h2", { class: "card-title", id: `${this.id}-title` });
  private readonly retry = h(
    "button",
    { class: "button primary", type: "button" },
    icon("retry"),
    "Try again",
  );
  private readonly dismiss = h("button", { class: "button", type: "button" }, "Cancel");
  private readonly overlay: HTMLElement;
  private readonly banner = h("div", { class: "banner", part: "banner", hidden: true });
  private readonly hint = h("div", { class: "link-hint", "aria-hidden": "true", hidden: true });
  private shownPhase = "";
  /** The ladder of a shell that runs, looked at again. */
  private inspecting = false;

  constructor(
    ground: Ground,
    place: Place,
    private readonly host: PaneHost,
    scheme: Scheme,
    number: number,
  ) {
    const label = `${place.app} ${place.instance}`;
    const hint = this.hint;
    this.view = new TerminalView(
      {
        takesKey: (event) => this.takesKey(event),
        confirmPaste: (pasted) => host.confirmPaste(pasted),
        offerClipboard: (offered) => host.offerClipboard(offered),
        bell: () => this.mark(),
        title: (title) => toggle(this.tab, "title", title || this.shell.host),
        resized: () => host.changed(this),
        link: {
          show: (target) => {
            hint.hidden = false;
            text(hint, `${target}   ${isMac ? "⌘" : "Ctrl+"}click to open`);
          },
          hide: () => {
            hint.hidden = true;
          },
        },
      },
      scheme,
      `Terminal, ${label}. ${isMac ? "Control" : "Ctrl"}+Shift+E leaves it.`,
    );
    this.shell = new Shell(ground, place, this.view.port, () => this.render());
    this.search = new SearchBar(this.view);

    const closer = h("span", { class: "tab-close", "aria-hidden": "true" }, icon("close"));
    closer.addEventListener("click", (event) => {
      event.stopPropagation();
      host.close(this);
    });
    this.tab = h(
      "div",
      {
        class: "tab",
        part: "tab",
        role: "tab",
        id: `${this.id}-tab`,
        "aria-controls": this.id,
        title: this.shell.host,
      },
      h("span", { class: "tab-dot", "aria-hidden": "true" }),
      this.tabName,
      this.tabState,
      closer,
    );
    this.tabName.append(
      h("span", { class: "tab-app" }, place.app),
      h("span", { class: "tab-instance" }, number > 1 ? `${place.instance} (${number})` : place.instance),
    );
    this.tab.addEventListener("click", () => host.select(this));
    this.tab.addEventListener("auxclick", (event) => {
      if (event.button === 1) host.close(this);
    });

    this.retry.addEventListener("click", () => void this.connect());
    this.dismiss.addEventListener("click", () => {
      if (this.inspecting) this.inspect(false);
      else host.close(this);
    });
    this.overlay = h(
      "div",
      { class: "overlay", role: "group", "aria-labelledby": `${this.id}-title` },
      h(
        "div",
        { class: "card", part: "card" },
        this.title,
        h("p", { class: "card-host" }, this.shell.host),
        this.ladder.element,
        h("div", { class: "card-actions" }, this.dismiss, this.retry),
      ),
    );
    this.overlay.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.inspecting) this.inspect(false);
    });
    this.panel = h(
      "div",
      { class: "panel", role: "tabpanel", id: this.id, "aria-labelledby": `${this.id}-tab` },
      h("div", { class: "screen" }, this.view.element, this.search.element, this.hint, this.overlay),
      this.banner,
    );
    this.render();
  }

  async start(): Promise<void> {
    await this.view.open();
    await this.connect();
  }

  async connect(): Promise<void> {
    const again = this.shell.exit !== undefined || this.shell.error !== undefined;
    this.inspecting = false;
    if (again) this.view.reset();
    const climb = this.shell.connect();
    this.view.focus();
    await climb;
    if (this.shell.phase === "open") this.view.focus();
    else if (this.tab.ariaSelected === "true") this.retry.focus();
  }

  show(): void {
    this.panel.hidden = false;
    this.tab.removeAttribute("data-mark");
    this.view.show();
  }

  hide(): void {
    this.panel.hidden = true;
    this.view.hide();
  }

  focus(): void {
    if (this.shell.phase === "failed" && !this.overlay.hidden) this.retry.focus();
    else this.view.focus();
  }

  /** Shows the ladder of a running shell, or puts it away. */
  inspect(show = !this.inspecting): void {
    this.inspecting = show;
    this.render();
    if (show) this.dismiss.focus();
    else this.view.focus();
  }

  get live(): boolean {
    return this.shell.phase === "open" || this.shell.phase === "connecting";
  }

  /** What a person should hear about this terminal, in one line. */
  get summary(): string {
    const { phase, exit, error, place } = this.shell;
    const name = `${place.app} ${place.instance}`;
    if (phase === "connecting") return `Connecting to ${name}`;
    if (phase === "open") return `Connected to ${name}`;
    if (phase === "exited") return `${name}: ${ended(exit)}`;
    return `${name}: ${error?.message ?? "failed"} ${error?.hint ?? ""}`;
  }

  dispose(): void {
    this.shell.end();
    this.view.dispose();
    this.tab.remove();
    this.panel.remove();
  }

  private takesKey(event: KeyboardEvent): boolean {
    const over = this.shell.phase === "exited" || this.shell.phase === "failed";
    if (over && event.key === "Enter") {
      if (event.type === "keydown" && !event.repeat) {
        event.preventDefault();
        void this.connect();
      }
      return true;
    }
    return this.host.takesKey(event);
  }

  private mark(): void {
    if (this.panel.hidden) toggle(this.tab, "data-mark", "bell");
  }

  private render(): void {
    const { phase, ladder, error, place } = this.shell ?? {};
    if (!phase) return;
    this.ladder.render(ladder);
    // A shell that ran keeps its output in sight: how it ended stands below it, not over it.
    const ran = ladder.total !== undefined;
    this.overlay.hidden = !(phase === "connecting" || (phase === "failed" && !ran) || this.inspecting);
    toggle(this.overlay, "data-phase", phase);
    if (phase !== this.shownPhase) {
      this.shownPhase = phase;
      if (phase !== "open") this.inspecting = false;
      const words = { connecting: "connecting", open: "running", exited: "ended", failed: "failed" };
      text(this.tabState, `, ${words[phase]}`);
      this.tab.dataset.phase = phase;
      this.banner.hidden = !(phase === "exited" || (phase === "failed" && ran));
      if (!this.banner.hidden) this.renderBanner(error);
    }
    const where = `${place.app} in ${place.region}`;
    text(
      this.title,
      this.inspecting && ladder.total !== undefined
        ? `From click to prompt in ${duration(ladder.total)}`
        : phase === "failed"
          ? `No shell on ${where}`
          : `Connecting to ${where}`,
    );
    this.retry.hidden = phase !== "failed";
    text(this.dismiss, this.inspecting || phase === "failed" ? "Close" : "Cancel");
    this.host.changed(this);
  }

  private renderBanner(error: UnderpassError | undefined): void {
    const { exit } = this.shell;
    const good = exit?.code === 0;
    toggle(this.banner, "data-tone", error ? "bad" : good ? "good" : "plain");
    this.banner.replaceChildren(
      h(
        "div",
        { class: "banner-text" },
        ...(error ? problem(error) : [h("p", { class: "banner-exit" }, `${ended(exit)}.`)]),
      ),
      h(
        "div",
        { class: "banner-actions" },
        h(
          "button",
          { class: "button primary", type: "button", onclick: () => void this.connect() },
          "Reconnect",
          h("kbd", { "aria-hidden": "true" }, "↵"),
        ),
        button({ label: "Close the terminal", icon: "close", onclick: () => this.host.close(this) }),
      ),
    );
  }
}

function ended(exit: ExitStatus | undefined): string {
  if (exit?.signal) return `Ended by signal ${exit.signal}`;
  if (exit?.code !== undefined) return `Exited with status ${exit.code}`;
  return "The shell ended without a status";
}
