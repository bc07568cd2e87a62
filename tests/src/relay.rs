//! Relays of their own in front of a system's gateway, and transfers through them that check every
//! byte.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
    net::{SocketAddr, SocketAddrV6},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use carrier::{Handle, Transport, Trust};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tunnel::Class;
use url::Url;

use crate::{
    client::Client,
    command::{Background, Log, run},
    namespace::Namespace,
    system::{System, binary},
};

/// A relay process and where it listens.
#[derive(Debug)]
pub struct Relay {
    process: Background,
    namespace: Option<String>,
    /// What it logs.
    pub log: Log,
    /// Where it serves WebSockets.
    pub listen: SocketAddr,
    /// Where it serves metrics.
    pub metrics: SocketAddr,
}

/// How a relay is started.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// Whose gateway, token key and certificate it has.
    pub system: &'a System,
    /// Where its configuration is written.
    pub directory: &'a Path,
    /// Where it runs, if not here.
    pub namespace: Option<&'a Namespace>,
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The same for its metrics.
    pub metrics: SocketAddr,
    /// The address that its clients dial.
    pub host: &'a str,
    /// Lines of `[limits]`.
    pub limits: &'a str,
    /// `[tls]` and its lines, if not with the system's own certificate.
    pub tls: Option<&'a str>,
}

impl<'a> Setup<'a> {
    /// One on loopback, metrics on a free port.
    pub fn here(system: &'a System, directory: &'a Path, port: u16) -> Setup<'a> {
        Setup {
            system,
            directory,
            namespace: None,
            listen: ([127, 0, 0, 1], port).into(),
            metrics: ([127, 0, 0, 1], 0).into(),
            host: "127.0.0.1",
            limits: "",
            tls: None,
        }
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(self) -> Relay {
        let config = self.write_config();
        let Some(namespace) = self.namespace else {
            return Relay::start(&config);
        };
        let relay = Relay::run(namespace.command(binary()), &config);
        Relay {
            namespace: Some(namespace.name().to_owned()),
            ..relay
        }
    }

    /// Writes its configuration.
    ///
    /// # Panics
    /// When it cannot.
    pub fn write_config(&self) -> PathBuf {
        let name = self.listen.to_string().replace([':', '[', ']'], "-");
        let file = self.directory.join(format!("relay-{name}.toml"));
        let of_system = self.system.data_dir().join("tls");
        let of_system = format!(
            "[tls]\ncertificate = \"{}\"\nkey = \"{}\"\n",
            of_system.join("cert.pem").display(),
            of_system.join("key.pem").display()
        );
        let gateway = &self.system.ready.gateway;
        let text = format!(
            "listen = \"{}\"\n\
             metrics_listen = \"{}\"\n\
             hosts = [\"{}\", \"localhost\"]\n\
             token_keys = [\"{}\"]\n\
             drain_seconds = 2\n\
             {}\
             [gateways.local]\n\
             endpoint = \"{}\"\n\
             public_key = \"{}\"\n\
             [limits]\n\
             {}\n",
            self.listen,
            self.metrics,
            self.host,
            self.system.ready.relay_token_key,
            self.tls.unwrap_or(&of_system),
            gateway.endpoint,
            gateway.public_key,
            self.limits,
        );
        std::fs::write(&file, text).expect("a configuration");
        file
    }
}

impl Relay {
    /// Starts one on this configuration, and waits until it listens.
    ///
    /// # Panics
    /// When it does not.
    pub fn start(config: &Path) -> Relay {
        Relay::run(Command::new(binary()), config)
    }

