//! The client beside onetun, which stands on the same two engines: bulk through a forwarded port,
//! both ways, on one gateway; and how long a command takes from its start to its first byte, with
//! and without the agent. One line of JSON per measurement on stdout with `--json`, a table on
//! stderr. Figures are medians.
//!
//! A side that loses bytes when it is given all that goes is asked for less until it does not, and
//! then all are measured at that rate too. The bytes end in a process of this bench that is a peer of the network by itself: the same for
//! all. `--only bulk` or `--only start` makes half of it; `UNDERPASS_BIN` and `ONETUN` name the
//! programs.

#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::{
    env,
    io::{BufRead, BufReader, Read},
    iter,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde_json::json;
use tests::{
    command::Background,
    emulator::{Link, Shape},
    namespace::Namespace,
    system::{Setup, System, binary},
};
use underpass_bench::{
    bulk::{self, Direction, Sample},
    instance::{self, Instance, configuration, peer},
    median, round,
};

/// Of each measurement; sides take turns, so that a noisy minute is nobody's alone.
const RUNS: usize = 3;
const WINDOW: Duration = Duration::from_millis(2500);
/// What a side is asked for that cannot take all that goes, in bytes per second.
const RATES: [u64; 7] = [
    80_000_000, 40_000_000, 20_000_000, 10_000_000, 5_000_000, 2_000_000, 1_000_000,
];
/// Of each start.
const STARTS: usize = 9;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (mut json, mut only) = (false, None);
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match *word {
            "--instance" => return instance::run(rest.next().context("no configuration")?),
            "--json" => json = true,
            "--only" => only = Some(*rest.next().context("--only takes bulk or start")?),
            other => bail!("unknown argument {other}\nhint: --json, --only bulk, --only start"),
        }
    }
    let out = Out { json };
    if only.is_none_or(|only| only == "bulk") {
        compare_bulk(&System::start(), &out)?;
    }
    if only.is_none_or(|only| only == "start") {
        starts(&out)?;
    }
    Ok(())
}

/// A program that forwards a local port, ready to be used.
struct Side {
    name: &'static str,
    way: &'static str,
    process: Background,
    port: SocketAddr,
}

fn compare_bulk(system: &System, out: &Out) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let far = Instance::start(system, directory.path())?;
    let sides = [
        proxy(system, &far, "udp", "--udp")?,
        proxy(system, &far, "websocket", "--websockets")?,
        onetun(system, &far, directory.path())?,
    ];
    eprintln!(
        "{:<11}{:<11}{:<6}{:>9}{:>9}{:>9}{:>12}{:>10}{:>10}",
        "side", "way", "", "asked", "MB/s", "intact", "client", "up", "instance"
    );
    eprintln!("{:>67}{:>10}{:>10}", "ns/byte", "ns/byte", "ns/byte");
    for direction in [Direction::Down, Direction::Up] {
        let measure = |side: &Side, rate: u64| {
            let processes = [side.process.0.id(), system.pid(), far.pid()];
            let sample = bulk::measure(side.port, direction, rate, WINDOW, &processes);
            sample.with_context(|| format!("{} {}", side.name, side.way))
        };
        // The highest rate that each can be given without a byte missing.
        let mut rates = vec![0; sides.len()];
        for (side, highest) in sides.iter().zip(&mut rates) {
            for rate in iter::once(0).chain(RATES) {
                let sample = measure(side, rate)?;
                if sample.intact && sample.bytes_per_second > 0.9 * rate as f64 {
                    *highest = rate;
                    break;
                }
                out.bulk(side, direction, rate, &[sample]);
            }
        }
        let slowest = rates.iter().copied().filter(|rate| *rate > 0).min();
        for all_at in iter::once(None).chain(slowest.map(Some)) {
            let mut samples = vec![Vec::new(); sides.len()];
            for _ in 0..RUNS {
                for (at, side) in sides.iter().enumerate() {
                    samples[at].push(measure(side, all_at.unwrap_or(rates[at]))?);
                }
            }
            for (at, side) in sides.iter().enumerate() {
                out.bulk(side, direction, all_at.unwrap_or(rates[at]), &samples[at]);
            }
        }
    }
    Ok(())
}

fn proxy(system: &System, far: &Instance, way: &'static str, flag: &str) -> anyhow::Result<Side> {
    let pair = format!("0:{}", instance::PORT);
    let host = far.address.to_string();
    let mut command = system.command(&["proxy", &pair, &host, flag, "--json", "--no-agent"]);
    command.stdout(Stdio::piped());
    let mut process = Background::start(command);
    let mut line = String::new();
    let stdout = process.0.stdout.take().context("no stdout")?;
    BufReader::new(stdout).read_line(&mut line)?;
    let json: serde_json::Value = serde_json::from_str(&line).context("proxy did not start")?;
    let port = json["local"].as_str().context("no port")?.parse()?;
    Ok(Side {
        name: "underpass",
        way,
        process,
        port,
    })
}

fn onetun(system: &System, far: &Instance, directory: &Path) -> anyhow::Result<Side> {
    let program = env::var_os("ONETUN");
    let program =
        program.context("ONETUN is not set\nhint: cargo xtask bench client installs it")?;
    let it = configuration(&peer(system, directory, "onetun"))?;
    // It takes no port 0.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut command = Command::new(program);
    command
        .arg(format!("{port}:[{}]:{}", far.address, instance::PORT))
        .args(["--endpoint-addr", &it.endpoint])
        .args(["--endpoint-public-key", &it.gateway_key])
        .args(["--source-peer-ip", &it.address.to_string()])
        .args(["--max-transmission-unit", "1420", "--keep-alive", "15"])
        .args(["--log", "off"])
        .env("ONETUN_PRIVATE_KEY", it.private_key)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let process = Background::start(command);
    let started = Instant::now();
    while std::net::TcpStream::connect(port).is_err() {
        ensure!(
            started.elapsed() < Duration::from_secs(10),
            "onetun does not listen"
        );
        thread::sleep(Duration::from_millis(50));
    }
    Ok(Side {
        name: "onetun",
        way: "udp",
        process,
        port,
    })
}

