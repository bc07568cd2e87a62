//! Drives a [`Gateway`] from a UDP socket, a directory of peers and `names`.
//!
//! One task owns the gateway; lookups and forwarded queries run beside it and report back. What
//! is decided here is only when.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use names::{Names, Over, Reply};
use sixpn::Prefix;
use tokio::{
    net::UdpSocket,
    sync::{Semaphore, mpsc, oneshot},
    time::{sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tunnel::{Instant, PrivateKey};
use wire::PublicKey;

use crate::{
    Config, Counters, DnsQuery, DnsTicket, DropReason, Gateway, GatewayEvent, Grant, Limits,
    Lookup, PeerStatus, counters::count,
};

/// Datagrams taken from the socket before anything else has its turn.
const BATCH: usize = 64;
/// A directory that takes longer counts as unavailable.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls of the directory at once. Each takes a thread.
const LOOKUP_THREADS: usize = 32;
/// Lookups, answers and commands that wait for the gateway's task.
const REPORTS: usize = 4096;
const COMMANDS: usize = 256;
/// No IP datagram is larger.
const MAX_DATAGRAM: usize = 65_535;
/// What the kernel may queue while the task is busy: about 10 ms of a gigabit per second.
const SOCKET_BUFFER: usize = 1 << 20;

/// A peer or an instance, as the directory knows it.
#[derive(Clone)]
pub struct PeerRecord {
    /// Its name, for people.
    pub name: String,
    /// Its public key.
    pub key: PublicKey,
    /// The addresses that are its own: a /120 of a peer, a /112 of an instance.
    pub range: Prefix,
    /// A preshared key.
    pub preshared: Option<[u8; 32]>,
    /// The end of its lease.
    pub expires: Option<SystemTime>,
}

/// The directory of peers cannot be asked just now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the directory of peers is unavailable: {0}; hint: see that control runs and is reachable")]
pub struct PeersUnavailable(pub String);

/// Where peers come from.
pub trait Peers: Send + Sync + 'static {
    /// The peer with this key; none for a key that nobody holds. Called at most 32 times at once,
    /// on threads that may block; what takes longer than 5 s counts as [`PeersUnavailable`].
    fn peer(
        &self,
        key: PublicKey,
    ) -> impl Future<Output = Result<Option<PeerRecord>, PeersUnavailable>> + Send;
}

impl<P: Peers> Peers for Arc<P> {
    fn peer(
        &self,
        key: PublicKey,
    ) -> impl Future<Output = Result<Option<PeerRecord>, PeersUnavailable>> + Send {
        (**self).peer(key)
    }
}

/// What is told to [`serve`] besides its socket.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Relays whose sessions share an address: budgets count them by port.
    pub relays: Vec<IpAddr>,
    /// The DNS server for names outside `.internal`; without one they fail.
    pub upstream: Option<SocketAddr>,
    /// Bounds.
    pub limits: Limits,
}

/// Talks to a running gateway. Clone it freely; it keeps nothing alive.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
}

/// The other end of a [`Handle`]: goes to [`serve`].
pub struct Inbox {
    commands: mpsc::Receiver<Command>,
}

/// Peers and counters at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Every peer that has completed a handshake, by address.
    pub peers: Vec<PeerStatus>,
    /// The counters, live.
    pub counters: Arc<Counters>,
}

enum Command {
    Revoke(PublicKey),
    Changed(PublicKey),
    Snapshot(oneshot::Sender<Snapshot>),
}

/// A handle, and the end of it that [`serve`] takes.
pub fn handle() -> (Handle, Inbox) {
    let (sender, receiver) = mpsc::channel(COMMANDS);
    (Handle { commands: sender }, Inbox { commands: receiver })
}

impl Handle {
    /// Drops a peer at once. Returns when the gateway has taken note, or is gone.
    pub async fn revoke(&self, key: PublicKey) {
        let _ = self.commands.send(Command::Revoke(key)).await;
    }

    /// Says that the directory's record of a key is new: created, renewed or moved.
    pub async fn changed(&self, key: PublicKey) {
        let _ = self.commands.send(Command::Changed(key)).await;
    }

    /// Peers and counters now; none when the gateway is gone.
    pub async fn snapshot(&self) -> Option<Snapshot> {
        let (sender, receiver) = oneshot::channel();
        self.commands.send(Command::Snapshot(sender)).await.ok()?;
        receiver.await.ok()
    }
}

/// What runs beside the gateway reports back.
enum Report {
    Lookup(PublicKey, Result<Option<PeerRecord>, PeersUnavailable>),
    Answer(DnsTicket, Vec<u8>),
}

