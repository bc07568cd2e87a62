// The package in Node, over a WebSocket made here: two tunnels, each the other's gateway.
//
//   node --test web-client/tests/
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";

const built = new URL("../../www/src/wasm/", import.meta.url);
const client = await import(new URL("underpass.js", built));
await client.default({ module_or_path: await readFile(new URL("underpass_bg.wasm", built)) });

/** Every WebSocket ever opened, oldest first. */
const sockets = [];

/** Who is at the other end of an address. */
const relays = new Map();

/** The browser's WebSocket as far as the client uses it. */
class FakeWebSocket {
  bufferedAmount = 0;
  binaryType = "blob";
  sent = [];
  state = "connecting";

  constructor(url, protocols) {
    Object.assign(this, { url, protocols });
    sockets.push(this);
    queueMicrotask(() => relays.get(url)?.(this));
  }

  open() {
    this.state = "open";
    this.onopen?.({});
  }

  send(data) {
    assert.equal(this.state, "open");
    // A view on wasm memory, which is gone when this returns.
    const kept = typeof data === "string" ? JSON.parse(data) : data.slice();
    this.sent.push(kept);
    queueMicrotask(() => this.onsend?.(kept));
  }

  /** From the relay. */
  deliver(data) {
    if (this.state === "open") {
      this.onmessage?.({ data: data instanceof Uint8Array ? data.slice().buffer : JSON.stringify(data) });
    }
  }

  /** By the relay. */
  drop(code = 1006, reason = "") {
    if (this.state === "closed") return;
    this.state = "closed";
    this.onclose?.({ code, reason });
  }

  close() {
    this.state = "closed";
  }
}
globalThis.WebSocket = FakeWebSocket;

function records(message) {
  const found = [];
  for (let at = 0; at < message.length;) {
    const length = (message[at] << 8) | message[at + 1];
    found.push(message.subarray(at + 2, at + 2 + length));
    at += 2 + length;
  }
  return found;
}

const datagrams = (socket) => socket.sent.filter((sent) => sent instanceof Uint8Array).flatMap(records);

const until = async (what, condition, ms = 5000) => {
  const late = performance.now() + ms;
  while (!condition()) {
    assert.ok(performance.now() < late, `not in time: ${what}`);
    await new Promise((done) => setTimeout(done, 5));
  }
};

let networks = 0;

/** Two peers whose relay hands each the other's datagrams. */
function network() {
  const ends = ["a", "b"].map((name) => ({
    url: `wss://relay.test/${networks++}/${name}`,
    key: client.generateKey(),
    socket: undefined,
    rungs: [],
    statuses: [],
    opened: [],
  }));
  ends.forEach((end, index) => {
    const other = ends[1 - index];
    relays.set(end.url, (socket) => {
      end.socket = socket;
      end.opened.push(socket);
      socket.onsend = (data) => {
        if (!(data instanceof Uint8Array)) {
          if (data.type === "ping") socket.deliver({ type: "pong", n: data.n });
        } else {
          other.socket?.deliver(data);
        }
      };
      socket.open();
      socket.deliver({ type: "hello", caps: [], resume: `resume-${end.opened.length}`, idle_seconds: 60 });
    });
    end.options = {
      relayUrl: end.url,
      relayToken: "claims.signature",
      key: end.key,
      gatewayKey: other.key.publicKey,
      address: `fdaa:0:18::${index + 1}/120`,
      dns: `fdaa:0:18::${2 - index}`,
      onRung: (rung) => end.rungs.push(rung),
      onStatus: (status) => end.statuses.push(status),
    };
  });
  return ends;
}

async function connected() {
  const ends = network();
  const tunnels = await Promise.all(ends.map((end) => client.Tunnel.connect(end.options)));
  ends.forEach((end, index) => {
    end.tunnel = tunnels[index];
  });
  return ends;
}

const failure = async (promise) => {
  const error = await promise.then(
    () => assert.fail("it was not refused"),
    (thrown) => thrown,
  );
  assert.ok(error instanceof Error, String(error));
  assert.equal(error.name, "UnderpassError");
  assert.match(error.message, /^[A-Z`].*[.]$/);
  assert.match(error.hint, /^[A-Z`].*[.]$/);
  return error;
};

test("keys are 32 bytes and never the same", () => {
  const [one, other] = [client.generateKey(), client.generateKey()];
  assert.equal(Buffer.from(one.publicKey, "base64").length, 32);
  assert.notEqual(one.publicKey, other.publicKey);
  assert.deepEqual(
    Object.keys(one).filter((name) => /private|secret/i.test(name)),
    [],
  );
});

