//! User-mode WireGuard and TCP/IP as one state machine: datagrams in, datagrams and stream events
//! out.
//!
//! Nothing here performs I/O, reads a clock, makes randomness, starts a thread or knows who
//! carries the datagrams. Time comes in with each call as an [`Instant`], randomness as a seed.
//! Module [`peer`] alone names the WireGuard engine, module [`stack`] alone the TCP engine.

mod instant;
mod key;
pub mod peer;
pub mod resolve;
mod rng;
pub mod stack;
mod tunnel;

pub use instant::Instant;
pub use key::PrivateKey;
pub use resolve::{Answer, QueryId, RecordKind, ResolveError};
pub use stack::{
    Class, CloseReason, Limits, ListenerId, PingError, PingId, StackError, StreamError, StreamId,
    UdpId, Unreachable,
};
pub use tunnel::{Config, Event, Stats, Tunnel};
