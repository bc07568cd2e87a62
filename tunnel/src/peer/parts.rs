//! What goes into a peer, and what it tells.

use std::{sync::Arc, time::Duration};

use wire::PublicKey;

use super::{HandshakeFailure, Limiter};
use crate::{Instant, PrivateKey};

/// What a peer is made of.
pub struct PeerConfig {
    /// Our private key.
    pub local: PrivateKey,
    /// The other side's public key.
    pub remote: PublicKey,
    /// The preshared key, when there is one.
    pub preshared: Option<[u8; 32]>,
    /// Seconds between persistent keepalives. With it, a peer that lost its session goes on
    /// trying for ever; without it, it waits for a packet to send.
    pub keepalive: Option<u16>,
    /// 24 bits, unique among the peers of one local endpoint: [`receiver_index`](super::receiver_index) tells it back.
    pub index: u32,
    /// A limiter shared by the peers of one endpoint. The owner asks [`Limiter::admit`] about
    /// each handshake message before it hands it over; the peer itself then limits nothing.
    /// Without one, the peer admits ten handshake messages per second and asks for cookies
    /// beyond that.
    pub limiter: Option<Arc<Limiter>>,
    /// Resend an unanswered initiation after 0.25, 0.5, 1, 2 and 5 seconds: for clients, where a
    /// person waits. Without it, every five seconds.
    pub fast_retry: bool,
}

impl PeerConfig {
    /// A client's peer: fast retry, no limiter, index 1.
    pub fn client(local: PrivateKey, remote: PublicKey) -> PeerConfig {
        PeerConfig {
            local,
            remote,
            preshared: None,
            keepalive: None,
            index: 1,
            limiter: None,
            fast_retry: true,
        }
    }
}

/// What a datagram turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceivedKind {
    /// A handshake initiation of this very peer; an answer waits in `poll_transmit`. It may be
    /// a copy that someone else sends: it proves nothing about where the peer is.
    Initiation,
    /// The response to our initiation: a session stands.
    Response,
    /// A cookie: the other side is under load, the next initiation carries the cookie.
    Cookie,
    /// A transport message without a packet.
    Keepalive,
    /// A transport message; its packet waits in `poll_packet`.
    Packet,
}

/// An accepted datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// A transport message that decrypted, or a handshake of ours that is complete. False for an
    /// initiation and for a cookie.
    pub authenticated: bool,
    /// A transport message of the newest session whose counter is the highest so far: where it
    /// came from is where the peer is.
    pub highest: bool,
    /// What it was.
    pub kind: ReceivedKind,
}

/// What happened to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerEvent {
    /// The first initiation of an attempt is on its way.
    HandshakeStarted,
    /// A session stands and data flows.
    SessionEstablished {
        /// From our initiation to its response; `None` where the other side began.
        rtt: Option<Duration>,
    },
    /// An attempt goes unanswered for five seconds. It goes on; told once per attempt.
    HandshakeFailed {
        /// Why.
        reason: HandshakeFailure,
    },
    /// The session is too old to be used and no other came about. What waited for it is dropped.
    Expired,
}

/// Counters and moments of a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PeerStats {
    /// When the last session came to stand.
    pub last_handshake: Option<Instant>,
    /// When the last authenticated datagram came.
    pub last_received: Option<Instant>,
    /// When the last IP packet was sent.
    pub last_sent: Option<Instant>,
    /// The round trip of the last handshake that we began.
    pub rtt: Option<Duration>,
    /// A session stands.
    pub session: bool,
    /// Bytes of IP packets sent.
    pub tx_bytes: u64,
    /// Bytes of IP packets received.
    pub rx_bytes: u64,
    /// IP packets sent.
    pub tx_packets: u64,
    /// IP packets received.
    pub rx_packets: u64,
    /// Initiations sent.
    pub initiations: u64,
    /// Datagrams refused: see [`PeerError`](super::PeerError).
    pub refused: u64,
    /// Packets dropped while they waited for a session: too many, or too old.
    pub dropped_waiting: u64,
    /// Packets dropped because they were larger than [`MAX_PACKET`](super::MAX_PACKET).
    pub dropped_oversize: u64,
    /// Datagrams and packets dropped because nobody polled for them.
    pub dropped_unread: u64,
}
