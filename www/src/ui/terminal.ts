/**
 * One xterm.js terminal in its box: opened when its font is there, fitted whenever the box has a size,
 * drawn by WebGL while it is shown. Says what a person typed through `port`, which a session attaches to.
 */
import { FitAddon } from "@xterm/addon-fit";
import { SearchAddon } from "@xterm/addon-search";
import { Unicode11Addon } from "@xterm/addon-unicode11";
import { Terminal } from "@xterm/xterm";
import type { TerminalLike } from "../surface";
import { h } from "./dom";
import { fontsReady, MONO } from "./fonts";
import { type LinkHint, linkHandler, plainLinks } from "./links";
import { clipboardWrites } from "./osc52";
import { DARK, LIGHT } from "./palette";
import { Webgl } from "./webgl";

export type Scheme = "light" | "dark";

/** What the console around a terminal answers for it. */
export interface TerminalHost {
  /** True when the key is the console's or the browser's, not the shell's. */
  takesKey(event: KeyboardEvent): boolean;
  /** Several lines are about to be pasted into a program that did not ask for bracketed paste. */
  confirmPaste(text: string): Promise<boolean>;
  /** A program in the terminal set the clipboard. */
  offerClipboard(text: string): void;
  bell(): void;
  title(title: string): void;
  resized(): void;
  link: LinkHint;
}

/** The modifier keys of the key bar, each for the next key alone. */
export interface Sticky {
  ctrl: boolean;
  alt: boolean;
}

const SCROLLBACK = 10_000;
const FONT_SIZE = 13;

export class TerminalView {
  readonly element = h("div", { class: "terminal-box", part: "terminal" });
  readonly term: Terminal;
  readonly search = new SearchAddon({ highlightLimit: 2000 });
  readonly port: TerminalLike;
  /** Consumed by the next key; the key bar shows it. */
  sticky: Sticky = { ctrl: false, alt: false };
  onSticky: () => void = () => {};

  private readonly fitter = new FitAddon();
  private readonly webgl: Webgl;
  private readonly observer = new ResizeObserver(() => this.fitSoon());
  private frame = 0;
  private opened = false;
  private shown = false;
  private disposed = false;

  constructor(
    private readonly host: TerminalHost,
    private look: Scheme,
    label: string,
  ) {
    this.term = new Terminal({
      allowProposedApi: true,
      cols: 80,
      rows: 24,
      cursorBlink: !matchMedia("(prefers-reduced-motion: reduce)").matches,
      cursorStyle: "block",
      cursorInactiveStyle: "outline",
      drawBoldTextInBrightColors: false,
      fontFamily: MONO,
      fontSize: FONT_SIZE,
      fontWeight: 400,
      fontWeightBold: 700,
      lineHeight: 1.25,
      linkHandler: linkHandler(host.link),
      macOptionClickForcesSelection: true,
      minimumContrastRatio: 4.5,
      rightClickSelectsWord: false,
      screenReaderMode: true,
      scrollback: SCROLLBACK,
      scrollOnUserInput: true,
      theme: look === "dark" ? DARK : LIGHT,
    });
    this.webgl = new Webgl(this.term, () => this.fitSoon());
    this.port = this.makePort();
    this.term.loadAddon(this.fitter);
    this.term.loadAddon(this.search);
    this.term.loadAddon(new Unicode11Addon());
    this.term.unicode.activeVersion = "11";
    plainLinks(this.term, host.link);
    clipboardWrites(this.term, (text) => host.offerClipboard(text));
    this.term.attachCustomKeyEventHandler((event) => !host.takesKey(event));
    this.term.onBell(() => host.bell());
    this.term.onTitleChange((title) => host.title(title));
    this.term.onResize(() => host.resized());
    this.acceptInsertedText();
    this.element.addEventListener("paste", (event) => this.pasted(event), { capture: true });
    this.element.dataset.label = label;
  }

  /** Opens in a box that is in the page and has a size; resolves when the terminal has its true size. */
  async open(): Promise<void> {
    await fontsReady();
    if (this.opened || this.disposed) return;
    this.opened = true;
    this.term.open(this.element);
    this.term.textarea?.setAttribute("aria-label", this.element.dataset.label ?? "Terminal");
    this.observer.observe(this.element);
    if (this.shown) this.webgl.attach();
    this.fit();
  }

  show(): void {
    this.shown = true;
    if (!this.opened) return;
    this.fit();
    this.webgl.attach();
  }

  hide(): void {
    this.shown = false;
    this.webgl.detach();
  }

  focus(): void {
    this.term.focus();
  }

