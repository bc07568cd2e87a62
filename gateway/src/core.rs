//! The gateway as a state machine: datagrams in, datagrams, lookups, queries and events out.

mod parts;
mod route;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use sixpn::NetworkId;
use tunnel::{
    Instant, PrivateKey,
    peer::{Peer, PeerConfig, PeerError, PeerEvent, receiver_index},
};
use wire::PublicKey;

pub use self::parts::{Config, GatewayEvent, Grant, Limits, Lookup, PeerStatus, RemovedWhy};
use crate::{
    Counters, DropReason,
    admission::{Door, Verdict},
    counters::count,
    dns::{DnsQuery, DnsTicket, Resolver},
    icmp::Problem,
    table::{Entry, Table},
};

/// How long before the end of a lease its renewal is looked up, and how often from then on.
const RENEW_BEFORE: Duration = Duration::from_secs(30);
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// The last look before a lease ends.
const RENEW_LAST: Duration = Duration::from_secs(1);
/// How often a grant without an end is looked up: a removal that nobody told of is noticed then.
/// Peers that came together come a little apart.
const REVIEW_EVERY: Duration = Duration::from_secs(300);
const REVIEW_APART: Duration = Duration::from_millis(250);
/// Events that nobody polls for.
const EVENTS: usize = 4096;

/// The endpoint of all peers. It performs no I/O and reads no clock of its own (`tunnel::peer`
/// says what its engine does). After any call that takes `now`, take everything from the polls.
pub struct Gateway {
    key: PrivateKey,
    limits: Limits,
    counters: Arc<Counters>,
    door: Door,
    table: Table,
    resolver: Resolver,
    /// Peers whose queues hold something new.
    touched: VecDeque<u32>,
    transmits: VecDeque<(SocketAddr, Vec<u8>)>,
    transmit_bytes: usize,
    events: VecDeque<GatewayEvent>,
}

impl Gateway {
    /// A gateway without peers.
    pub fn new(config: Config) -> Gateway {
        let counters = Arc::new(Counters::default());
        let Config {
            key,
            relays,
            seed,
            limits,
        } = config;
        Gateway {
            door: Door::new(key.clone(), relays, limits.handshakes_per_second),
            table: Table::new(seed >> 32),
            resolver: Resolver::new(limits.mtu, seed, counters.clone()),
            key,
            limits,
            counters,
            touched: VecDeque::new(),
            transmits: VecDeque::new(),
            transmit_bytes: 0,
            events: VecDeque::new(),
        }
    }

    /// The public key that peers know this gateway by.
    pub fn public_key(&self) -> PublicKey {
        self.key.public()
    }

