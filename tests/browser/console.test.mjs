/**
 * The console as a person meets it: a real `underpass up --demo`, a real Chromium, no part replaced. The
 * cases share one system and, where they can, one page; each leaves it as it found it.
 */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { axe, launch, up, visit, watchStalls } from "./harness.mjs";

/** What xterm.js is known to do inside its own element. Anything else there is news. */
const UPSTREAM = [];

const MB = 1_000_000;

let system;
let browser;
let person;
let instances;

before(async () => {
  system = await up();
  browser = await launch();
  instances = system.apps.flatMap((app) => app.instances.map((instance) => ({ app: app.name, ...instance })));
});

after(async () => {
  await browser?.close();
  await system?.stop();
});

/** Opens a terminal and waits for its prompt. */
async function shell(who, instance = instances[0].id) {
  const { length } = await who.terminals();
  await who.choose(instance);
  await who.phase(-1, "open");
  assert.equal((await who.terminals()).length, length + 1);
  await who.shows(/\S/);
}

describe("console", { concurrency: false }, () => {
  test("signs in by the address and erases the token", async () => {
    person = await visit(browser);
    await person.page.goto(system.console_url);
    for (const { id, region } of instances) {
      const row = person.page.locator(`[data-instance="${id}"]`);
      await row.waitFor();
      assert.match(await row.innerText(), new RegExp(region));
    }
    assert.equal(new URL(person.page.url()).hash, "");
    assert.equal(await person.page.evaluate(() => JSON.stringify(localStorage)), "{}");
    assert.equal(await person.page.evaluate(() => document.cookie), "");
  });

  test("filters the list", async () => {
    const { page } = person;
    await page.getByRole("searchbox").fill(instances[2].id.slice(0, 6));
    assert.equal(await page.locator(".instance").count(), 1);
    await page.keyboard.press("Escape");
    assert.equal(await page.locator(".instance").count(), instances.length);
  });

  test("opens a shell, runs a command, reads its output", async (t) => {
    await shell(person);
    await person.line("echo sum-$((40+2))");
    await person.shows("sum-42");
    const [terminal] = await person.terminals();
    const parts = terminal.rungs.map(({ name, ms }) => `${name} ${ms?.toFixed(0) ?? "-"}`).join(", ");
    t.diagnostic(
      `click to prompt, first: ${terminal.totalMs.toFixed(0)} ms (${parts}), renderer ${terminal.renderer}`,
    );
    assert.ok(terminal.rungs.every(({ state }) => state === "done"));
    assert.equal(terminal.renderer, "webgl");
  });

  test("carries UTF-8 and wide characters both ways", async () => {
    await person.page.keyboard.insertText("printf '%s|\\n' '漢字 é ñ 🚇 Ω ж'");
    await person.page.keyboard.press("Enter");
    await person.shows(/^漢字 é ñ 🚇 Ω ж\|$/m);
    // Enough that many chunks end inside a character.
    await person.line(
      "yes $(printf '\\346\\274\\242\\360\\237\\232\\207\\303\\251') | head -n 30000; echo wide-done-$((1+1))",
    );
    await person.shows("wide-done-2", 60_000);
    const shown = await person.text();
    assert.ok(!shown.includes("\ufffd"), "a character was cut");
    assert.match(shown, /^漢🚇é$/m);
    await person.line("clear");
  });

  test("follows the window's size", async () => {
    const { page } = person;
    const size = async (mark) => {
      await person.line(`echo ${mark}-$((1+0)) $(stty size)`);
      await person.shows(new RegExp(`${mark}-1 \\d+ \\d+`));
      const [, rows, cols] = (await person.text()).match(new RegExp(`${mark}-1 (\\d+) (\\d+)`));
      const [terminal] = await person.terminals();
      assert.deepEqual([Number(rows), Number(cols)], [terminal.rows, terminal.cols]);
      return [Number(rows), Number(cols)];
    };
    const [rows, cols] = await size("before");
    await page.setViewportSize({ width: 1000, height: 560 });
    await page.waitForFunction(
      (was) => document.querySelector("underpass-console").terminals[0].rows < was,
      rows,
    );
    await page.waitForTimeout(200);
    const [fewer, narrower] = await size("after");
    assert.ok(fewer < rows && narrower < cols);
    const clipped = await page.evaluate(() => {
      const box = document
        .querySelector("underpass-console")
        .shadowRoot.querySelector(".panel:not([hidden]) .terminal-box");
      return (
        box.querySelector(".xterm-screen").getBoundingClientRect().bottom - box.getBoundingClientRect().bottom
      );
    });
    assert.ok(clipped <= 0, `the last row is clipped by ${clipped} px`);
    await page.setViewportSize({ width: 1280, height: 800 });
    await page.waitForFunction(
      (was) => document.querySelector("underpass-console").terminals[0].rows === was,
      rows,
    );
  });

  test("shows 20 MB of output and stays responsive", { timeout: 180_000 }, async (t) => {
    const { page } = person;
    await person.line("clear");
    const stop = await watchStalls(page);
    const began = performance.now();
    await person.line(`head -c ${20 * MB} /dev/zero | tr '\\0' x | fold -w 99; echo; echo last-$((6*7))`);
    await page.waitForTimeout(500);
    // A person who opens the help in the middle of it does not wait for the end of it.
    const asked = performance.now();
    await page.getByRole("button", { name: "Keys and help" }).click();
    await page.getByRole("heading", { name: "Keys" }).waitFor();
    const answered = performance.now() - asked;
    await page.keyboard.press("Escape");
    await person.shows(/^last-42$/m, 150_000);
    const seconds = (performance.now() - began) / 1000;
    const { longest, frame } = await stop();
    t.diagnostic(
      `20 MB in ${seconds.toFixed(1)} s (${(20 / seconds).toFixed(1)} MB/s), longest stall ${longest.toFixed(0)} ms, longest frame ${frame.toFixed(0)} ms, a click answered in ${answered.toFixed(0)} ms`,
    );
    assert.match(await person.text(), /^x{99}\nx+\nlast-42$/m);
    assert.ok(longest < 1000, `the page stood still for ${longest} ms`);
    await page.locator(".panel:not([hidden]) textarea").focus();
    await person.line("clear");
  });

  test("pastes, and asks before several lines where nothing marks them", async () => {
    const { page } = person;
    await page.evaluate(() => navigator.clipboard.writeText("echo pasted-$((2+3))"));
    await page.keyboard.press("Control+Shift+V");
    await page.keyboard.press("Enter");
    await person.shows("pasted-5");
    await person.line("cat");
    await page.waitForTimeout(300);
    await page.evaluate(() => navigator.clipboard.writeText("first line\nsecond line\n"));
    await page.keyboard.press("Control+Shift+V");
    const dialog = page.getByRole("dialog");
    await dialog.waitFor();
    assert.match(await dialog.innerText(), /Paste 2 lines\?/);
    await dialog.getByRole("button", { name: "Cancel" }).click();
    assert.ok(!(await person.text()).includes("second line"));
    await page.keyboard.press("Control+Shift+V");
    await dialog.getByRole("button", { name: "Paste 2 lines" }).click();
    await person.shows(
      /second line\s+first line\s+second line|first line\s+first line\s+second line\s+second line/,
    );
    await page.keyboard.press("Control+D");
  });

  test("copies the selection; programs may set the clipboard, not read it", async () => {
    const { page } = person;
    const clipboard = () => page.evaluate(() => navigator.clipboard.readText());
    await person.line("clear; echo copy-$((7*3))-me");
    await person.shows(/^copy-21-me$/m);
    const box = await page.locator(".panel:not([hidden]) .xterm-screen").boundingBox();
    const [{ rows }] = await person.terminals();
    const at = (await person.text()).split("\n").indexOf("copy-21-me");
    await page.mouse.dblclick(box.x + 4, box.y + (box.height / rows) * (at + 0.5));
    await page.keyboard.press("Control+Shift+C");
    await page.waitForTimeout(100);
    assert.match(await clipboard(), /copy/);
    await person.line("printf '\\033]52;c;%s\\a' $(printf set-by-program | base64)");
    await page.getByText("The program copied text to your clipboard.").first().waitFor();
    assert.equal(await clipboard(), "set-by-program");
    // A query is not answered: nothing arrives for `read`, which gives up.
    await person.line("clear; printf '\\033]52;c;?\\a'; read -t 1 -n 1 x; echo got-[$x]-$((1+1))");
    await person.shows("got-[]-2");
  });

  test("opens links with Ctrl alone, and shows where they lead", async () => {
    const { page, context } = person;
    const said =
      "printf '\\033]8;;http://127.0.0.1:9/true-target\\033\\\\innocent-text\\033]8;;\\033\\\\\\n'";
    await person.line(`clear; ${said}`);
    await person.shows(/^innocent-text$/m);
    const box = await page.locator(".panel:not([hidden]) .xterm-screen").boundingBox();
    const [{ rows }] = await person.terminals();
    const at = (await person.text()).split("\n").indexOf("innocent-text");
    const spot = [box.x + 20, box.y + (box.height / rows) * (at + 0.5)];
    const opened = [];
    context.on("page", (popup) => opened.push(popup));
    // xterm.js asks for the links of a line when the pointer comes to it from another.
    await page.mouse.move(spot[0], box.y + box.height / 2);
    await page.mouse.move(spot[0] + 30, spot[1]);
    await page.locator(".link-hint", { hasText: "http://127.0.0.1:9/true-target" }).first().waitFor();
    await page.mouse.click(...spot);
    await page.waitForTimeout(300);
    assert.equal(opened.length, 0);
    const popup = context.waitForEvent("page");
    await page.keyboard.down("Control");
    await page.mouse.click(...spot);
    await page.keyboard.up("Control");
    await (await popup).close();
    await page.bringToFront();
    assert.equal(opened.length, 1);
  });

  test("finds text in the output", async () => {
    const { page } = person;
    await person.line("clear; for i in 1 2 3; do echo needle-$i; done");
    await person.shows("needle-3");
    await page.keyboard.press("Control+Shift+F");
    await page.keyboard.type("needle-2");
    await page.getByText(/^1 of 1$/).waitFor();
    await page.keyboard.press("Escape");
    await person.line("echo back-$((1+1))");
    await person.shows("back-2");
  });

  test("runs two terminals at once", async (t) => {
    await person.line("echo first=$((100+1))");
    await shell(person, instances[1].id);
    const second = (await person.terminals()).at(-1);
    t.diagnostic(`click to prompt, second: ${second.totalMs.toFixed(0)} ms`);
    assert.deepEqual(
      second.rungs.filter(({ state }) => state === "shared").map(({ name }) => name),
      ["websocket", "wireguard"],
    );
    await person.line("echo second=$((200+2))");
    await person.shows("second=202");
    assert.ok(!(await person.text()).includes("first=101"));
    await person.page.keyboard.press("Control+Shift+BracketLeft");
    await person.shows("first=101");
    assert.ok(!(await person.text()).includes("second=202"));
    // The tabs are a tab list: arrows move, the panel follows.
    const tabs = person.page.getByRole("tab");
    await tabs.first().focus();
    await person.page.keyboard.press("ArrowRight");
    assert.equal(await tabs.nth(1).getAttribute("aria-selected"), "true");
    await person.page.keyboard.press("Enter");
    await person.line("echo again=$((300+3))");
    await person.shows("again=303");
  });

  test("shows the exit status and reconnects with Enter", async () => {
    await person.line("exit 7");
    await person.page.getByText("Exited with status 7.").waitFor();
    assert.deepEqual((await person.terminals())[1].exit, { code: 7 });
    await person.page.keyboard.press("Enter");
    await person.phase(1, "open");
    await person.line("echo anew-$((1+1))");
    await person.shows("anew-2");
    await person.line("kill -KILL $$");
    await person.page.getByText("Ended by signal KILL.").waitFor();
    await person.page.keyboard.press("Control+Shift+KeyX");
    assert.equal((await person.terminals()).length, 1);
  });

  test("survives the loss of WebGL", async () => {
    const { page } = person;
    await person.line("clear");
    await page.evaluate(() => {
      for (const canvas of document
        .querySelector("underpass-console")
        .shadowRoot.querySelectorAll(".panel:not([hidden]) canvas")) {
        canvas.getContext("webgl2")?.getExtension("WEBGL_lose_context")?.loseContext();
      }
    });
    await page.waitForFunction(
      () => document.querySelector("underpass-console").terminals[0].renderer === "dom",
    );
    await page.locator(".panel:not([hidden]) textarea").focus();
    await person.line("printf '\\033[38;2;250;120;40mstill-%s\\033[0m\\n' here");
    await person.shows(/^still-here$/m);
    const colour = await page
      .locator(".panel:not([hidden]) .xterm-rows span", {
        hasText: "still-here",
      })
      .last()
      .evaluate((span) => getComputedStyle(span).color);
    assert.notEqual(colour, "rgb(216, 220, 226)", "the policy of the page took the colours away");
    await page.waitForFunction(
      () => document.querySelector("underpass-console").terminals[0].renderer === "webgl",
      null,
      { timeout: 15_000 },
    );
  });

  test("lives through a move in the document", async () => {
    await person.line("marker=$((50+5))");
    await person.page.evaluate(() => {
      const element = document.querySelector("underpass-console");
      const place = document.createElement("div");
      place.style.height = "100%";
      document.querySelector("main").append(place);
      place.append(element);
    });
    await person.page.waitForTimeout(200);
    await person.page.locator(".panel:not([hidden]) textarea").focus();
    await person.line("echo moved-$marker");
    await person.shows("moved-55");
  });

  test("works twice on one page, each with a tunnel of its own", async () => {
    const both = await visit(browser);
    await both.page.goto(system.consoleUrl());
    await both.page.locator(".instance").first().waitFor();
    await both.page.evaluate(() => {
      const main = document.querySelector("main");
      main.style.cssText = "display:grid;grid-template-rows:1fr 1fr;height:100%";
      const second = document.createElement("underpass-console");
      second.id = "second";
      second.credentials = {
        session: JSON.parse(sessionStorage.getItem("underpass.session")).session,
        user: "second",
      };
      main.append(second);
    });
    for (const [index, said] of ["upper", "lower"].entries()) {
      const element = both.page.locator("underpass-console").nth(index);
      await element.locator(".instance").first().click();
      await both.page.waitForFunction(
        (at) => document.querySelectorAll("underpass-console")[at].terminals[0]?.phase === "open",
        index,
      );
      await both.line(`echo ${said}-$((1+1))`);
      await both.page.waitForFunction(
        ([at, text]) => document.querySelectorAll("underpass-console")[at].screenText().includes(text),
        [index, `${said}-2`],
      );
    }
    assert.deepEqual(both.complaints, []);
    await both.close();
  });

  test("keeps the login over F5 and opens what was open", async () => {
    assert.match(person.page.url(), /#app=.+&instance=.+/);
    await person.page.reload();
    await person.phase(0, "open");
    await person.shows(/\S/);
    await person.line("echo reloaded-$((1+1))");
    await person.shows("reloaded-2");
  });

  test("opens what a deep link names, and keeps the theme, and nothing else", async () => {
    const guest = await visit(browser);
    const { app, id } = instances[1];
    await guest.page.goto(`${system.consoleUrl()}&app=${app}&instance=${id}`);
    await guest.phase(0, "open");
    assert.equal((await guest.terminals())[0].instance, id);
    assert.ok(!guest.page.url().includes("token"));
    const theme = guest.page.getByRole("button", { name: /^Theme/ });
    await theme.click();
    await theme.click();
    assert.equal(await theme.getAttribute("aria-label"), "Theme: dark");
    assert.equal(await guest.page.evaluate(() => JSON.stringify(localStorage)), '{"underpass.theme":"dark"}');
    await guest.page.reload();
    await guest.phase(0, "open");
    assert.equal(await guest.page.evaluate(() => document.querySelector("underpass-console").scheme), "dark");
    await guest.page.getByRole("button", { name: "Sign out" }).click();
    await guest.page.getByRole("heading", { name: "Sign in" }).waitFor();
    assert.equal(await guest.page.evaluate(() => sessionStorage.length), 0);
    assert.deepEqual(guest.complaints, []);
    await guest.close();
  });

  test("works on a phone: the drawer, the key bar", async () => {
    const phone = await visit(browser, {
      viewport: { width: 390, height: 844 },
      hasTouch: true,
      isMobile: true,
    });
    const { page } = phone;
    await page.goto(system.consoleUrl());
    await page.locator(".instance").first().waitFor();
    await page.locator(`[data-instance="${instances[0].id}"]`).tap();
    await phone.phase(0, "open");
    assert.equal(await page.locator(".sidebar").getAttribute("inert"), "");
    await page.locator(".panel:not([hidden]) textarea").focus();
    await phone.line("sleep 60");
    await page.getByRole("button", { name: "Control, for the next key" }).tap();
    await page.keyboard.type("c");
    await phone.line("echo code-$?");
    await phone.shows("code-130");
    await page.getByRole("button", { name: "Up", exact: true }).tap();
    await page.keyboard.press("Enter");
    await phone.shows(/code-130[^]*code-0/);
    await page.getByRole("button", { name: "Instances" }).tap();
    await page.locator(`[data-instance="${instances[1].id}"]`).tap();
    await phone.phase(1, "open");
    const wide = await page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(wide <= 390, `the page is ${wide} px wide`);
    await phone.close();
  });

  for (const colorScheme of ["light", "dark"]) {
    test(`axe finds nothing, ${colorScheme}`, async (t) => {
      const reader = await visit(browser, {
        colorScheme,
        reducedMotion: "reduce",
      });
      const { page } = reader;
      const check = async (where) => {
        const found = await axe(page, {
          exclude: [["underpass-console", ".xterm"]],
        });
        assert.deepEqual(found, [], where);
      };
      await page.goto(`${system.origin}/`);
      await page.getByRole("heading", { name: "Sign in" }).waitFor();
      await check("sign in");
      await page.goto(`${system.origin}/#token=wrong`);
      await page.getByText("token_unknown").waitFor();
      await check("wrong token");
      await page.goto(system.consoleUrl());
      await page.locator(".instance").first().waitFor();
      await check("list");
      await shell(reader);
      await reader.line("ls -la /; echo end-$((1+1))");
      await reader.shows("end-2");
      await check("shell");
      const inside = await axe(page, {
        include: [["underpass-console", ".panel:not([hidden]) .xterm"]],
      });
      for (const line of inside) t.diagnostic(`inside xterm.js: ${line}`);
      assert.deepEqual(
        inside.filter((line) => !UPSTREAM.includes(line.split(":")[0])),
        [],
      );
      await page.keyboard.press("Control+Shift+F");
      await page.keyboard.type("end");
      await check("search");
      await page.keyboard.press("Escape");
      await page.getByRole("button", { name: /prompt in/ }).click();
      await check("ladder");
      await page.getByRole("button", { name: "Close", exact: true }).click();
      await page.keyboard.press("Control+Shift+KeyH");
      await page.getByRole("heading", { name: "Keys" }).waitFor();
      await check("help");
      await page.keyboard.press("Escape");
      await page.locator(".panel:not([hidden]) textarea").focus();
      await reader.line("exit 3");
      await page.getByText("Exited with status 3.").waitFor();
      await check("exit");
      await page.evaluate(() => {
        document.querySelector("underpass-console").sshUser = "nobody";
      });
      await reader.choose(instances[1].id);
      await reader.phase(-1, "failed");
      assert.match(
        await page.locator(".panel:not([hidden]) .problem").innerText(),
        /nobody|principal|login/i,
      );
      await check("failed");
      await page.setViewportSize({ width: 390, height: 844 });
      await page.waitForTimeout(300);
      await check("narrow");
      await page.getByRole("button", { name: "Instances" }).click();
      await page.waitForTimeout(300);
      await check("drawer");
      await reader.close();
    });
  }

  test("complained of nothing on the browser's console", () => {
    assert.deepEqual(person.complaints, []);
  });
});
