//! `underpass login` and `underpass logout`: a session at a system that is not on this machine.
//!
//! By browser: this program shows a short code, a person who is signed in to the console lets it
//! in there, and the session is fetched with a secret that never left this process. By token: from
//! standard input, a prompt, a file, or a console address; a token works once.

use std::{
    io::{self, IsTerminal, Read},
    time::Duration,
};

use anyhow::{Context, anyhow, bail, ensure};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use carrier::Trust;
use http::{Method, StatusCode};
use ring::digest;
use serde::Deserialize;
use serde_json::json;
use url::Url;
use zeroize::Zeroizing;

use crate::{
    api::{Answer, Server, Session, origin},
    credentials::{Credentials, Login},
    platform,
    settings::{self, Settings, Source},
};

/// Arguments of `login`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The system's address, or a console address with its login token
    /// [default: the one logged in to before]
    #[arg(value_name = "URL")]
    url: Option<String>,
    /// Log in with a token: `-` reads it from standard input or asks for it, otherwise a file
    #[arg(long, value_name = "FILE")]
    token: Option<String>,
    /// Trust the certificate with this SHA-256 alone, as `underpass up` prints it
    #[arg(long, value_name = "SHA256:...")]
    cert_fingerprint: Option<String>,
    /// Show the address, and open no browser
    #[arg(long)]
    no_browser: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `logout`.
#[derive(clap::Args, Debug)]
pub(crate) struct LogoutArgs {
    /// The system's address [default: the one logged in to]
    #[arg(value_name = "URL")]
    url: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A token is some fifty bytes, an address with one not many more.
const MAX_TOKEN: u64 = 4096;

/// Logs in, and makes the system the one that commands speak to.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut settings = Settings::load()?;
    let mut credentials = Credentials::load(&settings)?;
    let typed = args.url.as_deref().map(Address::parse).transpose()?;
    let pasted = match &args.token {
        Some(source) => Some(Box::pin(read_token(source)).await?),
        None => None,
    };
    let (url, token) = choose(typed, pasted, &settings)?;
    let kept = credentials.of(&url);
    let fingerprint = match args.cert_fingerprint {
        Some(fingerprint) => Some(fingerprint),
        None => kept.and_then(|login| login.fingerprint.clone()),
    };
    let trust = match &fingerprint {
        Some(fingerprint) => Trust::fingerprint(fingerprint).map_err(|_| {
            anyhow!(
                "{fingerprint:?} is no fingerprint\n\
                 hint: give the 64 hex digits that `underpass up` prints as TLS SHA-256"
            )
        })?,
        None => Trust::System,
    };
    let server = Server::new(url.clone(), None, trust)?;
    let session = match token {
        Some(token) => server.redeem(&token).await?,
        None => by_browser(&server, &url, !args.no_browser).await?,
    };
    let login = Login {
        session: session.session,
        user: session.user,
        expires: session.expires,
        fingerprint,
    };
    credentials.keep(&url, login.clone())?;
    let name = origin(&url);
    settings.store(settings::key("url")?, Some(&name))?;
    let orgs: Vec<&str> = session.orgs.iter().map(|org| org.name.as_str()).collect();
    if args.json {
        println!(
            "{}",
            json!({ "url": name, "user": login.user, "orgs": orgs, "expires": login.expires })
        );
    } else {
        println!("logged in to {name} as {}", login.user);
        println!("organisations: {}", orgs.join(", "));
    }
    if let Some((other, Source::Environment)) = settings.url()
        && other != name
    {
        eprintln!(
            "underpass: UNDERPASS_URL names {other}, and counts before this login\nhint: unset UNDERPASS_URL"
        );
    }
    Ok(())
}

/// Ends the session there and forgets it here.
pub(crate) async fn logout(args: LogoutArgs) -> anyhow::Result<()> {
    let mut settings = Settings::load()?;
    let mut credentials = Credentials::load(&settings)?;
    let typed = args.url.as_deref().map(Address::parse).transpose()?;
    let (url, _) = choose(typed, None, &settings)?;
    let name = origin(&url);
    let Some(login) = credentials.of(&url).cloned() else {
        bail!("nobody is logged in to {name}\nhint: `underpass config` shows what is known");
    };
    let server = Server::new(url.clone(), None, login.trust()?)?;
    let ended = server
        .exchange::<()>(&Method::DELETE, "/api/v1/session", &(), Some(login.session))
        .await;
    credentials.forget(&url)?;
    let key = settings::key("url")?;
    if settings.in_file(key) == Some(name.as_str()) {
        settings.store(key, None)?;
    }
    let told = match ended {
        Ok(Answer::Is(())) => true,
        // It had ended before.
        Ok(Answer::Refused(refused)) => refused.status == StatusCode::UNAUTHORIZED,
        Err(_) => false,
    };
    if args.json {
        println!("{}", json!({ "url": name, "told": told }));
    } else {
        println!("logged out of {name}");
    }
    if !told {
        eprintln!(
            "underpass: {name} could not be told\nhint: the session ends there by itself, within twelve hours of its login"
        );
    }
    Ok(())
}

