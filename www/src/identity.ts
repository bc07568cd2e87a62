/**
 * The SSH key of the page: made by WebCrypto, not extractable, gone with the tab. Ed25519 where the browser
 * has it, ECDSA on P-256 elsewhere. Signatures are WebCrypto's raw bytes (64 for both), not SSH's blob.
 */
import { UnderpassError } from "./errors";

export interface Identity {
  algorithm: "ssh-ed25519" | "ecdsa-sha2-nistp256";
  /** The OpenSSH line, without a comment. */
  publicKey: string;
  sign(data: Uint8Array): Promise<Uint8Array>;
}

export async function makeIdentity(): Promise<Identity> {
  const subtle = globalThis.crypto?.subtle;
  if (!subtle) {
    throw new UnderpassError(
      "insecure_context",
      "This page was not loaded over HTTPS, so the browser gives it no key storage.",
      "Open the console by its https:// address.",
    );
  }
  try {
    return await make(subtle, "ssh-ed25519", { name: "Ed25519" }, { name: "Ed25519" }, (raw) => [
      text("ssh-ed25519"),
      raw,
    ]);
  } catch {
    return make(
      subtle,
      "ecdsa-sha2-nistp256",
      { name: "ECDSA", namedCurve: "P-256" },
      { name: "ECDSA", hash: "SHA-256" },
      (raw) => [text("ecdsa-sha2-nistp256"), text("nistp256"), raw],
    );
  }
}

async function make(
  subtle: SubtleCrypto,
  algorithm: Identity["algorithm"],
  generate: EcKeyGenParams | Algorithm,
  signing: EcdsaParams | Algorithm,
  fields: (raw: Uint8Array) => Uint8Array[],
): Promise<Identity> {
  const pair = (await subtle.generateKey(generate, false, ["sign", "verify"])) as CryptoKeyPair;
  const raw = new Uint8Array(await subtle.exportKey("raw", pair.publicKey));
  return {
    algorithm,
    publicKey: `${algorithm} ${base64(strings(fields(raw)))}`,
    sign: async (data) =>
      new Uint8Array(await subtle.sign(signing, pair.privateKey, data as Uint8Array<ArrayBuffer>)),
  };
}

/** SSH's `string`s, one after the other: a length of four bytes, then the bytes. */
function strings(fields: Uint8Array[]): Uint8Array {
  const blob = new Uint8Array(fields.reduce((sum, field) => sum + 4 + field.length, 0));
  const view = new DataView(blob.buffer);
  let at = 0;
  for (const field of fields) {
    view.setUint32(at, field.length);
    blob.set(field, at + 4);
    at += 4 + field.length;
  }
  return blob;
}

function text(value: string): Uint8Array {
  return new TextEncoder().encode(value);
}

function base64(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes));
}