/// From the start of the process to the first byte of a remote command's output: on this machine,
/// and on one that is 50 ms away.
fn starts(out: &Out) -> anyhow::Result<()> {
    eprintln!(
        "\n{:<12}{:<28}{:>10}{:>9}{:>9}",
        "distance", "start to first byte", "median ms", "least", "most"
    );
    compare_starts(&System::start(), None, "none", out)?;
    if !tests::root() {
        return Ok(());
    }
    let (near, far) = (Namespace::new(), Namespace::new());
    let _link = Link::new(
        &near,
        &far,
        Shape {
            rate: 100_000_000,
            delay: Duration::from_millis(25),
            queue: 625_000,
            loss_permille: 0,
            mtu: 1500,
        },
    );
    let setup = Setup {
        namespace: Some((&far, "fd99::2")),
        ..Setup::default()
    };
    compare_starts(&setup.start(), Some(&near), "50 ms", out)
}

/// The ways there are, in turns.
fn compare_starts(
    system: &System,
    from: Option<&Namespace>,
    distance: &str,
    out: &Out,
) -> anyhow::Result<()> {
    const WAYS: [(&str, &[&str], &str); 4] = [
        ("cold, UDP", &["--udp"], "off"),
        ("cold, WebSocket", &["--websockets"], "off"),
        ("cold, the race", &[], "off"),
        ("with the agent", &[], "on"),
    ];
    let runtime = tempfile::tempdir()?;
    let command = |arguments: &[&str], agent: &str| {
        let mut command = match from {
            None => Command::new(binary()),
            Some(namespace) => namespace.command(binary()),
        };
        command
            .args(arguments)
            .env("UNDERPASS_AGENT", agent)
            .env("UNDERPASS_DATA_DIR", system.data_dir())
            .env("XDG_RUNTIME_DIR", runtime.path());
        command
    };
    let console = |way: &[&str], agent: &str| {
        let console = ["ssh", "console", "-a", "web", "-q", "-C", "echo here"];
        first_byte(command(&[&console, way].concat(), agent))
    };
    // A login is kept: it is no part of what is compared.
    console(&[], "off")?;
    out.start(
        distance,
        "the one that starts the agent",
        &[console(&[], "on")?],
    );
    let mut times = [const { Vec::new() }; WAYS.len()];
    for _ in 0..STARTS {
        for (times, (_, way, agent)) in times.iter_mut().zip(WAYS) {
            times.push(console(way, agent)?);
        }
    }
    for (times, (case, ..)) in times.iter().zip(WAYS) {
        out.start(distance, case, times);
    }
    let stop = command(&["agent", "stop"], "on");
    tests::command::run(stop, b"", Duration::from_secs(10));
    Ok(())
}

/// Milliseconds.
fn first_byte(mut command: Command) -> anyhow::Result<f64> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let started = Instant::now();
    let mut process = Background::start(command);
    let mut stdout = process.0.stdout.take().context("no stdout")?;
    let mut byte = [0];
    let read = stdout.read(&mut byte)?;
    let time = started.elapsed();
    ensure!(read == 1 && byte == *b"h", "the command said nothing");
    let status = process.0.wait()?;
    ensure!(status.success(), "the command ended with {status}");
    Ok(time.as_secs_f64() * 1e3)
}

struct Out {
    json: bool,
}

impl Out {
    /// A rate of 0 is all that goes.
    fn bulk(&self, side: &Side, direction: Direction, asked: u64, samples: &[Sample]) {
        let rate = median(samples.iter().map(|it| it.bytes_per_second).collect());
        let of = |at: usize| median(samples.iter().map(|it| it.nanos_per_byte[at]).collect());
        let (client, up, far) = (of(0), of(1), of(2));
        let intact = samples.iter().all(|sample| sample.intact);
        let shown = match asked {
            0 => "all".to_owned(),
            asked => (asked / 1_000_000).to_string(),
        };
        eprintln!(
            "{:<11}{:<11}{:<6}{shown:>9}{:>9.1}{:>9}{client:>12.2}{up:>10.2}{far:>10.2}",
            side.name,
            side.way,
            direction.name(),
            rate / 1e6,
            if intact { "yes" } else { "no" },
        );
        let line = json!({
            "measurement": "bulk",
            "side": side.name,
            "way": side.way,
            "direction": direction.name(),
            "asked_bytes_per_second": asked,
            "bytes_per_second": round(rate, 0),
            "intact": intact,
            "client_cpu_ns_per_byte": round(client, 3),
            "up_cpu_ns_per_byte": round(up, 3),
            "instance_cpu_ns_per_byte": round(far, 3),
            "runs": samples.len(),
        });
        self.line(&line);
    }

    fn start(&self, distance: &str, case: &str, times: &[f64]) {
        let middle = median(times.to_vec());
        let least = times.iter().copied().fold(f64::INFINITY, f64::min);
        let most = times.iter().copied().fold(0.0, f64::max);
        eprintln!("{distance:<12}{case:<28}{middle:>10.1}{least:>9.1}{most:>9.1}");
        let line = json!({
            "measurement": "start",
            "distance": distance,
            "case": case,
            "median_ms": round(middle, 2),
            "least_ms": round(least, 2),
            "most_ms": round(most, 2),
            "runs": times.len(),
        });
        self.line(&line);
    }

    fn line(&self, line: &serde_json::Value) {
        if self.json {
            println!("{line}");
        }
    }
}
