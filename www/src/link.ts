/**
 * The one tunnel of a console: a WireGuard key in wasm memory, a leased address, a WebSocket. Made when the
 * first terminal needs it, shared by all of them, its lease renewed well before it ends. A link that failed
 * or closed makes a new tunnel with a new key at the next `up()`.
 */
import type { Api, Lease } from "./api";
import type { Client } from "./client";
import { UnderpassError, within } from "./errors";
import type { StepName } from "./ladder";
import type { Rung, Status, Tunnel, TunnelStats } from "./surface";

export type LinkState = "idle" | "connecting" | "up" | "reconnecting" | "closed";

/** Who waits for the tunnel hears of each step, also of those that were climbed before it asked. */
export interface Climber {
  step(name: StepName, state: "started" | "done" | "shared"): void;
  rung(rung: Rung): void;
}

export interface Up {
  tunnel: Tunnel;
  lease: Lease;
}

const CONNECT_MS = 30_000;
const RENEW_MS = 5 * 60_000;
const RENEW_AGAIN_MS = 20_000;

export class Link {
  state: LinkState = "idle";
  /** Why the link is closed or reconnecting. */
  error: UnderpassError | undefined;

  private attempt: Attempt | undefined;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private renewedAt = 0;
  /** Unix milliseconds. */
  private expires: number | undefined;

  constructor(
    private readonly api: Api,
    private readonly org: string,
    private readonly client: () => Promise<Client>,
    private readonly changed: () => void,
  ) {}

  /** The tunnel, made now if there is none. Aborting gives up waiting; the last to give up ends the attempt. */
  async up(climber: Climber, signal: AbortSignal): Promise<Up> {
    signal.throwIfAborted();
    this.attempt ??= this.begin();
    const attempt = this.attempt;
    attempt.join(climber);
    const leave = () => {
      if (attempt.leave(climber) && this.attempt === attempt && this.state === "connecting")
        void this.close();
    };
    signal.addEventListener("abort", leave, { once: true });
    try {
      return await Promise.race([attempt.up, aborted(signal)]);
    } finally {
      signal.removeEventListener("abort", leave);
      attempt.leave(climber);
    }
  }

  get lease(): Promise<Lease> | undefined {
    return this.attempt?.lease;
  }

  /** When this tab's address ends unless it is renewed, and every terminal with it. */
  get ends(): Date | undefined {
    return this.attempt && this.expires !== undefined ? new Date(this.expires) : undefined;
  }

  /** The session is a new one: the address is renewed by it at once. */
  sessionRenewed(): void {
    if (this.attempt?.tunnel) void this.renew(this.attempt);
  }

  stats(): TunnelStats | undefined {
    try {
      return this.attempt?.tunnel?.stats();
    } catch {
      return undefined;
    }
  }

  /** The tab was shown again or the network came back. */
  wake(): void {
    if (!this.attempt?.tunnel) return;
    try {
      this.attempt.tunnel.wake();
    } catch {
      return;
    }
    if (Date.now() - this.renewedAt > RENEW_MS) void this.renew(this.attempt);
  }

  /** Closes the tunnel and gives the address back. `up()` after this starts afresh. */
  async close(error?: UnderpassError): Promise<void> {
    const attempt = this.attempt;
    this.attempt = undefined;
    clearTimeout(this.timer);
    this.error = error;
    attempt?.abort.abort();
    try {
      attempt?.tunnel?.close();
    } catch {
      // A client that crashed has closed it already.
    }
    this.set(error ? "closed" : "idle");
    await attempt?.lease.then((lease) => this.api.release(this.org, lease.name)).catch(() => {});
  }

  private begin(): Attempt {
    this.error = undefined;
    const attempt: Attempt = new Attempt(this.api, this.org, this.client, (status) => {
      if (this.attempt === attempt) this.heard(status);
    });
    this.set("connecting");
    attempt.up.then(
      () => {
        if (this.attempt !== attempt) return;
        this.renewedAt = Date.now();
        void attempt.lease.then((lease) => this.leased(lease));
        this.renewIn(RENEW_MS);
        this.set("up");
      },
      (thrown) => {
        if (this.attempt === attempt) void this.close(UnderpassError.from(thrown));
      },
    );
    return attempt;
  }

