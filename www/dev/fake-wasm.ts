/**
 * Stands in for the wasm client while working on the page: a ladder with plausible times and a shell with a
 * handful of words. Reached by the `fake` build alone; nothing of it is in the console that ships.
 */
import type {
  ExitStatus,
  Session,
  SshOptions,
  Status,
  TerminalLike,
  TunnelOptions,
  Tunnel as TunnelSurface,
  WireGuardKey,
} from "../src/surface";

export default async function init(): Promise<void> {}

export function generateKey(): WireGuardKey {
  return { publicKey: btoa(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(32)))) };
}

const wait = (ms: number, signal?: AbortSignal) =>
  new Promise<void>((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("aborted", "AbortError"));
    });
  });

export class Tunnel implements TunnelSurface {
  private rx = 0;
  private constructor(private readonly options: TunnelOptions) {}

  static async connect(options: TunnelOptions): Promise<Tunnel> {
    for (const [rung, ms] of [
      ["websocket", 31],
      ["wireguard", 12],
    ] as const) {
      options.onRung?.({ rung, state: "started" });
      await wait(ms * speed(), options.signal);
      options.onRung?.({ rung, state: "done", ms });
    }
    return new Tunnel(options);
  }

  async resolve(): Promise<string[]> {
    return ["fdaa:0:18:a7b::2"];
  }

  async ssh(options: SshOptions): Promise<Session> {
    const broken = options.host.startsWith("0badf00d");
    for (const [rung, ms] of [
      ["dns", 3],
      ["tcp", 4],
      ["ssh", 28],
      ["pty", 6],
    ] as const) {
      options.onRung?.({ rung, state: "started" });
      await wait(ms * speed(), options.signal);
      if (broken && rung === "tcp") {
        const failure = {
          code: "refused",
          message: "Nothing listens on port 22 there.",
          hint: "Hallpass may still be starting. Try again in a moment.",
        };
        options.onRung?.({ rung, state: "failed", ms, ...failure });
        throw Object.assign(new Error(failure.message), failure);
      }
      options.onRung?.({ rung, state: "done", ms });
    }
    if (options.signal?.aborted) throw new DOMException("aborted", "AbortError");
    return new FakeSession(options, (bytes) => {
      this.rx += bytes;
    });
  }

  stats() {
    return { rttMs: 11.7, txBytes: 2148, rxBytes: 4096 + this.rx, transport: "websocket" };
  }

  wake(): void {
    this.tell({ state: "connected" });
  }

  close(): void {}

  private tell(status: Status): void {
    this.options.onStatus?.(status);
  }
}

/** `?slow` in the address makes the ladder slow enough to look at. */
function speed(): number {
  return new URLSearchParams(location.search).has("slow") ? 40 : 1;
}

class FakeSession implements Session {
  private terminal: TerminalLike | undefined;
  private line = "";
  private end: (status: ExitStatus) => void = () => {};
  private readonly ended = new Promise<ExitStatus>((resolve) => {
    this.end = resolve;
  });
  private readonly prompt: string;

  constructor(
    options: SshOptions,
    private readonly received: (bytes: number) => void,
  ) {
    const [instance, , app] = options.host.split(".");
    this.prompt = `\x1b[1;32mroot@${instance}\x1b[0m:\x1b[1;34m/srv/${app}\x1b[0m# `;
  }

  attach(terminal: TerminalLike): void {
    this.terminal = terminal;
    terminal.onData((data) => void this.typed(data));
    void this.say(this.prompt);
  }

  async write(): Promise<void> {}
  resize(): void {}
  exited(): Promise<ExitStatus> {
    return this.ended;
  }
  close(): void {}

  private say(text: string): Promise<void> {
    const bytes = new TextEncoder().encode(text);
    this.received(bytes.length);
    return new Promise((resolve) => this.terminal?.write(bytes, resolve));
  }

  private async typed(data: string): Promise<void> {
    for (const char of data.replace(/\x1b\[20[01]~/g, "")) {
      if (char === "\r" || char === "\n") {
        await this.say("\r\n");
        const line = this.line;
        this.line = "";
        await this.run(line.trim());
      } else if (char === "\x7f") {
        if (this.line) await this.say("\b \b");
        this.line = this.line.slice(0, -1);
      } else if (char === "\x03") {
        this.line = "";
        await this.say(`^C\r\n${this.prompt}`);
      } else if (char >= " ") {
        this.line += char;
        await this.say(char);
      }
    }
  }

  private async run(line: string): Promise<void> {
    const exit = /^exit ?(\d*)$/.exec(line);
    if (exit) {
      await this.say("logout\r\n");
      this.end({ code: Number(exit[1] || 0) });
      return;
    }
    for (const command of line.split("; ").map((part) => part.trim())) await this.command(command);
    await this.say(this.prompt);
  }

  private async command(line: string): Promise<void> {
    const lines = async (...said: string[]) => this.say(said.map((each) => `${each}\r\n`).join(""));
    const bulk = /^head -c (\d+) /.exec(line);
    if (bulk) {
      const row = `${"x".repeat(99)}\r\n`;
      const chunk = row.repeat(640);
      for (let sent = 0; sent < Number(bulk[1]); sent += 64_000) await this.say(chunk);
    } else if (line.startsWith("echo ")) {
      await lines(
        line
          .slice(5)
          .replace(/^(['"])(.*)\1$/, "$2")
          .replace(/\$\(\((\d+)\+(\d+)\)\)/, (_, a, b) => String(Number(a) + Number(b))),
      );
    } else if (line === "stty size") {
      await lines(`${this.terminal?.rows} ${this.terminal?.cols}`);
    } else if (line.startsWith("printf")) {
      await this.say(
        (/'(.*)'/.exec(line)?.[1] ?? "")
          .replaceAll("\\033", "\x1b")
          .replaceAll("\\n", "\r\n")
          .replaceAll("\\a", "\x07"),
      );
    } else if (line === "ls -la") {
      await lines(
        "total 28",
        "drwxr-xr-x 4 root root 4096 Nov 20 09:12 \x1b[1;34m.\x1b[0m",
        "drwxr-xr-x 9 root root 4096 Nov 18 16:40 \x1b[1;34m..\x1b[0m",
        "-rw-r--r-- 1 root root  812 Nov 20 09:12 Caddyfile",
        "-rwxr-xr-x 1 root root 6144 Nov 20 09:12 \x1b[1;32mserve\x1b[0m",
        "drwxr-xr-x 2 root root 4096 Nov 20 09:12 \x1b[1;34mstatic\x1b[0m",
      );
    } else if (line) {
      await lines(`sh: ${line.split(" ")[0]}: not found`);
    }
  }
}
