/**
 * The console's page: what belongs to an address bar and to a browser's storage, and to no element. The
 * login token comes in the fragment, which no server sees, is erased before anything else happens, and is
 * good once; the session lives in sessionStorage, so that F5 keeps it and closing the tab ends it.
 */
import { Api, isSignedOut, isTransient, type Login } from "./api";
import "./element";
import type { Credentials, ThemeChoice } from "./element";
import { UnderpassError } from "./errors";

const SESSION = "underpass.session";
const THEME = "underpass.theme";

const element = document.querySelector("underpass-console");
if (!element) throw new Error("the page has no <underpass-console>");

let token: string | undefined;
let wanted: { app: string; instance: string } | undefined;
takeFragment();

element.theme = (localStorage.getItem(THEME) ?? "system") as ThemeChoice;
element.addEventListener("underpass-theme", (event) => {
  const { choice, scheme } = (event as CustomEvent).detail;
  localStorage.setItem(THEME, choice);
  document.documentElement.dataset.scheme = scheme;
});
document.documentElement.dataset.scheme = element.scheme;

element.addEventListener("underpass-ready", () => {
  if (wanted) element.open(wanted);
  wanted = undefined;
});
element.addEventListener("underpass-select", (event) => {
  const place = (event as CustomEvent).detail as { app: string; instance: string } | undefined;
  document.title = place ? `${place.app} ${place.instance} - Underpass` : "Underpass";
  // Until the list is there, the address still says what to open.
  if (!place && wanted) return;
  const fragment = place ? `#${new URLSearchParams({ app: place.app, instance: place.instance })}` : "";
  history.replaceState(null, "", location.pathname + location.search + fragment);
});
element.addEventListener("underpass-signed-out", () => sessionStorage.removeItem(SESSION));
element.credentials = credentials;

// A fresh address pasted into this tab changes the fragment alone: the page stays, and signs in again.
addEventListener("hashchange", () => {
  takeFragment();
  if (token) element.credentials = credentials;
});

// A phone's keyboard covers the page without resizing it: the console ends where the keyboard begins.
const viewport = window.visualViewport;
viewport?.addEventListener("resize", fitViewport);
viewport?.addEventListener("scroll", fitViewport);

function fitViewport(): void {
  if (!viewport || !element || Math.abs(viewport.scale - 1) > 0.01) return;
  const covered = window.innerHeight - viewport.height > 40;
  element.style.height = covered ? `${viewport.height}px` : "";
  if (covered) window.scrollTo(0, 0);
}

async function credentials(refused?: UnderpassError): Promise<Credentials | undefined> {
  if (refused && isSignedOut(refused)) sessionStorage.removeItem(SESSION);
  const fresh = token;
  token = undefined;
  if (fresh) {
    sessionStorage.removeItem(SESSION);
    const login = await Api.login("", fresh).catch((thrown) => {
      // A token is good once, but a network that failed spent nothing: keep it for "Try again".
      if (isTransient(UnderpassError.from(thrown))) token = fresh;
      throw thrown;
    });
    sessionStorage.setItem(SESSION, JSON.stringify(login));
    return login;
  }
  const kept = sessionStorage.getItem(SESSION);
  if (!kept) return undefined;
  let login: Login;
  try {
    login = JSON.parse(kept);
  } catch {
    sessionStorage.removeItem(SESSION);
    return undefined;
  }
  if (login.expires * 1000 > Date.now()) return login;
  sessionStorage.removeItem(SESSION);
  throw new UnderpassError(
    "session_expired",
    "Your session has expired.",
    "Run `underpass console` for a new address.",
  );
}

/** Reads `#token=...&app=...&instance=...` and erases the token before anyone can see or keep it. */
function takeFragment(): void {
  const fields = new URLSearchParams(location.hash.slice(1));
  const app = fields.get("app");
  const instance = fields.get("instance");
  wanted = app && instance ? { app, instance } : undefined;
  token = fields.get("token") || undefined;
  if (token) {
    fields.delete("token");
    const rest = fields.toString();
    history.replaceState(null, "", location.pathname + location.search + (rest ? `#${rest}` : ""));
  }
}