    /// The same by a command that begins so.
    ///
    /// # Panics
    /// When it does not listen.
    pub fn run(mut command: Command, config: &Path) -> Relay {
        command
            .args(["relay", "--json", "--config"])
            .arg(config)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = Background::start(command);
        let log = Log::follow(process.0.stderr.take().expect("piped"));
        let stdout = process.0.stdout.take().expect("piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let ready: serde_json::Value = serde_json::from_str(&line).expect("JSON when ready");
        let address = |name: &str| ready[name].as_str().expect("there").parse().expect("one");
        Relay {
            process,
            namespace: None,
            log,
            listen: address("listen"),
            metrics: address("metrics"),
        }
    }

    /// Where the configuration of a relay on loopback was written.
    pub fn config(directory: &Path, port: u16) -> PathBuf {
        directory.join(format!("relay-127.0.0.1-{port}.toml"))
    }

    /// Sends it a signal by name.
    ///
    /// # Panics
    /// When there is no such process.
    pub fn signal(&self, signal: &str) {
        let mut kill = Command::new("kill");
        kill.args([signal, &self.pid().to_string()]);
        run(kill, b"", Duration::from_secs(5)).ok();
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.process.0.try_wait(), Ok(None))
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    /// When it does not within twenty seconds.
    pub async fn ended(mut self) -> ExitStatus {
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

    /// What its metrics address answers.
    pub fn get(&self, path: &str) -> String {
        let mut command = match &self.namespace {
            None => Command::new("curl"),
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name, "curl"]);
                command
            }
        };
        command.args(["--silent", "--max-time", "5"]);
        command.arg(format!("http://{}{path}", self.metrics));
        run(command, b"", Duration::from_secs(10)).text()
    }

    /// Its tunnel to the system's gateway, under this name of it.
    ///
    /// # Panics
    /// When `host` is none.
    pub fn url(&self, host: &str) -> Url {
        let port = self.listen.port();
        Url::parse(&format!("wss://{host}:{port}/v1/tunnel/local")).expect("a URL")
    }

    /// The value of a series of its metrics, without the prefix that all have.
    ///
    /// # Panics
    /// When there is no such series.
    pub fn metric(&self, series: &str) -> u64 {
        let text = self.get("/metrics");
        let line = text.lines().find_map(|line| {
            line.strip_prefix("underpass_relay_")?
                .strip_prefix(series)?
                .strip_prefix(' ')
        });
        let value = line.unwrap_or_else(|| panic!("no {series} in {text}"));
        value.parse().expect("a count")
    }

    /// Sessions that are open.
    pub fn sessions(&self) -> u64 {
        self.metric("sessions")
    }

    /// All that it counts, by series without the prefix.
    pub fn counts(&self) -> HashMap<String, u64> {
        let text = self.get("/metrics");
        let series = text.lines().filter_map(|line| {
            let (series, value) = line.strip_prefix("underpass_relay_")?.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        });
        series.collect()
    }
}

/// The sum of the series of a family whose labels hold `label`.
pub fn sum(counts: &HashMap<String, u64>, family: &str, label: &str) -> u64 {
    let of_family = counts.iter().filter(|(series, _)| {
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        name == family && labels.contains(label)
    });
    of_family.map(|(_, count)| count).sum()
}

/// Waits until these relays have so many sessions together.
///
/// # Panics
/// When they do not within fifteen seconds.
pub async fn have(relays: &[&Relay], sessions: u64) {
    let came = async {
        while relays.iter().map(|relay| relay.sessions()).sum::<u64>() != sessions {
            sleep(Duration::from_millis(50)).await;
        }
    };
    if timeout(Duration::from_secs(15), came).await.is_err() {
        let held: Vec<u64> = relays.iter().map(|relay| relay.sessions()).collect();
        panic!("{held:?} sessions are not {sessions}");
    }
}

/// The way of a client through the relay at that address.
///
/// # Panics
/// When the system's certificate cannot be used.
pub fn through(system: &System, client: &Client, relay: SocketAddr) -> Transport {
    let trust = Trust::fingerprint(&system.ready.fingerprint).expect("a fingerprint");
    let url = Url::parse(&format!("wss://{relay}/v1/tunnel/local")).expect("a URL");
    client.through(&url, &trust)
}

/// How much a transfer sends, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Bytes at once.
    pub bytes: u64,
    /// The pause after them.
    pub every: Duration,
}

