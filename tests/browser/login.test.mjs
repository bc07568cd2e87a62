/**
 * `underpass login`: a program that has no session is let in by a person at the console, with a keyboard
 * alone, in a tab that the program opened and that was not signed in itself.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { axe, BINARY, launch, up, visit } from "./harness.mjs";

let system;
let browser;
let who;
let home;

before(async () => {
  system = await up();
  browser = await launch();
  who = await visit(browser);
  await who.page.goto(system.console_url);
  await who.page.locator(".instance").first().waitFor();
  home = mkdtempSync(join(tmpdir(), "underpass-login-"));
});

after(async () => {
  await browser?.close();
  await system?.stop();
  if (home) rmSync(home, { recursive: true, force: true });
});

/** A command of a person whose machine is another: no data directory, settings of its own. */
function underpass(...words) {
  const child = spawn(BINARY, words, {
    stdio: ["ignore", "pipe", "pipe"],
    env: { PATH: process.env.PATH, HOME: home },
  });
  const said = { out: "", err: "" };
  child.stdout.on("data", (chunk) => (said.out += chunk));
  child.stderr.on("data", (chunk) => (said.err += chunk));
  const ended = new Promise((resolve) => child.once("close", (code) => resolve({ code, ...said })));
  return { said, ended, stop: () => child.kill() };
}

/** A login under way, and the address that it shows. */
async function login(t) {
  const program = underpass(
    "login",
    system.origin,
    "--cert-fingerprint",
    `SHA256:${system.fingerprint}`,
    "--no-browser",
    "--json",
  );
  t.after(program.stop);
  for (let tries = 0; tries < 100 && !program.said.err.includes("#cli="); tries += 1) {
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  const [page, code] = /https:\S+#cli=(\S+)/.exec(program.said.err) ?? assert.fail(program.said.err);
  return { ...program, page, code };
}

test("a person lets a program in by keyboard, in a tab that another tab signs in", async (t) => {
  const program = await login(t);
  const tab = await who.context.newPage();
  await tab.goto(program.page);
  const dialog = tab.getByRole("dialog", { name: `Let underpass on ${hostname()} in?` });
  await dialog.waitFor();
  assert.match(await dialog.innerText(), new RegExp(program.code));
  assert.match(await dialog.innerText(), /127\.0\.0\.1/);
  assert.deepEqual(await axe(tab), []);
  assert.equal(new URL(tab.url()).hash, "", "a reload would ask again");
  // What a person is typing elsewhere when the tab opens lets nobody in.
  assert.equal(await tab.locator("button:focus").innerText(), "Refuse");
  await tab.keyboard.press("Tab");
  assert.equal(await tab.locator("button:focus").innerText(), "Let it in");
  await tab.keyboard.press("Enter");
  const { code, out, err } = await program.ended;
  assert.equal(code, 0, err);
  assert.equal(JSON.parse(out).user, "local");
  assert.equal(statSync(join(home, ".config/underpass/credentials.toml")).mode & 0o777, 0o600);
  const apps = await underpass("apps", "--json").ended;
  assert.equal(apps.code, 0, apps.err);
  assert.deepEqual(
    JSON.parse(apps.out).apps.map((app) => app.name),
    ["web", "worker"],
  );
  await tab.close();
});

test("a program that is refused says so, and a code opens nothing twice", async (t) => {
  const program = await login(t);
  await who.page.evaluate((code) => (location.hash = `cli=${code}`), program.code);
  await who.page.getByRole("button", { name: "Refuse" }).click();
  const { code, err } = await program.ended;
  assert.equal(code, 1);
  assert.match(err, /login_denied\)\nhint: /);
  for (const gone of [program.code, "<script>"]) {
    await who.page.evaluate((code) => (location.hash = `cli=${encodeURIComponent(code)}`), gone);
    await who.page.locator(".problem-code", { hasText: "code_unknown" }).waitFor();
    await who.page.locator(".problem-code").waitFor({ state: "hidden", timeout: 20_000 });
  }
});

test("without anybody signed in, the page says how to sign in, and asks after that", async (t) => {
  const program = await login(t);
  const other = await visit(browser);
  t.after(other.close);
  await other.page.goto(program.page);
  await other.page.locator(".signin").getByText("underpass console").waitFor();
  const console = new URL(system.consoleUrl());
  await other.page.evaluate(
    (token) => (location.hash = token + location.hash.replace("#", "&")),
    console.hash,
  );
  await other.page.getByRole("button", { name: "Let it in" }).click();
  const { code, err } = await program.ended;
  assert.equal(code, 0, err);
});
