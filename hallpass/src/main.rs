//! `hallpass`, the SSH server of an instance.

mod renewal;
mod wireguard;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;
use underpass_hallpass::{
    self as hallpass, Cached, Config, DnsTrust, FileTrust, Host, TrustSource, Users,
};

use crate::renewal::Files;

/// The SSH server of an instance: certificates alone, both ways.
///
/// It joins the private network by itself, as a WireGuard peer without privileges, or listens on
/// an address of the machine. Variables of its own environment are those of the sessions.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Arguments {
    #[command(subcommand)]
    instead: Option<Instead>,
    #[command(flatten)]
    serve: Option<Serve>,
}

#[derive(Debug, Subcommand)]
enum Instead {
    /// Serves SFTP on standard input and output, as the user who runs it.
    #[command(hide = true)]
    SftpServer,
}

#[derive(Debug, Args)]
#[group(id = "way", multiple = true)]
struct Serve {
    /// The private host key.
    #[arg(long, value_name = "FILE", env = "HALLPASS_HOST_KEY")]
    host_key: PathBuf,
    /// The certificate for the host key; a new one in its place is taken within seconds.
    #[arg(long, value_name = "FILE", env = "HALLPASS_HOST_CERTIFICATE")]
    host_certificate: PathBuf,
    /// Join the network of this WireGuard configuration.
    #[arg(
        long,
        value_name = "FILE",
        env = "HALLPASS_WIREGUARD",
        required_unless_present = "listen"
    )]
    wireguard: Option<PathBuf>,
    /// The port inside the network.
    #[arg(long, default_value_t = 22, conflicts_with = "listen")]
    port: u16,
    /// Listen on this address of the machine instead.
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        conflicts_with = "wireguard",
        requires = "user_ca"
    )]
    listen: Option<SocketAddr>,
    /// The user authorities, one public key per line; read at each login. Without it,
    /// `_orgcert.internal` is asked.
    #[arg(long, value_name = "FILE", env = "HALLPASS_USER_CA")]
    user_ca: Option<PathBuf>,
    /// As whom sessions run.
    #[arg(long, value_enum, default_value_t = RunAs::System)]
    users: RunAs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RunAs {
    /// As the user of the login name; needs root.
    System,
    /// As the user of this process, whatever the login name.
    Current,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    match (arguments.instead, arguments.serve) {
        (Some(Instead::SftpServer), _) => {
            runtime.block_on(hallpass::serve_sftp_on_stdio());
            // A read of standard input cannot be called off.
            runtime.shutdown_background();
            Ok(())
        }
        (None, Some(arguments)) => runtime.block_on(serve(arguments)),
        (None, None) => bail!("nothing to do; hint: see --help"),
    }
}

async fn serve(arguments: Serve) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();

    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let files = Files {
        key: arguments.host_key,
        certificate: arguments.host_certificate,
    };
    let host = Host::from(files.read()?);
    let users = match arguments.users {
        RunAs::System => Users::System,
        RunAs::Current => Users::Current,
    };
    let mut config = Config::new(host.clone(), users);
    config.environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| !name.starts_with("HALLPASS_"))
        .collect();
    config.sftp_program = std::env::current_exe()
        .ok()
        .map(|this| vec![this, "sftp-server".into()]);
    let config = Arc::new(config);
    tokio::spawn(async move {
        if let Err(error) = files.follow(host).await {
            warn!("the host certificate is not followed: {error:#}");
        }
    });

    let stop = CancellationToken::new();
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stopping.cancel();
    });

    let file = arguments.user_ca.map(FileTrust::new);
    if let Some(address) = arguments.listen {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        let Some(trust) = file else {
            bail!("--listen needs --user-ca")
        };
        info!(address = %listener.local_addr()?, "listening");
        hallpass::serve(config, Arc::new(trust), listener, stop).await?;
    } else if let Some(path) = arguments.wireguard {
        let parsed = wireguard::Configuration::parse(&read(&path)?)
            .with_context(|| format!("{} is no WireGuard configuration", path.display()))?;
        let carrier = Box::pin(parsed.start()).await?;
        let listener = carrier.listen(arguments.port)?;
        let trust: Arc<dyn TrustSource> = match file {
            Some(trust) => Arc::new(trust),
            None => Arc::new(Cached::new(DnsTrust::new(carrier.clone()), TRUST_KEPT)),
        };
        info!(address = %carrier.local_addr(), port = arguments.port, "listening inside the network");
        hallpass::serve(config, trust, listener, stop).await?;
    }
    Ok(())
}

/// What the protocol library refuses by itself, such as an expired certificate, it says at this level.
const LOG: &str = "info,russh=error,russh::server::encrypted=warn";
/// As long as the records themselves may be kept.
const TRUST_KEPT: Duration = Duration::from_secs(5);
