//! [`Tunnel`]: a WireGuard peer, a TCP/IP stack and a stub resolver behind one set of verbs.

use std::{
    fmt,
    net::{Ipv6Addr, SocketAddrV6},
    time::Duration,
};

use wire::PublicKey;

use crate::{
    Instant, PrivateKey,
    peer::{HandshakeFailure, Peer, PeerConfig, PeerEvent, PeerStats},
    resolve::{Answer, QueryId, RecordKind, ResolveError, Resolver},
    rng::Rng,
    stack::{
        Class, CloseReason, Limits, ListenerId, PingError, PingId, Stack, StackConfig, StackError,
        StackEvent, StackStats, StreamError, StreamId, UdpId, wants_answer,
    },
};

/// What a tunnel is made of.
#[derive(Debug, Clone)]
pub struct Config {
    /// Our private key.
    pub private_key: PrivateKey,
    /// The gateway's public key.
    pub peer: PublicKey,
    /// The preshared key, when there is one.
    pub preshared: Option<[u8; 32]>,
    /// Our addresses inside the tunnel.
    pub addresses: Vec<Ipv6Addr>,
    /// The name server inside the tunnel.
    pub dns: Option<Ipv6Addr>,
    /// The largest packet inside the tunnel: 1,420 fits every usual path.
    pub mtu: usize,
    /// Seconds between persistent keepalives.
    pub keepalive: Option<u16>,
    /// Random bits: ports, identifiers and sequence numbers follow from them.
    pub seed: u64,
}

/// What happened in a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The first initiation of an attempt is on its way.
    HandshakeStarted,
    /// A session stands: the first, or the next (sessions are renewed every two minutes).
    SessionEstablished {
        /// From our initiation to its response; `None` where the gateway began.
        rtt: Option<Duration>,
    },
    /// An attempt goes unanswered; it goes on.
    HandshakeFailed {
        /// Why.
        reason: HandshakeFailure,
    },
    /// The last session is too old to be used and no other came about.
    SessionExpired,
    /// Data is unanswered for three seconds: another path, or a fresh handshake, is worth a try.
    /// Told once; the next answer rearms it.
    PathSilent {
        /// When the first unanswered packet was sent.
        since: Instant,
    },
    /// Our connection stands.
    Connected(StreamId),
    /// Somebody connected to a listener.
    Accepted {
        /// The listener.
        listener: ListenerId,
        /// The new stream.
        stream: StreamId,
        /// Who connected.
        remote: SocketAddrV6,
        /// To which address and port.
        local: SocketAddrV6,
    },
    /// There is something to read, or the stream's end.
    Readable(StreamId),
    /// There is room to write.
    Writable(StreamId),
    /// The stream is closed in both directions; what it has received can still be read.
    Closed(StreamId, CloseReason),
    /// A UDP socket has datagrams.
    UdpReadable(UdpId),
    /// A ping came back.
    Pong {
        /// The ping.
        id: PingId,
        /// Who answered.
        from: Ipv6Addr,
        /// From `ping` to here.
        rtt: Duration,
    },
    /// A ping did not come back.
    PingFailed {
        /// The ping.
        id: PingId,
        /// Why.
        reason: PingError,
    },
    /// A query is done.
    Resolved {
        /// The query.
        id: QueryId,
        /// What the name has.
        result: Result<Answer, ResolveError>,
    },
}

/// Figures of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// WireGuard.
    pub peer: PeerStats,
    /// TCP/IP.
    pub stack: StackStats,
    /// Messages to the resolver that answer none of its questions.
    pub strange_answers: u64,
}