  get scheme(): Scheme {
    return this.look;
  }

  set scheme(scheme: Scheme) {
    this.look = scheme;
    this.term.options.theme = scheme === "dark" ? DARK : LIGHT;
  }

  get renderer(): "webgl" | "dom" {
    return this.webgl.active ? "webgl" : "dom";
  }

  /** A key of the key bar, or text, as if typed. */
  type(data: string): void {
    this.term.input(data, true);
  }

  paste(text: string): void {
    this.term.paste(text);
  }

  get selection(): string {
    return this.term.getSelection();
  }

  /** Everything on the screen and above it as plain text, wrapped lines joined. */
  text(): string {
    const buffer = this.term.buffer.active;
    const lines: string[] = [];
    for (let row = 0; row < buffer.length; row += 1) {
      const line = buffer.getLine(row);
      if (!line) continue;
      const wrapsOn = buffer.getLine(row + 1)?.isWrapped ?? false;
      const text = line.translateToString(!wrapsOn);
      if (line.isWrapped && lines.length > 0) lines[lines.length - 1] += text;
      else lines.push(text);
    }
    while (lines.at(-1) === "") lines.pop();
    return lines.join("\n");
  }

  /** A line from the console itself, apart from what the shell wrote. */
  note(line: string): void {
    this.term.write(`\r\n\x1b[2m${line}\x1b[0m\r\n`);
  }

  /** Leaves whatever mode the last shell was in: a dead `vim` must not keep the mouse. */
  reset(): void {
    this.term.write(
      "\x1b[!p\x1b[?1049l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?25h\x1b[0m",
    );
  }

  dispose(): void {
    this.disposed = true;
    cancelAnimationFrame(this.frame);
    this.observer.disconnect();
    this.webgl.detach();
    this.term.dispose();
    this.element.remove();
  }

  private fitSoon(): void {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.fit());
  }

  /** A box that is hidden has no size to fit to: the fit waits until it is shown. */
  private fit(): void {
    if (!this.opened || this.disposed) return;
    if (this.element.clientWidth === 0 || this.element.clientHeight === 0) return;
    const size = this.fitter.proposeDimensions();
    if (!size || !Number.isFinite(size.cols) || !Number.isFinite(size.rows)) return;
    if (size.cols === this.term.cols && size.rows === this.term.rows) return;
    this.term.resize(size.cols, size.rows);
  }

  private pasted(event: ClipboardEvent): void {
    const text = event.clipboardData?.getData("text/plain") ?? "";
    if (this.term.modes.bracketedPasteMode || !/[\r\n]/.test(text.replace(/[\r\n]+$/, ""))) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    void this.host.confirmPaste(text).then((yes) => {
      if (yes && !this.disposed) this.term.paste(text);
      this.focus();
    });
  }

  private makePort(): TerminalLike {
    const { term } = this;
    const modify = (data: string) => this.modify(data);
    return {
      get cols() {
        return term.cols;
      },
      get rows() {
        return term.rows;
      },
      write: (data, callback) => term.write(data, callback),
      onData: (listener) => term.onData((data) => listener(modify(data))),
      onBinary: (listener) => term.onBinary(listener),
      onResize: (listener) => term.onResize(listener),
    };
  }

  /**
   * Text that comes with no key (an emoji picker, dictation, a phone's suggestion): in screen reader mode
   * xterm.js leaves it in its textarea. Ours is the rule that it uses without that mode.
   */
  private acceptInsertedText(): void {
    let keyed = false;
    let pressed = false;
    const on = (type: string, run: (event: Event) => void) =>
      this.element.addEventListener(type, run, { capture: true });
    on("keydown", () => {
      keyed = true;
      pressed = false;
    });
    on("keypress", () => {
      pressed = true;
    });
    on("keyup", () => {
      keyed = false;
      pressed = false;
    });
    on("input", (event) => {
      const { data, inputType, composed, target } = event as InputEvent;
      if (!data || inputType !== "insertText" || pressed || (composed && keyed)) return;
      this.term.input(data, true);
      if (target instanceof HTMLTextAreaElement) target.value = "";
      event.stopImmediatePropagation();
    });
  }

  private modify(data: string): string {
    const { ctrl, alt } = this.sticky;
    if (!ctrl && !alt) return data;
    this.sticky = { ctrl: false, alt: false };
    this.onSticky();
    const code = data.toUpperCase().charCodeAt(0);
    const controlled =
      ctrl && data.length === 1 && code >= 0x40 && code <= 0x5f ? String.fromCharCode(code & 0x1f) : data;
    return alt ? `\x1b${controlled}` : controlled;
  }
}
