//! The `.internal` zone of private networks, and the way out for every other name.
//!
//! ```text
//! bytes, source, now -> Names::answer -> Answer(bytes)    the zone, or an error in DNS's own terms
//!                                      | Forward(query)    any other name: see `forward`
//!                                      | Drop(reason)      nothing to say; counted
//! ```
//!
//! [`Names`] performs no I/O whatsoever and reads no clock. Which network is shown is chosen by the
//! source address alone, never by what is asked: a name of another network and a name that does not
//! exist get the same bytes. `.internal` and the reverse zone of `fdaa::/16` are never forwarded.
//! Only [`forward`], the driver of the way out, opens sockets.

mod answer;
mod counters;
mod forward;
mod limit;
mod share;
mod view;
mod zone;

pub use answer::{DropReason, Forward, Names, Over, Reply};
pub use counters::Counters;
pub use forward::forward;
pub use limit::Rate;
pub use view::{AppView, Directory, InstanceView, NetworkView, PeerView};

#[cfg(test)]
mod tests;
