//! `underpass up`: every role in one process, on one TLS port and one UDP port.

mod config;
mod demo;
mod dir;
mod page;
mod report;

use std::{collections::HashMap, io::IsTerminal, net::SocketAddr, sync::Arc, time::SystemTime};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use control::{Control, GatewayInfo, Hosts, Store};
use gateway::{PeerRecord, Peers, PeersUnavailable};
use names::Names;
use relay::{
    AcceptLimits, CertificateFiles, GatewayTarget, Relay, RelayConfig,
    tls::{Certificate, Identity},
};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::Notify,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tunnel::PrivateKey;
use wire::PublicKey;

pub(crate) use config::Args;
use config::Config;

use zeroize::Zeroizing;

use crate::{
    client::console::console_url,
    data_dir::{DataDir, Running},
};

/// The one gateway of an `up`, by its name in the relay's path.
const GATEWAY: &str = "local";

/// The organisation of a store that has none.
const FIRST_ORG: &str = "personal";

/// Who the person at this machine is to control.
const LOCAL_USER: &str = "local";

/// Runs until Ctrl-C or SIGTERM.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let config = args.config()?;
    log_to_stderr();
    let dir = args.data_dir.own()?;
    let _only_one = dir.lock()?;
    let stop = stop_signal()?;
    let up = Box::pin(Up::start(config, dir.clone(), stop.clone())).await?;
    up.report.print()?;
    stop.cancelled().await;
    eprintln!("stopping");
    dir.retract();
    up.tasks.close();
    up.relay.closed().await;
    up.drained.cancel();
    up.tasks.wait().await;
    Ok(())
}

/// What runs.
struct Up {
    report: report::Report,
    relay: Relay,
    tasks: TaskTracker,
    /// The relay's last session has ended: readiness need not be told any more.
    drained: CancellationToken,
}

