//! Many clients that wait: what each holds of a server's memory, and what it costs to let one in.
//!
//! Half of the clients are upgraded and say nothing; the other half send an initiation, so that
//! each has a UDP socket to the gateway, and later a burst in each direction. `--clients 10000`
//! is their number, `--baseline-clients 2000` that of the baseline, which takes twenty times the
//! memory; `--relay` and `--baseline` measure one of them. One line of JSON per server on stdout
//! with `--json`, a table on stderr.

#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::ClientConfig;
use serde_json::json;
use socket2::{Domain, Socket, Type};
use underpass_bench::{
    LOAD_CORE,
    client::{Client, INITIATION, tls},
    cpu_nanos,
    load::{LENGTH, gateway},
    path::Place,
    pin, resident, round,
    server::{self, Server, Side},
};

/// Connections that are being made at the same time.
const CONNECTING: usize = 16;
/// Clients that have one source address: none has enough ports for all.
const PER_SOURCE: usize = 4_000;
/// Clients that are handled together: what they send fits the gateway's buffer.
const WAVE: usize = 50;
/// Datagrams of a client's burst, each way, and how many bursts there are.
const BURST: usize = 32;
const BURSTS: usize = 2;
/// What the goals are, in KiB per client: after the handshake, and after traffic.
const GOALS: (f64, f64) = (8.0, 10.0);

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["--serve", side, gateway, listen] = words[..] {
        return server::run(side, gateway, listen);
    }
    let (mut json, mut clients, mut of_baseline) = (false, 10_000, 2_000);
    let mut sides = vec![Side::Relay, Side::Baseline];
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let mut number = || -> anyhow::Result<usize> {
            let number = rest.next().context("a number is missing")?.parse()?;
            ensure!(number >= 2, "{number} clients are too few\nhint: 2 or more");
            Ok(number)
        };
        match *word {
            "--json" => json = true,
            "--clients" => clients = number()?,
            "--baseline-clients" => of_baseline = number()?,
            "--relay" => sides = vec![Side::Relay],
            "--baseline" => sides = vec![Side::Baseline],
            other => bail!(
                "unknown argument {other}\nhint: --json, --clients, --baseline-clients, --relay, --baseline"
            ),
        }
    }
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    pin(LOAD_CORE)?;
    eprintln!(
        "{:<10}{:>9}{:>10}{:>14}{:>14}{:>12}{:>12}{:>12}",
        "side",
        "clients",
        "admitted",
        "KiB upgraded",
        "KiB admitted",
        "KiB used",
        "connects/s",
        "us/connect"
    );
    for side in sides {
        let clients = match side {
            Side::Relay | Side::Restless => clients,
            Side::Baseline => of_baseline,
        };
        let waiting = clients - clients / 2;
        let needed = (2 * clients - if side == Side::Relay { waiting } else { 0 } + 100) as u64;
        ensure!(
            most >= needed,
            "{clients} clients of {} take {needed} descriptors, and {most} are allowed\n\
             hint: ulimit -Hn, or fewer --clients",
            side.name()
        );
        let line = measure(side, clients)?;
        if json {
            println!("{line}");
        }
    }
    eprintln!(
        "goals: {} KiB per client once admitted, {} KiB after traffic",
        GOALS.0, GOALS.1
    );
    Ok(())
}

fn measure(side: Side, count: usize) -> anyhow::Result<serde_json::Value> {
    let place = Place::loopback();
    let gateway = gateway(&place)?;
    gateway.set_read_timeout(Some(Duration::from_secs(5)))?;
    let server = Server::start(side, gateway.local_addr()?, &place)?;
    let tls = tls(&server.certificate)?;
    // The first client pays for what all share.
    let mut first = connect(&server, &tls, 1)?;
    let path = admit(&mut first, &gateway)?;
    burst(&mut first, &path, &gateway)?;

    let before = resident(server.pid())?;
    let cpu = cpu_nanos(server.pid())?;
    let start = Instant::now();
    let mut clients = connect(&server, &tls, count)?;
    let took = start.elapsed().as_secs_f64();
    let cpu = cpu_nanos(server.pid())? - cpu;
    let upgraded = resident(server.pid())?;
    // Of the two kinds, neither came first.
    let mut admitted: Vec<Client> = Vec::new();
    let mut waiting = Vec::new();
    for (n, client) in clients.drain(..).enumerate() {
        if n % 2 == 1 {
            &mut admitted
        } else {
            &mut waiting
        }
        .push(client);
    }
    let paths = admit(&mut admitted, &gateway)?;
    let fresh = resident(server.pid())?;
    let mut passed = (0, 0);
    for _ in 0..BURSTS {
        let (up, down) = burst(&mut admitted, &paths, &gateway)?;
        passed = (passed.0 + up, passed.1 + down);
    }
    // What the server gives back, it has given back by then.
    thread::sleep(Duration::from_secs(1));
    let used = resident(server.pid())?;
    // They are all still there.
    for client in admitted.iter_mut().chain(&mut waiting) {
        client.receive(|_| {})?;
    }

    let kib = |bytes: u64| {
        let more = bytes.saturating_sub(before) as f64 / 1024.0;
        round(more / count as f64, 2)
    };
    let sent = (BURSTS * BURST * admitted.len()) as f64;
    let lost = |arrived: usize| round(1.0 - arrived as f64 / sent, 4);
    let per_second = round(count as f64 / took, 0);
    let us = round(cpu as f64 / 1e3 / count as f64, 0);
    eprintln!(
        "{:<10}{count:>9}{:>10}{:>14.2}{:>14.2}{:>12.2}{per_second:>12}{us:>12}",
        side.name(),
        admitted.len(),
        kib(upgraded),
        kib(fresh),
        kib(used)
    );
    Ok(json!({
        "side": side.name(),
        "clients": count,
        "admitted": admitted.len(),
        "kib_per_client_upgraded": kib(upgraded),
        "kib_per_client_after_handshake": kib(fresh),
        "kib_per_client_after_traffic": kib(used),
        "lost_up": lost(passed.0),
        "lost_down": lost(passed.1),
        "connects_per_second": per_second,
        "cpu_us_per_connect": us,
    }))
}

