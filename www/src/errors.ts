/**
 * One shape for everything that can go wrong: a stable code for machines, a sentence, and a hint that says
 * what to do now.
 */
export class UnderpassError extends Error {
  readonly code: string;
  readonly hint: string;

  constructor(code: string, message: string, hint = "") {
    super(message);
    this.name = "UnderpassError";
    this.code = code;
    this.hint = hint;
  }

  /** Wraps whatever was thrown: errors of the wasm client carry `code` and `hint` already. */
  static from(thrown: unknown, fallback = "internal"): UnderpassError {
    if (thrown instanceof UnderpassError) return thrown;
    if (thrown instanceof DOMException && thrown.name === "TimeoutError") {
      return new UnderpassError("timed_out", "No answer in time.", "Check the network, then try again.");
    }
    if (thrown instanceof DOMException && thrown.name === "AbortError") {
      return new UnderpassError("cancelled", "Cancelled.", "");
    }
    const { code, message, hint } = (thrown ?? {}) as { code?: unknown; message?: unknown; hint?: unknown };
    return new UnderpassError(
      typeof code === "string" && code !== "" ? code : fallback,
      typeof message === "string" && message !== "" ? message : String(thrown),
      typeof hint === "string" ? hint : "",
    );
  }
}

/** Rejects with `timed_out` when `promise` takes longer; the loser keeps running, so pass `signal`s too. */
export async function within<T>(ms: number, promise: Promise<T>, what: string): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new UnderpassError("timed_out", `${what} took longer than ${ms / 1000} s.`, "Try again.")),
      ms,
    );
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
