//! One function per request.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use axum::{Json, extract::State, response::IntoResponse};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Control,
    body::{Body, Session, Source, Within},
    door,
    refusal::Refusal,
};
use crate::{
    AppRecord, Error, Forwarding, LEASE_TTL, Lease, Org, Secret, Store, UserCertificate,
    store::{read_address, unix},
};

pub(super) type Answer<T = Value> = Result<Json<T>, Refusal>;

/// A permanent peer's relay token; it asks again for the next.
const PERMANENT_TOKEN: Duration = Duration::from_secs(24 * 3600);

const HOUR: Duration = Duration::from_secs(3600);

impl Control {
    /// Runs a question to the store where blocking is allowed.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        question: impl FnOnce(&Store) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || question(&store))
            .await
            .unwrap_or_else(|error| Err(Error::Internal(format!("store task: {error}"))))
    }

    /// The organisation of a path, if it is the asker's.
    pub(super) async fn org(
        self: &Arc<Self>,
        session: &Session,
        name: String,
    ) -> Result<Org, Error> {
        let identity = session.identity.clone();
        self.run(move |store| store.org_of(&identity, &name)).await
    }
}

pub(super) async fn status() -> Json<Value> {
    Json(json!({ "name": "underpass", "version": env!("CARGO_PKG_VERSION") }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Login {
    token: String,
}

pub(super) async fn login(
    State(control): State<Arc<Control>>,
    Source(source): Source,
    Body(login): Body<Login>,
) -> Answer {
    let now = control.now();
    let attempts = || {
        control
            .attempts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    };
    attempts()
        .take(source, now)
        .map_err(Refusal::too_many_attempts)?;
    let token = Secret::new(login.token);
    let session = control
        .run(move |store| store.redeem(token.reveal(), now))
        .await?;
    attempts().succeeded(source);
    tracing::info!(user = session.user, "logged in");
    Ok(logged_in(session))
}

/// What a login is answered with, however it came about.
pub(super) fn logged_in(session: crate::Session) -> Json<Value> {
    Json(json!({
        "session": session.bearer.reveal(),
        "user": session.user,
        "orgs": names(session.orgs),
        "expires": unix(session.expires),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

pub(super) async fn create_login_token(
    State(control): State<Arc<Control>>,
    session: Session,
    Body(Nothing {}): Body<Nothing>,
) -> Answer {
    let now = control.now();
    let token = control
        .run(move |store| store.create_own_login_token(&session.identity, now))
        .await?;
    Ok(Json(json!({
        "token": token.token.reveal(),
        "expires": unix(token.expires),
    })))
}

pub(super) async fn end_session(
    State(control): State<Arc<Control>>,
    session: Session,
) -> Result<StatusCode, Refusal> {
    control
        .run(move |store| store.end_session(session.bearer.reveal()))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn orgs(State(control): State<Arc<Control>>, session: Session) -> Answer {
    let orgs = control
        .run(move |store| store.orgs_of(&session.identity))
        .await?;
    Ok(Json(json!({ "orgs": names(orgs) })))
}

pub(super) async fn apps(
    State(control): State<Arc<Control>>,
    session: Session,
    Within(org): Within<String>,
) -> Answer {
    let org = control.org(&session, org).await?;
    let apps = control.run(move |store| store.apps(org.id)).await?;
    Ok(Json(
        json!({ "apps": apps.iter().map(app).collect::<Vec<_>>() }),
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LeaseRequest {
    public_key: String,
    name: Option<String>,
    #[serde(default)]
    permanent: bool,
}

#[derive(Serialize)]
struct LeaseAnswer {
    name: String,
    address: String,
    network: String,
    dns: String,
    gateway: GatewayAnswer,
    relay: RelayAnswer,
    host_cas: Vec<String>,
    expires: Option<i64>,
}

#[derive(Serialize)]
struct GatewayAnswer {
    name: String,
    public_key: String,
    endpoint: String,
}

#[derive(Serialize)]
struct RelayAnswer {
    url: String,
    token: String,
}

pub(super) async fn lease_peer(
    State(control): State<Arc<Control>>,
    session: Session,
    Within(org): Within<String>,
    headers: HeaderMap,
    Body(asked): Body<LeaseRequest>,
) -> Result<impl IntoResponse, Refusal> {
    let org = control.org(&session, org).await?;
    let key = asked
        .public_key
        .parse()
        .map_err(|_| Error::PeerKeyInvalid)?;
    let now = control.now();
    let ttl = (!asked.permanent).then_some(LEASE_TTL);
    let (lease, host_cas) = control
        .run(move |store| {
            let lease = store.lease_peer(org.id, asked.name.as_deref(), key, now, ttl)?;
            Ok((lease, store.host_cas(org.id)?))
        })
        .await?;
    let id = format!("{}/{}", org.name, lease.name);
    let token_expires = lease.expires.unwrap_or(now + PERMANENT_TOKEN);
    let gateway = &control.config.gateway;
    let token = control.signer.sign(&gateway.name, &id, token_expires);
    Ok(Json(LeaseAnswer {
        network: lease.network.prefix().to_string(),
        dns: lease.network.dns().to_string(),
        gateway: GatewayAnswer {
            name: gateway.name.clone(),
            public_key: gateway.public_key.to_string(),
            endpoint: gateway.endpoint.clone(),
        },
        relay: RelayAnswer {
            url: relay_url(&control, door::host(&headers)),
            token: token.reveal().to_owned(),
        },
        host_cas,
        expires: lease.expires.map(unix),
        address: lease.address.to_string(),
        name: lease.name,
    }))
}

pub(super) async fn list_peers(
    State(control): State<Arc<Control>>,
    session: Session,
    Within(org): Within<String>,
) -> Answer {
    let org = control.org(&session, org).await?;
    let now = control.now();
    let peers = control
        .run(move |store| store.list_peers(org.id, now))
        .await?;
    Ok(Json(
        json!({ "peers": peers.iter().map(peer).collect::<Vec<_>>() }),
    ))
}

pub(super) async fn remove_peer(
    State(control): State<Arc<Control>>,
    session: Session,
    Within((org, name)): Within<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let org = control.org(&session, org).await?;
    let now = control.now();
    let key = control
        .run(move |store| store.remove_peer(org.id, &name, now))
        .await?;
    (control.config.revoked)(key);
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CertificateRequest {
    public_key: String,
    peer: Option<String>,
    principals: Option<Vec<String>>,
    hours: Option<i64>,
    #[serde(default)]
    port_forwarding: bool,
    #[serde(default)]
    agent_forwarding: bool,
}

pub(super) async fn sign_certificate(
    State(control): State<Arc<Control>>,
    session: Session,
    Within(org): Within<String>,
    Body(asked): Body<CertificateRequest>,
) -> Answer {
    let org = control.org(&session, org).await?;
    let source = match &asked.peer {
        Some(peer) => Some(read_address(peer).ok_or(Error::PeerUnknown)?),
        None => None,
    };
    let (default, max) = if source.is_some() { (1, 1) } else { (24, 72) };
    let hours = u32::try_from(asked.hours.unwrap_or(default))
        .ok()
        .filter(|hours| (1..=max).contains(hours))
        .ok_or(Error::HoursOutOfRange { max: max.into() })?;
    let now = control.now();
    let (certificate, host_cas) = control
        .run(move |store| {
            let certificate = UserCertificate {
                public_key: &asked.public_key,
                user: session.identity.user(),
                principals: asked.principals.as_deref(),
                source,
                ttl: HOUR * hours,
                forwarding: Forwarding {
                    ports: asked.port_forwarding,
                    agent: asked.agent_forwarding,
                },
            };
            let certificate = store.sign_user_certificate(org.id, &certificate, now)?;
            Ok((certificate, store.host_cas(org.id)?))
        })
        .await?;
    tracing::info!(
        key_id = certificate.key_id(),
        serial = certificate.serial(),
        "signed a user certificate"
    );
    Ok(Json(json!({
        "certificate": certificate.to_openssh().map_err(Error::from)?,
        "expires": certificate.valid_before(),
        "host_cas": host_cas,
    })))
}

pub(super) async fn not_found() -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "not_found",
        "there is nothing at this path",
        "this server and the client may be of different versions",
    )
}

pub(super) async fn method_not_allowed() -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path takes other methods",
        "this server and the client may be of different versions",
    )
}

fn names(orgs: Vec<String>) -> Vec<Value> {
    orgs.into_iter()
        .map(|name| json!({ "name": name }))
        .collect()
}

fn app(app: &AppRecord) -> Value {
    let instances = app.instances.iter().map(|instance| {
        json!({
            "id": instance.id,
            "region": instance.region,
            "address": instance.address.address().to_string(),
            "started": instance.started,
        })
    });
    json!({ "name": app.name, "instances": instances.collect::<Vec<_>>() })
}

fn peer(peer: &Lease) -> Value {
    json!({
        "name": peer.name,
        "public_key": peer.key.to_string(),
        "address": peer.address.to_string(),
        "expires": peer.expires.map(unix),
    })
}

/// Where the asker finds the relay: at the host it asked, when the relay is behind the same door.
fn relay_url(control: &Control, asked: Option<&str>) -> String {
    let base = control.config.relay_url.trim_end_matches('/');
    let (scheme, host) = base.split_once("://").unwrap_or(("wss", base));
    let host = match asked {
        Some(asked) if control.config.hosts.allows(host) => asked,
        _ => host,
    };
    format!(
        "{scheme}://{host}/v1/tunnel/{}",
        control.config.gateway.name
    )
}
