/** The headless client: everything of the console that draws nothing. */
export { Api, type App, type Certificate, type Instance, isSignedOut, type Lease, type Login } from "./api";
export { type Client, loadClient, type WasmSource } from "./client";
export { UnderpassError } from "./errors";
export { type Identity, makeIdentity } from "./identity";
export { Ladder, type Step, type StepName, type StepState } from "./ladder";
export { Link, type LinkState } from "./link";
export { type Ground, type Phase, type Place, Shell } from "./shell";
export type * from "./surface";
