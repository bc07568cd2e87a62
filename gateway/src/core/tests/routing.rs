//! Cryptokey routing, isolation and what a router owes to senders.

use std::{net::SocketAddr, time::Duration};

use tunnel::stack::{Class, CloseReason, StackEvent, Unreachable};

use super::bench::*;
use crate::{DropReason, GatewayEvent, Limits, core::parts::RemovedWhy};

fn addr(text: &str) -> std::net::Ipv6Addr {
    text.parse().expect("an address")
}

#[test]
fn peers_of_one_network_reach_each_other() {
    let mut bench = Bench::new();
    let (a, b) = (bench.connected(1, 1), bench.connected(1, 2));
    let (from, to) = (bench.get(a).address, bench.get(b).address);
    bench.send(a, &packet(from, to, 1420));
    bench.send(b, &packet(to, from, 40));
    assert_eq!(bench.received(b), [routed(packet(from, to, 1420))]);
    assert_eq!(bench.received(a), [routed(packet(to, from, 40))]);
    assert_eq!(bench.drops(), []);
}

#[test]
fn a_peer_uses_its_whole_range_and_no_more() {
    let mut bench = Bench::new();
    let (peer, instance) = (bench.connected(1, 1), bench.connected(1, 2));
    let (a, b) = (bench.get(peer).address, bench.get(instance).address);
    let last = |address: std::net::Ipv6Addr, low: u128| (address.to_bits() & !0xffff | low).into();
    bench.send(peer, &packet(last(a, 0xff), last(b, 0xffff), 60));
    assert_eq!(
        bench.received(instance),
        [routed(packet(last(a, 0xff), last(b, 0xffff), 60))]
    );
    bench.send(peer, &packet(last(a, 0x100), b, 60));
    bench.send(instance, &packet((b.to_bits() + 0x1_0000).into(), a, 60));
    assert_eq!(bench.dropped(DropReason::SpoofedSource), 2);
    assert_eq!(
        (bench.received(peer), bench.received(instance)),
        (vec![], vec![])
    );
}

#[test]
fn two_networks_never_exchange_a_packet() {
    let mut bench = Bench::new();
    let (a, b) = (bench.connected(1, 1), bench.connected(2, 2));
    let c = bench.connected(2, 3);
    let (ours, theirs, third) = (
        bench.get(a).address,
        bench.get(b).address,
        bench.get(c).address,
    );

    bench.send(a, &packet(ours, theirs, 60));
    bench.send(a, &packet(ours, addr("fdaa:0:2:9:9:9:9:9"), 60));
    bench.send(a, &packet(ours, addr("fdaa:0:2::3"), 60));
    bench.send(a, &packet(ours, addr("2001:db8::1"), 60));
    let answers = bench.received(a);
    let no_route = (network(1).dns(), 1, 0);
    assert_eq!(
        answers.iter().map(|p| icmp(p)).collect::<Vec<_>>(),
        [no_route; 4]
    );
    assert_eq!(bench.dropped(DropReason::OtherNetwork), 4);

    // Sources of the other network, of the gateway, and of nobody.
    for source in [
        theirs,
        third,
        network(1).dns(),
        network(2).dns(),
        sixpn::INSTANCE_DNS,
    ] {
        bench.send(a, &packet(source, theirs, 60));
        bench.send(a, &packet(source, third, 60));
    }
    bench.send(a, &packet(addr("::"), theirs, 60));
    assert_eq!(bench.dropped(DropReason::SpoofedSource), 11);
    for client in [a, b, c] {
        assert_eq!(bench.received(client), Vec::<Vec<u8>>::new());
    }
    bench.send(b, &packet(theirs, ours, 60));
    assert_eq!(bench.received(a), Vec::<Vec<u8>>::new());
    assert_eq!(
        bench.received(b).iter().map(|p| icmp(p)).next(),
        Some((network(2).dns(), 1, 0))
    );
}

