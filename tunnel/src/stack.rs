//! User-mode TCP/IP: IPv6 packets in, IPv6 packets and socket events out. No WireGuard here.
//!
//! [`Stack`] performs no I/O, reads no clock and holds no source of randomness. Module `stack` is
//! the only one that names smoltcp, and uses of it the TCP engine alone: one engine socket per
//! stream, found by its four-tuple, so that a packet costs the same with one stream as with a
//! thousand. Demultiplexing, listening, loss recovery, UDP, ICMPv6, time limits and events are
//! done here.
//!
//! # Driving it
//! After any call that takes `now`, take packets from [`Stack::poll_transmit`] until it says
//! `None` or the link is full, then events from [`Stack::poll_event`]; sleep until
//! [`Stack::poll_timeout`], a packet, or a verb. Data stays in the sockets until a packet is asked
//! for: a link that takes nothing makes writers block, and nothing piles up.
//!
//! # Events are edges, and none is lost
//! A stream is *armed* for reading when it is made and whenever a read says
//! [`StreamError::WouldBlock`]; for writing whenever a write says so or takes less than it was
//! given. An armed stream tells `Readable` (data, the end, or an error can be read) or `Writable`
//! once, and is then disarmed. So: read until `WouldBlock`, then wait for the event. At most one
//! event of each kind waits per socket, whether or not anybody polls.

mod device;
mod drops;
mod error;
mod flow;
mod icmp;
mod lull;
mod packet;
mod recovery;
mod segments;
mod streams;
#[cfg(test)]
mod tests;
mod udp;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    net::{Ipv6Addr, SocketAddrV6},
    time::Duration,
};

use smoltcp::{
    iface::{Interface, SocketSet},
    wire::HardwareAddress,
};

use crate::{Instant, rng::Rng};
use device::{Link, Outbox};
pub use drops::{Drop, Drops};
pub use error::{CloseReason, PingError, StackError, StreamError, Unreachable};
use flow::{Flow, FlowKey};
use icmp::{Pings, Tokens};
pub(crate) use packet::wants_answer;
use packet::{ICMPV6, Ipv6, TCP, UDP};
pub use udp::Datagram;
use udp::UdpSockets;

/// What a stack is made of.
#[derive(Debug, Clone)]
pub struct StackConfig {
    /// Our own addresses; the first is the source where no other is nearer.
    pub addresses: Vec<Ipv6Addr>,
    /// The largest packet, 1,280 to 65,535 bytes.
    pub mtu: usize,
    /// Random bits: ports, identifiers and sequence numbers follow from them.
    pub seed: u64,
    /// Answer for every unicast address, not for our own alone.
    pub any_ip: bool,
    /// Bounds.
    pub limits: Limits,
}

/// Bounds of a stack, and how long it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of buffers of all streams together. Half of it at most goes to streams that are
    /// half open.
    pub memory: usize,
    /// Streams, those that say goodbye included.
    pub streams: usize,
    /// UDP sockets.
    pub udp_sockets: usize,
    /// Bytes that wait in one UDP socket for their reader.
    pub udp_queue: usize,
    /// Answers that wait for the link, in packets.
    pub packets: usize,
    /// How long a connection request waits for an answer.
    pub connect_timeout: Duration,
    /// How long an accepted SYN waits for the rest of its handshake.
    pub half_open_timeout: Duration,
    /// How long a stream bears silence while something is due from the other side.
    pub stream_timeout: Duration,
    /// How long a ping waits.
    pub ping_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            memory: 384 << 20,
            streams: 1024,
            udp_sockets: 256,
            udp_queue: 256 << 10,
            packets: 256,
            connect_timeout: Duration::from_secs(20),
            half_open_timeout: Duration::from_secs(10),
            stream_timeout: Duration::from_secs(15 * 60),
            ping_timeout: Duration::from_secs(5),
        }
    }
}

/// The windows of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// 64 KiB each way: a terminal, a query.
    Interactive,
    /// 1 MiB each way: a transfer.
    Bulk,
}

impl Class {
    /// Bytes of one buffer; a stream counts for three.
    pub const fn window(self) -> usize {
        match self {
            Class::Interactive => 64 << 10,
            Class::Bulk => 1 << 20,
        }
    }
}

/// A TCP stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u64);

/// A listening TCP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(u64);

/// A UDP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UdpId(u64);

/// A ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PingId(u64);

/// What happened to a socket. See the module for when `Readable` and `Writable` are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StackEvent {
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
    /// The stream is closed in both directions; what it has received can still be read, until
    /// its handle is closed.
    Closed(StreamId, CloseReason),
    /// A UDP socket has datagrams.
    UdpReadable(UdpId),
    /// A ping came back.
    Pong {
        /// The ping.
        id: PingId,
        /// Who answered.
        from: Ipv6Addr,
        /// From `ping` to here, by the `now` that both were given.
        rtt: Duration,
    },
    /// A ping did not come back.
    PingFailed {
        /// The ping.
        id: PingId,
        /// Why.
        reason: PingError,
    },
}

