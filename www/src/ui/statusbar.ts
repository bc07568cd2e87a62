/** The line at the bottom: the tunnel's state and latency, and what is known of the terminal above it. */
import type { Link } from "../link";
import { bytes, duration, h, icon, text, toggle } from "./dom";
import type { Pane } from "./pane";

const SAID: Record<Link["state"], string> = {
  idle: "No tunnel yet",
  connecting: "Connecting",
  up: "Connected",
  reconnecting: "Reconnecting",
  closed: "Tunnel closed",
};

export class StatusBar {
  readonly element: HTMLElement;
  private readonly state = h("span", { class: "status-state" });
  private readonly latency = h("span", { class: "status-latency", title: "Round trip to the gateway" });
  private readonly verified = h(
    "span",
    {
      class: "status-verified",
      title: "The host certificate is signed by your organisation and names this instance",
    },
    icon("shield"),
    h("span", {}, "host verified"),
  );
  private readonly timing: HTMLButtonElement;
  private readonly size = h("span", { class: "status-size", title: "Columns and rows" });
  private readonly traffic = h("span", { class: "status-traffic", title: "Sent and received by this tab" });

  constructor(inspect: () => void) {
    this.timing = h("button", {
      class: "status-timing",
      type: "button",
      title: "How the connection was made",
      onclick: inspect,
    });
    this.element = h(
      "footer",
      { class: "status", part: "status" },
      h("span", { class: "status-dot", "aria-hidden": "true" }),
      this.state,
      this.latency,
      this.verified,
      h("span", { class: "spacer" }),
      this.timing,
      this.traffic,
      this.size,
    );
  }

  render(link: Link | undefined, pane: Pane | undefined): void {
    const state = link?.state ?? "idle";
    this.element.dataset.state = state;
    text(this.state, SAID[state]);
    const stats = state === "up" ? link?.stats() : undefined;
    const rtt = stats?.rttMs;
    text(this.latency, rtt === undefined ? "" : duration(rtt));
    const open = pane?.shell.phase === "open";
    this.verified.hidden = !open;
    const total = pane?.shell.ladder.total;
    this.timing.hidden = !open || total === undefined;
    if (total !== undefined) text(this.timing, `prompt in ${duration(total)}`);
    text(this.size, pane ? `${pane.view.term.cols}×${pane.view.term.rows}` : "");
    const sent = stats?.txBytes;
    const received = stats?.rxBytes;
    text(
      this.traffic,
      sent === undefined || received === undefined
        ? ""
        : `↑ ${bytes(Number(sent))}  ↓ ${bytes(Number(received))}`,
    );
    toggle(this.element, "title", link?.error?.message);
  }
}
