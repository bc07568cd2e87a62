//! The gateway's own addresses in each network: DNS over UDP and TCP, and echo requests.
//!
//! What a query means is decided elsewhere: queries leave by [`Resolver::poll_query`], answers
//! come back by ticket. One user-mode stack per network, made when it is first spoken to and
//! forgotten when it was silent for a minute: two networks share no socket.

use std::{
    collections::{HashMap, VecDeque},
    net::{Ipv6Addr, SocketAddrV6},
    sync::Arc,
    time::Duration,
};

use names::Over;
use sixpn::{INSTANCE_DNS, NetworkId};
use tunnel::{
    Instant,
    stack::{
        Class, Limits as StackLimits, Stack, StackConfig, StackEvent, StreamError, StreamId, UdpId,
    },
};

use crate::{Counters, DropReason, counters::count, timers::Timers};

const PORT: u16 = 53;
/// Networks that speak to the gateway within one minute.
const NETWORKS: usize = 4096;
const NETWORK_IDLE: Duration = Duration::from_secs(60);
/// Queries that wait for an answer, in all and of one network.
const WAITING: usize = 2048;
const WAITING_OF_NETWORK: usize = 256;
/// Longer than the way out takes to give up.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Connections of one network, and of one address of it.
const CONNECTIONS: usize = 48;
const CONNECTIONS_OF_SOURCE: usize = 8;
/// A connection without a query, or whose answers nobody reads, is closed after this time.
const CONNECTION_IDLE: Duration = Duration::from_secs(10);
/// Queries of one connection that wait for an answer; the next is read after one of them.
const PIPELINE: usize = 16;
/// Answers of one connection that wait for its reader; no query is read meanwhile.
const ANSWERS: usize = 64 * 1024;
/// Nobody asks for more; the protocol would allow 65,535 bytes.
const MAX_QUERY: usize = 4096;

const DNS_HEADER: usize = 12;
/// Connections of one network whose handshake is under way.
const BACKLOG: usize = 16;
/// No timer of this module fires more often.
const TICK: Duration = Duration::from_millis(100);

const LIMITS: StackLimits = StackLimits {
    memory: 16 << 20,
    streams: 96,
    udp_sockets: 1,
    udp_queue: 128 << 10,
    packets: 512,
    connect_timeout: Duration::from_secs(10),
    half_open_timeout: Duration::from_secs(5),
    stream_timeout: Duration::from_secs(10),
    ping_timeout: Duration::from_secs(5),
};

/// A query on its way to `names`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsQuery {
    /// Names the query when its answer comes.
    pub ticket: DnsTicket,
    /// The asker's address, which lies in the range of the peer that sent it.
    pub source: Ipv6Addr,
    /// What it came over.
    pub over: Over,
    /// The message.
    pub query: Vec<u8>,
}

/// Names a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DnsTicket(u64);

pub(crate) struct Resolver {
    mtu: usize,
    seed: u64,
    counters: Arc<Counters>,
    networks: HashMap<NetworkId, Network>,
    timers: Timers<NetworkId>,
    queries: VecDeque<DnsQuery>,
    waiting: HashMap<DnsTicket, Asker>,
    /// Tickets in the order in which they lapse, those that wait and a bounded number of others.
    deadlines: VecDeque<(Instant, DnsTicket)>,
    packets: VecDeque<(NetworkId, Vec<u8>)>,
    next: u64,
}

struct Asker {
    network: NetworkId,
    way: Way,
}

#[derive(Clone, Copy)]
enum Way {
    Udp {
        local: Ipv6Addr,
        remote: SocketAddrV6,
    },
    Tcp(StreamId),
}

struct Network {
    stack: Stack,
    udp: Option<UdpId>,
    connections: HashMap<StreamId, Connection>,
    waiting: usize,
    used: Instant,
    counted_drops: u64,
}

struct Connection {
    remote: Ipv6Addr,
    input: Vec<u8>,
    output: Vec<u8>,
    waiting: usize,
    ended: bool,
    since: Instant,
}