/// Where to log in, and a token that came with it.
struct Address {
    url: Option<Url>,
    token: Option<Zeroizing<String>>,
}

impl Address {
    /// `https://HOST`, a console address, or a host and port.
    fn parse(text: &str) -> anyhow::Result<Address> {
        let text = text.trim();
        // Not repeated in the error: it may hold a token.
        let wrong = |hint: &str| anyhow!("this is no address of an Underpass\nhint: {hint}");
        let (place, fragment) = text.split_once('#').unwrap_or((text, ""));
        let whole = match place.contains("://") {
            true => place.to_owned(),
            false => format!("https://{place}"),
        };
        let url = settings::origin(&whole).map_err(wrong)?;
        let fields = url::form_urlencoded::parse(fragment.as_bytes());
        let mut tokens = fields.filter(|(name, _)| name == "token");
        let token = tokens
            .next()
            .map(|(_, token)| Zeroizing::new(token.into_owned()));
        Ok(Address {
            url: Some(url),
            token,
        })
    }
}

/// One system, from what was typed, what was pasted, and what was there before.
fn choose(
    typed: Option<Address>,
    pasted: Option<Address>,
    settings: &Settings,
) -> anyhow::Result<(Url, Option<Zeroizing<String>>)> {
    let (typed, mut token) = typed.map_or((None, None), |typed| (typed.url, typed.token));
    let mut url = typed;
    if let Some(pasted) = pasted {
        if let (Some(here), Some(there)) = (&url, &pasted.url) {
            ensure!(
                here.origin() == there.origin(),
                "the console address is of {}, not of {}\nhint: leave the URL out",
                origin(there),
                origin(here)
            );
        }
        url = url.or(pasted.url);
        token = pasted.token.or(token);
    }
    let url = match (url, settings.url()) {
        (Some(url), _) => url,
        (None, Some((url, _))) => {
            settings::origin(&url).map_err(|hint| anyhow!("{url:?} is no API\nhint: {hint}"))?
        }
        (None, None) => bail!("which system?\nhint: underpass login https://HOST"),
    };
    Ok((url, token))
}

/// A token, or a console address that holds one, from where nobody else reads along.
async fn read_token(source: &str) -> anyhow::Result<Address> {
    ensure!(
        !source.starts_with("uplt_"),
        "a token among a command's words can be read by everybody on this machine\nhint: --token - reads it from standard input"
    );
    let mut text = Zeroizing::new(String::new());
    if source == "-" && io::stdin().is_terminal() {
        eprint!("Login token or console address: ");
        *text = platform::hidden_line().await?;
    } else if source == "-" {
        let read = io::stdin().take(MAX_TOKEN).read_to_string(&mut text);
        read.context("standard input cannot be read")?;
    } else {
        let file = std::fs::File::open(source);
        let file = file.with_context(|| format!("cannot open {source}"))?;
        let read = file.take(MAX_TOKEN).read_to_string(&mut text);
        read.with_context(|| format!("cannot read {source}"))?;
    }
    let text = text.trim();
    ensure!(
        !text.is_empty(),
        "there is no token\nhint: `underpass console` prints an address with one, where Underpass runs"
    );
    if text.contains("://") {
        let address = Address::parse(text)?;
        ensure!(
            address.token.is_some(),
            "this address holds no token\nhint: `underpass console` prints one that does"
        );
        return Ok(address);
    }
    Ok(Address {
        url: None,
        token: Some(Zeroizing::new(text.to_owned())),
    })
}

/// What control answers to a program that wants in.
#[derive(Deserialize)]
struct Begun {
    code: String,
    expires: u64,
    interval: u64,
}

/// What it answers while a person has not decided, and after.
#[derive(Deserialize)]
struct Fetched {
    #[serde(default)]
    pending: bool,
    #[serde(flatten)]
    session: Option<Session>,
}

/// How often the server may be asked in all: its own limit comes before.
const MAX_ASKED: u32 = 1000;

