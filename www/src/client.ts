/**
 * The one module that names the wasm client. It is loaded when the first terminal is wanted (or a moment
 * before), once per page, and a failed load can be tried again.
 */
import { UnderpassError, within } from "./errors";
import wasm from "./wasm/underpass_bg.wasm?url";

export type Client = Pick<typeof import("./wasm/underpass"), "Tunnel" | "generateKey">;

/** Where the wasm is, when not beside the script: an address, a response under way, or a compiled module. */
export type WasmSource = string | URL | Response | Promise<Response> | WebAssembly.Module;

let loading: Promise<Client> | undefined;

export function loadClient(source?: WasmSource): Promise<Client> {
  loading ??= load(source).catch((thrown) => {
    loading = undefined;
    throw thrown;
  });
  return loading;
}

async function load(source?: WasmSource): Promise<Client> {
  if (typeof WebAssembly !== "object") {
    throw new UnderpassError(
      "wasm_unavailable",
      "This browser runs no WebAssembly.",
      "WireGuard and SSH run inside this tab. Allow WebAssembly (a lockdown mode may forbid it) or use `underpass ssh`.",
    );
  }
  try {
    const module = await import("./wasm/underpass.js");
    await within(30_000, module.default({ module_or_path: source ?? wasm }), "Loading");
    return module;
  } catch (thrown) {
    const { message } = UnderpassError.from(thrown);
    throw new UnderpassError(
      "client_load_failed",
      `The WireGuard and SSH client did not load: ${message}`,
      "Reload the page. If it persists, a proxy or extension may be blocking the .wasm file.",
    );
  }
}
