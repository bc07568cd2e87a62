/**
 * `<underpass-console>`: a list of instances and terminals on them. Everything it knows comes in by its
 * properties and goes out by events; it reads no address bar, no storage and no global.
 *
 *     import "@underpass/console/element";
 *     const console = document.createElement("underpass-console");
 *     console.credentials = async () => ({ session: await mySession(), api: "https://underpass.example" });
 *     document.body.append(console);
 */
import { Api, type App, isSignedOut } from "./api";
import { loadClient, type WasmSource } from "./client";
import { UnderpassError, within } from "./errors";
import { type Identity, makeIdentity } from "./identity";
import type { Step } from "./ladder";
import { Link } from "./link";
import type { Ground, Phase, Place } from "./shell";
import { styleSheets } from "./styles";
import type { ExitStatus } from "./surface";
import { confirmProgram, confirmSwitch } from "./ui/dialogs";
import { h } from "./ui/dom";
import { fontsReady } from "./ui/fonts";
import type { Pane } from "./ui/pane";
import { Sidebar } from "./ui/sidebar";
import { SignIn } from "./ui/signin";
import type { Scheme } from "./ui/terminal";
import { Workspace } from "./ui/workspace";

export interface Credentials {
  /** The bearer token of a session. Held in memory by the element, never in an attribute. */
  session: string;
  /** The origin of the HTTP API; this page's own when absent. */
  api?: string;
  user?: string;
  orgs?: { name: string }[];
  org?: string;
}

/**
 * Credentials, or a function that finds them. It is called again when a session is refused, with the reason;
 * what it throws is shown with its code and hint.
 */
export type CredentialSource = Credentials | ((refused?: UnderpassError) => Promise<Credentials | undefined>);

export type ThemeChoice = "light" | "dark" | "system";

/** A terminal as the outside may see it. */
export interface TerminalInfo extends Place {
  phase: Phase;
  exit?: ExitStatus;
  /** From the click to the prompt. */
  totalMs?: number;
  rungs: Pick<Step, "name" | "state" | "ms">[];
  cols: number;
  rows: number;
  renderer: "webgl" | "dom";
}

export interface ConsoleEvents {
  "underpass-ready": { user: string; org: string };
  "underpass-signed-out": { error?: UnderpassError };
  "underpass-open": TerminalInfo;
  "underpass-exit": TerminalInfo;
  "underpass-error": { code: string; message: string; hint: string };
  "underpass-select": { app: string; instance: string } | undefined;
  "underpass-theme": { choice: ThemeChoice; scheme: Scheme };
}

const REFRESH_MS = 15_000;
const CREDENTIALS_MS = 30_000;
const STATS_MS = 2_000;
const THEMES: ThemeChoice[] = ["system", "light", "dark"];

export class UnderpassConsole extends HTMLElement {
  /** The account to log in as. */
  sshUser = "root";
  /** Where the wasm is, when not beside the script. */
  wasm: WasmSource | undefined;

  private source: CredentialSource | undefined;
  private generation = 0;
  private credentialsNow: Credentials | undefined;
  private api: Api | undefined;
  private org = "";
  private apps: App[] = [];
  private link: Link | undefined;
  private identity: Promise<Identity> | undefined;
  private listTimer: ReturnType<typeof setTimeout> | undefined;
  private statsTimer: ReturnType<typeof setInterval> | undefined;
  private choice: ThemeChoice = "system";
  private started = false;
  private readonly darkMedia = matchMedia("(prefers-color-scheme: dark)");

  private readonly frame = h("div", { class: "frame", part: "frame" });
  private readonly scrim = h("div", { class: "scrim" });
  private readonly signIn: SignIn;
  private readonly sidebar: Sidebar;
  private readonly workspace: Workspace;