/// User-mode WireGuard and TCP/IP: datagrams in, datagrams and events out.
///
/// It performs no I/O. After any call that takes `now`, take datagrams from
/// [`Tunnel::poll_transmit`] until it says `None` or the link is full, then events from
/// [`Tunnel::poll_event`]; sleep until [`Tunnel::poll_timeout`], a datagram, or a verb. A link that
/// takes nothing makes writers block. The rule for `Readable` and `Writable` is that of
/// [`stack`](crate::stack).
pub struct Tunnel {
    peer: Peer,
    stack: Stack,
    resolver: Resolver,
    /// What nothing has answered yet, and whether that was told.
    unanswered: Option<Unanswered>,
    silence_told: bool,
    silence: Option<Instant>,
}

/// Something left that wants an answer.
#[derive(Clone, Copy)]
struct Unanswered {
    /// When the other side fell silent: then, or when data came last.
    since: Instant,
    /// When it left.
    asked: Instant,
    /// When to ask again: a question is a single packet, which may be lost on a path that stands.
    again: Option<Instant>,
}

impl Tunnel {
    /// A tunnel without a session. A handshake begins with the first packet, or with
    /// [`Tunnel::initiate`].
    pub fn new(config: Config, now: Instant) -> Tunnel {
        Tunnel::with_limits(config, Limits::default(), now)
    }

    /// The same with other bounds.
    pub fn with_limits(config: Config, limits: Limits, now: Instant) -> Tunnel {
        let mut rng = Rng::new(config.seed);
        let peer = PeerConfig {
            preshared: config.preshared,
            keepalive: config.keepalive,
            ..PeerConfig::client(config.private_key, config.peer)
        };
        let stack = StackConfig {
            addresses: config.addresses,
            mtu: config.mtu,
            seed: rng.next_u64(),
            any_ip: false,
            limits,
        };
        Tunnel {
            peer: Peer::new(peer, now),
            stack: Stack::new(stack, now),
            resolver: Resolver::new(config.dns, rng.next_u64()),
            unanswered: None,
            silence_told: false,
            silence: None,
        }
    }

    /// Takes a datagram from the wire. What is no WireGuard of our peer's is counted and dropped.
    pub fn handle_datagram(&mut self, now: Instant, datagram: &[u8]) {
        let received = self.peer.handle_datagram(now, None, datagram);
        let mut back = false;
        if received.is_ok_and(|received| received.authenticated) {
            let silent = self.unanswered.take();
            back = silent.is_some_and(|silent| now.since(silent.asked) >= LULL);
            self.silence_told = false;
        }
        while let Some(packet) = self.peer.poll_packet() {
            self.stack.handle_packet(now, &packet);
            self.stack.recycle(packet);
        }
        if back {
            self.stack.path_changed(now);
        }
        self.resolver.poll(now, &mut self.stack);
    }

