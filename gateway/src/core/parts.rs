//! What goes into a gateway, and what it tells.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use sixpn::Prefix;
use tunnel::{Instant, PrivateKey};
use wire::PublicKey;

/// What a gateway is made of.
#[derive(Debug)]
pub struct Config {
    /// Its private key.
    pub key: PrivateKey,
    /// Relays whose sessions share an address: budgets count them by port.
    pub relays: Vec<IpAddr>,
    /// Random bits.
    pub seed: u64,
    /// Bounds.
    pub limits: Limits,
}

/// Bounds of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Peers at a time.
    pub peers: usize,
    /// Peers that have not completed a handshake. Beyond half of them, each new one needs a cookie.
    pub unproven: usize,
    /// Handshake messages per second; beyond that, each needs a cookie.
    pub handshakes_per_second: u32,
    /// The largest packet that is carried.
    pub mtu: usize,
    /// Bytes that wait for the socket.
    pub transmit_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            peers: 16_384,
            unproven: 1024,
            handshakes_per_second: 200,
            mtu: 1420,
            transmit_bytes: 4 << 20,
        }
    }
}

/// What the directory says about a key.
#[derive(Debug, Clone)]
pub enum Lookup {
    /// It is a peer.
    Known(Grant),
    /// Nobody knows it.
    Unknown,
    /// Nobody can be asked.
    Unavailable,
}

/// What a peer may be.
#[derive(Clone, PartialEq, Eq)]
pub struct Grant {
    /// Its name, for people.
    pub name: String,
    /// Its public key.
    pub key: PublicKey,
    /// The addresses that are its own: a /120 of a peer, a /112 of an instance.
    pub range: Prefix,
    /// A preshared key.
    pub preshared: Option<[u8; 32]>,
    /// The end of its lease.
    pub expires: Option<Instant>,
}

impl std::fmt::Debug for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grant")
            .field("name", &self.name)
            .field("key", &self.key)
            .field("range", &self.range)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// Why a peer is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemovedWhy {
    /// It was not heard for ten minutes.
    Idle,
    /// It never completed a handshake.
    Unproven,
    /// Its lease is over.
    Expired,
    /// The directory no longer knows it.
    Revoked,
    /// The directory gave it another range or preshared key.
    Changed,
}

/// What happened to a peer that has proven itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GatewayEvent {
    /// A session stands: the first one, or a new one.
    Session {
        /// Its key.
        key: PublicKey,
        /// Its name.
        name: String,
        /// Where it is.
        endpoint: Option<SocketAddr>,
    },
    /// It does not answer. What is sent to it is reported as unreachable until it is heard.
    Silent {
        /// Its key.
        key: PublicKey,
        /// Its name.
        name: String,
    },
    /// It is forgotten.
    Removed {
        /// Its key.
        key: PublicKey,
        /// Its name.
        name: String,
        /// Why.
        why: RemovedWhy,
    },
}

/// One peer as `wireguard list` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its key.
    pub key: PublicKey,
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub range: Prefix,
    /// Where its last authentic message came from.
    pub endpoint: Option<SocketAddr>,
    /// A session stands, and it answers.
    pub connected: bool,
    /// Time since the last handshake.
    pub last_handshake: Option<Duration>,
    /// Time since the last authentic message.
    pub last_received: Option<Duration>,
    /// Bytes of packets received from it.
    pub rx_bytes: u64,
    /// Bytes of packets sent to it.
    pub tx_bytes: u64,
}
