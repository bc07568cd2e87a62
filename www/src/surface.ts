/**
 * The surface of the wasm client, as the console uses it: `web-client` implements it, `client.ts` loads it,
 * and nothing else in the console knows how packets or keys work.
 */

/** A WireGuard key pair. The private half stays in wasm memory. */
export interface WireGuardKey {
  readonly publicKey: string;
}

/** The steps of a connection, in the order they happen. */
export type RungName = "websocket" | "wireguard" | "dns" | "tcp" | "ssh" | "pty";

/** One step of a connection, reported as it begins and as it ends. */
export interface Rung {
  rung: RungName;
  state: "started" | "done" | "failed";
  ms?: number;
  code?: string;
  message?: string;
  hint?: string;
}

/** The state of the tunnel after it stood once. */
export interface Status {
  state: "connected" | "reconnecting" | "closed";
  code?: string;
  message?: string;
  hint?: string;
}

export interface TunnelOptions {
  relayUrl: string;
  relayToken?: string;
  key: WireGuardKey;
  gatewayKey: string;
  address: string;
  dns: string;
  signal?: AbortSignal;
  onRung?: (rung: Rung) => void;
  onStatus?: (status: Status) => void;
}

export interface SshOptions {
  host: string;
  port?: number;
  user: string;
  certificate: string;
  /** Signs with the SSH key of the page; the client never sees the key. */
  sign: (data: Uint8Array) => Promise<Uint8Array>;
  hostCas: string[];
  command?: string;
  term?: string;
  cols: number;
  rows: number;
  signal?: AbortSignal;
  onRung?: (rung: Rung) => void;
}

export interface TunnelStats {
  rttMs?: number;
  txBytes?: number | bigint;
  rxBytes?: number | bigint;
  transport?: string;
}

export interface Tunnel {
  resolve(name: string): Promise<string[]>;
  ssh(options: SshOptions): Promise<Session>;
  stats(): TunnelStats;
  /** The clock jumped or the network changed: handshake now instead of waiting for silence. */
  wake(): void;
  close(): void;
  /** Takes the relay token of a renewed lease, used by the next WebSocket. */
  setRelayToken?(token: string): void;
}

export interface TunnelConstructor {
  connect(options: TunnelOptions): Promise<Tunnel>;
}

/** How a remote command ended: one of the two is set. */
export interface ExitStatus {
  code?: number;
  signal?: string;
}

export interface Session {
  /** Pumps between the session and the terminal until either ends; backpressure by the write callback. */
  attach(terminal: TerminalLike): void;
  write(data: Uint8Array): Promise<void>;
  resize(cols: number, rows: number): void;
  exited(): Promise<ExitStatus>;
  close(): void;
}

/** The few methods of a terminal that a session uses: an xterm.js Terminal fits, so does anything like it. */
export interface TerminalLike {
  readonly cols: number;
  readonly rows: number;
  write(data: Uint8Array, callback?: () => void): void;
  onData(listener: (data: string) => void): { dispose(): void };
  onBinary(listener: (data: string) => void): { dispose(): void };
  onResize(listener: (size: { cols: number; rows: number }) => void): { dispose(): void };
}
