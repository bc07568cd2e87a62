/**
 * One shell on one instance: climbs the ladder, runs, ends, and can be started again. Knows no DOM; the
 * terminal is whatever has the few methods of `TerminalLike`.
 */
import type { Api, Certificate, Lease } from "./api";
import { UnderpassError, within } from "./errors";
import type { Identity } from "./identity";
import { Ladder } from "./ladder";
import type { Link } from "./link";
import type { ExitStatus, Session, TerminalLike, Tunnel } from "./surface";

export type Phase = "connecting" | "open" | "exited" | "failed";

/** What a shell needs of the console around it. */
export interface Ground {
  api: Api;
  org: string;
  link: Link;
  identity(): Promise<Identity>;
  /** The account on the instance. */
  user: string;
}

export interface Place {
  app: string;
  instance: string;
  region: string;
}

// Beyond the sum of what the client allows its rungs: it reports the better reason.
const SSH_MS = 60_000;

export class Shell {
  phase: Phase = "connecting";
  ladder: Ladder;
  exit: ExitStatus | undefined;
  error: UnderpassError | undefined;

  private abort = new AbortController();
  private session: Session | undefined;

  constructor(
    private readonly ground: Ground,
    readonly place: Place,
    private readonly terminal: TerminalLike,
    private readonly changed: () => void,
  ) {
    this.ladder = new Ladder(changed);
  }

  get host(): string {
    return `${this.place.instance}.vm.${this.place.app}.internal`;
  }

  /** Climbs from where the page stands to a prompt. Ends in `open` or in `failed`, never throws. */
  async connect(): Promise<void> {
    this.end();
    const abort = new AbortController();
    this.abort = abort;
    this.ladder = new Ladder(() => {
      if (this.abort === abort) this.changed();
    });
    const ladder = this.ladder;
    this.exit = undefined;
    this.error = undefined;
    this.set("connecting");
    try {
      const { tunnel, lease, certificate, identity } = await this.prepare(ladder, abort.signal);
      const session = await within(
        SSH_MS,
        tunnel.ssh({
          host: this.host,
          port: 22,
          user: this.ground.user,
          certificate: certificate.certificate,
          sign: (data) => identity.sign(data),
          hostCas: certificate.host_cas ?? lease.host_cas,
          term: "xterm-256color",
          cols: this.terminal.cols,
          rows: this.terminal.rows,
          signal: abort.signal,
          onRung: (rung) => ladder.report(rung),
        }),
        "Opening the shell",
      );
      if (this.abort !== abort) {
        session.close();
        return;
      }
      this.session = session;
      session.attach(this.terminal);
      ladder.finish();
      this.set("open");
      this.watch(session, abort);
    } catch (thrown) {
      if (this.abort !== abort) return;
      abort.abort();
      this.error = UnderpassError.from(thrown);
      ladder.fail(this.error);
      this.set("failed");
    }
  }

  /** The tunnel under the shell is gone for good. */
  lost(error: UnderpassError): void {
    if (this.phase !== "open") return;
    this.end();
    this.error = error;
    this.set("failed");
  }

  /** Ends whatever runs: an attempt, or the session. */
  end(): void {
    const session = this.session;
    this.session = undefined;
    const abort = this.abort;
    this.abort = new AbortController();
    abort.abort();
    session?.close();
  }

  /** The tunnel and the certificate, fetched side by side as far as the second can do without the first. */
  private async prepare(ladder: Ladder, signal: AbortSignal): Promise<Prepared> {
    const { api, org, link } = this.ground;
    const began = performance.now();
    let leased = false;
    let signed = false;
    const access = () => {
      if (leased && signed) ladder.done("access", performance.now() - began);
    };
    ladder.start("access");
    const identity = this.ground.identity();
    const up = link.up(
      {
        step: (name, state) => {
          if (name !== "access") ladder.shared(name);
          else if (state !== "started") {
            leased = true;
            access();
          }
        },
        rung: (rung) => ladder.report(rung),
      },
      signal,
    );
    const certificate = (async () => {
      const made = await identity;
      const lease = await link.lease;
      const address = lease?.address.split("/")[0];
      if (!address) throw new UnderpassError("no_lease", "This tab has no address.", "Try again.");
      const answer = await api.certificate(org, made.publicKey, address, signal);
      signed = true;
      access();
      return answer;
    })();
    certificate.catch(() => {});
    const [{ tunnel, lease }, signedCertificate, made] = await Promise.all([up, certificate, identity]);
    return { tunnel, lease, certificate: signedCertificate, identity: made };
  }

  private watch(session: Session, abort: AbortController): void {
    session.exited().then(
      (exit) => {
        if (this.abort !== abort) return;
        this.session = undefined;
        this.exit = exit ?? {};
        this.set("exited");
      },
      (thrown) => {
        if (this.abort !== abort) return;
        this.session = undefined;
        this.error = UnderpassError.from(thrown, "session_lost");
        this.set("failed");
      },
    );
  }

  private set(phase: Phase): void {
    this.phase = phase;
    this.changed();
  }
}

interface Prepared {
  tunnel: Tunnel;
  lease: Lease;
  certificate: Certificate;
  identity: Identity;
}
