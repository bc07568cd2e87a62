//! A key of this process, leased as a peer: what a tunnel is made of.

use std::{
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use carrier::{Event, Handle, Transport, Trust};
use http::Method;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast;
use tunnel::PrivateKey;

use super::{Way, explain};
use crate::{api::Api, client::args::Scope};

/// A lease lasts ten minutes.
const RENEW_EVERY: Duration = Duration::from_secs(180);

/// After a renewal that failed.
const RENEW_AGAIN: Duration = Duration::from_secs(15);

/// Giving a lease back is a courtesy: it expires anyway.
const RELEASE_LIMIT: Duration = Duration::from_secs(3);

/// A peer as control leases it.
#[derive(Debug, Deserialize)]
pub(crate) struct Lease {
    name: String,
    address: String,
    dns: Ipv6Addr,
    gateway: Gateway,
    relay: Relay,
    host_cas: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Gateway {
    public_key: String,
    endpoint: String,
}

#[derive(Deserialize)]
struct Relay {
    url: String,
    token: String,
}

/// The token is a secret and is not shown.
impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Lease {
    /// The peer's address, without its prefix length.
    pub(crate) fn address(&self) -> anyhow::Result<Ipv6Addr> {
        let address = self.address.split('/').next().unwrap_or_default();
        address
            .parse()
            .with_context(|| format!("control leased the address {:?}", self.address))
    }

    /// The authorities trusted for the organisation's hosts.
    pub(crate) fn host_cas(&self) -> anyhow::Result<Vec<ssh_key::PublicKey>> {
        host_cas(self.host_ca_lines())
    }

    /// The same, as control wrote them.
    pub(crate) fn host_ca_lines(&self) -> &[String] {
        &self.host_cas
    }
}

/// A key of this process, leased as a peer.
pub(crate) struct Peer {
    /// Whoever leased it.
    pub(crate) api: Api,
    /// The organisation.
    pub(crate) org: String,
    /// What control said.
    pub(crate) lease: Lease,
    key: PrivateKey,
    /// What the relay's certificate is compared with.
    trust: Trust,
}

impl Peer {
    /// Makes a key and leases it.
    pub(crate) async fn lease(scope: &Scope) -> anyhow::Result<Peer> {
        let (api, org) = Box::pin(scope.open()).await?;
        let trust = api.trust();
        let key = PrivateKey::from_bytes(random()?);
        let lease = lease(&api, &org, &key).await?;
        Ok(Peer {
            api,
            org,
            lease,
            key,
            trust,
        })
    }

    /// Starts its tunnel, without waiting for the gateway.
    pub(crate) async fn start(&self, transport: Transport) -> anyhow::Result<Handle> {
        let config = tunnel::Config {
            peer: self.lease.gateway.public_key.parse().map_err(|_| {
                anyhow!("control named a gateway without a key\nhint: restart `underpass up`")
            })?,
            preshared: None,
            addresses: vec![self.lease.address()?],
            dns: Some(self.lease.dns),
            mtu: 1420,
            keepalive: Some(15),
            seed: u64::from_ne_bytes(random()?),
            private_key: self.key.clone(),
        };
        carrier::start(config, transport)
            .await
            .map_err(|error| explain(&error))
    }

    /// Where the gateway listens for UDP.
    pub(crate) fn endpoint(&self) -> &str {
        &self.lease.gateway.endpoint
    }

    /// The relay.
    pub(crate) fn relay(&self) -> anyhow::Result<url::Url> {
        url::Url::parse(&self.lease.relay.url)
            .context("control named a relay without a URL\nhint: restart `underpass up`")
    }

    /// What opens the relay.
    pub(crate) fn token(&self) -> String {
        self.lease.relay.token.clone()
    }

    /// UDP alone.
    pub(crate) async fn udp(&self) -> anyhow::Result<Transport> {
        let endpoint = lookup(self.endpoint()).await?;
        Ok(Transport::Udp { endpoint })
    }

    /// The relay alone.
    pub(crate) fn websocket(&self) -> anyhow::Result<Transport> {
        Ok(Transport::WebSocket {
            url: self.relay()?,
            token: Some(self.token()),
            tls: self.tls()?,
        })
    }

    /// What the relay's certificate has to pass.
    pub(crate) fn tls(&self) -> anyhow::Result<Arc<rustls::ClientConfig>> {
        carrier::tls_config(&self.trust).map_err(|error| explain(&error))
    }

    pub(super) async fn transport(&self, way: Way) -> anyhow::Result<Transport> {
        let endpoint = match way {
            Way::Udp => return self.udp().await,
            Way::Websockets => return self.websocket(),
            Way::Auto => lookup(self.endpoint()).await,
        };
        // A gateway whose name cannot be resolved here is reached through the relay.
        let Ok(endpoint) = endpoint else {
            return self.websocket();
        };
        Ok(Transport::Race {
            endpoint,
            url: self.relay()?,
            token: Some(self.token()),
            tls: self.tls()?,
        })
    }

    /// Keeps the lease; `renewed` hears of each new token of the relay. It is renewed early when
    /// `events` tell that the machine slept or that the gateway is silent: it may be lost already.
    /// Ends when it is lost: it ended while this machine slept, or somebody removed the peer, and
    /// what control leases now is another address.
    pub(crate) async fn keep(
        &self,
        mut events: Option<broadcast::Receiver<Event>>,
        renewed: impl Fn(String),
    ) {
        let mut after = RENEW_EVERY;
        loop {
            tokio::select! {
                () = tokio::time::sleep(after) => {}
                () = doubt(&mut events) => {}
            }
            after = match lease(&self.api, &self.org, &self.key).await {
                Ok(lease) if lease.address != self.lease.address => return,
                Ok(lease) => {
                    renewed(lease.relay.token);
                    RENEW_EVERY
                }
                Err(error) => {
                    tracing::warn!("the lease was not renewed: {error:#}");
                    RENEW_AGAIN
                }
            };
            // Doubts that came up meanwhile are settled.
            events = events.map(|events| events.resubscribe());
        }
    }

    /// Gives the lease back.
    pub(crate) async fn release(&self) {
        let path = format!("/api/v1/orgs/{}/peers/{}", self.org, self.lease.name);
        let gone = self
            .api
            .call::<serde_json::Value>(Method::DELETE, &path, &());
        if let Ok(Err(error)) = tokio::time::timeout(RELEASE_LIMIT, gone).await {
            tracing::debug!("the lease was not given back: {error:#}");
        }
    }
}

/// Reads authorities as control writes them.
pub(super) fn host_cas(lines: &[String]) -> anyhow::Result<Vec<ssh_key::PublicKey>> {
    let keys = lines.iter();
    keys.map(|line| ssh_key::PublicKey::from_openssh(line).context("a host CA is unreadable"))
        .collect()
}

/// What [`Peer::keep`] ends in.
pub(crate) fn lease_lost() -> anyhow::Error {
    anyhow!(
        "this command's address was given away (lease_lost)\n\
         hint: it slept too long or its peer was removed; run it again"
    )
}

/// Waits for an event that makes it doubtful whether the lease still stands.
async fn doubt(events: &mut Option<broadcast::Receiver<Event>>) {
    let Some(events) = events else {
        return std::future::pending().await;
    };
    loop {
        match events.recv().await {
            Ok(Event::Woke | Event::HandshakeFailed { .. }) => return,
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return std::future::pending().await,
        }
    }
}

async fn lease(api: &Api, org: &str, key: &PrivateKey) -> anyhow::Result<Lease> {
    let path = format!("/api/v1/orgs/{org}/peers");
    let body = json!({ "public_key": key.public() });
    api.call(Method::POST, &path, &body).await
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).context("no randomness")?;
    Ok(bytes)
}

async fn lookup(text: &str) -> anyhow::Result<SocketAddr> {
    let found = tokio::net::lookup_host(text).await;
    match found.map(|mut addresses| addresses.next()) {
        Ok(Some(address)) => Ok(address),
        Ok(None) => bail!("the gateway's name {text} has no address\nhint: try --websockets"),
        Err(error) => Err(anyhow!(
            "the gateway's name {text} cannot be resolved: {error}\nhint: try --websockets"
        )),
    }
}