  constructor() {
    super();
    const root = this.attachShadow({ mode: "open" });
    root.adoptedStyleSheets = styleSheets();
    this.workspace = new Workspace(
      {
        ground: () => this.ground(),
        toggleList: () => this.toggleList(),
        cycleTheme: () => {
          this.theme = THEMES[(THEMES.indexOf(this.choice) + 1) % THEMES.length] ?? "system";
        },
        changed: (pane, phase) => this.paneChanged(pane, phase),
        selected: (pane) => {
          this.renderList();
          const place = pane?.shell.place;
          this.emit("underpass-select", place && { app: place.app, instance: place.instance });
        },
      },
      this.scheme,
    );
    this.sidebar = new Sidebar({
      choose: (place) => this.open(place),
      refresh: () => void this.refresh(),
      org: (name) => this.enter(name),
      signOut: () => void this.endSession(),
      closeDrawer: () => this.setDrawer(false),
    });
    this.signIn = new SignIn({
      retry: () => void this.begin(),
      copy: (text) => void this.workspace.copy(text, "Copied."),
    });
    this.scrim.addEventListener("click", () => this.setDrawer(false));
    this.frame.append(this.sidebar.element, this.scrim, this.workspace.element, this.signIn.element);
    root.append(this.frame);
    this.applyTheme();
    this.view("loading");
    void fontsReady();
  }

  /** Setting credentials signs in; setting `undefined` signs out. */
  set credentials(source: CredentialSource | undefined) {
    this.source = source;
    if (this.started) void this.begin();
  }

  get theme(): ThemeChoice {
    return this.choice;
  }

  set theme(choice: ThemeChoice) {
    this.choice = THEMES.includes(choice) ? choice : "system";
    this.applyTheme();
    this.emit("underpass-theme", { choice: this.choice, scheme: this.scheme });
  }

  get scheme(): Scheme {
    if (this.choice !== "system") return this.choice;
    return this.darkMedia.matches ? "dark" : "light";
  }

  get terminals(): TerminalInfo[] {
    return this.workspace.panes.map(info);
  }

  /** Opens a terminal on an instance of the list; says why where it cannot. */
  open(place: { app: string; instance: string }): boolean {
    const instance = this.apps
      .find((app) => app.name === place.app)
      ?.instances.find((candidate) => candidate.id === place.instance);
    if (!instance?.started) {
      const error = instance
        ? new UnderpassError(
            "instance_stopped",
            `${place.instance} is stopped, so nothing answers there.`,
            "Start it, then open a terminal.",
          )
        : new UnderpassError(
            "instance_unknown",
            `There is no instance ${place.instance} of ${place.app} in ${this.org}.`,
            "Choose one from the list.",
          );
      this.workspace.say(`${error.message} ${error.hint}`, error);
      this.emit("underpass-error", error);
      return false;
    }
    this.setDrawer(false);
    this.workspace.open({ app: place.app, instance: place.instance, region: instance.region });
    return true;
  }

  /** Asks the person who is signed in about a program that waits with this code: `underpass login`. */
  async letIn(code: string): Promise<void> {
    const { api, generation } = this;
    if (!api) return;
    try {
      const program = await api.program(code);
      if (program.answered) {
        throw new UnderpassError(
          "code_answered",
          "This login was answered before.",
          "Run `underpass login` again for another code.",
        );
      }
      const user = this.credentialsNow?.user ?? "you";
      const allow = await confirmProgram(this.frame, program, user);
      if (allow === undefined || generation !== this.generation) return;
      await api.answerProgram(program.code, allow);
      this.workspace.say(
        allow ? `underpass on ${program.host} is in.` : `underpass on ${program.host} was refused.`,
      );
    } catch (thrown) {
      const error = UnderpassError.from(thrown);
      this.workspace.say(`${error.message} ${error.hint}`, error);
      this.emit("underpass-error", error);
    }
  }

  /**
   * Goes on with another session of the person who is signed in: terminals stay, and live on by it. False,
   * and nothing is changed, where nobody is signed in or it is somebody else's.
   */
  renew(found: Credentials): boolean {
    const now = this.credentialsNow;
    const theirs = now && (found.api ?? "") === (now.api ?? "") && isSamePerson(now, found);
    const inside = !found.orgs || found.orgs.some((org) => org.name === this.org);
    if (!this.api || !theirs || !inside) return false;
    this.credentialsNow = { ...now, ...found, orgs: found.orgs ?? now.orgs ?? [] };
    this.api.renew(found.session);
    this.link?.sessionRenewed();
    void this.refresh();
    return true;
  }

