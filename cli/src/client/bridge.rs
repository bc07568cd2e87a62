//! `underpass bridge`
//!
//! Each address that sends to the local port gets a session of its own at the relay, so that
//! several clients of one machine do not take each other's answers.

use std::{
    collections::HashMap,
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use carrier::Datagrams;
use serde_json::json;
use tokio::{
    net::UdpSocket,
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};

use crate::client::{
    args::Scope,
    network::{Peer, explain, lease_lost},
    terminal::{ended_by_signal, exit_code_of_signal},
};

/// Arguments of `bridge`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Take WireGuard's datagrams on this loopback address; port 0 takes a free one
    #[arg(
        long,
        short,
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:51821"
    )]
    listen: SocketAddr,
    /// Print a systemd unit that runs this bridge, and do nothing else
    #[arg(long)]
    systemd: bool,
    #[command(flatten)]
    scope: Scope,
    /// Print one line of JSON when the port is open
    #[arg(long)]
    json: bool,
}

/// Clients at once.
const MAX_CLIENTS: usize = 64;

/// Datagrams of a client that wait for its session.
const QUEUE: usize = 512;

/// Taken from a queue before what was taken is sent.
const BATCH: usize = 64;

/// A client that is silent for this long has gone: WireGuard itself speaks every two minutes.
const IDLE: Duration = Duration::from_secs(300);

/// The largest datagram that the relay carries.
const LARGEST: usize = Datagrams::LARGEST;

/// Why datagrams went no further.
#[derive(Debug, Default)]
struct Dropped {
    /// Longer than the relay carries, or empty.
    length: AtomicU64,
    /// The client's queue was full.
    queue_full: AtomicU64,
    /// Too many clients.
    too_many_clients: AtomicU64,
    /// The client's socket did not take an answer.
    send_failed: AtomicU64,
}

/// Carries datagrams until it is told to end.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    ensure!(
        args.listen.ip().is_loopback(),
        "{} can be reached by others, who would use your session at the relay\nhint: listen on 127.0.0.1",
        args.listen
    );
    if args.systemd {
        print!("{}", unit(&args)?);
        return Ok(ExitCode::SUCCESS);
    }
    let socket = UdpSocket::bind(args.listen).await.with_context(|| {
        format!(
            "cannot listen on {}\nhint: choose another port with --listen",
            args.listen
        )
    })?;
    let peer = Box::pin(Peer::lease(&args.scope)).await?;
    let ended = tokio::select! {
        ended = serve(&args, &peer, socket) => ended.map(|()| ExitCode::SUCCESS),
        signal = ended_by_signal() => Ok(ExitCode::from(exit_code_of_signal(signal))),
    };
    peer.release().await;
    ended
}

async fn serve(args: &Args, peer: &Peer, socket: UdpSocket) -> anyhow::Result<()> {
    let local = socket.local_addr()?;
    if args.json {
        println!(
            "{}",
            json!({ "endpoint": local, "relay": peer.relay()?.as_str() })
        );
    } else {
        println!("Endpoint = {local} leads through {}", peer.relay()?);
    }
    let (token, tokens) = watch::channel(peer.token());
    let bridge = Arc::new(Bridge {
        socket,
        url: peer.relay()?,
        tls: peer.tls()?,
        tokens,
        dropped: Dropped::default(),
    });
    let keep = peer.keep(None, |renewed| {
        // Nobody waits for it while there is no client.
        let _ = token.send(renewed);
    });
    // On a thread of the runtime, where waking a session costs no system call: it runs there when
    // the port has been emptied, and finds all that came.
    let mut distributing = JoinSet::new();
    distributing.spawn(distribute(bridge));
    tokio::select! {
        Some(ended) = distributing.join_next() => ended?,
        () = keep => Err(lease_lost()),
    }
}

struct Bridge {
    socket: UdpSocket,
    url: url::Url,
    tls: Arc<rustls::ClientConfig>,
    tokens: watch::Receiver<String>,
    dropped: Dropped,
}

