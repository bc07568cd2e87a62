//! Relays under the load of 200 sessions: one that is replaced on its port, and three behind
//! HAProxy of which one is replaced, one dies and one hangs.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tests::{
    client::Client,
    command::Background,
    namespace::{Namespace, connect},
    relay::{Pace, Relay, Setup, Transfer, have, sum, through},
    root,
    system::{self, System},
};
use tokio::{
    io::AsyncReadExt,
    net::TcpSocket,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

/// Each transfer is two sessions.
const TRANSFERS: usize = 100;
const SESSIONS: u64 = 2 * TRANSFERS as u64;

/// A person takes a longer pause for the end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Peers for all transfers, leased at the same time as far as the machine can.
fn lease(system: &System, session: &str) -> Vec<[Client; 2]> {
    const THREADS: usize = 4;
    let some = || {
        (0..TRANSFERS / THREADS)
            .map(|_| [(); 2].map(|()| Client::lease(system, session)))
            .collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(some)).collect();
        let join = |it: std::thread::ScopedJoinHandle<'_, _>| it.join().expect("leases");
        threads.into_iter().flat_map(join).collect()
    })
}

/// Starts a transfer between each pair, a few at a time.
async fn start(system: &System, pairs: &[[Client; 2]], relay: SocketAddr) -> Vec<Transfer> {
    let started = Instant::now();
    let mut transfers = Vec::new();
    for some in pairs.chunks(10) {
        let some = some
            .iter()
            .map(|peers| Transfer::between(system, peers, relay, Pace::SLOW));
        transfers.extend(futures_util::future::join_all(some).await);
    }
    let took = started.elapsed();
    println!("{SESSIONS} sessions and their transfers: {took:.1?}");
    // A second. At a gateway to which all of them are one client it is nine.
    assert!(took < Duration::from_secs(6), "{took:?}");
    transfers
}

/// Every transfer goes on; the longest pause of any since this was asked before.
async fn longest_pause(transfers: &[Transfer]) -> Duration {
    let pauses = transfers.iter().map(Transfer::goes_on);
    let pauses = futures_util::future::join_all(pauses).await;
    pauses.into_iter().max().expect("transfers")
}

/// Ends all of them, whole.
async fn end(transfers: Vec<Transfer>) {
    let ends = transfers.into_iter().map(Transfer::end);
    let ends = futures_util::future::join_all(ends).await;
    let bytes: u64 = ends.iter().map(|(bytes, _)| bytes).sum();
    let least = ends.iter().map(|(bytes, _)| bytes).min();
    println!("{bytes} bytes in all, every one checked");
    assert!(least > Some(&50_000), "{least:?}");
}

/// What a relay says of itself once its last session has ended.
fn adds_up(relay: &Relay) {
    let counts = relay.counts();
    let one = |series: &str| counts[series];
    for direction in ["direction=\"up\"", "direction=\"down\""] {
        let received = sum(&counts, "datagrams_received_total", direction);
        let sent = sum(&counts, "datagrams_sent_total", direction);
        let dropped = sum(&counts, "datagrams_dropped_total", direction);
        assert_eq!(received, sent + dropped, "{direction}: {counts:?}");
        assert!(received > 1000, "{direction}: {counts:?}");
        assert!(dropped < received / 100, "{direction}: {counts:?}");
    }
    assert_eq!(one("sessions_opened_total"), one("sessions_ended_total"));
    assert_eq!(
        one("sessions_opened_total"),
        one("sessions_proven_total"),
        "nobody was let in who proved nothing: {counts:?}"
    );
    assert_eq!(
        sum(&counts, "connections_refused_total", ""),
        0,
        "{counts:?}"
    );
    let known = ["restarting", "token_invalid"].map(|reason| sum(&counts, REFUSED, reason));
    let refused = sum(&counts, REFUSED, "");
    assert_eq!(refused, known.iter().sum::<u64>(), "{counts:?}");
}

const REFUSED: &str = "sessions_refused_total";

/// Connects to a port from an address of its own, every ten milliseconds and whatever became of
/// the connections before: none is refused, and none is reset before TLS would begin.
struct Probe {
    enough: Arc<AtomicBool>,
    connected: tokio::task::JoinHandle<(usize, Duration)>,
}

impl Probe {
    fn start(port: SocketAddr) -> Probe {
        let enough = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&enough);
        let connected = tokio::spawn(async move {
            let mut asked = JoinSet::new();
            while !told.load(Ordering::Relaxed) {
                asked.spawn(async move {
                    let socket = TcpSocket::new_v4().expect("a socket");
                    let from = "127.0.0.2:0".parse().expect("an address");
                    socket.bind(from).expect("an address of this machine");
                    let since = Instant::now();
                    let tcp = timeout(PATIENCE, socket.connect(port)).await;
                    let mut tcp = tcp.expect("in time").expect("not refused");
                    let took = since.elapsed();
                    let early = timeout(Duration::from_millis(100), tcp.read(&mut [0; 1])).await;
                    assert!(early.is_err(), "not reset: {early:?}");
                    took
                });
                sleep(Duration::from_millis(10)).await;
            }
            let took = asked.join_all().await;
            (took.len(), took.into_iter().max().unwrap_or_default())
        });
        Probe { enough, connected }
    }

    /// How many connected, and how long the slowest took.
    async fn end(self) -> (usize, Duration) {
        self.enough.store(true, Ordering::Relaxed);
        self.connected.await.expect("nobody was refused")
    }
}

