/**
 * The connection as a ladder: seven rungs from this tab to the shell, each with its time, and where one
 * breaks, with a code, a reason and a hint. Holds state alone; `ui/ladder.ts` draws it.
 */
import { UnderpassError } from "./errors";
import type { Rung, RungName } from "./surface";

export type StepName = "access" | RungName;
export type StepState = "waiting" | "running" | "done" | "shared" | "failed";

export interface Step {
  readonly name: StepName;
  readonly label: string;
  readonly detail: string;
  state: StepState;
  ms?: number;
}

const STEPS: readonly (readonly [StepName, string, string])[] = [
  ["access", "Access", "an address and a certificate for this tab"],
  ["websocket", "WebSocket", "TLS to the relay"],
  ["wireguard", "WireGuard", "handshake with the gateway"],
  ["dns", "DNS", "the instance's private address"],
  ["tcp", "TCP", "to port 22, inside the tunnel"],
  ["ssh", "SSH", "host verified, certificate accepted"],
  ["pty", "Shell", "a terminal of its own"],
];

export class Ladder {
  readonly steps: Step[] = STEPS.map(([name, label, detail]) => ({ name, label, detail, state: "waiting" }));
  error: UnderpassError | undefined;
  /** From the click to the prompt, in milliseconds. */
  total: number | undefined;

  private readonly begun = performance.now();

  constructor(private readonly changed: () => void) {}

  start(name: StepName): void {
    this.set(name, "running");
  }

  done(name: StepName, ms?: number): void {
    this.set(name, "done", ms);
  }

  /** The rung stands already: another terminal of this page climbed it. */
  shared(name: StepName): void {
    this.set(name, "shared");
  }

  report(rung: Rung): void {
    if (rung.state === "failed") {
      this.set(rung.rung, "failed", rung.ms);
      this.error ??= new UnderpassError(
        rung.code ?? "failed",
        rung.message ?? "This step failed.",
        rung.hint ?? "",
      );
      this.changed();
    } else {
      this.set(rung.rung, rung.state === "done" ? "done" : "running", rung.ms);
    }
  }

  /** Ends the climb. The failed rung is the one that said so, else the last that was running. */
  fail(error: UnderpassError): void {
    this.error ??= error;
    if (!this.steps.some((step) => step.state === "failed")) {
      const broken =
        this.steps.findLast((step) => step.state === "running") ??
        this.steps.find((step) => step.state === "waiting");
      if (broken) broken.state = "failed";
    }
    for (const step of this.steps) if (step.state === "running") step.state = "waiting";
    this.changed();
  }

  finish(): void {
    this.total = performance.now() - this.begun;
    for (const step of this.steps) {
      if (step.state === "running" || step.state === "waiting") step.state = "done";
    }
    this.changed();
  }

  get current(): Step | undefined {
    return (
      this.steps.find((step) => step.state === "failed") ??
      this.steps.findLast((step) => step.state === "running")
    );
  }

  private set(name: StepName, state: StepState, ms?: number): void {
    const step = this.steps.find((candidate) => candidate.name === name);
    if (!step || step.state === "failed") return;
    step.state = state;
    if (ms !== undefined) step.ms = ms;
    this.changed();
  }
}