/// Gives each datagram to the session of its sender.
async fn distribute(bridge: Arc<Bridge>) -> anyhow::Result<()> {
    let mut clients: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>> = HashMap::new();
    let mut buffer = vec![0; LARGEST + 1];
    loop {
        let (length, from) = match bridge.socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An answer could not be delivered: the client that asked has gone.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error).context("the local port failed"),
        };
        if length == 0 || length > LARGEST {
            bridge.dropped.length.fetch_add(1, Relaxed);
            continue;
        }
        let datagram = buffer[..length].to_vec();
        let known = clients.get(&from).filter(|client| !client.is_closed());
        let client = match known {
            Some(client) => client.clone(),
            None => {
                clients.retain(|_, client| !client.is_closed());
                if clients.len() >= MAX_CLIENTS {
                    bridge.dropped.too_many_clients.fetch_add(1, Relaxed);
                    continue;
                }
                let (client, datagrams) = mpsc::channel(QUEUE);
                tokio::spawn(session(Arc::clone(&bridge), from, datagrams));
                clients.insert(from, client.clone());
                client
            }
        };
        if client.try_send(datagram).is_err() {
            bridge.dropped.queue_full.fetch_add(1, Relaxed);
        }
    }
}

/// Carries one client until it is silent for long.
async fn session(bridge: Arc<Bridge>, client: SocketAddr, mut datagrams: mpsc::Receiver<Vec<u8>>) {
    let mut tokens = bridge.tokens.clone();
    let token = tokens.borrow_and_update().clone();
    let opened = Datagrams::open(bridge.url.clone(), Some(token), Arc::clone(&bridge.tls)).await;
    let mut relay = match opened {
        Ok(relay) => relay,
        Err(error) => {
            eprintln!("underpass: {:#}", explain(&error));
            // What WireGuard sends next begins anew; until then its datagrams are not hoarded.
            tokio::time::sleep(Duration::from_secs(1)).await;
            return;
        }
    };
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            taken = timeout(IDLE, datagrams.recv_many(&mut batch, BATCH)) => {
                if !matches!(taken, Ok(1..)) {
                    break;
                }
                batch.drain(..).for_each(|datagram| relay.send(&datagram));
                relay.flush();
            }
            datagram = relay.recv() => {
                let mut next = Some(datagram);
                while let Some(datagram) = next {
                    if bridge.socket.send_to(&datagram, client).await.is_err() {
                        bridge.dropped.send_failed.fetch_add(1, Relaxed);
                    }
                    next = relay.try_recv();
                }
            }
            Ok(()) = tokens.changed() => {
                let token = tokens.borrow_and_update().clone();
                relay.set_token(Some(token));
            }
        }
    }
    tracing::debug!(%client, stats = ?relay.stats(), dropped = ?bridge.dropped, "a client has gone");
    relay.close().await;
}

fn unit(args: &Args) -> anyhow::Result<String> {
    let word = |text: &str| {
        let plain = text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"/._-+:@[]".contains(&b));
        ensure!(
            plain && !text.is_empty(),
            "a systemd unit cannot name {text:?} as it is\nhint: choose a path of letters, digits, dots and dashes"
        );
        Ok(text.to_owned())
    };
    let program = std::env::current_exe().context("the path of this program is not known")?;
    let [flag, place] = args.scope.system.find()?.flags();
    let mut command = format!(
        "{} bridge --listen {} {flag} {}",
        word(&program.to_string_lossy())?,
        args.listen,
        word(&place)?
    );
    if let Some(org) = &args.scope.org.org {
        command += &format!(" --org {}", word(org)?);
    }
    Ok(format!(
        "[Unit]\nDescription=WireGuard through the Underpass relay\nWants=network-online.target\nAfter=network-online.target\n\n[Service]\nExecStart={command}\nRestart=always\nRestartSec=2\nNoNewPrivileges=yes\n\n[Install]\nWantedBy=multi-user.target\n"
    ))
}
