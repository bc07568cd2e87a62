//! Organisations, networks, apps, instances, peers, tokens, SSH CAs: the store and its HTTP API.
//!
//! ```text
//! store   what there is, in one SQLite file; every rule about it, no clock: `now` is an argument
//! api     the store behind HTTP, under /api/v1; the clock is one function, given at the start
//! ```
//!
//! Private keys of CAs stay in the store: no function returns one, and no log or error holds one.
//! Of a login token and of a session the store has the hash alone. How packets move is not known
//! here: a peer is a key, a range and a time.

mod api;
mod certificate;
mod error;
mod secret;
mod store;
mod token;

pub use api::{Clock, Config, Control, GatewayInfo, Hosts, guard_hosts, router};
pub use certificate::{Forwarding, UserCertificate};
pub use error::Error;
pub use secret::Secret;
pub use store::{
    AppRecord, AuthorityKind, AuthorityRecord, Identity, Instance, KeyHolder, Kind, LEASE_TTL,
    Lease, LoginToken, MAX_PEERS, Org, OrgId, PeerRecord, Session, Store,
};
pub use token::Signer;
