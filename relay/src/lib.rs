//! WebSocket to UDP: admission, queues, limits.
//!
//! A relay carries WireGuard datagrams between a client's TLS WebSocket and a gateway's UDP port.
//! It sees ciphertext: it holds no private key of WireGuard, and names no IP packet, no DNS and no
//! SSH. It is no open UDP proxy, with or without tokens: it sends to configured gateways alone,
//! and only what [`proof`] admits.
//!
//! The pure parts are [`proof`] (what a session may send), `queue` (what waits, and what is
//! dropped), `admission` (who may open a session) and `accept_rate` (how many connect within a
//! second): they take time as an argument. The driver parts are `session` (one future per
//! WebSocket), `udp` (the socket to a gateway), [`mod@serve`] (the accept loop), [`tls`], [`acme`]
//! (certificates that are ordered) and [`admin`] (metrics and health).

mod accept_rate;
mod acks;
pub mod acme;
pub mod admin;
mod admission;
mod config;
pub mod counters;
mod held;
pub mod hosts;
pub mod metrics;
mod pace;
mod path;
mod pool;
pub mod proof;
mod queue;
mod rate;
mod reload;
pub mod rest;
mod resume;
mod router;
pub mod serve;
mod session;
mod slots;
#[cfg(test)]
mod slow_path;
pub mod tls;
mod tls_stream;
mod token;
mod udp;

pub use acme::{Acme, AcmeConfig};
pub use admin::serve_admin;
pub use admission::Rules;
pub use config::{GatewayTarget, Limits, RelayConfig};
pub use counters::{Counter, Counters};
pub use reload::{CertificateFiles, keep_certificate};
pub use router::{Relay, router, with_flyctl};
pub use serve::{AcceptLimits, is_taken, listen, serve};
pub use token::{Refused, Verifier};
