/**
 * The API and the page for working on the page alone: `node dev/fake-server.mjs` after `npm run build:fake`.
 * It signs nothing and leases nothing; it answers in the shapes of control, with the page's own policy.
 */
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL("..", import.meta.url));
const TYPES = {
  ".html": "text/html",
  ".js": "text/javascript",
  ".css": "text/css",
  ".svg": "image/svg+xml",
  ".woff2": "font/woff2",
  ".wasm": "application/wasm",
};
const policy = (await readFile(join(here, "csp.txt"), "utf8")).trim();

export const DEMO = [
  {
    name: "storefront",
    instances: [
      { id: "e7841d2a", region: "ams", address: "fdaa:0:18:a7b:7d:0:1:2", started: true },
      { id: "3d8f6c10", region: "gru", address: "fdaa:0:18:a7b:7d:0:2:2", started: true },
      { id: "5b21e9f4", region: "gru", address: "fdaa:0:18:a7b:7d:0:3:2", started: false },
    ],
  },
  {
    name: "ledger",
    instances: [
      { id: "91c0aa57", region: "ams", address: "fdaa:0:18:a7b:7d:0:4:2", started: true },
      { id: "0badf00d", region: "ams", address: "fdaa:0:18:a7b:7d:0:5:2", started: true },
    ],
  },
];

export function start({ port = 0, apps = DEMO } = {}) {
  const tokens = new Map([["old", "expired"]]);
  const sessions = new Set();
  const soon = (seconds) => Math.floor(Date.now() / 1000) + seconds;
  const fail = (status, code, message, hint) => ({ status, body: { error: { code, message, hint } } });

  const api = (path, body, bearer) => {
    if (path === "login") {
      const state = tokens.get(body.token) ?? (body.token.startsWith("demo") ? "fresh" : undefined);
      const hint = "a login address works once, for ten minutes: run `underpass console` for a new one";
      if (!state)
        return fail(
          401,
          "token_unknown",
          "this login token is not known here",
          "copy the whole address, or run `underpass console` for a new one",
        );
      if (state !== "fresh")
        return fail(
          401,
          `token_${state}`,
          `this login token ${state === "used" ? "was used before" : "has expired"}`,
          hint,
        );
      tokens.set(body.token, "used");
      const session = `s${Math.random()}`;
      sessions.add(session);
      return { body: { session, user: "anna", orgs: [{ name: "demo" }], expires: soon(43200) } };
    }
    if (!sessions.has(bearer))
      return fail(
        401,
        "session_unknown",
        "this session is not known here",
        "log in again: `underpass console` prints an address",
      );
    if (path === "orgs") return { body: { orgs: [{ name: "demo" }] } };
    if (path.endsWith("/apps")) return { body: { apps } };
    if (path.endsWith("/peers"))
      return {
        body: {
          name: "console-1",
          address: "fdaa:0:18:a7b:d6b:0:a:102/120",
          network: "fdaa:0:18::/48",
          dns: "fdaa:0:18::3",
          gateway: { name: "local", public_key: "", endpoint: "127.0.0.1:51820" },
          relay: { url: "wss://127.0.0.1/v1/tunnel/local", token: "t" },
          host_cas: [],
          expires: soon(600),
        },
      };
    if (path.endsWith("/ssh/certificates"))
      return {
        body: { certificate: "ssh-ed25519-cert-v01@openssh.com AAAA", expires: soon(3600), host_cas: [] },
      };
    return { body: {} };
  };

  const server = createServer(async (request, response) => {
    const path = new URL(request.url, "http://x").pathname;
    if (path.startsWith("/api/v1/")) {
      const chunks = [];
      for await (const chunk of request) chunks.push(chunk);
      const body = chunks.length ? JSON.parse(Buffer.concat(chunks)) : {};
      const bearer = request.headers.authorization?.replace("Bearer ", "");
      const answer = api(path.slice(8), body, bearer);
      response.writeHead(answer.status ?? 200, { "content-type": "application/json" });
      response.end(JSON.stringify(answer.body));
      return;
    }
    const file = normalize(join(here, "dist-fake", path === "/" ? "index.html" : path));
    try {
      const content = await readFile(file);
      response.writeHead(200, {
        "content-type": TYPES[extname(file)] ?? "application/octet-stream",
        "content-security-policy": policy.replace("{relay}", "").replace("{frame_ancestors}", "'none'"),
      });
      response.end(content);
    } catch {
      response.writeHead(404).end();
    }
  });
  return new Promise((resolve) => {
    server.listen(port, "127.0.0.1", () =>
      resolve({ url: `http://localhost:${server.address().port}/`, close: () => server.close() }),
    );
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { url } = await start({ port: Number(process.argv[2] ?? 5199) });
  console.log(`${url}#token=demo`);
}
