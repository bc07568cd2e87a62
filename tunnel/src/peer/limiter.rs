//! How many handshakes an endpoint takes, and the cookies it asks for beyond that.
//!
//! The engine's own limiter counts a handshake once per look at it, forgets only when told to,
//! and binds a cookie to the address alone, which everybody behind one relay shares. Here each
//! handshake is counted once, by the driver's clock, and a cookie is bound to address and port.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use boringtun::{
    noise::{Packet, TunnResult, rate_limiter::RateLimiter},
    x25519,
};
use wire::PublicKey;

use super::PeerError;
use crate::Instant;

const WINDOW: Duration = Duration::from_secs(1);

/// The limit on the handshake messages of one endpoint, shared by its peers.
pub struct Limiter {
    /// Asks for a cookie always.
    strict: RateLimiter,
    /// Looks at the first MAC alone; the peers carry it, so that nothing is counted twice.
    lax: Arc<RateLimiter>,
    per_second: u32,
    window: Mutex<(Instant, u32)>,
}

/// What to do with a datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Go on with it.
    Admitted {
        /// It carries a cookie of ours: the sender receives what is sent to its address.
        proven: bool,
    },
    /// Send this back where the datagram came from, and forget the datagram.
    Cookie(Vec<u8>),
    /// Forget the datagram.
    Refused(PeerError),
}

impl Limiter {
    /// A limiter for the endpoint with this key: beyond so many handshake messages within a
    /// second, a cookie is asked for.
    pub fn new(local: &PublicKey, per_second: u32) -> Limiter {
        let public = x25519::PublicKey::from(local.0);
        Limiter {
            strict: RateLimiter::new(&public, 0),
            lax: Arc::new(RateLimiter::new(&public, u64::MAX)),
            per_second,
            window: Mutex::new((Instant::ZERO, 0)),
        }
    }

    /// Looks at a datagram: only handshake messages count, and only those with a valid first
    /// MAC. Call it once per datagram.
    pub fn admit(&self, now: Instant, from: SocketAddr, datagram: &[u8]) -> Admission {
        match self.lax.verify_packet(None, datagram, &mut []) {
            Ok(Packet::HandshakeInit(_) | Packet::HandshakeResponse(_)) => {}
            Ok(_) => return Admission::Admitted { proven: false },
            Err(TunnResult::Err(error)) => return Admission::Refused(PeerError::of(&error, false)),
            Err(_) => return Admission::Refused(PeerError::UnderLoad),
        }
        if self.count(now) {
            self.demand(from, datagram)
        } else {
            Admission::Admitted { proven: false }
        }
    }

    /// Whether a handshake message carries a cookie of ours; when not, the cookie to send. For a
    /// budget that is used up although the endpoint as a whole is not under load.
    pub fn demand(&self, from: SocketAddr, datagram: &[u8]) -> Admission {
        let mut cookie = [0; COOKIE_SIZE];
        match self
            .strict
            .verify_packet(Some(cookie_address(from)), datagram, &mut cookie)
        {
            Ok(_) => Admission::Admitted { proven: true },
            Err(TunnResult::WriteToNetwork(cookie)) => Admission::Cookie(cookie.to_vec()),
            Err(TunnResult::Err(error)) => Admission::Refused(PeerError::of(&error, false)),
            Err(_) => Admission::Refused(PeerError::UnderLoad),
        }
    }

    pub(super) fn for_engine(&self) -> Arc<RateLimiter> {
        self.lax.clone()
    }

    /// Counts one handshake message and tells whether it is one too many.
    fn count(&self, now: Instant) -> bool {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if now.since(window.0) >= WINDOW {
            *window = (now, 0);
        }
        window.1 = window.1.saturating_add(1);
        window.1 > self.per_second
    }
}

impl std::fmt::Debug for Limiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limiter")
            .field("per_second", &self.per_second)
            .finish_non_exhaustive()
    }
}

const COOKIE_SIZE: usize = 64;

/// An address that stands for address and port: the engine takes no port, and its cookie is a
/// keyed hash of the address.
fn cookie_address(from: SocketAddr) -> IpAddr {
    let mut bytes = match from.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_compatible().octets().map(|byte| byte ^ 0xff),
        IpAddr::V6(ip) => ip.octets(),
    };
    // IPv4 sits in the last four bytes; its port goes before it. An IPv6 address has no room.
    let at = if from.is_ipv4() { 10 } else { 14 };
    for (byte, port) in bytes[at..].iter_mut().zip(from.port().to_be_bytes()) {
        *byte ^= port;
    }
    IpAddr::V6(Ipv6Addr::from(bytes))
}
