//! `underpass relay`: the relay alone, in front of gateways that are elsewhere.

mod config;

use std::{
    fs,
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use relay::{Acme, CertificateFiles, Counters, Relay, rest::set_rest, tls::Identity};
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    platform::{self, Access},
    up::{bind, hang_up, log_to_stderr, stop_signal},
};

use config::{Config, HAND_OVER, Tls};

/// Run a relay alone.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  underpass relay --config /etc/underpass/relay.toml
  underpass relay --config relay.toml --check          say what is wrong with it, and end

A configuration:
  listen = \"[::]:443\"
  hosts = [\"relay.example.com\"]
  origins = [\"https://console.example.com\"]
  token_keys = [\"...\"]                # `relay_token_key` of `underpass up --json`
  metrics_listen = \"127.0.0.1:9100\"
  [tls]
  certificate = \"/etc/underpass/chain.pem\"
  key = \"/etc/underpass/key.pem\"
  [gateways.local]
  endpoint = \"192.0.2.1:51820\"
  public_key = \"...\"

A certificate that is ordered and renewed instead, from Let's Encrypt or from `directory`:
  [tls.acme]
  domains = [\"relay.example.com\"]
  contact = \"mailto:ops@example.com\"
  cache = \"/var/lib/underpass/acme\"")]
pub(crate) struct Args {
    /// What it serves, in TOML
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Read the configuration and the certificate, say what is wrong, and end
    #[arg(long)]
    check: bool,
    /// Print one line of JSON on stdout when ready, and nothing else there
    #[arg(long)]
    json: bool,
}

/// How often an address for metrics that is taken is tried.
const TRY_METRICS: Duration = Duration::from_millis(200);
/// How often the configuration is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Runs until Ctrl-C or SIGTERM, and then until the last session has left.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let config = Config::load(&args.config)?;
    if let (Tls::Acme(acme, _), false) = (&config.tls, args.check) {
        let made = platform::make_private_dir(&acme.cache);
        made.with_context(|| {
            let shown = acme.cache.display();
            format!("cannot make {shown}\nhint: cache = names a directory for this user")
        })?;
    }
    let (identity, keeper) = config.tls.open()?;
    if args.check {
        println!("{} is fine", args.config.display());
        return Ok(());
    }
    log_to_stderr();
    set_rest(config.rest);
    let stop = stop_signal()?;
    let hang_up = hang_up()?;
    let takes_over = relay::is_taken(config.listen);
    let listener = bind(config.listen, "listen =", relay::listen(config.listen))?;
    let listen = listener.local_addr()?;
    let counters = Arc::new(Counters::new());
    let (accepting, sessions, drained) = (
        CancellationToken::new(),
        CancellationToken::new(),
        CancellationToken::new(),
    );
    let relay = Relay::new(&config.relay, Arc::clone(&counters), sessions.clone());
    let tasks = TaskTracker::new();
    let mut metrics = None;
    if let Some(address) = config.metrics_listen {
        let admin = TcpListener::bind(address).await;
        let is_taken = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
        if takes_over && admin.as_ref().is_err_and(is_taken) {
            eprintln!("metrics are on {address} when the relay before this one has ended");
            metrics = Some(address);
            tasks.spawn(metrics_later(
                address,
                relay.clone(),
                Arc::clone(&identity),
                drained.clone(),
            ));
        } else {
            let admin = bind(address, "metrics_listen =", admin)?;
            metrics = Some(admin.local_addr()?);
            tasks.spawn(relay::serve_admin(
                admin,
                relay.clone(),
                Arc::clone(&identity),
                drained.clone(),
            ));
        }
    }
    let certificate_too = Arc::new(Notify::new());
    let (ask, count, stopped) = (
        Arc::clone(&certificate_too),
        Arc::clone(&counters),
        accepting.clone(),
    );
    match keeper {
        Keeper::Files(files) => tasks.spawn(relay::keep_certificate(
            Arc::clone(&identity),
            files,
            ask,
            count,
            stopped,
        )),
        Keeper::Acme(acme) => tasks.spawn(acme.keep(ask, count, stopped)),
    };
    tasks.spawn(keep_configuration(
        args.config.clone(),
        relay.clone(),
        hang_up,
        certificate_too,
        accepting.clone(),
    ));
    tasks.spawn(relay::serve(
        listener,
        identity.server_config()?,
        relay::with_flyctl(relay::router(relay.clone()), relay.clone()),
        config.accept,
        counters,
        accepting.clone(),
    ));
    ready(&args, listen, metrics)?;

    stop.cancelled().await;
    eprintln!("draining");
    accepting.cancel();
    sleep(HAND_OVER).await;
    sessions.cancel();
    relay.closed().await;
    drained.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// Serves metrics as soon as the address is free. Until then they are those of the relay that is
/// being replaced: that it drains is to be seen until its end.
async fn metrics_later(
    address: SocketAddr,
    relay: Relay,
    identity: Arc<Identity>,
    stop: CancellationToken,
) {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return relay::serve_admin(listener, relay, identity, stop).await,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return eprintln!("no metrics on {address}: {error}"),
        }
        if stop.run_until_cancelled(sleep(TRY_METRICS)).await.is_none() {
            return;
        }
    }
}

