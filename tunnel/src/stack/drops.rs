//! Why packets are dropped: one counter per reason.

/// A reason to drop a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Drop {
    /// Cut, of another IP version, or with a wrong checksum.
    Malformed,
    /// From an address that no single host has.
    BadSource,
    /// For an address that is not ours.
    NotOurs,
    /// Neither TCP nor UDP nor ICMPv6.
    UnknownHeader,
    /// A SYN to a listener whose backlog is full.
    Backlog,
    /// A SYN for whose stream there is no memory.
    Memory,
    /// An accepted SYN whose handshake was never completed.
    HalfOpenExpired,
    /// A segment, or an ICMPv6 error, for a stream that does not stand.
    NoStream,
    /// UDP to a port where nobody listens.
    NoSocket,
    /// UDP to a socket whose reader is slow.
    UdpQueueFull,
    /// An ICMPv6 message that asks for nothing that is done here.
    IcmpIgnored,
    /// An ICMPv6 error of ours that was not sent: too many.
    IcmpRateLimited,
    /// An answer that found the queue to the link full.
    OutboxFull,
}

/// Packets dropped, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drops([u64; NAMES.len()]);

const NAMES: [&str; 13] = [
    "malformed",
    "bad_source",
    "not_ours",
    "unknown_header",
    "backlog",
    "memory",
    "half_open_expired",
    "no_stream",
    "no_socket",
    "udp_queue_full",
    "icmp_ignored",
    "icmp_rate_limited",
    "outbox_full",
];

impl Drops {
    /// How many for this reason.
    pub fn get(&self, reason: Drop) -> u64 {
        self.0[reason as usize]
    }

    /// Stable names and counts.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        NAMES.into_iter().zip(self.0)
    }

    pub(super) fn count(&mut self, reason: Drop) {
        self.add(reason, 1);
    }

    pub(super) fn add(&mut self, reason: Drop, count: u64) {
        self.0[reason as usize] += count;
    }
}