  /**
   * Asks the person whether another login may take the place of `before`, which is who is signed in unless
   * said, where it is somebody else's or ends terminals. Resolves false to stay.
   */
  async maySwitch(to: Credentials, before = this.credentialsNow): Promise<boolean> {
    const live = this.workspace.panes.filter((pane) => pane.live).length;
    if (!before || (isSamePerson(before, to) && live === 0)) return true;
    return confirmSwitch(this.frame, who(before), who(to), live);
  }

  /** Says what went wrong with something outside of the terminals. */
  report(thrown: unknown): void {
    const error = UnderpassError.from(thrown);
    this.workspace.say(`${error.message} ${error.hint}`, error);
    this.emit("underpass-error", error);
  }

  /** What the active terminal shows and holds above, as plain text. */
  screenText(): string {
    return this.workspace.active?.view.text() ?? "";
  }

  /** Reads the list again now. */
  async refresh(): Promise<void> {
    const { api, generation } = this;
    clearTimeout(this.listTimer);
    if (!api) return;
    try {
      const apps = await api.apps(this.org);
      if (generation !== this.generation) return;
      this.apps = apps;
      this.renderList();
    } catch (thrown) {
      if (generation !== this.generation) return;
      const error = UnderpassError.from(thrown);
      if (isSignedOut(error)) {
        await this.refused(error);
        return;
      }
      this.emit("underpass-error", error);
      if (this.apps.length === 0) this.sidebar.failed(error);
      else this.workspace.say("The list may be out of date.", error);
    }
    this.listTimer = setTimeout(() => void this.refreshWhenSeen(), REFRESH_MS);
  }

  /** Ends every terminal and forgets the session. */
  signOut(error?: UnderpassError): void {
    void this.leave();
    this.credentialsNow = undefined;
    this.signIn.render(error);
    this.view("signed-out");
    this.emit("underpass-signed-out", error ? { error } : {});
  }

  connectedCallback(): void {
    if (this.started) return;
    this.started = true;
    this.darkMedia.addEventListener("change", this.onScheme);
    document.addEventListener("visibilitychange", this.onWake);
    addEventListener("online", this.onWake);
    addEventListener("beforeunload", this.onUnload);
    addEventListener("pagehide", this.onHide);
    this.statsTimer = setInterval(() => {
      if (document.visibilityState === "visible") this.workspace.renderStatus();
    }, STATS_MS);
    if (this.source !== undefined) void this.begin();
    else queueMicrotask(() => !this.source && this.signIn.render(undefined));
  }

  /** A move within the page disconnects and connects again at once: only a stay away ends anything. */
  disconnectedCallback(): void {
    setTimeout(() => {
      if (this.isConnected || !this.started) return;
      this.started = false;
      this.darkMedia.removeEventListener("change", this.onScheme);
      document.removeEventListener("visibilitychange", this.onWake);
      removeEventListener("online", this.onWake);
      removeEventListener("beforeunload", this.onUnload);
      removeEventListener("pagehide", this.onHide);
      clearInterval(this.statsTimer);
      void this.leave();
    });
  }

  /** `moveBefore` keeps everything as it is. */
  connectedMoveCallback(): void {}

  private async begin(refused?: UnderpassError): Promise<void> {
    void this.leave();
    const generation = this.generation;
    this.view("loading");
    this.sidebar.loading();
    try {
      const { source } = this;
      const found =
        typeof source === "function" ? await within(CREDENTIALS_MS, source(refused), "Signing in") : source;
      if (generation !== this.generation) return;
      if (!found) {
        this.signOut(refused);
        return;
      }
      const api = new Api(found.api ?? "", found.session);
      this.warm();
      const orgs = found.orgs?.length ? found.orgs : await api.orgs();
      if (generation !== this.generation) return;
      const org = found.org ?? orgs[0]?.name;
      if (!org) {
        throw new UnderpassError(
          "no_organisation",
          "This session belongs to no organisation.",
          "Ask for an invitation, then sign in again.",
        );
      }
      this.credentialsNow = { ...found, orgs };
      this.api = api;
      this.view("console");
      this.enter(org);
    } catch (thrown) {
      if (generation !== this.generation) return;
      const error = UnderpassError.from(thrown);
      this.emit("underpass-error", error);
      if (isSignedOut(error) && !refused && typeof this.source === "function") await this.begin(error);
      else this.signOut(error);
    }
  }