impl Up {
    async fn start(config: Config, dir: DataDir, stop: CancellationToken) -> anyhow::Result<Up> {
        let tasks = TaskTracker::new();
        let store = Arc::new(Store::open(dir.store())?);
        let tcp = bind(
            config.listen,
            "--listen",
            TcpListener::bind(config.listen).await,
        )?;
        let udp = bind(
            config.gateway_listen,
            "--gateway-listen",
            UdpSocket::bind(config.gateway_listen).await,
        )?;
        let listen = tcp.local_addr()?;
        let gateway_listen = udp.local_addr()?;
        let key = gateway_key(&dir)?;
        let names = config::names(listen, &config.hosts);
        let certificate = match &config.tls {
            Some((chain, key)) => Certificate::load(chain, key)?,
            None => Certificate::load_or_make(&dir.path().join("tls"), &names, now())?,
        };

        let (gateway, inbox) = gateway::handle();
        let info = GatewayInfo {
            name: GATEWAY.to_owned(),
            public_key: key.public(),
            endpoint: config
                .advertise
                .clone()
                .unwrap_or_else(|| gateway_listen.to_string()),
        };
        let hosts = config::hosts(&names, listen.port());
        let authority = config::authority(&names, listen.port());
        let relay_url = format!("wss://{authority}");
        let control = Arc::new(Control::new(
            Arc::clone(&store),
            control::Config {
                gateway: info.clone(),
                relay_url: relay_url.clone(),
                hosts: Hosts::new(hosts.clone()),
                origins: config.origins.clone(),
                revoked: revoker(gateway.clone()),
            },
            Arc::new(now),
        )?);
        let target = GatewayTarget {
            endpoint: config::reachable(gateway_listen),
            public_key: key.public(),
        };
        let relay = Relay::new(
            &RelayConfig {
                gateways: HashMap::from([(GATEWAY.to_owned(), target)]),
                flyctl_gateway: config.flyctl.then(|| GATEWAY.to_owned()),
                token_keys: vec![control.signer().public_key()],
                allowed_origins: hosts
                    .iter()
                    .map(|host| format!("https://{host}"))
                    .chain(config.origins.clone())
                    .collect(),
                allowed_hosts: hosts.clone(),
                ..RelayConfig::new()
            },
            Arc::default(),
            stop.clone(),
        );
        let identity = Identity::new(&certificate)?;
        let drained = CancellationToken::new();
        if let Some(address) = config.metrics_listen {
            let listener = TcpListener::bind(address).await;
            let listener = bind(address, "--metrics-listen", listener)?;
            tasks.spawn(relay::serve_admin(
                listener,
                relay.clone(),
                Arc::clone(&identity),
                drained.clone(),
            ));
        }

        let names = Arc::new(Names::new(Arc::clone(&control)));
        let options = gateway::Options {
            // Sessions of our own relay all come from this machine.
            relays: std::iter::once(target.endpoint.ip())
                .chain(config.relay_addresses.clone())
                .collect(),
            upstream: config.dns_upstream,
            limits: gateway::Limits::default(),
        };
        let peers = Arc::new(StorePeers(Arc::clone(&store)));
        let serve = gateway::serve(udp, key.clone(), peers, names, options, inbox, stop.clone());
        tasks.spawn(fatal("gateway", stop.clone(), serve));

        let page = control::guard_hosts(page::router(&config.origins), Hosts::new(hosts));
        let app = page
            .merge(relay::router(relay.clone()))
            .merge(control::router(Arc::clone(&control)));
        if let Some((chain, key)) = config.tls.clone() {
            tasks.spawn(relay::keep_certificate(
                Arc::clone(&identity),
                CertificateFiles { chain, key },
                hang_up()?,
                Arc::clone(relay.counters()),
                stop.clone(),
            ));
        }
        tasks.spawn(relay::serve(
            tcp,
            identity.server_config()?,
            relay::with_flyctl(app, relay.clone()),
            AcceptLimits::default(),
            Arc::clone(relay.counters()),
            stop.clone(),
        ));
        tasks.spawn(sweep(Arc::clone(&store), stop.clone()));
        let url = format!("https://{authority}");
        let demo = match config.demo {
            true => Some(
                demo::start(
                    &dir,
                    &store,
                    demo::Uplink { gateway, target },
                    &tasks,
                    &stop,
                )
                .await?,
            ),
            false => None,
        };
        dir.announce(&Running {
            pid: std::process::id(),
            url: url.clone(),
            address: config::reachable(listen),
            fingerprint: certificate.fingerprint().to_string(),
        })?;
        let report = report::Report {
            json: config.json,
            console_url: console_url(&url, login_token(&store)?.token.reveal()),
            relay_url: format!("{relay_url}/v1/tunnel/{GATEWAY}"),
            gateway: info,
            relay_token_key: STANDARD.encode(control.signer().public_key()),
            fingerprint: certificate.fingerprint().to_string(),
            self_signed: config.tls.is_none(),
            data_dir: dir.path().to_owned(),
            demo,
        };
        Ok(Up {
            report,
            relay,
            tasks,
            drained,
        })
    }
}

/// A login token for the owner of a data directory.
pub(crate) fn local_login_token(dir: &DataDir) -> anyhow::Result<Zeroizing<String>> {
    let token = login_token(&Store::open(dir.store())?)?;
    Ok(Zeroizing::new(token.token.reveal().to_owned()))
}

/// Makes an organisation, and returns its network as a prefix.
pub(crate) fn create_org(dir: &DataDir, name: &str) -> anyhow::Result<String> {
    let org = Store::open(dir.store())?.create_org(name, now())?;
    // The next login makes the local user a member.
    dir.forget_session();
    Ok(org.network.prefix().to_string())
}

/// Writes down whether an instance shall run; the demo that owns it follows.
pub(crate) fn set_instance_started(dir: &DataDir, id: &str, started: bool) -> anyhow::Result<()> {
    dir.running()?;
    Ok(Store::open(dir.store())?.set_instance_started(id, started)?)
}

