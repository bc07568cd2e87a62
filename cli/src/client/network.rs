//! A way into an organisation's private network, for as long as a command runs: a tunnel that the
//! agent keeps, or one of this process where there is no agent or none is wanted.
//!
//! A tunnel of this process has a WireGuard key of its own and a peer leased for it: two processes
//! on one key would steal each other's session. The lease is renewed while the command runs and
//! given back at its end; of a command that was killed it expires by itself.

mod own;
mod peer;

use std::{fmt, net::Ipv6Addr, sync::Arc, time::Duration};

use anyhow::anyhow;
use carrier::{CarrierError, Handle};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tunnel::{Answer, Class, RecordKind};

pub(crate) use own::{Own, connect};
pub(crate) use peer::{Peer, lease_lost};

use crate::{
    api::Api,
    client::{
        agent::{self, Borrowed, Refused},
        args::Scope,
    },
};

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
    /// Which way packets go where neither of the two is given [env: UNDERPASS_TRANSPORT]
    #[arg(long = "transport", value_name = "WAY", default_value = "auto")]
    transport: Way,
    /// Have a tunnel of this command's own, not the agent's [env: UNDERPASS_AGENT=off]
    #[arg(long)]
    no_agent: bool,
}

/// How packets get to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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

    /// The same, with a tunnel of the command's own.
    pub(crate) fn own(&self) -> NetworkArgs {
        NetworkArgs {
            no_agent: true,
            ..self.clone()
        }
    }

    fn wants_agent(&self) -> bool {
        let wanted = agent::AVAILABLE && !self.no_agent;
        wanted && std::env::var_os("UNDERPASS_AGENT").is_none_or(|value| value != "off")
    }
}

/// The network. Clones share it.
#[derive(Clone)]
pub(crate) enum Network {
    /// By a tunnel of this process.
    Own(Arc<Own>),
    /// By a tunnel of the agent.
    Agent(Arc<Borrowed>),
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
    /// Stable code; empty where the sentence holds one.
    pub(crate) code: String,
    /// A sentence.
    pub(crate) message: String,
    /// What to do about it; may be empty.
    pub(crate) hint: String,
}

impl Network {
    /// Opens it, without waiting for the gateway.
    pub(crate) async fn open(args: &NetworkArgs) -> anyhow::Result<Network> {
        if args.wants_agent() {
            match Box::pin(Borrowed::open(&args.scope, args.way())).await {
                Ok(borrowed) => return Ok(Network::Agent(Arc::new(borrowed))),
                Err(Refused::Failed(error)) => return Err(error),
                Err(Refused::Unusable(error)) => {
                    eprintln!("underpass: no agent, but a tunnel of this command's own: {error:#}");
                }
            }
        }
        let lost = || eprintln!("underpass: {}", lease_lost());
        let own = Box::pin(Own::open(&args.scope, args.way(), lost)).await?;
        Ok(Network::Own(Arc::new(own)))
    }

    /// The peer of a tunnel of this process.
    pub(crate) fn own_peer(&self) -> Option<&Peer> {
        match self {
            Network::Own(own) => Some(own.peer()),
            Network::Agent(_) => None,
        }
    }

    /// The organisation.
    pub(crate) fn org(&self) -> &str {
        match self {
            Network::Own(own) => &own.peer().org,
            Network::Agent(borrowed) => borrowed.org(),
        }
    }

    /// Control, logged in.
    pub(crate) async fn api(&self) -> anyhow::Result<&Api> {
        match self {
            Network::Own(own) => Ok(&own.peer().api),
            Network::Agent(borrowed) => borrowed.api().await,
        }
    }

    /// The authorities trusted for the organisation's hosts.
    pub(crate) fn host_cas(&self) -> anyhow::Result<Vec<ssh_key::PublicKey>> {
        match self {
            Network::Own(own) => own.peer().lease.host_cas(),
            Network::Agent(borrowed) => peer::host_cas(&borrowed.host_cas()),
        }
    }

    /// Waits until the gateway has answered.
    pub(crate) async fn ready(&self) -> anyhow::Result<Duration> {
        match self {
            Network::Own(own) => own.ready().await,
            Network::Agent(borrowed) => Ok(borrowed.ready().await?),
        }
    }

    /// What data goes over now: `UDP` or `WebSocket`.
    pub(crate) fn transport(&self) -> String {
        match self {
            Network::Own(own) => own.carrier().transport().to_owned(),
            Network::Agent(borrowed) => borrowed.transport(),
        }
    }

    /// A key and a certificate of it that this tunnel's address alone can use.
    pub(crate) async fn identity(&self, user: &str) -> anyhow::Result<ssh::client::Identity> {
        match self {
            Network::Own(own) => super::ssh::console::certify(own.peer(), user).await,
            Network::Agent(borrowed) => borrowed.identity(user).await,
        }
    }

    /// Connects to a host: to the first of its addresses that answers.
    pub(crate) async fn connect(
        &self,
        host: &str,
        port: u16,
        class: Class,
    ) -> Result<Stream, Failure> {
        match self {
            Network::Own(own) => {
                let stream = connect(own.carrier(), host, port, class).await?;
                Ok(Box::new(stream))
            }
            Network::Agent(borrowed) => borrowed.connect(host, port, class).await,
        }
    }

    /// Asks the network's name server.
    pub(crate) async fn lookup(&self, name: &str, kind: RecordKind) -> Result<Answer, Failure> {
        match self {
            Network::Own(own) => Ok(own.carrier().lookup(name, kind).await?),
            Network::Agent(borrowed) => borrowed.lookup(name, kind).await,
        }
    }

    /// The addresses of a host: its own where it is one, with or without brackets.
    pub(crate) async fn resolve(&self, host: &str) -> Result<Vec<Ipv6Addr>, Failure> {
        if let Some(address) = own::literal(host) {
            return Ok(vec![address]);
        }
        match self.lookup(host, RecordKind::Aaaa).await? {
            Answer::Aaaa(addresses) => Ok(addresses),
            Answer::Txt(_) => Ok(Vec::new()),
        }
    }

    /// Sends an echo request and waits for its answer.
    pub(crate) async fn ping(&self, to: Ipv6Addr) -> Result<Echo, Failure> {
        match self {
            Network::Own(own) => Echo::ask(own.carrier(), to).await,
            Network::Agent(borrowed) => borrowed.ping(to).await,
        }
    }

    /// Says goodbye to the gateway, or lets go of the agent's tunnel.
    pub(crate) async fn close(self) {
        match self {
            Network::Own(own) => own.close().await,
            Network::Agent(_) => {}
        }
    }
}

impl Echo {
    /// Sends an echo request through a carrier.
    pub(crate) async fn ask(carrier: &Handle, to: Ipv6Addr) -> Result<Echo, Failure> {
        let rtt = carrier.ping(to).await?;
        Ok(Echo {
            micros: u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX),
            transport: carrier.transport().to_owned(),
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.code.is_empty() {
            write!(f, " ({})", self.code)?;
        }
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
