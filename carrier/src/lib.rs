//! Native transports that drive a [`tunnel::Tunnel`] with tokio: UDP, WebSocket over TLS, and
//! the two raced.
//!
//! One task owns the tunnel. Streams share a bounded buffer each with it, everything else asks it
//! through a bounded channel; there is no lock around the tunnel, and nothing polls by sleeping.
//! This crate knows no SSH and no zone.

mod clock;
mod datagrams;
mod driver;
mod error;
mod handle;
mod link;
mod stats;
mod stream;
mod tls;

use std::{net::SocketAddr, sync::Arc};

use tokio::io::{AsyncRead, AsyncWrite};
use url::Url;

pub use datagrams::Datagrams;
pub use error::{CarrierError, Step};
pub use handle::{Event, Handle, UdpSocket};
pub use stats::{Drop as DropReason, LinkStats, Stats};
pub use stream::{TcpListener, TcpStream};
pub use tls::{Trust, tls_config};

/// The way to the gateway.
#[derive(Clone)]
pub enum Transport {
    /// WireGuard as it is, over UDP.
    Udp {
        /// Where the gateway listens.
        endpoint: SocketAddr,
    },
    /// WireGuard inside the WebSocket of a relay.
    WebSocket {
        /// `wss://host:port/v1/tunnel/GATEWAY`; `ws:` for loopback alone.
        url: Url,
        /// What the relay asks for, never shown.
        token: Option<String>,
        /// See [`tls_config`].
        tls: Arc<rustls::ClientConfig>,
    },
    /// UDP where it gets through, the relay where it does not, found out anew whenever data goes
    /// unanswered.
    Race {
        /// Where the gateway listens.
        endpoint: SocketAddr,
        /// As of [`Transport::WebSocket`].
        url: Url,
        /// What the relay asks for, never shown.
        token: Option<String>,
        /// See [`tls_config`].
        tls: Arc<rustls::ClientConfig>,
    },
}

/// The token is a secret and is not shown.
impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Transport::Udp { endpoint } => {
                f.debug_struct("Udp").field("endpoint", endpoint).finish()
            }
            Transport::WebSocket { url, .. } => f
                .debug_struct("WebSocket")
                .field("host", &url.host_str())
                .finish_non_exhaustive(),
            Transport::Race { endpoint, url, .. } => f
                .debug_struct("Race")
                .field("endpoint", endpoint)
                .field("host", &url.host_str())
                .finish_non_exhaustive(),
        }
    }
}

/// The HTTP proxy that the environment (`HTTPS_PROXY`, `NO_PROXY`) puts between here and a relay,
/// as `host:port`. Every WebSocket of this crate goes through it.
pub fn proxy_for(relay: &Url) -> Result<Option<String>, CarrierError> {
    let host = relay.host().ok_or_else(|| CarrierError::RelayUrl {
        reason: "it names no host".to_owned(),
    })?;
    let proxy = link::Proxy::of_environment(&host.to_owned())?;
    Ok(proxy.map(|proxy| proxy.to_string()))
}

/// A byte stream to the server of an `https:` URL, TLS inside, by the way that a relay is dialled:
/// name, HTTP proxy of the environment, TCP, TLS, each with its time limit and its error.
pub async fn reach(
    server: &Url,
    tls: Arc<rustls::ClientConfig>,
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, CarrierError> {
    let target = link::Target::new(server.clone(), None, tls)?;
    target.reach().await
}

/// Starts a carrier on the current tokio runtime and sends the first handshake.
///
/// Over a WebSocket alone this returns when the relay has accepted the session: what is wrong with the
/// relay, its certificate or the token shows here. [`Handle::ready`] waits for the gateway.
pub async fn start(config: tunnel::Config, transport: Transport) -> Result<Handle, CarrierError> {
    let (link, target) = match transport {
        Transport::Udp { endpoint } => (link::Link::Udp(link::UdpLink::open(endpoint)?), None),
        Transport::WebSocket { url, token, tls } => {
            let target = Arc::new(link::Target::new(url, token, tls)?);
            let link = Box::pin(link::WebSocketLink::open(Arc::clone(&target))).await?;
            (link::Link::WebSocket(link), Some(target))
        }
        Transport::Race {
            endpoint,
            url,
            token,
            tls,
        } => {
            let target = Arc::new(link::Target::new(url, token, tls)?);
            let link = match link::RaceLink::open(endpoint, Arc::clone(&target)) {
                Ok(link) => link::Link::Race(Box::new(link)),
                // Without any UDP there is nothing to race.
                Err(error) => {
                    tracing::debug!(%error, "no UDP socket: the relay alone");
                    let link = Box::pin(link::WebSocketLink::open(Arc::clone(&target))).await?;
                    link::Link::WebSocket(link)
                }
            };
            (link, Some(target))
        }
    };
    Ok(driver::spawn(config, link, target))
}
