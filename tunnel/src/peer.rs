//! One WireGuard peer: datagrams in, datagrams, packets and events out.
//!
//! [`Peer`] performs no I/O and has no clock of its own; the engine beneath it reads one for its
//! protocol timers (rekey, keepalive, rejection), so `now` has to advance at the pace of the
//! machine's clock outside a simulation. No other module names the engine.

mod backlog;
mod failure;
mod limiter;
mod parts;
mod sessions;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, fmt, net::IpAddr, time::Duration};

use boringtun::{
    noise::{Packet, Tunn, TunnResult, handshake::parse_handshake_anon},
    x25519,
};
use wire::PublicKey;

use crate::{Instant, PrivateKey};
use backlog::Backlog;
pub use failure::{HandshakeFailure, PeerError};
pub use limiter::{Admission, Limiter};
pub use parts::{PeerConfig, PeerEvent, PeerStats, Received, ReceivedKind};
use sessions::Sessions;

/// A datagram larger than this is refused before a byte of it is read.
pub const MAX_DATAGRAM: usize = 65_535;
/// The largest IP packet that [`Peer::send_packet`] takes.
pub const MAX_PACKET: usize = MAX_DATAGRAM - DATA_OVERHEAD;
/// What WireGuard adds to an IP packet, padding apart.
pub const DATA_OVERHEAD: usize = 32;

/// Padding to 16 bytes hides a packet's length, but never grows it past the usual MTU: a
/// datagram of a full packet has to fit an Ethernet frame under IPv6.
const PADDED_MTU: usize = 1420;
/// The engine's timers are looked at this often while something is going on ...
const TICK_ACTIVE: Duration = Duration::from_millis(250);
/// ... and this often when nothing is.
const TICK_IDLE: Duration = Duration::from_secs(1);
/// Traffic within this time counts as "something going on".
const ACTIVE: Duration = Duration::from_secs(15);
/// When a client resends its initiation, counted from the first of the attempt. The engine goes
/// on every five seconds.
const FAST_RETRY: [Duration; 5] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];
/// An attempt without an answer is reported after this time; it goes on.
const NO_ANSWER: Duration = Duration::from_secs(5);
/// The engine gives an attempt up after this time.
const ATTEMPT: Duration = Duration::from_secs(90);
/// WireGuard's own bound on the messages of a session; the engine does not keep it.
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// Datagrams, packets and events that wait for their reader: more are dropped, oldest first.
const MAX_OUT: usize = 1024;

/// One WireGuard peer as a state machine. See the module.
pub struct Peer {
    tunn: Tunn,
    remote: PublicKey,
    keepalive: Option<Duration>,
    fast_retry: bool,
    sessions: Sessions,
    backlog: Backlog,
    attempt: Option<Attempt>,
    /// Index and moment of the last two initiations: the engine takes a response to either.
    initiations: [Option<(u32, Instant)>; 2],
    /// When a peer with a persistent keepalive begins anew after its attempt was given up.
    restart: Option<Instant>,
    ticked: Instant,
    transmits: VecDeque<Vec<u8>>,
    packets: VecDeque<Vec<u8>>,
    events: VecDeque<PeerEvent>,
    scratch: Vec<u8>,
    stats: PeerStats,
}

/// Initiations sent since the last session.
struct Attempt {
    started: Instant,
    /// How many of `FAST_RETRY` are behind us.
    retries: usize,
    reported: bool,
    cookie: bool,
}

impl Peer {
    /// A peer without a session. Nothing is sent until there is something to send, or
    /// [`Peer::initiate`] is called.
    pub fn new(config: PeerConfig, now: Instant) -> Peer {
        let tunn = Tunn::new(
            x25519::StaticSecret::from(*config.local.as_bytes()),
            x25519::PublicKey::from(config.remote.0),
            config.preshared,
            config.keepalive,
            config.index & INDEX_MASK,
            config.limiter.map(|limiter| limiter.for_engine()),
        );
        Peer {
            tunn,
            remote: config.remote,
            keepalive: config
                .keepalive
                .map(|seconds| Duration::from_secs(seconds.into())),
            fast_retry: config.fast_retry,
            sessions: Sessions::default(),
            backlog: Backlog::default(),
            attempt: None,
            initiations: [None; 2],
            restart: None,
            ticked: now,
            transmits: VecDeque::new(),
            packets: VecDeque::new(),
            events: VecDeque::new(),
            scratch: vec![0; 2048],
            stats: PeerStats::default(),
        }
    }

    /// The other side's public key.
    pub fn remote(&self) -> PublicKey {
        self.remote
    }

