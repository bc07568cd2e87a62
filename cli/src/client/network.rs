//! A tunnel into an organisation's private network, for as long as a command runs.
//!
//! Every command makes a WireGuard key of its own and leases a peer for it: two processes on one
//! key would steal each other's session. The lease is renewed while the command runs and given
//! back at its end; of a command that was killed it expires by itself.

use std::{
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use carrier::{CarrierError, Handle, TcpStream, Transport, Trust};
use clap::ValueEnum;
use http::Method;
use serde::Deserialize;
use serde_json::json;
use tokio::task::JoinHandle;
use tunnel::{Answer, Class, PrivateKey, RecordKind};

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
enum Way {
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

/// A peer as control leases it.
#[derive(Debug, Deserialize)]
pub(crate) struct Lease {
    name: String,
    address: String,
    dns: Ipv6Addr,
    gateway: Gateway,
    relay: Relay,
    host_cas: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Gateway {
    public_key: String,
    endpoint: String,
}

#[derive(Deserialize)]
struct Relay {
    url: String,
    token: String,
}

/// The token is a secret and is not shown.
impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Lease {
    /// The peer's address, without its prefix length.
    pub(crate) fn address(&self) -> anyhow::Result<Ipv6Addr> {
        let address = self.address.split('/').next().unwrap_or_default();
        address
            .parse()
            .with_context(|| format!("control leased the address {:?}", self.address))
    }

    /// The authorities trusted for the organisation's hosts.
    pub(crate) fn host_cas(&self) -> anyhow::Result<Vec<ssh_key::PublicKey>> {
        let keys = self.host_cas.iter();
        keys.map(|line| ssh_key::PublicKey::from_openssh(line).context("a host CA is unreadable"))
            .collect()
    }
}

/// A key of this process, leased as a peer.
pub(crate) struct Peer {
    /// Whoever leased it.
    pub(crate) api: Api,
    /// The organisation.
    pub(crate) org: String,
    /// What control said.
    pub(crate) lease: Lease,
    key: PrivateKey,
    /// What the relay's certificate is compared with.
    trust: Trust,
}

impl Peer {
    /// Makes a key and leases it.
    pub(crate) async fn lease(scope: &Scope) -> anyhow::Result<Peer> {
        let (api, org) = Box::pin(scope.open()).await?;
        let trust = api.trust()?;
        let key = PrivateKey::from_bytes(random()?);
        let lease = lease(&api, &org, &key).await?;
        Ok(Peer {
            api,
            org,
            lease,
            key,
            trust,
        })
    }

    /// Starts its tunnel, without waiting for the gateway.
    pub(crate) async fn start(&self, transport: Transport) -> anyhow::Result<Handle> {
        let config = tunnel::Config {
            peer: self.lease.gateway.public_key.parse().map_err(|_| {
                anyhow!("control named a gateway without a key\nhint: restart `underpass up`")
            })?,
            preshared: None,
            addresses: vec![self.lease.address()?],
            dns: Some(self.lease.dns),
            mtu: 1420,
            keepalive: Some(15),
            seed: u64::from_ne_bytes(random()?),
            private_key: self.key.clone(),
        };
        carrier::start(config, transport)
            .await
            .map_err(|error| explain(&error))
    }

    /// Where the gateway listens for UDP.
    pub(crate) fn endpoint(&self) -> &str {
        &self.lease.gateway.endpoint
    }

    /// The relay.
    pub(crate) fn relay(&self) -> anyhow::Result<url::Url> {
        url::Url::parse(&self.lease.relay.url)
            .context("control named a relay without a URL\nhint: restart `underpass up`")
    }

    /// What opens the relay.
    pub(crate) fn token(&self) -> String {
        self.lease.relay.token.clone()
    }

    /// UDP alone.
    pub(crate) async fn udp(&self) -> anyhow::Result<Transport> {
        let endpoint = lookup(self.endpoint()).await?;
        Ok(Transport::Udp { endpoint })
    }

    /// The relay alone.
    pub(crate) fn websocket(&self) -> anyhow::Result<Transport> {
        Ok(Transport::WebSocket {
            url: self.relay()?,
            token: Some(self.token()),
            tls: self.tls()?,
        })
    }

    /// What the relay's certificate has to pass.
    pub(crate) fn tls(&self) -> anyhow::Result<Arc<rustls::ClientConfig>> {
        carrier::tls_config(&self.trust).map_err(|error| explain(&error))
    }

    async fn transport(&self, way: Way) -> anyhow::Result<Transport> {
        let endpoint = match way {
            Way::Udp => return self.udp().await,
            Way::Websockets => return self.websocket(),
            Way::Auto => lookup(self.endpoint()).await,
        };
        // A gateway whose name cannot be resolved here is reached through the relay.
        let Ok(endpoint) = endpoint else {
            return self.websocket();
        };
        Ok(Transport::Race {
            endpoint,
            url: self.relay()?,
            token: Some(self.token()),
            tls: self.tls()?,
        })
    }

    /// Keeps the lease; `renewed` hears of each new token of the relay. Ends when the lease is
    /// lost: it ended while this machine slept, or somebody removed the peer, and what control
    /// leases now is another address.
    pub(crate) async fn keep(&self, renewed: impl Fn(String)) {
        let mut after = RENEW_EVERY;
        loop {
            tokio::time::sleep(after).await;
            after = match lease(&self.api, &self.org, &self.key).await {
                Ok(lease) if lease.address != self.lease.address => return,
                Ok(lease) => {
                    renewed(lease.relay.token);
                    RENEW_EVERY
                }
                Err(error) => {
                    tracing::warn!("the lease was not renewed: {error:#}");
                    RENEW_AGAIN
                }
            };
        }
    }

    /// Gives the lease back.
    pub(crate) async fn release(&self) {
        let path = format!("/api/v1/orgs/{}/peers/{}", self.org, self.lease.name);
        let gone = self
            .api
            .call::<serde_json::Value>(Method::DELETE, &path, &());
        if let Ok(Err(error)) = tokio::time::timeout(RELEASE_LIMIT, gone).await {
            tracing::debug!("the lease was not given back: {error:#}");
        }
    }
}

/// What [`Peer::keep`] ends in.
pub(crate) fn lease_lost() -> anyhow::Error {
    anyhow!(
        "this command's address was given away (lease_lost)\n\
         hint: it slept too long or its peer was removed; run it again"
    )
}

/// A tunnel that runs.
pub(crate) struct Network {
    /// Whose it is.
    pub(crate) peer: Arc<Peer>,
    handle: Handle,
    renewal: JoinHandle<()>,
}

/// A lease lasts ten minutes.
const RENEW_EVERY: Duration = Duration::from_secs(180);

/// After a renewal that failed.
const RENEW_AGAIN: Duration = Duration::from_secs(15);

/// Giving a lease back is a courtesy: it expires anyway.
const RELEASE_LIMIT: Duration = Duration::from_secs(3);

impl Network {
    /// Leases a peer and starts its tunnel, without waiting for the gateway.
    pub(crate) async fn open(args: &NetworkArgs) -> anyhow::Result<Network> {
        let peer = Arc::new(Box::pin(Peer::lease(&args.scope)).await?);
        let started = async {
            let transport = peer.transport(args.way()).await?;
            Box::pin(peer.start(transport)).await
        };
        let handle = match started.await {
            Ok(handle) => handle,
            Err(error) => {
                peer.release().await;
                return Err(error);
            }
        };
        let renewal = tokio::spawn({
            let (peer, handle) = (Arc::clone(&peer), handle.clone());
            async move {
                peer.keep(|token| handle.set_token(Some(token))).await;
                eprintln!("underpass: {}", lease_lost());
                handle.close().await;
            }
        });
        Ok(Network {
            peer,
            handle,
            renewal,
        })
    }

    /// The carrier.
    pub(crate) fn carrier(&self) -> &Handle {
        &self.handle
    }

    /// Waits until the gateway has answered.
    pub(crate) async fn ready(&self) -> anyhow::Result<Duration> {
        self.handle.ready().await.map_err(|error| explain(&error))
    }

    /// Connects to a host: to the first of its addresses that answers.
    pub(crate) async fn connect(
        &self,
        host: &str,
        port: u16,
        class: Class,
    ) -> Result<TcpStream, CarrierError> {
        connect(&self.handle, host, port, class).await
    }

    /// Says goodbye to the gateway and gives the lease back.
    pub(crate) async fn close(self) {
        self.renewal.abort();
        self.handle.close().await;
        self.peer.release().await;
    }
}

/// The addresses of a host: its own where it is one, with or without brackets.
pub(crate) async fn resolve(handle: &Handle, host: &str) -> Result<Vec<Ipv6Addr>, CarrierError> {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    if let Ok(address) = bare.unwrap_or(host).parse() {
        return Ok(vec![address]);
    }
    match handle.lookup(host, RecordKind::Aaaa).await? {
        Answer::Aaaa(addresses) => Ok(addresses),
        Answer::Txt(_) => Ok(Vec::new()),
    }
}

/// See [`Network::connect`].
pub(crate) async fn connect(
    handle: &Handle,
    host: &str,
    port: u16,
    class: Class,
) -> Result<TcpStream, CarrierError> {
    let mut last = None;
    for address in resolve(handle, host).await? {
        match handle
            .connect(SocketAddrV6::new(address, port, 0, 0), class)
            .await
        {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or(CarrierError::Stopped))
}

/// An error of the carrier with its code and hint, as this program shows errors.
pub(crate) fn explain(error: &CarrierError) -> anyhow::Error {
    let (code, hint) = (error.code().to_owned(), error.hint().to_owned());
    if hint.is_empty() {
        anyhow!("{error} ({code})")
    } else {
        anyhow!("{error} ({code})\nhint: {hint}")
    }
}

/// The same, of something done with `host`.
pub(crate) fn explain_at(host: &str, error: &CarrierError) -> anyhow::Error {
    let error = explain(error);
    anyhow!("{host}: {error}")
}

async fn lease(api: &Api, org: &str, key: &PrivateKey) -> anyhow::Result<Lease> {
    let path = format!("/api/v1/orgs/{org}/peers");
    let body = json!({ "public_key": key.public() });
    api.call(Method::POST, &path, &body).await
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).context("no randomness")?;
    Ok(bytes)
}

pub(crate) async fn lookup(text: &str) -> anyhow::Result<SocketAddr> {
    let found = tokio::net::lookup_host(text).await;
    match found.map(|mut addresses| addresses.next()) {
        Ok(Some(address)) => Ok(address),
        Ok(None) => bail!("the gateway's name {text} has no address\nhint: try --websockets"),
        Err(error) => Err(anyhow!(
            "the gateway's name {text} cannot be resolved: {error}\nhint: try --websockets"
        )),
    }
}
