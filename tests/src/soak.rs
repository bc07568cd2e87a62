//! A soak: hundreds of clients of every manner come and go at one relay, and afterwards nothing of
//! them is left: no memory, no descriptor, no datagram that is not in the books.
//!
//! The relay is `underpass relay` with its usual limits, known from outside: its port, `/metrics`
//! and what the kernel says of its process. What is random comes from one seed; what the
//! scheduler makes of it does not. [`life`] is what clients do, [`gateway`] what is behind the
//! relay, [`books`] what has to add up.

mod books;
mod gateway;
mod life;
mod link;
mod process;
mod random;

use std::{
    fmt::Write as _,
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use carrier::{Trust, tls_config};
use serde_json::json;
use tokio::{runtime, sync::watch, task::JoinSet, time::sleep};
use tokio_rustls::TlsConnector;
use tunnel::peer::{Peer, PeerConfig};

use self::{
    books::Metrics, gateway::Gateway, life::Life, link::Tally, process::RelayProcess,
    random::Random,
};
use crate::{client, clock, system::System};

/// What is still held after so long is not given back any more: sessions whose clients do not come
/// back wait for 30 s.
const SETTLES: Duration = Duration::from_secs(45);
/// Below this, no session that proves nothing would live to its end, which comes after 30 s.
const LEAST_SECONDS: u64 = 40;
/// How much more memory the end may take than the plateau: a part of it, and so many bytes.
const GROWTH: f64 = 0.10;
const SLACK: u64 = 8 << 20;
/// How often memory is looked at, and how often progress is said.
const SAMPLE: Duration = Duration::from_millis(250);
const PROGRESS: Duration = Duration::from_secs(5);
/// Of what clients ask a gateway that answers, so much is answered.
const LEAST_ANSWERED: f64 = 0.75;

/// What clients and observers share.
struct World {
    relay: std::net::SocketAddr,
    tls: TlsConnector,
    /// Of a client that trusts nobody.
    wary: TlsConnector,
    token: String,
    /// Proves a session.
    initiation: Vec<u8>,
    /// Is for another gateway.
    stranger: Vec<u8>,
    gateway: Gateway,
    stop: watch::Receiver<bool>,
    tally: Tally,
    faults: Mutex<Vec<String>>,
    fault_count: AtomicU64,
}

/// Faults that are told word by word.
const TOLD: usize = 20;

impl World {
    fn fault(&self, what: String) {
        eprintln!("fault: {what}");
        self.fault_count.fetch_add(1, Relaxed);
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if faults.len() < TOLD {
            faults.push(what);
        }
    }

    fn is_over(&self) -> bool {
        *self.stop.borrow()
    }

    /// Waits so long, or until it is all over; says whether it is.
    async fn rest(&self, time: Duration) -> bool {
        let mut stop = self.stop.clone();
        tokio::select! {
            () = sleep(time) => self.is_over(),
            _ = stop.wait_for(|stop| *stop) => true,
        }
    }
}

/// Runs a soak as a program does: `--seconds N`, `--seed N`, `--json`; without the first it takes
/// `seconds`. Succeeds when nothing was left.
pub fn command(seconds: u64) -> ExitCode {
    let (mut seconds, mut seed, mut json) = (seconds, None, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|it| it.parse::<u64>().ok());
        match argument.as_str() {
            "--json" => json = true,
            "--seconds" => match number() {
                Some(given) if given >= LEAST_SECONDS => seconds = given,
                _ => return refuse("--seconds takes a number, 40 or more"),
            },
            "--seed" => match number() {
                Some(given) => seed = Some(given),
                None => return refuse("--seed takes a number"),
            },
            other => return refuse(&format!("unknown argument {other}")),
        }
    }
    let seed = seed.unwrap_or_else(|| {
        let mut bytes = [0; 4];
        getrandom::fill(&mut bytes).expect("randomness");
        u32::from_le_bytes(bytes).into()
    });
    let summary = run(seconds, seed);
    if json {
        println!("{}", summary.to_json());
    }
    eprint!("{}", summary.to_text());
    if summary.faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn refuse(what: &str) -> ExitCode {
    eprintln!("{what}\nhint: --seconds N, --seed N, --json");
    ExitCode::from(2)
}

/// What a soak came to.
#[derive(Debug)]
pub struct Summary {
    seed: u64,
    seconds: u64,
    clients: usize,
    lives: Vec<(&'static str, u64)>,
    metrics: Metrics,
    /// Bytes: the plateau, the end under load, and when everything had gone.
    resident: [u64; 3],
    /// Before the first client, at most, and when everything had gone.
    descriptors: [usize; 3],
    settled: Duration,
    answered: (u64, u64),
    /// What is wrong; empty when the soak has passed.
    pub faults: Vec<String>,
}

/// Runs one.
///
/// # Panics
/// When a relay cannot be started.
pub fn run(seconds: u64, seed: u64) -> Summary {
    eprintln!("seed {seed}, {seconds} s (again: --seed {seed} --seconds {seconds})");
    // A system lends its certificate and a token, and is gone before the first client comes.
    let system = System::start();
    let lease = client::Client::lease(&system, &system.session()).lease;
    let certificate = system.certificate();
    let tls = tls_config(&Trust::PemFile(certificate)).expect("the certificate");
    let wary = tls_config(&Trust::Fingerprint([0; 32])).expect("no certificate");
    let gateway = Gateway::new();
    let relay = RelayProcess::start(&system, &lease, gateway.address);
    drop(system);
    let (stop, stopped) = watch::channel(false);
    let world = Arc::new(World {
        relay: relay.listen(),
        tls: TlsConnector::from(tls),
        wary: TlsConnector::from(wary),
        token: lease.relay.token,
        initiation: initiation(&lease.gateway.public_key),
        stranger: initiation(&client::key().public().to_string()),
        gateway,
        stop: stopped,
        tally: Tally::default(),
        faults: Mutex::default(),
        fault_count: AtomicU64::new(0),
    });
    runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(soak(world, relay, &stop, seconds, seed))
}

/// A handshake initiation for this gateway.
fn initiation(gateway: &str) -> Vec<u8> {
    let gateway = gateway.parse().expect("a public key");
    let mut peer = Peer::new(
        PeerConfig::client(client::key(), gateway),
        tunnel::Instant::ZERO,
    );
    peer.initiate(tunnel::Instant::ZERO);
    peer.poll_transmit().expect("an initiation")
}

async fn soak(
    world: Arc<World>,
    mut relay: RelayProcess,
    stop: &watch::Sender<bool>,
    seconds: u64,
    seed: u64,
) -> Summary {
    let before = Metrics::of(&relay).await;
    let idle = relay.idle_descriptors().await;
    let started = clock::now();
    let mut random = Random::new(seed);
    let mut lives = JoinSet::new();
    let running = Arc::new(AtomicBool::new(true));
    let behind = tokio::spawn(gateway::serve(
        Arc::clone(&world),
        random.split(),
        Arc::clone(&running),
    ));
    let mut slots = Life::slots();
    random.shuffle(&mut slots);
    let clients = slots.len();
    for (slot, life) in slots.into_iter().enumerate() {
        // All at once they would be a test of the kernel's backlog.
        let after = Duration::from_millis(slot as u64 * 5);
        lives.spawn(life.lead(Arc::clone(&world), slot, after, random.split()));
    }

    let load = Duration::from_secs(seconds);
    let mut samples: Vec<(Duration, u64)> = Vec::new();
    let (mut most, mut told) = (idle, Duration::ZERO);
    loop {
        sleep(SAMPLE).await;
        let elapsed = started.elapsed();
        if elapsed >= load || !relay.is_running() {
            break;
        }
        let descriptors = relay.descriptors();
        most = most.max(descriptors);
        samples.push((elapsed, relay.resident()));
        if elapsed >= told + PROGRESS {
            told = elapsed;
            let metrics = Metrics::of(&relay).await;
            eprintln!(
                "{:>5} s  clients {:>4}  opened {:>6}  ended {:>6}  parked {:>4}  resident {:>6.1} MiB  descriptors {:>5}  gateway {}",
                elapsed.as_secs(),
                world.tally.open.load(Relaxed),
                metrics.get("sessions_opened_total"),
                metrics.get("sessions_ended_total"),
                metrics.get("sessions_parked_total"),
                relay.resident() as f64 / f64::from(1 << 20),
                descriptors,
                world.gateway.mood(),
            );
        }
    }
    let _ = stop.send(true);
    while lives.join_next().await.is_some() {}
    running.store(false, Relaxed);
    let _ = behind.await;
    let leaving = clock::now();
    let mut metrics = Metrics::of(&relay).await;
    let mut left = relay.descriptors();
    while relay.is_running()
        && (metrics.get("sessions") > 0 || left > idle)
        && leaving.elapsed() < SETTLES
    {
        sleep(SAMPLE).await;
        metrics = Metrics::of(&relay).await;
        left = relay.idle_descriptors().await;
    }
    let settled = leaving.elapsed();

    let part = |from: f64, to: f64| {
        let range = load.mul_f64(from)..load.mul_f64(to);
        let within = samples.iter().filter(|(at, _)| range.contains(at));
        let mut within: Vec<u64> = within.map(|(_, resident)| *resident).collect();
        within.sort_unstable();
        within.get(within.len() / 2).copied().unwrap_or_default()
    };
    let resident = [
        part(1.0 / 3.0, 1.0 / 3.0 + 0.15),
        part(0.85, 1.0),
        relay.resident(),
    ];
    let answered = (
        world.tally.asked.load(Relaxed),
        world.tally.answered.load(Relaxed),
    );
    let mut faults = world
        .faults
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let count = world.fault_count.load(Relaxed);
    if count > TOLD as u64 {
        faults.push(format!("{} faults more", count - TOLD as u64));
    }
    if !relay.is_running() {
        faults.push("the relay has ended by itself".to_owned());
    }
    let allowed = resident[0] + (resident[0] as f64 * GROWTH) as u64 + SLACK;
    for (what, bytes) in [("under load", resident[1]), ("at rest", resident[2])] {
        if bytes > allowed {
            faults.push(format!(
                "memory grew from {} KiB after a third to {} KiB {what}, and {} KiB are allowed",
                resident[0] >> 10,
                bytes >> 10,
                allowed >> 10
            ));
        }
    }
    if left != idle {
        faults.push(format!(
            "{left} descriptors are open, and {idle} were before the first client"
        ));
    }
    if (answered.1 as f64) < answered.0 as f64 * LEAST_ANSWERED {
        faults.push(format!(
            "of {} datagrams to a gateway that answers, {} were answered",
            answered.0, answered.1
        ));
    }
    faults.extend(books::faults(&before, &metrics, &world.tally));
    Summary {
        seed,
        seconds,
        clients,
        lives: world.tally.lives(),
        metrics,
        resident,
        descriptors: [idle, most, left],
        settled,
        answered,
        faults,
    }
}

impl Summary {
    /// One line of JSON.
    pub fn to_json(&self) -> String {
        let lives: serde_json::Map<_, _> = self
            .lives
            .iter()
            .map(|(name, count)| ((*name).to_owned(), json!(count)))
            .collect();
        json!({
            "bench": "relay-soak",
            "passed": self.faults.is_empty(),
            "seed": self.seed,
            "seconds": self.seconds,
            "clients": self.clients,
            "lives": lives,
            "resident_plateau": self.resident[0],
            "resident_end": self.resident[1],
            "resident_at_rest": self.resident[2],
            "descriptors_idle": self.descriptors[0],
            "descriptors_most": self.descriptors[1],
            "descriptors_left": self.descriptors[2],
            "settled_seconds": (self.settled.as_secs_f64() * 10.0).round() / 10.0,
            "asked": self.answered.0,
            "answered": self.answered.1,
            "metrics": self.metrics.to_json(),
            "faults": self.faults,
        })
        .to_string()
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let lives: Vec<String> = self
            .lives
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        // A String takes whatever is written.
        let _ = write!(
            text,
            "lives: {}\n\
             sessions opened {}, up {} datagrams, down {}\n\
             resident {:.1} MiB after a third, {:.1} at the end, {:.1} at rest\n\
             descriptors {} before, {} at most, {} after; settled in {:.1} s\n",
            lives.join(", "),
            self.metrics.get("sessions_opened_total"),
            self.metrics
                .get("datagrams_received_total{direction=\"up\"}"),
            self.metrics
                .get("datagrams_received_total{direction=\"down\"}"),
            mib(self.resident[0]),
            mib(self.resident[1]),
            mib(self.resident[2]),
            self.descriptors[0],
            self.descriptors[1],
            self.descriptors[2],
            self.settled.as_secs_f64(),
        );
        for fault in &self.faults {
            let _ = writeln!(text, "FAULT: {fault}");
        }
        let _ = match self.faults.len() {
            0 => writeln!(text, "passed: nothing is left"),
            _ => writeln!(text, "failed (seed {})", self.seed),
        };
        text
    }
}
