//! The bench: a gateway, a directory, and clients made of `tunnel`'s peer and stack.

use std::{
    collections::{HashMap, HashSet},
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use names::{AppView, Directory, InstanceView, Names, NetworkView, Reply};
use sixpn::{Interface, NetworkId, instance_interface, peer_interface};
use tunnel::{
    Instant, PrivateKey,
    peer::{Peer, PeerConfig, PeerEvent},
    stack::{Limits as StackLimits, Stack, StackConfig},
};
use wire::PublicKey;

use crate::{Config, DropReason, Gateway, GatewayEvent, Grant, Limits, Lookup};

pub(super) const GATEWAY_KEY: u8 = 200;

pub(super) fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_bytes([seed; 32])
}

pub(super) fn network(id: u32) -> NetworkId {
    NetworkId::new(id).expect("not zero")
}

/// The interface of client `seed` in network `id`: an instance where `seed` is even.
pub(super) fn interface(id: u32, seed: u8) -> Interface {
    if seed.is_multiple_of(2) {
        instance_interface(network(id), 1, seed.into())
    } else {
        peer_interface(network(id), 2, seed.into())
    }
}

/// Network `id` has one app, `app<id>`, with one instance.
struct View;

impl Directory for View {
    fn view(&self, network: NetworkId) -> Option<Arc<NetworkView>> {
        let instance = InstanceView {
            id: "i1".into(),
            region: "ams".into(),
            address: instance_interface(network, 1, 2).address(),
            started: true,
            group: "web".into(),
        };
        let app = AppView {
            name: format!("app{}", network.get()),
            instances: vec![instance],
        };
        Some(Arc::new(NetworkView {
            apps: vec![app],
            ..NetworkView::default()
        }))
    }
}

pub(super) struct Bench {
    pub(super) now: Instant,
    pub(super) gateway: Gateway,
    pub(super) directory: HashMap<PublicKey, Grant>,
    pub(super) available: bool,
    pub(super) clients: Vec<Client>,
    /// Keys that were looked up, in order.
    pub(super) lookups: Vec<PublicKey>,
    pub(super) events: Vec<GatewayEvent>,
    /// Datagrams to addresses where no client is.
    pub(super) strays: Vec<(SocketAddr, Vec<u8>)>,
    /// Addresses whose datagrams are lost, both ways.
    pub(super) dead: HashSet<SocketAddr>,
    /// Queries are kept instead of answered.
    pub(super) hold_dns: bool,
    names: Names<View>,
}

/// One client and what it has received.
pub(super) struct Client {
    pub(super) peer: Peer,
    pub(super) stack: Stack,
    pub(super) at: SocketAddr,
    pub(super) address: Ipv6Addr,
    pub(super) key: PublicKey,
    pub(super) packets: Vec<Vec<u8>>,
    pub(super) events: Vec<PeerEvent>,
}

/// Names a client of a bench.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Id(pub(super) usize);

impl Bench {
    pub(super) fn new() -> Bench {
        Bench::with(Limits::default(), &[])
    }

    pub(super) fn with(limits: Limits, relays: &[&str]) -> Bench {
        let relays = relays
            .iter()
            .map(|ip| ip.parse().expect("an address"))
            .collect();
        let config = Config {
            key: key(GATEWAY_KEY),
            relays,
            seed: 7,
            limits,
        };
        Bench {
            now: Instant::from_micros(1_000_000),
            gateway: Gateway::new(config),
            directory: HashMap::new(),
            available: true,
            clients: Vec::new(),
            lookups: Vec::new(),
            events: Vec::new(),
            strays: Vec::new(),
            dead: HashSet::new(),
            hold_dns: false,
            names: Names::new(View),
        }
    }

    /// A client that the directory knows.
    pub(super) fn client(&mut self, net: u32, seed: u8) -> Id {
        let id = self.stranger(net, seed);
        let grant = self.grant(net, seed);
        self.directory.insert(grant.key, grant);
        id
    }

    pub(super) fn grant(&self, net: u32, seed: u8) -> Grant {
        Grant {
            name: format!("client-{seed}"),
            key: key(seed).public(),
            range: interface(net, seed).prefix(),
            preshared: None,
            expires: None,
        }
    }

    /// A client that nobody knows.
    pub(super) fn stranger(&mut self, net: u32, seed: u8) -> Id {
        let address = interface(net, seed).address();
        let config = PeerConfig::client(key(seed), key(GATEWAY_KEY).public());
        let stack = StackConfig {
            addresses: vec![address],
            mtu: 1420,
            seed: seed.into(),
            any_ip: false,
            limits: StackLimits::default(),
        };
        self.clients.push(Client {
            peer: Peer::new(config, self.now),
            stack: Stack::new(stack, self.now),
            at: SocketAddr::new([192, 0, 2, seed].into(), 1000),
            address,
            key: key(seed).public(),
            packets: Vec::new(),
            events: Vec::new(),
        });
        Id(self.clients.len() - 1)
    }

    /// A client of the directory with a session.
    pub(super) fn connected(&mut self, net: u32, seed: u8) -> Id {
        let id = self.client(net, seed);
        self.connect(id);
        id
    }

    pub(super) fn connect(&mut self, id: Id) {
        let now = self.now;
        self.get(id).peer.initiate(now);
        self.settle();
        assert!(
            self.get(id).peer.has_session(),
            "client {id:?} has no session"
        );
    }

    pub(super) fn get(&mut self, id: Id) -> &mut Client {
        &mut self.clients[id.0]
    }

