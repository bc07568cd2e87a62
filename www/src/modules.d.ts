// Used only while `src/wasm/` has not been built: `cargo xtask web` writes the real declarations, which win.
declare module "*/wasm/underpass.js" {
  const init: (input: { module_or_path: unknown }) => Promise<unknown>;
  export default init;
  export const generateKey: () => import("./surface").WireGuardKey;
  export const Tunnel: import("./surface").TunnelConstructor;
}
