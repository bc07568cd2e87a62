/** Draws a ladder: one line per rung with its time, and where one broke, why and what to do. */
import type { Ladder, Step } from "../ladder";
import { duration, h, icon, text, toggle } from "./dom";

const SAID: Record<Step["state"], string> = {
  waiting: "waiting",
  running: "in progress",
  done: "done",
  shared: "already up",
  failed: "failed",
};

export class LadderView {
  readonly element: HTMLElement;
  private readonly rows: { row: HTMLElement; state: HTMLElement; time: HTMLElement }[] = [];
  private readonly list = h("ol", { class: "rungs", part: "ladder" });
  private readonly problem = h("div", { class: "problem", part: "problem", hidden: true });

  constructor() {
    this.element = h("div", { class: "ladder" }, this.list, this.problem);
  }

  render(ladder: Ladder): void {
    if (this.rows.length === 0) this.build(ladder);
    ladder.steps.forEach((step, index) => {
      const parts = this.rows[index];
      if (!parts) return;
      parts.row.dataset.state = step.state;
      toggle(parts.row, "aria-current", step.state === "running" && "step");
      text(parts.state, SAID[step.state]);
      text(parts.time, step.state === "shared" ? "shared" : step.ms === undefined ? "" : duration(step.ms));
    });
    this.renderProblem(ladder);
  }

  private build(ladder: Ladder): void {
    for (const step of ladder.steps) {
      const state = h("span", { class: "visually-hidden" });
      const time = h("span", { class: "rung-time" });
      const row = h(
        "li",
        { class: "rung", "data-rung": step.name },
        h("span", { class: "rung-dot", "aria-hidden": "true" }),
        h("span", { class: "rung-label" }, step.label),
        h("span", { class: "rung-detail" }, step.detail),
        state,
        time,
      );
      this.rows.push({ row, state, time });
      this.list.append(row);
    }
  }

  private renderProblem(ladder: Ladder): void {
    const { error } = ladder;
    this.problem.hidden = !error;
    if (error) this.problem.replaceChildren(...problem(error));
  }
}

/** A code, a sentence and a hint: the one way the console shows that something failed. */
export function problem(error: { code: string; message: string; hint: string }): Node[] {
  return [
    h(
      "p",
      { class: "problem-message" },
      icon("alert"),
      h("span", {}, error.message),
      h("code", { class: "problem-code" }, error.code),
    ),
    ...(error.hint ? [h("p", { class: "problem-hint" }, ...withCode(error.hint))] : []),
  ];
}

/** Words between backticks are something to type. */
function withCode(words: string): (Node | string)[] {
  return words.split("`").map((part, index) => (index % 2 === 1 ? h("code", {}, part) : part));
}
