//! Two [`Tunnel`]s over a simulated network, in virtual time.
//!
//! Nothing here reads a clock or opens a socket: [`World`] moves from one moment at which something
//! is due to the next, and sets the WireGuard engine's clock along. Everything random comes from a
//! seed, but for the engine's ephemeral keys, which change neither sizes nor times: a run is
//! repeatable to the byte.
//!
//! The driver of this world wakes for datagrams and time-outs alone, so a tunnel that waited for
//! anything else would stall here.

mod link;
mod world;

pub use link::{Link, LinkConfig, LinkStats};
pub use world::{Figures, SERVER_PORT, Side, World, WorldConfig};

pub use tunnel;