  private enter(org: string): void {
    if (!this.api) return;
    if (this.workspace.panes.length > 0) this.workspace.closeAll();
    void this.link?.close();
    this.org = org;
    this.apps = [];
    this.link = new Link(
      this.api,
      org,
      () => loadClient(this.wasm),
      () => this.workspace.linkChanged(),
    );
    this.sidebar.who(this.credentialsNow?.user ?? "", this.credentialsNow?.orgs ?? [], org);
    this.sidebar.loading();
    const { generation } = this;
    void this.refresh().then(() => {
      if (generation !== this.generation || this.org !== org) return;
      this.emit("underpass-ready", { user: this.credentialsNow?.user ?? "", org });
    });
  }

  /** The session ended while the page was open. Terminals that run are not taken away. */
  private async refused(error: UnderpassError): Promise<void> {
    if (this.workspace.panes.some((pane) => pane.live)) {
      if (await this.renewedElsewhere(error)) return;
      const ends = this.link?.ends;
      const until = ends
        ? `until ${ends.toLocaleTimeString([], { timeStyle: "short" })}`
        : "for some minutes";
      this.sidebar.failed(
        new UnderpassError(
          error.code,
          error.message,
          `Your terminals go on ${until}. To keep them, run \`underpass console\` and open its address in a new tab, or in this one.`,
        ),
      );
    } else if (typeof this.source === "function") {
      await this.begin(error);
    } else {
      this.signOut(error);
    }
  }

  /** Whether whoever gives credentials has a session of the same person by now. */
  private async renewedElsewhere(error: UnderpassError): Promise<boolean> {
    const { source, generation } = this;
    if (typeof source !== "function") return false;
    const found = await within(CREDENTIALS_MS, source(error), "Signing in").catch(() => undefined);
    return generation === this.generation && found !== undefined && this.renew(found);
  }

  /** A person signs out: the session ends at control too, once the address is given back. */
  private async endSession(): Promise<void> {
    const { api } = this;
    const released = this.leave();
    this.signOut();
    await released;
    await api?.end().catch(() => {});
  }

  private async leave(): Promise<void> {
    this.generation += 1;
    clearTimeout(this.listTimer);
    this.workspace.closeAll();
    const released = this.link?.close();
    this.link = undefined;
    this.api = undefined;
    this.identity = undefined;
    this.apps = [];
    await released;
  }

  private ground(): Ground | undefined {
    const { api, org, link } = this;
    if (!api || !link) return undefined;
    return { api, org, link, user: this.sshUser, identity: () => this.ownIdentity() };
  }

  /** The wasm and the SSH key are got while the list is fetched, so that the first click waits for neither. */
  private warm(): void {
    void loadClient(this.wasm).catch(() => {});
    void this.ownIdentity().catch(() => {});
  }

  private ownIdentity(): Promise<Identity> {
    this.identity ??= makeIdentity().catch((thrown) => {
      this.identity = undefined;
      throw thrown;
    });
    return this.identity;
  }

  private async refreshWhenSeen(): Promise<void> {
    if (document.visibilityState === "visible") await this.refresh();
    else this.listTimer = setTimeout(() => void this.refreshWhenSeen(), REFRESH_MS);
  }

  private paneChanged(pane: Pane, phase: Phase | "closed"): void {
    this.renderList();
    if (phase === "open") this.emit("underpass-open", info(pane));
    if (phase === "exited") this.emit("underpass-exit", info(pane));
    if (phase === "failed" && pane.shell.error) this.emit("underpass-error", pane.shell.error);
    if (phase === "failed" && pane.shell.error && isSignedOut(pane.shell.error)) void this.refresh();
  }

