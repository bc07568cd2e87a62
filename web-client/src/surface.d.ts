/** A step of a connection, in the order they happen. */
export type RungName = "websocket" | "wireguard" | "dns" | "tcp" | "ssh" | "pty";

/** One step of a connection, told as it begins and as it ends. Each has a time limit. */
export interface Rung {
  rung: RungName;
  state: "started" | "done" | "failed";
  /** How long it took; absent when it began. */
  ms?: number;
  code?: string;
  message?: string;
  hint?: string;
}

/** What becomes of a tunnel after it stood once. */
export interface Status {
  /** `reconnecting`: the streams inside live on, bytes wait. `closed`: nothing passes any more. */
  state: "connected" | "reconnecting" | "closed";
  code?: string;
  message?: string;
  hint?: string;
}

/** What every promise of this module is rejected with. */
export interface UnderpassError extends Error {
  /** Stable. */
  readonly code: string;
  /** What to do now. */
  readonly hint: string;
  /** Where on the ladder it happened, if there. */
  readonly rung?: RungName;
}

export interface TunnelOptions {
  /** `wss://host:port/v1/tunnel/<gateway>` */
  relayUrl: string;
  relayToken?: string;
  key: WireGuardKey;
  /** The gateway's WireGuard public key, base64. */
  gatewayKey: string;
  /** This peer's address, with or without its prefix length. */
  address: string;
  /** Where names are asked for: the address of the network's DNS server. */
  dns: string;
  /** Cancels connecting; a tunnel that stands is closed by `close()`. */
  signal?: AbortSignal;
  onRung?: (rung: Rung) => void;
  onStatus?: (status: Status) => void;
}

export interface SshOptions {
  /** A name of the private network, or an address; the host's certificate must be for it. */
  host: string;
  /** 22 unless told. */
  port?: number;
  user: string;
  /** The user certificate, one OpenSSH line. */
  certificate: string;
  /** Signs with the certified key. The signature is WebCrypto's: 64 bytes for Ed25519 and for ECDSA on P-256. */
  sign: (data: Uint8Array) => Promise<Uint8Array>;
  /** The authorities trusted for host certificates, an OpenSSH line each. */
  hostCas: string[];
  /** Runs this instead of the login shell. */
  command?: string;
  /** false: no terminal, the command runs on pipes. */
  pty?: boolean;
  /** `xterm-256color` unless told. */
  term?: string;
  cols: number;
  rows: number;
  /** Cancels connecting; a session that stands is ended by `close()`. */
  signal?: AbortSignal;
  onRung?: (rung: Rung) => void;
}

export interface DialOptions {
  signal?: AbortSignal;
  onRung?: (rung: Rung) => void;
}

export interface TunnelStats {
  transport: "websocket";
  state: "connected" | "reconnecting" | "closed";
  /** To the relay and back; absent until the first answer. */
  rttMs?: number;
  /** The last WireGuard handshake, to the gateway and back. */
  handshakeMs?: number;
  /** Bytes of IP packets. */
  txBytes: number;
  rxBytes: number;
  /** WebSockets opened after the first. */
  reconnects: number;
  /** Datagrams from the relay that were no WireGuard of this tunnel's. */
  refused: number;
}

/** How a remote command ended: one of the two is set, or none where the server did not say. */
export interface ExitStatus {
  code?: number;
  /** Without `SIG`. */
  signal?: string;
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
