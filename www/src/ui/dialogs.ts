/** The dialogs: help, and the questions before several lines are pasted and before a program is let in. */
import type { Program } from "../api";
import { button, h } from "./dom";
import { SHORTCUTS } from "./keys";

const PREVIEW_LINES = 12;

export function helpDialog(): HTMLDialogElement {
  const dialog = h(
    "dialog",
    { class: "dialog", part: "dialog", "aria-labelledby": "help-title" },
    h(
      "header",
      { class: "dialog-head" },
      h("h2", { id: "help-title" }, "Keys"),
      button({ label: "Close", icon: "close", onclick: () => dialog.close() }),
    ),
    h(
      "dl",
      { class: "shortcuts" },
      ...SHORTCUTS.map(([keys, what]) => h("div", {}, h("dt", {}, h("kbd", {}, keys)), h("dd", {}, what))),
    ),
    h(
      "p",
      { class: "muted" },
      "Every other key goes to the shell, Tab and Ctrl+C included. A browser keeps Ctrl+W and Ctrl+T for itself; in full screen, where the browser allows it, the shell gets those too.",
    ),
    h(
      "p",
      { class: "muted" },
      "Underpass ends WireGuard and SSH in this tab. Its keys were made here and cannot leave; the relay carries ciphertext.",
    ),
  );
  closeOnBackdrop(dialog);
  return dialog;
}

/** Asks whether a program is to act as `user`; resolves undefined when the person does not say. */
export function confirmProgram(
  root: ParentNode & Node,
  program: Program,
  user: string,
): Promise<boolean | undefined> {
  return new Promise((resolve) => {
    const yes = h("button", { class: "button primary", type: "button" }, "Let it in");
    const no = h("button", { class: "button", type: "button" }, "Refuse");
    const dialog = h(
      "dialog",
      {
        class: "dialog",
        part: "dialog",
        "aria-labelledby": "program-title",
        "aria-describedby": "program-why",
      },
      h(
        "header",
        { class: "dialog-head" },
        h("h2", { id: "program-title" }, `Let underpass on ${program.host} in?`),
      ),
      h(
        "p",
        { id: "program-why" },
        "Only if you typed ",
        h("code", {}, "underpass login"),
        " there yourself, and it shows this code. It acts as you from then on.",
      ),
      h("p", { class: "program-code" }, program.code),
      h(
        "dl",
        { class: "shortcuts" },
        h("div", {}, h("dt", {}, "Asked from"), h("dd", {}, program.address ?? "an unknown address")),
        h("div", {}, h("dt", {}, "Acts as"), h("dd", {}, user)),
      ),
      h("div", { class: "dialog-actions" }, no, yes),
    );
    let answer: boolean | undefined;
    const say = (allow: boolean) => () => {
      answer = allow;
      dialog.close();
    };
    yes.addEventListener("click", say(true));
    no.addEventListener("click", say(false));
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(answer);
    });
    root.append(dialog);
    dialog.showModal();
    // A person who types on while the page opens lets nobody in.
    no.focus();
  });
}

/** Asks before another person's login takes the place of the one this tab has; false is to stay. */
export function confirmSwitch(
  root: ParentNode & Node,
  from: { user: string; orgs: string },
  to: { user: string; orgs: string },
  terminals: number,
): Promise<boolean> {
  return new Promise((resolve) => {
    const stay = h("button", { class: "button primary", type: "button" }, `Stay ${from.user}`);
    const go = h("button", { class: "button", type: "button" }, `Switch to ${to.user}`);
    const loss =
      terminals === 0
        ? "Only if you opened that address yourself."
        : `Only if you opened that address yourself. It ends ${terminals === 1 ? "your terminal" : `your ${terminals} terminals`} here.`;
    const dialog = h(
      "dialog",
      {
        class: "dialog",
        part: "dialog",
        "aria-labelledby": "switch-title",
        "aria-describedby": "switch-why",
      },
      h("header", { class: "dialog-head" }, h("h2", { id: "switch-title" }, "Switch to another login?")),
      h("p", { id: "switch-why" }, `The address brought another login. ${loss}`),
      h(
        "dl",
        { class: "shortcuts" },
        h("div", {}, h("dt", {}, "Now"), h("dd", {}, `${from.user} (${from.orgs})`)),
        h("div", {}, h("dt", {}, "Then"), h("dd", {}, `${to.user} (${to.orgs})`)),
      ),
      h("div", { class: "dialog-actions" }, go, stay),
    );
    let answer = false;
    go.addEventListener("click", () => {
      answer = true;
      dialog.close();
    });
    stay.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(answer);
    });
    root.append(dialog);
    dialog.showModal();
    // A person who types on while a link opens stays who they are.
    stay.focus();
  });
}

/** Asks before `text` is pasted line by line; resolves false when dismissed. */
export function confirmPaste(root: ParentNode & Node, text: string): Promise<boolean> {
  const lines = text.replace(/[\r\n]+$/, "").split(/\r\n|\r|\n/);
  const preview = lines.slice(0, PREVIEW_LINES).join("\n");
  return new Promise((resolve) => {
    const yes = h("button", { class: "button primary", type: "button" }, `Paste ${lines.length} lines`);
    const no = h("button", { class: "button", type: "button" }, "Cancel");
    const dialog = h(
      "dialog",
      { class: "dialog", part: "dialog", "aria-labelledby": "paste-title" },
      h("header", { class: "dialog-head" }, h("h2", { id: "paste-title" }, `Paste ${lines.length} lines?`)),
      h(
        "p",
        {},
        "The program running here does not mark pasted text, so each line runs as if you pressed Enter.",
      ),
      h(
        "pre",
        { class: "paste-preview", tabindex: "0", "aria-label": "Text to paste" },
        lines.length > PREVIEW_LINES ? `${preview}\n… ${lines.length - PREVIEW_LINES} more` : preview,
      ),
      h("div", { class: "dialog-actions" }, no, yes),
    );
    let answer = false;
    yes.addEventListener("click", () => {
      answer = true;
      dialog.close();
    });
    no.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(answer);
    });
    closeOnBackdrop(dialog);
    root.append(dialog);
    dialog.showModal();
    yes.focus();
  });
}

function closeOnBackdrop(dialog: HTMLDialogElement): void {
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}