impl Resolver {
    pub(crate) fn new(mtu: usize, seed: u64, counters: Arc<Counters>) -> Resolver {
        Resolver {
            mtu,
            seed,
            counters,
            networks: HashMap::new(),
            timers: Timers::new(),
            queries: VecDeque::new(),
            waiting: HashMap::new(),
            deadlines: VecDeque::new(),
            packets: VecDeque::new(),
            next: 0,
        }
    }

    /// Takes a packet to one of the gateway's addresses. Its source belongs to `network`.
    pub(crate) fn handle_packet(&mut self, now: Instant, network: NetworkId, packet: &[u8]) {
        if !self.networks.contains_key(&network) {
            if self.networks.len() >= NETWORKS {
                return self.counters.count_drop(DropReason::LocalFull);
            }
            let seed = self.seed ^ u64::from(network.get()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.networks
                .insert(network, Network::new(now, network, self.mtu, seed));
        }
        if let Some(local) = self.networks.get_mut(&network) {
            local.used = now;
            local.stack.handle_packet(now, packet);
        }
        self.pump(now, network);
    }

    /// The next query.
    pub(crate) fn poll_query(&mut self) -> Option<DnsQuery> {
        self.queries.pop_front()
    }

    /// The next packet for a peer of a network.
    pub(crate) fn poll_packet(&mut self) -> Option<(NetworkId, Vec<u8>)> {
        self.packets.pop_front()
    }

    /// The answer to a query; none when there is nothing to say.
    pub(crate) fn handle_answer(&mut self, now: Instant, ticket: DnsTicket, answer: Option<&[u8]>) {
        let Some(asker) = self.waiting.remove(&ticket) else {
            return;
        };
        self.forget_deadlines();
        let Some(network) = self.networks.get_mut(&asker.network) else {
            return;
        };
        network.waiting -= 1;
        if answer.is_none() {
            self.counters.count_drop(DropReason::DnsUnanswered);
        }
        match asker.way {
            Way::Udp { local, remote } => {
                let stack = &mut network.stack;
                if let Some(answer) = answer
                    && !network.udp.is_some_and(|udp| {
                        let sent = stack.udp_send_from(now, udp, local, remote, answer);
                        sent.is_ok()
                    })
                {
                    self.counters.count_drop(DropReason::DnsUnanswered);
                }
            }
            Way::Tcp(stream) => {
                if let Some(connection) = network.connections.get_mut(&stream) {
                    connection.waiting -= 1;
                    connection.since = now;
                    match answer.map(|answer| (answer, u16::try_from(answer.len()))) {
                        Some((answer, Ok(length))) => {
                            connection.output.extend_from_slice(&length.to_be_bytes());
                            connection.output.extend_from_slice(answer);
                        }
                        Some(_) => self.counters.count_drop(DropReason::DnsAnswerTooLong),
                        None => {}
                    }
                }
                self.serve(now, asker.network, stream);
            }
        }
        self.pump(now, asker.network);
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, ticket)) = self.deadlines.front().copied() {
            if at > now {
                break;
            }
            self.deadlines.pop_front();
            if self.waiting.contains_key(&ticket) {
                self.counters.count_drop(DropReason::DnsTimeout);
                self.handle_answer(now, ticket, None);
            }
        }
        while let Some(network) = self.timers.pop_due(now) {
            let Some(local) = self.networks.get_mut(&network) else {
                continue;
            };
            local.stack.handle_timeout(now);
            let idle: Vec<_> = local
                .connections
                .iter()
                .filter(|(_, c)| now.since(c.since) >= CONNECTION_IDLE && c.waiting == 0)
                .map(|(stream, _)| *stream)
                .collect();
            for stream in idle {
                local.end::<()>(now, stream, &self.counters);
            }
            self.pump(now, network);
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let deadline = self.deadlines.front().map(|(at, _)| *at);
        deadline.into_iter().chain(self.timers.next()).min()
    }

    /// Forgets when tickets lapse that nobody waits for. One that waits long keeps those behind it
    /// until they are most of the queue.
    fn forget_deadlines(&mut self) {
        let waiting = &self.waiting;
        while let Some((_, ticket)) = self.deadlines.front()
            && !waiting.contains_key(ticket)
        {
            self.deadlines.pop_front();
        }
        if self.deadlines.len() > 64 + 2 * waiting.len() {
            self.deadlines
                .retain(|(_, ticket)| waiting.contains_key(ticket));
        }
    }

