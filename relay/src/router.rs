//! The relay as a router: `GET /v1/tunnel/{gateway}`, upgraded to `underpass.v1`.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};

use axum::{
    Json, Router,
    extract::{ConnectInfo, Path, Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use serde_json::json;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wire::{CloseCode, subprotocol};

use crate::{
    admission::{Admission, Admitted, HttpRefusal, Refusal, status_of},
    config::{Limits, RelayConfig},
    counters::{Counter, Counters},
    held::Held,
    resume::{Kept, Resumes},
    session,
    slots::{NoSlot, SessionSlot, Slots},
};

/// A relay: its rules, its limits and its open sessions. Clones are the same relay.
#[derive(Clone)]
pub struct Relay(Arc<Inner>);

struct Inner {
    rules: RwLock<Arc<Rules>>,
    counters: Arc<Counters>,
    slots: Arc<Slots>,
    tokens: Arc<Slots<String>>,
    resumes: Arc<Resumes>,
    sessions: TaskTracker,
    shutdown: CancellationToken,
}

/// What a reload replaces, for the sessions from then on.
struct Rules {
    admission: Admission,
    limits: Limits,
}

impl Relay {
    /// A relay that opens sessions until `shutdown`, and then sends every client away.
    pub fn new(
        config: &RelayConfig,
        counters: Arc<Counters>,
        shutdown: CancellationToken,
    ) -> Relay {
        Relay(Arc::new(Inner {
            rules: RwLock::new(Rules::new(config)),
            counters,
            slots: Slots::new(config.limits.sessions, config.limits.sessions_per_source),
            tokens: Slots::new(usize::MAX, config.limits.sessions_per_token),
            resumes: Arc::default(),
            sessions: TaskTracker::new(),
            shutdown,
        }))
    }

    /// Takes another configuration for the sessions from now on: gateways, keys, hosts, origins and
    /// what a session may use. Sessions that are open stay as they are; the limits on their number
    /// stay those of the start.
    pub fn reload(&self, config: &RelayConfig) {
        let rules = Rules::new(config);
        *self.0.rules.write().unwrap_or_else(PoisonError::into_inner) = rules;
    }

    /// Its counters.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.0.counters
    }

    /// Whether it opens no session any more.
    pub fn is_draining(&self) -> bool {
        self.0.shutdown.is_cancelled()
    }

    /// After `shutdown`: waits until every client has been told and every session has ended.
    pub async fn closed(&self) {
        self.0.shutdown.cancelled().await;
        self.0.sessions.close();
        self.0.sessions.wait().await;
    }
}

impl Rules {
    fn new(config: &RelayConfig) -> Arc<Rules> {
        Arc::new(Rules {
            admission: Admission::new(config),
            limits: config.limits,
        })
    }
}

impl Inner {
    fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn slot(&self, client: SocketAddr, admitted: &Admitted) -> Result<SessionSlot, CloseCode> {
        let of_source = self.slots.take(client.ip()).map_err(|none| match none {
            NoSlot::InAll => CloseCode::TooManySessions,
            NoSlot::PerSource => CloseCode::TooManyFromSource,
        })?;
        let of_token = |id: &String| self.tokens.take_for(id.clone());
        let of_token = admitted.token_id.as_ref().map(of_token).transpose();
        Ok(SessionSlot {
            _of_source: of_source,
            _of_token: of_token.map_err(|_| CloseCode::TooManyOfToken)?,
        })
    }

    /// Whether a client comes back to a session that is there.
    fn knows(&self, admitted: &Admitted) -> bool {
        admitted.resume.as_deref().is_some_and(|token| {
            let id = admitted.token_id.as_deref();
            self.resumes.knows(token, &admitted.gateway.name, id)
        })
    }

    /// The session that a client comes back to. None is no fault: it goes on in a new one.
    async fn claim(&self, admitted: &Admitted) -> Option<Kept> {
        let token = admitted.resume.as_deref()?;
        let id = admitted.token_id.as_deref();
        let kept = self.resumes.claim(token, &admitted.gateway.name, id).await;
        self.counters.count(match kept {
            Some(_) => Counter::SessionsResumed,
            None => Counter::ResumeUnknown,
        });
        kept
    }
}

/// The relay's route. It is to be served by [`crate::serve()`]: a session reads from that server's
/// connections where they are decrypted.
pub fn router(relay: Relay) -> Router {
    Router::new()
        .route("/v1/tunnel/{gateway}", get(tunnel))
        .with_state(relay)
}

async fn tunnel(
    State(relay): State<Relay>,
    Path(gateway): Path<String>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let rules = relay.0.rules();
    let judged = rules.admission.judge(&gateway, request.headers());
    open(&relay.0, rules.limits, client, request, judged)
}

/// flyctl's byte stream on `/`, in front of whatever else is served there. Without a gateway for
/// it in the configuration nothing is changed.
pub fn with_flyctl(app: Router, relay: Relay) -> Router {
    app.layer(from_fn_with_state(relay, flyctl))
}

async fn flyctl(
    State(relay): State<Relay>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let rules = relay.0.rules();
    let is_ours = request.uri().path() == "/" && request.method() == http::Method::GET;
    match rules.admission.judge_flyctl(request.headers()) {
        Some(judged) if is_ours => open(&relay.0, rules.limits, client, request, judged),
        _ => next.run(request).await,
    }
}

/// Opens the session of a request that was judged, or says why there is none.
fn open(
    relay: &Arc<Inner>,
    limits: Limits,
    client: SocketAddr,
    mut request: Request,
    judged: Result<Admitted, Refusal>,
) -> Response {
    let admitted = judged.and_then(|admitted| {
        let refuse = |code| Refusal::for_request(code, request.headers());
        if relay.shutdown.is_cancelled() {
            return Err(refuse(CloseCode::Restarting));
        }
        // Who comes back has a slot already.
        if relay.knows(&admitted) {
            return Ok((admitted, None));
        }
        match relay.slot(client, &admitted) {
            Ok(slot) => Ok((admitted, Some(slot))),
            Err(code) => Err(refuse(code)),
        }
    });
    let outcome = match admitted {
        Ok(admitted) => Ok(admitted),
        Err(Refusal::Close(code)) => Err(code),
        Err(Refusal::Status(code)) => {
            relay.counters.refused(code);
            tracing::debug!(%client, reason = code.reason(), "session refused");
            return error(
                status_of(code),
                (code.reason(), code.sentence(), code.hint()),
            );
        }
        Err(Refusal::Http(refusal)) => return http_refusal(relay, refusal),
    };
    let (Some(upgrade), Some(key)) = (
        request.extensions_mut().remove::<OnUpgrade>(),
        request.headers().get(header::SEC_WEBSOCKET_KEY),
    ) else {
        return http_refusal(relay, HttpRefusal::NotAnUpgrade);
    };
    let accept = accept_key(key.as_bytes());
    let stream = matches!(&outcome, Ok((admitted, _)) if admitted.flyctl);
    relay
        .sessions
        .spawn(upgraded(relay.clone(), limits, client, upgrade, outcome));

    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if !stream {
        headers.insert(
            header::SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(subprotocol::V1),
        );
    }
    if let Ok(accept) = HeaderValue::try_from(accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

/// The answer to `Sec-WebSocket-Key` (RFC 6455, section 4.2.2): it proves that this server knows
/// WebSockets, and nothing else.
fn accept_key(key: &[u8]) -> String {
    let mut hash = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.finish())
}

/// Waits for the upgraded connection and runs its session, or tells why there is none.
///
/// What comes before the session is boxed, and gone while the session lives: a future is as large
/// as its largest moment, for as long as it lives, and of this one there are thousands.
fn upgraded(
    relay: Arc<Inner>,
    limits: Limits,
    client: SocketAddr,
    upgrade: OnUpgrade,
    outcome: Result<(Admitted, Option<SessionSlot>), CloseCode>,
) -> impl Future<Output = ()> {
    let beginning = Box::pin(begin(relay, limits, client, upgrade, outcome));
    async move {
        if let Some(session) = beginning.await {
            session.await;
        }
    }
}

/// The session; none for who is refused and has been told so.
async fn begin(
    relay: Arc<Inner>,
    limits: Limits,
    client: SocketAddr,
    upgrade: OnUpgrade,
    outcome: Result<(Admitted, Option<SessionSlot>), CloseCode>,
) -> Option<impl Future<Output = ()>> {
    let Some(connection) = upgrade.await.ok().and_then(Held::upgraded) else {
        relay.counters.count(Counter::UpgradeFailed);
        return None;
    };
    let (admitted, slot) = match outcome {
        Ok(admitted) => admitted,
        Err(code) => {
            relay.counters.refused(code);
            tracing::debug!(%client, reason = code.reason(), "session refused");
            session::refuse(connection, code).await;
            return None;
        }
    };
    let kept = relay.claim(&admitted).await;
    let slot = match (&kept, slot) {
        (None, None) => match relay.slot(client, &admitted) {
            Ok(slot) => Some(slot),
            Err(code) => {
                relay.counters.refused(code);
                session::refuse(connection, code).await;
                return None;
            }
        },
        (_, slot) => slot,
    };
    let Admitted {
        gateway,
        token_id: id,
        flyctl,
        ..
    } = admitted;
    let resumable = !flyctl && !limits.resume.is_zero();
    let register = || relay.resumes.register(&gateway.name, id.as_deref());
    let opening = session::Opening {
        registered: resumable.then(register).flatten(),
        gateway: gateway.clone(),
        token: id.is_some(),
        flyctl,
        limits,
        counters: relay.counters.clone(),
        shutdown: relay.shutdown.clone(),
        kept,
        slot,
    };
    let resumed = opening.kept.is_some();
    tracing::debug!(%client, gateway = gateway.name, id, resumed, "session opened");
    let session = session::run(connection, opening);
    Some(async move {
        let end = session.await;
        tracing::debug!(%client, gateway = gateway.name, id, end = end.reason(), "session ended");
    })
}

fn http_refusal(relay: &Inner, refusal: HttpRefusal) -> Response {
    relay.counters.count(match refusal {
        HttpRefusal::Host => Counter::HostRefused,
        HttpRefusal::NotAnUpgrade => Counter::NotAnUpgrade,
        HttpRefusal::Version => Counter::VersionRefused,
        HttpRefusal::Subprotocol => Counter::SubprotocolRefused,
    });
    let mut response = error(refusal.status(), refusal.words());
    if refusal.status() == StatusCode::UPGRADE_REQUIRED {
        let headers = response.headers_mut();
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(
            header::SEC_WEBSOCKET_VERSION,
            HeaderValue::from_static("13"),
        );
    }
    response
}

fn error(status: StatusCode, (code, message, hint): (&str, &str, &str)) -> Response {
    let body = json!({ "error": { "code": code, "message": message, "hint": hint } });
    (status, Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its future lives as long as the session: what is added to it is added to each of thousands.
    #[test]
    fn the_future_of_a_session_is_small() {
        let relay = Relay::new(
            &RelayConfig::new(),
            Arc::default(),
            CancellationToken::new(),
        );
        let upgrade = hyper::upgrade::on(http::Request::new(()));
        let client = ([192, 0, 2, 1], 1).into();
        let refused = Err(CloseCode::Idle);
        let future = upgraded(relay.0, Limits::default(), client, upgrade, refused);
        assert!(size_of_val(&future) <= 512, "{}", size_of_val(&future));
    }

    /// The example of RFC 6455, section 1.3.
    #[test]
    fn the_key_is_answered() {
        let answer = accept_key(b"dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(answer, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
