/**
 * The typefaces. Font faces belong to the document, not to a shadow root, so they are added there, once,
 * under names of our own. The scripts beyond Latin load when something shows them.
 */
import sans from "@fontsource-variable/inter/files/inter-latin-wght-normal.woff2?url";
import cyrillic from "@fontsource-variable/jetbrains-mono/files/jetbrains-mono-cyrillic-wght-normal.woff2?url";
import greek from "@fontsource-variable/jetbrains-mono/files/jetbrains-mono-greek-wght-normal.woff2?url";
import latinExt from "@fontsource-variable/jetbrains-mono/files/jetbrains-mono-latin-ext-wght-normal.woff2?url";
import latinItalic from "@fontsource-variable/jetbrains-mono/files/jetbrains-mono-latin-wght-italic.woff2?url";
import latin from "@fontsource-variable/jetbrains-mono/files/jetbrains-mono-latin-wght-normal.woff2?url";

const FAMILY = "Underpass Mono";
const SANS = "Underpass Sans";

export const MONO = `"${FAMILY}", ui-monospace, "SF Mono", Menlo, "Cascadia Mono", "DejaVu Sans Mono", monospace`;

const FACES: [url: string, style: string, range: string, family?: string][] = [
  [sans, "normal", "U+0000-00FF,U+2000-206F,U+20AC,U+2191,U+2193", SANS],
  [
    latin,
    "normal",
    "U+0000-00FF,U+0131,U+0152-0153,U+02BB-02BC,U+02C6,U+02DA,U+02DC,U+2000-206F,U+20AC,U+2122,U+2191,U+2193,U+2212,U+2215,U+FEFF,U+FFFD",
  ],
  [latinItalic, "italic", "U+0000-00FF,U+2000-206F,U+20AC"],
  [latinExt, "normal", "U+0100-02BA,U+02BD-02C5,U+02C7-02CC,U+1E00-1E9F,U+1EF2-1EFF,U+20A0-20AB,U+2C60-2C7F"],
  [cyrillic, "normal", "U+0301,U+0400-045F,U+0490-0491,U+04B0-04B1,U+2116"],
  [greek, "normal", "U+0370-03FF"],
];

let loaded: Promise<unknown> | undefined;

/** Resolves when the Latin face is there, or after a second and a half without it: text comes first. */
export function fontsReady(): Promise<unknown> {
  loaded ??= (() => {
    for (const [url, style, unicodeRange, family] of FACES) {
      document.fonts.add(
        new FontFace(family ?? FAMILY, `url(${JSON.stringify(url)}) format("woff2")`, {
          style,
          weight: "100 900",
          unicodeRange,
          display: "swap",
        }),
      );
    }
    return Promise.race([
      Promise.all([document.fonts.load(`13px "${FAMILY}"`), document.fonts.load(`700 13px "${FAMILY}"`)]),
      new Promise((resolve) => setTimeout(resolve, 1500)),
    ]).catch(() => {});
  })();
  return loaded;
}