impl Pace {
    /// 1.6 MB in a second.
    pub const FAST: Pace = Pace {
        bytes: 8_192,
        every: Duration::from_millis(5),
    };
    /// 20 KB in a second.
    pub const SLOW: Pace = Pace {
        bytes: 2_048,
        every: Duration::from_millis(100),
    };
}

/// Bytes from one tunnel to another, until told to end; each side checks every one.
#[derive(Debug)]
pub struct Transfer {
    handles: [Handle; 2],
    enough: Arc<AtomicBool>,
    progress: Arc<Progress>,
    sent: JoinHandle<u64>,
    received: JoinHandle<(u64, Duration)>,
}

/// What has arrived so far.
#[derive(Debug, Default)]
struct Progress {
    bytes: AtomicU64,
    /// The longest pause since somebody asked, in microseconds.
    pause: AtomicU64,
}

fn byte(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

impl Transfer {
    /// Between two peers of its own.
    pub async fn start(system: &System, session: &str, relay: SocketAddr) -> Transfer {
        let peers = [
            Client::lease(system, session),
            Client::lease(system, session),
        ];
        Transfer::between(system, &peers, relay, Pace::FAST).await
    }

    /// From the first of these peers to the second.
    ///
    /// # Panics
    /// When there is no stream between them within the time.
    pub async fn between(
        system: &System,
        peers: &[Client; 2],
        relay: SocketAddr,
        pace: Pace,
    ) -> Transfer {
        Transfer::over(peers, |client| through(system, client, relay), pace).await
    }

    /// The same, each on a way of its own.
    ///
    /// # Panics
    /// When there is no stream between them within the time.
    pub async fn over(
        peers: &[Client; 2],
        way: impl Fn(&Client) -> Transport,
        pace: Pace,
    ) -> Transfer {
        let connect = async |client: &Client| {
            let handle = client.connect(way(client)).await;
            handle.expect("a tunnel")
        };
        let from = connect(&peers[0]).await;
        let to = connect(&peers[1]).await;
        let mut listener = to.listen(7000).expect("a port");
        let address = SocketAddrV6::new(peers[1].address(), 7000, 0, 0);
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
                let chunk: Vec<u8> = (at..at + pace.bytes).map(byte).collect();
                out.write_all(&chunk).await.expect("written");
                at += pace.bytes;
                sleep(pace.every).await;
            }
            out.shutdown().await.expect("an end");
            // Until the other side has hung up, so that the end is delivered.
            let _ = timeout(Duration::from_secs(30), out.read(&mut [0; 1])).await;
            at
        });
        let progress = Arc::new(Progress::default());
        let seen = Arc::clone(&progress);
        let received = tokio::spawn(async move {
            let (mut at, mut longest, mut last) = (0, Duration::ZERO, Instant::now());
            let mut buffer = vec![0; 32_768];
            loop {
                let read = timeout(Duration::from_secs(40), into.read(&mut buffer)).await;
                let length = read.expect("it goes on").expect("it is not reset");
                if length == 0 {
                    return (at, longest);
                }
                let pause = last.elapsed();
                longest = longest.max(pause);
                last = Instant::now();
                for got in &buffer[..length] {
                    assert_eq!(*got, byte(at), "byte {at}");
                    at += 1;
                }
                seen.pause
                    .fetch_max(pause.as_micros() as u64, Ordering::Relaxed);
                seen.bytes.store(at, Ordering::Release);
            }
        });
        Transfer {
            handles: [from, to],
            enough,
            progress,
            sent,
            received,
        }
    }

    /// Waits until more arrives; the longest pause since this was asked before.
    ///
    /// # Panics
    /// When nothing does.
    pub async fn goes_on(&self) -> Duration {
        let before = self.progress.bytes.load(Ordering::Acquire);
        let more = async {
            while self.progress.bytes.load(Ordering::Acquire) == before {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(40), more)
            .await
            .expect("it goes on");
        Duration::from_micros(self.progress.pause.swap(0, Ordering::Relaxed))
    }

    /// Ends it; how much was carried, and the longest pause of all.
    ///
    /// # Panics
    /// When not every byte has arrived.
    pub async fn end(self) -> (u64, Duration) {
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
