//! The WireGuard endpoint: peers on demand, isolation by network, routing between peers.
//!
//! [`Gateway`] is the whole of it as a state machine without I/O and without a clock; [`serve`]
//! drives one from a UDP socket. What a peer may send and to whom is decided in one place, by two
//! rules: a packet's source lies in the sending peer's own range, and source and destination
//! share their first 48 bits. No table of exceptions exists; `<network>::3` and `fdaa::3` are the
//! gateway's own addresses, where it answers DNS and echo requests.

mod admission;
mod budget;
mod core;
mod counters;
mod dns;
mod driver;
mod icmp;
mod packet;
mod table;
mod timers;

pub use self::core::{
    Config, Gateway, GatewayEvent, Grant, Limits, Lookup, PeerStatus, RemovedWhy,
};
pub use counters::{Counters, DropReason};
pub use dns::{DnsQuery, DnsTicket};
pub use driver::{
    Handle, Inbox, Options, PeerRecord, Peers, PeersUnavailable, Snapshot, handle, serve,
};