/// Runs a gateway on `socket` until `shutdown`. Fails only when the socket does.
pub async fn serve<P: Peers, D: names::Directory>(
    socket: UdpSocket,
    key: PrivateKey,
    peers: Arc<P>,
    names: Arc<Names<D>>,
    options: Options,
    inbox: Inbox,
    shutdown: CancellationToken,
) -> io::Result<()> {
    enlarge_buffers(&socket);
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(io::Error::other)?;
    let config = Config {
        key,
        relays: options.relays,
        seed: u64::from_le_bytes(seed),
        limits: options.limits,
    };
    let (reports, reported) = mpsc::channel(REPORTS);
    let driver = Driver {
        gateway: Gateway::new(config),
        socket,
        peers,
        names,
        upstream: options.upstream,
        lookups: Arc::new(Semaphore::new(LOOKUP_THREADS)),
        clock: Clock::new(),
        reports,
        blocked: None,
    };
    driver.run(reported, inbox.commands, shutdown).await
}

struct Driver<P, D> {
    gateway: Gateway,
    socket: UdpSocket,
    peers: Arc<P>,
    names: Arc<Names<D>>,
    upstream: Option<SocketAddr>,
    lookups: Arc<Semaphore>,
    clock: Clock,
    reports: mpsc::Sender<Report>,
    /// The datagram that the socket did not take.
    blocked: Option<(SocketAddr, Vec<u8>)>,
}