    /// Sends a packet and lets everything settle.
    pub(super) fn send(&mut self, from: Id, packet: &[u8]) {
        let now = self.now;
        self.get(from).peer.send_packet(now, packet);
        self.settle();
    }

    /// The datagrams that a client has for the wire, not delivered.
    pub(super) fn datagrams(&mut self, id: Id) -> Vec<Vec<u8>> {
        let client = self.get(id);
        std::iter::from_fn(|| client.peer.poll_transmit()).collect()
    }

    pub(super) fn received(&mut self, id: Id) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.get(id).packets)
    }

    pub(super) fn dropped(&self, reason: DropReason) -> u64 {
        self.gateway.counters().dropped(reason)
    }

    /// Everything that was dropped, by name.
    pub(super) fn drops(&self) -> Vec<(&'static str, u64)> {
        let drops = self.gateway.counters().drops();
        drops
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| (reason.name(), count))
            .collect()
    }

    /// Lets time pass in steps, with everybody's timers.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(100).min(end - self.now);
            let now = self.now;
            for client in &mut self.clients {
                client.peer.handle_timeout(now);
                client.stack.handle_timeout(now);
            }
            if self.gateway.poll_timeout().is_some_and(|at| at <= now) {
                self.gateway.handle_timeout(now);
            }
            self.settle();
        }
    }

    /// Carries datagrams, lookups and queries until nothing moves.
    pub(super) fn settle(&mut self) {
        let now = self.now;
        loop {
            let mut moved = false;
            for index in 0..self.clients.len() {
                let client = &mut self.clients[index];
                while let Some(packet) = client.stack.poll_transmit(now) {
                    client.peer.send_packet(now, &packet);
                }
                while let Some(event) = client.peer.poll_event() {
                    client.events.push(event);
                }
                let (at, out) = (client.at, self.datagrams(Id(index)));
                for datagram in out {
                    moved = true;
                    if !self.dead.contains(&at) {
                        self.gateway.handle_datagram(now, at, &datagram);
                    }
                }
            }
            while let Some(key) = self.gateway.poll_lookup() {
                moved = true;
                self.lookups.push(key);
                let lookup = match self.directory.get(&key) {
                    _ if !self.available => Lookup::Unavailable,
                    Some(grant) => Lookup::Known(grant.clone()),
                    None => Lookup::Unknown,
                };
                self.gateway.handle_lookup(now, key, lookup);
            }
            while !self.hold_dns
                && let Some(query) = self.gateway.poll_dns()
            {
                moved = true;
                let since = now.since(Instant::ZERO);
                let reply = self
                    .names
                    .answer(&query.query, query.source, query.over, since);
                let answer = match reply {
                    Reply::Answer(answer) => Some(answer),
                    Reply::Forward(_) => Some(b"forwarded".to_vec()),
                    Reply::Drop(_) => None,
                };
                self.gateway
                    .handle_dns_answer(now, query.ticket, answer.as_deref());
            }
            while let Some(event) = self.gateway.poll_event() {
                self.events.push(event);
            }
            while let Some((to, datagram)) = self.gateway.poll_transmit() {
                moved = true;
                if self.dead.contains(&to) {
                    continue;
                }
                let Some(client) = self.clients.iter_mut().find(|client| client.at == to) else {
                    self.strays.push((to, datagram));
                    continue;
                };
                let _ = client.peer.handle_datagram(now, Some(to.ip()), &datagram);
                while let Some(packet) = client.peer.poll_packet() {
                    // A stack would answer what it does not know, and that is not looked at here.
                    if matches!(packet[6], 6 | 17 | 58) {
                        client.stack.handle_packet(now, &packet);
                    }
                    client.packets.push(packet);
                }
            }
            if !moved {
                return;
            }
        }
    }
}

/// An IPv6 packet of `len` bytes, of a protocol without a meaning.
pub(super) fn packet(from: Ipv6Addr, to: Ipv6Addr, len: usize) -> Vec<u8> {
    let mut packet = vec![0xaa; len.max(40)];
    packet[..4].copy_from_slice(&[0x60, 0, 0, 0]);
    let payload = u16::try_from(packet.len() - 40).expect("a packet fits");
    packet[4..6].copy_from_slice(&payload.to_be_bytes());
    packet[6..8].copy_from_slice(&[253, 64]);
    packet[8..24].copy_from_slice(&from.octets());
    packet[24..40].copy_from_slice(&to.octets());
    packet
}

/// `packet` as it arrives behind one router.
pub(super) fn routed(mut packet: Vec<u8>) -> Vec<u8> {
    packet[7] -= 1;
    packet
}

/// Source, type and code of an ICMPv6 packet.
pub(super) fn icmp(packet: &[u8]) -> (Ipv6Addr, u8, u8) {
    assert_eq!(packet[6], 58, "ICMPv6");
    let source: [u8; 16] = packet[8..24].try_into().expect("16 bytes");
    (source.into(), packet[40], packet[41])
}

/// A query for `name`, type AAAA.
pub(super) fn query(id: u16, name: &str) -> Vec<u8> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).expect("a label"));
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 28, 0, 1]);
    query
}

/// Id, code and number of answers of a response.
pub(super) fn response(bytes: &[u8]) -> (u16, u8, u16) {
    assert!(bytes[2] & 0x80 != 0, "a response");
    (
        u16::from_be_bytes([bytes[0], bytes[1]]),
        bytes[3] & 15,
        u16::from_be_bytes([bytes[6], bytes[7]]),
    )
}
