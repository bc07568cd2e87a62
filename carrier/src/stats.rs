//! What a carrier counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why a datagram or a connection did not get further than the carrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Drop {
    /// The queue to the relay was full: its oldest data went.
    OutboxFull,
    /// Data waited too long for the relay's connection to drain.
    OutboxStale,
    /// No connection to the relay stood.
    LinkDown,
    /// A datagram larger than a record may be.
    Oversize,
    /// A UDP send failed.
    SendFailed,
    /// Nobody accepted a connection in time: the listener's backlog was full.
    BacklogFull,
    /// Nobody read a UDP socket inside the tunnel: its queue was full.
    UdpQueueFull,
}

impl Drop {
    /// Every reason.
    pub const ALL: [Drop; 7] = [
        Drop::OutboxFull,
        Drop::OutboxStale,
        Drop::LinkDown,
        Drop::Oversize,
        Drop::SendFailed,
        Drop::BacklogFull,
        Drop::UdpQueueFull,
    ];

    /// The stable name of the counter.
    pub fn name(self) -> &'static str {
        match self {
            Drop::OutboxFull => "outbox_full",
            Drop::OutboxStale => "outbox_stale",
            Drop::LinkDown => "link_down",
            Drop::Oversize => "oversize",
            Drop::SendFailed => "send_failed",
            Drop::BacklogFull => "backlog_full",
            Drop::UdpQueueFull => "udp_queue_full",
        }
    }
}

/// Counters that driver and link tasks share.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    received: AtomicU64,
    received_bytes: AtomicU64,
    messages_sent: AtomicU64,
    messages_received: AtomicU64,
    connects: AtomicU64,
    drops: [AtomicU64; Drop::ALL.len()],
}

impl Counters {
    pub(crate) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(1, Relaxed);
        self.sent_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.received.fetch_add(1, Relaxed);
        self.received_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn message_sent(&self) {
        self.messages_sent.fetch_add(1, Relaxed);
    }

    pub(crate) fn message_received(&self) {
        self.messages_received.fetch_add(1, Relaxed);
    }

    pub(crate) fn connected(&self) {
        self.connects.fetch_add(1, Relaxed);
    }

    pub(crate) fn dropped(&self, reason: Drop) {
        self.drops[reason as usize].fetch_add(1, Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn drops(&self, reason: Drop) -> u64 {
        self.drops[reason as usize].load(Relaxed)
    }

    pub(crate) fn snapshot(&self) -> LinkStats {
        LinkStats {
            sent: self.sent.load(Relaxed),
            sent_bytes: self.sent_bytes.load(Relaxed),
            received: self.received.load(Relaxed),
            received_bytes: self.received_bytes.load(Relaxed),
            messages_sent: self.messages_sent.load(Relaxed),
            messages_received: self.messages_received.load(Relaxed),
            connects: self.connects.load(Relaxed),
            drops: std::array::from_fn(|i| self.drops[i].load(Relaxed)),
        }
    }
}

/// What passed the link since the carrier started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Datagrams handed to the socket.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Datagrams that arrived.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Binary messages sent; zero on UDP.
    pub messages_sent: u64,
    /// Binary messages that arrived; zero on UDP.
    pub messages_received: u64,
    /// Connections made to the relay, the first included; zero on UDP.
    pub connects: u64,
    drops: [u64; Drop::ALL.len()],
}

impl LinkStats {
    /// How much was dropped for that reason.
    pub fn dropped(&self, reason: Drop) -> u64 {
        self.drops[reason as usize]
    }

    /// The sum of two paths.
    pub(crate) fn plus(mut self, more: &LinkStats) -> LinkStats {
        self.sent += more.sent;
        self.sent_bytes += more.sent_bytes;
        self.received += more.received;
        self.received_bytes += more.received_bytes;
        self.messages_sent += more.messages_sent;
        self.messages_received += more.messages_received;
        self.connects += more.connects;
        for (sum, more) in self.drops.iter_mut().zip(&more.drops) {
            *sum += more;
        }
        self
    }

    pub(crate) fn plus_drops(mut self, more: &Counters) -> LinkStats {
        for (sum, more) in self.drops.iter_mut().zip(&more.drops) {
            *sum += more.load(Relaxed);
        }
        self
    }
}

/// A look at a carrier and its tunnel.
#[derive(Clone, Debug)]
pub struct Stats {
    /// `UDP` or `WebSocket`.
    pub transport: &'static str,
    /// The link's counters.
    pub link: LinkStats,
    /// The tunnel's counters.
    pub tunnel: tunnel::Stats,
    /// TCP streams that the driver holds.
    pub streams: usize,
}
