//! Letting a program in that has no session: it shows a short code, a person who is signed in says
//! yes in the console, and the program fetches its login.
//!
//! What the code opens is bound to a secret that never left the program: whoever reads the code
//! over a shoulder gets nothing. A person is shown what asks, and from where, because a code that
//! somebody else sent would let that somebody in. Requests live in memory for ten minutes; nothing
//! of one outlives its answer.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use http::StatusCode;
use ring::digest;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Control,
    body::{Body, Session, Source},
    handlers,
    refusal::Refusal,
};
use crate::{Error, Secret, secret::random, store::unix};

/// How long a code waits for its answer and its program.
const TTL: Duration = Duration::from_secs(600);

/// How often a program asks.
const INTERVAL: Duration = Duration::from_secs(2);

/// A program that asks sooner than this is sent away.
const SOONEST: Duration = Duration::from_secs(1);

/// Codes that wait, of all and of one source.
const MAX_WAITING: usize = 1024;
const MAX_OF_SOURCE: usize = 16;

/// Consonants: no words, and nothing that looks like another letter. Twenty divides no power of
/// two, so that a byte above the last multiple is drawn again.
const LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";
const CODE: usize = 8;

/// The name that a program gives its machine.
const MAX_HOST: usize = 64;

/// What waits, by code.
#[derive(Debug, Default)]
pub(super) struct Devices(HashMap<String, Request>);

#[derive(Debug)]
struct Request {
    host: String,
    source: Option<IpAddr>,
    /// SHA-256 of the program's secret.
    challenge: [u8; 32],
    expires: SystemTime,
    asked: Option<SystemTime>,
    answer: Option<Result<Secret, Denied>>,
}

#[derive(Debug)]
struct Denied;

impl Devices {
    fn waiting(&mut self, now: SystemTime) -> &mut HashMap<String, Request> {
        self.0.retain(|_, request| request.expires > now);
        &mut self.0
    }
}

