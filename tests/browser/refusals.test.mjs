/**
 * What a person sees when something is wrong: each case names itself by a code, says what to do, and leaves
 * a terminal that already runs alone.
 */
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { request } from "node:https";
import { after, before, describe, test } from "node:test";
import { launch, proxy, up, visit } from "./harness.mjs";

let system;
let browser;
let instances;
/** Someone who works all along, and must not notice. */
let worker;

before(async () => {
  system = await up();
  browser = await launch();
  instances = system.apps.flatMap((app) => app.instances.map((instance) => ({ app: app.name, ...instance })));
  worker = await visit(browser);
  await worker.page.goto(system.console_url);
  await worker.choose(instances[0].id);
  await worker.phase(0, "open");
});

after(async () => {
  await browser?.close();
  await system?.stop();
});

/** A signed-in page whose answers from control pass through `change` before the page sees them. */
async function signedIn(change = {}) {
  const who = await visit(browser);
  for (const [path, edit] of Object.entries(change)) {
    await who.page.route(`**/api/v1/**/${path}`, async (route) => {
      const response = await route.fetch();
      const body = await response.json();
      await route.fulfill({
        response,
        json: (await edit(body, route)) ?? body,
      });
    });
  }
  await who.page.goto(system.consoleUrl());
  await who.page.locator(".instance").first().waitFor();
  return who;
}

/** A relay accepts a WebSocket to be able to say why it closes it: the next rung hears it. */
const REFUSED = ["websocket", "wireguard"];

/** Opens a terminal that must fail on one of `rungs` with `code`, and checks that the card says so. */
async function fails(who, rungs, code, instance = instances[0].id) {
  await who.choose(instance);
  await who.phase(-1, "failed", 40_000);
  const card = who.page.locator(".panel:not([hidden]) .card");
  const failed = await card.locator('.rung[data-state="failed"]').getAttribute("data-rung");
  const said = await card.locator(".problem").innerText();
  assert.ok(rungs.includes(failed), `failed on ${failed}: ${said}`);
  assert.match(await card.locator(".problem-code").innerText(), code, said);
  assert.match(await card.locator(".problem-hint").innerText(), /\S.{8,}/);
  assert.ok(await card.getByRole("button", { name: "Try again" }).isVisible());
}

/** The screen without a session says `code`, and how to get one. */
async function signInSays(page, code) {
  await page.locator(".signin .problem-code").waitFor();
  assert.equal(await page.locator(".signin .problem-code").innerText(), code);
  assert.match(await page.locator(".signin").innerText(), /underpass console/);
  assert.equal(new URL(page.url()).hash, "");
}

let said = 0;
async function workerIsWell() {
  said += 1;
  await worker.line(`echo well-${said}-$((1+1))`);
  await worker.shows(`well-${said}-2`);
}

