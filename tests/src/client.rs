//! A native client of a running system: a key of its own, a leased peer, a carrier.

use std::net::{Ipv6Addr, SocketAddr};

use carrier::{CarrierError, Handle, Transport, Trust, tls_config};
use serde::Deserialize;
use serde_json::json;
use tunnel::PrivateKey;
use url::Url;

use crate::system::System;

/// What control says when it leases a peer.
#[derive(Clone, Debug, Deserialize)]
pub struct Lease {
    /// The peer's name.
    pub name: String,
    /// With `/120`.
    pub address: String,
    /// The name server.
    pub dns: Ipv6Addr,
    /// Where WireGuard goes, and to whom.
    pub gateway: Gateway,
    /// The other way there.
    pub relay: Relay,
}

/// The gateway of a lease.
#[derive(Clone, Debug, Deserialize)]
pub struct Gateway {
    /// Base64.
    pub public_key: String,
    /// `address:port`.
    pub endpoint: SocketAddr,
}

/// The relay of a lease.
#[derive(Clone, Debug, Deserialize)]
pub struct Relay {
    /// `wss:`
    pub url: String,
    /// Opens the tunnel to the gateway for as long as the lease lasts.
    pub token: String,
}

/// A key that is leased as a peer.
#[derive(Clone, Debug)]
pub struct Client {
    /// Made here.
    pub key: PrivateKey,
    /// What control said.
    pub lease: Lease,
}

impl Client {
    /// Makes a key and leases it as a peer of the demo's organisation.
    ///
    /// # Panics
    /// When control refuses.
    pub fn lease(system: &System, session: &str) -> Client {
        let key = key();
        let path = format!("/api/v1/orgs/{}/peers", system.ready.org);
        let body = json!({ "public_key": key.public() }).to_string();
        let reply = system.api("POST", &path, Some(session), Some(&body));
        assert_eq!(reply.status, 200, "{}", reply.body);
        let lease = serde_json::from_value(reply.json).expect("a lease");
        Client { key, lease }
    }

    /// Its address.
    ///
    /// # Panics
    /// When the lease holds none.
    pub fn address(&self) -> Ipv6Addr {
        let address = self.lease.address.split('/').next().unwrap_or_default();
        address.parse().expect("an address")
    }

    /// What its tunnel is made of.
    ///
    /// # Panics
    /// When the gateway's key is none.
    pub fn config(&self) -> tunnel::Config {
        tunnel::Config {
            private_key: self.key.clone(),
            peer: self
                .lease
                .gateway
                .public_key
                .parse()
                .expect("the gateway's key"),
            preshared: None,
            addresses: vec![self.address()],
            dns: Some(self.lease.dns),
            mtu: 1420,
            keepalive: Some(15),
            seed: 1,
        }
    }

    /// WireGuard over UDP.
    pub fn udp(&self) -> Transport {
        Transport::Udp {
            endpoint: self.lease.gateway.endpoint,
        }
    }

    /// WireGuard through the relay.
    ///
    /// # Panics
    /// When the system's certificate cannot be read.
    pub fn websocket(&self, system: &System) -> Transport {
        Transport::WebSocket {
            url: Url::parse(&self.lease.relay.url).expect("the relay's URL"),
            token: Some(self.lease.relay.token.clone()),
            tls: tls_config(&Trust::PemFile(system.certificate())).expect("the certificate"),
        }
    }

    /// WireGuard through a relay of another certificate.
    ///
    /// # Panics
    /// When `trust` cannot be read.
    pub fn through(&self, relay: &Url, trust: &Trust) -> Transport {
        Transport::WebSocket {
            url: relay.clone(),
            token: Some(self.lease.relay.token.clone()),
            tls: tls_config(trust).expect("roots"),
        }
    }

    /// Starts a carrier and waits for its session.
    ///
    /// # Errors
    /// What the carrier says.
    pub async fn connect(&self, transport: Transport) -> Result<Handle, CarrierError> {
        let handle = carrier::start(self.config(), transport).await?;
        handle.ready().await?;
        Ok(handle)
    }
}

/// A key from the operating system's randomness.
///
/// # Panics
/// Without any.
pub fn key() -> PrivateKey {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("randomness");
    PrivateKey::from_bytes(bytes)
}
