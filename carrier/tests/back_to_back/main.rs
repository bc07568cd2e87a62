//! Two carriers back to back, over UDP and through relays, all on loopback.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod bench;
mod fake_relay;
mod real_relay;
mod udp;
mod websocket;