  private renderList(): void {
    if (!this.api || !this.credentialsNow) return;
    const open = new Map<string, number>();
    for (const { live, shell } of this.workspace.panes) {
      if (live) open.set(shell.place.instance, (open.get(shell.place.instance) ?? 0) + 1);
    }
    this.sidebar.show(this.apps, open, this.workspace.active?.shell.place.instance);
  }

  private view(view: "loading" | "console" | "signed-out"): void {
    this.frame.dataset.view = view;
    this.signIn.element.hidden = view !== "signed-out";
    this.sidebar.element.hidden = view === "signed-out";
    this.workspace.element.hidden = view === "signed-out";
    this.setDrawer(view === "console" && this.workspace.panes.length === 0);
  }

  /** Wide: goes to the filter and back. Narrow: the list is a drawer. */
  private toggleList(): void {
    const root = this.shadowRoot;
    const inside = root?.activeElement && this.sidebar.element.contains(root.activeElement);
    if (this.narrow()) this.setDrawer(this.frame.dataset.drawer !== "open");
    else if (inside) this.workspace.active?.focus();
    else this.sidebar.focusFilter();
  }

  private setDrawer(open: boolean): void {
    const was = this.frame.dataset.drawer === "open";
    this.frame.dataset.drawer = open ? "open" : "closed";
    this.sidebar.element.inert = !open && this.narrow();
    this.workspace.listButton.setAttribute("aria-expanded", String(open));
    if (!this.narrow()) return;
    if (open && !was) this.sidebar.filter.focus({ preventScroll: true });
    if (!open && was) this.workspace.active?.focus();
  }

  private narrow(): boolean {
    return getComputedStyle(this.scrim).getPropertyValue("--narrow").trim() === "1";
  }

  private applyTheme(): void {
    const { scheme } = this;
    this.frame.dataset.theme = scheme;
    this.workspace.look = { scheme, choice: this.choice };
  }

  private readonly onScheme = () => {
    this.applyTheme();
    this.emit("underpass-theme", { choice: this.choice, scheme: this.scheme });
  };

  private readonly onWake = () => {
    if (document.visibilityState !== "visible") return;
    this.link?.wake();
    if (this.api) void this.refresh();
  };

  private readonly onUnload = (event: BeforeUnloadEvent) => {
    if (this.workspace.panes.some((pane) => pane.live)) event.preventDefault();
  };

  private readonly onHide = (event: PageTransitionEvent) => {
    if (!event.persisted) void this.link?.close();
  };

  private emit<K extends keyof ConsoleEvents>(type: K, detail: ConsoleEvents[K]): void {
    this.dispatchEvent(new CustomEvent(type, { detail, bubbles: true, composed: true }));
  }
}

function info(pane: Pane): TerminalInfo {
  const { shell, view } = pane;
  return {
    ...shell.place,
    phase: shell.phase,
    ...(shell.exit && { exit: shell.exit }),
    ...(shell.ladder.total !== undefined && { totalMs: shell.ladder.total }),
    rungs: shell.ladder.steps.map(({ name, state, ms }) => ({
      name,
      state,
      ...(ms !== undefined && { ms }),
    })),
    cols: view.term.cols,
    rows: view.term.rows,
    renderer: view.renderer,
  };
}

if (!customElements.get("underpass-console")) customElements.define("underpass-console", UnderpassConsole);

declare global {
  interface HTMLElementTagNameMap {
    "underpass-console": UnderpassConsole;
  }
}

/** Whether two logins are the same person's; a person may have come to more organisations meanwhile. */
export function isSamePerson(one: Credentials, other: Credentials): boolean {
  return one.user === other.user;
}

function who(login: Credentials): { user: string; orgs: string } {
  const orgs = (login.orgs ?? []).map((org) => org.name).sort();
  return { user: login.user ?? "somebody", orgs: orgs.join(", ") };
}
