import { fileURLToPath } from "node:url";
import { defineConfig } from "vite";

// Two builds of the same source:
//   (default)  the console's page, embedded by the cli -> dist/
//   lib        ES modules for other people's pages     -> dist-lib/
// No asset is ever inlined as a data: URL, so that the content security policy needs no exception.
export default defineConfig(({ mode }) => {
  const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));
  return {
    base: "./",
    build: {
      target: "es2022",
      assetsInlineLimit: 0,
      // xterm.js is most of the page, and nothing of the page works without it.
      chunkSizeWarningLimit: 700,
      modulePreload: { polyfill: false },
      reportCompressedSize: false,
      emptyOutDir: true,
      copyPublicDir: mode !== "lib",
      ...(mode === "lib" && {
        rollupOptions: {
          input: { index: here("./src/index.ts"), element: here("./src/element.ts") },
          preserveEntrySignatures: "strict" as const,
          output: {
            entryFileNames: "[name].js",
            chunkFileNames: "chunks/[name]-[hash].js",
            assetFileNames: (asset: { names: string[] }) =>
              asset.names[0]?.endsWith(".wasm") ? "assets/[name][extname]" : "assets/[name]-[hash][extname]",
          },
        },
      }),
    },
  };
});
