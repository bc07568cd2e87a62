//! wireguard-go through `underpass bridge`, UDP dropped on the way: throughput by iperf3, and CPU
//! time of the bridge and of the relay per WireGuard datagram. Beside it the same wireguard-go
//! straight over UDP. One line of JSON per measurement on stdout with `--json`, a table on stderr.
//! Figures are medians.
//!
//! The relay is a process of its own here, at an address of its own that the system's name leads
//! to: an `up` that holds gateway and relay in one would be one account. Takes root, for the
//! machines are network namespaces.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use serde_json::json;
use tests::{
    command::{Background, run},
    firewall::Firewall,
    namespace::Namespace,
    peer::Peer,
};
use tokio::{net::TcpListener, sync::Notify};
use tokio_util::sync::CancellationToken;
use underpass_bench::{cpu_nanos, instance::peer, median, myself, round};
use underpass_relay::{
    AcceptLimits, Counters, GatewayTarget, Relay, RelayConfig, router, serve, tls::Certificate,
};

const RUNS: usize = 3;
/// Seconds of each.
const TIME: &str = "3";
/// The relay's name and address.
const HOST: &str = "relay.test";
const ADDRESS: &str = "10.99.7.3";

/// What iperf3 is told.
const FLOWS: [(&str, &[&str]); 4] = [
    ("tcp up", &[]),
    ("tcp down", &["--reverse"]),
    ("udp up", &["--udp", "--bitrate", "60M", "--length", "1300"]),
    (
        "udp down",
        &["--udp", "--bitrate", "60M", "--length", "1300", "--reverse"],
    ),
];

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let json = match words[..] {
        ["--relay", data_dir, gateway, key] => return relay(data_dir, gateway, key),
        [] => false,
        ["--json"] => true,
        _ => bail!("unknown arguments {words:?}\nhint: --json"),
    };
    ensure!(
        tests::root(),
        "this makes network namespaces\nhint: run it as root"
    );
    compare(json)
}

fn compare(json: bool) -> anyhow::Result<()> {
    let files = tempfile::tempdir()?;
    let lab = Firewall::with(&["--host", HOST]);
    lab.server
        .ip(["addr", "add", &format!("{ADDRESS}/32"), "dev", "lo"]);
    let etc = Path::new("/etc/netns").join(lab.client.name());
    fs::create_dir_all(&etc)?;
    fs::write(
        etc.join("hosts"),
        format!("127.0.0.1 localhost\n{ADDRESS} {HOST}\n"),
    )?;
    let relay = RelayProcess::start(&lab)?;
    let mut command = lab.underpass(&["bridge", "--listen", "127.0.0.1:0", "--json"]);
    command.stdout(Stdio::piped());
    let mut bridge = Background::start(command);
    let mut line = String::new();
    BufReader::new(bridge.0.stdout.take().context("no stdout")?).read_line(&mut line)?;
    let said: serde_json::Value = serde_json::from_str(&line).context("no bridge")?;
    let endpoint = said["endpoint"].as_str().context("no endpoint")?.to_owned();

    let path = peer(&lab.system, files.path(), "stock");
    let inner = lab.inner(files.path());
    let mut server = inner.namespace.command("iperf3");
    server.arg("--server").stdout(Stdio::null());
    let _server = Background::start(server);
    inner.namespace.listens(5201);
    let text = fs::read_to_string(&path)?;
    let gateway = &lab.system.ready.gateway;
    let bridged = text.replace(
        &format!("Endpoint = {}", gateway.endpoint),
        &format!("Endpoint = {endpoint}"),
    );
    ensure!(bridged != text, "no endpoint in {text}");
    fs::write(&path, bridged)?;
    lab.drops("udp");
    let (key, straight) = (gateway.public_key.clone(), gateway.endpoint.clone());
    let Firewall {
        system: _system,
        server,
        client,
    } = lab;
    let peer = Peer::up(client, Path::new(&path));

    eprintln!(
        "{:<12}{:<10}{:>9}{:>9}{:>13}{:>9}{:>9}",
        "way", "load", "Mbit/s", "loss %", "datagrams/s", "bridge", "relay"
    );
    eprintln!("{:>62}{:>9}", "us", "us");
    for way in ["bridge", "udp"] {
        if way == "udp" {
            for namespace in [&server, &peer.namespace] {
                let open = "flush chain inet wall in";
                namespace.run("nft", [open], Duration::from_secs(10)).ok();
            }
            let set = ["set", &peer.interface, "peer", &key, "endpoint", &straight];
            peer.run("wg", set).ok();
        }
        // The first packet makes the handshake.
        peer.dig(["_apps.internal", "TXT"]);
        for (load, more) in FLOWS {
            let samples: anyhow::Result<Vec<Sample>> = (0..RUNS)
                .map(|_| flow(&peer, &inner, more, [bridge.0.id(), relay.pid]))
                .collect();
            shown(way, load, &samples?, json);
        }
    }
    Ok(())
}

struct Sample {
    bits_per_second: f64,
    loss: f64,
    /// Both ways.
    datagrams_per_second: f64,
    /// CPU time of bridge and relay per datagram.
    micros: [f64; 2],
}

