//! SSH certificate rules both ways, and the client session over any byte stream.
//!
//! [`authorize`] decides a user certificate at the server, [`verify_host`] a host certificate at
//! the client; both are pure, take the time as an argument, and yield a value that nobody else can
//! make. [`client`] speaks SSH over a stream it is given: it opens no socket, reads no file, and
//! compiles for `wasm32-unknown-unknown`.

mod algorithms;
mod authorize;
mod certificate;
pub mod client;
mod host;
mod source;

pub use algorithms::preferred;
pub use authorize::{Authorized, Denied, Trust, authorize};
pub use host::{Dialled, HostDenied, VerifiedHost, verify_host};
pub use source::{SourceAddresses, SourceMalformed};

pub use ssh_key;

#[cfg(test)]
mod fixture;
