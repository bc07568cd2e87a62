//! The bytes on the WebSocket, `underpass.v1`: the subprotocol offer, frames, record framing, control
//! messages, close codes, flyctl's byte stream, WireGuard message kinds and mac1, and the claims of a
//! relay token.
//!
//! This crate performs no I/O whatsoever: it names no socket and no clock, and holds no private
//! key. It compiles to wasm. Every parser takes hostile input, is bounded, and never panics.

pub mod close;
pub mod control;
pub mod flyctl;
pub mod frame;
mod key;
pub mod record;
pub mod subprotocol;
pub mod token;
pub mod wireguard;

pub use close::CloseCode;
pub use control::{Control, Limit};
pub use key::{NotAKey, PublicKey};
