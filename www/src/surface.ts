/**
 * The surface of the wasm client, as its build writes it: `web-client` implements it, `client.ts` loads it,
 * and nothing else in the console knows how packets or keys work.
 */
export type {
  ExitStatus,
  Rung,
  RungName,
  Session,
  SshOptions,
  Status,
  TerminalLike,
  Tunnel,
  TunnelOptions,
  TunnelStats,
  WireGuardKey,
} from "./wasm/underpass";