#[test]
fn errors_that_a_router_owes() {
    let mut bench = Bench::new();
    let (a, b) = (bench.connected(1, 1), bench.connected(1, 2));
    let (from, to) = (bench.get(a).address, bench.get(b).address);
    let gateway = network(1).dns();

    let nobody = packet(from, addr("fdaa:0:1:77::1"), 100);
    bench.send(a, &nobody);
    let error = bench.received(a).remove(0);
    assert_eq!(icmp(&error), (gateway, 1, 3));
    assert_eq!(error[48..], nobody);

    bench.send(a, &packet(from, to, 1421));
    let error = bench.received(a).remove(0);
    assert_eq!(icmp(&error), (gateway, 2, 0));
    assert_eq!(error[44..48], 1420u32.to_be_bytes());
    assert_eq!(error.len(), 1280);

    for limit in [0, 1] {
        let mut last = packet(from, to, 60);
        last[7] = limit;
        bench.send(a, &last);
        assert_eq!(icmp(&bench.received(a).remove(0)), (gateway, 3, 0));
    }

    // RFC 4443: no error about an error, nor about what went to many.
    let mut error = packet(from, addr("fdaa:0:1:77::1"), 60);
    error[6] = 58;
    error[40] = 1;
    bench.send(a, &error);
    bench.send(a, &packet(from, addr("ff02::1"), 60));
    bench.send(a, &packet(from, from, 60));
    bench.send(a, &[0x45; 60]);
    assert_eq!(bench.received(a), Vec::<Vec<u8>>::new());
    assert_eq!(bench.received(b), Vec::<Vec<u8>>::new());
    assert_eq!(
        bench.drops(),
        [
            ("not_ipv6", 1),
            ("not_unicast", 1),
            ("to_itself", 1),
            ("hop_limit", 2),
            ("too_big", 1),
            ("no_peer", 2),
            ("icmp_suppressed", 1),
        ]
    );

    for _ in 0..100 {
        bench.send(a, &nobody);
    }
    assert_eq!(
        bench.received(a).len(),
        16,
        "twenty at once, four were used"
    );
    bench.pass(Duration::from_secs(1));
    for _ in 0..100 {
        bench.send(a, &nobody);
    }
    assert_eq!(bench.received(a).len(), 10, "ten a second");
}

#[test]
fn a_connection_to_nobody_fails_at_once() {
    let mut bench = Bench::new();
    let a = bench.connected(1, 1);
    let remote = "[fdaa:0:1:77::1]:22".parse().expect("an address");
    let now = bench.now;
    let stream = bench
        .get(a)
        .stack
        .connect(now, remote, Class::Interactive)
        .expect("a stream");
    bench.settle();
    let reason = CloseReason::Unreachable(Unreachable::Host);
    let stack = &mut bench.get(a).stack;
    let events: Vec<_> = std::iter::from_fn(|| stack.poll_event()).collect();
    assert!(
        events.contains(&StackEvent::Closed(stream, reason)),
        "{events:?}"
    );
}

#[test]
fn a_peer_that_died_is_reported_and_one_that_returns_is_reached() {
    let mut bench = Bench::new();
    let (a, b) = (bench.connected(1, 1), bench.connected(1, 2));
    let (from, to) = (bench.get(a).address, bench.get(b).address);
    let there = bench.get(b).at;
    bench.dead.insert(there);
    bench.send(a, &packet(from, to, 60));
    bench.pass(Duration::from_millis(6900));
    assert_eq!(bench.received(a), Vec::<Vec<u8>>::new());
    bench.pass(Duration::from_millis(300));
    assert_eq!(icmp(&bench.received(a).remove(0)), (network(1).dns(), 1, 3));
    let key = bench.get(b).key;
    assert!(bench.events.contains(&GatewayEvent::Silent {
        key,
        name: "client-2".into()
    }));
    bench.send(a, &packet(from, to, 60));
    assert_eq!(
        icmp(&bench.received(a).remove(0)),
        (network(1).dns(), 1, 3),
        "now at once"
    );
    assert!(
        !bench
            .gateway
            .peers(bench.now)
            .iter()
            .any(|p| p.key == key && p.connected)
    );

    bench.dead.clear();
    bench.connect(b);
    bench.send(a, &packet(from, to, 60));
    assert_eq!(bench.received(b), [routed(packet(from, to, 60))]);
}

#[test]
fn a_quiet_peer_that_lives_is_left_alone() {
    let mut bench = Bench::new();
    let (a, b) = (bench.connected(1, 1), bench.connected(1, 2));
    let (from, to) = (bench.get(a).address, bench.get(b).address);
    for _ in 0..30 {
        // It never answers, as a sink of UDP would not.
        bench.send(a, &packet(from, to, 60));
        bench.pass(Duration::from_millis(500));
    }
    assert_eq!(bench.received(b).len(), 30);
    assert_eq!(bench.received(a), Vec::<Vec<u8>>::new());
    let sessions = bench
        .gateway
        .counters()
        .sessions
        .load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(sessions, 4, "two clients, and two probes");
}

