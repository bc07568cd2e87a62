/** The HTTP API of control, as far as the console uses it. Every call ends: with an answer or a code. */
import { UnderpassError } from "./errors";

export interface Login {
  session: string;
  user: string;
  orgs: { name: string }[];
  /** Unix seconds. */
  expires: number;
}

export interface Instance {
  id: string;
  region: string;
  address: string;
  started: boolean;
}

export interface App {
  name: string;
  instances: Instance[];
}

export interface Lease {
  name: string;
  address: string;
  network: string;
  dns: string;
  gateway: { name: string; public_key: string; endpoint: string };
  relay: { url: string; token?: string };
  host_cas: string[];
  expires: number;
}

export interface Certificate {
  certificate: string;
  expires: number;
  host_cas: string[];
}

/** A program that wants to be let in: `underpass login` somewhere. */
export interface Program {
  code: string;
  /** What it calls its machine. */
  host: string;
  /** Where its request came from. */
  address: string | null;
  answered: boolean;
}

const TIMEOUT_MS = 10_000;

export class Api {
  /** `base` is the origin that serves `/api/v1`; empty means this page's own. */
  constructor(
    readonly base: string,
    private session: string,
  ) {}

  /** Goes on with another session of the same person; what holds this object need not know. */
  renew(session: string): void {
    this.session = session;
  }

  static login(base: string, token: string): Promise<Login> {
    return call<Login>(base, "POST", "login", { body: { token } });
  }

  async orgs(): Promise<{ name: string }[]> {
    const answer = await this.call<{ orgs: { name: string }[] } | { name: string }[]>("GET", "orgs");
    return Array.isArray(answer) ? answer : answer.orgs;
  }

  async apps(org: string): Promise<App[]> {
    return (await this.call<{ apps: App[] }>("GET", `orgs/${encodeURIComponent(org)}/apps`)).apps;
  }

  /** Leases an address for a WireGuard key; the same key again renews the lease. */
  lease(org: string, publicKey: string, signal?: AbortSignal): Promise<Lease> {
    return this.call("POST", `orgs/${encodeURIComponent(org)}/peers`, { public_key: publicKey }, signal);
  }

  release(org: string, peer: string): Promise<unknown> {
    const path = `orgs/${encodeURIComponent(org)}/peers/${encodeURIComponent(peer)}`;
    return this.call("DELETE", path);
  }

  /** Another login token for the same person: good once, for ten minutes. */
  async loginToken(): Promise<string> {
    return (await this.call<{ token: string }>("POST", "login-tokens", {})).token;
  }

  program(code: string): Promise<Program> {
    return this.call("POST", "device/look", { code });
  }

  /** Lets a program in as this person, or refuses it. The first answer counts. */
  answerProgram(code: string, allow: boolean): Promise<unknown> {
    return this.call("POST", "device/answer", { code, allow });
  }

  /** Ends the session itself: the bearer opens nothing any more. */
  end(): Promise<unknown> {
    return this.call("DELETE", "session");
  }

  /** A certificate for an SSH key that works from the address of one peer alone. */
  certificate(org: string, publicKey: string, peer: string, signal?: AbortSignal): Promise<Certificate> {
    const path = `orgs/${encodeURIComponent(org)}/ssh/certificates`;
    return this.call("POST", path, { public_key: publicKey, peer }, signal);
  }

  private call<T>(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<T> {
    return call<T>(this.base, method, path, { body, signal, session: this.session });
  }
}

async function call<T>(
  base: string,
  method: string,
  path: string,
  options: { body?: unknown; session?: string; signal?: AbortSignal | undefined },
): Promise<T> {
  const headers: Record<string, string> = { accept: "application/json" };
  if (options.session) headers.authorization = `Bearer ${options.session}`;
  if (options.body !== undefined) headers["content-type"] = "application/json";
  const signals = [AbortSignal.timeout(TIMEOUT_MS), ...(options.signal ? [options.signal] : [])];

  let response: Response;
  let text: string;
  try {
    response = await fetch(`${base}/api/v1/${path}`, {
      method,
      headers,
      ...(options.body !== undefined && { body: JSON.stringify(options.body) }),
      credentials: "omit",
      cache: "no-store",
      redirect: "error",
      referrerPolicy: "no-referrer",
      // What gives something back is sent even while the page goes away.
      keepalive: method === "DELETE",
      signal: AbortSignal.any(signals),
    });
    text = await response.text();
  } catch (thrown) {
    if (thrown instanceof DOMException && (thrown.name === "TimeoutError" || thrown.name === "AbortError")) {
      throw UnderpassError.from(thrown);
    }
    throw new UnderpassError(
      "control_unreachable",
      "The control server does not answer.",
      // A browser does not say whether it was the network or a refusal of this page's origin.
      base === "" || base === location.origin
        ? "Check that `underpass up` is running and that this machine is online, then try again."
        : `Check that \`underpass up\` is running with \`--allow-origin ${location.origin}\`, then try again.`,
    );
  }

  let json: unknown;
  try {
    json = text === "" ? {} : JSON.parse(text);
  } catch {
    json = undefined;
  }
  if (response.ok && json !== undefined) return json as T;
  const error = (json as { error?: { code?: string; message?: string; hint?: string } } | undefined)?.error;
  throw new UnderpassError(
    error?.code ?? `http_${response.status}`,
    sentence(error?.message) ?? `The control server answered ${response.status}.`,
    sentence(error?.hint) ??
      "Something between this page and the control server may have answered in its place.",
  );
}

/** The API's words begin small and end bare; a person reads sentences. */
function sentence(words: string | undefined): string | undefined {
  if (!words) return undefined;
  const begun = words[0]?.toUpperCase() + words.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

/** Whether the same call may well succeed in a moment: nothing was spent, nothing was decided. */
export function isTransient(error: UnderpassError): boolean {
  return /^(control_unreachable|timed_out|too_many_attempts|http_(429|5\d\d))$/.test(error.code);
}

/** Whether an error means that the session is over, and signing in again is what helps. */
export function isSignedOut(error: UnderpassError): boolean {
  return /^(session_(missing|unknown|expired)|http_401)$/.test(error.code);
}