/// Replaced on its port under 200 sessions: every transfer ends whole, and nobody who connects
/// meanwhile is refused. The limits are those by default.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_is_replaced_under_load() {
    let system = System::start();
    let session = system.session();
    let directory = tempfile::tempdir().expect("a directory");
    let here = Setup::here(&system, directory.path(), 0);
    let first = here.start();
    let pairs = lease(&system, &session);
    let transfers = start(&system, &pairs, first.listen).await;
    have(&[&first], SESSIONS).await;
    longest_pause(&transfers).await;

    let probe = Probe::start(first.listen);
    sleep(Duration::from_millis(500)).await;
    let second = Setup {
        listen: first.listen,
        metrics: first.metrics,
        ..here
    };
    let second = second.start();
    assert_eq!(
        (second.listen, second.metrics),
        (first.listen, first.metrics),
        "the same ports, at the same time"
    );
    assert_eq!(
        second.sessions(),
        SESSIONS,
        "metrics are those of the first"
    );
    first.signal("-TERM");
    sleep(Duration::from_millis(300)).await;
    assert_eq!(first.get("/readyz"), "draining");
    let status = first.ended().await;
    assert!(status.success(), "{status}");
    sleep(Duration::from_millis(500)).await;
    have(&[&second], SESSIONS).await;
    let pause = longest_pause(&transfers).await;
    let (connected, slowest) = probe.end().await;
    println!(
        "replaced on its port: longest pause {pause:.1?}; \
         {connected} connections meanwhile, none refused, the slowest after {slowest:.1?}"
    );
    assert!(connected > 200, "{connected}");
    assert!(pause < PATIENCE, "{pause:?}");
    end(transfers).await;
    have(&[&second], 0).await;
    adds_up(&second);
}

/// The document that tells how such a fleet is run, and the configurations in it.
const DOCUMENT: &str = include_str!("../../docs/relay-operation.md");

/// The part in that language that begins so, without its beginning.
fn documented(language: &str, begins: &str) -> &'static str {
    DOCUMENT
        .split("```")
        .find_map(|part| part.strip_prefix(language)?.trim().strip_prefix(begins))
        .expect("it is documented")
}

/// Machines of their own for clients, the balancer, the relays and the gateway. The clients reach
/// the balancer alone.
struct Fleet {
    system: System,
    relays: Namespace,
    balancer: Namespace,
    clients: Namespace,
    /// Where the system runs.
    _gateway: Namespace,
    directory: tempfile::TempDir,
}

/// Where clients find the fleet.
const FRONT: &str = "10.99.41.2";

impl Fleet {
    fn new() -> Fleet {
        let [clients, balancer, relays, gateway] = [(); 4].map(|()| Namespace::new());
        connect(&clients, &balancer, 41);
        let (_, first) = connect(&balancer, &relays, 42);
        // The addresses of three relays on one machine.
        let links = relays
            .run("ip", ["-o", "addr"], Duration::from_secs(5))
            .ok();
        let links = links.text();
        let link = links.lines().find(|line| line.contains(&first));
        let link = link.and_then(|line| line.split_whitespace().nth(1));
        let link = link.expect("its interface");
        for name in NAMES {
            let address = format!("{}/24", address(name));
            relays.ip(["addr", "add", &address, "dev", link]);
        }
        let (of_relays, of_gateway) = connect(&relays, &gateway, 43);
        let system = system::Setup {
            namespace: Some((&gateway, &of_gateway)),
            arguments: &["--relay-address", &of_relays],
            ..system::Setup::default()
        };
        Fleet {
            system: system.start(),
            relays,
            balancer,
            clients,
            _gateway: gateway,
            directory: tempfile::tempdir().expect("a directory"),
        }
    }

    /// Starts the relay of that name.
    fn relay(&self, name: &str) -> Relay {
        let address = address(name);
        Setup {
            system: &self.system,
            directory: self.directory.path(),
            namespace: Some(&self.relays),
            listen: format!("{address}:443").parse().expect("an address"),
            metrics: format!("{address}:9100").parse().expect("an address"),
            host: FRONT,
            limits: documented("toml", "[limits]"),
            tls: None,
        }
        .start()
    }

