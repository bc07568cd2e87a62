//! One counter per way that a datagram or a packet can end, and per thing worth counting.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a datagram, a packet or a query goes no further.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum DropReason { $($(#[$doc])* $variant,)* }

        impl DropReason {
            /// Every reason, in a stable order.
            pub const ALL: &[DropReason] = &[$(DropReason::$variant,)*];

            /// The name under which it is counted.
            pub fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)* }
            }
        }

        const REASONS: usize = DropReason::ALL.len();
    };
}

drop_reasons! {
    /// No WireGuard message, or one of the wrong length.
    Malformed = "malformed",
    /// A handshake message whose mac1 is not for this gateway.
    InvalidMac = "invalid_mac",
    /// An initiation that does not decrypt to a static key.
    Unparseable = "unparseable",
    /// Under load: a cookie was sent in place of an answer.
    CookieSent = "cookie_sent",
    /// Under load: the source has used up its handshakes, cookie or not.
    SourceBudget = "source_budget",
    /// The source has used up its lookups of unknown keys.
    LookupBudget = "lookup_budget",
    /// Too many lookups are under way.
    LookupsFull = "lookups_full",
    /// Too many initiations wait for one lookup.
    FlightFull = "flight_full",
    /// Nobody knows the initiator's key.
    UnknownPeer = "unknown_peer",
    /// Nobody could be asked about the initiator's key.
    LookupUnavailable = "lookup_unavailable",
    /// An answer of the directory that a revocation or a change overtook, or that came too late.
    LookupStale = "lookup_stale",
    /// The directory's record of a peer cannot be used: its range is no peer's, or its lease is over.
    InvalidRecord = "invalid_record",
    /// As many peers as there may be.
    PeersFull = "peers_full",
    /// An initiation of a known key that it did not make: forged, or a replay.
    HandshakeRefused = "handshake_refused",
    /// A message for a session that does not stand here.
    NoSession = "no_session",
    /// A transport message that does not decrypt.
    Forged = "forged",
    /// A transport message that came before.
    Replay = "replay",
    /// A transport message that holds no IPv6 packet.
    NotIpv6 = "not_ipv6",
    /// A packet of a peer that was forgotten meanwhile.
    SenderGone = "sender_gone",
    /// A packet whose source is not the sending peer's.
    SpoofedSource = "spoofed_source",
    /// A packet to another network, or out of all networks.
    OtherNetwork = "other_network",
    /// A packet to a multicast or unspecified address.
    NotUnicast = "not_unicast",
    /// A packet of a peer to its own range.
    ToItself = "to_itself",
    /// A packet whose hop limit is used up.
    HopLimit = "hop_limit",
    /// A packet larger than the MTU.
    TooBig = "too_big",
    /// A packet to an address that no connected peer has.
    NoPeer = "no_peer",
    /// A packet to a peer that does not answer.
    PeerDown = "peer_down",
    /// A datagram for a peer whose endpoint nobody knows.
    NoEndpoint = "no_endpoint",
    /// Packets that waited for a session in vain, or were too many.
    PeerQueue = "peer_queue",
    /// An ICMPv6 error that was not sent: too many, or RFC 4443 forbids it.
    IcmpSuppressed = "icmp_suppressed",
    /// A packet to the gateway's own addresses that its stack there did not take.
    LocalStack = "local_stack",
    /// A packet to the gateway's own addresses while too many networks use them.
    LocalFull = "local_full",
    /// A DNS query while too many wait for an answer.
    DnsFull = "dns_full",
    /// A DNS query that nobody answered in time.
    DnsTimeout = "dns_timeout",
    /// A DNS query that `names` leaves unanswered.
    DnsUnanswered = "dns_unanswered",
    /// An answer to a DNS query that no DNS message over TCP can hold.
    DnsAnswerTooLong = "dns_answer_too_long",
    /// A DNS connection over the limit of its network or source.
    DnsConnections = "dns_connections",
    /// A DNS connection that breaks the framing, sends too much, or stays silent too long.
    DnsConnectionClosed = "dns_connection_closed",
    /// Events that nobody polled for.
    EventsFull = "events_full",
    /// The queue of datagrams for the wire is full.
    TransmitFull = "transmit_full",
    /// The socket refused a datagram.
    SendFailed = "send_failed",
    /// The driver's queues are full.
    DriverBusy = "driver_busy",
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one gateway, shared with whoever shows them.
        #[derive(Debug)]
        pub struct Counters {
            drops: [AtomicU64; REASONS],
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        impl Default for Counters {
            fn default() -> Self {
                Counters {
                    drops: [const { AtomicU64::new(0) }; REASONS],
                    $($name: AtomicU64::new(0),)*
                }
            }
        }

        impl Counters {
            /// Names and values of everything but drops, in a stable order.
            pub fn totals(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

counters! {
    /// Datagrams received.
    datagrams_received,
    /// Bytes of those.
    bytes_received,
    /// Datagrams sent.
    datagrams_sent,
    /// Bytes of those.
    bytes_sent,
    /// Packets carried from one peer to another.
    packets_forwarded,
    /// Sessions that came to stand.
    sessions,
    /// Endpoints that moved.
    roamed,
    /// Peers installed on demand.
    peers_installed,
    /// Peers forgotten: idle, expired or revoked.
    peers_removed,
    /// Lookups asked.
    lookups,
    /// DNS queries taken.
    dns_queries,
    /// ICMPv6 errors sent.
    icmp_errors,
}

impl Counters {
    /// How many were dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].load(Ordering::Relaxed)
    }

    /// Every reason with its count, in a stable order.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .iter()
            .map(|reason| (*reason, self.dropped(*reason)))
    }

    pub(crate) fn count_drop(&self, reason: DropReason) {
        self.count_drops(reason, 1);
    }

    pub(crate) fn count_drops(&self, reason: DropReason, count: u64) {
        if count > 0 {
            tracing::trace!(reason = reason.name(), count, "dropped");
            self.drops[reason as usize].fetch_add(count, Ordering::Relaxed);
        }
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