fn flow(peer: &Peer, inner: &Peer, more: &[&str], processes: [u32; 2]) -> anyhow::Result<Sample> {
    let mut client = peer.namespace.command("iperf3");
    client.args(["--client", &inner.address, "--json", "--time", TIME]);
    client.args(more);
    let look = || -> anyhow::Result<(f64, [f64; 2])> {
        let spent = [
            cpu_nanos(processes[0])? as f64,
            cpu_nanos(processes[1])? as f64,
        ];
        Ok((packets(&peer.namespace, &peer.interface)?, spent))
    };
    let before = look()?;
    let output = run(client, b"", Duration::from_secs(40)).ok();
    let after = look()?;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let end = &json["end"];
    let sum = if end["sum"]["lost_packets"].is_null() {
        &end["sum_received"]
    } else {
        &end["sum"]
    };
    let loss = sum["lost_percent"].as_f64().unwrap_or(0.0);
    let seconds = sum["seconds"].as_f64().context("no time")?;
    let rate = sum["bits_per_second"].as_f64().context("no rate")?;
    let datagrams = after.0 - before.0;
    ensure!(datagrams > 100.0, "nothing went through the tunnel");
    let micros = [0, 1].map(|at: usize| (after.1[at] - before.1[at]) / 1e3 / datagrams);
    Ok(Sample {
        bits_per_second: rate * (1.0 - loss / 100.0),
        loss,
        datagrams_per_second: datagrams / seconds,
        micros,
    })
}

/// Packets through a WireGuard interface so far: each is one datagram outside.
fn packets(namespace: &Namespace, interface: &str) -> anyhow::Result<f64> {
    let file = namespace.run("cat", ["/proc/net/dev"], Duration::from_secs(5));
    let text = file.ok().text();
    let line = text.lines().find_map(|line| {
        let (name, figures) = line.split_once(':')?;
        (name.trim() == interface).then_some(figures)
    });
    let figures: Vec<f64> = line
        .context("no such interface")?
        .split_whitespace()
        .filter_map(|figure| figure.parse().ok())
        .collect();
    // Received packets and sent ones, in the order of the file.
    let figure = |at: usize| figures.get(at).copied().context("no such column");
    Ok(figure(1)? + figure(9)?)
}

fn shown(way: &str, load: &str, samples: &[Sample], json: bool) {
    let of = |figure: fn(&Sample) -> f64| median(samples.iter().map(figure).collect());
    let rate = of(|it| it.bits_per_second);
    let (loss, datagrams) = (of(|it| it.loss), of(|it| it.datagrams_per_second));
    let (bridge, relay) = (of(|it| it.micros[0]), of(|it| it.micros[1]));
    eprintln!(
        "{way:<12}{load:<10}{:>9.1}{loss:>9.2}{datagrams:>13.0}{bridge:>9.2}{relay:>9.2}",
        rate / 1e6
    );
    let line = json!({
        "measurement": "bridge",
        "way": way,
        "load": load,
        "bits_per_second": round(rate, 0),
        "loss_percent": round(loss, 3),
        "datagrams_per_second": round(datagrams, 0),
        "bridge_cpu_us_per_datagram": round(bridge, 3),
        "relay_cpu_us_per_datagram": round(relay, 3),
        "runs": samples.len(),
    });
    if json {
        println!("{line}");
    }
}

/// The relay alone, on the server's machine.
struct RelayProcess {
    _process: Background,
    pid: u32,
}

impl RelayProcess {
    fn start(lab: &Firewall) -> anyhow::Result<RelayProcess> {
        let gateway = &lab.system.ready.gateway;
        let data_dir = lab.system.data_dir().display().to_string();
        let inside = myself(&["--relay", &data_dir, &gateway.endpoint, &gateway.public_key])?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", lab.server.name()]);
        command.arg(inside.get_program()).args(inside.get_args());
        // `ip` becomes the program: the process is the relay's.
        let mut process = Background::start({
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            command
        });
        let mut line = String::new();
        BufReader::new(process.0.stdout.take().context("no stdout")?).read_line(&mut line)?;
        ensure!(line == "ready\n", "the relay did not start");
        let pid = process.0.id();
        Ok(RelayProcess {
            _process: process,
            pid,
        })
    }
}

/// What the child does: the product's relay for the system's gateway, its certificate and its
/// tokens, until its stdin ends.
fn relay(data_dir: &str, gateway: &str, key: &str) -> anyhow::Result<()> {
    let data_dir = Path::new(data_dir);
    let store = control::Store::open(data_dir.join("underpass.db"))?;
    let mut config = RelayConfig::new();
    let target = GatewayTarget {
        endpoint: gateway.parse::<SocketAddr>()?,
        public_key: key.parse().ok().context("no public key")?,
    };
    config.gateways.insert("local".to_owned(), target);
    config.token_keys = vec![store.token_signer()?.public_key()];
    config.allowed_hosts = vec![HOST.to_owned(), format!("{HOST}:8443")];
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let tls = data_dir.join("tls");
        let certificate = Certificate::load(&tls.join("cert.pem"), &tls.join("key.pem"))?;
        let listener = TcpListener::bind((ADDRESS, 8443)).await?;
        println!("ready");
        let ended = Arc::new(Notify::new());
        let end = ended.clone();
        std::thread::spawn(move || {
            let _ = std::io::stdin().read(&mut [0]);
            end.notify_one();
        });
        let counters = Arc::new(Counters::new());
        let shutdown = CancellationToken::new();
        let relay = Relay::new(&config, counters.clone(), shutdown.clone());
        let tls = certificate.server_config()?;
        let limits = AcceptLimits::default();
        let serve = serve(listener, tls, router(relay), limits, counters, shutdown);
        tokio::select! {
            () = serve => {}
            () = ended.notified() => {}
        }
        Ok(())
    })
}