    #[cfg(test)]
    pub(crate) fn deadlines(&self) -> usize {
        self.deadlines.len()
    }

    #[cfg(test)]
    pub(crate) fn networks(&self) -> usize {
        self.networks.len()
    }

    /// Carries events, queries and packets of one network until nothing moves.
    fn pump(&mut self, now: Instant, network: NetworkId) {
        while let Some(event) = self
            .networks
            .get_mut(&network)
            .and_then(|n| n.stack.poll_event())
        {
            match event {
                StackEvent::Accepted { stream, remote, .. } => {
                    self.accept(now, network, stream, *remote.ip());
                }
                StackEvent::Readable(stream) | StackEvent::Writable(stream) => {
                    self.serve(now, network, stream);
                }
                StackEvent::Closed(stream, _) => self.serve(now, network, stream),
                StackEvent::UdpReadable(udp) => self.receive(now, network, udp),
                StackEvent::Connected(_)
                | StackEvent::Pong { .. }
                | StackEvent::PingFailed { .. } => {}
            }
        }
        let Some(local) = self.networks.get_mut(&network) else {
            return;
        };
        while let Some(packet) = local.stack.poll_transmit(now) {
            self.packets.push_back((network, packet));
        }
        let drops: u64 = local
            .stack
            .stats()
            .drops
            .iter()
            .map(|(_, count)| count)
            .sum();
        self.counters
            .count_drops(DropReason::LocalStack, drops - local.counted_drops);
        local.counted_drops = drops;

        if local.connections.is_empty()
            && local.waiting == 0
            && now.since(local.used) >= NETWORK_IDLE
        {
            self.networks.remove(&network);
            self.timers.remove(network);
            return;
        }
        let idle = local
            .connections
            .values()
            .map(|c| (c.since + CONNECTION_IDLE).max(now + TICK));
        let next = idle.chain(local.stack.poll_timeout());
        let next = next.fold((local.used + NETWORK_IDLE).max(now + TICK), Instant::min);
        self.timers.set(network, next);
    }

    fn accept(&mut self, now: Instant, network: NetworkId, stream: StreamId, remote: Ipv6Addr) {
        let Some(local) = self.networks.get_mut(&network) else {
            return;
        };
        let of_source = local
            .connections
            .values()
            .filter(|c| c.remote == remote)
            .count();
        if local.connections.len() >= CONNECTIONS || of_source >= CONNECTIONS_OF_SOURCE {
            local.stack.abort(now, stream);
            return self.counters.count_drop(DropReason::DnsConnections);
        }
        let connection = Connection {
            remote,
            input: Vec::new(),
            output: Vec::new(),
            waiting: 0,
            ended: false,
            since: now,
        };
        local.connections.insert(stream, connection);
        self.serve(now, network, stream);
    }

    /// Writes what waits, then reads as far as the connection's bounds allow.
    fn serve(&mut self, now: Instant, network: NetworkId, stream: StreamId) {
        loop {
            let Some(local) = self.networks.get_mut(&network) else {
                return;
            };
            let Some(connection) = local.connections.get(&stream) else {
                return;
            };
            let source = connection.remote;
            let Some(queries) = local.step(now, stream, &self.counters) else {
                return;
            };
            for query in queries {
                self.ask(now, network, Way::Tcp(stream), source, Over::Tcp, query);
            }
        }
    }

    fn receive(&mut self, now: Instant, network: NetworkId, udp: UdpId) {
        while let Some(datagram) = self
            .networks
            .get_mut(&network)
            .and_then(|local| local.stack.udp_recv(udp))
        {
            let way = Way::Udp {
                local: datagram.local,
                remote: datagram.remote,
            };
            let source = *datagram.remote.ip();
            self.ask(now, network, way, source, Over::Udp, datagram.payload);
        }
    }