#[test]
fn an_endpoint_moves_with_the_highest_counter_alone() {
    let mut bench = Bench::new();
    let (a, b) = (bench.connected(1, 1), bench.connected(1, 2));
    let (from, to) = (bench.get(a).address, bench.get(b).address);
    let home = bench.get(a).at;
    let attacker: SocketAddr = "203.0.113.66:6".parse().expect("an address");
    let now = bench.now;
    let make = |bench: &mut Bench| {
        bench.get(a).peer.send_packet(now, &packet(from, to, 60));
        bench.datagrams(a).remove(0)
    };
    let (held, seen) = (make(&mut bench), make(&mut bench));
    bench.gateway.handle_datagram(now, home, &seen);
    // A copy from elsewhere, an older one from elsewhere, one that does not decrypt.
    bench.gateway.handle_datagram(now, attacker, &seen);
    bench.gateway.handle_datagram(now, attacker, &held);
    let mut forged = make(&mut bench);
    forged[20] ^= 1;
    bench.gateway.handle_datagram(now, attacker, &forged);
    // An initiation from elsewhere is answered there, and moves nothing.
    bench.get(a).peer.initiate(now);
    let initiation = bench.datagrams(a).remove(0);
    bench.gateway.handle_datagram(now, attacker, &initiation);
    bench.settle();
    assert_eq!(bench.received(b).len(), 2);
    assert_eq!(
        bench
            .strays
            .iter()
            .map(|(to, d)| (*to, d.len()))
            .collect::<Vec<_>>(),
        [(attacker, 92)]
    );
    bench.send(b, &packet(to, from, 60));
    assert_eq!(bench.received(a).len(), 1, "still at home");
    assert_eq!(
        bench.drops(),
        [("forged", 1), ("replay", 1)],
        "each of these is counted by its name"
    );

    let moved: SocketAddr = "198.51.100.4:4444".parse().expect("an address");
    bench.get(a).at = moved;
    bench.send(a, &packet(from, to, 60));
    bench.send(b, &packet(to, from, 60));
    assert_eq!(bench.received(a).len(), 1, "at its new address");
    let roamed = bench
        .gateway
        .counters()
        .roamed
        .load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(roamed, 1);
    assert!(
        bench
            .gateway
            .peers(now)
            .iter()
            .any(|peer| peer.endpoint == Some(moved))
    );
}

#[test]
fn a_revoked_peer_is_gone_at_once() {
    let mut bench = Bench::new();
    let (a, b) = (bench.connected(1, 1), bench.connected(1, 2));
    let (from, to) = (bench.get(a).address, bench.get(b).address);
    let key = bench.get(a).key;
    bench.directory.remove(&key);
    let now = bench.now;
    bench.gateway.revoke(now, key);
    bench.send(a, &packet(from, to, 60));
    assert_eq!(bench.received(b), Vec::<Vec<u8>>::new());
    assert_eq!(bench.dropped(DropReason::NoSession), 1);
    bench.send(b, &packet(to, from, 60));
    assert_eq!(bench.received(a), Vec::<Vec<u8>>::new());
    assert_eq!(icmp(&bench.received(b).remove(0)), (network(1).dns(), 1, 3));
    let why = RemovedWhy::Revoked;
    assert!(bench.events.contains(&GatewayEvent::Removed {
        key,
        name: "client-1".into(),
        why
    }));
    bench.pass(Duration::from_secs(20));
    assert_eq!(bench.gateway.peers(bench.now).len(), 1);
}

#[test]
fn a_lease_ends_unless_it_is_renewed() {
    let mut bench = Bench::new();
    let a = bench.client(1, 1);
    let lease = Duration::from_secs(600);
    let (key, now) = (bench.get(a).key, bench.now);
    bench.directory.get_mut(&key).expect("known").expires = Some(now + lease);
    bench.connect(a);
    let chat = |bench: &mut Bench, seconds: u64| {
        let address = bench.get(a).address;
        for _ in 0..seconds / 10 {
            bench.send(a, &packet(address, network(1).dns(), 60));
            bench.pass(Duration::from_secs(10));
        }
    };
    chat(&mut bench, 300);
    bench.directory.get_mut(&key).expect("known").expires = Some(now + 2 * lease);
    chat(&mut bench, 310);
    assert_eq!(bench.gateway.peers(bench.now).len(), 1, "renewed");
    assert_eq!(bench.lookups.len(), 2, "once to install, once to renew");
    chat(&mut bench, 580);
    assert_eq!(bench.gateway.peers(bench.now).len(), 1);
    chat(&mut bench, 10);
    assert_eq!(bench.gateway.peers(bench.now).len(), 0);
    let why = RemovedWhy::Expired;
    assert!(bench.events.contains(&GatewayEvent::Removed {
        key,
        name: "client-1".into(),
        why
    }));
}

