//! A way into an organisation's private network, for as long as a command runs.
//!
//! A tunnel of this process has a WireGuard key of its own and a peer leased for it: two processes
//! on one key would steal each other's session. The lease is renewed while the command runs and
//! given back at its end; of a command that was killed it expires by itself.

mod own;
mod peer;

use std::{fmt, net::Ipv6Addr, sync::Arc, time::Duration};

use anyhow::anyhow;
use carrier::CarrierError;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tunnel::{Answer, Class, RecordKind};

pub(crate) use own::{Own, connect};
pub(crate) use peer::{Peer, lease_lost};

use crate::{api::Api, client::args::Scope};

/// What every command takes that sends packets into a network.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct NetworkArgs {
    #[command(flatten)]
    pub(crate) scope: Scope,
    /// Use UDP alone
    #[arg(long, conflicts_with = "websockets")]
    udp: bool,
    /// Use the relay's WebSocket alone
    #[arg(long)]
    websockets: bool,
    /// Which way packets go where neither of the two is given
    #[arg(
        long = "transport",
        value_name = "WAY",
        env = "UNDERPASS_TRANSPORT",
        hide_env_values = true,
        default_value = "auto",
        conflicts_with_all = ["udp", "websockets"]
    )]
    transport: Way,
}

/// How packets get to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    /// UDP where it gets through, the relay where it does not
    Auto,
    /// UDP alone
    Udp,
    /// The relay's WebSocket alone
    Websockets,
}

impl NetworkArgs {
    fn way(&self) -> Way {
        match (self.udp, self.websockets) {
            (true, _) => Way::Udp,
            (_, true) => Way::Websockets,
            _ => self.transport,
        }
    }
}

/// The network, by a tunnel of this process. Clones share it.
#[derive(Clone)]
pub(crate) struct Network {
    own: Arc<Own>,
}

/// A byte stream to a host inside the network.
pub(crate) type Stream = Box<dyn Io>;

/// What a [`Stream`] is.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// An echo that came back.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Echo {
    /// Its round trip, in microseconds.
    pub(crate) micros: u64,
    /// `UDP` or `WebSocket`.
    pub(crate) transport: String,
}

/// Why something inside the network did not work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// Stable code.
    pub(crate) code: String,
    /// A sentence.
    pub(crate) message: String,
    /// What to do about it; may be empty.
    pub(crate) hint: String,
}

impl Network {
    /// Opens it, without waiting for the gateway.
    pub(crate) async fn open(args: &NetworkArgs) -> anyhow::Result<Network> {
        let lost = || eprintln!("underpass: {}", lease_lost());
        let own = Box::pin(Own::open(&args.scope, args.way(), lost)).await?;
        Ok(Network { own: Arc::new(own) })
    }

    /// The organisation.
    pub(crate) fn org(&self) -> &str {
        &self.own.peer().org
    }

    /// Control, logged in.
    pub(crate) async fn api(&self) -> anyhow::Result<&Api> {
        Ok(&self.own.peer().api)
    }

    /// The authorities trusted for the organisation's hosts.
    pub(crate) fn host_cas(&self) -> anyhow::Result<Vec<ssh_key::PublicKey>> {
        self.own.peer().lease.host_cas()
    }

    /// Waits until the gateway has answered.
    pub(crate) async fn ready(&self) -> anyhow::Result<Duration> {
        self.own.ready().await
    }

    /// What data goes over now: `UDP` or `WebSocket`.
    pub(crate) fn transport(&self) -> String {
        self.own.carrier().transport().to_owned()
    }

    /// A key and a certificate of it that this tunnel's address alone can use.
    pub(crate) async fn identity(&self, user: &str) -> anyhow::Result<ssh::client::Identity> {
        super::ssh::console::certify(self.own.peer(), user).await
    }

    /// Connects to a host: to the first of its addresses that answers.
    pub(crate) async fn connect(
        &self,
        host: &str,
        port: u16,
        class: Class,
    ) -> Result<Stream, Failure> {
        let stream = connect(self.own.carrier(), host, port, class).await?;
        Ok(Box::new(stream))
    }

    /// Asks the network's name server.
    pub(crate) async fn lookup(&self, name: &str, kind: RecordKind) -> Result<Answer, Failure> {
        Ok(self.own.carrier().lookup(name, kind).await?)
    }

    /// The addresses of a host: its own where it is one, with or without brackets.
    pub(crate) async fn resolve(&self, host: &str) -> Result<Vec<Ipv6Addr>, Failure> {
        Ok(own::resolve(self.own.carrier(), host).await?)
    }

    /// Sends an echo request and waits for its answer.
    pub(crate) async fn ping(&self, to: Ipv6Addr) -> Result<Echo, Failure> {
        let rtt = self.own.carrier().ping(to).await?;
        Ok(Echo {
            micros: u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX),
            transport: self.transport(),
        })
    }

    /// Says goodbye.
    pub(crate) async fn close(self) {
        self.own.close().await;
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)?;
        if self.hint.is_empty() {
            return Ok(());
        }
        write!(f, "\nhint: {}", self.hint)
    }
}

impl std::error::Error for Failure {}

impl From<CarrierError> for Failure {
    fn from(error: CarrierError) -> Failure {
        Failure {
            code: error.code().to_owned(),
            message: error.to_string(),
            hint: error.hint().to_owned(),
        }
    }
}

/// An error of the carrier with its code and hint, as this program shows errors.
pub(crate) fn explain(error: &CarrierError) -> anyhow::Error {
    Failure::from(error.clone()).into()
}

/// A failure of something done with `host`.
pub(crate) fn explain_at(host: &str, failure: &Failure) -> anyhow::Error {
    anyhow!("{host}: {failure}")
}