/// Figures of a stack.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StackStats {
    /// Streams, those that say goodbye included.
    pub streams: usize,
    /// Streams that wait for the rest of their handshake.
    pub half_open: usize,
    /// Bytes of buffers of all streams.
    pub memory: usize,
    /// Bytes received and not read, or written and not acknowledged.
    pub buffered: usize,
    /// Packets that wait for the link.
    pub queued_packets: usize,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received, headers included.
    pub rx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent, headers included.
    pub tx_bytes: u64,
    /// Packets dropped, by reason.
    pub drops: Drops,
}

/// TCP, UDP and ICMPv6 over IPv6 as one state machine. See the module.
pub struct Stack {
    addresses: Vec<Ipv6Addr>,
    any_ip: bool,
    limits: Limits,
    mtu: usize,
    /// The engine for packets of the MTU, and the engine for paths that say it is too big.
    engines: [Interface; 2],
    /// Feeds the engine what is for nobody: it answers with a reset.
    nobody: SocketSet<'static>,
    outbox: Outbox,
    scratch: Vec<u8>,
    flows: BTreeMap<StreamId, Flow>,
    by_key: BTreeMap<FlowKey, StreamId>,
    listeners: BTreeMap<u16, Listener>,
    /// Streams that may have a packet to send, in turn.
    ready: VecDeque<StreamId>,
    timers: BTreeSet<(Instant, StreamId)>,
    time_waits: TimeWaits,
    /// Destinations behind a path whose MTU is less than ours, oldest first.
    narrow: VecDeque<Ipv6Addr>,
    fed: lull::Fed,
    udp: UdpSockets,
    pings: Pings,
    errors: Tokens,
    notices: VecDeque<Notice>,
    memory: usize,
    half_open_memory: usize,
    next_id: u64,
    now: Instant,
    rng: Rng,
    rx_packets: u64,
    rx_bytes: u64,
    drops: Drops,
}

/// A port that takes connections.
struct Listener {
    id: ListenerId,
    class: Class,
    backlog: usize,
    half_open: usize,
}

/// Whose event is next.
enum Notice {
    Stream(StreamId),
    Udp(UdpId),
    Ping(StackEvent),
}

impl Stack {
    /// A stack without sockets.
    pub fn new(config: StackConfig, now: Instant) -> Stack {
        let mut rng = Rng::new(config.seed);
        let mtu = config.mtu.clamp(packet::MIN_MTU, usize::from(u16::MAX));
        let mut outbox = Outbox::new(config.limits.packets);
        let mut engine = |mtu| {
            let mut link = Link {
                packet: None,
                outbox: &mut outbox,
                mtu,
            };
            let mut settings = smoltcp::iface::Config::new(HardwareAddress::Ip);
            settings.random_seed = rng.next_u64();
            let mut engine = Interface::new(settings, &mut link, flow::engine_time(now));
            // What is for us is decided here, not there: the engine knows no more than two.
            engine.set_any_ip(true);
            engine
        };
        let engines = [engine(mtu), engine(packet::MIN_MTU)];
        Stack {
            addresses: config.addresses,
            any_ip: config.any_ip,
            limits: config.limits,
            mtu,
            engines,
            nobody: SocketSet::new(Vec::new()),
            outbox,
            scratch: Vec::new(),
            flows: BTreeMap::new(),
            by_key: BTreeMap::new(),
            listeners: BTreeMap::new(),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            time_waits: TimeWaits::default(),
            narrow: VecDeque::new(),
            fed: None,
            udp: UdpSockets::default(),
            pings: Pings::new(rng.next_u16()),
            errors: Tokens::new(now),
            notices: VecDeque::new(),
            memory: 0,
            half_open_memory: 0,
            next_id: 0,
            now,
            rng,
            rx_packets: 0,
            rx_bytes: 0,
            drops: Drops::default(),
        }
    }

    /// Our own addresses.
    pub fn addresses(&self) -> &[Ipv6Addr] {
        &self.addresses
    }

    /// Takes an IP packet. Nothing in it can be wrong enough to be an error: it is dropped and
    /// counted, or answered as a kernel would.
    pub fn handle_packet(&mut self, now: Instant, bytes: &[u8]) {
        let now = self.advance(now);
        self.rx_packets += 1;
        self.rx_bytes += bytes.len() as u64;
        let Some(packet) = Ipv6::parse(bytes) else {
            return self.drops.count(Drop::Malformed);
        };
        if !is_unicast(packet.source) {
            return self.drops.count(Drop::BadSource);
        }
        let ours = self.addresses.contains(&packet.destination)
            || (self.any_ip && is_unicast(packet.destination));
        if !ours {
            return self.drops.count(Drop::NotOurs);
        }
        match packet.next {
            TCP => self.handle_tcp(now, &packet),
            UDP => self.handle_udp(now, &packet),
            ICMPV6 => self.handle_icmp(now, &packet),
            _ => {
                self.drops.count(Drop::UnknownHeader);
                // Parameter problem: unrecognized next header, at its place in the header.
                self.send_icmp_error(now, &packet, (4, 1, 6));
            }
        }
    }