/// The clock of the servers, and of nothing that could take it as an argument.
#[expect(
    clippy::disallowed_methods,
    reason = "the driver's clock: the cores take what this says"
)]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

/// A token for the local user, who is a member of every organisation of a directory he owns.
fn login_token(store: &Store) -> anyhow::Result<control::LoginToken> {
    if store.orgs()?.is_empty() {
        store.create_org(FIRST_ORG, now())?;
    }
    Ok(store.create_local_login_token(LOCAL_USER, now())?)
}

/// The gateway's view of the store.
struct StorePeers(Arc<Store>);

impl Peers for StorePeers {
    async fn peer(&self, key: PublicKey) -> Result<Option<PeerRecord>, PeersUnavailable> {
        let holder = self.0.peer_by_key(key, now());
        let holder = holder.map_err(|error| PeersUnavailable(error.to_string()))?;
        Ok(holder.map(|holder| PeerRecord {
            name: holder.name,
            key,
            range: holder.range,
            preshared: None,
            expires: holder.expires,
        }))
    }
}

fn revoker(gateway: gateway::Handle) -> Arc<dyn Fn(PublicKey) + Send + Sync> {
    Arc::new(move |key| {
        let gateway = gateway.clone();
        tokio::spawn(async move { gateway.revoke(key).await });
    })
}

/// Forgets what has ended in the store, now and then.
async fn sweep(store: Arc<Store>, stop: CancellationToken) {
    while stop
        .run_until_cancelled(tokio::time::sleep(SWEEP))
        .await
        .is_some()
    {
        if let Err(error) = store.sweep(now()) {
            tracing::warn!(%error, "the store cannot be swept");
        }
    }
}

const SWEEP: std::time::Duration = std::time::Duration::from_secs(60);

/// A role whose end is the end of all.
async fn fatal<E: std::fmt::Display>(
    role: &'static str,
    stop: CancellationToken,
    work: impl Future<Output = Result<(), E>>,
) {
    if let Err(error) = work.await {
        eprintln!("underpass: the {role} failed: {error}");
        stop.cancel();
    }
}

fn gateway_key(dir: &DataDir) -> anyhow::Result<PrivateKey> {
    Ok(PrivateKey::from_bytes(*dir.secret("gateway.key", random)?))
}

/// 32 bytes that nobody can guess.
fn random() -> anyhow::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).context("the system has no randomness")?;
    Ok(bytes)
}

pub(crate) fn bind<S>(
    address: SocketAddr,
    flag: &str,
    bound: std::io::Result<S>,
) -> anyhow::Result<S> {
    bound.map_err(|error| {
        let port = SocketAddr::new(address.ip(), 0);
        anyhow::anyhow!("cannot listen on {address}: {error}\nhint: stop what listens there, or say {flag} {port}")
    })
}

/// Cancelled by the first Ctrl-C or SIGTERM; the second ends the process.
pub(crate) fn stop_signal() -> anyhow::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = CancellationToken::new();
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let token = stop.clone();
    tokio::spawn(async move {
        for again in [false, true] {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            if again {
                std::process::exit(130);
            }
            token.cancel();
        }
    });
    Ok(stop)
}

/// Says when SIGHUP comes.
pub(crate) fn hang_up() -> anyhow::Result<Arc<Notify>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut signal = signal(SignalKind::hangup())?;
    let said = Arc::new(Notify::new());
    let say = Arc::clone(&said);
    tokio::spawn(async move {
        while signal.recv().await.is_some() {
            say.notify_one();
        }
    });
    Ok(said)
}

pub(crate) fn log_to_stderr() {
    use tracing_subscriber::{EnvFilter, fmt};
    let filter = EnvFilter::try_from_env("UNDERPASS_LOG")
        .unwrap_or_else(|_| EnvFilter::new("warn,boringtun=off"));
    let logs = fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .try_init();
    debug_assert!(logs.is_ok(), "logging starts once");
}