  private heard(status: Status): void {
    if (this.state === "connecting") return;
    if (status.state === "connected") {
      this.error = undefined;
      this.set("up");
      return;
    }
    const error = new UnderpassError(
      status.code ?? "tunnel_closed",
      status.message ?? "The tunnel closed.",
      status.hint ?? "Reconnect to start a new one.",
    );
    if (status.state === "closed") {
      void this.close(error);
    } else {
      this.error = error;
      this.set("reconnecting");
    }
  }

  private renewIn(ms: number): void {
    clearTimeout(this.timer);
    const attempt = this.attempt;
    if (attempt) this.timer = setTimeout(() => void this.renew(attempt), ms);
  }

  private async renew(attempt: Attempt): Promise<void> {
    this.renewedAt = Date.now();
    try {
      const [before, now] = await Promise.all([attempt.lease, attempt.renew()]);
      if (this.attempt !== attempt) return;
      if (before.address !== now.address) {
        void this.close(
          new UnderpassError(
            "lease_lost",
            "This tab's address was given to someone else while it slept.",
            "Reconnect: the tab takes a new address.",
          ),
        );
        return;
      }
      if (now.relay.token) attempt.tunnel?.setRelayToken?.(now.relay.token);
      this.leased(now);
      this.renewIn(RENEW_MS);
    } catch (thrown) {
      if (this.attempt !== attempt) return;
      // The lease has five minutes left at the first failure: keep asking, say nothing yet.
      if (this.expires === undefined || Date.now() < this.expires) {
        this.renewIn(RENEW_AGAIN_MS);
        return;
      }
      const why = UnderpassError.from(thrown);
      void this.close(
        new UnderpassError(
          "lease_ended",
          `This tab's address ended and could not be renewed: ${why.message}`,
          why.hint,
        ),
      );
    }
  }

  private leased(lease: Lease): void {
    this.expires = lease.expires * 1000;
  }

  private set(state: LinkState): void {
    this.state = state;
    this.changed();
  }
}

/** One key, one lease, one tunnel. */
class Attempt {
  readonly abort = new AbortController();
  readonly lease: Promise<Lease>;
  readonly up: Promise<Up>;
  tunnel: Tunnel | undefined;
  renew: () => Promise<Lease> = () => Promise.reject(new Error("no lease yet"));

  private readonly climbers = new Set<Climber>();
  private readonly climbed: ((climber: Climber) => void)[] = [];

  constructor(api: Api, org: string, client: () => Promise<Client>, onStatus: (status: Status) => void) {
    const signal = this.abort.signal;
    const loaded = client();
    const key = loaded.then((module) => module.generateKey());
    this.lease = key.then((made) => {
      this.renew = () => api.lease(org, made.publicKey);
      return api.lease(org, made.publicKey, signal);
    });
    const leased = this.lease;
    this.up = (async () => {
      this.tell((climber) => climber.step("access", "started"));
      const [module, made, lease] = await Promise.all([loaded, key, leased]);
      this.tell((climber) => climber.step("access", "done"));
      const tunnel = await within(
        CONNECT_MS,
        module.Tunnel.connect({
          relayUrl: lease.relay.url,
          ...(lease.relay.token && { relayToken: lease.relay.token }),
          key: made,
          gatewayKey: lease.gateway.public_key,
          address: lease.address,
          dns: lease.dns,
          signal,
          onRung: (rung) => this.tell((climber) => climber.rung(rung)),
          onStatus,
        }),
        "Connecting",
      );
      if (signal.aborted) {
        tunnel.close();
        signal.throwIfAborted();
      }
      this.tunnel = tunnel;
      return { tunnel, lease };
    })();
    this.up.catch(() => this.abort.abort());
    this.lease.catch(() => {});
  }

  join(climber: Climber): void {
    if (this.tunnel) {
      for (const name of ["access", "websocket", "wireguard"] as const) climber.step(name, "shared");
      return;
    }
    for (const step of this.climbed) step(climber);
    this.climbers.add(climber);
  }

  /** True when nobody is left waiting. */
  leave(climber: Climber): boolean {
    return this.climbers.delete(climber) && this.climbers.size === 0;
  }

  private tell(step: (climber: Climber) => void): void {
    this.climbed.push(step);
    for (const climber of this.climbers) step(climber);
  }
}

function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}