impl<P: Peers, D: names::Directory> Driver<P, D> {
    async fn run(
        mut self,
        mut reported: mpsc::Receiver<Report>,
        mut commands: mpsc::Receiver<Command>,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let mut buffer = vec![0; MAX_DATAGRAM];
        let mut stopped = pin!(shutdown.cancelled());
        loop {
            self.flush();
            let due = self
                .gateway
                .poll_timeout()
                .map(|at| self.clock.to_tokio(at));
            let wake = sleep_until(due.unwrap_or_else(|| self.clock.far()));
            tokio::select! {
                () = &mut stopped => return Ok(()),
                ready = self.socket.readable() => {
                    ready?;
                    self.receive(&mut buffer)?;
                }
                ready = self.socket.writable(), if self.blocked.is_some() => ready?,
                Some(report) = reported.recv() => {
                    self.handle_report(report);
                    while let Ok(report) = reported.try_recv() {
                        self.handle_report(report);
                    }
                }
                Some(command) = commands.recv() => self.handle_command(command),
                () = wake => {}
            }
            // The timers have their turn however busy the socket is.
            let now = self.clock.now();
            if self.gateway.poll_timeout().is_some_and(|at| at <= now) {
                self.gateway.handle_timeout(now);
            }
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        for _ in 0..BATCH {
            match self.socket.try_recv_from(buffer) {
                Ok((len, from)) => {
                    let now = self.clock.now();
                    self.gateway.handle_datagram(now, from, &buffer[..len]);
                    self.flush();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // What an earlier datagram of ours met on its way: not the socket's fault.
                Err(error) if is_of_the_path(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Carries out everything that the gateway asks for.
    fn flush(&mut self) {
        while let Some(key) = self.gateway.poll_lookup() {
            let found = look_up(self.peers.clone(), self.lookups.clone(), key);
            let reports = self.reports.clone();
            tokio::spawn(async move {
                let found = timeout(LOOKUP_TIMEOUT, found).await.unwrap_or_else(|_| {
                    Err(PeersUnavailable(format!(
                        "no answer within {LOOKUP_TIMEOUT:?}"
                    )))
                });
                let _ = reports.send(Report::Lookup(key, found)).await;
            });
        }
        while let Some(query) = self.gateway.poll_dns() {
            self.answer(query);
        }
        while let Some(event) = self.gateway.poll_event() {
            log(&event);
        }
        while let Some((to, datagram)) =
            self.blocked.take().or_else(|| self.gateway.poll_transmit())
        {
            match self.socket.try_send_to(&datagram, to) {
                Ok(sent) => {
                    let counters = self.gateway.counters();
                    count(&counters.datagrams_sent);
                    counters
                        .bytes_sent
                        .fetch_add(sent as u64, std::sync::atomic::Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = Some((to, datagram));
                    return;
                }
                Err(error) => {
                    tracing::trace!(%to, %error, "a datagram cannot be sent");
                    self.gateway.counters().count_drop(DropReason::SendFailed);
                }
            }
        }
    }

    fn answer(&mut self, query: DnsQuery) {
        let now = self.clock.now();
        let since = now.since(Instant::ZERO);
        let DnsQuery {
            ticket,
            source,
            over,
            query,
        } = query;
        match self.names.answer(&query, source, over, since) {
            Reply::Answer(answer) => self.gateway.handle_dns_answer(now, ticket, Some(&answer)),
            Reply::Drop(_) => self.gateway.handle_dns_answer(now, ticket, None),
            Reply::Forward(forward) => self.forward(ticket, forward, over),
        }
    }

    fn forward(&self, ticket: DnsTicket, forward: names::Forward, over: Over) {
        let (upstream, reports) = (self.upstream, self.reports.clone());
        tokio::spawn(async move {
            let answer = names::forward(upstream, forward, over).await;
            let _ = reports.send(Report::Answer(ticket, answer)).await;
        });
    }

    fn handle_report(&mut self, report: Report) {
        let now = self.clock.now();
        match report {
            Report::Answer(ticket, answer) => {
                self.gateway.handle_dns_answer(now, ticket, Some(&answer));
            }
            Report::Lookup(key, found) => {
                let lookup = match found {
                    Ok(Some(record)) => Lookup::Known(self.clock.grant(now, record)),
                    Ok(None) => Lookup::Unknown,
                    Err(error) => {
                        tracing::warn!(%key, %error, "a peer cannot be looked up");
                        Lookup::Unavailable
                    }
                };
                self.gateway.handle_lookup(now, key, lookup);
            }
        }
    }

    fn handle_command(&mut self, command: Command) {
        let now = self.clock.now();
        match command {
            Command::Revoke(key) => self.gateway.revoke(now, key),
            Command::Changed(key) => self.gateway.changed(now, key),
            Command::Snapshot(reply) => {
                let mut peers = self.gateway.peers(now);
                peers.sort_by_key(|peer| peer.range);
                let counters = self.gateway.counters().clone();
                let _ = reply.send(Snapshot { peers, counters });
            }
        }
    }
}

/// Asks the directory on a thread of its own: one that blocks, or panics, holds up nobody else.
async fn look_up<P: Peers>(
    peers: Arc<P>,
    lookups: Arc<Semaphore>,
    key: PublicKey,
) -> Result<Option<PeerRecord>, PeersUnavailable> {
    let gone = |error: &dyn std::fmt::Display| PeersUnavailable(error.to_string());
    let turn = lookups.acquire_owned().await.map_err(|e| gone(&e))?;
    let runtime = tokio::runtime::Handle::current();
    let asked = tokio::task::spawn_blocking(move || {
        // The thread is taken for as long as the directory keeps it.
        let _turn = turn;
        let found = runtime.block_on(timeout(LOOKUP_TIMEOUT, peers.peer(key)));
        found.unwrap_or_else(|late| Err(PeersUnavailable(late.to_string())))
    });
    asked.await.unwrap_or_else(|error| Err(gone(&error)))
}

/// The only place of this crate that reads clocks.
struct Clock {
    start: tokio::time::Instant,
}

impl Clock {
    fn new() -> Clock {
        Clock {
            start: tokio::time::Instant::now(),
        }
    }

    fn now(&self) -> Instant {
        let micros = self.start.elapsed().as_micros();
        Instant::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    fn to_tokio(&self, at: Instant) -> tokio::time::Instant {
        self.start + Duration::from_micros(at.as_micros())
    }

    fn far(&self) -> tokio::time::Instant {
        tokio::time::Instant::now() + Duration::from_secs(3600)
    }

    /// A record with the end of its lease on the gateway's clock.
    fn grant(&self, now: Instant, record: PeerRecord) -> Grant {
        #[expect(clippy::disallowed_methods, reason = "leases end by the wall clock")]
        let wall = SystemTime::now();
        let expires = record
            .expires
            .map(|at| now + at.duration_since(wall).unwrap_or_default());
        let PeerRecord {
            name,
            key,
            range,
            preshared,
            ..
        } = record;
        Grant {
            name,
            key,
            range,
            preshared,
            expires,
        }
    }
}

fn log(event: &GatewayEvent) {
    match event {
        GatewayEvent::Session {
            key,
            name,
            endpoint,
        } => {
            tracing::debug!(%key, name, ?endpoint, "a session with a peer stands");
        }
        GatewayEvent::Silent { key, name } => tracing::info!(%key, name, "a peer does not answer"),
        GatewayEvent::Removed { key, name, why } => {
            tracing::info!(%key, name, ?why, "a peer is forgotten");
        }
    }
}

/// Best effort: the system may allow less.
fn enlarge_buffers(socket: &UdpSocket) {
    let socket = socket2::SockRef::from(socket);
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
}

/// Errors that tell of one destination, not of the socket.
fn is_of_the_path(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests;
