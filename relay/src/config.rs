//! What a relay is told before it opens anything.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use wire::PublicKey;

/// A gateway that sessions may be opened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatewayTarget {
    /// Where it takes WireGuard datagrams.
    pub endpoint: SocketAddr,
    /// Its WireGuard public key: mac1 of an initiation is checked against it.
    pub public_key: PublicKey,
}

/// The configuration of a relay.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// Gateways by the name in `/v1/tunnel/{gateway}`.
    pub gateways: HashMap<String, GatewayTarget>,
    /// The gateway of flyctl's byte stream on `/`; without one the stream is not served.
    pub flyctl_gateway: Option<String>,
    /// Ed25519 public keys; a token is valid under any of them.
    pub token_keys: Vec<[u8; 32]>,
    /// Origins whose pages may open sessions, as a browser writes them: `https://host:port`.
    /// A client that sends no `Origin` is no page.
    pub allowed_origins: Vec<String>,
    /// Names and addresses that a `Host` header may carry: see [`crate::hosts::AllowedHosts`].
    pub allowed_hosts: Vec<String>,
    /// What a session, a source and the relay may use.
    pub limits: Limits,
    /// The clock that token expiry is read against.
    pub clock: fn() -> SystemTime,
}

impl RelayConfig {
    /// A relay that serves no gateway, knows no token key and allows no host: all of it is to be
    /// filled in. The clock is the system's.
    pub fn new() -> RelayConfig {
        RelayConfig {
            gateways: HashMap::new(),
            flyctl_gateway: None,
            token_keys: Vec::new(),
            allowed_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            limits: Limits::default(),
            clock: system_clock,
        }
    }
}

impl Default for RelayConfig {
    fn default() -> RelayConfig {
        RelayConfig::new()
    }
}

#[expect(clippy::disallowed_methods, reason = "the default clock of the driver")]
fn system_clock() -> SystemTime {
    SystemTime::now()
}

/// Bounds on everything that a session holds or waits for.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Sessions in all.
    pub sessions: usize,
    /// Sessions from one IPv4 address or one IPv6 /64.
    pub sessions_per_source: usize,
    /// Sessions under tokens of one id.
    pub sessions_per_token: usize,
    /// What a session may send, and be sent, in a second, in bytes of datagrams; half a second's
    /// worth at once. None is no limit.
    pub bytes_per_second: Option<u32>,
    /// The same in datagrams.
    pub datagrams_per_second: Option<u32>,
    /// A session that is not proven by then is closed.
    pub unproven: Duration,
    /// So long a session whose connection was lost waits for its client to come back; with zero
    /// none does.
    pub resume: Duration,
    /// After `shutdown`, sessions go on for a part of this time, each for another, and their
    /// clients know for how long; with zero all of them end at once.
    pub drain: Duration,
    /// A session without a datagram for this long is closed.
    pub idle: Duration,
    /// A client that sends no frame for this long is asked by a WebSocket ping.
    pub ping_after: Duration,
    /// A client that sends no frame, not even a pong, for this long is closed.
    pub silent: Duration,
    /// A client that takes nothing for this long is closed.
    pub write_timeout: Duration,
    /// What waits in each direction, in bytes.
    pub queue_bytes: usize,
    /// Data that has waited longer than this is dropped.
    pub queue_age: Duration,
    /// The message size while a client is slower than its gateway: what is handed to TLS can not
    /// be dropped any more.
    pub backlogged_message: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            sessions: 10_000,
            sessions_per_source: 1_000,
            sessions_per_token: 64,
            bytes_per_second: None,
            datagrams_per_second: None,
            unproven: Duration::from_secs(30),
            resume: Duration::from_secs(30),
            drain: Duration::ZERO,
            idle: Duration::from_secs(600),
            ping_after: Duration::from_secs(30),
            silent: Duration::from_secs(75),
            write_timeout: Duration::from_secs(15),
            queue_bytes: 512 * 1024,
            queue_age: Duration::from_millis(200),
            backlogged_message: 16 * 1024,
        }
    }
}