    /// The counters, to be read at any time.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Takes a datagram from the socket.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        count(&self.counters.datagrams_received);
        self.counters
            .bytes_received
            .fetch_add(datagram.len() as u64, std::sync::atomic::Ordering::Relaxed);
        match datagram.first() {
            Some(1) => self.handle_initiation(now, from, datagram),
            _ => self.handle_message(now, from, datagram),
        }
        self.settle(now);
    }

    /// The next datagram for the socket.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        let (to, datagram) = self.transmits.pop_front()?;
        self.transmit_bytes -= datagram.len();
        Some((to, datagram))
    }

    /// The next key to ask the directory about. Each gets one [`Gateway::handle_lookup`].
    pub fn poll_lookup(&mut self) -> Option<PublicKey> {
        let key = self.door.poll_lookup()?;
        count(&self.counters.lookups);
        Some(key)
    }

    /// What the directory says about a key.
    pub fn handle_lookup(&mut self, now: Instant, key: PublicKey, lookup: Lookup) {
        let Some(waiting) = self.door.landed(now, key) else {
            return self.counters.count_drop(DropReason::LookupStale);
        };
        match self.apply(now, key, lookup) {
            Ok(()) => {
                for (from, initiation) in waiting {
                    self.deliver_initiation(now, from, key, &initiation);
                }
            }
            Err(reason) => self.counters.count_drops(reason, waiting.len() as u64),
        }
        self.settle(now);
    }

    /// The next DNS query. Each gets one [`Gateway::handle_dns_answer`].
    pub fn poll_dns(&mut self) -> Option<DnsQuery> {
        self.resolver.poll_query()
    }

    /// The answer to a DNS query; none when there is nothing to say.
    pub fn handle_dns_answer(&mut self, now: Instant, ticket: DnsTicket, answer: Option<&[u8]>) {
        self.resolver.handle_answer(now, ticket, answer);
        self.settle(now);
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<GatewayEvent> {
        self.events.pop_front()
    }

    /// Drops a peer at once. Nothing it sends is answered until the directory knows its key again.
    pub fn revoke(&mut self, now: Instant, key: PublicKey) {
        self.door.overtake(key);
        self.door.remember_unknown(now, key);
        if let Some(index) = self.table.find(&key) {
            self.remove(index, RemovedWhy::Revoked);
        }
    }

    /// The directory's record of a key changed: it is looked up anew, and an initiation of it is
    /// looked at even if the key was unknown a moment ago.
    pub fn changed(&mut self, now: Instant, key: PublicKey) {
        self.door.overtake(key);
        self.door.forget_unknown(key);
        if self.table.find(&key).is_some() && !self.door.renew(now, key) {
            self.counters.count_drop(DropReason::LookupsFull);
        }
    }

    /// Does what has become due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let lost = self.door.handle_timeout(now);
        self.counters
            .count_drops(DropReason::LookupUnavailable, lost);
        self.resolver.handle_timeout(now);
        while let Some(index) = self.table.pop_due(now) {
            self.handle_peer_timeout(now, index);
        }
        self.settle(now);
    }

    /// When [`Gateway::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [
            self.table.poll_timeout(),
            self.resolver.poll_timeout(),
            self.door.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Every peer that has proven itself, in no order.
    pub fn peers(&self, now: Instant) -> Vec<PeerStatus> {
        self.table
            .iter()
            .filter(|entry| entry.proven)
            .map(|entry| {
                let stats = entry.peer.stats();
                PeerStatus {
                    key: entry.grant.key,
                    name: entry.grant.name.clone(),
                    range: entry.grant.range,
                    endpoint: entry.endpoint,
                    connected: stats.session && !entry.down,
                    last_handshake: stats.last_handshake.map(|at| now.since(at)),
                    last_received: stats.last_received.map(|at| now.since(at)),
                    rx_bytes: stats.rx_bytes,
                    tx_bytes: stats.tx_bytes,
                }
            })
            .collect()
    }

    fn handle_initiation(&mut self, now: Instant, from: SocketAddr, initiation: &[u8]) {
        let crowded = self.table.unproven() >= self.limits.unproven / 2;
        match self.door.admit(now, from, initiation, crowded) {
            Verdict::Accept(()) => {}
            Verdict::Cookie(cookie) => {
                self.counters.count_drop(DropReason::CookieSent);
                return self.transmit(from, cookie);
            }
            Verdict::Drop(reason) => return self.counters.count_drop(reason),
        }
        let Some(key) = self.door.initiator(initiation) else {
            return self.counters.count_drop(DropReason::Unparseable);
        };
        if self.table.find(&key).is_some() {
            return self.deliver_initiation(now, from, key, initiation);
        }
        match self.door.stranger(now, from, key, initiation) {
            Verdict::Accept(()) => {}
            Verdict::Cookie(cookie) => {
                self.counters.count_drop(DropReason::CookieSent);
                self.transmit(from, cookie);
            }
            Verdict::Drop(reason) => self.counters.count_drop(reason),
        }
    }

    /// Hands an initiation to the peer that it names. The answer goes where it came from; nothing
    /// else of the peer changes by it.
    fn deliver_initiation(
        &mut self,
        now: Instant,
        from: SocketAddr,
        key: PublicKey,
        initiation: &[u8],
    ) {
        let index = self.table.find(&key);
        let Some((index, entry)) = index.and_then(|i| Some((i, self.table.get_mut(i)?))) else {
            return self.counters.count_drop(DropReason::UnknownPeer);
        };
        match entry.peer.handle_datagram(now, Some(from.ip()), initiation) {
            Ok(_) => {
                entry.answered = true;
                let endpoint = entry.endpoint;
                let answers: Vec<_> = std::iter::from_fn(|| entry.peer.poll_transmit()).collect();
                for answer in answers {
                    let response = answer.first() == Some(&RESPONSE);
                    match if response { Some(from) } else { endpoint } {
                        Some(to) => self.transmit(to, answer),
                        None => self.counters.count_drop(DropReason::NoEndpoint),
                    }
                }
                self.touch(index);
            }
            Err(_) => {
                self.counters.count_drop(DropReason::HandshakeRefused);
                // What was installed for this initiation alone goes again.
                if !entry.answered {
                    self.remove(index, RemovedWhy::Unproven);
                }
            }
        }
    }

    /// A response, a cookie or a transport message: its receiver index names the peer.
    fn handle_message(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        let Some(index) = receiver_index(datagram) else {
            return self.counters.count_drop(DropReason::Malformed);
        };
        if datagram.first() == Some(&RESPONSE) {
            match self.door.admit(now, from, datagram, false) {
                Verdict::Accept(()) => {}
                Verdict::Cookie(cookie) => {
                    self.counters.count_drop(DropReason::CookieSent);
                    return self.transmit(from, cookie);
                }
                Verdict::Drop(reason) => return self.counters.count_drop(reason),
            }
        }
        let Some(entry) = self.table.get_mut(index) else {
            return self.counters.count_drop(DropReason::NoSession);
        };
        match entry.peer.handle_datagram(now, Some(from.ip()), datagram) {
            Ok(received) => {
                if received.authenticated {
                    entry.heard();
                }
                if received.highest && entry.endpoint != Some(from) {
                    if entry.endpoint.is_some() {
                        count(&self.counters.roamed);
                    }
                    entry.endpoint = Some(from);
                }
            }
            Err(error) => self.counters.count_drop(match error {
                PeerError::Replay => DropReason::Replay,
                PeerError::NoSession => DropReason::NoSession,
                PeerError::NotIp => DropReason::NotIpv6,
                PeerError::Malformed => DropReason::Malformed,
                _ => DropReason::Forged,
            }),
        }
        self.touch(index);
    }

    /// Installs, renews or removes a peer as the directory says.
    fn apply(&mut self, now: Instant, key: PublicKey, lookup: Lookup) -> Result<(), DropReason> {
        let known = self.table.find(&key);
        let grant = match lookup {
            Lookup::Known(grant) => grant,
            Lookup::Unknown => {
                self.door.remember_unknown(now, key);
                if let Some(index) = known {
                    self.remove(index, RemovedWhy::Revoked);
                }
                return Err(DropReason::UnknownPeer);
            }
            Lookup::Unavailable => {
                match known.and_then(|index| self.table.get_mut(index)) {
                    Some(entry) => plan_renewal(now, entry),
                    None => self.door.remember_unavailable(now, key),
                }
                self.touched.extend(known);
                return Err(DropReason::LookupUnavailable);
            }
        };
        let Some(network) = usable(now, key, &grant) else {
            self.door.remember_unknown(now, key);
            if let Some(index) = known {
                self.remove(index, RemovedWhy::Revoked);
            }
            return Err(DropReason::InvalidRecord);
        };
        self.door.forget_unknown(key);
        if let Some((index, entry)) = known.and_then(|i| Some((i, self.table.get_mut(i)?))) {
            if entry.grant.range == grant.range && entry.grant.preshared == grant.preshared {
                entry.grant = grant;
                plan_renewal(now, entry);
                self.table.schedule(index);
                return Ok(());
            }
            self.remove(index, RemovedWhy::Changed);
        }
        if self.table.len() >= self.limits.peers || self.table.unproven() >= self.limits.unproven {
            return Err(DropReason::PeersFull);
        }
        let index = self.table.free_index();
        let peer = PeerConfig {
            local: self.key.clone(),
            remote: key,
            preshared: grant.preshared,
            keepalive: None,
            index,
            limiter: Some(self.door.limiter()),
            fast_retry: true,
        };
        let mut entry = Entry::new(Peer::new(peer, now), grant, network, now);
        plan_renewal(now, &mut entry);
        self.table.insert(index, entry);
        self.table.schedule(index);
        count(&self.counters.peers_installed);
        Ok(())
    }

    fn handle_peer_timeout(&mut self, now: Instant, index: u32) {
        let Some(entry) = self.table.get_mut(index) else {
            return;
        };
        if entry.grant.expires.is_some_and(|at| at <= now) {
            return self.remove(index, RemovedWhy::Expired);
        }
        entry.peer.handle_timeout(now);
        if entry.forget_at() <= now {
            let why = if entry.proven {
                RemovedWhy::Idle
            } else {
                RemovedWhy::Unproven
            };
            return self.remove(index, why);
        }
        if entry.probe_at().is_some_and(|at| at <= now) {
            entry.probed = Some(now);
            entry.peer.initiate(now);
        }
        if entry.renew_at.is_some_and(|at| at <= now) {
            plan_renewal(now, entry);
            let key = entry.grant.key;
            if !self.door.renew(now, key) {
                let soon = now + RENEW_EVERY;
                entry.renew_at = entry.renew_at.map(|at| at.min(soon));
                self.counters.count_drop(DropReason::LookupsFull);
            }
        }
        self.touch(index);
    }

    fn remove(&mut self, index: u32, why: RemovedWhy) {
        let Some(entry) = self.table.remove(index) else {
            return;
        };
        count(&self.counters.peers_removed);
        self.counters.count_drops(
            DropReason::PeerQueue,
            entry
                .peer
                .stats()
                .dropped_waiting
                .saturating_sub(entry.counted_drops),
        );
        if entry.proven {
            self.event(GatewayEvent::Removed {
                key: entry.grant.key,
                name: entry.grant.name,
                why,
            });
        }
    }

    fn touch(&mut self, index: u32) {
        self.touched.push_back(index);
    }

    /// Empties the queues of every peer that was touched, and of the resolver.
    fn settle(&mut self, now: Instant) {
        loop {
            while let Some(index) = self.touched.pop_front() {
                self.drain(now, index);
            }
            let Some((network, packet)) = self.resolver.poll_packet() else {
                return;
            };
            self.send_local(now, network, &packet);
        }
    }

    fn drain(&mut self, now: Instant, index: u32) {
        while let Some(event) = self.table.get_mut(index).and_then(|e| e.peer.poll_event()) {
            self.handle_peer_event(now, index, event);
        }
        while let Some(packet) = self.table.get_mut(index).and_then(|e| e.peer.poll_packet()) {
            self.route(now, index, packet);
        }
        let Some(entry) = self.table.get_mut(index) else {
            return;
        };
        let endpoint = entry.endpoint;
        let stats = entry.peer.stats();
        let drops = stats.dropped_waiting + stats.dropped_unread;
        self.counters
            .count_drops(DropReason::PeerQueue, drops - entry.counted_drops);
        entry.counted_drops = drops;
        while let Some(datagram) = self
            .table
            .get_mut(index)
            .and_then(|e| e.peer.poll_transmit())
        {
            match endpoint {
                Some(to) => self.transmit(to, datagram),
                None => self.counters.count_drop(DropReason::NoEndpoint),
            }
        }
        self.table.schedule(index);
    }

    fn handle_peer_event(&mut self, now: Instant, index: u32, event: PeerEvent) {
        match event {
            PeerEvent::SessionEstablished { .. } => {
                count(&self.counters.sessions);
                self.table.prove(index);
                let Some(entry) = self.table.get(index) else {
                    return;
                };
                self.event(GatewayEvent::Session {
                    key: entry.grant.key,
                    name: entry.grant.name.clone(),
                    endpoint: entry.endpoint,
                });
            }
            PeerEvent::HandshakeFailed { .. } => {
                let Some(entry) = self.table.get_mut(index) else {
                    return;
                };
                // A rekey may fail while data still flows.
                if entry.peer.has_session() && entry.asked.is_none() {
                    return;
                }
                entry.down = true;
                let (key, name) = (entry.grant.key, entry.grant.name.clone());
                if let Some((sender, packet)) = entry.unanswered.take() {
                    self.counters.count_drop(DropReason::PeerDown);
                    self.tell(now, sender, Problem::AddressUnreachable, &packet);
                }
                self.event(GatewayEvent::Silent { key, name });
            }
            PeerEvent::HandshakeStarted | PeerEvent::Expired => {}
        }
    }

    fn event(&mut self, event: GatewayEvent) {
        if self.events.len() >= EVENTS {
            self.events.pop_front();
            self.counters.count_drop(DropReason::EventsFull);
        }
        self.events.push_back(event);
    }

    /// The oldest data goes first when the queue is full; handshake messages are few.
    fn transmit(&mut self, to: SocketAddr, datagram: Vec<u8>) {
        while self.transmit_bytes + datagram.len() > self.limits.transmit_bytes {
            let oldest = self
                .transmits
                .iter()
                .position(|(_, d)| d.first() == Some(&TRANSPORT));
            let Some((_, dropped)) = self.transmits.remove(oldest.unwrap_or(0)) else {
                break;
            };
            self.transmit_bytes -= dropped.len();
            self.counters.count_drop(DropReason::TransmitFull);
        }
        self.transmit_bytes += datagram.len();
        self.transmits.push_back((to, datagram));
    }
}