test("public keys of WebCrypto become the lines that OpenSSH reads", () => {
  assert.equal(
    client.sshPublicKeyLine("ed25519", new Uint8Array(32).fill(1)),
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB",
  );
  const p256 = client.sshPublicKeyLine("p256", new Uint8Array(65).fill(4));
  assert.match(p256, /^ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABB/);
  assert.throws(() => client.sshPublicKeyLine("rsa", new Uint8Array(32)), { code: "bad_argument" });
  assert.throws(() => client.sshPublicKeyLine("ed25519", new Uint8Array(31)), { code: "bad_argument" });
});

test("a tunnel begins with a handshake initiation and climbs two rungs", async () => {
  const [a, b] = await connected();
  assert.deepEqual(a.socket.protocols, [
    "underpass.v1",
    `bearer.${Buffer.from("claims.signature").toString("base64url")}`,
  ]);
  assert.equal(a.socket.binaryType, "arraybuffer");
  const [first] = datagrams(a.socket);
  assert.equal(first.length, 148);
  assert.equal(first[0], 1);
  assert.deepEqual(
    a.rungs.map(({ rung, state }) => `${rung} ${state}`),
    ["websocket started", "websocket done", "wireguard started", "wireguard done"],
  );
  assert.ok(a.rungs.filter((rung) => rung.state === "done").every((rung) => rung.ms >= 0));
  assert.deepEqual(a.statuses, [{ state: "connected" }]);
  await until("the first answer of the relay", () => a.tunnel.stats().rttMs !== undefined);
  const stats = a.tunnel.stats();
  assert.equal(stats.transport, "websocket");
  assert.equal(stats.state, "connected");
  for (const end of [a, b]) end.tunnel.close();
  assert.equal(a.tunnel.stats().state, "closed");
  assert.deepEqual(a.statuses.at(-1), { state: "closed" });
});

test("a relay that refuses the WebSocket", async () => {
  const [a] = network();
  relays.set(a.url, (socket) => socket.drop());
  const error = await failure(client.Tunnel.connect(a.options));
  assert.equal(error.code, "relay_unreachable");
  assert.equal(error.rung, "websocket");
  assert.equal(a.rungs.at(-1).state, "failed");
  assert.equal(a.rungs.at(-1).code, "relay_unreachable");
  assert.ok(a.rungs.at(-1).hint);
});

test("a relay that says why it closes, in words or by its code", async () => {
  const hint = "Log in again for a fresh token; check the clock of this machine.";
  for (const told of [true, false]) {
    const [a] = network();
    relays.set(a.url, (socket) => {
      socket.open();
      if (told) socket.deliver({ type: "closing", code: 4011, reason: "token_expired", hint });
      socket.drop(told ? 1006 : 4011);
    });
    const error = await failure(client.Tunnel.connect(a.options));
    assert.equal(error.code, "token_expired");
    assert.equal(error.rung, "websocket");
    assert.equal(error.hint, hint);
  }
});

test("a gateway that does not answer", async () => {
  const [a] = network();
  const error = await failure(client.Tunnel.connect(a.options));
  assert.equal(error.code, "no_answer");
  assert.equal(error.rung, "wireguard");
  assert.equal(a.socket.state, "closed");
  // 0, 0.25, 0.5, 1, 2 and 5 seconds
  const sent = datagrams(a.socket).length;
  assert.ok(sent >= 5 && sent <= 6, `${sent} initiations`);
});

test("an AbortSignal ends the climb at once", async () => {
  const [a] = network();
  relays.set(a.url, () => {});
  const abort = new AbortController();
  const connecting = client.Tunnel.connect({ ...a.options, signal: abort.signal });
  setTimeout(() => abort.abort(), 20);
  assert.equal((await failure(connecting)).code, "cancelled");
  assert.equal(sockets.at(-1).state, "closed");
  assert.equal(
    (await failure(client.Tunnel.connect({ ...a.options, signal: abort.signal }))).code,
    "cancelled",
  );
});

