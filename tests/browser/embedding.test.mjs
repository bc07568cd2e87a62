/**
 * The package in somebody else's page: the five lines of www/README.md, on another origin, and what stands
 * between that page and a stranger's.
 */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { launch, up, visit } from "./harness.mjs";

const www = fileURLToPath(new URL("../../www", import.meta.url));
const TYPES = {
  ".js": "text/javascript",
  ".wasm": "application/wasm",
  ".css": "text/css",
  ".html": "text/html",
};

let browser;
let system;
let dashboard;
let stranger;

before(async () => {
  execFileSync("npm", ["run", "--silent", "build:lib"], {
    cwd: www,
    stdio: ["ignore", "ignore", "inherit"],
  });
  dashboard = await site();
  stranger = await site();
  system = await up(["--allow-origin", dashboard.origin]);
  browser = await launch();
});

after(async () => {
  await browser?.close();
  await system?.stop();
  dashboard?.close();
  stranger?.close();
});

test("a dashboard on another origin opens a shell with five lines", async () => {
  const who = await visit(browser);
  await embed(who.page, dashboard);
  const [instance] = system.apps.flatMap((app) => app.instances);
  await who.choose(instance.id);
  await who.phase(-1, "open");
  await who.line("echo embedded $((40+2))");
  await who.shows("embedded 42");
  assert.deepEqual(who.complaints, []);
  await who.close();
});

test("the same page on an origin that nobody allowed gets nothing, and is told so", async () => {
  const who = await visit(browser);
  await embed(who.page, stranger);
  await who.page.getByText(`--allow-origin ${stranger.origin}`).first().waitFor();
  assert.deepEqual(await who.terminals(), []);
  assert.equal(await who.page.locator(".instance").count(), 0);
  await who.close();
});

/** A page that has nothing of ours but the package, and credentials from its own server. */
async function embed(page, at) {
  at.page = `<!doctype html><html lang="en"><title>Dashboard</title><link rel="icon" href="data:,">
    <style>underpass-console { display: block; height: 90vh }</style>
    <script type="importmap">{"imports": {"@underpass/console/element": "/element.js"}}</script>
    <script type="module">
      import "@underpass/console/element";
      const element = document.createElement("underpass-console");
      element.credentials = async () => ({ api: ${JSON.stringify(system.origin)}, session: await mySession() });
      document.body.append(element);
      async function mySession() { return ${JSON.stringify(await session())}; }
    </script>`;
  await page.goto(at.origin);
}

/** What the dashboard's server does once it knows its visitor. */
async function session() {
  const token = new URL(system.consoleUrl()).hash.replace("#token=", "");
  const words = ["-sk", "--json", JSON.stringify({ token }), `${system.origin}/api/v1/login`];
  return JSON.parse(execFileSync("curl", words, { encoding: "utf8" })).session;
}

/** A server of static files: the built package, and one page. */
async function site() {
  const state = { page: "" };
  const server = createServer((request, response) => {
    const path = new URL(request.url, "http://localhost").pathname;
    try {
      const body = path === "/" ? state.page : readFileSync(join(www, "dist-lib", path));
      response.setHeader("content-type", TYPES[extname(path)] ?? "text/html").end(body);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  state.origin = `http://127.0.0.1:${server.address().port}`;
  state.close = () => server.close();
  return state;
}
