//! The SSH server of an instance: user certificates alone, a host certificate of its own.
//!
//! [`serve`] takes connections from a [`Listener`], whatever carries them, asks a [`TrustSource`]
//! for the organisation's authorities at each login, decides with [`ssh::authorize`], and runs
//! shells, commands and SFTP. There is no password, no plain key and no way to log in without the
//! authorities: where they cannot be had, nobody gets in.
//!
//! X11 and remote forwarding are refused without ending the session. Local forwarding goes to the
//! instance's own loopback, and agent forwarding to a private socket, for certificates that permit
//! them.

mod agent;
mod channel;
mod channels;
mod config;
mod counters;
mod environment;
mod forward;
mod guard;
mod handler;
mod intake;
mod listener;
mod modes;
mod process;
mod program;
mod serve;
mod sftp;
mod start;
mod trust;
mod tty;
mod users;

pub use config::{Config, ConfigError, Host, HostIdentity, Limits};
pub use counters::Counters;
pub use listener::Listener;
pub use serve::serve;
pub use sftp::serve_stdio as serve_sftp_on_stdio;
pub use trust::{
    Cached, DnsTrust, FileTrust, TrustFuture, TrustSource, TrustUnavailable, parse_authorities,
};
pub use users::Users;
