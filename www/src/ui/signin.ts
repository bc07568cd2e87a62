/** The screen without a session: how to get one, and what was wrong with the last. */
import { isTransient } from "../api";
import type { UnderpassError } from "../errors";
import { h, icon, mark } from "./dom";
import { problem } from "./ladder";

const COMMAND = "underpass console";

export class SignIn {
  readonly element: HTMLElement;
  private readonly slot = h("div", { class: "signin-problem", role: "alert" });
  private readonly title = h("h1", {}, "Sign in");
  private readonly retry: HTMLButtonElement;
  private readonly steps: HTMLElement;

  constructor(host: { retry(): void; copy(text: string): void }) {
    this.retry = h(
      "button",
      { class: "button", type: "button", onclick: () => host.retry() },
      icon("retry"),
      "Try again",
    );
    this.steps = h(
      "div",
      { class: "signin-steps" },
      h(
        "p",
        {},
        "Run this where Underpass runs. It prints a fresh address for this page, good once, for ten minutes.",
      ),
      h(
        "div",
        { class: "command" },
        h("code", {}, h("span", { class: "command-prompt", "aria-hidden": "true" }, "$ "), COMMAND),
        h(
          "button",
          {
            class: "icon-button",
            type: "button",
            "aria-label": "Copy the command",
            title: "Copy the command",
            onclick: () => host.copy(COMMAND),
          },
          icon("copy"),
        ),
      ),
    );
    this.element = h(
      "section",
      { class: "signin", part: "signin", "aria-label": "Sign in" },
      h("div", { class: "signin-card" }, mark(), this.title, this.slot, this.steps, this.retry),
    );
  }

  /** `error` absent: nobody signed in yet. Otherwise the way out depends on whether trying again can help. */
  render(error: UnderpassError | undefined): void {
    const transient = error !== undefined && isTransient(error);
    this.title.textContent = transient ? "No connection" : error ? "Sign in again" : "Sign in";
    this.slot.hidden = !error;
    this.slot.replaceChildren(...(error ? [h("div", { class: "problem" }, ...problem(error))] : []));
    this.steps.hidden = transient;
    this.retry.hidden = !transient;
  }
}
