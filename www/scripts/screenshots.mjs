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

/** A prompt that says where one is, as an image of an app would set it. */
const PROMPT = String.raw`PS1='\[\e[1;32m\]$UNDERPASS_APP\[\e[0m\].\[\e[36m\]$UNDERPASS_REGION\[\e[0m\] \w \$ '; cd /etc; clear`;

/** Things a person does on an instance for the first time. */
const LINES = [
  "env | grep ^UNDERPASS_ | sort",
  "ls --color=always -l ssl",
  "stty size",
  "for i in $(seq 0 71); do printf '\\033[48;2;%d;%d;%dm ' $((245-i*2)) $((168-i)) $((60+i*2)); done; printf '\\033[0m\\n'",
  "printf '漢字 κόσμε мир ñ é ✓ → └─┬─┘ \\033[1mbold\\033[0m \\033[3mitalic\\033[0m \\033[4munderlined\\033[0m\\n'",
];
const PHONE = [LINES[0], "stty size", LINES[3].replace("71", "43")];

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
  if (!options.isMobile) {
    await who.choose(instances.at(-1).id);
    await who.phase(-1, "open");
  }
  await who.choose(instances[0].id);
  await who.phase(-1, "open");
  await who.shows(/\S/);
  await who.line(PROMPT);
  await page.waitForTimeout(300);
  for (const line of options.isMobile ? PHONE : LINES) {
    await who.line(line);
    await page.waitForTimeout(350);
  }
  await page.mouse.move(5, 5);
  await page.waitForTimeout(700);
  await page.screenshot({ path: join(images, `${name}.png`) });
  if (name === "console-light") {
    await page.getByRole("button", { name: /prompt in/ }).click();
    await page.waitForTimeout(300);
    await page.screenshot({ path: join(images, "console-ladder.png") });
  }
  await browser.close();
}
await system.stop();
