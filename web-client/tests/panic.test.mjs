// A panic is a fault of the client's own. No input is known that causes one; here it takes a WebSocket that
// breaks its contract and answers inside of `send`. It is told once, on the console and to the page.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";

const built = new URL("../../www/src/wasm/", import.meta.url);
const client = await import(new URL("underpass.js", built));
await client.default({ module_or_path: await readFile(new URL("underpass_bg.wasm", built)) });

globalThis.WebSocket = class {
  bufferedAmount = 0;

  constructor() {
    queueMicrotask(() => this.onopen({}));
  }

  send() {
    this.onmessage({ data: Uint8Array.of(0, 1, 0).buffer });
  }

  close() {}
};

test("a panic is told once, with what to do", async () => {
  const [errors, statuses] = [[], []];
  console.error = (text) => errors.push(text);
  const key = client.generateKey();
  const abort = new AbortController();
  const connecting = client.Tunnel.connect({
    relayUrl: "wss://relay.test/",
    key,
    gatewayKey: client.generateKey().publicKey,
    address: "fdaa:0:18::1",
    dns: "fdaa:0:18::3",
    signal: abort.signal,
    onStatus: (status) => statuses.push(status),
  }).catch(() => {});
  await new Promise((done) => setTimeout(done, 50));
  assert.equal(errors.length, 1);
  assert.match(errors[0], /^underpass: .*panicked/);
  assert.ok(!errors[0].includes(process.env.HOME), errors[0]);
  assert.equal(statuses.length, 1);
  assert.equal(statuses[0].state, "closed");
  assert.equal(statuses[0].code, "client_crashed");
  assert.equal(statuses[0].hint, "Reload the page.");
  abort.abort();
  await connecting;
});
