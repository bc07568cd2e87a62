/**
 * The fast renderer, for the terminal that is shown. A browser keeps few WebGL contexts and takes them away
 * when it likes (a driver reset, a phone asleep): then the DOM renderer draws, and WebGL is tried again.
 */

import { WebglAddon } from "@xterm/addon-webgl";
import type { Terminal } from "@xterm/xterm";

const AGAIN_MS = 5_000;
const TRIES = 4;

export class Webgl {
  private addon: WebglAddon | undefined;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private tries = 0;

  constructor(
    private readonly term: Terminal,
    private readonly switched: () => void,
  ) {}

  get active(): boolean {
    return this.addon !== undefined;
  }

  attach(): void {
    if (this.addon || this.tries >= TRIES || !this.term.element) return;
    try {
      const addon = new WebglAddon();
      addon.onContextLoss(() => {
        this.tries += 1;
        this.detach();
        this.term.refresh(0, this.term.rows - 1);
        this.timer = setTimeout(() => this.attach(), AGAIN_MS * this.tries);
      });
      this.term.loadAddon(addon);
      this.addon = addon;
      this.switched();
    } catch {
      // No WebGL 2 here: the DOM renderer it is.
      this.tries = TRIES;
    }
  }

  detach(): void {
    clearTimeout(this.timer);
    const addon = this.addon;
    this.addon = undefined;
    if (!addon) return;
    addon.dispose();
    this.switched();
  }
}
