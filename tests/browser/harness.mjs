/**
 * What the tests stand on: a real `underpass up --demo`, a TCP proxy before it whose connections can be cut,
 * Chromium, and a page with the verbs of a person.
 */
import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../", import.meta.url));
const require = createRequire(join(root, "www/package.json"));
export const { chromium } = require("playwright-core");
export const { AxeBuilder } = require("@axe-core/playwright");

export const BINARY = process.env.UNDERPASS_BIN ?? join(root, "target/debug/underpass");
const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
const READY_MS = 30_000;

/** The whole system in one process, on free ports, its data in a folder that goes with it; `more` is for `up`. */
export async function up(more = []) {
  if (!existsSync(BINARY))
    throw new Error(`no binary at ${BINARY}: cargo build -p underpass, or set UNDERPASS_BIN`);
  const dir = mkdtempSync(join(tmpdir(), "underpass-browser-"));
  const args = ["up", "--demo", "--listen", "127.0.0.1:0", "--data-dir", dir, "--json", ...more];
  const child = spawn(BINARY, args, {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ENV: "", HOME: dir },
  });
  const log = [];
  child.stderr.on("data", (chunk) => {
    log.push(String(chunk));
    if (log.length > 400) log.shift();
  });
  const ready = await new Promise((resolve, reject) => {
    const late = setTimeout(
      () => reject(new Error(`up is not ready after ${READY_MS} ms\n${log.join("")}`)),
      READY_MS,
    );
    createInterface({ input: child.stdout }).once("line", (line) => {
      clearTimeout(late);
      resolve(JSON.parse(line));
    });
    child.once("exit", (code) => reject(new Error(`up ended with ${code}\n${log.join("")}`)));
  });
  const run = (...words) =>
    execFileSync(BINARY, [...words, "--data-dir", dir], {
      encoding: "utf8",
    }).trim();
  return {
    ...ready,
    origin: new URL(ready.console_url).origin,
    log,
    /** A fresh address of the console, good once. */
    consoleUrl: () => run("console"),
    run,
    stop: async () => {
      const ended = new Promise((resolve) => child.once("exit", resolve));
      child.kill("SIGINT");
      const late = setTimeout(() => child.kill("SIGKILL"), 5000);
      await ended;
      clearTimeout(late);
      rmSync(dir, { recursive: true, force: true });
    },
  };
}

/** A TCP proxy to a port of this machine; `cut()` ends every connection, `refuse` turns new ones away. */
export async function proxy(port) {
  const pairs = new Set();
  const state = { refuse: false };
  const server = createServer((near) => {
    if (state.refuse) {
      near.destroy();
      return;
    }
    const far = connect(port, "127.0.0.1");
    const pair = [near, far];
    pairs.add(pair);
    const end = () => {
      pairs.delete(pair);
      near.destroy();
      far.destroy();
    };
    for (const socket of pair) {
      socket.setNoDelay(true);
      socket.on("error", end);
      socket.on("close", end);
    }
    near.pipe(far);
    far.pipe(near);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    port: server.address().port,
    cut: () => {
      for (const [near, far] of pairs) {
        near.destroy();
        far.destroy();
      }
    },
    set refuse(value) {
      state.refuse = value;
    },
    close: () => {
      server.close();
      for (const pair of pairs) for (const socket of pair) socket.destroy();
    },
  };
}

export function launch(extra = []) {
  return chromium.launch({
    executablePath: CHROMIUM,
    headless: true,
    args: [
      "--no-sandbox",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      // WebGL in software, so that the renderer people get is the one that is tested.
      "--use-angle=swiftshader",
      "--enable-unsafe-swiftshader",
      ...extra,
    ],
  });
}

/** A page of its own context, with the verbs of a person. Anything the browser complains of is kept. */
export async function visit(browser, options = {}) {
  const context = await browser.newContext({
    ignoreHTTPSErrors: true,
    viewport: { width: 1280, height: 800 },
    permissions: ["clipboard-read", "clipboard-write"],
    ...options,
  });
  const page = await context.newPage();
  const complaints = [];
  page.on("console", (message) => {
    if (message.type() === "error") complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(`uncaught: ${error.stack ?? error.message}`));
  page.on("dialog", (dialog) => void dialog.accept().catch(() => {}));

  const terminals = () => page.evaluate(() => document.querySelector("underpass-console").terminals);
  const text = () => page.evaluate(() => document.querySelector("underpass-console").screenText());
  return {
    context,
    page,
    complaints,
    terminals,
    text,
    /** Chooses an instance in the list. */
    choose: (instance) => page.locator(`[data-instance="${instance}"]`).click({ force: true }),
    phase: (index, phase, timeout = 20_000) =>
      page.waitForFunction(
        ([at, wanted]) => document.querySelector("underpass-console").terminals.at(at)?.phase === wanted,
        [index, phase],
        { timeout },
      ),
    /** Types a line as a person does, key by key. */
    line: async (line) => {
      await page.keyboard.type(line);
      await page.keyboard.press("Enter");
    },
    /** Waits for text in the active terminal. */
    shows: async (wanted, timeout = 15_000) => {
      try {
        await page.waitForFunction(
          ([pattern, flags]) =>
            new RegExp(pattern, flags).test(document.querySelector("underpass-console").screenText()),
          wanted instanceof RegExp ? [wanted.source, wanted.flags] : [literally(wanted), ""],
          { timeout, polling: 50 },
        );
      } catch {
        throw new Error(`the terminal does not show ${wanted}:\n${(await text()).slice(-2000)}`);
      }
    },
    close: () => context.close(),
  };
}

function literally(literal) {
  return literal.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
}

/** What axe finds, each as "rule: target". */
export async function axe(page, { include, exclude } = {}) {
  let builder = new AxeBuilder({ page });
  if (include) builder = builder.include(include);
  if (exclude) builder = builder.exclude(exclude);
  const { violations } = await builder.analyze();
  return violations.flatMap(({ id, nodes }) =>
    nodes.map(
      (node) => `${id}: ${node.target.flat().join(" ")} ${node.failureSummary?.split("\n")[1]?.trim() ?? ""}`,
    ),
  );
}

/** Keeps the longest time in which the page did nothing else than what it was doing, and the longest frame. */
export async function watchStalls(page) {
  await page.evaluate(() => {
    const began = performance.now();
    const state = { longest: 0, frame: 0, last: began, drawn: began, on: true };
    globalThis.__stalls = state;
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      const now = performance.now();
      state.longest = Math.max(state.longest, now - state.last);
      state.last = now;
      if (state.on) setTimeout(() => port2.postMessage(0), 4);
    };
    port2.postMessage(0);
    const draw = (now) => {
      state.frame = Math.max(state.frame, now - state.drawn);
      state.drawn = now;
      if (state.on) requestAnimationFrame(draw);
    };
    requestAnimationFrame(draw);
  });
  return () =>
    page.evaluate(() => {
      globalThis.__stalls.on = false;
      return globalThis.__stalls;
    });
}