const RESPONSE: u8 = 2;
const TRANSPORT: u8 = 4;

/// The network of a record that can be used: a range that peers and instances own, without the
/// gateway's own address, and a lease that is not over.
fn usable(now: Instant, key: PublicKey, grant: &Grant) -> Option<NetworkId> {
    let network = NetworkId::of(grant.range.address())?;
    let sound = grant.key == key
        && matches!(grant.range.len(), 112 | 120)
        && !grant.range.contains(network.dns())
        && grant.expires.is_none_or(|at| now < at);
    sound.then_some(network)
}

fn plan_renewal(now: Instant, entry: &mut Entry) {
    let Some(expires) = entry.grant.expires else {
        let apart = REVIEW_APART * u32::from(entry.grant.key.as_bytes()[0]);
        entry.renew_at = Some(now + REVIEW_EVERY.saturating_sub(apart));
        return;
    };
    let left = expires.since(now);
    let wait = if left > RENEW_BEFORE {
        left - RENEW_BEFORE
    } else if left > RENEW_EVERY + RENEW_LAST {
        RENEW_EVERY
    } else if left > RENEW_LAST {
        left - RENEW_LAST
    } else {
        left
    };
    entry.renew_at = Some(now + wait);
}

/// The gateway's address in a network: where its errors come from.
fn own_address(network: NetworkId) -> Ipv6Addr {
    network.dns()
}