/// Failures in a row that are waited out: a network that changes, a server that restarts.
const MAX_FAILED: u32 = 5;

async fn by_browser(server: &Server, url: &Url, open: bool) -> anyhow::Result<Session> {
    let mut secret = Zeroizing::new([0; 32]);
    getrandom::fill(secret.as_mut_slice()).context("no randomness")?;
    let verifier = Zeroizing::new(BASE64_URL_SAFE_NO_PAD.encode(*secret));
    let challenge = digest::digest(&digest::SHA256, verifier.as_bytes());
    let host = host_label(&platform::host_name());
    let body = json!({ "host": host, "challenge": BASE64_URL_SAFE_NO_PAD.encode(challenge) });
    let begun = server.exchange(&Method::POST, "/api/v1/device", &body, None);
    let Begun {
        code,
        expires,
        interval,
    } = begun.await?.ok()?;
    tracing::debug!(expires, "a login waits");
    let page = format!("{}/#cli={code}", origin(url));
    let opened = open && platform::open_in_browser(&page);
    let lead = if opened { "A browser opens" } else { "Open" };
    eprintln!("{lead} {page}");
    eprintln!("Let {host} in there if the page shows the code {code}.");
    let body = json!({ "code": code, "verifier": *verifier });
    let (mut failed, mut pause) = (0, Duration::from_secs(interval.clamp(1, 60)));
    for _ in 0..MAX_ASKED {
        tokio::time::sleep(pause).await;
        let fetched = server.exchange(&Method::POST, "/api/v1/device/login", &body, None);
        match fetched.await {
            Ok(Answer::Is(Fetched {
                session: Some(session),
                ..
            })) => return Ok(session),
            Ok(Answer::Is(fetched)) => {
                ensure!(
                    fetched.pending,
                    "an answer of another version\nhint: update this program"
                );
                failed = 0;
            }
            Ok(Answer::Refused(refused)) if refused.status == StatusCode::TOO_MANY_REQUESTS => {
                pause += Duration::from_secs(1);
            }
            Ok(refused) => {
                refused.ok()?;
            }
            Err(error) => {
                failed += 1;
                if failed == MAX_FAILED {
                    return Err(error);
                }
            }
        }
    }
    bail!("nobody let this program in\nhint: run `underpass login` again")
}

/// The name of this machine, as a person is shown it.
fn host_label(name: &str) -> String {
    let plain = name.chars().filter(char::is_ascii_graphic).take(64);
    let plain: String = plain.collect();
    if plain.is_empty() {
        "a computer".to_owned()
    } else {
        plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_hold_a_token_and_is_never_repeated() {
        let parse = |text: &str| {
            let address = Address::parse(text)?;
            let token = address.token.map(|token| token.to_string());
            anyhow::Ok((address.url.map(|url| origin(&url)), token))
        };
        let of = |url: &str, token: Option<&str>| (Some(url.to_owned()), token.map(str::to_owned));
        let token = Some("uplt_a-b_c");
        for (text, url, token) in [
            ("https://up.example", "https://up.example", None),
            (" up.example:8443\n", "https://up.example:8443", None),
            ("[::1]:8443", "https://[::1]:8443", None),
            (
                "https://up.example/#token=uplt_a-b_c",
                "https://up.example",
                token,
            ),
            (
                "https://up.example:9/#app=web&token=uplt_a-b_c",
                "https://up.example:9",
                token,
            ),
        ] {
            assert_eq!(parse(text).unwrap(), of(url, token), "{text}");
        }
        for bad in [
            "http://up.example/#token=uplt_x",
            "https://up.example/page#token=uplt_x",
            "https://user@up.example/#token=uplt_x",
            "https://up.example/?token=uplt_x",
            "",
        ] {
            let error = format!("{:#}", parse(bad).unwrap_err());
            assert!(
                error.contains("hint: ") && !error.contains("uplt_"),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn a_token_among_the_words_is_refused() {
        let error = read_token("uplt_secret").await.err().unwrap();
        let error = format!("{error:#}");
        assert!(
            error.contains("--token -") && !error.contains("uplt_"),
            "{error}"
        );
    }

    #[test]
    fn a_name_is_fit_to_be_shown() {
        assert_eq!(host_label("laptop.local"), "laptop.local");
        assert_eq!(host_label("a\u{1b}[31mb c"), "a[31mbc");
        assert_eq!(host_label("\u{202e}"), "a computer");
        assert_eq!(host_label(&"x".repeat(100)).len(), 64);
    }
}