describe("refusals", { concurrency: false }, () => {
  test("no token and no session: how to sign in", async () => {
    const { page, close } = await visit(browser);
    await page.goto(`${system.origin}/`);
    await page.getByRole("heading", { name: "Sign in" }).waitFor();
    assert.match(await page.locator(".signin").innerText(), /underpass console/);
    await close();
  });

  test("a wrong token, a used one, and a fresh one pasted after them", async () => {
    const { page, close } = await visit(browser);
    await page.goto(`${system.origin}/#token=AAAAAAAAAAAAAAAAAAAAAA`);
    await signInSays(page, "token_unknown");
    await page.goto(system.console_url);
    await page.locator(".signin .problem-code", { hasText: "token_used" }).waitFor();
    await signInSays(page, "token_used");
    await page.goto(system.consoleUrl());
    await page.locator(".instance").first().waitFor();
    await close();
    await workerIsWell();
  });

  test("an expired token", async () => {
    // Ten minutes are not waited for: control's own tests hold its clock. The screen is what is tested.
    const { page, close } = await visit(browser);
    const error = {
      code: "token_expired",
      message: "this login token has expired",
      hint: "run `underpass console` for a new one",
    };
    await page.route("**/api/v1/login", (route) => route.fulfill({ status: 401, json: { error } }));
    await page.goto(`${system.origin}/#token=old`);
    await signInSays(page, "token_expired");
    await close();
  });

  test("a session that control no longer knows", async () => {
    const { page, close } = await visit(browser);
    await page.goto(`${system.origin}/`);
    const expires = Math.floor(Date.now() / 1000) + 1000;
    await page.evaluate((kept) => sessionStorage.setItem("underpass.session", JSON.stringify(kept)), {
      session: "forged",
      user: "x",
      orgs: [{ name: "demo" }],
      expires,
    });
    await page.reload();
    await page.getByRole("heading", { name: /Sign in/ }).waitFor();
    assert.match(await page.locator(".signin").innerText(), /session_unknown[\s\S]*underpass console/);
    assert.equal(await page.evaluate(() => sessionStorage.getItem("underpass.session")), null);
    await close();
  });

  test("control that does not answer: a way to try again", async () => {
    const { page, close } = await visit(browser);
    await page.route("**/api/v1/login", (route) => route.abort());
    await page.goto(system.consoleUrl());
    await page.getByText("control_unreachable").waitFor();
    await page.unroute("**/api/v1/login");
    await page.getByRole("button", { name: "Try again" }).click();
    await page.locator(".instance").first().waitFor();
    await close();
  });

  test("an instance that went down a moment ago, one that is known to be down, one that never was", async () => {
    const who = await signedIn();
    const { id, app } = instances[2];
    system.run("instances", "stop", id);
    try {
      await fails(who, ["dns"], /^(no_data|nx_domain)$/, id);
      await who.page.evaluate(() => document.querySelector("underpass-console").refresh());
      await who.page.locator(`[data-instance="${id}"][aria-disabled]`).waitFor();
      await who.choose(id);
      await who.page.locator(".toast .problem-code", { hasText: "instance_stopped" }).waitFor();
      await who.page.evaluate(
        (wanted) => document.querySelector("underpass-console").open({ app: wanted, instance: "nowhere" }),
        app,
      );
      await who.page.locator(".toast .problem-code", { hasText: "instance_unknown" }).waitFor();
      assert.equal((await who.terminals()).length, 1);
    } finally {
      system.run("instances", "start", id);
    }
    await who.close();
    await workerIsWell();
  });

  test("a relay with no gateway of that name behind it", async () => {
    const who = await signedIn({
      peers: (lease) => {
        lease.relay.url = lease.relay.url.replace(/[^/]+$/, "nowhere");
      },
    });
    await fails(who, REFUSED, /^gateway_unknown$/);
    await who.close();
    await workerIsWell();
  });

  test("a WireGuard handshake that gets no answer", { timeout: 60_000 }, async () => {
    const who = await signedIn({
      peers: (lease) => {
        lease.gateway.public_key = Buffer.from(Array.from({ length: 32 }, (_, index) => index + 3)).toString(
          "base64",
        );
      },
    });
    await fails(who, ["wireguard"], /\S/);
    await who.close();
    await workerIsWell();
  });

  test("a host whose certificate no authority of ours signed", async () => {
    const stranger = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";
    const who = await signedIn({
      certificates: (answer) => {
        answer.host_cas = [stranger];
      },
    });
    await fails(who, ["ssh"], /host/);
    await who.close();
    await workerIsWell();
  });

  test("a certificate of another peer", async () => {
    const who = await signedIn({
      certificates: async (_, route) => {
        // The same key, certified for the address of a peer that is not this tab.
        const headers = route.request().headers();
        const org = encodeURIComponent(system.org);
        const post = async (path, data) =>
          (
            await who.context.request.post(`${system.origin}/api/v1/orgs/${org}/${path}`, {
              headers: { authorization: headers.authorization },
              data,
            })
          ).json();
        const key = Buffer.from(crypto.getRandomValues(new Uint8Array(32))).toString("base64");
        const other = await post("peers", { public_key: key });
        const { public_key } = route.request().postDataJSON();
        return post("ssh/certificates", {
          public_key,
          peer: other.address.split("/")[0],
        });
      },
    });
    await fails(who, ["ssh"], /^authentication_refused$|^certificate_/);
    await who.close();
    await workerIsWell();
  });

  test("a foreign Host header", async () => {
    const { hostname, port } = new URL(system.origin);
    const answer = await new Promise((resolve, reject) => {
      const headers = { host: "evil.example" };
      request(
        {
          hostname,
          port,
          path: "/api/v1/orgs",
          headers,
          rejectUnauthorized: false,
        },
        (response) => {
          let text = "";
          response.on("data", (chunk) => {
            text += chunk;
          });
          response.on("end", () => resolve({ status: response.statusCode, text }));
        },
      )
        .on("error", reject)
        .end();
    });
    assert.equal(answer.status, 421);
    assert.equal(JSON.parse(answer.text).error.code, "host_refused");
    await workerIsWell();
  });

  test("a page of another origin", async () => {
    // The same files and the same API, served from elsewhere: what a copy of the page on another site is.
    const elsewhere = createServer((from, to) => {
      const { hostname, port } = new URL(system.origin);
      const headers = { ...from.headers, host: `${hostname}:${port}` };
      delete headers.origin;
      const onward = request(
        {
          hostname,
          port,
          path: from.url,
          method: from.method,
          headers,
          rejectUnauthorized: false,
        },
        (answer) => {
          const passed = { ...answer.headers };
          delete passed["content-security-policy"];
          to.writeHead(answer.statusCode, passed);
          answer.pipe(to);
        },
      );
      onward.on("error", () => to.destroy());
      from.pipe(onward);
    });
    await new Promise((resolve) => elsewhere.listen(0, "127.0.0.1", resolve));
    const origin = `http://127.0.0.1:${elsewhere.address().port}`;
    const who = await visit(browser);
    await who.page.goto(`${origin}/${new URL(system.consoleUrl()).hash}`);
    await who.page.locator(".instance").first().waitFor();
    await fails(who, REFUSED, /^origin_/);
    await who.close();
    elsewhere.close();
    elsewhere.closeAllConnections();
    await workerIsWell();
  });

  test("a network that is cut: the shell waits, says so, and goes on", { timeout: 90_000 }, async () => {
    const { port } = new URL(system.origin);
    const between = await proxy(Number(port));
    // The same name and port as ever, so that no check notices: the browser's way there is ours to cut.
    const detoured = await launch([`--host-resolver-rules=MAP localhost:${port} 127.0.0.1:${between.port}`]);
    const who = await visit(detoured);
    await who.page.goto(system.consoleUrl().replace("127.0.0.1", "localhost"));
    await who.page.locator(".instance").first().waitFor();
    await who.choose(instances[0].id);
    await who.phase(0, "open");
    await who.line("kept=$((40+4))");
    between.refuse = true;
    between.cut();
    await who.page.getByText("The connection was lost.").waitFor();
    await who.page.keyboard.type("echo still-$kept");
    await who.page.keyboard.press("Enter");
    await who.page.waitForTimeout(1500);
    between.refuse = false;
    await who.page.getByRole("button", { name: "Try now" }).click();
    await who.shows("still-44", 30_000);
    await who.page.getByText("The connection was lost.").waitFor({ state: "hidden" });
    await detoured.close();
    between.close();
    await workerIsWell();
  });

  test("the worker noticed nothing", () => {
    assert.deepEqual(worker.complaints, []);
  });
});