/// Takes the configuration again when SIGHUP comes and when its file has changed. One that cannot
/// be used changes nothing.
async fn keep_configuration(
    file: PathBuf,
    relay: Relay,
    hang_up: Arc<Notify>,
    certificate_too: Arc<Notify>,
    stop: CancellationToken,
) {
    let changed = |file: &Path| -> Option<(SystemTime, u64)> {
        let about = fs::metadata(file).ok()?;
        Some((about.modified().ok()?, about.len()))
    };
    let mut seen = changed(&file);
    loop {
        let asked = tokio::select! {
            () = stop.cancelled() => return,
            asked = timeout(LOOK, hang_up.notified()) => asked.is_ok(),
        };
        let state = changed(&file);
        if asked {
            certificate_too.notify_one();
        } else if state == seen {
            continue;
        }
        seen = state;
        match Config::load(&file) {
            Ok(config) => {
                relay.reload(&config.relay);
                eprintln!("{} is loaded", file.display());
            }
            Err(error) => eprintln!("the configuration before is kept: {error:#}"),
        }
    }
}

fn ready(args: &Args, listen: SocketAddr, metrics: Option<SocketAddr>) -> anyhow::Result<()> {
    let text = if args.json {
        json!({ "listen": listen, "metrics": metrics }).to_string()
    } else {
        let metrics = metrics.map_or_else(String::new, |it| format!(", metrics on {it}"));
        format!("The relay is up on {listen}{metrics}. Ctrl-C drains and stops it.")
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Who keeps the certificate of a port up to date.
enum Keeper {
    Files(CertificateFiles),
    Acme(Box<Acme>),
}

impl Tls {
    /// Reads what there is: files are to be there, a certificate that is ordered may be still to
    /// come.
    fn open(&self) -> anyhow::Result<(Arc<Identity>, Keeper)> {
        match self {
            Tls::Files(files) => {
                let identity = Identity::new(&files.load()?)?;
                Ok((identity, Keeper::Files(files.clone())))
            }
            Tls::Acme(config, key_file) => {
                if config.cache.exists() {
                    platform::check_private(&config.cache, Access::Enter)?;
                    for file in fs::read_dir(&config.cache)? {
                        platform::check_private(&file?.path(), Access::Read)?;
                    }
                }
                let mut config = config.clone();
                if let (Some(account), Some(file)) = (&mut config.external_account, key_file) {
                    account.key = external_key(file)?;
                }
                let acme = Acme::new(config)?;
                Ok((Arc::clone(acme.identity()), Keeper::Acme(Box::new(acme))))
            }
        }
    }
}

/// The key of an external account, as ACME servers' owners hand it out.
fn external_key(file: &Path) -> anyhow::Result<Vec<u8>> {
    platform::check_private(file, Access::Read)?;
    let text =
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let key = URL_SAFE_NO_PAD
        .decode(text.trim().trim_end_matches('='))
        .ok();
    key.filter(|key| !key.is_empty()).with_context(|| {
        format!(
            "{} holds no key\nhint: one line of base64url, as the ACME server's owner hands it out",
            file.display()
        )
    })
}