/// Connects so many clients, some at the same time, and hears the first word of each.
fn connect(server: &Server, tls: &Arc<ClientConfig>, count: usize) -> anyhow::Result<Vec<Client>> {
    let some = |from: usize| {
        let (address, side) = (server.address, server.side);
        move || -> anyhow::Result<Vec<Client>> {
            let mut clients = Vec::new();
            for n in (from..count).step_by(CONNECTING) {
                let tcp = from_source(address, n / PER_SOURCE)?;
                clients.push(Client::over(tcp, tls, side)?);
            }
            Ok(clients)
        }
    };
    let mut clients = Vec::with_capacity(count);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTING).map(|n| scope.spawn(some(n))).collect();
        for thread in threads {
            let Ok(some) = thread.join() else {
                bail!("a thread that connects has failed");
            };
            clients.extend(some?);
        }
        Ok(clients)
    })
}

/// A connection from 127.0.1.1, 127.0.1.2 and so on.
fn from_source(to: SocketAddr, source: usize) -> anyhow::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    let source = Ipv4Addr::new(127, 0, 1, u8::try_from(source + 1)?);
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

/// Opens the way to the gateway for each of them; the addresses that the gateway sees.
fn admit(clients: &mut [Client], gateway: &UdpSocket) -> anyhow::Result<Vec<SocketAddr>> {
    gateway.set_nonblocking(false)?;
    let mut addresses = Vec::with_capacity(clients.len());
    let mut buffer = [0; 2048];
    for wave in clients.chunks_mut(WAVE) {
        for client in wave.iter_mut() {
            client.send([&INITIATION[..]].into_iter())?;
        }
        for _ in wave {
            let (_, from) = gateway
                .recv_from(&mut buffer)
                .context("no initiation arrived at the gateway")?;
            addresses.push(from);
        }
    }
    Ok(addresses)
}

/// A burst of every client and one for every client; how many datagrams arrived, up and down.
fn burst(
    clients: &mut [Client],
    paths: &[SocketAddr],
    gateway: &UdpSocket,
) -> anyhow::Result<(usize, usize)> {
    gateway.set_nonblocking(true)?;
    let mut datagram = [0; LENGTH];
    datagram[0] = 4;
    // GRO: several may come at once.
    let mut buffer = vec![0; 65_536];
    let (mut up, mut down) = (0, 0);
    // The addresses are in no order, so that those of a wave are of any clients.
    let waves = clients.len().div_ceil(WAVE);
    for wave in 0..waves {
        let of_wave = wave * WAVE..((wave + 1) * WAVE).min(clients.len());
        for client in &mut clients[of_wave.clone()] {
            client.send(std::iter::repeat_n(&datagram[..], BURST))?;
        }
        for path in &paths[of_wave.clone()] {
            for _ in 0..BURST {
                // What the kernel has no room for is lost.
                let _ = gateway.send_to(&datagram, path);
            }
        }
        let (expected, mut heard) = (of_wave.end * BURST, Instant::now());
        while (up < expected || down < expected) && heard.elapsed() < Duration::from_millis(100) {
            let before = (up, down);
            while let Ok((length, _)) = gateway.recv_from(&mut buffer) {
                up += length / LENGTH;
            }
            for client in clients.iter_mut() {
                client.flush()?;
                client.receive(|datagram| down += usize::from(datagram.len() == LENGTH))?;
            }
            if (up, down) != before {
                heard = Instant::now();
            }
        }
    }
    Ok((up, down))
}
