/** The list of apps and instances, with its filter and its empty, loading and error states. */
import type { App, Instance } from "../api";
import type { UnderpassError } from "../errors";
import type { Place } from "../shell";
import { button, h, icon, mark, text, toggle } from "./dom";
import { problem } from "./ladder";

export interface SidebarHost {
  choose(place: Place): void;
  refresh(): void;
  org(name: string): void;
  signOut(): void;
  closeDrawer(): void;
}

/** Rows drawn at one time; the filter reaches the others. */
const MAX_ROWS = 400;

export class Sidebar {
  readonly element: HTMLElement;
  readonly filter = h("input", {
    class: "filter-input",
    type: "search",
    placeholder: "Filter instances",
    "aria-label": "Filter apps, instances and regions",
    autocomplete: "off",
    spellcheck: "false",
    enterkeyhint: "go",
  });

  private apps: App[] = [];
  private open = new Map<string, number>();
  private current: string | undefined;
  private shown = "";
  private readonly body = h("div", { class: "apps" });
  private readonly count = h("p", { class: "visually-hidden", role: "status" });
  private readonly orgs = h("select", { class: "org", "aria-label": "Organisation" });
  private readonly orgName = h("span", { class: "org" });
  private readonly user = h("span", { class: "user" });

  constructor(private readonly host: SidebarHost) {
    const close = button({ label: "Close the list", icon: "close", class: "drawer-close" });
    close.addEventListener("click", () => host.closeDrawer());
    this.element = h(
      "nav",
      { class: "sidebar", part: "sidebar", "aria-label": "Instances" },
      h(
        "div",
        { class: "brand" },
        mark(),
        h(
          "div",
          { class: "brand-text" },
          h("span", { class: "wordmark" }, "Underpass"),
          this.orgName,
          this.orgs,
        ),
        close,
      ),
      h("div", { class: "filter" }, icon("search"), this.filter),
      this.count,
      this.body,
      h(
        "div",
        { class: "account" },
        this.user,
        button({ label: "Sign out", icon: "signout", onclick: () => host.signOut() }),
      ),
    );
    this.orgs.addEventListener("change", () => host.org(this.orgs.value));
    this.filter.addEventListener("input", () => this.render());
    this.element.addEventListener("keydown", (event) => this.navigate(event));
  }

  who(user: string, orgs: { name: string }[], current: string): void {
    text(this.user, user);
    text(this.orgName, current);
    this.orgs.replaceChildren(
      ...orgs.map(({ name }) => h("option", { value: name, selected: name === current }, name)),
    );
    this.orgs.hidden = orgs.length < 2;
    this.orgName.hidden = orgs.length >= 2;
  }

  loading(): void {
    this.shown = "";
    const row = () => h("div", { class: "skeleton" });
    this.body.replaceChildren(h("div", { class: "loading", "aria-hidden": "true" }, row(), row(), row()));
    text(this.count, "Loading instances");
  }

  failed(error: UnderpassError): void {
    this.shown = "";
    this.body.replaceChildren(
      h(
        "div",
        { class: "problem", role: "alert" },
        ...problem(error),
        h(
          "button",
          { class: "button", type: "button", onclick: () => this.host.refresh() },
          icon("retry"),
          "Try again",
        ),
      ),
    );
  }

  /** `open` counts the terminals per instance; `current` is where the active one is. */
  show(apps: App[], open: Map<string, number>, current: string | undefined): void {
    this.apps = apps;
    this.open = open;
    this.current = current;
    this.render();
  }

  focusFilter(): void {
    this.filter.focus();
    this.filter.select();
  }