impl Control {
    fn devices(&self) -> MutexGuard<'_, Devices> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one attempt of a source, for a request that names a code which is not there.
    fn guessed(&self, source: Option<IpAddr>) -> Refusal {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        match attempts.take(source, self.now()) {
            Ok(()) => unknown(),
            Err(wait) => Refusal::too_many_attempts(wait),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Begin {
    host: String,
    challenge: String,
}

/// A program begins.
pub(super) async fn begin(
    State(control): State<Arc<Control>>,
    Source(source): Source,
    Body(begin): Body<Begin>,
) -> Result<Json<Value>, Refusal> {
    let shown = |c: char| c.is_ascii_graphic() || c == ' ';
    let fits = (1..=MAX_HOST).contains(&begin.host.len()) && begin.host.chars().all(shown);
    let challenge = BASE64_URL_SAFE_NO_PAD.decode(&begin.challenge);
    let challenge = challenge.ok().and_then(|bytes| bytes.try_into().ok());
    let (true, Some(challenge)) = (fits, challenge) else {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "bad_request",
            "a login cannot be asked for like this",
            "send a host of 1 to 64 plain characters, and the SHA-256 of a secret as base64url",
        ));
    };
    let now = control.now();
    let code = fresh_code()?;
    let mut devices = control.devices();
    let waiting = devices.waiting(now);
    let of_source = waiting.values().filter(|other| other.source == source);
    if waiting.len() >= MAX_WAITING || of_source.count() >= MAX_OF_SOURCE {
        return Err(Refusal::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_logins",
            "too many logins wait for their answer",
            "answer one of them in the console, or wait ten minutes",
        ));
    }
    let request = Request {
        host: begin.host,
        source,
        challenge,
        expires: now + TTL,
        asked: None,
        answer: None,
    };
    waiting.insert(code.clone(), request);
    Ok(Json(json!({
        "code": code,
        "expires": unix(now + TTL),
        "interval": INTERVAL.as_secs(),
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fetch {
    code: String,
    verifier: String,
}

/// A program asks whether it was let in. Once it was, the code is gone.
pub(super) async fn fetch(
    State(control): State<Arc<Control>>,
    Source(source): Source,
    Body(fetch): Body<Fetch>,
) -> Result<Response, Refusal> {
    let now = control.now();
    let (code, verifier) = (normal(&fetch.code), Secret::new(fetch.verifier));
    let proof = digest::digest(&digest::SHA256, verifier.reveal().as_bytes());
    let answer = {
        let mut devices = control.devices();
        let waiting = devices.waiting(now);
        let mine = waiting.get_mut(&code);
        match mine.filter(|request| request.challenge == proof.as_ref()) {
            None => None,
            Some(request) => {
                let last = request.asked.replace(now);
                let since = last.and_then(|last| now.duration_since(last).ok());
                if since.is_some_and(|since| since < SOONEST) {
                    return Err(Refusal::new(
                        StatusCode::TOO_MANY_REQUESTS,
                        "slow_down",
                        "this program asks too often",
                        "ask every two seconds",
                    ));
                }
                if request.answer.is_none() {
                    return Ok(
                        (StatusCode::ACCEPTED, Json(json!({ "pending": true }))).into_response()
                    );
                }
                waiting.remove(&code).and_then(|request| request.answer)
            }
        }
    };
    match answer {
        None => Err(control.guessed(source)),
        Some(Err(Denied)) => Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "login_denied",
            "the person at the console said no",
            "if that was you by mistake, log in again",
        )),
        Some(Ok(token)) => {
            let session = control
                .run(move |store| store.redeem(token.reveal(), now))
                .await?;
            tracing::info!(user = session.user, "a program was let in");
            Ok(handlers::logged_in(session).into_response())
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Look {
    code: String,
}

/// Who asks, for the person who is to answer.
pub(super) async fn look(
    State(control): State<Arc<Control>>,
    Source(source): Source,
    _session: Session,
    Body(look): Body<Look>,
) -> Result<Json<Value>, Refusal> {
    let now = control.now();
    let code = normal(&look.code);
    let found = {
        let mut devices = control.devices();
        devices.waiting(now).get(&code).map(|request| {
            json!({
                "code": code,
                "host": request.host,
                "address": request.source.map(|address| address.to_canonical().to_string()),
                "answered": request.answer.is_some(),
                "expires": unix(request.expires),
            })
        })
    };
    found.map(Json).ok_or_else(|| control.guessed(source))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Decide {
    code: String,
    allow: bool,
}

/// The person's answer. There is one: the first.
pub(super) async fn decide(
    State(control): State<Arc<Control>>,
    Source(source): Source,
    session: Session,
    Body(decide): Body<Decide>,
) -> Result<StatusCode, Refusal> {
    let now = control.now();
    let code = normal(&decide.code);
    let waiting = {
        let mut devices = control.devices();
        let request = devices.waiting(now).get(&code);
        request.map(|request| request.answer.is_none())
    };
    match waiting {
        None => return Err(control.guessed(source)),
        Some(false) => return Err(answered()),
        Some(true) => {}
    }
    let answer = if decide.allow {
        let token = control
            .run(move |store| store.create_own_login_token(&session.identity, now))
            .await?;
        Ok(token.token)
    } else {
        Err(Denied)
    };
    let mut devices = control.devices();
    // Another may have answered meanwhile; a token that nobody fetches ends by itself.
    match devices.waiting(now).get_mut(&code) {
        None => Err(unknown()),
        Some(request) if request.answer.is_some() => Err(answered()),
        Some(request) => {
            request.answer = Some(answer);
            Ok(StatusCode::NO_CONTENT)
        }
    }
}

fn unknown() -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "code_unknown",
        "no login waits with this code",
        "compare it with the one in the terminal; after ten minutes, run `underpass login` again",
    )
}

fn answered() -> Refusal {
    Refusal::new(
        StatusCode::CONFLICT,
        "code_answered",
        "this login was answered before",
        "run `underpass login` again for another code",
    )
}

/// `BCDF-GHJK`, however it was typed.
fn normal(code: &str) -> String {
    let letters = code.chars().filter(char::is_ascii_alphabetic).take(CODE);
    dashed(letters.map(|c| c.to_ascii_uppercase()))
}

fn dashed(letters: impl Iterator<Item = char>) -> String {
    let mut code = String::with_capacity(CODE + 1);
    for (n, letter) in letters.enumerate() {
        if n == CODE / 2 {
            code.push('-');
        }
        code.push(letter);
    }
    code
}

fn fresh_code() -> Result<String, Error> {
    let fair = |byte: &u8| usize::from(*byte) < 256 / LETTERS.len() * LETTERS.len();
    loop {
        let bytes = random::<32>()?;
        let letters = bytes.iter().filter(|byte| fair(byte));
        let letters: Vec<char> = letters
            .map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]))
            .take(CODE)
            .collect();
        if letters.len() == CODE {
            return Ok(dashed(letters.into_iter()));
        }
    }
}