    /// Starts HAProxy with the documented configuration, for these addresses.
    fn haproxy(&self) -> Background {
        let mut config = format!("defaults{}\n", documented("haproxy", "defaults"));
        for name in NAMES {
            let documented = format!("server {name} 192.0.2.");
            assert!(config.contains(&documented), "{config}");
            config = config.replace(&documented, &format!("server {name} 10.99.42."));
        }
        let file = self.directory.path().join("haproxy.cfg");
        std::fs::write(&file, config).expect("a configuration");
        let mut command = self.balancer.command("haproxy");
        command.args(["-db", "-f"]).arg(file);
        let haproxy = Background::start(command);
        self.balancer.listens(443);
        haproxy
    }
}

const NAMES: [&str; 3] = ["a", "b", "c"];

/// Where the relay of that name is.
fn address(name: &str) -> String {
    let at = NAMES.iter().position(|it| *it == name).expect("a relay");
    format!("10.99.42.{}", 11 + at)
}

/// Three relays behind HAProxy: one is drained and replaced, another one is killed and comes back,
/// the third hangs.
#[test]
fn a_fleet_loses_relays_and_no_byte() {
    if !root() {
        return;
    }
    let fleet = Fleet::new();
    let system = &fleet.system;
    let mut relays = NAMES.map(|name| Some(fleet.relay(name)));
    let mut haproxy = fleet.haproxy();
    let session = system.session();
    let pairs = lease(system, &session);
    let front: SocketAddr = format!("{FRONT}:443").parse().expect("an address");
    fleet.clients.enter(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let [a, b, c] = relays
                .each_mut()
                .map(|relay| relay.take().expect("started"));
            // A token that no relay can verify opens nothing at any of them.
            let mut stranger = pairs[0][0].clone();
            let token = &mut stranger.lease.relay.token;
            let changed = token.len() - 5;
            let other = if token[changed..].starts_with('A') {
                "B"
            } else {
                "A"
            };
            token.replace_range(changed..=changed, other);
            for _ in NAMES {
                let refused = stranger.connect(through(system, &stranger, front)).await;
                assert_eq!(refused.expect_err("refused").code(), "token_invalid");
            }
            let refused = |relay: &Relay| sum(&relay.counts(), REFUSED, "token_invalid");
            assert_eq!([&a, &b, &c].map(refused), [1; 3]);

            let transfers = start(system, &pairs, front).await;
            have(&[&a, &b, &c], SESSIONS).await;
            let shares = [&a, &b, &c].map(Relay::sessions);
            println!("sessions of each relay: {shares:?}");
            assert!(
                shares.iter().all(|share| *share > SESSIONS / 5),
                "{shares:?}"
            );
            longest_pause(&transfers).await;
            sleep(Duration::from_secs(3)).await;
            let pause = longest_pause(&transfers).await;
            println!("nothing happens: longest pause {pause:.1?}");

            let next = fleet.relay("a");
            a.signal("-TERM");
            let status = a.ended().await;
            assert!(status.success(), "{status}");
            sleep(Duration::from_millis(500)).await;
            let a = next;
            have(&[&a, &b, &c], SESSIONS).await;
            let pause = longest_pause(&transfers).await;
            let shares = [&a, &b, &c].map(Relay::sessions);
            println!("one drained and replaced: longest pause {pause:.1?}; {shares:?}");
            assert!(pause < PATIENCE, "{pause:?}");

            b.signal("-KILL");
            b.ended().await;
            have(&[&a, &c], SESSIONS).await;
            let pause = longest_pause(&transfers).await;
            let shares = [&a, &c].map(Relay::sessions);
            println!("one killed: longest pause {pause:.1?}; {shares:?}");
            assert!(pause < PATIENCE, "{pause:?}");

            // It comes back, and new sessions come to it, the fewest being there.
            let b = fleet.relay("b");
            sleep(Duration::from_secs(3)).await;
            let more = [(); 2].map(|()| Client::lease(system, &session));
            let more = Transfer::between(system, &more, front, Pace::SLOW).await;
            assert_eq!(b.sessions(), 2);
            sleep(Duration::from_secs(3)).await;
            let (bytes, _) = more.end().await;
            assert!(bytes > 0);

            // One that says nothing any more, and whose connections stand.
            longest_pause(&transfers).await;
            c.signal("-STOP");
            have(&[&a, &b], SESSIONS).await;
            let pause = longest_pause(&transfers).await;
            let shares = [&a, &b].map(Relay::sessions);
            println!("one hangs: longest pause {pause:.1?}; {shares:?}");
            assert!(pause < PATIENCE, "{pause:?}");
            c.signal("-KILL");
            c.ended().await;

            end(transfers).await;
            have(&[&a, &b], 0).await;
            [&a, &b].into_iter().for_each(adds_up);
        });
    });
    let ended = haproxy.0.try_wait().expect("its state");
    assert_eq!(ended, None, "HAProxy has carried all of it");
}
