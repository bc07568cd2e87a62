/**
 * The console's page: what belongs to an address bar and to a browser's storage, and to no element. The
 * login token comes in the fragment, which no server sees, is erased before anything else happens, and is
 * good once; the session lives in sessionStorage, so that F5 keeps it and closing the tab ends it.
 */
import { Api, isSignedOut, isTransient, type Login } from "./api";
import "./element";
import { type Credentials, isSamePerson, type ThemeChoice } from "./element";
import { UnderpassError } from "./errors";

const SESSION = "underpass.session";
const THEME = "underpass.theme";

const element = document.querySelector("underpass-console");
if (!element) throw new Error("the page has no <underpass-console>");

let token: string | undefined;
let wanted: { app: string; instance: string } | undefined;
/** Whose terminals this tab may hold. */
let signedIn: Login | undefined;
/** The code of a program that waits to be let in. */
let waiting: string | undefined;
takeFragment();

// A tab that a program opened has no session, and another may have one: it hands over a login token of its
// own, good once. No page of another origin hears this channel.
const tabs = new BroadcastChannel("underpass");
const ASK = "who is signed in?";
const ANSWER_MS = 1500;
tabs.addEventListener("message", ({ data }) => {
  const login = data === ASK ? kept() : undefined;
  if (login) void new Api("", login.session).loginToken().then((token) => tabs.postMessage({ token }));
});

element.theme = (localStorage.getItem(THEME) ?? "system") as ThemeChoice;
element.addEventListener("underpass-theme", (event) => {
  const { choice, scheme } = (event as CustomEvent).detail;
  localStorage.setItem(THEME, choice);
  document.documentElement.dataset.scheme = scheme;
});
document.documentElement.dataset.scheme = element.scheme;

element.addEventListener("underpass-ready", () => {
  signedIn = kept();
  if (wanted) element.open(wanted);
  wanted = undefined;
  askAboutProgram();
});
element.addEventListener("underpass-select", (event) => {
  const place = (event as CustomEvent).detail as { app: string; instance: string } | undefined;
  document.title = place ? `${place.app} ${place.instance} - Underpass` : "Underpass";
  // Until the list is there, the address still says what to open.
  if (!place && (wanted || waiting)) return;
  const fragment = place ? `#${new URLSearchParams({ app: place.app, instance: place.instance })}` : "";
  history.replaceState(null, "", location.pathname + location.search + fragment);
});
element.addEventListener("underpass-signed-out", () => {
  signedIn = undefined;
  sessionStorage.removeItem(SESSION);
});
void arrive();

// A fresh address pasted into this tab changes the fragment alone: the page stays, and signs in again.
addEventListener("hashchange", () => {
  takeFragment();
  if (token) void arrive();
  else if (kept()) askAboutProgram();
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

/**
 * Somebody opened an address. A login of the person who is signed in renews their session under their
 * terminals; one of somebody else replaces it only when the person says so.
 */
async function arrive(): Promise<void> {
  if (!element) return;
  const before = signedIn ?? kept();
  const fresh = token;
  if (!fresh || !before) {
    element.credentials = credentials;
    return;
  }
  token = undefined;
  let login: Login;
  try {
    login = await Api.login("", fresh);
  } catch (thrown) {
    // Who was signed in stays so.
    if (!signedIn) element.credentials = credentials;
    element.report(thrown);
    return;
  }
  if (signedIn && element.renew(login)) {
    keep(login);
    if (wanted) element.open(wanted);
    wanted = undefined;
    askAboutProgram();
    return;
  }
  if (await element.maySwitch(login, before)) {
    keep(login);
    void new Api("", before.session).end().catch(() => {});
  } else {
    void new Api("", login.session).end().catch(() => {});
    if (signedIn) return;
  }
  element.credentials = credentials;
}

function keep(login: Login): void {
  sessionStorage.setItem(SESSION, JSON.stringify(login));
  if (signedIn) signedIn = login;
}

async function credentials(refused?: UnderpassError): Promise<Credentials | undefined> {
  if (refused && isSignedOut(refused)) sessionStorage.removeItem(SESSION);
  if (!token && !kept() && (waiting || (refused && signedIn))) token = await tokenOfAnotherTab();
  const fresh = token;
  token = undefined;
  if (fresh) {
    sessionStorage.removeItem(SESSION);
    const login = await Api.login("", fresh).catch((thrown) => {
      // A token is good once, but a network that failed spent nothing: keep it for "Try again".
      if (isTransient(UnderpassError.from(thrown))) token = fresh;
      throw thrown;
    });
    // The tab that answered may be somebody else's: a session that ended is not replaced by theirs.
    if (refused && signedIn && !isSamePerson(signedIn, login)) {
      void new Api("", login.session).end().catch(() => {});
      return undefined;
    }
    keep(login);
    return login;
  }
  const login = kept();
  if (!login) return undefined;
  if (login.expires * 1000 > Date.now()) return login;
  sessionStorage.removeItem(SESSION);
  throw new UnderpassError(
    "session_expired",
    "Your session has expired.",
    "Run `underpass console` for a new address.",
  );
}

function kept(): Login | undefined {
  try {
    return JSON.parse(sessionStorage.getItem(SESSION) ?? "null") ?? undefined;
  } catch {
    sessionStorage.removeItem(SESSION);
    return undefined;
  }
}

function tokenOfAnotherTab(): Promise<string | undefined> {
  return new Promise((resolve) => {
    const done = (found?: string) => {
      clearTimeout(late);
      tabs.removeEventListener("message", hear);
      resolve(found);
    };
    const hear = ({ data }: MessageEvent) => {
      if (typeof data?.token === "string") done(data.token);
    };
    const late = setTimeout(done, ANSWER_MS);
    tabs.addEventListener("message", hear);
    tabs.postMessage(ASK);
  });
}

/** The person who is signed in says whether the program comes in; the address no longer asks. */
function askAboutProgram(): void {
  if (!waiting || !element) return;
  const code = waiting;
  waiting = undefined;
  history.replaceState(null, "", location.pathname + location.search);
  void element.letIn(code);
}

/** Reads `#token=...&app=...&instance=...&cli=...` and erases the token before anyone can see or keep it. */
function takeFragment(): void {
  const fields = new URLSearchParams(location.hash.slice(1));
  const app = fields.get("app");
  const instance = fields.get("instance");
  wanted = app && instance ? { app, instance } : undefined;
  waiting = fields.get("cli") || undefined;
  token = fields.get("token") || undefined;
  if (token) {
    fields.delete("token");
    const rest = fields.toString();
    history.replaceState(null, "", location.pathname + location.search + (rest ? `#${rest}` : ""));
  }
}
