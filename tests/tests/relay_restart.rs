//! Relays of their own in front of a system's gateway: replaced, killed and cut under transfers
//! that go on, every byte of them.

use std::{
    io::{BufRead, BufReader},
    net::{SocketAddr, SocketAddrV6},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use carrier::{Handle, Transport, Trust, tls_config};
use tests::{
    client::Client,
    command::{Background, run},
    root,
    system::{System, binary},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tunnel::Class;
use url::Url;

/// A relay process and where it listens.
struct Relay {
    process: Background,
    listen: SocketAddr,
    metrics: SocketAddr,
}

impl Relay {
    /// Starts one; port 0 takes a free one.
    fn start(system: &System, directory: &Path, port: u16) -> Relay {
        let config = write_config(system, directory, port);
        let mut command = Command::new(binary());
        command
            .args(["relay", "--json", "--config"])
            .arg(config)
            .stdout(Stdio::piped());
        let mut process = Background::start(command);
        let stdout = process.0.stdout.take().expect("piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let ready: serde_json::Value = serde_json::from_str(&line).expect("JSON when ready");
        let address = |name: &str| ready[name].as_str().expect("there").parse().expect("one");
        Relay {
            process,
            listen: address("listen"),
            metrics: address("metrics"),
        }
    }

    fn signal(&self, signal: &str) {
        let mut kill = Command::new("kill");
        kill.args([signal, &self.process.0.id().to_string()]);
        run(kill, b"", Duration::from_secs(5)).ok();
    }

    /// Waits until it has ended by itself.
    async fn ended(mut self) -> std::process::ExitStatus {
        let ended = async {
            loop {
                if let Ok(Some(status)) = self.process.0.try_wait() {
                    return status;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(20), ended)
            .await
            .expect("it ends")
    }

    fn get(&self, path: &str) -> String {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--max-time", "5"]);
        curl.arg(format!("http://{}{path}", self.metrics));
        run(curl, b"", Duration::from_secs(10)).text()
    }

    /// The value of a series of its metrics.
    fn metric(&self, series: &str) -> u64 {
        let text = self.get("/metrics");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let value = line.unwrap_or_else(|| panic!("no {series} in {text}"));
        value.parse().expect("a count")
    }
}

fn write_config(system: &System, directory: &Path, port: u16) -> PathBuf {
    let file = directory.join(format!("relay-{port}.toml"));
    let tls = system.data_dir().join("tls");
    let gateway = &system.ready.gateway;
    let text = format!(
        "listen = \"127.0.0.1:{port}\"\n\
         metrics_listen = \"127.0.0.1:0\"\n\
         hosts = [\"127.0.0.1\"]\n\
         token_keys = [\"{}\"]\n\
         drain_seconds = 2\n\
         [tls]\n\
         certificate = \"{}\"\n\
         key = \"{}\"\n\
         [gateways.local]\n\
         endpoint = \"{}\"\n\
         public_key = \"{}\"\n",
        system.ready.relay_token_key,
        tls.join("cert.pem").display(),
        tls.join("key.pem").display(),
        gateway.endpoint,
        gateway.public_key,
    );
    std::fs::write(&file, text).expect("a configuration");
    file
}

async fn connect(system: &System, client: &Client, relay: SocketAddr) -> Handle {
    let transport = Transport::WebSocket {
        url: Url::parse(&format!("wss://{relay}/v1/tunnel/local")).expect("a URL"),
        token: Some(client.lease.relay.token.clone()),
        tls: tls_config(&Trust::PemFile(system.certificate())).expect("the certificate"),
    };
    client.connect(transport).await.expect("a tunnel")
}

/// Bytes from one tunnel to another, until told to end; each side checks every one.
struct Transfer {
    handles: [Handle; 2],
    enough: Arc<AtomicBool>,
    sent: JoinHandle<u64>,
    received: JoinHandle<(u64, Duration)>,
}

fn byte(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

impl Transfer {
    async fn start(system: &System, session: &str, relay: SocketAddr) -> Transfer {
        let (a, b) = (
            Client::lease(system, session),
            Client::lease(system, session),
        );
        let from = connect(system, &a, relay).await;
        let to = connect(system, &b, relay).await;
        let mut listener = to.listen(7000).expect("a port");
        let address = SocketAddrV6::new(b.address(), 7000, 0, 0);
        // The gateway knows the other side from its first message on, which is on its way.
        let connecting = async {
            loop {
                match from.connect(address, Class::Bulk).await {
                    Ok(out) => return out,
                    Err(_) => sleep(Duration::from_millis(50)).await,
                }
            }
        };
        let connected = timeout(Duration::from_secs(15), connecting).await;
        let mut out = connected.expect("a stream in time");
        let accepted = timeout(Duration::from_secs(10), listener.accept()).await;
        let (mut into, _) = accepted.expect("a stream in time").expect("a stream");
        let enough = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&enough);
        let sent = tokio::spawn(async move {
            let mut at = 0;
            while !told.load(Ordering::Relaxed) {
                let chunk: Vec<u8> = (at..at + 8_192).map(byte).collect();
                out.write_all(&chunk).await.expect("written");
                at += chunk.len() as u64;
                sleep(Duration::from_millis(5)).await;
            }
            out.shutdown().await.expect("an end");
            // Until the other side has hung up, so that the end is delivered.
            let _ = timeout(Duration::from_secs(30), out.read(&mut [0; 1])).await;
            at
        });
        let received = tokio::spawn(async move {
            let (mut at, mut longest, mut last) = (0, Duration::ZERO, Instant::now());
            let mut buffer = vec![0; 32_768];
            loop {
                let read = timeout(Duration::from_secs(40), into.read(&mut buffer)).await;
                let length = read.expect("it goes on").expect("it is not reset");
                if length == 0 {
                    return (at, longest);
                }
                longest = longest.max(last.elapsed());
                last = Instant::now();
                for got in &buffer[..length] {
                    assert_eq!(*got, byte(at), "byte {at}");
                    at += 1;
                }
            }
        });
        Transfer {
            handles: [from, to],
            enough,
            sent,
            received,
        }
    }

    /// Ends it; how much was carried, and the longest pause.
    async fn end(self) -> (u64, Duration) {
        self.enough.store(true, Ordering::Relaxed);
        let sent = self.sent.await.expect("the sender");
        let (received, longest) = self.received.await.expect("the receiver");
        assert_eq!(sent, received);
        for handle in self.handles {
            handle.close().await;
        }
        (received, longest)
    }
}

/// Drained and replaced on the same port, and then killed: every transfer ends whole.
#[tokio::test(flavor = "multi_thread")]
async fn transfers_outlive_their_relay() {
    let system = System::start();
    let session = system.session();
    let directory = tempfile::tempdir().expect("a directory");
    let first = Relay::start(&system, directory.path(), 0);
    let address = first.listen;
    let mut transfers = Vec::new();
    for _ in 0..4 {
        transfers.push(Transfer::start(&system, &session, address).await);
    }
    sleep(Duration::from_millis(500)).await;
    assert_eq!(first.metric("underpass_relay_sessions"), 8);
    assert_eq!(first.get("/readyz"), "ready");

    let second = Relay::start(&system, directory.path(), address.port());
    assert_eq!(second.listen, address, "the same port, at the same time");
    first.signal("-TERM");
    sleep(Duration::from_millis(500)).await;
    assert_eq!(first.get("/readyz"), "draining");
    let status = first.ended().await;
    assert!(status.success(), "{status}");
    let came = async {
        while second.metric("underpass_relay_sessions") < 8 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(15), came)
        .await
        .expect("all of them are at the second");
    sleep(Duration::from_secs(1)).await;

    let third = Relay::start(&system, directory.path(), address.port());
    second.signal("-KILL");
    second.ended().await;
    let came = async {
        while third.metric("underpass_relay_sessions") < 8 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(15), came)
        .await
        .expect("all of them are at the third");
    sleep(Duration::from_secs(1)).await;
    let mut worst = Duration::ZERO;
    for transfer in transfers {
        let (bytes, longest) = transfer.end().await;
        assert!(bytes > 1_000_000, "{bytes}");
        worst = worst.max(longest);
    }
    println!("a relay drained and replaced, then one killed: longest pause {worst:?}");
}

/// The kernel forgets the connections: the clients come back with their resume tokens, and the
/// gateway sees no move.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_resumed() {
    if !root() {
        return;
    }
    let system = System::start();
    let session = system.session();
    let directory = tempfile::tempdir().expect("a directory");
    let relay = Relay::start(&system, directory.path(), 0);
    let transfer = Transfer::start(&system, &session, relay.listen).await;
    for round in 1..=3 {
        sleep(Duration::from_millis(500)).await;
        let mut kill = Command::new("ss");
        let port = relay.listen.port().to_string();
        kill.args([
            "--kill",
            "state",
            "established",
            "dst",
            "127.0.0.1",
            "dport",
            "=",
            &port,
        ]);
        run(kill, b"", Duration::from_secs(5));
        let resumed = async {
            while relay.metric("underpass_relay_resumes_total{outcome=\"resumed\"}") < 2 * round {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(15), resumed)
            .await
            .expect("both come back");
    }
    assert_eq!(
        relay.metric("underpass_relay_resumes_total{outcome=\"unknown\"}"),
        0
    );
    let (bytes, longest) = transfer.end().await;
    println!("three cuts: {bytes} bytes, longest pause {longest:?}");
}

/// SIGHUP, a change of the file, and one that cannot be used.
#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_is_read_again() {
    let system = System::start();
    let session = system.session();
    let directory = tempfile::tempdir().expect("a directory");
    let relay = Relay::start(&system, directory.path(), 0);
    let transfer = Transfer::start(&system, &session, relay.listen).await;
    let file = directory.path().join("relay-0.toml");
    let good = std::fs::read_to_string(&file).expect("its configuration");
    let opens = async |opens: bool| {
        let client = Client::lease(&system, &session);
        let transport = Transport::WebSocket {
            url: Url::parse(&format!("wss://{}/v1/tunnel/local", relay.listen)).expect("a URL"),
            token: Some(client.lease.relay.token.clone()),
            tls: tls_config(&Trust::PemFile(system.certificate())).expect("the certificate"),
        };
        let as_expected = async {
            loop {
                let opened = client.connect(transport.clone()).await;
                if opened.is_ok() == opens {
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(Duration::from_secs(10), as_expected).await.is_ok()
    };
    assert!(opens(true).await);
    std::fs::write(&file, good.replace("gateways.local", "gateways.other")).expect("written");
    relay.signal("-HUP");
    assert!(opens(false).await, "the gateway is gone");
    // Half of it: what was loaded last stays.
    std::fs::write(&file, &good[..good.len() / 2]).expect("written");
    relay.signal("-HUP");
    sleep(Duration::from_millis(300)).await;
    assert!(opens(false).await);
    // Without a signal.
    std::fs::write(&file, &good).expect("written");
    assert!(opens(true).await, "the file has changed");
    let (bytes, _) = transfer.end().await;
    assert!(bytes > 0, "and who was there has noticed nothing");
}