    /// Does what has become due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let now = self.advance(now);
        while let Some(&(at, id)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.timer = None;
            }
            self.expire(now, id);
        }
        while let Some(event) = self.pings.expire(now, self.limits.ping_timeout) {
            self.notices.push_back(Notice::Ping(event));
        }
    }

    /// When [`Stack::handle_timeout`] wants to be called; `None` while nothing can become due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let stream = self.timers.first().map(|(at, _)| *at);
        let ping = self.pings.poll_timeout(self.limits.ping_timeout);
        stream.into_iter().chain(ping).min()
    }

    /// The next packet for the wire. It is made here, of the newest state, not before.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Vec<u8>> {
        let now = self.advance(now);
        loop {
            if let Some(packet) = self.outbox.pop() {
                return Some(packet);
            }
            let id = self.ready.pop_front()?;
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.ready = false;
                self.send_one(now, id);
            }
        }
    }

    /// Gives a buffer from [`Stack::poll_transmit`] back for the next packet.
    pub fn recycle(&mut self, packet: Vec<u8>) {
        self.outbox.recycle(packet);
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<StackEvent> {
        while let Some(notice) = self.notices.front() {
            match *notice {
                Notice::Ping(event) => {
                    self.notices.pop_front();
                    self.pings.told();
                    return Some(event);
                }
                Notice::Udp(id) => {
                    self.notices.pop_front();
                    if self.udp.told(id) {
                        return Some(StackEvent::UdpReadable(id));
                    }
                }
                Notice::Stream(id) => {
                    match self.flows.get_mut(&id).and_then(|f| f.next_event(id)) {
                        Some(event) => return Some(event),
                        None => {
                            self.notices.pop_front();
                        }
                    }
                }
            }
        }
        None
    }

    /// Figures so far.
    pub fn stats(&self) -> StackStats {
        let mut drops = self.drops;
        drops.add(Drop::OutboxFull, self.outbox.overflow);
        StackStats {
            streams: self.flows.len(),
            half_open: self.listeners.values().map(|l| l.half_open).sum(),
            memory: self.memory,
            buffered: self.flows.values().map(Flow::buffered).sum(),
            queued_packets: self.outbox.len(),
            rx_packets: self.rx_packets,
            rx_bytes: self.rx_bytes,
            tx_packets: self.outbox.packets,
            tx_bytes: self.outbox.bytes,
            drops,
        }
    }

    /// Time never goes back. A driver that comes much later than it was asked to has slept: what
    /// the other side left unanswered meanwhile is not held against it.
    fn advance(&mut self, now: Instant) -> Instant {
        if now <= self.now {
            return self.now;
        }
        if now.since(self.now) > SLEPT {
            let due = self.timers.first().map_or(now, |(at, _)| *at);
            let late = now.since(due.max(self.now));
            if late > SLEPT {
                for flow in self.flows.values_mut() {
                    flow.excuse(late);
                }
            }
        }
        self.now = now;
        now
    }

    /// The nearest of our addresses: the longest common prefix (RFC 6724, rule 8).
    fn source_for(&self, remote: Ipv6Addr) -> Option<Ipv6Addr> {
        let common = |a: &Ipv6Addr| (a.to_bits() ^ remote.to_bits()).leading_zeros();
        // `max_by_key` takes the last of equals; the first is wanted.
        self.addresses.iter().rev().copied().max_by_key(common)
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stack")
            .field("addresses", &self.addresses)
            .field("streams", &self.flows.len())
            .finish_non_exhaustive()
    }
}

/// Streams that ended with our acknowledgement of the other side's goodbye, in case it is lost.
/// A few bytes each: the engine would keep the stream's buffers.
#[derive(Default)]
struct TimeWaits {
    until: BTreeMap<FlowKey, Instant>,
    order: VecDeque<(FlowKey, Instant)>,
}

impl TimeWaits {
    fn insert(&mut self, now: Instant, key: FlowKey) {
        while let Some((oldest, until)) = self.order.front().copied() {
            if until > now && self.order.len() < MAX_TIME_WAITS {
                break;
            }
            self.order.pop_front();
            if self.until.get(&oldest) == Some(&until) {
                self.until.remove(&oldest);
            }
        }
        let until = now + TIME_WAIT;
        self.until.insert(key, until);
        self.order.push_back((key, until));
    }

    fn contains(&self, now: Instant, key: &FlowKey) -> bool {
        self.until.get(key).is_some_and(|until| *until > now)
    }

    fn remove(&mut self, key: &FlowKey) {
        self.until.remove(key);
    }
}

fn is_unicast(address: Ipv6Addr) -> bool {
    !(address.is_multicast() || address.is_unspecified() || address.is_loopback())
}

/// A driver that is this much later than due was suspended.
const SLEPT: Duration = Duration::from_secs(5);
const TIME_WAIT: Duration = Duration::from_secs(60);
const MAX_TIME_WAITS: usize = 1024;
