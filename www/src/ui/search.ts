/** The search bar of one terminal. */

import type { ISearchDecorationOptions } from "@xterm/addon-search";
import { button, h, icon, text } from "./dom";
import type { Scheme, TerminalView } from "./terminal";

/** The match that is current is the selection, and drawn as that. */
const DECORATIONS: Record<Scheme, ISearchDecorationOptions> = {
  dark: {
    matchBackground: "#5a4518",
    matchOverviewRuler: "#8a6d2f",
    activeMatchColorOverviewRuler: "#f5a83c",
  },
  light: {
    matchBackground: "#fbe3b6",
    matchOverviewRuler: "#e0b450",
    activeMatchColorOverviewRuler: "#a35600",
  },
};

export class SearchBar {
  readonly element: HTMLElement;
  private readonly input = h("input", {
    class: "search-input",
    type: "text",
    "aria-label": "Search in the output",
    placeholder: "Search",
    autocomplete: "off",
    spellcheck: "false",
  });
  private readonly count = h("span", { class: "search-count", role: "status" });
  private readonly caseButton = flag("Aa", "Match case");
  private readonly regexButton = flag(".*", "Regular expression");

  constructor(private readonly view: TerminalView) {
    this.element = h(
      "div",
      { class: "search", role: "search", part: "search", hidden: true },
      icon("search"),
      this.input,
      this.count,
      this.caseButton,
      this.regexButton,
      button({ label: "Previous match", icon: "up", onclick: () => this.find(-1) }),
      button({ label: "Next match", icon: "down", onclick: () => this.find(1) }),
      button({ label: "Close search", icon: "close", onclick: () => this.close() }),
    );
    this.input.addEventListener("input", () => this.find(0));
    for (const option of [this.caseButton, this.regexButton]) {
      option.addEventListener("click", () => {
        option.setAttribute("aria-pressed", String(option.getAttribute("aria-pressed") !== "true"));
        this.find(0);
      });
    }
    this.element.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.close();
      else if (event.key === "Enter" && event.target === this.input) this.find(event.shiftKey ? 1 : -1);
      else return;
      event.preventDefault();
    });
    view.search.onDidChangeResults(({ resultIndex, resultCount }) => {
      text(
        this.count,
        this.input.value === "" ? "" : resultCount === 0 ? "none" : `${resultIndex + 1} of ${resultCount}`,
      );
    });
  }

  open(): void {
    this.element.hidden = false;
    const selected = this.view.selection;
    if (selected && !selected.includes("\n")) this.input.value = selected;
    this.input.focus();
    this.input.select();
    if (this.input.value) this.find(0);
  }

  close(): void {
    this.element.hidden = true;
    this.view.search.clearDecorations();
    this.view.focus();
  }

  /** Backwards is the natural way here: the newest output is at the bottom. */
  private find(direction: -1 | 0 | 1): void {
    const options = {
      caseSensitive: this.caseButton.getAttribute("aria-pressed") === "true",
      regex: this.regexButton.getAttribute("aria-pressed") === "true",
      decorations: DECORATIONS[this.view.scheme],
    };
    const query = this.input.value;
    try {
      if (direction > 0) this.view.search.findNext(query, options);
      else this.view.search.findPrevious(query, { ...options, incremental: direction === 0 });
    } catch {
      text(this.count, "not a pattern");
    }
    if (!query) text(this.count, "");
  }
}

function flag(label: string, name: string): HTMLButtonElement {
  return h(
    "button",
    { class: "flag", type: "button", "aria-pressed": "false", "aria-label": name, title: name },
    label,
  );
}