  private render(): void {
    const query = this.filter.value.trim().toLowerCase();
    const found = this.apps
      .map((app) => ({
        app,
        instances: app.instances.filter((instance) => matches(query, app, instance)),
      }))
      .filter(
        ({ app, instances }) => instances.length > 0 || (app.instances.length === 0 && matches(query, app)),
      );
    const shown = JSON.stringify([query, found, [...this.open], this.current]);
    if (shown === this.shown) return;
    this.shown = shown;

    const focused = (this.element.getRootNode() as ShadowRoot).activeElement?.getAttribute("data-instance");
    if (this.apps.length === 0) {
      this.body.replaceChildren(
        h(
          "div",
          { class: "empty" },
          h("p", {}, "No apps yet."),
          h("p", { class: "muted" }, "Instances appear here as soon as one joins this organisation."),
        ),
      );
    } else if (found.length === 0) {
      this.body.replaceChildren(
        h(
          "div",
          { class: "empty" },
          h("p", {}, "Nothing matches."),
          h("p", { class: "muted" }, "The filter reads app, instance and region."),
        ),
      );
    } else {
      let room = MAX_ROWS;
      this.body.replaceChildren();
      for (const { app, instances } of found) {
        if (room > 0) this.body.append(this.section(app, instances.slice(0, room)));
        room -= instances.length;
      }
      if (room < 0) this.body.append(h("p", { class: "muted app-empty" }, `${-room} more: use the filter.`));
    }
    const total = found.reduce((sum, { instances }) => sum + instances.length, 0);
    text(this.count, `${total} ${total === 1 ? "instance" : "instances"}`);
    if (focused) this.body.querySelector<HTMLElement>(`[data-instance="${CSS.escape(focused)}"]`)?.focus();
  }

  private section(app: App, instances: Instance[]): HTMLElement {
    const id = `app-${app.name}`;
    return h(
      "section",
      { class: "app", "aria-labelledby": id },
      h("h2", { class: "app-name", id }, app.name),
      app.instances.length === 0
        ? h("p", { class: "muted app-empty" }, "No instances")
        : h(
            "ul",
            { class: "instances" },
            ...instances.map((instance) => h("li", {}, this.row(app, instance))),
          ),
    );
  }

  private row(app: App, instance: Instance): HTMLElement {
    const open = this.open.get(instance.id) ?? 0;
    const host = `${instance.id}.vm.${app.name}.internal`;
    const row = h(
      "button",
      {
        class: "instance",
        type: "button",
        part: "instance",
        "data-instance": instance.id,
        "data-app": app.name,
        title: instance.started ? `${host}\n${instance.address}` : "Stopped: start it to open a terminal",
      },
      h("span", {
        class: "instance-state",
        "data-state": instance.started ? "started" : "stopped",
        "aria-hidden": "true",
      }),
      h("span", { class: "instance-id" }, instance.id),
      !instance.started && h("span", { class: "instance-note" }, "stopped"),
      open > 0 &&
        h(
          "span",
          { class: "instance-open" },
          String(open),
          h("span", { class: "visually-hidden" }, open === 1 ? " terminal open" : " terminals open"),
        ),
      h(
        "span",
        { class: "instance-region" },
        h("span", { class: "visually-hidden" }, "in region "),
        instance.region,
      ),
    );
    toggle(row, "aria-current", instance.id === this.current && "true");
    toggle(row, "aria-disabled", !instance.started && "true");
    row.addEventListener("click", () => {
      this.host.choose({ app: app.name, instance: instance.id, region: instance.region });
    });
    return row;
  }

  /** Up and down walk the list, from the filter too; Enter in the filter opens the first match. */
  private navigate(event: KeyboardEvent): void {
    const rows = [...this.body.querySelectorAll<HTMLElement>(".instance")];
    const root = this.element.getRootNode() as ShadowRoot;
    const at = rows.indexOf(root.activeElement as HTMLElement);
    if (event.key === "ArrowDown") rows[Math.min(at + 1, rows.length - 1)]?.focus();
    else if (event.key === "ArrowUp" && at > 0) rows[at - 1]?.focus();
    else if (event.key === "ArrowUp" && at === 0) this.filter.focus();
    else if (event.key === "Home" && at >= 0) rows[0]?.focus();
    else if (event.key === "End" && at >= 0) rows.at(-1)?.focus();
    else if (event.key === "Enter" && root.activeElement === this.filter) rows[0]?.click();
    else if (event.key === "Escape") {
      if (this.filter.value) {
        this.filter.value = "";
        this.render();
      } else this.host.closeDrawer();
    } else return;
    event.preventDefault();
  }
}

function matches(query: string, app: App, instance?: Instance): boolean {
  if (!query) return true;
  const words = [app.name, instance?.id, instance?.region, instance?.started === false ? "stopped" : ""];
  const hay = words.join(" ").toLowerCase();
  return query.split(/\s+/).every((word) => hay.includes(word));
}