    /// Sends a fresh handshake initiation, even where a session stands: for a new path, or after
    /// sleep. An attempt that is under way begins anew, its fast retries too.
    pub fn initiate(&mut self, now: Instant) {
        self.tick_if_due(now);
        self.attempt = None;
        self.send_initiation(now);
    }

    /// Takes a datagram from the wire. `from` is used for cookies alone.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        from: Option<IpAddr>,
        datagram: &[u8],
    ) -> Result<Received, PeerError> {
        self.tick_if_due(now);
        let received = self.receive(now, from, datagram);
        if received.is_err() {
            self.stats.refused += 1;
        }
        received
    }

    /// Encrypts an IP packet for the wire. Without a session it waits in a queue bounded in
    /// packets, bytes and age (oldest dropped first), and a handshake begins.
    pub fn send_packet(&mut self, now: Instant, packet: &[u8]) {
        self.tick_if_due(now);
        if packet.len() > MAX_PACKET {
            self.stats.dropped_oversize += 1;
            return;
        }
        if self.has_session() {
            self.encrypt(now, packet);
        } else {
            self.stats.dropped_waiting += self.backlog.push(now, packet);
            if self.attempt.is_none() {
                self.send_initiation(now);
            }
        }
    }

    /// The next datagram for the wire.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.transmits.pop_front()
    }

    /// The next decrypted IP packet. Its length and version were looked at, its addresses not.
    pub fn poll_packet(&mut self) -> Option<Vec<u8>> {
        self.packets.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<PeerEvent> {
        self.events.pop_front()
    }

    /// Does what has become due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.tick_if_due(now);
        if self.restart.is_some_and(|at| now >= at) {
            self.restart = None;
            self.send_initiation(now);
        }
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        if !attempt.reported && now.since(attempt.started) >= NO_ANSWER {
            attempt.reported = true;
            let reason = if attempt.cookie {
                HandshakeFailure::Busy
            } else {
                HandshakeFailure::NoAnswer
            };
            self.event(PeerEvent::HandshakeFailed { reason });
        }
        self.retry_if_due(now);
    }

    /// When [`Peer::handle_timeout`] wants to be called; `None` while nothing can become due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let active = |at: Option<Instant>| at.is_some_and(|at| self.ticked.since(at) < ACTIVE);
        let tick = if self.attempt.is_some()
            || active(self.stats.last_received)
            || active(self.stats.last_sent)
        {
            Some(self.ticked + TICK_ACTIVE)
        } else if self.keepalive.is_some() || self.has_session() || !self.backlog.is_empty() {
            Some(self.ticked + TICK_IDLE)
        } else {
            None
        };
        let attempt = self.attempt.as_ref();
        let retry = attempt.and_then(|attempt| attempt.next_retry(self.fast_retry));
        let report = attempt
            .filter(|attempt| !attempt.reported)
            .map(|a| a.started + NO_ANSWER);
        [tick, retry, report, self.restart]
            .into_iter()
            .flatten()
            .min()
    }

    /// Counters and moments so far.
    pub fn stats(&self) -> PeerStats {
        PeerStats {
            session: self.has_session(),
            ..self.stats
        }
    }

    /// A session stands: what is sent now leaves now.
    pub fn has_session(&self) -> bool {
        self.tunn.time_since_last_handshake().is_some()
    }

    fn receive(
        &mut self,
        now: Instant,
        from: Option<IpAddr>,
        datagram: &[u8],
    ) -> Result<Received, PeerError> {
        if datagram.len() > MAX_DATAGRAM {
            return Err(PeerError::Malformed);
        }
        let parsed = Tunn::parse_incoming_packet(datagram).map_err(|_| PeerError::Malformed)?;
        let kind = match parsed {
            Packet::HandshakeInit(_) => ReceivedKind::Initiation,
            Packet::HandshakeResponse(_) => ReceivedKind::Response,
            Packet::PacketCookieReply(_) => ReceivedKind::Cookie,
            Packet::PacketData(_) => ReceivedKind::Packet,
        };
        if kind == ReceivedKind::Packet && word64(datagram, 8) >= REJECT_AFTER_MESSAGES {
            return Err(PeerError::Replay);
        }
        if self.scratch.len() < datagram.len() + DATA_OVERHEAD {
            self.scratch.resize(datagram.len() + DATA_OVERHEAD, 0);
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let received = match self.tunn.decapsulate(from, datagram, &mut scratch) {
            TunnResult::Err(error) => Err(PeerError::of(&error, kind == ReceivedKind::Packet)),
            TunnResult::Done if kind == ReceivedKind::Packet => Ok(ReceivedKind::Keepalive),
            TunnResult::Done => Ok(kind),
            TunnResult::WriteToNetwork(reply) => {
                // Under load a cookie leaves in place of the answer.
                let cookie = matches!(
                    Tunn::parse_incoming_packet(reply),
                    Ok(Packet::PacketCookieReply(_))
                );
                self.transmit(reply.to_vec());
                if cookie {
                    Err(PeerError::UnderLoad)
                } else {
                    Ok(kind)
                }
            }
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                self.stats.rx_bytes += packet.len() as u64;
                self.stats.rx_packets += 1;
                if self.packets.len() >= MAX_OUT {
                    self.packets.pop_front();
                    self.stats.dropped_unread += 1;
                }
                self.packets.push_back(packet.to_vec());
                Ok(kind)
            }
        };
        self.scratch = scratch;
        let kind = received?;

        let mut highest = false;
        match kind {
            ReceivedKind::Initiation => {}
            ReceivedKind::Response => {
                let index = word32(datagram, 8);
                self.sessions.opened(index);
                let sent = self
                    .initiations
                    .iter()
                    .flatten()
                    .find(|(sent, _)| *sent == index);
                let rtt = sent.map(|(_, at)| now.since(*at));
                self.stats.rtt = rtt.or(self.stats.rtt);
                self.established(now, rtt);
            }
            ReceivedKind::Cookie => {
                if let Some(attempt) = &mut self.attempt {
                    attempt.cookie = true;
                }
            }
            ReceivedKind::Keepalive | ReceivedKind::Packet => {
                let seen = self
                    .sessions
                    .received(word32(datagram, 4), word64(datagram, 8));
                highest = seen.highest;
                if seen.first {
                    self.established(now, None);
                }
            }
        }
        let authenticated = !matches!(kind, ReceivedKind::Initiation | ReceivedKind::Cookie);
        if authenticated {
            self.stats.last_received = Some(now);
        }
        Ok(Received {
            authenticated,
            highest,
            kind,
        })
    }

    /// A session can be used: what waited for it leaves.
    fn established(&mut self, now: Instant, rtt: Option<Duration>) {
        self.attempt = None;
        self.restart = None;
        self.stats.last_handshake = Some(now);
        self.event(PeerEvent::SessionEstablished { rtt });
        if !self.has_session() {
            return;
        }
        // The engine has a queue of its own, where its keepalives wait.
        let mut scratch = std::mem::take(&mut self.scratch);
        while let TunnResult::WriteToNetwork(datagram) =
            self.tunn.decapsulate(None, &[], &mut scratch)
        {
            self.transmit(datagram.to_vec());
        }
        self.scratch = scratch;
        self.stats.dropped_waiting += self.backlog.expire(now);
        while let Some(packet) = self.backlog.pop() {
            self.encrypt(now, &packet);
        }
    }

    fn encrypt(&mut self, now: Instant, packet: &[u8]) {
        let padded = packet
            .len()
            .next_multiple_of(16)
            .min(PADDED_MTU)
            .max(packet.len());
        if self.scratch.len() < padded {
            self.scratch.resize(padded, 0);
        }
        self.scratch[..packet.len()].copy_from_slice(packet);
        self.scratch[packet.len()..padded].fill(0);
        let mut datagram = vec![0; (padded + DATA_OVERHEAD).max(INITIATION_SIZE)];
        let TunnResult::WriteToNetwork(written) = self
            .tunn
            .encapsulate(&self.scratch[..padded], &mut datagram)
        else {
            return;
        };
        let written = written.len();
        datagram.truncate(written);
        self.stats.tx_bytes += packet.len() as u64;
        self.stats.tx_packets += 1;
        self.stats.last_sent = Some(now);
        self.transmit(datagram);
    }

    fn send_initiation(&mut self, now: Instant) {
        let mut datagram = [0; INITIATION_SIZE];
        if let TunnResult::WriteToNetwork(initiation) =
            self.tunn.format_handshake_initiation(&mut datagram, true)
        {
            let initiation = initiation.to_vec();
            self.initiation_made(now, initiation);
        }
    }

    fn initiation_made(&mut self, now: Instant, initiation: Vec<u8>) {
        self.initiations = [Some((word32(&initiation, 4), now)), self.initiations[0]];
        self.stats.initiations += 1;
        if self.attempt.is_none() {
            self.attempt = Some(Attempt {
                started: now,
                retries: 0,
                reported: false,
                cookie: false,
            });
            self.event(PeerEvent::HandshakeStarted);
        }
        self.transmit(initiation);
    }

    fn retry_if_due(&mut self, now: Instant) {
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        if attempt
            .next_retry(self.fast_retry)
            .is_none_or(|at| now < at)
        {
            return;
        }
        while attempt.next_retry(true).is_some_and(|at| now >= at) {
            attempt.retries += 1;
        }
        self.send_initiation(now);
    }

    /// The engine sees time only when told to look; all its moments are as old as the last look.
    fn tick_if_due(&mut self, now: Instant) {
        if now.since(self.ticked) < TICK_ACTIVE {
            return;
        }
        self.ticked = now;
        self.stats.dropped_waiting += self.backlog.expire(now);
        let was_expired = self.tunn.is_expired();
        let mut datagram = [0; INITIATION_SIZE];
        match self.tunn.update_timers(&mut datagram) {
            TunnResult::WriteToNetwork(written) => {
                let written = written.to_vec();
                if written.first() == Some(&1) {
                    self.initiation_made(now, written);
                } else {
                    self.transmit(written);
                }
            }
            TunnResult::Err(_) if !was_expired && self.tunn.is_expired() => self.expired(now),
            _ => {}
        }
    }

    fn expired(&mut self, now: Instant) {
        // The engine also expires by the age of the last session, however young the attempt is.
        let slack = Duration::from_secs(1);
        if self
            .attempt
            .as_ref()
            .is_some_and(|a| now.since(a.started) + slack < ATTEMPT)
        {
            return self.send_initiation(now);
        }
        self.attempt = None;
        self.restart = self.keepalive.map(|keepalive| now + keepalive);
        self.stats.dropped_waiting += self.backlog.clear();
        self.event(PeerEvent::Expired);
    }

    fn event(&mut self, event: PeerEvent) {
        if self.events.len() >= MAX_OUT {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Handshake messages are the last to be dropped.
    fn transmit(&mut self, datagram: Vec<u8>) {
        if self.transmits.len() >= MAX_OUT {
            let oldest = self
                .transmits
                .iter()
                .position(|d| d.first() == Some(&4))
                .unwrap_or(0);
            self.transmits.remove(oldest);
            self.stats.dropped_unread += 1;
        }
        self.transmits.push_back(datagram);
    }
}

impl Attempt {
    fn next_retry(&self, fast: bool) -> Option<Instant> {
        let after = FAST_RETRY.get(self.retries).filter(|_| fast)?;
        Some(self.started + *after)
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

const INITIATION_SIZE: usize = 148;
const INDEX_MASK: u32 = 0x00ff_ffff;

/// The static key that a handshake initiation names. This proves nothing about who sent it: a
/// copy of somebody's initiation parses just as well.
pub fn initiator(local: &PrivateKey, datagram: &[u8]) -> Option<PublicKey> {
    let Ok(Packet::HandshakeInit(initiation)) = Tunn::parse_incoming_packet(datagram) else {
        return None;
    };
    let secret = x25519::StaticSecret::from(*local.as_bytes());
    let public = x25519::PublicKey::from(&secret);
    let half = parse_handshake_anon(&secret, &public, &initiation).ok()?;
    Some(PublicKey(half.peer_static_public))
}

/// The [`PeerConfig::index`] of the peer that a response, cookie or transport message is for;
/// `None` for an initiation, which names no peer, and for what is no WireGuard.
pub fn receiver_index(datagram: &[u8]) -> Option<u32> {
    let receiver = match Tunn::parse_incoming_packet(datagram).ok()? {
        Packet::HandshakeInit(_) => return None,
        Packet::HandshakeResponse(p) => p.receiver_idx,
        Packet::PacketCookieReply(p) => p.receiver_idx,
        Packet::PacketData(p) => p.receiver_idx,
    };
    // The engine keeps the low eight bits for the session.
    Some(receiver >> 8)
}

/// The public key of a clamped private key.
pub(crate) fn public_key(private: &[u8; 32]) -> [u8; 32] {
    x25519::PublicKey::from(&x25519::StaticSecret::from(*private)).to_bytes()
}

/// Four bytes of a datagram whose length is known to the caller.
fn word32(datagram: &[u8], at: usize) -> u32 {
    datagram
        .get(at..)
        .and_then(|b| b.first_chunk())
        .map_or(0, |b| u32::from_le_bytes(*b))
}

fn word64(datagram: &[u8], at: usize) -> u64 {
    datagram
        .get(at..)
        .and_then(|b| b.first_chunk())
        .map_or(0, |b| u64::from_le_bytes(*b))
}
