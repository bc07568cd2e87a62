/**
 * Whose session a tab has: one that ends under terminals, one that is renewed, and an address that brings
 * somebody else's.
 */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { axe, launch, up, visit } from "./harness.mjs";

let system;
let browser;

before(async () => {
  system = await up();
  browser = await launch();
});

after(async () => {
  await browser?.close();
  await system?.stop();
});

/** A person with a terminal in which a variable is set: it is gone when the terminal is another. */
async function working() {
  const who = await visit(browser);
  await who.page.goto(system.consoleUrl());
  await who.page.locator(".instance").first().click();
  await who.phase(0, "open");
  await who.line("marker=$((50+5))");
  return who;
}

let asked = 0;
async function goesOn(who) {
  asked += 1;
  await who.page.locator(".panel:not([hidden]) textarea").focus();
  await who.line(`echo same-${asked}-$marker`);
  await who.shows(`same-${asked}-55`);
}

const session = (page) => page.evaluate(() => JSON.parse(sessionStorage.getItem("underpass.session")));

/** The next login is another person's, as far as the page is told. */
async function nextLoginIsEves(page) {
  await page.route("**/api/v1/login", async (route) => {
    const response = await route.fetch();
    const body = await response.json();
    await route.fulfill({ response, json: { ...body, user: "eve" } });
  });
}

/** As a link that is clicked does, without a new page. */
const follow = (page, url) => page.evaluate((hash) => (location.hash = hash), new URL(url).hash);

describe("sessions", { concurrency: false }, () => {
  test("an address of the same person renews the session under the terminals", async () => {
    const who = await working();
    const first = await session(who.page);
    await follow(who.page, system.consoleUrl());
    await who.page.waitForFunction(
      (old) => JSON.parse(sessionStorage.getItem("underpass.session")).session !== old,
      first.session,
    );
    assert.equal(await who.page.locator("dialog[open]").count(), 0);
    assert.ok(!who.page.url().includes("token"));
    await goesOn(who);
    await who.page.evaluate(() => document.querySelector("underpass-console").refresh());
    await who.page.locator(".instance").first().waitFor();
    assert.deepEqual(who.complaints, []);
    await who.close();
  });

  test("an address of somebody else asks first", async () => {
    const who = await working();
    const mine = await session(who.page);
    await nextLoginIsEves(who.page);
    const dialog = who.page.getByRole("dialog", { name: "Switch to another login?" });
    for (const leave of ["Escape", "Enter"]) {
      await follow(who.page, system.consoleUrl());
      await dialog.waitFor();
      assert.match(await dialog.innerText(), /ends your terminal[\s\S]*local \(demo\)[\s\S]*eve \(demo\)/);
      const found = await axe(who.page, { exclude: [["underpass-console", ".xterm"]] });
      assert.deepEqual(found, []);
      // Whoever types on while the link opens stays who they are.
      await who.page.keyboard.press(leave);
      await dialog.waitFor({ state: "detached" });
      assert.equal((await session(who.page)).session, mine.session);
      await goesOn(who);
    }

    // The same at the door: the tab is loaded anew by such an address.
    await who.page.goto("about:blank");
    await who.page.goto(system.consoleUrl());
    await dialog.waitFor();
    await dialog.getByRole("button", { name: "Stay local" }).click();
    await who.page.locator(".instance").first().waitFor();
    assert.equal((await session(who.page)).user, "local");

    await who.page.locator(".instance").first().click();
    await who.phase(-1, "open");
    await follow(who.page, system.consoleUrl());
    await dialog.getByRole("button", { name: "Switch to eve" }).click();
    await who.page.waitForFunction(() => document.querySelector("underpass-console").terminals.length === 0);
    assert.equal((await session(who.page)).user, "eve");
    await who.page.locator(".instance").first().waitFor();
    await who.close();
  });

  test("a wrong address leaves who is signed in alone", async () => {
    const who = await working();
    await follow(who.page, `${system.origin}/#token=AAAAAAAAAAAAAAAAAAAAAA`);
    await who.page.getByText("token_unknown").waitFor();
    await goesOn(who);
    await who.close();
  });

  test("a session that ends says until when terminals go on, and is renewed from another tab", async () => {
    const who = await working();
    const mine = await session(who.page);
    await who.page.evaluate(
      (bearer) =>
        fetch("/api/v1/session", { method: "DELETE", headers: { authorization: `Bearer ${bearer}` } }),
      mine.session,
    );
    await who.page.evaluate(() => document.querySelector("underpass-console").refresh());
    const notice = who.page.locator(".sidebar .problem");
    await notice.waitFor();
    assert.match(await notice.innerText(), /go on until \d\d?:\d\d[\s\S]*underpass console/);
    await goesOn(who);

    const other = await who.context.newPage();
    await other.goto(system.consoleUrl());
    await other.locator(".instance").first().waitFor();
    await who.page.bringToFront();
    await who.page.getByRole("button", { name: "Try again" }).click();
    await who.page.locator(".instance").first().waitFor();
    await goesOn(who);
    assert.notEqual((await session(who.page)).session, mine.session);
    await who.close();
  });
});
