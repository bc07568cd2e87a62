//! The store behind HTTP: JSON under `/api/v1`.
//!
//! Absent: cookies, CORS for origins that are not listed, secrets in paths or queries, and any
//! difference between an organisation of others and one that does not exist.

mod authorities;
mod body;
mod device;
mod door;
mod handlers;
mod limit;
mod refusal;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware,
    routing::{delete, get, post},
};
use names::{Directory, NetworkView};
use sixpn::NetworkId;
use wire::PublicKey;

use crate::{Error, Signer, Store};

pub use door::{Hosts, guard_hosts};

/// What time it is. A driver gives the system's; tests give their own.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// The largest request body.
const MAX_BODY: usize = 16 * 1024;

/// The gateway that peers are sent to.
#[derive(Debug, Clone)]
pub struct GatewayInfo {
    /// Its name, the last part of the relay's path.
    pub name: String,
    /// Its WireGuard key.
    pub public_key: PublicKey,
    /// Where it listens for UDP, as peers are told: `host:port`.
    pub endpoint: String,
}

/// What the API says and who may ask it.
#[derive(Clone)]
pub struct Config {
    /// The gateway that peers are sent to.
    pub gateway: GatewayInfo,
    /// Where the relay listens: `wss://host:port`. When that host is one of `hosts`, peers are told
    /// the host that they asked, so that a page's WebSocket goes where the page came from.
    pub relay_url: String,
    /// The values of `Host` that are answered.
    pub hosts: Hosts,
    /// Origins of pages on other hosts that may call the API: `https://console.example.com`.
    pub origins: Vec<String>,
    /// Called with each WireGuard key that stops being a peer's, so that gateways forget it.
    pub revoked: Arc<dyn Fn(PublicKey) + Send + Sync>,
}

/// The control plane of one process.
pub struct Control {
    store: Arc<Store>,
    config: Config,
    signer: Signer,
    clock: Clock,
    attempts: Mutex<limit::Attempts>,
    devices: Mutex<device::Devices>,
}

impl Control {
    /// A control plane over a store.
    ///
    /// # Errors
    /// When the key that signs relay tokens can be neither read nor made.
    pub fn new(store: Arc<Store>, config: Config, clock: Clock) -> Result<Control, Error> {
        Ok(Control {
            signer: store.token_signer()?,
            store,
            config,
            clock,
            attempts: Mutex::default(),
            devices: Mutex::default(),
        })
    }

    /// What there is.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// What signs relay tokens; relays are given its public half.
    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    fn now(&self) -> SystemTime {
        (self.clock)()
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("gateway", &self.config.gateway)
            .field("relay_url", &self.config.relay_url)
            .finish_non_exhaustive()
    }
}

/// The names of every network of the store. A store that fails shows no network: askers are
/// refused, and the failure is logged.
impl Directory for Control {
    fn view(&self, network: NetworkId) -> Option<Arc<NetworkView>> {
        self.store
            .network_view(network, self.now())
            .unwrap_or_else(|error| {
                tracing::error!(%error, %network, "no view of a network");
                None
            })
    }
}

/// The API, whole, below `/api/v1`. It guards its own door; other routers of the same listener are
/// wrapped with [`guard_hosts`].
pub fn router(control: Arc<Control>) -> Router {
    let api = Router::new()
        .route("/status", get(handlers::status))
        .route("/login", post(handlers::login))
        .route("/login-tokens", post(handlers::create_login_token))
        .route("/device", post(device::begin))
        .route("/device/login", post(device::fetch))
        .route("/device/look", post(device::look))
        .route("/device/answer", post(device::decide))
        .route("/session", delete(handlers::end_session))
        .route("/orgs", get(handlers::orgs))
        .route("/orgs/{org}/apps", get(handlers::apps))
        .route(
            "/orgs/{org}/peers",
            get(handlers::list_peers).post(handlers::lease_peer),
        )
        .route("/orgs/{org}/peers/{name}", delete(handlers::remove_peer))
        .route(
            "/orgs/{org}/ssh/certificates",
            post(handlers::sign_certificate),
        )
        .route("/orgs/{org}/ssh/authorities", get(authorities::list))
        .route(
            "/orgs/{org}/ssh/authorities/rotate",
            post(authorities::rotate),
        )
        .route(
            "/orgs/{org}/ssh/authorities/retire",
            post(authorities::retire),
        )
        .fallback(handlers::not_found)
        .method_not_allowed_fallback(handlers::method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(
            Arc::clone(&control),
            door::guard_origins,
        ))
        .layer(middleware::from_fn_with_state(
            control.config.hosts.clone(),
            door::guard,
        ))
        .layer(middleware::from_fn(door::protect))
        .with_state(control);
    Router::new().nest("/api/v1", api)
}
