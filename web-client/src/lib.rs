//! WireGuard, TCP/IP and SSH in a browser tab, behind one narrow typed surface: `Tunnel.connect`,
//! `tunnel.ssh`, `session.attach(terminal)`.
//!
//! [`driver`] carries the datagrams of a [`tunnel::Tunnel`] over a WebSocket and wakes it in time;
//! it survives the loss of that WebSocket, and so do the streams inside. [`client`] is the surface
//! itself, [`session`] one shell with its pump to a terminal. Private WireGuard keys stay in this
//! module's memory; SSH keys stay with WebCrypto, which is asked to sign.
//!
//! No page, no terminal and no storage is made here, and nothing is global but one panic hook.

mod client;
mod driver;
mod failure;
mod key;
mod ladder;
mod page;
mod session;
mod stream;
mod surface;

pub use client::{ByteStream, Tunnel};
pub use key::{WireGuardKey, generate_key, ssh_public_key_line};
pub use session::Session;