test("options of the wrong kind are named", async () => {
  const [a, b] = network();
  const check = async (options, name) => {
    const error = await failure(client.Tunnel.connect({ ...a.options, ...options }));
    assert.equal(error.code, "bad_argument");
    assert.match(error.message, new RegExp(`^\`${name}\``));
  };
  await check({ relayUrl: undefined }, "relayUrl");
  await check({ gatewayKey: "tooshort" }, "gatewayKey");
  await check({ address: "10.0.0.1" }, "address");
  await check({ dns: 7 }, "dns");
  await check({ key: {} }, "key");
  // The key is whole after that, and serves again.
  assert.ok(a.key.publicKey);
  assert.ok(b.key.publicKey);
});

test("nobody listens: the TCP rung says so", async () => {
  const [a, b] = await connected();
  const rungs = [];
  const dialling = a.tunnel.dial("fdaa:0:18::2", 22, {
    onRung: (rung) => rungs.push(`${rung.rung} ${rung.state}`),
  });
  const error = await failure(dialling);
  assert.equal(error.code, "refused");
  assert.equal(error.rung, "tcp");
  assert.deepEqual(rungs, ["dns started", "dns done", "tcp started", "tcp failed"]);
  for (const end of [a, b]) end.tunnel.close();
});

test("a name server that does not answer", async () => {
  const [a, b] = await connected();
  b.tunnel.close();
  const error = await failure(a.tunnel.resolve("instance.vm.app.internal"));
  assert.equal(error.rung, "dns");
  assert.match(error.code, /^(timed_out|no_answer)$/);
  a.tunnel.close();
});

test("a lost WebSocket is opened again, resumed, and begins with a fresh handshake", async () => {
  const [a, b] = await connected();
  a.tunnel.setRelayToken("renewed.token");
  a.socket.drop(1006);
  await until("the second WebSocket", () => a.opened.length === 2);
  assert.deepEqual(a.opened[1].protocols.slice(1), [
    `bearer.${Buffer.from("renewed.token").toString("base64url")}`,
    `resume.${Buffer.from("resume-1").toString("base64url")}`,
  ]);
  await until("word of it", () => a.statuses.length >= 3);
  assert.deepEqual(
    a.statuses.map((status) => status.state),
    ["connected", "reconnecting", "connected"],
  );
  assert.equal(a.statuses[1].code, "relay_lost");
  assert.equal(datagrams(a.opened[1])[0].length, 148);
  assert.equal(a.tunnel.stats().reconnects, 1);
  // What is inside works as before.
  assert.equal((await failure(a.tunnel.dial("fdaa:0:18::2", 22))).code, "refused");
  for (const end of [a, b]) end.tunnel.close();
});

test("a relay that breaks the protocol loses the WebSocket, not the tunnel", async () => {
  const hostile = [
    Uint8Array.of(0, 0),
    Uint8Array.of(0, 9, 1),
    new Uint8Array(65_537).fill(1),
    { type: "hello" },
    "x".repeat(5000),
  ];
  const [a, b] = await connected();
  for (const [index, message] of hostile.entries()) {
    a.socket.deliver(message);
    await until("another WebSocket", () => a.opened.length === index + 2);
    await until("word of it", () => a.statuses.length === 2 * (index + 1) + 1);
  }
  // These are merely passed over.
  for (const message of [
    { type: "of_the_future" },
    { type: "limited", what: "queue", hint: "" },
    Uint8Array.of(0, 2, 1, 2),
  ]) {
    a.socket.deliver(message);
  }
  assert.equal((await failure(a.tunnel.dial("fdaa:0:18::2", 22))).code, "refused");
  for (const end of [a, b]) end.tunnel.close();
});

test("what the browser holds is bounded", async () => {
  const [a, b] = await connected();
  await until("silence", () => a.socket.sent.length > 0);
  a.socket.bufferedAmount = 128 * 1024;
  const before = datagrams(a.socket).length;
  const dialling = failure(a.tunnel.dial("fdaa:0:18::2", 22));
  await new Promise((done) => setTimeout(done, 100));
  assert.equal(datagrams(a.socket).length, before);
  a.socket.bufferedAmount = 0;
  assert.equal((await dialling).code, "refused");
  for (const end of [a, b]) end.tunnel.close();
});

test("ssh takes no certificate that is none, and no host that nobody vouches for", async () => {
  const [a, b] = await connected();
  const options = {
    host: "fdaa:0:18::2",
    user: "root",
    certificate: "ssh-ed25519 AAAA",
    sign: async () => new Uint8Array(64),
    hostCas: [],
    cols: 80,
    rows: 24,
  };
  assert.equal((await failure(a.tunnel.ssh(options))).code, "bad_argument");
  for (const end of [a, b]) end.tunnel.close();
});