#[test]
fn a_removal_that_nobody_told_of_is_noticed() {
    let mut bench = Bench::new();
    let (a, b) = (bench.connected(1, 1), bench.connected(1, 2));
    let (gone, stays) = (bench.get(a).key, bench.get(b).key);
    bench.directory.remove(&gone);
    for _ in 0..30 {
        for id in [a, b] {
            let address = bench.get(id).address;
            bench.send(id, &packet(address, network(1).dns(), 60));
        }
        bench.pass(Duration::from_secs(10));
    }
    let left: Vec<_> = bench.gateway.peers(bench.now);
    assert_eq!(left.iter().map(|p| p.key).collect::<Vec<_>>(), [stays]);
    let why = RemovedWhy::Revoked;
    assert!(bench.events.contains(&GatewayEvent::Removed {
        key: gone,
        name: "client-1".into(),
        why
    }));
}

#[test]
fn what_has_no_place_is_counted() {
    let mut bench = Bench::new();
    let a = bench.connected(1, 1);
    let (now, address, key) = (bench.now, bench.get(a).address, bench.get(a).key);
    let nobody = u32::MAX;
    let lost = packet(address, address, 60);
    bench.gateway.route(now, nobody, lost.clone());
    assert_eq!(bench.dropped(DropReason::SenderGone), 1);
    let problem = crate::icmp::Problem::NoRoute;
    bench.gateway.tell(now, nobody, problem, &lost);
    assert_eq!(bench.dropped(DropReason::IcmpSuppressed), 1);
    for _ in 0..4100 {
        let name = String::new();
        bench.gateway.event(GatewayEvent::Silent { key, name });
    }
    assert_eq!(bench.dropped(DropReason::EventsFull), 4);
}

#[test]
fn an_idle_peer_is_forgotten_and_comes_back_on_demand() {
    let mut bench = Bench::new();
    let a = bench.connected(1, 1);
    bench.pass(Duration::from_secs(599));
    assert_eq!(bench.gateway.peers(bench.now).len(), 1);
    bench.pass(Duration::from_secs(2));
    assert_eq!(bench.gateway.peers(bench.now).len(), 0);
    assert_eq!(bench.gateway.poll_timeout(), None, "nothing is left to do");
    let asked = bench.lookups.len();
    bench.connect(a);
    assert_eq!(bench.lookups.len(), asked + 1);
}

#[test]
fn a_range_that_moves_to_another_key_moves_at_its_handshake() {
    let mut bench = Bench::new();
    let (old, other) = (bench.connected(1, 1), bench.connected(1, 2));
    let (range, there) = (bench.get(old).address, bench.get(other).address);
    let new = bench.client(1, 3);
    let key = bench.get(new).key;
    let grant = crate::Grant {
        key,
        ..bench.grant(1, 1)
    };
    bench.directory.insert(key, grant);
    let now = bench.now;
    bench.get(new).peer.initiate(now);
    let initiation = bench.datagrams(new).remove(0);
    let at = bench.get(new).at;
    bench.gateway.handle_datagram(now, at, &initiation);
    bench.dead.insert(at);
    bench.settle();
    bench.send(other, &packet(there, range, 60));
    assert_eq!(
        bench.received(old).len(),
        1,
        "an initiation takes nothing from anybody"
    );
    bench.dead.clear();
    bench.connect(new);
    bench.send(other, &packet(there, range, 60));
    assert_eq!(
        (bench.received(old).len(), bench.received(new).len()),
        (0, 1)
    );
    bench.send(old, &packet(range, there, 60));
    assert_eq!(bench.dropped(DropReason::SpoofedSource), 1);
}

#[test]
fn the_queue_for_the_socket_is_bounded_and_handshakes_stay() {
    let mut bench = Bench::with(
        Limits {
            transmit_bytes: 10_000,
            ..Limits::default()
        },
        &[],
    );
    let (a, b) = (bench.connected(1, 1), bench.connected(1, 2));
    let (from, to) = (bench.get(a).address, bench.get(b).address);
    let (now, home) = (bench.now, bench.get(a).at);
    bench.get(a).peer.initiate(now);
    for _ in 0..50 {
        bench.get(a).peer.send_packet(now, &packet(from, to, 1000));
    }
    for datagram in bench.datagrams(a) {
        bench.gateway.handle_datagram(now, home, &datagram);
    }
    let out: Vec<_> = std::iter::from_fn(|| bench.gateway.poll_transmit()).collect();
    assert_eq!(out[0].1.len(), 92, "the response");
    assert_eq!(out.len(), 1 + 9);
    assert_eq!(bench.dropped(DropReason::TransmitFull), 41);
}