    fn ask(
        &mut self,
        now: Instant,
        network: NetworkId,
        way: Way,
        source: Ipv6Addr,
        over: Over,
        query: Vec<u8>,
    ) {
        let Some(local) = self.networks.get_mut(&network) else {
            return;
        };
        if local.waiting >= WAITING_OF_NETWORK || self.waiting.len() >= WAITING {
            return self.counters.count_drop(DropReason::DnsFull);
        }
        if let Way::Tcp(stream) = way
            && let Some(connection) = local.connections.get_mut(&stream)
        {
            connection.waiting += 1;
        }
        local.waiting += 1;
        let ticket = DnsTicket(self.next);
        self.next += 1;
        self.waiting.insert(ticket, Asker { network, way });
        self.deadlines.push_back((now + ANSWER_WITHIN, ticket));
        self.queries.push_back(DnsQuery {
            ticket,
            source,
            over,
            query,
        });
        count(&self.counters.dns_queries);
    }
}

impl Network {
    fn new(now: Instant, network: NetworkId, mtu: usize, seed: u64) -> Network {
        let config = StackConfig {
            addresses: vec![network.dns(), INSTANCE_DNS],
            mtu,
            seed,
            any_ip: false,
            limits: LIMITS,
        };
        let mut stack = Stack::new(config, now);
        // On a stack without sockets both ports are free.
        let udp = stack.udp_bind(PORT).ok();
        let _ = stack.listen(PORT, BACKLOG, Class::Interactive);
        Network {
            stack,
            udp,
            connections: HashMap::new(),
            waiting: 0,
            used: now,
            counted_drops: 0,
        }
    }

    /// Moves one connection on. `Some` asks to be called again, once these queries are taken.
    fn step(
        &mut self,
        now: Instant,
        stream: StreamId,
        counters: &Counters,
    ) -> Option<Vec<Vec<u8>>> {
        let connection = self.connections.get_mut(&stream)?;
        while !connection.output.is_empty() {
            match self.stack.write(now, stream, &connection.output) {
                Ok(written) => {
                    connection.output.drain(..written);
                    connection.since = now;
                }
                Err(StreamError::WouldBlock) => break,
                Err(_) => return self.end(now, stream, counters),
            }
        }
        if connection.waiting >= PIPELINE || connection.output.len() >= ANSWERS {
            return None;
        }
        let queries = match connection.take_queries() {
            Ok(queries) => queries,
            Err(BadLength) => {
                counters.count_drop(DropReason::DnsConnectionClosed);
                self.connections.remove(&stream);
                self.stack.abort(now, stream);
                return None;
            }
        };
        if !queries.is_empty() {
            return Some(queries);
        }
        if connection.ended {
            if connection.waiting == 0 && connection.output.is_empty() {
                self.connections.remove(&stream);
                self.stack.close(now, stream);
            }
            return None;
        }
        let mut buffer = [0; 2048];
        match self.stack.read(now, stream, &mut buffer) {
            Ok(0) => connection.ended = true,
            Ok(read) => {
                connection.input.extend_from_slice(&buffer[..read]);
                connection.since = now;
            }
            Err(StreamError::WouldBlock) => return None,
            Err(_) => return self.end(now, stream, counters),
        }
        Some(Vec::new())
    }

    /// A connection that is over, whoever ended it.
    fn end<T>(&mut self, now: Instant, stream: StreamId, counters: &Counters) -> Option<T> {
        let connection = self.connections.remove(&stream)?;
        if connection.waiting > 0 || !connection.output.is_empty() || !connection.input.is_empty() {
            counters.count_drop(DropReason::DnsConnectionClosed);
        }
        self.stack.close(now, stream);
        None
    }
}

/// A length that no query has.
struct BadLength;

impl Connection {
    /// The whole queries that have arrived, as many as may wait for an answer.
    fn take_queries(&mut self) -> Result<Vec<Vec<u8>>, BadLength> {
        let mut queries = Vec::new();
        while self.waiting + queries.len() < PIPELINE {
            let Some(length) = self.input.first_chunk() else {
                break;
            };
            let length = usize::from(u16::from_be_bytes(*length));
            if !(DNS_HEADER..=MAX_QUERY).contains(&length) {
                return Err(BadLength);
            }
            let Some(query) = self.input.get(2..2 + length) else {
                break;
            };
            queries.push(query.to_vec());
            self.input.drain(..2 + length);
        }
        Ok(queries)
    }
}
