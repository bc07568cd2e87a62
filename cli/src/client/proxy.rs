//! `underpass proxy`

mod socks;

use std::{net::IpAddr, process::ExitCode, str::FromStr, sync::Arc};

use anyhow::{Context, bail};
use serde_json::json;
use tokio::{
    io::copy_bidirectional_with_sizes,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tunnel::Class;

use crate::client::{
    network::{self, Network, NetworkArgs},
    ssh::target,
    terminal::{ended_by_signal, exit_code_of_signal},
};

/// Arguments of `proxy`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// LOCAL:REMOTE ports, several at once, and the host they lead to; local port 0 takes a free one
    #[arg(value_name = "LOCAL:REMOTE [HOST]")]
    words: Vec<String>,
    /// Run a SOCKS5 proxy instead, names resolved inside the network
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "1080")]
    socks: Option<u16>,
    /// Listen on this address of this machine
    #[arg(long, short, value_name = "ADDRESS", default_value = "127.0.0.1")]
    bind: IpAddr,
    /// Print one line of JSON per port when it is open
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: target::TargetArgs,
    #[command(flatten)]
    network: NetworkArgs,
}

/// Connections carried at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 512;

/// Per connection and direction.
const COPY: usize = 64 * 1024;

/// What a local port leads to.
#[derive(Clone, Debug)]
enum Destination {
    Port(String, u16),
    Socks,
}

/// Carries connections until it is told to end.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (pairs, host) = forwards(&args)?;
    // Before a lease is taken: a port that is taken already is the commonest mistake.
    let mut listeners = Vec::new();
    for (local, remote) in pairs {
        listeners.push((listen(args.bind, local).await?, Some(remote)));
    }
    if let Some(port) = args.socks {
        listeners.push((listen(args.bind, port).await?, None));
    }
    let network = Box::pin(Network::open(&args.network)).await?;
    let ended = tokio::select! {
        ended = within(&args, &network, host, listeners) => ended.map(|()| ExitCode::SUCCESS),
        signal = ended_by_signal() => Ok(ExitCode::from(exit_code_of_signal(signal))),
    };
    network.close().await;
    ended
}

async fn within(
    args: &Args,
    network: &Network,
    host: Option<String>,
    listeners: Vec<(TcpListener, Option<u16>)>,
) -> anyhow::Result<()> {
    network.ready().await?;
    let host = match host {
        Some(host) => host,
        None if args.socks.is_some() => String::new(),
        None => args.target.choose(network).await?,
    };
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut serving = JoinSet::new();
    for (listener, remote) in listeners {
        let destination = match remote {
            Some(port) => Destination::Port(host.clone(), port),
            None => Destination::Socks,
        };
        let local = listener.local_addr()?;
        match (&destination, args.json) {
            (Destination::Port(host, port), true) => {
                println!("{}", json!({ "local": local, "host": host, "port": port }));
            }
            (Destination::Socks, true) => println!("{}", json!({ "local": local, "socks": 5 })),
            (Destination::Port(host, port), false) => {
                println!("{local} leads to {host} port {port}");
            }
            (Destination::Socks, false) => {
                println!("{local} is a SOCKS5 proxy: curl --proxy socks5h://{local} ...");
            }
        }
        let network = network.clone();
        serving.spawn(serve(listener, destination, network, Arc::clone(&slots)));
    }
    while let Some(ended) = serving.join_next().await {
        ended??;
    }
    Ok(())
}

async fn listen(bind: IpAddr, port: u16) -> anyhow::Result<TcpListener> {
    TcpListener::bind((bind, port)).await.with_context(|| {
        format!("cannot listen on {bind} port {port}\nhint: choose another local port, or 0 for a free one")
    })
}

async fn serve(
    listener: TcpListener,
    destination: Destination,
    network: Network,
    slots: Arc<Semaphore>,
) -> anyhow::Result<()> {
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await?;
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            // Out of descriptors, or gone before it was accepted: the next may fare better.
            Err(error) => {
                tracing::warn!("cannot accept: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (destination, network) = (destination.clone(), network.clone());
        tokio::spawn(async move {
            // Keys and answers are not to wait for each other; where it fails they do.
            let _ = stream.set_nodelay(true);
            if let Err(error) = carry(stream, &destination, &network).await {
                eprintln!("{from}: {}", crate::output::explained(&error));
            }
            drop(slot);
        });
    }
}

async fn carry(
    mut local: TcpStream,
    destination: &Destination,
    network: &Network,
) -> anyhow::Result<()> {
    let mut remote = match destination {
        Destination::Port(host, port) => network
            .connect(host, *port, Class::Bulk)
            .await
            .map_err(|error| network::explain_at(host, &error))?,
        Destination::Socks => socks::accept(&mut local, network).await?,
    };
    // How a connection ends is the business of the two who hold it.
    if let Err(error) = copy_bidirectional_with_sizes(&mut local, &mut remote, COPY, COPY).await {
        tracing::debug!("a connection broke: {error}");
    }
    Ok(())
}

type Forwards = (Vec<(u16, u16)>, Option<String>);

fn forwards(args: &Args) -> anyhow::Result<Forwards> {
    let mut pairs = Vec::new();
    let mut host = None;
    for word in &args.words {
        match pair(word) {
            Some(pair) if host.is_none() => pairs.push(pair),
            None if host.is_none() && !pairs.is_empty() => host = Some(word.clone()),
            _ => bail!(
                "{word} is no LOCAL:REMOTE\nhint: two port numbers such as 15432:5432, and the host after them"
            ),
        }
    }
    if pairs.is_empty() && args.socks.is_none() {
        bail!("which port?\nhint: LOCAL:REMOTE, such as 15432:5432, or --socks");
    }
    Ok((pairs, host))
}

/// Two ports, or one that is both.
fn pair(word: &str) -> Option<(u16, u16)> {
    let port = |text: &str| u16::from_str(text).ok();
    match word.split_once(':') {
        Some((local, remote)) => Some((port(local)?, port(remote).filter(|port| *port > 0)?)),
        None => port(word).filter(|port| *port > 0).map(|port| (port, port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_two_or_one() {
        assert_eq!(pair("15432:5432"), Some((15432, 5432)));
        assert_eq!(pair("0:80"), Some((0, 80)));
        assert_eq!(pair("80"), Some((80, 80)));
        for bad in [
            "",
            ":",
            "80:",
            ":80",
            "1:0",
            "0",
            "70000:1",
            "web.internal",
            "fdaa::3",
        ] {
            assert_eq!(pair(bad), None, "{bad}");
        }
    }
}
