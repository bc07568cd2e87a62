//! The measured servers: the product's relay, and an honest baseline.

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, ChildStdin, Command, Stdio},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use futures_util::{SinkExt, StreamExt};
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::Notify,
};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;
use underpass_relay::{
    AcceptLimits, Counters, GatewayTarget, Relay, RelayConfig,
    rest::{USUAL_REST, before_park, set_rest},
    router, serve,
    tls::Certificate,
};
use wire::PublicKey;

use crate::{SERVER_CORE, myself, path::Place, pin};

/// The gateway's public key; an initiation for it is [`crate::client::INITIATION`].
pub const GATEWAY_KEY: PublicKey = PublicKey([7; 32]);

/// More clients than the descriptors of a measurement are enough for.
const CLIENTS: usize = 20_000;
/// Longer than a measurement.
const ALONE: Duration = Duration::from_secs(3600);

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The product's relay: its router, its admission, its counters.
    Relay,
    /// The same, with `rest_micros = 0`: it looks whenever it is woken.
    Restless,
    /// One datagram per message and one flush per message, after tokio-tungstenite's examples.
    Baseline,
}

impl Side {
    /// By its name.
    pub fn named(name: &str) -> Side {
        match name {
            "relay" => Side::Relay,
            "restless" => Side::Restless,
            _ => Side::Baseline,
        }
    }

    /// Its name in the output, and as an argument.
    pub fn name(self) -> &'static str {
        match self {
            Side::Relay => "relay",
            Side::Restless => "restless",
            Side::Baseline => "baseline",
        }
    }
}

/// A server that runs as a child. It ends when this is dropped.
pub struct Server {
    child: Child,
    stdin: Option<ChildStdin>,
    /// What it is.
    pub side: Side,
    /// Where it listens.
    pub address: SocketAddr,
    /// The certificate that its clients trust.
    pub certificate: CertificateDer<'static>,
}

impl Server {
    /// Starts a server on a core of its own.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(side: Side, gateway: SocketAddr, place: &Place) -> anyhow::Result<Server> {
        let (gateway, listen) = (gateway.to_string(), place.listen.to_string());
        let mut command = myself(&["--serve", side.name(), &gateway, &listen])?;
        if let Some(namespace) = &place.namespace {
            let inside = command;
            command = Command::new("ip");
            command.args(["netns", "exec", namespace]);
            command.arg(inside.get_program()).args(inside.get_args());
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("no stdout")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let (address, certificate) = line
            .trim()
            .split_once(' ')
            .context("the server did not start")?;
        let byte = |at| u8::from_str_radix(&certificate[at..at + 2], 16);
        let certificate: Result<Vec<u8>, _> = (0..certificate.len()).step_by(2).map(byte).collect();
        Ok(Server {
            child,
            stdin,
            side,
            address: address.parse()?,
            certificate: certificate?.into(),
        })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

/// What a child does: serves until its stdin ends.
///
/// # Errors
/// When it cannot listen.
pub fn run(side: &str, gateway: &str, listen: &str) -> anyhow::Result<()> {
    let side = Side::named(side);
    let gateway = gateway.parse()?;
    pin(SERVER_CORE)?;
    if side == Side::Relay {
        set_rest(USUAL_REST);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(before_park)
        .build()?;
    runtime.block_on(async {
        let directory = std::env::temp_dir().join(format!("bench-{}", std::process::id()));
        let certificate = Certificate::load_or_make(&directory, &[], SystemTime::now())?;
        let _ = std::fs::remove_dir_all(&directory);
        let listener = TcpListener::bind((listen, 0)).await?;
        let leaf = certificate.leaf().context("no certificate")?;
        let hex: String = leaf.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("{} {hex}", listener.local_addr()?);
        let ended = Arc::new(Notify::new());
        let end = ended.clone();
        std::thread::spawn(move || {
            let _ = std::io::stdin().read(&mut [0]);
            end.notify_one();
        });
        let tls = certificate.server_config()?;
        let server = async {
            match side {
                Side::Relay | Side::Restless => relay(listener, tls, gateway).await,
                Side::Baseline => baseline(listener, tls, gateway).await,
            }
        };
        tokio::select! {
            () = server => {}
            () = ended.notified() => {}
        }
        Ok(())
    })
}

async fn relay(listener: TcpListener, tls: Arc<ServerConfig>, gateway: SocketAddr) {
    let mut config = RelayConfig::new();
    config.gateways.insert(
        "gw".to_owned(),
        GatewayTarget {
            endpoint: gateway,
            public_key: GATEWAY_KEY,
        },
    );
    config.allowed_hosts = vec!["localhost".to_owned()];
    // All clients of a measurement come from few addresses, there are more of them than a relay
    // has by default, and those that wait are left alone for as long as it takes.
    config.limits.sessions = CLIENTS;
    config.limits.sessions_per_source = CLIENTS;
    config.limits.unproven = ALONE;
    config.limits.ping_after = ALONE;
    config.limits.silent = ALONE;
    config.limits.idle = ALONE;
    let limits = AcceptLimits {
        connections: CLIENTS,
        connections_per_source: CLIENTS,
        handshakes_per_source: AcceptLimits::default().handshakes,
        connections_per_second: u32::MAX,
        connections_per_second_per_source: u32::MAX,
        ..AcceptLimits::default()
    };
    let counters = Arc::new(Counters::new());
    let shutdown = CancellationToken::new();
    let relay = Relay::new(&config, counters.clone(), shutdown.clone());
    serve(listener, tls, router(relay), limits, counters, shutdown).await;
}

/// What its examples lead to: a task per connection, a datagram per message, a flush per message.
async fn baseline(listener: TcpListener, tls: Arc<ServerConfig>, gateway: SocketAddr) {
    let acceptor = TlsAcceptor::from(tls);
    while let Ok((tcp, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            tcp.set_nodelay(true)?;
            let tls = acceptor.accept(tcp).await?;
            let (mut to_client, mut from_client) =
                tokio_tungstenite::accept_async(tls).await?.split();
            let udp = UdpSocket::bind("0.0.0.0:0").await?;
            udp.connect(gateway).await?;
            let up = async {
                while let Some(Ok(message)) = from_client.next().await {
                    if let Message::Binary(datagram) = message {
                        udp.send(&datagram).await?;
                    }
                }
                anyhow::Ok(())
            };
            let down = async {
                let mut buffer = [0; 2048];
                loop {
                    let length = udp.recv(&mut buffer).await?;
                    let message = Message::binary(buffer[..length].to_vec());
                    to_client.send(message).await?;
                }
            };
            tokio::select! {
                ended = up => ended,
                ended = down => ended,
            }
        });
    }
}
