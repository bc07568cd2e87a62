/**
 * Takes docs/images/ from the real thing: `npm run screenshots` with the binary built (or UNDERPASS_BIN set).
 * The pictures show what the page shows; nothing is retouched.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { launch, up, visit } from "../../tests/browser/harness.mjs";

const images = fileURLToPath(new URL("../../docs/images", import.meta.url));
mkdirSync(images, { recursive: true });

const system = await up();
const instances = system.apps.flatMap((app) => app.instances);

/** Things a person does on an instance for the first time. */
const LINES = [
  "env | grep -i -E '^(FLY|UNDERPASS)_' | sort",
  "ls --color=always -l /etc/ssl",
  "stty size",
  "printf 'wide 漢字 \\033[1;33mbold\\033[0m \\033[38;2;116;168;242mtrue colour\\033[0m ✓ → └─┬─┘\\n'",
];
const PHONE = ["stty size", "ls --color=always /etc/ssl"];

const SHOTS = [
  { name: "console-light", colorScheme: "light", viewport: { width: 1440, height: 900 } },
  { name: "console-dark", colorScheme: "dark", viewport: { width: 1440, height: 900 } },
  // WebGL is off here: emulation of a dense screen misleads its canvas, a dense screen does not.
  {
    name: "console-phone",
    colorScheme: "dark",
    viewport: { width: 390, height: 844 },
    deviceScaleFactor: 2,
    hasTouch: true,
    isMobile: true,
    launch: ["--disable-3d-apis"],
  },
];

for (const { name, launch: flags = [], ...options } of SHOTS) {
  const browser = await launch(flags);
  const who = await visit(browser, { reducedMotion: "reduce", ...options });
  const { page } = who;
  await page.goto(system.consoleUrl());
  await page.locator(".instance").first().waitFor();
  if (options.isMobile) {
    await page.waitForTimeout(400);
    await page.screenshot({ path: join(images, `${name}-list.png`) });
  } else {
    await who.choose(instances.at(-1).id);
    await who.phase(-1, "open");
  }
  await who.choose(instances[0].id);
  await who.phase(-1, "open");
  await who.shows(/\S/);
  await who.line("clear");
  for (const line of options.isMobile ? PHONE : LINES) {
    await who.line(line);
    await page.waitForTimeout(350);
  }
  await page.mouse.move(5, 5);
  await page.waitForTimeout(700);
  await page.screenshot({ path: join(images, `${name}.png`) });
  await browser.close();
}
await system.stop();