    /// Does what has become due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.peer.handle_timeout(now);
        self.stack.handle_timeout(now);
        self.resolver.poll(now, &mut self.stack);
        self.ask_in_lull(now);
        if let Some(Unanswered { since, .. }) = self.unanswered
            && !self.silence_told
            && now.since(since) >= SILENCE
        {
            self.silence_told = true;
            self.silence = Some(since);
        }
    }

    /// Data came and comes no more: finds out whether the path is there.
    fn ask_in_lull(&mut self, now: Instant) {
        let asked = self.stack.ask_in_lull(now);
        match (&mut self.unanswered, asked) {
            (None, Some(since)) => {
                self.unanswered = Some(Unanswered {
                    since,
                    asked: now,
                    again: Some(now + LULL),
                });
            }
            (Some(unanswered), _) if unanswered.again.is_some_and(|at| at <= now) => {
                unanswered.again = None;
                self.stack.ask_again(now);
            }
            _ => {}
        }
    }

    /// When [`Tunnel::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let silence = self
            .unanswered
            .filter(|_| !self.silence_told)
            .map(|unanswered| unanswered.since + SILENCE);
        let again = self.unanswered.and_then(|unanswered| unanswered.again);
        let of_all = [
            self.peer.poll_timeout(),
            self.stack.poll_timeout(),
            self.resolver.poll_timeout(),
            self.stack.lull_at(),
            silence,
            again,
        ];
        of_all.into_iter().flatten().min()
    }

    /// The next datagram for the wire.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Vec<u8>> {
        loop {
            if let Some(datagram) = self.peer.poll_transmit() {
                return Some(datagram);
            }
            let packet = self.stack.poll_transmit(now)?;
            if self.unanswered.is_none() && wants_answer(&packet) {
                self.unanswered = Some(Unanswered {
                    since: now,
                    asked: now,
                    again: None,
                });
            }
            self.peer.send_packet(now, &packet);
            self.stack.recycle(packet);
        }
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some(event) = self.peer.poll_event() {
            return Some(match event {
                PeerEvent::HandshakeStarted => Event::HandshakeStarted,
                PeerEvent::SessionEstablished { rtt } => Event::SessionEstablished { rtt },
                PeerEvent::HandshakeFailed { reason } => Event::HandshakeFailed { reason },
                PeerEvent::Expired => Event::SessionExpired,
            });
        }
        if let Some(since) = self.silence.take() {
            return Some(Event::PathSilent { since });
        }
        if let Some((id, result)) = self.resolver.poll_result() {
            return Some(Event::Resolved { id, result });
        }
        loop {
            let event = self.stack.poll_event()?;
            if !self.resolver.owns(&event) {
                return Some(event.into());
            }
        }
    }

    /// Begins a fresh handshake: for a new path, or after sleep.
    pub fn initiate(&mut self, now: Instant) {
        self.peer.initiate(now);
    }

    /// What is sent takes another path from now on, which is known to work: what the old one may
    /// have lost is sent again at once, by both sides.
    pub fn path_changed(&mut self, now: Instant) {
        self.stack.path_changed(now);
    }

    /// See [`Stack::connect`].
    pub fn connect(
        &mut self,
        now: Instant,
        remote: SocketAddrV6,
        class: Class,
    ) -> Result<StreamId, StackError> {
        self.stack.connect(now, remote, class)
    }

    /// Takes connections on `port`, with the windows of a transfer. See [`Stack::listen`].
    pub fn listen(&mut self, port: u16, backlog: usize) -> Result<ListenerId, StackError> {
        self.stack.listen(port, backlog, Class::Bulk)
    }

    /// See [`Stack::listen`].
    pub fn listen_class(
        &mut self,
        port: u16,
        backlog: usize,
        class: Class,
    ) -> Result<ListenerId, StackError> {
        self.stack.listen(port, backlog, class)
    }

    /// See [`Stack::listener_port`].
    pub fn listener_port(&self, id: ListenerId) -> Option<u16> {
        self.stack.listener_port(id)
    }

    /// See [`Stack::unlisten`].
    pub fn unlisten(&mut self, id: ListenerId) {
        self.stack.unlisten(id);
    }

    /// See [`Stack::read`].
    pub fn read(
        &mut self,
        now: Instant,
        id: StreamId,
        buffer: &mut [u8],
    ) -> Result<usize, StreamError> {
        self.stack.read(now, id, buffer)
    }

    /// See [`Stack::write`].
    pub fn write(&mut self, now: Instant, id: StreamId, data: &[u8]) -> Result<usize, StreamError> {
        self.stack.write(now, id, data)
    }

    /// See [`Stack::shutdown`].
    pub fn shutdown(&mut self, now: Instant, id: StreamId) {
        self.stack.shutdown(now, id);
    }

    /// See [`Stack::abort`].
    pub fn abort(&mut self, now: Instant, id: StreamId) {
        self.stack.abort(now, id);
    }

    /// See [`Stack::close`].
    pub fn close(&mut self, now: Instant, id: StreamId) {
        self.stack.close(now, id);
    }

    /// See [`Stack::set_keep_alive`].
    pub fn set_keep_alive(
        &mut self,
        now: Instant,
        id: StreamId,
        interval: Option<Duration>,
    ) -> Result<(), StreamError> {
        self.stack.set_keep_alive(now, id, interval)
    }

    /// See [`Stack::set_timeout`].
    pub fn set_timeout(
        &mut self,
        now: Instant,
        id: StreamId,
        timeout: Option<Duration>,
    ) -> Result<(), StreamError> {
        self.stack.set_timeout(now, id, timeout)
    }

    /// See [`Stack::peer_addr`].
    pub fn peer_addr(&self, id: StreamId) -> Option<SocketAddrV6> {
        self.stack.peer_addr(id)
    }

    /// See [`Stack::local_addr`].
    pub fn local_addr(&self, id: StreamId) -> Option<SocketAddrV6> {
        self.stack.local_addr(id)
    }

    /// See [`Stack::unsent`].
    pub fn unsent(&self, id: StreamId) -> usize {
        self.stack.unsent(id)
    }

    /// See [`Stack::udp_bind`].
    pub fn udp_bind(&mut self, port: u16) -> Result<UdpId, StackError> {
        self.stack.udp_bind(port)
    }

    /// See [`Stack::udp_port`].
    pub fn udp_port(&self, id: UdpId) -> Option<u16> {
        self.stack.udp_port(id)
    }

    /// See [`Stack::udp_send`].
    pub fn udp_send(
        &mut self,
        now: Instant,
        id: UdpId,
        remote: SocketAddrV6,
        payload: &[u8],
    ) -> Result<(), StackError> {
        self.stack.udp_send(now, id, remote, payload)
    }

    /// See [`Stack::udp_recv`].
    pub fn udp_recv(&mut self, id: UdpId) -> Option<(SocketAddrV6, Vec<u8>)> {
        self.stack
            .udp_recv(id)
            .map(|datagram| (datagram.remote, datagram.payload))
    }

    /// See [`Stack::udp_close`].
    pub fn udp_close(&mut self, id: UdpId) {
        self.stack.udp_close(id);
    }

    /// See [`Stack::ping`].
    pub fn ping(&mut self, now: Instant, to: Ipv6Addr, payload: usize) -> PingId {
        self.stack.ping(now, to, payload)
    }

    /// Asks the name server for the records of `kind` at `name`; an IPv6 address in text is its
    /// own answer. [`Event::Resolved`] follows, within 11 seconds.
    pub fn resolve(&mut self, now: Instant, name: &str, kind: RecordKind) -> QueryId {
        self.resolver.resolve(now, &mut self.stack, name, kind)
    }

    /// Our addresses inside the tunnel.
    pub fn addresses(&self) -> &[Ipv6Addr] {
        self.stack.addresses()
    }

    /// Figures so far.
    pub fn stats(&self) -> Stats {
        Stats {
            peer: self.peer.stats(),
            stack: self.stack.stats(),
            strange_answers: self.resolver.strange,
        }
    }
}

impl From<StackEvent> for Event {
    fn from(event: StackEvent) -> Event {
        match event {
            StackEvent::Connected(id) => Event::Connected(id),
            StackEvent::Accepted {
                listener,
                stream,
                remote,
                local,
            } => Event::Accepted {
                listener,
                stream,
                remote,
                local,
            },
            StackEvent::Readable(id) => Event::Readable(id),
            StackEvent::Writable(id) => Event::Writable(id),
            StackEvent::Closed(id, reason) => Event::Closed(id, reason),
            StackEvent::UdpReadable(id) => Event::UdpReadable(id),
            StackEvent::Pong { id, from, rtt } => Event::Pong { id, from, rtt },
            StackEvent::PingFailed { id, reason } => Event::PingFailed { id, reason },
        }
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel")
            .field("peer", &self.peer)
            .field("stack", &self.stack)
            .finish_non_exhaustive()
    }
}

/// A path that was silent for this long and is not any more is used at once: retransmissions may
/// have backed off to a minute.
const LULL: Duration = Duration::from_secs(1);
/// Data unanswered for this long makes a path suspect.
const SILENCE: Duration = Duration::from_secs(3);
